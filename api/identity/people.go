package identity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode"

	"pier/api/auth"
	"pier/api/client"
)

// People are those of all providers. Safe for concurrent use.
type People struct {
	mu   sync.Mutex
	list []place // by name
}

// place is one provider; directory is nil where it checks no passwords.
type place struct {
	Provider
	directory *directory
}

// NewPeople makes a set without providers.
func NewPeople() *People { return &People{} }

// Set replaces the providers, which are sorted by name. One that is still the same goes on as it was.
func (p *People) Set(providers []Provider) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := make([]place, 0, len(providers))
	for _, n := range providers {
		next = append(next, p.kept(n))
	}
	p.list = next
}

func (p *People) kept(n Provider) place {
	for _, old := range p.list {
		if old.Name == n.Name && old.Generation == n.Generation {
			return old
		}
	}
	if n.LDAP == nil {
		return place{Provider: n}
	}
	return place{Provider: n, directory: newDirectory(*n.LDAP)}
}

// Providers gives those of the moment.
func (p *People) Providers() []Provider {
	var out []Provider
	for _, l := range p.places("") {
		out = append(out, l.Provider)
	}
	return out
}

// places gives the one of a name, or all for an empty one.
func (p *People) places(name string) []place {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []place
	for _, l := range p.list {
		if name == "" || l.Name == name {
			out = append(out, l)
		}
	}
	return out
}

// Check gives whose the password is: at one provider, or for an empty one at the first that knows the name. Where an earlier
// one doesn't answer no later one is asked: it is not for a failure to say who somebody is. It is an auth.People's.
func (p *People) Check(ctx context.Context, provider, name, password string) (auth.Caller, error) {
	return p.first(ctx, provider, question{user: name, password: password})
}

// Find gives who a name would be, and by which groups, without a password.
func (p *People) Find(ctx context.Context, name string) (auth.Caller, error) {
	return p.first(ctx, "", question{user: name, lookUp: true})
}

func (p *People) first(ctx context.Context, provider string, q question) (auth.Caller, error) {
	for _, l := range p.places(provider) {
		if l.directory == nil {
			continue
		}
		c, err := l.ask(ctx, q)
		var r *refusal
		if errors.As(err, &r) && r.unknown {
			continue
		}
		return c, err
	}
	return auth.Caller{}, auth.ErrWrongLogin
}

// Again tells whether somebody is still there, with today's groups. It is an auth.People's.
func (p *People) Again(ctx context.Context, c auth.Caller) (auth.Caller, error) {
	found := p.places(c.Provider)
	if c.Provider == "" || len(found) == 0 || found[0].directory == nil {
		return auth.Caller{}, auth.ErrWrongLogin
	}
	return found[0].ask(ctx, question{user: c.Name, lookUp: true})
}

func (l place) ask(ctx context.Context, q question) (auth.Caller, error) {
	if err := l.directory.resting(); err != nil {
		return auth.Caller{}, fmt.Errorf("provider %s: %w", l.Name, err)
	}
	q.note = func(string, ...any) {}
	found, err := l.directory.ask(ctx, q)
	if err != nil {
		return auth.Caller{}, fmt.Errorf("provider %s: %w", l.Name, err)
	}
	return l.caller(found), nil
}

func (l place) caller(p person) auth.Caller {
	return auth.Caller{Kind: auth.KindUser, Name: strings.ToLower(p.name), Groups: p.groups, Provider: l.Name, ProviderGeneration: l.Generation}
}

// Reach tells of each directory which of its servers can't be used from here; nil where all can.
func (p *People) Reach(ctx context.Context) map[string]error {
	out := map[string]error{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, l := range p.places("") {
		if l.directory == nil {
			continue
		}
		all.Go(func() {
			err := l.directory.reach(ctx)
			mu.Lock()
			defer mu.Unlock()
			out[l.Name] = err
		})
	}
	all.Wait()
	return out
}

// Try makes a login at a provider and reports how it went; false where there is no such provider.
func (p *People) Try(ctx context.Context, t client.ProviderTest) (client.ProviderReport, bool) {
	found := p.places(t.Name)
	if t.Name == "" || len(found) == 0 {
		return client.ProviderReport{}, false
	}
	report := client.ProviderReport{Steps: []string{}}
	// Names that the directory gives are shown on a terminal.
	note := func(format string, args ...any) {
		report.Steps = append(report.Steps, strings.Map(func(c rune) rune {
			if unicode.IsControl(c) {
				return '?'
			}
			return c
		}, fmt.Sprintf(format, args...)))
	}
	l := found[0]
	if l.directory == nil {
		note("%s checks no passwords: people log in there (pier login --oidc)", l.Name)
		return report, true
	}
	user := strings.ToLower(t.User)
	if err := auth.CheckName(user); err != nil {
		note("%v", err)
		return report, true
	}
	who, err := l.directory.ask(ctx, question{user: user, password: t.Password, lookUp: t.LookUp, note: note})
	switch {
	case errors.Is(err, auth.ErrNoAnswer):
		note("no server of %s gives an answer", l.Name)
		return report, true
	case err != nil:
		note("%v", err)
		return report, true
	}
	c := l.caller(who)
	report.OK, report.Name, report.Groups = true, c.Name, c.Groups
	return report, true
}
