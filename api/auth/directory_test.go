package auth

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"team/app", []string{"team/app"}, []string{"team", "team/app/x", "team/ap", "team/appx", "x/team/app"}},
		{"team/*", []string{"team/app", "team/x.y"}, []string{"team", "team/a/b"}},
		{"team/**", []string{"team/app", "team/a/b/c"}, []string{"team", "teams/app"}},
		{"**", []string{"a", "a/b/c"}, nil},
		{"*", []string{"a", "abc"}, []string{"a/b"}},
		{"**/app", []string{"app", "a/app", "a/b/app"}, []string{"app/x", "xapp"}},
		{"a/**/b", []string{"a/b", "a/x/b", "a/x/y/b", "a/b/b"}, []string{"a", "b", "a/b/c"}},
		{"a/**/b/**", []string{"a/b/c", "a/x/b/y/z", "a/b/b/b"}, []string{"a/b", "a/x/c"}},
		{"ci-*", []string{"ci-1", "ci-"}, []string{"ci", "xci-1"}},
		{"*-x-*", []string{"a-x-b", "-x-", "a-x-x-b"}, []string{"a-x", "ax-b"}},
		{"a*b*c", []string{"abc", "aXbYc", "abbc"}, []string{"ab", "acb"}},
	} {
		if err := checkPattern(c.pattern); err != nil {
			t.Error(err)
		}
		d := NewDirectory(true, nil, []Grant{{"u", Pull, c.pattern}})
		caller := Caller{Kind: KindUser, Name: "u"}
		for _, repo := range c.yes {
			if g, ok := d.Decide(caller, Pull, repo); !ok || g.Pattern != c.pattern {
				t.Errorf("%s does not match %s", c.pattern, repo)
			}
		}
		for _, repo := range c.no {
			if _, ok := d.Decide(caller, Pull, repo); ok {
				t.Errorf("%s matches %s", c.pattern, repo)
			}
		}
	}
}

// Patterns that share segments are each decided as if it were alone.
func TestPatternsTogether(t *testing.T) {
	patterns := []string{"a-*/x", "a-*/y", "a-b*/z", "a-*c/w", "**/deep", "**/deep/**", "a-*/**/v", "plain/x", "plain/*"}
	var grants []Grant
	for _, p := range patterns {
		grants = append(grants, Grant{p, Pull, p})
	}
	shared := make([]Grant, 0, len(patterns))
	for _, p := range patterns {
		shared = append(shared, Grant{"u", Pull, p})
	}
	alone, together := NewDirectory(true, nil, grants), NewDirectory(true, nil, shared)
	for _, repo := range []string{"a-1/x", "a-1/y", "a-1/z", "a-bc/z", "a-bc/w", "a-c/w", "a-b/w", "deep", "x/deep", "deep/x", "deep/deep", "a-1/v", "a-1/q/r/v", "a-1/q", "plain/x", "plain/y", "plain"} {
		want := false
		for _, p := range patterns {
			_, ok := alone.Decide(Caller{Kind: KindUser, Name: p}, Pull, repo)
			if slow := slowMatch(strings.Split(p, "/"), strings.Split(repo, "/")); ok != slow {
				t.Errorf("%s matches %s: %v", p, repo, ok)
			}
			want = want || ok
		}
		if g, ok := together.Decide(Caller{Kind: KindUser, Name: "u"}, Pull, repo); ok != want || ok && !slowMatch(strings.Split(g.Pattern, "/"), strings.Split(repo, "/")) {
			t.Errorf("%s among others: %v by %q", repo, ok, g.Pattern)
		}
	}
}

// Names and patterns hold the characters that they may, at the length that they may, and no others.
func TestNamesAndPatterns(t *testing.T) {
	name, segment := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]*$`), regexp.MustCompile(`^[a-z0-9._*-]+$`)
	for c := range 256 {
		for _, s := range []string{string([]byte{byte(c)}), string([]byte{'x', byte(c)})} {
			if got := CheckName(s) == nil; got != name.MatchString(s) {
				t.Errorf("the name %q is accepted: %v", s, got)
			}
			if got := checkPattern(s) == nil; got != segment.MatchString(s) {
				t.Errorf("the pattern %q is accepted: %v", s, got)
			}
		}
	}
	if err := errors.Join(CheckName(strings.Repeat("x", maxName)), checkPattern(strings.Repeat("x", maxPattern))); err != nil {
		t.Error(err)
	}
	if r, err := ParseRight("write"); err == nil {
		t.Errorf("a right to %s", r)
	}
}

func TestBadGrants(t *testing.T) {
	for _, g := range []Grant{
		{"", Pull, "a"}, {"a:b", Pull, "a"}, {"group:", Pull, "a"}, {"group:anonymous", Pull, "a"}, {"-a", Pull, "a"},
		{strings.Repeat("a", 65), Pull, "a"}, {"a", 0, "a"}, {"a", Pull | Push, "a"}, {"anonymous", Admin, "a"},
		{"a", Pull, ""}, {"a", Pull, "/a"}, {"a", Pull, "a/"}, {"a", Pull, "a//b"}, {"a", Pull, "A"}, {"a", Pull, "a**"},
		{"a", Pull, "**/**"}, {"a", Pull, "a?"}, {"a", Pull, strings.Repeat("a", 256)}, {"a\x00", Pull, "a"},
	} {
		if g.Validate() == nil {
			t.Errorf("%q is accepted", g)
		}
	}
	for _, g := range []Grant{{"alice", Admin, "**"}, {"group:dev", Delete, "team/*"}, {"anonymous", Push, "public/**"}} {
		if err := g.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// directories are of the same principals and grants, with access control and without.
func directories() (on, off *Directory) {
	principals := []Principal{
		{Name: "alice", Kind: KindUser, Groups: []string{"dev"}, Generation: 1}, {Name: "root", Kind: KindUser},
		{Name: "ci", Kind: KindRobot}, {Name: "sweep", Kind: KindRobot},
	}
	grants := []Grant{
		{"alice", Push, "team/**"}, {"group:dev", Delete, "team/app"}, {"ci", Pull, "**"}, {"root", Admin, "**"},
		{"anonymous", Pull, "public/*"}, {"alice", Admin, "mine/*"}, {"sweep", Delete, "mine/*"}, {"sweep", Delete, "public/*"},
	}
	return NewDirectory(true, principals, grants), NewDirectory(false, principals, grants)
}

func active(t *testing.T, d *Directory, name string) Caller {
	t.Helper()
	c, ok := d.Active(name, time.Now())
	if !ok {
		t.Fatalf("%s is not active", name)
	}
	return c
}

// The whole of who may do what, by table: a caller, and the rights that it has on three repositories.
func TestDecide(t *testing.T) {
	d, off := directories()
	alice, ci, root, sweep := active(t, d, "alice"), active(t, d, "ci"), active(t, d, "root"), active(t, d, "sweep")
	limited := alice
	limited.Limit = limitOf([]Scope{{"repository", "team/app", []string{"pull"}}})
	repos := []string{"team/app", "public/x", "mine/x", "other"}
	for _, c := range []struct {
		name   string
		d      *Directory
		caller Caller
		want   [4]string // of p(ull) P(ush) d(elete) a(dmin), by repository
	}{
		{"nobody", d, Caller{}, [4]string{"", "", "", ""}},
		{"anybody", d, Anybody(), [4]string{"", "p", "", ""}},
		{"alice", d, alice, [4]string{"pPd", "p", "pPda", ""}},
		{"alice with a token", d, limited, [4]string{"p", "", "", ""}},
		{"a robot", d, ci, [4]string{"p", "p", "p", "p"}},
		{"who may delete only what it may pull", d, sweep, [4]string{"", "pd", "", ""}},
		{"an administrator", d, root, [4]string{"pPda", "pPda", "pPda", "pPda"}},
		{"the operator", d, Operator(), [4]string{"pPda", "pPda", "pPda", "pPda"}},
		{"an unknown user", d, Caller{Kind: KindUser, Name: "eve"}, [4]string{"", "p", "", ""}},
		{"a user called like a group's subject", d, Caller{Kind: KindAnonymous, Name: "root"}, [4]string{"", "p", "", ""}},
		{"anybody, open", off, Anybody(), [4]string{"pPd", "pPd", "pPd", "pPd"}},
		{"nobody, open", off, Caller{}, [4]string{"", "", "", ""}},
	} {
		for i, repo := range repos {
			for j, right := range []Right{Pull, Push, Delete, Admin} {
				_, got := c.d.Decide(c.caller, right, repo)
				if want := strings.Contains(c.want[i], string("pPda"[j])); got != want {
					t.Errorf("%s, %s on %s: %v", c.name, right, repo, got)
				}
			}
		}
	}
	if !d.MayNotLook(sweep, Delete, "mine/x") || d.MayNotLook(sweep, Delete, "other") {
		t.Error("who lacks the right to pull is not told so, or who lacks all is")
	}
}

// What is about all repositories, or about the cluster.
func TestDecideOnAll(t *testing.T) {
	d, off := directories()
	alice, ci, root := active(t, d, "alice"), active(t, d, "ci"), active(t, d, "root")
	for _, c := range []struct {
		caller Caller
		want   bool
	}{{root, true}, {alice, false}, {ci, false}, {Anybody(), false}, {Operator(), true}, {Caller{}, false}} {
		if d.Administers(c.caller) != c.want {
			t.Errorf("%v administers: %v", c.caller, !c.want)
		}
	}
	for _, c := range []struct {
		caller Caller
		right  Right
		want   bool
	}{{ci, Pull, true}, {ci, Push, false}, {alice, Pull, false}, {Anybody(), Pull, false}, {Operator(), Admin, true}, {root, Delete, true}} {
		if d.Everywhere(c.caller, c.right) != c.want {
			t.Errorf("%v has %s everywhere: %v", c.caller, c.right, !c.want)
		}
	}
	token := root
	token.Limit = limitOf([]Scope{{"repository", "team/app", []string{"*", "admin"}}})
	if d.Administers(token) || d.Everywhere(token, Pull) {
		t.Error("a token for one repository is one for the cluster")
	}
	if token.Limit = limitOf([]Scope{ClusterScope()}); !d.Administers(token) || d.Everywhere(token, Pull) {
		t.Error("a token for the cluster is none, or is one for all repositories")
	}
	public := NewDirectory(true, nil, []Grant{{Anonymous, Pull, "**"}})
	if public.Everywhere(Caller{}, Pull) || !public.Everywhere(Anybody(), Pull) || d.Everywhere(Caller{Kind: KindAnonymous, Name: "root"}, Pull) {
		t.Error("who has no name has what somebody has, or nobody has what all have")
	}
	if off.Administers(root) || off.Administers(Anybody()) || off.Everywhere(Anybody(), Admin) || !off.Everywhere(Anybody(), Push) {
		t.Error("open access is not what it is")
	}
}

func TestWhoIsActive(t *testing.T) {
	now := time.Unix(1000, 0)
	d := NewDirectory(true, []Principal{
		{Name: "gone", Kind: KindUser, Disabled: true}, {Name: "over", Kind: KindRobot, Expires: now},
		{Name: "soon", Kind: KindRobot, Expires: now.Add(time.Second)}, {Name: "lost", Kind: KindUser, Provider: "none"}, {Name: "kept", Kind: KindUser, Provider: "corp"},
	}, nil, corp())
	for name, want := range map[string]bool{"gone": false, "lost": false, "kept": true, "over": false, "soon": true, "who": false, "": false} {
		if _, ok := d.Active(name, now); ok != want {
			t.Errorf("%q is active: %v", name, ok)
		}
	}
}

func FuzzPattern(f *testing.F) {
	f.Add("a/**/b*", "a/x/bc")
	f.Fuzz(func(t *testing.T, pattern, repo string) {
		if checkPattern(pattern) != nil {
			return
		}
		d := NewDirectory(true, nil, []Grant{{"u", Pull, pattern}})
		_, got := d.Decide(Caller{Kind: KindUser, Name: "u"}, Pull, repo)
		if want := slowMatch(strings.Split(pattern, "/"), strings.Split(repo, "/")); got != want {
			t.Errorf("%q matches %q: %v", pattern, repo, got)
		}
	})
}

// slowMatch is the definition, by trying everything.
func slowMatch(p, s []string) bool {
	switch {
	case len(p) == 0:
		return len(s) == 0
	case p[0] == Everything && len(p) == 1:
		return len(s) > 0
	case p[0] == Everything:
		return slowMatch(p[1:], s) || len(s) > 0 && slowMatch(p, s[1:])
	}
	return len(s) > 0 && slowGlob(p[0], s[0]) && slowMatch(p[1:], s[1:])
}

func slowGlob(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		return slowGlob(p[1:], s) || s != "" && slowGlob(p, s[1:])
	}
	return s != "" && p[0] == s[0] && slowGlob(p[1:], s[1:])
}

// population is 1,000 users with their grants, and a group that all of them are in.
func population(grants int, pattern func(i int) Grant) *Directory {
	var principals []Principal
	for u := range 1000 {
		principals = append(principals, Principal{Name: fmt.Sprintf("user%d", u), Kind: KindUser, Groups: []string{"dev", "ops"}})
	}
	var all []Grant
	for i := range grants {
		all = append(all, pattern(i))
	}
	return NewDirectory(true, principals, all)
}

// populations are grants that decide for user5 in team5/a/b/c/app-5x: each user's own, or all of one group's, which is what
// there is most to look at.
var populations = map[string]func(i int) Grant{
	"own": func(i int) Grant {
		return Grant{fmt.Sprintf("user%d", i%1000), Push, fmt.Sprintf("team%d/**/app-%d*", i%1000, i)}
	},
	"group":       func(i int) Grant { return Grant{"group:ops", Push, fmt.Sprintf("team%d/**/app-%d*", i, i)} },
	"group-names": func(i int) Grant { return Grant{"group:ops", Push, fmt.Sprintf("team5/**/app-%dx", i)} },
	"group-globs": func(i int) Grant { return Grant{"group:ops", Push, fmt.Sprintf("team5/**/app-%d*", i)} },
}

// BenchmarkDecide is one decision that lets in and one that refuses, among grants of 1,000 users, allocations included. Neither
// may grow with the number of grants.
func BenchmarkDecide(b *testing.B) {
	for _, kind := range slices.Sorted(maps.Keys(populations)) {
		for _, grants := range []int{10, 1000, 10_000} {
			d := population(grants, populations[kind])
			c, _ := d.Active("user5", time.Now())
			for repo, want := range map[string]bool{"team5/a/b/c/app-5x": true, "team5/a/b/c/other": false} {
				b.Run(fmt.Sprintf("%s/%d/%v", kind, grants, want), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if _, ok := d.Decide(c, Pull, repo); ok != want {
							b.Fatal(ok)
						}
					}
				})
			}
		}
	}
}

// A decision needs no memory, however many grants there are.
func TestDecidingAllocatesNothing(t *testing.T) {
	for kind, pattern := range populations {
		d := population(10_000, pattern)
		c, _ := d.Active("user5", time.Now())
		if n := testing.AllocsPerRun(100, func() { d.Decide(c, Pull, "team5/a/b/c/app-5x") }); n != 0 {
			t.Errorf("%s: %v allocations", kind, n)
		}
	}
}

// BenchmarkDirectory is what a node does once when something about users and grants has changed.
func BenchmarkDirectory(b *testing.B) {
	for b.Loop() {
		population(10_000, populations["own"])
	}
}
