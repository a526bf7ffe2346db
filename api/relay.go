package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"pier/blobsync"
	"pier/fsm"
)

const (
	relayConnect = 5 * time.Second // for a connection to the owner
	relayAnswer  = 5 * time.Minute // for the answer once the whole body has gone: a commit syncs and perhaps rereads
	relayPause   = 100 * time.Millisecond
	lingerTime   = time.Second // for a client to see an answer that came before the end of its body
	lingerBytes  = 4 << 20
)

// hopHeaders belong to one connection and are not passed on.
var hopHeaders = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"}

var errOwnerSilent = errors.New("the upload's node does not answer")

// relay sends a request for an upload to the node that has the session, and its answer back. An owner that doesn't answer
// gets a little time to come back, as long as nothing of the body is spent: sessions survive a restart. After that the
// upload is one that nobody knows, and clients begin the blob again.
func (a *API) relay(w http.ResponseWriter, r *http.Request, rt route) error {
	if r.Method == http.MethodPut { // which ends in a change, at a node that trusts this one
		if err := a.settled(r.Context()); err != nil {
			return err
		}
	}
	if a.cfg.Relay == nil || !a.isMember(r.Context(), rt.owner) {
		return blobsync.ErrUploadUnknown
	}
	began := time.Now()
	deadline := began.Add(a.cfg.RelayWait)
	for {
		spent, err := a.relayOnce(w, r, rt)
		if err == nil {
			return nil
		}
		if errors.Is(err, fsm.ErrAccessChanged) && time.Since(began) < settleWait {
			if err := a.catchUp(r.Context()); err != nil {
				return err
			}
			r = withoutBody(r) // the owner has it
			continue
		}
		var owner *ownerError
		if !errors.As(err, &owner) {
			return err // the client's own fault, which it may still be there to hear of
		}
		if r.Context().Err() != nil {
			return r.Context().Err()
		}
		if spent || time.Now().After(deadline) {
			a.logger.Warn("the node that has an upload can't be reached", "peer", rt.owner,
				"request", exchangeOf(r.Context()).id, "err", owner.err)
			return blobsync.ErrUploadUnknown
		}
		if err := pause(r.Context(), relayPause); err != nil {
			return err
		}
	}
}

// withoutBody is a final PUT that comes again: what it had for the upload is there already.
func withoutBody(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Body, r.ContentLength = http.NoBody, 0
	for _, name := range []string{"Content-Length", "Content-Range", "Content-Type"} {
		r.Header.Del(name)
	}
	return r
}

// ownerError is a failure between this node and the owner, before an answer began.
type ownerError struct{ err error }

func (e *ownerError) Error() string { return e.err.Error() }
func (e *ownerError) Unwrap() error { return e.err }

// isMember reports whether the state knows the node. An ID that it doesn't know is nobody's, and worth no wait.
func (a *API) isMember(ctx context.Context, id fsm.NodeID) bool {
	if a.knowsNode(id) {
		return true
	}
	return a.catchUp(ctx) == nil && a.knowsNode(id)
}

func (a *API) knowsNode(id fsm.NodeID) bool {
	nodes, err := a.state.Nodes()
	if err != nil {
		a.logger.Warn("can't read the nodes", "err", err)
	}
	for _, n := range nodes {
		if n.ID == id {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// relayOnce makes one try. spent tells that the request can't be tried again, since part of its body is gone. A client that
// goes away breaks its body off; once that is whole, the owner may finish.
func (a *API) relayOnce(w http.ResponseWriter, r *http.Request, rt route) (spent bool, err error) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	defer cancel(nil)
	connect := relayConnect
	if !a.cfg.Alive(rt.owner) {
		connect = time.Second
	}
	watch := time.AfterFunc(connect, func() { cancel(errOwnerSilent) })
	defer watch.Stop()
	moved := func(ended bool) {
		if ended {
			watch.Reset(relayAnswer)
		} else {
			watch.Reset(2 * a.cfg.BodyIdle) // the client's own deadline is half of that
		}
	}
	body := &relayBody{src: r.Body, expected: r.ContentLength != 0, moved: moved}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { moved(!body.expected) },
	})

	resp, err := a.cfg.Relay.RoundTrip(a.relayRequest(ctx, r, rt, body))
	if err != nil {
		cause := context.Cause(ctx)
		body.stop(w)
		if broken := body.broken(); broken != nil {
			return true, broken
		}
		return body.started.Load(), &ownerError{err: errors.Join(cause, err)}
	}
	defer func() { _ = resp.Body.Close() }()
	watch.Reset(relayAnswer)
	if resp.Header.Get(headerAccess) != "" {
		body.stop(w)
		return true, fsm.ErrAccessChanged
	}
	return true, a.copyAnswer(w, resp, body)
}

// relayRequest makes the request to the owner.
func (a *API) relayRequest(ctx context.Context, r *http.Request, rt route, body *relayBody) *http.Request {
	out := r.Clone(ctx)
	out.URL = &url.URL{Scheme: "http", Host: string(rt.owner), Path: "/relay" + rt.path(), RawQuery: r.URL.RawQuery}
	out.Host, out.RequestURI = "", ""
	out.Header.Set(headerRequestID, exchangeOf(r.Context()).id)
	for _, name := range hopHeaders {
		out.Header.Del(name)
	}
	exchangeOf(r.Context()).tellVersion(out.Header)
	out.Header.Del("Authorization") // it was decided here; no other node needs to see a password
	out.Body = body
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	return out
}

// copyAnswer passes the owner's answer on. It may come before the client has sent its whole body: then the client gets it
// at once, a moment to see it, and the end of the connection.
func (a *API) copyAnswer(w http.ResponseWriter, resp *http.Response, body *relayBody) error {
	early := body.expected && !body.ended.Load()
	control := http.NewResponseController(w)
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	for _, name := range hopHeaders {
		w.Header().Del(name)
	}
	if early {
		_ = control.EnableFullDuplex() // else HTTP/1 would first read the rest; HTTP/2 is that way already
		w.Header().Set("Connection", "close")
	}
	w.WriteHeader(resp.StatusCode)
	_, err := io.Copy(w, resp.Body)
	if early {
		_ = control.Flush()
		body.stop(w)
		_, _ = io.CopyN(io.Discard, body.src, lingerBytes)
	}
	if err != nil {
		return fmt.Errorf("copy the answer of an upload's node: %w", err)
	}
	return nil
}

// relayBody is a client's body on its way to the owner. The transport may read it after it has answered; stop ends that, so
// that nothing touches the request once its handler has returned.
type relayBody struct {
	src      io.Reader
	expected bool             // the request has a body at all
	moved    func(ended bool) // called after each read
	started  atomic.Bool
	ended    atomic.Bool
	stopped  atomic.Bool

	mu  sync.Mutex // held while a read is under way
	err error      // the client's failure, as opposed to the owner's
}

func (b *relayBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped.Load() {
		return 0, io.ErrClosedPipe
	}
	b.started.Store(true)
	n, err := b.src.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		b.ended.Store(true)
	case err != nil && !b.stopped.Load():
		b.err = err
	}
	b.moved(b.ended.Load())
	return n, err
}

// Close leaves the client's body open: it is the server's, and another try may want it.
func (b *relayBody) Close() error {
	b.stopped.Store(true)
	return nil
}

// stop returns once no read is under way and none can begin. A client that is silent just then has lingerTime to go on.
func (b *relayBody) stop(w http.ResponseWriter) {
	b.stopped.Store(true)
	if b.mu.TryLock() {
		b.mu.Unlock()
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(lingerTime))
	b.mu.Lock()
	defer b.mu.Unlock()
}

// broken is the client's failure, after stop.
func (b *relayBody) broken() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
