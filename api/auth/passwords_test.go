package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/crypto/bcrypt"
)

// clock is a time that the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func cheapHash(t *testing.T, password string) []byte {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func logins(t *testing.T) (*Logins, *clock) {
	t.Helper()
	c := &clock{at: time.Unix(1_000_000, 0)}
	l := NewLogins(c.now, nil)
	if cost, err := bcrypt.Cost(l.dummy); cost != bcryptCost {
		t.Errorf("an unknown name costs %d, not %d: %v", cost, bcryptCost, err)
	}
	l.dummy = cheapHash(t, "nobody's")
	return l, c
}

func TestLogin(t *testing.T) {
	l, c := logins(t)
	text, secret := NewSecret()
	oldText, old := NewSecret()
	old.Expires = c.now()
	longest := strings.Repeat("x", maxPassword)
	d := NewDirectory(true, []Principal{
		{Name: "alice", Kind: KindUser, Password: cheapHash(t, "p:ss wörd\x00"), Groups: []string{"dev"}},
		{Name: "off", Kind: KindUser, Password: cheapHash(t, "right one"), Disabled: true},
		{Name: "outside", Kind: KindUser}, {Name: "long", Kind: KindUser, Password: cheapHash(t, longest)},
		{Name: "ci", Kind: KindRobot, Secrets: []Secret{old, secret}, Password: cheapHash(t, "a robot's")},
	}, nil)
	for _, x := range []struct {
		name, password string
		ok             bool
	}{
		{"alice", "p:ss wörd\x00", true}, {"alice", "p:ss wörd\x00", true}, {"alice", "p:ss wörd", false}, {"alice", "", false},
		{"Alice", "p:ss wörd\x00", false}, {"off", "right one", false}, {"outside", "", false}, {"", "", false},
		{"ci", text, true}, {"ci", oldText, false}, {"ci", text[:len(text)-1], false}, {"alice", text, false},
		{"ci", "a robot's", false}, {"long", longest, true}, {"long", longest + "x", false}, {"long", longest[1:], false}, {"nobody", "nobody's", false},
		{"alice", strings.Repeat("x", 10_000), false}, {strings.Repeat("x", 10_000), "x", false},
	} {
		got, err := l.Login(t.Context(), d, x.name, x.password, "192.0.2.1")
		if x.ok && (err != nil || got.Name != x.name) || !x.ok && !errors.Is(err, ErrWrongLogin) {
			t.Errorf("%.20q with %.20q: %v, %v", x.name, x.password, got, err)
		}
	}
}

// Guessing makes an account and an address wait; who is known to be right doesn't.
func TestGuessingIsSlowedDown(t *testing.T) {
	l, c := logins(t)
	d := NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser, Password: cheapHash(t, "right one")}, {Name: "bob", Kind: KindUser, Password: cheapHash(t, "bob's own")}}, nil)
	login := func(name, password, source string) error {
		_, err := l.Login(t.Context(), d, name, password, source)
		return err
	}
	if err := login("alice", "right one", "192.0.2.9"); err != nil {
		t.Fatal(err)
	}
	var slowed *TooManyLoginsError
	last := time.Duration(0)
	for i := range 12 {
		err := login("alice", "guess", "192.0.2.1")
		if i < 5 && !errors.Is(err, ErrWrongLogin) {
			t.Fatalf("guess %d: %v", i, err)
		}
		if errors.As(err, &slowed) {
			if slowed.RetryAfter < last || slowed.RetryAfter > 10*time.Second {
				t.Errorf("guess %d waits %s after %s", i, slowed.RetryAfter, last)
			}
			last = slowed.RetryAfter
			c.pass(slowed.RetryAfter)
		}
	}
	if last < time.Second {
		t.Errorf("the pauses grow to %s only", last)
	}
	_ = login("alice", "guess", "192.0.2.1")
	if err := login("alice", "right one", "192.0.2.9"); err != nil {
		t.Errorf("who was right a moment ago is kept out: %v", err)
	}
	if err := login("bob", "bob's own", "192.0.2.1"); err != nil {
		t.Errorf("another account from that address: %v", err)
	}
	for i := range 40 {
		_ = login("user"+string(rune('a'+i)), "guess", "192.0.2.1")
	}
	if err := login("carol", "guess", "192.0.2.1"); !errors.As(err, &slowed) {
		t.Errorf("an address that tries many names: %v", err)
	}
}

// What is remembered is no way to try passwords without the pauses: a right guess would be the one that needs none.
func TestGuessingAgainstWhatIsRemembered(t *testing.T) {
	l, _ := logins(t)
	d := NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser, Password: cheapHash(t, "right one")}}, nil)
	login := func(password, source string) error {
		_, err := l.Login(t.Context(), d, "alice", password, source)
		return err
	}
	const home = "192.0.2.9"
	if err := login("right one", home); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		_ = login("guess", "192.0.2.1")
	}
	var slowed *TooManyLoginsError
	if err := login("right one", "192.0.2.1"); !errors.As(err, &slowed) {
		t.Errorf("a right guess of who has to wait: %v", err)
	}
	for range maxMisses - 1 {
		_ = login("guess", home)
	}
	if err := login("right one", home); err != nil {
		t.Errorf("after a few misses from there: %v", err)
	}
	_ = login("guess", home)
	if err := login("right one", home); !errors.As(err, &slowed) {
		t.Errorf("after many: %v", err)
	}
}

// What is kept of wrong logins is short, and nothing of the password.
func TestWrongLoginsLeaveLittle(t *testing.T) {
	l, _ := logins(t)
	d := NewDirectory(true, nil, nil)
	came := "mallory:" + strings.Repeat("secret", 1000)
	name, password, _ := strings.Cut(came, ":")
	for _, x := range []struct{ name, source string }{
		{name, "192.0.2.1"}, {came, "2001:db8:1:2::3"}, {came + "x", "2001:db8:1:2:ffff::4"}, {name, "::ffff:192.0.2.1"},
	} {
		if _, err := l.Login(t.Context(), d, x.name, password, x.source); !errors.Is(err, ErrWrongLogin) {
			t.Fatal(err)
		}
	}
	for kept := range l.accounts.seen {
		if len(kept) > maxName || kept != "" && unsafe.StringData(kept) == unsafe.StringData(came) {
			t.Errorf("%.80q is kept, with what came with it", kept)
		}
	}
	if n := l.sources.seen["2001:db8:1:2::/64"].count; len(l.accounts.seen) != 2 || n != 2 {
		t.Errorf("%d names, and %d times the network of two addresses", len(l.accounts.seen), n)
	}
}

// Neither who is disabled nor an imported hash answers in another time than a name that nobody has.
func TestWrongLoginsCostTheSame(t *testing.T) {
	l, _ := logins(t)
	dear, err := bcrypt.GenerateFromPassword([]byte("nobody's"), bcrypt.MinCost+2)
	if err != nil {
		t.Fatal(err)
	}
	l.dummy = dear
	work := 0
	l.compare = func(hash, password []byte) error {
		cost, err := bcrypt.Cost(hash)
		work += 1 << cost
		return errors.Join(err, bcrypt.CompareHashAndPassword(hash, password))
	}
	d := NewDirectory(true, []Principal{
		{Name: "imported", Kind: KindUser, Password: cheapHash(t, "right one")},
		{Name: "off", Kind: KindUser, Password: cheapHash(t, "right one"), Disabled: true},
	}, nil)
	for _, x := range []struct {
		name, password string
		most           int
	}{{"nobody", "x", 1 << 6}, {"imported", "x", 1<<6 + 1<<4}, {"off", "right one", 1 << 6}, {"off", "right one", 1 << 6}} {
		work = 0
		if _, err := l.Login(t.Context(), d, x.name, x.password, "x"); !errors.Is(err, ErrWrongLogin) {
			t.Errorf("%s: %v", x.name, err)
		}
		if work < 1<<6 || work > x.most {
			t.Errorf("%s costs %d, a name that nobody has %d", x.name, work, 1<<6)
		}
	}
	if l.accounts.seen["off"].count != 2 {
		t.Error("a disabled user's password can be guessed without end")
	}
}

// What was right is not computed again within a minute, by however many other logins; and no more than so many are remembered.
func TestVerifiedLoginsAreRemembered(t *testing.T) {
	l, c := logins(t)
	runs := 0
	l.compare = func(hash, password []byte) error {
		runs++
		return bcrypt.CompareHashAndPassword(hash, password)
	}
	d := NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser, Password: cheapHash(t, "right one")}}, nil)
	login := func(want int) {
		t.Helper()
		if _, err := l.Login(t.Context(), d, "alice", "right one", "x"); err != nil || runs != want {
			t.Errorf("%d bcrypts, want %d: %v", runs, want, err)
		}
	}
	login(1)
	for i := range cacheLimit - 1 {
		l.remember([sha256.Size]byte{byte(i), byte(i >> 8), 1}, Caller{})
	}
	c.pass(cacheLife - 1)
	login(1)
	for i := range 10 {
		l.remember([sha256.Size]byte{byte(i), 2}, Caller{})
	}
	if n := len(l.verified); n != cacheLimit {
		t.Errorf("%d are remembered", n)
	}
	c.pass(1)
	if l.remember([sha256.Size]byte{3}, Caller{}); len(l.verified) != 11 {
		t.Errorf("%d are remembered, of which 11 are not over", len(l.verified))
	}
	login(2)
}

// A changed password or a new generation makes what was remembered worthless, and time does too.
func TestVerifiedLoginsAreForgotten(t *testing.T) {
	l, c := logins(t)
	alice := Principal{Name: "alice", Kind: KindUser, Password: cheapHash(t, "right one"), Generation: 1}
	seen := l.digest(alice, "right one", "x")
	if _, err := l.Login(t.Context(), NewDirectory(true, []Principal{alice}, nil), "alice", "right one", "x"); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.remembers(seen, "alice", "x"); !ok {
		t.Fatal("it is not remembered")
	}
	changed := alice
	changed.Password = cheapHash(t, "a new one")
	if _, err := l.Login(t.Context(), NewDirectory(true, []Principal{changed}, nil), "alice", "right one", "x"); !errors.Is(err, ErrWrongLogin) {
		t.Errorf("the old password: %v", err)
	}
	c.pass(cacheLife)
	if _, ok := l.remembers(seen, "alice", "x"); ok {
		t.Error("it is remembered for ever")
	}
}

// Who has to wait for guesses takes no place in the line, and who waits there in vain hasn't come in.
func TestWaitingIsNoWayIn(t *testing.T) {
	l, c, _ := withBook(t, "bob:right one")
	d := NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser, Password: cheapHash(t, "right one")}}, nil, corp())
	bob := Caller{Kind: KindUser, Name: "bob", Provider: "corp", ProviderGeneration: 5}
	for range cap(l.runs.places) {
		l.runs.places <- struct{}{}
	}
	for range cap(l.asks.places) {
		l.asks.places <- struct{}{}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range []string{"alice", "bob"} {
		if who, err := l.Login(gone, d, name, "right one", "x"); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, who has gone: %+v, %v", name, who, err)
		}
	}
	if who, err := l.Again(gone, d, bob, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("bob's token, when bob has gone: %+v, %v", who, err)
	}
	for range 5 {
		l.accounts.note("alice", c.now())
		l.accounts.note("bob", c.now())
	}
	var slowed *TooManyLoginsError
	for _, name := range []string{"alice", "bob"} {
		if _, err := l.Login(gone, d, name, "right one", "x"); !errors.As(err, &slowed) {
			t.Errorf("%s, who has to wait, waits in line: %v", name, err)
		}
	}
}

// More logins than are checked at a time wait, a few; the rest is sent away.
func TestLoginsAreBounded(t *testing.T) {
	l, _ := logins(t)
	for range cap(l.runs.places) {
		l.runs.places <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	d := NewDirectory(true, nil, nil)
	answers := make(chan error, maxWaiting+2)
	login := func(source string) {
		go func() {
			_, err := l.Login(ctx, d, "x", "y", source)
			answers <- err
		}()
	}
	var slowed *TooManyLoginsError
	for range maxFromOne + 1 {
		login("the flood's")
	}
	if err := <-answers; !errors.As(err, &slowed) {
		t.Errorf("one too many from one source: %v", err)
	}
	for i := range maxWaiting - maxFromOne + 1 {
		login(strconv.Itoa(i))
	}
	if err := <-answers; !errors.As(err, &slowed) {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	for range maxWaiting {
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("one that waits: %v", err)
		}
	}
}

// Many requests with the same login, all at once, cost as many checks as run at a time, and not one each.
func TestSameLoginsAtOnce(t *testing.T) {
	l, _ := logins(t)
	d := NewDirectory(true, []Principal{{Name: "ci", Kind: KindUser, Password: cheapHash(t, "right one")}}, nil)
	var checks atomic.Int64
	l.compare = func(hash, password []byte) error {
		checks.Add(1)
		return bcrypt.CompareHashAndPassword(hash, password)
	}
	places := cap(l.runs.places)
	for range places {
		l.runs.places <- struct{}{}
	}
	ended := make(chan error, maxFromOne)
	for range cap(ended) {
		go func() {
			_, err := l.Login(t.Context(), d, "ci", "right one", "192.0.2.9")
			ended <- err
		}()
	}
	for waiting := 0; waiting < cap(ended); {
		l.runs.mu.Lock()
		waiting = l.runs.waiting
		l.runs.mu.Unlock()
		runtime.Gosched()
	}
	for range places {
		l.runs.done()
	}
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := checks.Load(); n > int64(places) {
		t.Errorf("%d logins cost %d checks, with %d at a time", cap(ended), n, places)
	}
}

// Strangers from many addresses fill the line for bcrypt. Who was right before from where he is doesn't stand in it.
func TestStrangersFillTheLine(t *testing.T) {
	l, c := logins(t)
	d := NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser, Password: cheapHash(t, "right one")}}, nil)
	login := func(ctx context.Context, name, password, source string) error {
		_, err := l.Login(ctx, d, name, password, source)
		return err
	}
	if err := login(t.Context(), "alice", "right one", "192.0.2.9"); err != nil {
		t.Fatal(err)
	}
	c.pass(time.Hour)
	for range cap(l.runs.places) {
		l.runs.places <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, maxWaiting+1)
	for i := range maxWaiting + 1 {
		go func() { ended <- login(ctx, "alice", "guess", "198.51.100."+strconv.Itoa(i)) }()
	}
	var slowed *TooManyLoginsError
	if err := <-ended; !errors.As(err, &slowed) {
		t.Errorf("one too many: %v", err)
	}
	if err := login(t.Context(), "alice", "right one", "192.0.2.9"); err != nil {
		t.Errorf("alice, where she was before: %v", err)
	}
	if err := login(t.Context(), "alice", "right one", "203.0.113.1"); !errors.As(err, &slowed) {
		t.Errorf("alice, where she never was: %v", err)
	}
	cancel()
	for range maxWaiting {
		<-ended
	}
}

// Strangers who guess at an account, or who come through the same proxy, don't keep out who was right from there before.
func TestGuessersDontKeepOthersOut(t *testing.T) {
	l, c := logins(t)
	d := NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser, Password: cheapHash(t, "right one")}, {Name: "bob", Kind: KindUser, Password: cheapHash(t, "bob's own")}}, nil)
	login := func(name, password, source string) error {
		_, err := l.Login(t.Context(), d, name, password, source)
		return err
	}
	const home, proxy = "192.0.2.9", "192.0.2.1"
	for _, source := range []string{home, proxy} {
		if err := login("alice", "right one", source); err != nil {
			t.Fatal(err)
		}
	}
	c.pass(24 * time.Hour) // nothing is remembered but that she was right
	for i := range 60 {
		_ = login("alice", "guess", "198.51.100."+strconv.Itoa(i))
		_ = login("user"+strconv.Itoa(i), "guess", proxy)
	}
	for _, source := range []string{home, proxy} {
		if err := login("alice", "right one", source); err != nil {
			t.Errorf("alice at %s: %v", source, err)
		}
	}
	var slowed *TooManyLoginsError
	if err := login("bob", "bob's own", proxy); !errors.As(err, &slowed) {
		t.Errorf("who was never right from there: %v", err)
	}
	c.pass(knownLife + time.Second)
	for i := range 60 {
		_ = login("alice", "guess", "198.51.100."+strconv.Itoa(i))
	}
	if err := login("alice", "right one", home); !errors.As(err, &slowed) {
		t.Errorf("after a week: %v", err)
	}
	if len(l.runs.from) != 0 {
		t.Errorf("%v are said to wait", l.runs.from)
	}
}

func TestFailuresStayBounded(t *testing.T) {
	f := newFailures(1, time.Second)
	now := time.Unix(1_000_000, 0)
	for i := range 3*failureLimit + 10 {
		f.note(string(rune(i)), now)
	}
	if n := len(f.seen); n > failureLimit || n < failureLimit*9/10 {
		t.Errorf("%d are kept", n)
	}
	later := now.Add(f.memory + 1)
	f.note("new", later)
	for i := range failureLimit / 2 {
		f.note(strconv.Itoa(i), later)
	}
	if f.count("new", later) != 1 || len(f.seen) != failureLimit/2+1 {
		t.Error("the new is forgotten for the old, or the old is kept")
	}
}

// The pauses double up to the longest, are over when they are, and begin again when all is forgotten.
func TestPauses(t *testing.T) {
	f, now := newFailures(5, 10*time.Second), time.Unix(1_000_000, 0)
	for i, want := range []time.Duration{0, 0, 0, 0, 500, 1000, 2000, 4000, 8000, 10_000, 10_000} {
		f.note("x", now)
		if got := f.pause("x", now); got != want*time.Millisecond {
			t.Errorf("after %d: %s, want %d ms", i+1, got, want)
		}
	}
	for range 1000 {
		f.note("x", now)
	}
	if got := f.pause("x", now.Add(9*time.Second)); got != time.Second {
		t.Errorf("after a thousand, 9 s ago: another %s", got)
	}
	if f.pause("x", now.Add(10*time.Second)) != 0 || f.pause("y", now) != 0 {
		t.Error("what is over, or was never begun, goes on")
	}
	if at := now.Add(failureMemory); f.count("x", at) == 0 || f.count("x", at.Add(1)) != 0 {
		t.Error("it is forgotten at another time")
	}
	if f.note("x", now.Add(failureMemory+1)); f.seen["x"].count != 1 {
		t.Error("what was forgotten counts")
	}
}

func TestSourceKeys(t *testing.T) {
	for source, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "::ffff:192.0.2.1", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "": "", "@": "@",
	} {
		if got := SourceKey(source); got != want {
			t.Errorf("%q is kept as %q", source, got)
		}
	}
}

func TestHashes(t *testing.T) {
	for n, want := range map[int]bool{0: false, minPassword - 1: false, minPassword: true, maxPassword: true, maxPassword + 1: false} {
		hash, err := HashPassword(strings.Repeat("x", n))
		if (err == nil) != want {
			t.Errorf("a password of %d bytes: %v", n, err)
		}
		if cost, _ := bcrypt.Cost(hash); err == nil && cost != bcryptCost {
			t.Errorf("a hash of cost %d", cost)
		}
	}
	for cost, want := range map[int]bool{bcryptCost + 4: true, bcryptCost + 5: false} {
		if err := CheckHash(fmt.Appendf(nil, "$2y$%d$%s", cost, strings.Repeat("a", 53))); (err == nil) != want {
			t.Errorf("a hash of cost %d: %v", cost, err)
		}
	}
	if CheckHash([]byte("{SHA}abc")) == nil {
		t.Error("a hash that can't be used is accepted")
	}
	if err := CheckHash(cheapHash(t, "x")); err != nil {
		t.Error(err)
	}
}
