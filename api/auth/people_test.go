package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// book is a provider that knows people by name and password, and remembers what it was asked.
type book struct {
	mu     sync.Mutex
	pages  map[string]string // NAME → PASSWORD
	groups []string
	as     string // who they are, instead of the name
	silent bool
	asked  []string
	stuck  chan struct{}
	after  error // what who was stuck hears; nil: ErrNoAnswer
}

func (b *book) answer(ctx context.Context, what, provider, name string, right bool) (Caller, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, what+" "+provider+" "+name)
	switch {
	case b.stuck != nil:
		stuck := b.stuck
		b.mu.Unlock()
		defer b.mu.Lock()
		select {
		case <-stuck:
			return Caller{}, cmp.Or(b.after, ErrNoAnswer)
		case <-ctx.Done():
			return Caller{}, ctx.Err()
		}
	case b.silent:
		return Caller{}, fmt.Errorf("corp: %w", ErrNoAnswer)
	case !right:
		return Caller{}, fmt.Errorf("corp: %w", ErrWrongLogin)
	}
	if b.as != "" {
		name = b.as
	}
	return Caller{Kind: KindUser, Name: name, Groups: b.groups, Provider: "corp", ProviderGeneration: 5}, nil
}

func (b *book) Check(ctx context.Context, provider, name, password string) (Caller, error) {
	return b.answer(ctx, "check", provider, name, b.pages[name] != "" && b.pages[name] == password)
}

func (b *book) Again(ctx context.Context, c Caller) (Caller, error) {
	return b.answer(ctx, "again", c.Provider, c.Name, b.pages[c.Name] != "")
}

// heard gives what was asked since the last time.
func (b *book) heard() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.asked
	b.asked = nil
	return out
}

func corp() Provider { return Provider{Name: "corp", Generation: 5, Passwords: true} }

func withBook(t *testing.T, pages ...string) (*Logins, *clock, *book) {
	t.Helper()
	l, c := logins(t)
	b := &book{pages: map[string]string{}, groups: []string{"dev"}}
	for _, p := range pages {
		name, password, _ := strings.Cut(p, ":")
		b.pages[name] = password
	}
	l.people, l.even = b, time.Millisecond
	return l, c, b
}

// Who is asked about whom, and as whom somebody comes in.
func TestWhoIsAsked(t *testing.T) {
	l, _, b := withBook(t, "alice:right one", "bob:right one", "local:right one", "off:right one", "ci:right one", "single:right one", "carol:right one")
	d := NewDirectory(true, []Principal{
		{Name: "local", Kind: KindUser, Password: cheapHash(t, "its own")}, {Name: "ci", Kind: KindRobot},
		{Name: "Carol", Kind: KindUser, Password: cheapHash(t, "its own")},
		{Name: "bob", Kind: KindUser, Provider: "corp", Groups: []string{"ops"}, Generation: 9},
		{Name: "off", Kind: KindUser, Provider: "corp", Disabled: true}, {Name: "single", Kind: KindUser, Provider: "oidc", Password: cheapHash(t, "right one")},
		{Name: "lost", Kind: KindUser, Provider: "gone"},
	}, nil, corp(), Provider{Name: "oidc", Generation: 6})
	for _, x := range []struct {
		name, password, asked string
		want                  Caller
	}{
		{"alice", "right one", "check  alice", Caller{Name: "alice", Groups: []string{"dev"}, Provider: "corp", ProviderGeneration: 5}},
		{"Alice", "right one", "", Caller{Name: "alice", Groups: []string{"dev"}, Provider: "corp", ProviderGeneration: 5}}, // remembered
		{"bob", "right one", "check corp bob", Caller{Name: "bob", Groups: []string{"dev", "ops"}, Generation: 9, Provider: "corp", ProviderGeneration: 5}},
		{"bob", "wrong", "check corp bob", Caller{}}, {"nobody", "right one", "check  nobody", Caller{}}, {"alice", "", "", Caller{}},
		{"local", "right one", "", Caller{}}, {"local", "its own", "", Caller{Name: "local"}}, {"LOCAL", "right one", "", Caller{}},
		{"Carol", "right one", "", Caller{}}, {"Carol", "its own", "", Caller{Name: "Carol"}},
		{"off", "right one", "", Caller{}}, {"Off", "right one", "", Caller{}}, {"ci", "right one", "", Caller{}},
		{"single", "right one", "", Caller{}}, {"lost", "right one", "", Caller{}}, {"al ice", "x", "", Caller{}}, {"*)(uid=*", "x", "", Caller{}},
		{strings.Repeat("a", 65), "x", "", Caller{}}, {"anonymous", "x", "", Caller{}},
	} {
		b.heard()
		c, err := l.Login(t.Context(), d, x.name, x.password, "192.0.2.1")
		if got := strings.Join(b.heard(), ","); got != x.asked {
			t.Errorf("%s: asked %q, want %q", x.name, got, x.asked)
		}
		if x.want.Name == "" && !errors.Is(err, ErrWrongLogin) {
			t.Errorf("%s with %q: %+v, %v", x.name, x.password, c, err)
		}
		x.want.Kind = c.Kind
		if fmt.Sprint(c) != fmt.Sprint(x.want) {
			t.Errorf("%s: %+v, want %+v", x.name, c, x.want)
		}
	}
	// Without a provider that checks passwords nobody is asked.
	for _, d := range []*Directory{NewDirectory(true, nil, nil), NewDirectory(true, nil, nil, Provider{Name: "oidc"})} {
		if _, err := l.Login(t.Context(), d, "alice", "right one", "x"); !errors.Is(err, ErrWrongLogin) || b.heard() != nil {
			t.Errorf("no provider: %v", err)
		}
	}
}

// A name that is another one there is decided by what it is there.
func TestNamesOfOthersGiveNothing(t *testing.T) {
	l, _, b := withBook(t, "al:right one")
	d := NewDirectory(true, []Principal{
		{Name: "local", Kind: KindUser}, {Name: "off", Kind: KindUser, Provider: "corp", Disabled: true}, {Name: "bob", Kind: KindUser, Provider: "other"},
	}, nil, corp(), Provider{Name: "other", Generation: 1, Passwords: true})
	for _, as := range []string{"local", "off", "bob", "anonymous", "group:x", ""} {
		b.as = as
		if c, err := l.Login(t.Context(), d, "al", "right one", "x"+as); as != "" && !errors.Is(err, ErrWrongLogin) {
			t.Errorf("as %s: %+v, %v", as, c, err)
		}
	}
}

// What was right counts for a minute, as long as the provider is the same and the record says nothing else.
func TestOutsidersAreRemembered(t *testing.T) {
	l, c, b := withBook(t, "alice:right one")
	login := func(d *Directory) error {
		_, err := l.Login(t.Context(), d, "alice", "right one", "x")
		return err
	}
	d := NewDirectory(true, nil, nil, corp())
	if err := errors.Join(login(d), login(d)); err != nil || len(b.heard()) != 1 {
		t.Fatalf("twice: %v", err)
	}
	b.silent = true
	if err := login(d); err != nil {
		t.Errorf("remembered, and the provider silent: %v", err)
	}
	changed := corp()
	changed.Generation++
	if err := login(NewDirectory(true, nil, nil, changed)); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("the provider has changed: %v", err)
	}
	if err := login(NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser, Provider: "corp", Disabled: true}}, nil, corp())); !errors.Is(err, ErrWrongLogin) {
		t.Errorf("disabled: %v", err)
	}
	c.pass(cacheLife)
	if err := login(d); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("after a minute: %v", err)
	}
}

// A directory's word is forgotten when an OpenID provider takes its name: the password that it took is nobody's now.
func TestAProviderThatChecksNoPasswordsAnyMore(t *testing.T) {
	l, _, _ := withBook(t, "bob:right one")
	bob := Principal{Name: "bob", Kind: KindUser, Provider: "corp", Generation: 9}
	login := func(p Provider) error {
		_, err := l.Login(t.Context(), NewDirectory(true, []Principal{bob}, nil, p), "bob", "right one", "x")
		return err
	}
	if err := login(corp()); err != nil {
		t.Fatal(err)
	}
	if err := login(Provider{Name: "corp", Generation: 6}); !errors.Is(err, ErrWrongLogin) {
		t.Errorf("the provider of that name checks no passwords: %v", err)
	}
}

// Guesses at a provider are slowed down as others are; its silence is nobody's guess.
func TestGuessingAtAProvider(t *testing.T) {
	l, _, b := withBook(t, "alice:right one")
	d := NewDirectory(true, nil, nil, corp())
	login := func(name, password string) error {
		_, err := l.Login(t.Context(), d, name, password, "192.0.2.1")
		return err
	}
	b.silent = true
	for range 10 {
		if err := login("alice", "guess"); !errors.Is(err, ErrNoAnswer) {
			t.Fatal(err)
		}
	}
	b.silent = false
	b.heard()
	var slowed *TooManyLoginsError
	for i := range 5 { // a name is one, however it is written
		if err := login([]string{"alice", "Alice", "ALICE", "aLICE", "alicE"}[i], "guess"); !errors.Is(err, ErrWrongLogin) {
			t.Fatal(err)
		}
	}
	if err := login("alice", "right one"); !errors.As(err, &slowed) || len(b.heard()) != 5 {
		t.Errorf("a guess too many: %v", err)
	}
	for i := range 20 {
		_ = login(fmt.Sprint("user", i), "guess")
	}
	if err := login("another", "guess"); !errors.As(err, &slowed) {
		t.Errorf("an address that tries many names: %v", err)
	}
}

// Who was right from there of late is not kept out by strangers; and who has missed often there is asked for each time.
func TestKnownAtAProvider(t *testing.T) {
	l, c, b := withBook(t, "alice:right one")
	d := NewDirectory(true, nil, nil, corp())
	login := func(password, source string) error {
		_, err := l.Login(t.Context(), d, "alice", password, source)
		return err
	}
	const home = "192.0.2.9"
	if err := login("right one", home); err != nil {
		t.Fatal(err)
	}
	c.pass(cacheLife)
	for range 5 {
		_ = login("guess", "192.0.2.1")
	}
	var slowed *TooManyLoginsError
	if err := login("right one", "192.0.2.1"); !errors.As(err, &slowed) {
		t.Errorf("a stranger doesn't wait: %v", err)
	}
	if err := login("right one", home); err != nil {
		t.Errorf("who is known there: %v", err)
	}
	for range maxMisses {
		_ = login("guess", home)
	}
	b.heard()
	if err := login("right one", home); !errors.As(err, &slowed) || b.heard() != nil {
		t.Errorf("after many misses what is remembered still answers: %v", err)
	}
}

// Guesses that come all at once are no more than those that come one by one.
func TestGuessesAllAtOnce(t *testing.T) {
	l, _, b := withBook(t, "alice:right one")
	b.stuck, b.after = make(chan struct{}), ErrWrongLogin
	d := NewDirectory(true, nil, nil, corp())
	const many = maxAsks + maxWaiting
	answers := make(chan error, many)
	for i := range many {
		go func() {
			_, err := l.Login(t.Context(), d, "alice", "guess", fmt.Sprint("192.0.2.", i))
			answers <- err
		}()
	}
	for len(l.asks.places) < maxAsks || l.asks.waits() < maxWaiting {
		runtime.Gosched()
	}
	close(b.stuck)
	for range many {
		<-answers
	}
	if n := len(b.heard()); n > 2*maxAsks {
		t.Errorf("%d guesses were tried", n)
	}
}

// A provider that hangs holds up those who come in by it, a bounded number of them, and nobody else.
func TestAProviderThatHangs(t *testing.T) {
	l, _, b := withBook(t, "alice:right one")
	b.stuck = make(chan struct{})
	d := NewDirectory(true, []Principal{{Name: "local", Kind: KindUser, Password: cheapHash(t, "its own")}}, nil, corp())
	const many = maxAsks + maxWaiting + 10
	answers := make(chan error, many)
	for i := range many {
		go func() {
			_, err := l.Login(t.Context(), d, "alice", "right one", fmt.Sprint("192.0.2.", i))
			answers <- err
		}()
	}
	var slowed *TooManyLoginsError
	for range 10 {
		if err := <-answers; !errors.As(err, &slowed) {
			t.Errorf("one too many: %v", err)
		}
	}
	if _, err := l.Login(t.Context(), d, "local", "its own", "192.0.2.1"); err != nil {
		t.Errorf("a local user meanwhile: %v", err)
	}
	close(b.stuck)
	for range many - 10 {
		if err := <-answers; !errors.Is(err, ErrNoAnswer) {
			t.Errorf("one that waited: %v", err)
		}
	}
	if len(b.heard()) != many-10 {
		t.Error("not all who waited were asked for")
	}
}

// Unknown here, unknown there, wrong here, wrong there: all end at a whole multiple of the same time.
func TestWrongLoginsEndTogether(t *testing.T) {
	l, _, _ := withBook(t, "alice:right one")
	l.even = 200 * time.Millisecond
	d := NewDirectory(true, []Principal{
		{Name: "local", Kind: KindUser, Password: cheapHash(t, "its own")}, {Name: "off", Kind: KindUser, Provider: "corp", Disabled: true},
	}, nil, corp())
	for _, name := range []string{"alice", "nobody", "local", "off", "no name at all"} {
		began := time.Now()
		if _, err := l.Login(t.Context(), d, name, "wrong", "x"); !errors.Is(err, ErrWrongLogin) {
			t.Fatal(err)
		}
		if took := time.Since(began); took < l.even {
			t.Errorf("%s: answered after %s", name, took)
		}
	}
	for took, want := range map[time.Duration]time.Duration{0: 500, 1: 499, 499: 1, 500: 500, 501: 499, 1200: 300} {
		if got := evenWait(took, 500); got != want {
			t.Errorf("after %d: another %d, want %d", took, got, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	l.even = time.Hour
	_, _ = l.Login(ctx, d, "nobody", "wrong", "x") // who has gone isn't waited for
}

func TestAgain(t *testing.T) {
	l, c, b := withBook(t, "alice:right one", "bob:right one")
	record := Principal{Name: "bob", Kind: KindUser, Provider: "corp", Groups: []string{"ops", "dev"}, Generation: 9}
	d := NewDirectory(true, []Principal{record, {Name: "local", Kind: KindUser, Generation: 3}}, nil, corp())
	end := c.now().Add(time.Hour)
	alice := Caller{Kind: KindUser, Name: "alice", Groups: []string{"old"}, Provider: "corp", ProviderGeneration: 5, Until: end}
	got, err := l.Again(t.Context(), d, alice, "x")
	if err != nil || !slices.Equal(got.Groups, []string{"dev"}) || !got.Until.Equal(end) {
		t.Errorf("alice: %+v, %v", got, err)
	}
	bob := Caller{Kind: KindUser, Name: "bob", Generation: 9, Provider: "corp", ProviderGeneration: 5}
	if got, err := l.Again(t.Context(), d, bob, "x"); err != nil || !slices.Equal(got.Groups, []string{"dev", "ops"}) || got.Generation != 9 {
		t.Errorf("bob: %+v, %v", got, err)
	}
	b.heard()
	if _, err := l.Again(t.Context(), d, Caller{Kind: KindUser, Name: "local", Generation: 3}, "x"); err != nil || b.heard() != nil {
		t.Errorf("a local user: %v", err)
	}
	for _, b.as = range []string{"bob", "carol"} {
		if got, err := l.Again(t.Context(), d, alice, "x"); !errors.Is(err, ErrWrongLogin) {
			t.Errorf("%s answers: %+v, %v", b.as, got, err)
		}
	}
	if got, err := l.Again(t.Context(), d, alice, "x"); !errors.Is(err, ErrWrongLogin) {
		t.Errorf("somebody else answers: %+v, %v", got, err)
	}
	b.as, b.silent = "", true
	if _, err := l.Again(t.Context(), d, alice, "x"); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("silent: %v", err)
	}
	b.silent, b.pages = false, nil
	if _, err := l.Again(t.Context(), d, alice, "x"); !errors.Is(err, ErrWrongLogin) {
		t.Errorf("gone: %v", err)
	}
}

// Where nobody can be asked, nobody waits for those who are: a directory that hangs has its people's logins.
func TestAgainWhereNobodyIsAsked(t *testing.T) {
	l, _, b := withBook(t)
	d := NewDirectory(true, nil, nil, corp(), Provider{Name: "sso", Generation: 6})
	for range maxAsks {
		if err := l.asks.enter(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // who waits comes out at once
	c := Caller{Kind: KindUser, Name: "alice", Groups: []string{"g"}, Provider: "sso", ProviderGeneration: 6, Until: time.Now().Add(time.Hour)}
	if got, err := l.Again(ctx, d, c, "x"); err != nil || got.Name != "alice" || len(got.Groups) != 1 || !got.Until.Equal(c.Until) || b.heard() != nil {
		t.Errorf("%+v, %v", got, err)
	}
	c.ProviderGeneration = 5
	if got, err := l.Again(ctx, d, c, "x"); !errors.Is(err, ErrWrongLogin) {
		t.Errorf("of other settings: %+v, %v", got, err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := l.Elsewhere(soon, "x", func() (Caller, error) { return c, nil }); err != nil {
		t.Errorf("a login that is proven elsewhere: %v", err)
	}
}

// What a token says of somebody from outside holds as long as nothing here says otherwise.
func TestOutsidersAreRenewed(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	k := keys(t, 1)
	alice := Caller{Kind: KindUser, Name: "alice", Groups: []string{"ops", "dev"}, Provider: "corp", ProviderGeneration: 5}
	token, err := k.Issue(alice, "pier", nil, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c, err := k.Verify(token.Text, "pier", now)
	if err != nil || c.Provider != "corp" || c.ProviderGeneration != 5 || !slices.Equal(c.Groups, alice.Groups) {
		t.Fatalf("the token says %+v, %v", c, err)
	}
	record := Principal{Name: "alice", Kind: KindUser, Provider: "corp", Groups: []string{"more"}, Generation: 9}
	for what, x := range map[string]struct {
		c         Caller
		record    Principal
		providers []Provider
		ok        bool
	}{
		"unknown here": {c, Principal{Name: "x"}, []Provider{corp()}, true}, "the provider is gone": {c, Principal{Name: "x"}, nil, false},
		"the provider has changed": {c, Principal{Name: "x"}, []Provider{{Name: "corp", Generation: 6}}, false},
		"a record since":           {c, record, []Provider{corp()}, false},
		"a local user":             {c, Principal{Name: "alice", Kind: KindUser}, []Provider{corp()}, false},
		"a robot":                  {c, Principal{Name: "alice", Kind: KindRobot, Provider: "corp"}, []Provider{corp()}, false},
		"of a provider never":      {withProvider(c, "none"), Principal{Name: "x"}, []Provider{corp()}, false},
		"of a trust rule":          {withProvider(c, "rule:ci"), Principal{Name: "x"}, []Provider{corp(), Rule("ci", "ci", 0)}, false},
		"of a local user before":   {Caller{Kind: KindUser, Name: "alice", Generation: 9}, record, []Provider{corp()}, false},
		"with the record":          {withGeneration(c, 9), record, []Provider{corp()}, true},
		"without the record":       {withGeneration(c, 9), Principal{Name: "x"}, []Provider{corp()}, false},
		"as no kind":               {func() Caller { c := c; c.Kind = ""; return c }(), Principal{Name: "x"}, []Provider{corp()}, true},
	} {
		d := NewDirectory(true, []Principal{x.record}, nil, x.providers...)
		got, ok := d.Renew(x.c, now)
		if ok != x.ok || ok && (got.Kind != KindUser || !slices.Contains(got.Groups, "dev") || slices.Contains(got.Groups, "more") != (x.c.Generation == 9)) {
			t.Errorf("%s: %+v, %v", what, got, ok)
		}
	}
	d := NewDirectory(true, nil, []Grant{{"group:dev", Push, "team/**"}, {"group:sre", Pull, "**"}}, corp())
	if _, ok := d.Decide(c, Push, "team/app"); ok {
		t.Error("a token for nothing gives something")
	}
	c.Limit = nil
	if g, ok := d.Decide(c, Push, "team/app"); !ok || g.Subject != "group:dev" {
		t.Errorf("its group gives it %v", g)
	}
	if got := d.Granted([]string{"ops", "dev"}); !slices.Equal(got, []string{"dev"}) {
		t.Errorf("of the groups %v matter", got)
	}
	if got := d.Foremost([]string{"ops", "sre", "zoo", "dev", "all"}); !slices.Equal(got, []string{"dev", "sre", "all", "ops", "zoo"}) {
		t.Errorf("the groups come as %v", got)
	}
}

// waits counts those in the line.
func (l *line) waits() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting
}

func withProvider(c Caller, provider string) Caller {
	c.Provider, c.ProviderGeneration = provider, 0
	return c
}

func withGeneration(c Caller, generation uint64) Caller {
	c.Generation = generation
	return c
}

func TestTokensStayShort(t *testing.T) {
	for _, x := range []struct{ groups, size, want int }{{maxTokenGroups, 1, maxTokenGroups}, {maxTokenGroups + 1, 1, maxTokenGroups}, {16, maxTokenGroupBytes / 16, 16}, {17, maxTokenGroupBytes/16 - 1, 16}, {16, maxTokenGroupBytes/16 + 1, 15}} {
		if got := boundGroups(slices.Repeat([]string{strings.Repeat("g", x.size)}, x.groups)); len(got) != x.want {
			t.Errorf("of %d groups of %d bytes %d are kept", x.groups, x.size, len(got))
		}
	}
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf("a-rather-long-name-of-a-group-%04d", i))
	}
	now := time.Unix(1_000_000, 0)
	k := keys(t, 1)
	token, err := k.IssueRefresh(Caller{Kind: KindUser, Name: "alice", Groups: many, Provider: "corp"}, "pier", now, time.Minute)
	if err != nil || len(token.Text) > maxKept {
		t.Errorf("%d bytes, %v", len(token.Text), err)
	}
	c, err := k.VerifyRefresh(token.Text, "pier", now)
	if err != nil || len(c.Groups) == 0 || c.Groups[0] != many[0] || len(c.Groups) > maxTokenGroups {
		t.Errorf("%d groups, %v", len(c.Groups), err)
	}
}
