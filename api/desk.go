package api

import (
	"context"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	deskPlaces  = 512  // requests for tokens that are served at a time
	deskWaiting = 4096 // that wait for their turn, or for their form: who asks too fast, or slowly, takes no place from others
	deskFromOne = 128  // of both, from one source
	deskRate    = 100  // a second from one source; what comes quicker waits for its turn
	deskBurst   = 500
	deskWait    = 2 * time.Second
	deskSources = 10_000 // whose pace is remembered
	formTime    = 10 * time.Second
)

// desk is where tokens are asked for. It stands outside the gate of the registry, so that who has a token isn't kept waiting
// by those who ask for one; it bounds how many are at it, and how fast one source may ask.
type desk struct {
	hints rate.Sometimes

	mu      sync.Mutex
	inside  int
	waiting int
	from    map[string]int
	pace    map[string]*rate.Limiter
}

func newDesk() *desk {
	return &desk{hints: rate.Sometimes{Interval: time.Minute}, from: make(map[string]int), pace: make(map[string]*rate.Limiter)}
}

// enter waits for the source's turn; leave gives the place back.
func (d *desk) enter(ctx context.Context, source string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inside >= deskPlaces || d.from[source] >= deskFromOne {
		return flood("requests for tokens")
	}
	turn := d.paceOf(source).Reserve()
	wait := turn.Delay()
	if wait > deskWait || wait > 0 && d.waiting >= deskWaiting {
		turn.Cancel()
		return flood("requests for tokens")
	}
	d.from[source]++
	var err error
	if wait > 0 {
		err = d.wait(ctx, wait)
	}
	if err == nil && d.inside >= deskPlaces {
		err = flood("requests for tokens")
	}
	if err != nil {
		d.forget(source)
		return err
	}
	d.inside++
	return nil
}

// take does what a request has to wait for before it takes a place, such as its form. What comes slowly, or is large, is bounded
// as what waits is: there may be many requests on each connection.
func (d *desk) take(source string, do func() error) error {
	d.mu.Lock()
	full := d.waiting >= deskWaiting || d.from[source] >= deskFromOne
	if !full {
		d.waiting++
		d.from[source]++
	}
	d.mu.Unlock()
	if full {
		return flood("requests for tokens")
	}
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.waiting--
		d.forget(source)
	}()
	return do()
}

// wait is called, and returns, with the lock.
func (d *desk) wait(ctx context.Context, wait time.Duration) error {
	d.waiting++
	d.mu.Unlock()
	err := pause(ctx, wait)
	d.mu.Lock()
	d.waiting--
	return err
}

// hold keeps the answer to a login that came too soon for a moment, if there is room: who guesses without end would be answered
// as fast as the answers can be made.
func (d *desk) hold(ctx context.Context, source string, wait time.Duration) {
	_ = d.take(source, func() error { return pause(ctx, wait) })
}

func (d *desk) leave(source string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inside--
	d.forget(source)
}

func (d *desk) forget(source string) {
	if d.from[source]--; d.from[source] == 0 {
		delete(d.from, source)
	}
}

// keepBack is for the answer to a login that came too soon. It comes where the request has no place that others wait for.
func (a *API) keepBack(r *http.Request) {
	if x := exchangeOf(r.Context()); x.tooSoon {
		x.tooSoon = false
		a.access.held.hold(r.Context(), a.access.sourceKey(r), a.access.cfg.Hold)
	}
}

// paceOf is the source's limiter. Those that have their whole burst again are as good as new ones, and go when there are
// many; then any.
func (d *desk) paceOf(source string) *rate.Limiter {
	l, ok := d.pace[source]
	if ok {
		return l
	}
	if len(d.pace) >= deskSources {
		for s, l := range d.pace {
			if l.Tokens() >= deskBurst {
				delete(d.pace, s)
			}
		}
		for s := range d.pace {
			if len(d.pace) < deskSources*9/10 {
				break
			}
			delete(d.pace, s)
		}
	}
	l = rate.NewLimiter(deskRate, deskBurst)
	d.pace[source] = l
	return l
}

// atDesk serves a request for a token. Its form is read before it has a place: who sends slowly keeps nobody waiting.
func (a *API) atDesk(serve func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return a.plain("token", asksPassword(func(w http.ResponseWriter, r *http.Request) error {
		if isCrowded(r.Context()) {
			w.Header().Set("Connection", "close")
			return flood("connections")
		}
		source := a.access.sourceKey(r)
		if r.Method == http.MethodPost {
			if err := a.desk.take(source, func() error { return readForm(w, r) }); err != nil {
				return err
			}
		}
		if err := a.desk.enter(r.Context(), source); err != nil {
			return err
		}
		defer a.desk.leave(source)
		return serve(w, r)
	}))
}

// hintProxy tells whoever reads the log when clients are slowed down by an address that speaks for many.
func (a *API) hintProxy(x *exchange, r *http.Request) {
	if x.status != http.StatusTooManyRequests || r.Header.Get("X-Forwarded-For") == "" || a.access.trusts(r.RemoteAddr) {
		return
	}
	a.desk.hints.Do(func() {
		a.logger.Warn("clients are slowed down by the address that they share; if it is your proxy, name it in trusted-proxies",
			"address", hostOf(r.RemoteAddr), "request", x.id)
	})
}
