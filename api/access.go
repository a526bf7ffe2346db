package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
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
	// TokenLife is how long an access token is good (default 5 minutes), RefreshLife one that stands for a password
	// (default 30 days).
	TokenLife, RefreshLife time.Duration
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

	mu      sync.Mutex
	version uint64
	current *auth.Directory
	rules   []identity.Rule // as current has them
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
	orDefault(&cfg.RefreshLife, 30*24*time.Hour)
	people := identity.NewPeople()
	return &access{cfg: cfg, state: state, logins: auth.NewLogins(cfg.Now, people), held: newDesk(), people: people, issuers: identity.NewIssuers(cfg.Now), logger: logger}
}

// directory is who there is, as this node's state has it.
func (x *access) directory() (*auth.Directory, error) {
	d, _, err := x.versioned()
	return d, err
}

// versioned is the directory with the version of the state that it is of. It is made anew when the state says that something
// changed.
func (x *access) versioned() (*auth.Directory, uint64, error) {
	version, err := x.state.AccessVersion()
	if err != nil {
		return nil, 0, fmt.Errorf("read who has access: %w", err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.current != nil && x.version == version {
		return x.current, version, nil
	}
	a, err := x.state.Access()
	if err != nil {
		return nil, 0, fmt.Errorf("read who has access: %w", err)
	}
	a.On = a.On || x.cfg.Closed && !a.Decided
	providers := x.providersOf(a.Providers)
	x.people.Set(providers)
	x.rules = x.rulesOf(a.Trusts)
	x.version, x.current = a.Version, directoryOf(a, providers, x.rules)
	return x.current, x.version, nil
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

// identify finds out who asks: a token, a name with a password, a certificate, or nobody in particular. Its errors are
// refusals. An Authorization header decides alone, right or wrong: it is what the client says with this request, while the
// certificate is the connection's, and often the machine's.
func (x *access) identify(r *http.Request, d *auth.Directory) (auth.Caller, error) {
	given := r.Header.Values("Authorization")
	switch {
	case len(given) == 0 && x.certified(r):
		return x.byCertificate(r, d)
	case len(given) == 0:
		return auth.Anybody(), nil
	}
	if len(given) > 1 {
		return auth.Caller{}, refuse(http.StatusBadRequest, codeUnauthorized, "the request has %d Authorization headers; one is needed", len(given))
	}
	scheme, value, _ := strings.Cut(given[0], " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return x.bearer(strings.TrimSpace(value), d)
	case strings.EqualFold(scheme, "Basic"):
		name, password, ok := r.BasicAuth()
		if !ok {
			return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the Authorization header is not NAME:PASSWORD in base64")
		}
		if err := ofOwnAccord(r); err != nil {
			return auth.Caller{}, err
		}
		return x.login(r, d, name, password)
	}
	return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the Authorization scheme is not known here; Bearer and Basic are")
}

// login takes a password, or what a person or a job has in its place: one of Pier's own refresh tokens, or an ID token.
func (x *access) login(r *http.Request, d *auth.Directory, name, password string) (auth.Caller, error) {
	exchangeOf(r.Context()).claimed = name
	if c, err := x.ownToken(r, d, name, password); err == nil || !errors.Is(err, auth.ErrTokenInvalid) {
		return c, err
	}
	if c, ours, err := x.job(r.Context(), d, name, password); ours {
		return c, err
	}
	c, err := x.logins.Login(r.Context(), d, name, password, x.source(r))
	var many *auth.TooManyLoginsError
	if errors.As(err, &many) {
		x.held.hold(r.Context(), auth.SourceKey(x.source(r)), x.cfg.Hold)
	}
	return c, x.explain(err)
}

// ownToken takes a refresh token as the password of its own user. An ErrTokenInvalid says that it is none.
func (x *access) ownToken(r *http.Request, d *auth.Directory, name, text string) (auth.Caller, error) {
	keys := x.cfg.Keys()
	if keys == nil {
		return auth.Caller{}, auth.ErrTokenInvalid
	}
	c, err := keys.VerifyRefresh(text, tokenService, x.cfg.Now())
	switch {
	case errors.Is(err, auth.ErrTokenExpired):
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the token has expired; log in again and take another")
	case err != nil:
		return auth.Caller{}, err
	case c.Name != name:
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the token is another user's")
	}
	return x.refreshed(r, text, d)
}

func (x *access) bearer(text string, d *auth.Directory) (auth.Caller, error) {
	keys := x.cfg.Keys()
	if keys == nil {
		return auth.Caller{}, errBadToken
	}
	c, err := keys.Verify(text, tokenService, x.cfg.Now())
	if errors.Is(err, auth.ErrTokenExpired) {
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the token has expired; ask for another")
	}
	if err != nil {
		return auth.Caller{}, errBadToken
	}
	now, ok := d.Renew(c, x.cfg.Now())
	if !ok {
		return auth.Caller{}, errBadToken
	}
	return now, nil
}

const codeUnauthorized = "UNAUTHORIZED"

var errBadToken error = refuse(http.StatusUnauthorized, codeUnauthorized, "the token is not valid here, or its user has changed since; log in again")

// explain gives a failed login its answer; the same for a name that doesn't exist. Which provider doesn't answer is said in the log.
func (x *access) explain(err error) error {
	var many *auth.TooManyLoginsError
	switch {
	case errors.As(err, &many):
		p := refuse(http.StatusTooManyRequests, codeTooManyRequests, "%s", many.Error())
		p.retry = many.RetryAfter
		return p
	case errors.Is(err, auth.ErrWrongLogin):
		return refuse(http.StatusUnauthorized, codeUnauthorized, "%s", auth.ErrWrongLogin.Error()) // and nothing of why
	case errors.Is(err, auth.ErrNoAnswer):
		x.logger.Warn("a login can't be checked", "err", err)
		return &Unavailable{Reason: "the login can't be checked at the moment; tokens and other users go on working", Err: err}
	}
	return err
}

// admit decides whether a request for an endpoint may go on. It comes before anything of the body is read.
func (a *API) admit(r *http.Request, n need, rt route) error {
	x := exchangeOf(r.Context())
	d, version, err := a.access.versioned()
	if err != nil || x.caller.Kind == auth.KindOperator {
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
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if x.caller.Kind == auth.KindOperator || !strings.EqualFold(scheme, "Basic") {
		return
	}
	d, err := a.access.directory()
	if err != nil || !d.On() {
		return
	}
	c, err := a.access.identify(r, d)
	x.proof = &proof{by: d, caller: c, err: err}
}

func (a *API) decide(r *http.Request, d *auth.Directory, n need, rt route) (err error) {
	x := exchangeOf(r.Context())
	if !d.On() {
		x.caller = auth.Anybody() // credentials that nobody asked for are no reason to refuse
		return nil
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

var errLogin error = refuse(http.StatusUnauthorized, codeUnauthorized, "this needs a login: docker login, or a token for it")

var errNoCertificate error = refuse(http.StatusUnauthorized, codeUnauthorized,
	"this needs a login: docker login, a token for it, or a certificate of a CA that this registry takes clients' certificates from; none was shown")

// turnAway answers a caller who has no right. Who could get it with another token is told to ask for one; who is logged in
// and may not is told so; anybody else may try to log in. None of it depends on whether the repository exists.
func (a *API) turnAway(r *http.Request, d *auth.Directory, n need, rt route) error {
	c := exchangeOf(r.Context()).caller
	unlimited := c
	unlimited.Limit = nil
	if _, ok := d.Decide(unlimited, n.right(), string(rt.repo)); !ok && c.Kind != auth.KindAnonymous {
		if d.MayNotLook(unlimited, n.right(), string(rt.repo)) {
			return refuse(http.StatusForbidden, codeDenied, "%s may %s only what it may pull; `pier access grant %s pull %s` would give that", c.Name, n.right(), c.Name, rt.repo)
		}
		return refuse(http.StatusForbidden, codeDenied, "%s has no right to %s on %s; `pier access grant %s %s %s` would give it", c.Name, n.right(), rt.repo, c.Name, n.right(), rt.repo)
	}
	return a.challenge(r, errLogin, n, rt)
}

// challenge tells a client where it gets a token for what it asked.
func (a *API) challenge(r *http.Request, why error, n need, rt route) error {
	scope := ""
	if right := n.right(); right != 0 {
		scope = auth.RepositoryScope(string(rt.repo), right).String()
		if from, ok := mountSource(r, rt); ok && from != "" && from != rt.repo {
			scope = auth.RepositoryScope(string(from), auth.Pull).String() + " " + scope
		}
	} else if n == needsCatalog {
		scope = auth.CatalogScope().String()
	}
	return a.askToken(r, why, scope)
}

// askToken adds to a 401 where the client gets a token, and with which scope.
func (a *API) askToken(r *http.Request, why error, scope string) error {
	if errors.Is(why, errLogin) && a.access.cfg.Clients != nil && r.Header.Get("Authorization") == "" {
		why = errNoCertificate // Go's clients keep to themselves what isn't of the CAs that they are told
	}
	challenge := "Bearer realm=" + quote(a.access.origin(r)+tokenPath) + ",service=" + quote(tokenService)
	if scope != "" {
		challenge += ",scope=" + quote(scope)
	}
	if strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		if errors.Is(why, errLogin) {
			challenge += `,error="insufficient_scope"`
		} else {
			challenge += `,error="invalid_token"`
		}
	}
	return challenging(why, challenge)
}

// challenging gives a 401 its WWW-Authenticate, and leaves other errors as they are.
func challenging(why error, challenge string) error {
	var p *problem
	if !errors.As(why, &p) || p.status != http.StatusUnauthorized || p.challenge != "" {
		return why
	}
	said := *p
	said.challenge = challenge
	return &said
}

// challenged adds what stillMay couldn't tell.
func (a *API) challenged(r *http.Request, err error, n need, rt route) error {
	if errors.Is(err, errLogin) {
		return a.challenge(r, err, n, rt)
	}
	return err
}

// quote makes a quoted string of a header of what came from outside.
func quote(s string) string {
	return `"` + strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return -1
		}
		return c
	}, s) + `"`
}

// origin is the scheme and host at which the client reached the registry.
func (x *access) origin(r *http.Request) string {
	if x.cfg.PublicURL != "" {
		return strings.TrimSuffix(x.cfg.PublicURL, "/")
	}
	scheme, host := "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if x.trusts(r.RemoteAddr) {
		if s := r.Header.Get("X-Forwarded-Proto"); s == "http" || s == "https" {
			scheme = s
		}
		if h := r.Header.Get("X-Forwarded-Host"); h != "" {
			host = h
		}
	}
	return scheme + "://" + host
}

// source is where a request comes from, without a port: the last address that no trusted proxy has.
func (x *access) source(r *http.Request) string {
	source := hostOf(r.RemoteAddr)
	if !x.trusts(r.RemoteAddr) {
		return source
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		ip, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		source = ip.String()
		if !x.trusts(source) {
			break
		}
	}
	return source
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

func (x *access) trusts(address string) bool {
	ip, err := netip.ParseAddr(hostOf(address))
	if err != nil {
		return false
	}
	for _, p := range x.cfg.Proxies {
		if p.Contains(ip.Unmap()) {
			return true
		}
	}
	return false
}

// mayMount tells whether the caller may have blobs of a repository; of any, where none is named.
func (a *API) mayMount(r *http.Request, from fsm.Repo) (bool, error) {
	d, err := a.access.directory()
	if err != nil {
		return false, err
	}
	return mayMount(d, exchangeOf(r.Context()).caller, from), nil
}

func mayMount(d *auth.Directory, c auth.Caller, from fsm.Repo) bool {
	if from == "" {
		return d.Everywhere(c, auth.Pull)
	}
	_, ok := d.Decide(c, auth.Pull, string(from))
	return ok
}

// askMore has a client come back with a token for a mount's source too, where it didn't ask for that and would get it.
func (a *API) askMore(r *http.Request, rt route, from fsm.Repo) error {
	c := exchangeOf(r.Context()).caller
	if c.Limit == nil || from == "" {
		return nil
	}
	d, err := a.access.directory()
	if err != nil {
		return err
	}
	c.Limit = nil
	if !mayMount(d, c, from) {
		return nil
	}
	return a.challenge(r, errLogin, needsPush, rt)
}

// alsoMount makes the right on a mount's source a part of what is decided again, until restore.
func (a *API) alsoMount(ctx context.Context, from fsm.Repo) (restore func()) {
	x := exchangeOf(ctx)
	may := x.may
	if may == nil {
		return func() {}
	}
	x.may = func(d *auth.Directory, c auth.Caller) bool { return may(d, c) && mayMount(d, c, from) }
	return func() { x.may = may }
}
