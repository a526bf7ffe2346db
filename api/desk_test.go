package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// One source that asks for tokens without end waits for its turn and is sent away in the end; others and the registry's own
// requests go on, and nothing is kept of it.
func TestTokenFlood(t *testing.T) {
	f := withAccess(t, 1, func(c *Config) {
		c.Access.Proxies = mustPrefixes(t, "127.0.0.0/8")
		c.MaxInFlight = 1
	})
	f.user("root")
	token := f.token(f.nodes[0], "root", "repository:a:pull")
	desk := f.nodes[0].api.desk
	const flooder = "192.0.2.66"
	ask := func(source string) answer { return f.do("GET", "/token", nil, "X-Forwarded-For: "+source) }
	f.want(ask(flooder), 200, "")
	desk.mu.Lock()
	for range 4 { // as after that many requests: its next turn is a quarter of a minute away
		desk.paceOf(flooder).ReserveN(time.Now(), deskBurst)
	}
	desk.mu.Unlock()
	if got := f.want(ask(flooder), 429, codeTooManyRequests); got.Header.Get("Retry-After") == "" {
		t.Error("who has to wait isn't told how long")
	}
	f.want(ask("192.0.2.7"), 200, "")
	f.want(f.do("GET", "/v2/a/tags/list", nil, "Authorization: Bearer "+token), 404, codeNameUnknown)
	eventually(t, func() error {
		desk.mu.Lock()
		defer desk.mu.Unlock()
		if desk.inside != 0 || len(desk.from) != 0 {
			return fmt.Errorf("%d are said to be there, %v", desk.inside, desk.from)
		}
		return nil
	})
}

// One source has a part of the places, and what is kept of many is bounded.
func TestDeskIsShared(t *testing.T) {
	desk := newDesk()
	for range deskFromOne {
		if err := desk.enter(t.Context(), "crowd"); err != nil {
			t.Fatal(err)
		}
	}
	if err := desk.enter(t.Context(), "crowd"); err == nil {
		t.Errorf("%d of one source are there at once", desk.from["crowd"])
	}
	if err := desk.enter(t.Context(), "other"); err != nil {
		t.Errorf("another is kept out: %v", err)
	}
	for i := range deskPlaces - deskFromOne - 1 {
		if err := desk.enter(t.Context(), "other"+strconv.Itoa(i)); err != nil {
			t.Fatalf("%d are there, and another is kept out: %v", desk.inside, err)
		}
	}
	if err := desk.enter(t.Context(), "one more"); err == nil || desk.inside != deskPlaces || desk.from["one more"] != 0 {
		t.Errorf("%d are there at once", desk.inside)
	}
	desk.leave("other")
	if err := desk.enter(t.Context(), "one more"); err != nil {
		t.Errorf("a place is free, and another is kept out: %v", err)
	}
	for i := range 3 * deskSources {
		desk.paceOf(strconv.Itoa(i)).Reserve()
	}
	if len(desk.pace) > deskSources {
		t.Errorf("the pace of %d sources is kept", len(desk.pace))
	}
}

// Passwords that wait to be checked take no place of who comes with a token.
func TestLoginsWaitOutside(t *testing.T) {
	f := withAccess(t, 1, func(c *Config) { c.MaxInFlight = 1 })
	f.user("root")
	token := f.token(f.nodes[0], "root", "repository:a:pull")
	const logins = 8 // each costs a whole bcrypt, one after the other
	var all, sent sync.WaitGroup
	var done atomic.Int32
	sent.Add(logins)
	for i := range logins {
		all.Go(func() {
			sent.Done()
			f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "u"+strconv.Itoa(i)))
			done.Add(1)
		})
	}
	sent.Wait()
	for range 5 {
		f.want(f.do("GET", "/v2/a/tags/list", nil, "Authorization: Bearer "+token), 404, codeNameUnknown)
	}
	if n := done.Load(); n == logins {
		t.Error("those with a token waited until the last wrong login was checked")
	}
	all.Wait()
}

// Who guesses without end isn't answered without end; and has no more than a part of the places in which answers are kept back.
func TestGuessersAreHeld(t *testing.T) {
	const hold = 200 * time.Millisecond
	f := withAccess(t, 1, func(c *Config) { c.Access.Hold = hold })
	f.user("root")
	guess := func() time.Duration {
		began := time.Now()
		got := f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "nobody"))
		if got.StatusCode != 429 {
			return 0
		}
		return time.Since(began)
	}
	slowed := 0
	for range 8 {
		took := guess()
		if took > 0 && took < hold {
			t.Errorf("an answer comes after %s", took)
		}
		if took > 0 {
			slowed++
		}
	}
	if slowed == 0 {
		t.Error("nobody had to wait")
	}
	d := newDesk()
	d.from["x"], d.inside = deskFromOne, deskFromOne
	began := time.Now()
	if d.hold(t.Context(), "x", time.Minute); time.Since(began) > 30*time.Second || d.inside != deskFromOne {
		t.Errorf("%d are there", d.inside)
	}
}

// Who needn't wait isn't held: neither a right login, nor a wrong one that comes alone.
func TestOthersAreNotHeld(t *testing.T) {
	f := withAccess(t, 1, func(c *Config) { c.Access.Hold = time.Hour })
	f.user("root")
	f.want(f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "root")), 200, "")
	f.want(f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "nobody")), 401, codeUnauthorized)
}

// Who is made to wait, for asking or for guessing too fast, takes no place from those who aren't.
func TestWaitingTakesNoPlace(t *testing.T) {
	f := withAccess(t, 1, func(c *Config) { c.Access.Hold = time.Hour })
	f.user("root")
	a := f.nodes[0].api
	d, err := a.access.directory()
	f.must(d, err)
	for range 6 {
		_, _ = a.access.logins.Login(t.Context(), d, "nobody", "guess", "127.0.0.1")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var guesses sync.WaitGroup
	defer guesses.Wait()
	defer cancel()
	for _, path := range []string{"/token", "/v2/", "/api/v1/access"} {
		guesses.Go(func() {
			r, err := http.NewRequestWithContext(ctx, "GET", f.nodes[0].url+path, nil)
			if err != nil {
				return
			}
			r.SetBasicAuth("nobody", "guess")
			if resp, err := f.client.Do(r); err == nil {
				_ = resp.Body.Close()
				t.Errorf("%s: %s", path, resp.Status)
			}
		})
	}
	eventually(t, func() error {
		a.access.held.mu.Lock()
		defer a.access.held.mu.Unlock()
		if a.access.held.waiting != 3 {
			return fmt.Errorf("%d answers are kept back", a.access.held.waiting)
		}
		return nil
	})
	a.desk.mu.Lock()
	if a.desk.inside != 0 || len(a.gate.places) != 0 {
		t.Errorf("they have %d places at the desk and %d at the gate", a.desk.inside, len(a.gate.places))
	}
	fast := a.desk.paceOf("fast")
	fast.SetLimit(deskBurst / 1.9) // its next turn is in 1.9 seconds
	for range 2 {
		fast.ReserveN(time.Now(), deskBurst)
	}
	a.desk.waiting = deskWaiting
	a.desk.mu.Unlock()
	if a.desk.enter(t.Context(), "fast") == nil || a.desk.enter(t.Context(), "slow") != nil {
		t.Error("where no more may wait, who needn't wait is sent away, or who has to isn't")
	}
	a.desk.mu.Lock()
	a.desk.waiting = 0
	a.desk.mu.Unlock()
	gone, leave := context.WithCancel(t.Context())
	leave()
	if err := a.desk.enter(gone, "fast"); !errors.Is(err, context.Canceled) || a.desk.waiting != 0 || a.desk.inside != 1 || len(a.desk.from) != 1 {
		t.Errorf("%v; %d wait, %d are inside, from %v", err, a.desk.waiting, a.desk.inside, a.desk.from)
	}
}

// Who sends a form slowly takes no place from others: strangers could hold all of them for an hour.
func TestSlowFormsTakeNoPlace(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	a, read := f.nodes[0].api, 0
	form := strings.NewReader("grant_type=password&username=root&password=root%27s-password")
	body := readFunc(func(p []byte) (int, error) {
		a.desk.mu.Lock()
		defer a.desk.mu.Unlock()
		if read++; a.desk.inside != 0 {
			t.Errorf("%d places are taken while the form is under way", a.desk.inside)
		}
		return form.Read(p)
	})
	r, w := httptest.NewRequest("POST", "/token", body), httptest.NewRecorder()
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if a.Handler().ServeHTTP(w, r); w.Code != 200 || read == 0 {
		t.Errorf("%d %s, after %d reads", w.Code, w.Body, read)
	}
}

type readFunc func(p []byte) (int, error)

func (read readFunc) Read(p []byte) (int, error) { return read(p) }

// Whoever reads the log learns why clients behind a proxy that nobody named are slow.
func TestProxyHint(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	f := withAccess(t, 1, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&locked{mu: &mu, w: &log}, nil)) })
	f.user("root")
	guess := func(times int, more ...string) {
		for range times {
			f.do("GET", "/v2/", nil, append(more, "Authorization: "+basic(f, "nobody"))...)
		}
	}
	const forwarded = "X-Forwarded-For: 192.0.2.1"
	guess(1, forwarded) // which nobody slows down yet
	guess(12)           // and this is of no proxy
	mu.Lock()
	if log.Len() != 0 {
		t.Errorf("without a reason is said %s", log.String())
	}
	mu.Unlock()
	guess(12, forwarded)
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(log.String(), "trusted-proxies"); n != 1 {
		t.Errorf("it is said %d times: %s", n, log.String())
	}
}

type locked struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// A request that gives up while it waits for its turn leaves nothing behind.
func TestDeskIsLeft(t *testing.T) {
	d := newDesk()
	for _, n := range []int{deskBurst, deskRate} { // its next turn is in a second
		d.paceOf("x").ReserveN(time.Now(), n)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.enter(gone, "x"); err == nil || d.inside != 0 || len(d.from) != 0 {
		t.Errorf("%v, %d inside, %v", err, d.inside, d.from)
	}
}

// Forms that come byte by byte, from as many sources as would have all places, keep nobody else from a token.
func TestSlowFormsAreBounded(t *testing.T) {
	f := withAccess(t, 1, func(c *Config) { c.Access.Proxies = mustPrefixes(t, "127.0.0.0/8") })
	f.user("root")
	desk := f.nodes[0].api.desk
	for i := range deskPlaces {
		f.dial(f.nodes[0], fmt.Sprintf("POST /token HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.%d\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ngrant_type=", i/deskFromOne))
	}
	eventually(t, func() error {
		desk.mu.Lock()
		defer desk.mu.Unlock()
		if n := desk.waiting + desk.inside; n != deskPlaces {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
	f.want(f.do("GET", "/token", nil, "Authorization: "+basic(f, "root"), "X-Forwarded-For: 192.0.2.77"), 200, "")
	form := []byte("grant_type=password&username=root&password=root's-password")
	f.want(f.do("POST", "/token", form, "Content-Type: application/x-www-form-urlencoded", "X-Forwarded-For: 192.0.2.77"), 200, "")
	f.want(f.do("POST", "/token", form, "Content-Type: application/x-www-form-urlencoded", "X-Forwarded-For: 192.0.2.0"), 429, codeTooManyRequests)
}
