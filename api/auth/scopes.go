package auth

import (
	"fmt"
	"slices"
	"strings"
)

// maxScopes bounds what one token can be for; a push with many mounts asks for a handful.
const maxScopes = 64

// allActions asks for all that there are.
const allActions = "*"

// Scope is one part of what a client asks a token for, as the Docker token protocol writes it: TYPE:NAME:ACTION,ACTION.
type Scope struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// String is the protocol's form.
func (s Scope) String() string { return s.Type + ":" + s.Name + ":" + strings.Join(s.Actions, ",") }

// CatalogScope is what listing repositories asks for.
func CatalogScope() Scope {
	return Scope{Type: "registry", Name: "catalog", Actions: []string{allActions}}
}

// ClusterScope is what the control API asks for.
func ClusterScope() Scope { return Scope{Type: "cluster", Name: "pier", Actions: []string{"admin"}} }

// RepositoryScope asks for what the right needs on a repository.
func RepositoryScope(repo string, right Right) Scope {
	actions := []string{right.String()}
	if right == Push {
		actions = []string{"pull", "push"}
	}
	return Scope{Type: "repository", Name: repo, Actions: actions}
}

// ParseScopes reads scope parameters, each of which may hold several scopes separated by spaces. A name may have colons
// in it (a host's port), so the type ends at the first and the actions begin at the last.
func ParseScopes(params []string) ([]Scope, error) {
	var out []Scope
	for _, param := range params {
		for text := range strings.FieldsSeq(param) {
			first, last := strings.IndexByte(text, ':'), strings.LastIndexByte(text, ':')
			if first <= 0 || last <= first+1 {
				return nil, fmt.Errorf("scope %.120q: want TYPE:NAME:ACTION,ACTION", text)
			}
			if len(out) == maxScopes {
				return nil, fmt.Errorf("more than %d scopes", maxScopes)
			}
			s := Scope{Type: text[:first], Name: text[first+1 : last]}
			for a := range strings.SplitSeq(text[last+1:], ",") {
				if isAction(a) && !slices.Contains(s.Actions, a) {
					s.Actions = append(s.Actions, a)
				}
			}
			out = append(out, s)
		}
	}
	return out, nil
}

// isAction tells whether anybody could get the action. What else clients write may be long, and is left out.
func isAction(a string) bool {
	return a == allActions || slices.ContainsFunc(rightNames, func(n rightName) bool { return n.name == a })
}

// Limit is the most that a token allows, whatever its subject may do by then.
type Limit struct {
	Repositories map[string]Right
	Catalog      bool
	Cluster      bool // the control API
}

func (l *Limit) allows(want Right, repo string) bool { return l.Repositories[repo]&want == want }

// limitOf reads back what a token's scopes allow.
func limitOf(scopes []Scope) *Limit {
	l := &Limit{Repositories: make(map[string]Right, len(scopes))}
	for _, s := range scopes {
		switch {
		case s.Type == "repository":
			for _, a := range s.Actions {
				if r, err := ParseRight(a); err == nil {
					l.Repositories[s.Name] |= r
				}
			}
		case s.Type == "registry" && s.Name == "catalog":
			l.Catalog = true
		case s.Type == "cluster":
			l.Cluster = true
		}
	}
	return l
}

// Grantable is what the caller gets of what was asked: possibly less, possibly nothing, never an error.
func (d *Directory) Grantable(c Caller, asked []Scope) []Scope {
	var out []Scope
	for _, s := range asked {
		switch {
		case len(s.Name) > maxPattern || slices.ContainsFunc(out, func(o Scope) bool { return o.Type == s.Type && o.Type != "repository" }):
			// a name that no repository has, or a second time the same
		case s.Type == "repository":
			if got := d.grantable(c, s); len(got.Actions) > 0 {
				out = append(out, got)
			}
		case s.Type == "registry" && s.Name == "catalog":
			out = append(out, CatalogScope()) // the list itself shows only what the caller may pull
		case s.Type == "cluster" && d.Administers(c):
			out = append(out, ClusterScope())
		}
	}
	return out
}

func (d *Directory) grantable(c Caller, s Scope) Scope {
	got := Scope{Type: s.Type, Name: s.Name}
	for _, n := range rightNames {
		if !slices.Contains(s.Actions, n.name) && !slices.Contains(s.Actions, allActions) {
			continue
		}
		if _, ok := d.Decide(c, n.right, s.Name); ok {
			got.Actions = append(got.Actions, n.name)
		}
	}
	return got
}
