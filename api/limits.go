package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// gate bounds the requests under way. One that finds no place waits in a bounded queue, since a 429 ends a push of docker
// or crane at once; only a flood is refused.
type gate struct {
	places chan struct{}
	queued atomic.Int64
	queue  int64
	wait   time.Duration
}

func newGate(inFlight, queue int, wait time.Duration) *gate {
	return &gate{places: make(chan struct{}, inFlight), queue: int64(queue), wait: wait}
}

// enter waits for a place; leave gives it back.
func (g *gate) enter(ctx context.Context) error {
	select {
	case g.places <- struct{}{}:
		return nil
	default:
	}
	if g.queued.Add(1) > g.queue {
		g.queued.Add(-1)
		return g.full()
	}
	defer g.queued.Add(-1)
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	select {
	case g.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return g.full()
	}
}

func (g *gate) leave() { <-g.places }

func (g *gate) full() error {
	p := refuse(http.StatusTooManyRequests, codeTooManyRequests, "too many requests wait at this node; try again later or use another node")
	p.retry = 5 * time.Second
	return p
}

const defaultBodyIdle = time.Minute

// minProgress is what a client must send within each idle time: a connection that drips single bytes holds a place and a
// session as if it were living.
const minProgress = 1 << 10

// steadyBody is a request's body that must make progress: minProgress bytes, or the end, within each idle time. There is
// no limit to the whole, so an upload of hours lives. Errors come out as *bodyError, to tell the client's faults from ours.
type steadyBody struct {
	body    io.ReadCloser
	control *http.ResponseController
	idle    time.Duration
	fresh   int64        // bytes since the deadline was last moved
	count   atomic.Int64 // bytes in all
	err     error
}

// steady wraps the body of r and starts its clock; without a body it returns nil and changes nothing.
func steady(w http.ResponseWriter, r *http.Request, idle time.Duration) *steadyBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &steadyBody{body: r.Body, control: http.NewResponseController(w), idle: idle}
	_ = b.control.SetReadDeadline(time.Now().Add(idle))
	r.Body = b
	return b
}

func (b *steadyBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.body.Read(p)
	b.fresh += int64(n)
	b.count.Add(int64(n))
	switch {
	case errors.Is(err, io.EOF):
		// The server now watches the connection for a hang-up, which must not end by our deadline.
		_ = b.control.SetReadDeadline(time.Time{})
		b.err = io.EOF
	case err != nil:
		b.err = &bodyError{err: err}
	case b.fresh >= minProgress:
		b.fresh = 0
		_ = b.control.SetReadDeadline(time.Now().Add(b.idle))
	}
	return n, b.err
}

func (b *steadyBody) Close() error { return b.body.Close() }

// sendBytes sends a body that is in memory, to a client that may not keep it there for ever.
func sendBytes(w http.ResponseWriter, body []byte, idle time.Duration) error {
	_, err := copySteady(w, bytes.NewReader(body), int64(len(body)), idle)
	return err
}

// steadyCopy is how much a client must take within an idle time.
const steadyCopy = 512 << 10

// copySteady sends n bytes of src. The deadline moves with each piece, so a slow client lives and a stuck one doesn't hold
// the file for ever. The pieces go to w as limited readers, from which a TCP connection makes sendfile.
func copySteady(w http.ResponseWriter, src io.Reader, n int64, idle time.Duration) (int64, error) {
	control := http.NewResponseController(w)
	defer func() { _ = control.SetWriteDeadline(time.Time{}) }()
	var sent int64
	for sent < n {
		_ = control.SetWriteDeadline(time.Now().Add(idle))
		m, err := io.CopyN(w, src, min(steadyCopy, n-sent))
		sent += m
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
