package api

import (
	"bytes"
	"context"
	"log/slog"
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
	const flooder = "X-Forwarded-For: 192.0.2.66"
	var refused, served int
	for range deskBurst {
		if got := f.do("GET", "/token", nil, flooder); got.StatusCode == 200 {
			served++
		}
	}
	if served != deskBurst {
		t.Errorf("%d of the first %d are served", served, deskBurst)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	began := time.Now()
	for range 2 * deskFromOne {
		all.Go(func() {
			got := f.do("GET", "/token", nil, flooder)
			mu.Lock()
			defer mu.Unlock()
			if got.StatusCode == 429 && got.Header.Get("Retry-After") != "" && got.code() == codeTooManyRequests {
				refused++
			}
		})
	}
	for range 20 {
		f.want(f.do("GET", "/token", nil, "X-Forwarded-For: 192.0.2.7"), 200, "")
		f.want(f.do("GET", "/v2/a/tags/list", nil, "Authorization: Bearer "+token), 404, codeNameUnknown)
	}
	all.Wait()
	if most := 2 * deskFromOne * int(time.Second) / deskRate; refused == 0 || time.Since(began) > time.Duration(most) {
		t.Errorf("%d refused, after %s", refused, time.Since(began))
	}
	if desk.inside != 0 || len(desk.from) != 0 {
		t.Errorf("%d are said to be there, %v", desk.inside, desk.from)
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
	if held := f.nodes[0].api.access.held; slowed == 0 || held.inside != 0 || len(held.from) != 0 {
		t.Errorf("%d had to wait, %d wait", slowed, held.inside)
	}
	d := newDesk()
	d.from["x"], d.inside = deskFromOne, deskFromOne
	began := time.Now()
	if d.hold(t.Context(), "x", time.Minute); time.Since(began) > 30*time.Second || d.inside != deskFromOne {
		t.Errorf("%d are there", d.inside)
	}
}

// Whoever reads the log learns why clients behind a proxy that nobody named are slow.
func TestProxyHint(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	f := withAccess(t, 1, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&locked{mu: &mu, w: &log}, nil)) })
	f.user("root")
	for range 12 {
		f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "nobody"), "X-Forwarded-For: 192.0.2.1")
	}
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
	for range deskBurst {
		if err := d.enter(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		d.leave("x")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.enter(gone, "x"); err == nil || d.inside != 0 || len(d.from) != 0 {
		t.Errorf("%v, %d inside, %v", err, d.inside, d.from)
	}
}
