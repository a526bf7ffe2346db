package auth

import (
	"errors"
	"slices"
	"strings"
	"time"
)

// Provider knows people whom the cluster doesn't: it checks their passwords, or they prove themselves there.
type Provider struct {
	Name string
	// Generation grows with each change of its settings, which ends what it has vouched for before.
	Generation uint64
	// Passwords tells that it checks passwords: names that nobody has here are asked for there.
	Passwords bool
	// Robot is whom it vouches for where it is a trust rule, and then for nobody else.
	Robot string
}

// asked tells whether a login with that name is a provider's to check, which one's (empty: whoever knows it), and what the
// name is there. Names from outside are lower-case here: directories take Alice for alice, and who is kept out as the one
// must not come in as the other.
func (d *Directory) asked(name string) (provider, there string, ok bool) {
	there = strings.ToLower(name)
	if p, ours := d.principals[name]; CheckName(name) != nil || ours && p.Provider == "" {
		return "", "", false
	}
	p, ours := d.principals[there]
	if ours && (p.Disabled || !d.providers[p.Provider].Passwords) {
		return "", "", false
	}
	return p.Provider, there, true
}

// ErrNoAnswer is a login that can't be decided, since the provider that knows the name doesn't answer.
var ErrNoAnswer = errors.New("the login can't be checked at the moment")

// What a token carries of its caller's groups: a client sends it with each request.
const (
	maxTokenGroups     = 64
	maxTokenGroupBytes = 1 << 10
)

// Vouched gives the caller that somebody is whom a provider vouches for: name, groups, provider and its generation. It needs
// no principal here. Where there is one of that name it must be that provider's and active, and its groups count too.
func (d *Directory) Vouched(c Caller, now time.Time) (Caller, bool) {
	from, known := d.providers[c.Provider]
	if !known || from.Robot != "" || from.Generation != c.ProviderGeneration || CheckName(c.Name) != nil {
		return Caller{}, false
	}
	c.Kind, c.Generation = KindUser, 0
	if _, ours := d.principals[c.Name]; !ours {
		return c, true
	}
	today, ok := d.Active(c.Name, now)
	if !ok || today.Kind != KindUser || today.Provider != c.Provider {
		return Caller{}, false
	}
	c.Generation, c.Groups = today.Generation, union(c.Groups, today.Groups)
	return c, true
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, g := range b {
		if !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}

// Granted gives those of the groups that have a grant: what an access token needs of them.
func (d *Directory) Granted(groups []string) []string {
	return slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return !d.hasGrants(g) })
}

// Foremost gives all groups, those that have a grant first: for a token that lasts, and has not room for all.
func (d *Directory) Foremost(groups []string) []string {
	out := slices.Sorted(slices.Values(groups))
	slices.SortStableFunc(out, func(a, b string) int {
		switch x, y := d.hasGrants(a), d.hasGrants(b); {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	return out
}

func (d *Directory) hasGrants(group string) bool {
	_, ok := d.grants[GroupSubject(group)]
	return ok
}

// boundGroups keeps a token short. Who loses a group by it may do less, never more.
func boundGroups(groups []string) []string {
	size := 0
	for i, g := range groups {
		if size += len(g); i == maxTokenGroups || size > maxTokenGroupBytes {
			return groups[:i]
		}
	}
	return groups
}
