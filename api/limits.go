package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// gate bounds the requests under way. One that finds no place waits in a bounded queue, since a 429 ends a push of docker
// or crane at once; only a flood is refused. One that has waited in vain gets a 503, which they try again.
//
// A client that takes its answer, or sends its body, as slowly as it may has its place for hours. So half of the places are
// kept for sources that have few of those: one source alone, or a few, can't keep everybody else waiting.
type gate struct {
	places, kept chan struct{}
	few          int
	queued       atomic.Int64
	queue        int64
	wait         time.Duration

	mu      sync.Mutex
	from    map[string]int // kept places that a source has or waits for
	waiting map[string]int // how many wait of a source
}

// place is what a request has at the gate, for leave.
type place struct {
	of     chan struct{}
	source string // whose kept place it is
}

func newGate(inFlight, queue int, wait time.Duration) *gate {
	return &gate{
		places: make(chan struct{}, (inFlight+1)/2), kept: make(chan struct{}, inFlight/2), few: max(1, inFlight/32),
		queue: int64(queue), wait: wait, from: make(map[string]int), waiting: make(map[string]int),
	}
}

// enter waits for a place; leave gives it back.
func (g *gate) enter(ctx context.Context, source string) (place, error) {
	select {
	case g.places <- struct{}{}:
		return place{of: g.places}, nil
	default:
	}
	kept := g.claim(source) // nil, in which nothing has room, for who has had his share
	select {
	case kept <- struct{}{}:
		return place{kept, source}, nil
	default:
	}
	p, err := g.await(ctx, kept, source)
	if kept != nil && p.of != kept {
		g.unclaim(source)
	}
	return p, err
}

func (g *gate) await(ctx context.Context, kept chan struct{}, source string) (place, error) {
	if !g.join(source) {
		return place{}, flood("requests wait")
	}
	defer g.quit(source)
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	select {
	case g.places <- struct{}{}:
		return place{of: g.places}, nil
	case kept <- struct{}{}:
		return place{kept, source}, nil
	case <-ctx.Done():
		return place{}, ctx.Err()
	case <-timer.C:
		p := refuse(http.StatusServiceUnavailable, codeUnavailable, "this node is busy with other requests; try again or use another node")
		p.retry = floodRetry
		return place{}, p
	}
}

// join takes a place in the queue, of which one source gets a quarter.
func (g *gate) join(source string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.queued.Load() >= g.queue || g.waiting[source] >= max(1, int(g.queue/4)) {
		return false
	}
	g.queued.Add(1)
	g.waiting[source]++
	return true
}

func (g *gate) quit(source string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queued.Add(-1)
	if g.waiting[source]--; g.waiting[source] == 0 {
		delete(g.waiting, source)
	}
}

func (g *gate) leave(p place) {
	<-p.of
	if p.of == g.kept {
		g.unclaim(p.source)
	}
}

// claim gives the kept places to a source that has few of them.
func (g *gate) claim(source string) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.from[source] >= g.few {
		return nil
	}
	g.from[source]++
	return g.kept
}

func (g *gate) unclaim(source string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.from[source]--; g.from[source] == 0 {
		delete(g.from, source)
	}
}

const floodRetry = 5 * time.Second

// flood refuses a client at once.
func flood(what string) error {
	p := refuse(http.StatusTooManyRequests, codeTooManyRequests, "too many %s at this node; try again later or use another node", what)
	p.retry = floodRetry
	return p
}

const defaultBodyIdle = time.Minute

// minProgress is what a client must send within each idle time: a connection that drips single bytes holds a place and a
// session as if it were living.
const minProgress = 1 << 10

// steadyBody is a request's body that must make progress: minProgress bytes, or the end, within each idle time that is
// spent waiting for the client. There is no limit to the whole, so an upload of hours lives, and the time that this node's
// own disk takes is not the client's. Errors come out as *bodyError, to tell the client's faults from ours.
type steadyBody struct {
	body    io.ReadCloser
	control *http.ResponseController
	idle    time.Duration
	left    time.Duration // of the idle time
	fresh   int64         // bytes since left was last filled up
	whole   bool          // it isn't filled up
	count   atomic.Int64  // bytes in all
	err     error
}

// steady wraps the body of r and starts its clock; without a body it returns nil and changes nothing.
func steady(w http.ResponseWriter, r *http.Request, idle time.Duration) *steadyBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	if r.ProtoMajor > 1 {
		idle *= 2 // a relay, whose own clock runs first
	}
	b := &steadyBody{body: r.Body, control: http.NewResponseController(w), idle: idle, left: idle}
	// What the handler leaves unread the server reads, with this deadline.
	_ = b.control.SetReadDeadline(time.Now().Add(idle))
	r.Body = b
	return b
}

// within bounds the time for the whole of what is left, for a body that holds more than a place.
func (b *steadyBody) within(d time.Duration) {
	if b != nil {
		b.whole, b.idle, b.left = true, d, d
	}
}

func (b *steadyBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	started := time.Now()
	_ = b.control.SetReadDeadline(started.Add(b.left))
	n, err := b.body.Read(p)
	b.left -= time.Since(started)
	b.fresh += int64(n)
	b.count.Add(int64(n))
	if b.fresh >= minProgress && !b.whole {
		b.fresh, b.left = 0, b.idle
	}
	switch {
	case errors.Is(err, io.EOF):
		// The server now watches the connection for a hang-up, which must not end by our deadline.
		_ = b.control.SetReadDeadline(time.Time{})
		b.err = io.EOF
	case err != nil:
		b.err = &bodyError{err: err}
	}
	return n, b.err
}

func (b *steadyBody) Close() error { return b.body.Close() }

// sendBytes sends a body that is in memory, to a client that may not keep it there for ever.
func sendBytes(w http.ResponseWriter, body []byte, idle time.Duration) error {
	steady := &steadyWriter{w: w, control: http.NewResponseController(w), idle: idle}
	defer func() { _ = steady.control.SetWriteDeadline(time.Time{}) }()
	for len(body) > 0 {
		n, err := steady.Write(body[:min(len(body), steadyPiece)])
		if err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}

// steadyPiece is how much a client must take within an idle time: about 1 KiB a second, as it must send.
const steadyPiece = 64 << 10

// copySteady sends n bytes of src. The deadline moves with each piece, so a slow client lives and a stuck one doesn't hold
// the file for ever. A file goes to w in limited readers, from which a TCP connection makes sendfile; of anything else only
// the time that the client takes counts.
func copySteady(w http.ResponseWriter, src io.Reader, n int64, idle time.Duration) (int64, error) {
	steady := &steadyWriter{w: w, control: http.NewResponseController(w), idle: idle}
	defer func() { _ = steady.control.SetWriteDeadline(time.Time{}) }()
	if _, ok := src.(*os.File); !ok {
		return io.CopyBuffer(steady, io.LimitReader(src, n), make([]byte, min(steadyPiece, max(n, 1))))
	}
	var sent int64
	for sent < n {
		steady.extend()
		m, err := io.CopyN(w, src, min(steadyPiece, n-sent))
		sent += m
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// steadyWriter gives each write its own idle time.
type steadyWriter struct {
	w       io.Writer
	control *http.ResponseController
	idle    time.Duration
}

func (s *steadyWriter) extend() { _ = s.control.SetWriteDeadline(time.Now().Add(s.idle)) }

func (s *steadyWriter) Write(p []byte) (int, error) {
	s.extend()
	return s.w.Write(p)
}
