package auth

import (
	"slices"
	"time"
)

// Kind says what a caller is.
type Kind string

// The kinds. An operator came through the node's own socket and may do all.
const (
	KindAnonymous Kind = "anonymous"
	KindUser      Kind = "user"
	KindRobot     Kind = "robot"
	KindOperator  Kind = "operator"
)

// Principal is a user or a robot as the state keeps it.
type Principal struct {
	Name string
	Kind Kind
	// Password is a user's bcrypt hash; empty where the user comes in by other ways only.
	Password []byte
	// Secrets are a robot's.
	Secrets []Secret
	// Provider is who checks the user's password, where the cluster doesn't.
	Provider string
	Groups   []string
	Disabled bool
	// Expires ends a robot; zero means never.
	Expires time.Time
	// Generation grows with each change that must end the tokens from before.
	Generation uint64
}

// Secret is one of a robot's secrets, by its hash: they are long and random, so that guessing is no way in.
type Secret struct {
	ID      string
	Hash    []byte // SHA-256
	Expires time.Time
}

// Caller is who a request comes from. The zero value is nobody, which may do nothing.
type Caller struct {
	Kind       Kind
	Name       string
	Groups     []string
	Generation uint64
	// Provider vouches for who comes from outside, at this generation of its settings; empty for the cluster's own.
	Provider           string
	ProviderGeneration uint64
	// Until is when what the caller came in with ends, where that is before the caller; zero means never.
	Until time.Time
	// Limit is what a token was made for; nil limits nothing.
	Limit *Limit
}

// Anybody is a caller without a name.
func Anybody() Caller { return Caller{Kind: KindAnonymous} }

// Operator is who has the node's own socket.
func Operator() Caller { return Caller{Kind: KindOperator, Name: "operator"} }

// Unlimited is the caller whatever its token was made for.
func (c Caller) Unlimited() Caller {
	c.Limit = nil
	return c
}

// Directory is who there is and what they were granted, at one moment. Immutable, so safe for concurrent use.
type Directory struct {
	on         bool
	principals map[string]Principal
	grants     map[string]*patterns
	providers  map[string]Provider
	passwords  bool // some provider checks them
}

// NewDirectory indexes principals, grants and providers. on is whether access control is in force; off, everybody may do
// everything but change the cluster from afar.
func NewDirectory(on bool, principals []Principal, grants []Grant, providers ...Provider) *Directory {
	d := &Directory{
		on: on, principals: make(map[string]Principal, len(principals)), grants: make(map[string]*patterns),
		providers: make(map[string]Provider, len(providers)),
	}
	for _, p := range providers {
		d.providers[p.Name] = p
		d.passwords = d.passwords || p.Passwords
	}
	for _, p := range principals {
		d.principals[p.Name] = p
	}
	for _, g := range grants {
		tree, ok := d.grants[g.Subject]
		if !ok {
			tree = &patterns{}
			d.grants[g.Subject] = tree
		}
		tree.add(g)
	}
	return d
}

// On tells whether access control is in force.
func (d *Directory) On() bool { return d.on }

// Find gives a principal by name.
func (d *Directory) Find(name string) (Principal, bool) {
	p, ok := d.principals[name]
	return p, ok
}

// Active gives the caller that a principal is, unless it is unknown, disabled or over at that time, or its provider is gone.
func (d *Directory) Active(name string, now time.Time) (Caller, bool) {
	p, ok := d.principals[name]
	if !ok || p.Disabled || !p.Expires.IsZero() && !now.Before(p.Expires) {
		return Caller{}, false
	}
	from, known := d.providers[p.Provider]
	if p.Provider != "" && !known {
		return Caller{}, false
	}
	return Caller{
		Kind: p.Kind, Name: p.Name, Groups: p.Groups, Generation: p.Generation, Provider: p.Provider, ProviderGeneration: from.Generation,
	}, true
}

// Decide tells whether the caller may do what needs the right on the repository, and by which grant: the caller's own
// first, then those of its groups, then those of everybody. Without access control and for the operator there is no grant
// to name. Who may not pull may not delete: the answer would tell whether there was anything.
func (d *Directory) Decide(c Caller, want Right, repo string) (Grant, bool) {
	switch {
	case c.Kind == KindOperator:
		return Grant{}, true
	case c.Kind == "" || c.Limit != nil && !c.Limit.allows(want, repo):
		return Grant{}, false
	case !d.on:
		return Grant{}, want != Admin
	}
	g, ok := d.find(c, want, repo)
	if ok && want == Delete && !g.Right.includes(Pull) {
		if _, sees := d.find(c, Pull, repo); !sees {
			return Grant{}, false
		}
	}
	return g, ok
}

// find gives a grant of the right, whatever else the right needs.
func (d *Directory) find(c Caller, want Right, repo string) (Grant, bool) {
	if c.Kind != KindAnonymous {
		if g, ok := d.granted(c.Name, want, repo); ok {
			return g, true
		}
		for _, group := range c.Groups {
			if g, ok := d.granted(GroupSubject(group), want, repo); ok {
				return g, true
			}
		}
	}
	return d.granted(Anonymous, want, repo)
}

func (d *Directory) granted(subject string, want Right, repo string) (Grant, bool) {
	tree, ok := d.grants[subject]
	if !ok {
		return Grant{}, false
	}
	return tree.match(repo, want)
}

// MayNotLook tells of a caller that Decide refuses whether it was granted the right, and can't use it since it may not pull.
func (d *Directory) MayNotLook(c Caller, want Right, repo string) bool {
	_, granted := d.find(c, want, repo)
	return granted
}

// Everywhere tells whether the caller has the right on all repositories that there are and may come.
func (d *Directory) Everywhere(c Caller, want Right) bool {
	switch {
	case c.Kind == KindOperator:
		return true
	case c.Kind == "" || c.Limit != nil:
		return false
	case !d.on:
		return want != Admin
	}
	return d.everywhere(c, want)
}

// Administers tells whether the caller may change the cluster itself: the right admin on everything.
func (d *Directory) Administers(c Caller) bool {
	if c.Kind == KindOperator {
		return true
	}
	return d.on && (c.Limit == nil || c.Limit.Cluster) && d.everywhere(c, Admin)
}

func (d *Directory) everywhere(c Caller, want Right) bool {
	subjects := []string{Anonymous}
	if c.Kind == KindUser || c.Kind == KindRobot {
		subjects = append(append(subjects, c.Name), groupSubjects(c.Groups)...)
	}
	for _, subject := range subjects {
		tree := d.grants[subject]
		if tree == nil || tree.deep == nil {
			continue
		}
		if slices.ContainsFunc(tree.deep.grants, func(g Grant) bool { return g.Right.includes(want) }) {
			return true
		}
	}
	return false
}

func groupSubjects(groups []string) []string {
	out := make([]string, 0, len(groups))
	for _, g := range groups {
		out = append(out, GroupSubject(g))
	}
	return out
}
