package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"pier/api/auth"
	"pier/api/identity"
	"pier/fsm"
)

// Access says how callers are told apart. The zero value of all but Keys is the default.
type Access struct {
	// Keys are the cluster's token keys of the moment; nil has none, and then only open access works.
	Keys func() *auth.Keys
	// Clients tells who shows a certificate; nil takes none.
	Clients *auth.Clients
	// Authority is the CA that signs the certificates which clients see; nil has none.
	Authority func() (*auth.Authority, error)
	// PublicURL is where clients find this node's token service, where the request doesn't say it.
	PublicURL string
	// Proxies are believed when they say whom they speak for (X-Forwarded-*).
	Proxies []netip.Prefix
	// TokenLife is how long an access token is good (default 5 minutes).
	TokenLife time.Duration
	// Hold is how long the answer to a login that comes too soon is kept back (default 500 ms).
	Hold time.Duration
	// Closed keeps everybody out until the first user is there: somebody is about to make one.
	Closed bool
	// Now is the clock; nil is the machine's.
	Now func() time.Time
}

const (
	tokenPath    = "/token"
	tokenService = "pier"
	refreshLife  = 30 * 24 * time.Hour // of a token that stands for a password
)

// need is what an endpoint asks of its caller. The zero value is none of them, so that an endpoint must say.
type need int

const (
	needsCaller  need = iota + 1 // anybody who has asked for a token or has a password: how clients find out how to log in
	needsCatalog                 // the same; what the list shows depends on the caller
	needsPull
	needsPush
	needsDelete
)

// right is what the need asks for on the repository of a route; 0 asks for none.
func (n need) right() auth.Right {
	return map[need]auth.Right{needsPull: auth.Pull, needsPush: auth.Push, needsDelete: auth.Delete}[n]
}

// access knows the callers. Its picture of who there is follows the replicated state, and needs no quorum.
type access struct {
	cfg     Access
	state   *fsm.State
	logins  *auth.Logins
	held    *desk            // logins that came too soon
	people  *identity.People // of the providers that the picture names
	issuers *identity.Issuers
	logger  *slog.Logger

	current atomic.Pointer[picture]
	making  sync.Mutex // held by who makes the next one: the others need it too
}

// picture is who there is, at one version of the state.
type picture struct {
	version   uint64
	directory *auth.Directory
	rules     []identity.Rule
}

func newAccess(cfg Access, state *fsm.State, logger *slog.Logger) *access {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Keys == nil {
		cfg.Keys = func() *auth.Keys { return nil }
	}
	orDefault(&cfg.TokenLife, 5*time.Minute)
	orDefault(&cfg.Hold, 500*time.Millisecond)
	people := identity.NewPeople()
	return &access{cfg: cfg, state: state, logins: auth.NewLogins(cfg.Now, people), held: newDesk(), people: people, issuers: identity.NewIssuers(cfg.Now), logger: logger}
}

// directory is who there is, as this node's state has it.
func (x *access) directory() (*auth.Directory, error) {
	d, _, err := x.versioned()
	return d, err
}

// versioned is the directory with the version of the state that it is of.
func (x *access) versioned() (*auth.Directory, uint64, error) {
	p, err := x.picture()
	if err != nil {
		return nil, 0, err
	}
	return p.directory, p.version, nil
}

// picture is made anew when the state says that something changed, by the first who asks.
func (x *access) picture() (*picture, error) {
	if p := x.current.Load(); p != nil && p.version == x.state.AccessVersion() {
		return p, nil
	}
	x.making.Lock()
	defer x.making.Unlock()
	p := x.current.Load()
	if p != nil && p.version == x.state.AccessVersion() {
		return p, nil
	}
	a, err := x.state.Access()
	if err != nil {
		return nil, fmt.Errorf("read who has access: %w", err)
	}
	if p != nil && p.version == a.Version { // a change is on its way, and not there yet
		return p, nil
	}
	a.On = a.On || x.cfg.Closed && !a.Decided
	providers, rules := x.providersOf(a.Providers), x.rulesOf(a.Trusts)
	x.people.Set(providers)
	p = &picture{version: a.Version, directory: directoryOf(a, providers, rules), rules: rules}
	x.current.Store(p)
	return p, nil
}

func directoryOf(a fsm.Access, providers []identity.Provider, rules []identity.Rule) *auth.Directory {
	principals := make([]auth.Principal, 0, len(a.Principals))
	for _, p := range a.Principals {
		to := auth.Principal{
			Name: p.Name, Kind: auth.KindUser, Password: p.Password, Provider: p.Provider, Groups: p.Groups, Disabled: p.Disabled,
			Expires: instant(p.Expires), Generation: p.Generation,
		}
		if p.Robot {
			to.Kind = auth.KindRobot
		}
		for _, s := range p.Secrets {
			to.Secrets = append(to.Secrets, auth.Secret{ID: s.ID, Hash: s.Hash, Expires: instant(s.Expires)})
		}
		principals = append(principals, to)
	}
	grants := make([]auth.Grant, 0, len(a.Grants))
	for _, g := range a.Grants {
		if right, err := auth.ParseRight(g.Right); err == nil { // a right of a later version gives nothing here
			grants = append(grants, auth.Grant{Subject: g.Subject, Right: right, Pattern: g.Pattern})
		}
	}
	known := make([]auth.Provider, 0, len(providers))
	for _, p := range providers {
		known = append(known, auth.Provider{Name: p.Name, Generation: p.Generation, Passwords: p.LDAP != nil})
	}
	for _, r := range rules {
		known = append(known, auth.Rule(r.Name, r.Robot, r.Generation))
	}
	return auth.NewDirectory(a.On, principals, grants, known...)
}

// instant is a time of the state, of which 0 is none.
func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// admit decides whether a request for an endpoint may go on. It comes before anything of the body is read.
func (a *API) admit(r *http.Request, n need, rt route) error {
	x := exchangeOf(r.Context())
	if x.caller.Kind == auth.KindOperator {
		return nil
	}
	d, version, err := a.access.versioned()
	if err != nil {
		return err
	}
	if err := a.decide(r, d, n, rt); err != nil {
		return err
	}
	x.letIn(d, version, func(d *auth.Directory, c auth.Caller) bool {
		_, ok := d.Decide(c, n.right(), string(rt.repo))
		return ok || n.right() == 0
	})
	return nil
}

// proof is what came of a password.
type proof struct {
	by     *auth.Directory
	caller auth.Caller
	err    error
}

// prove checks a password before the request takes a place among those that are served: who waits for bcrypt or for a directory
// server keeps nobody else waiting. How many wait there is bounded by Logins.
func (a *API) prove(r *http.Request) {
	x := exchangeOf(r.Context())
	if x.caller.Kind == auth.KindOperator || !hasScheme(r, "Basic") {
		return
	}
	d, err := a.access.directory()
	if err != nil || !d.On() {
		return
	}
	c, err := a.access.identify(r, d)
	a.keepBack(r)
	x.proof = &proof{by: d, caller: c, err: err}
}

func (a *API) decide(r *http.Request, d *auth.Directory, n need, rt route) (err error) {
	x := exchangeOf(r.Context())
	if !d.On() {
		x.caller = auth.Anybody() // credentials that nobody asked for are no reason to refuse
		return a.access.atHome(r)
	}
	if p := x.proof; p != nil && p.by == d {
		x.caller, err = p.caller, p.err
	} else {
		x.caller, err = a.access.identify(r, d)
	}
	if err != nil {
		return a.challenge(r, err, n, rt)
	}
	if right := n.right(); right != 0 {
		if _, ok := d.Decide(x.caller, right, string(rt.repo)); ok {
			return nil
		}
		return a.turnAway(r, d, n, rt)
	}
	if n == needsCatalog && x.caller.Limit != nil && !x.caller.Limit.Catalog || x.caller.Kind == auth.KindAnonymous && r.Header.Get("Authorization") == "" {
		return a.challenge(r, errLogin, n, rt)
	}
	return nil
}

// stillMay decides again when this node has heard more since a request was let in: what it would be answered with, or do, is of
// that later state.
func (a *API) stillMay(ctx context.Context) error {
	x := exchangeOf(ctx)
	if x.by == nil {
		return nil
	}
	d, version, err := a.access.versioned()
	if err != nil || d == x.by {
		return err
	}
	c, ok := d.Renew(x.caller, a.access.cfg.Now())
	if !ok || !x.may(d, c) {
		return errLogin
	}
	x.caller = c
	x.letIn(d, version, x.may)
	return nil
}
