package blobsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// minProgress is what a peer must send within each idle time: one that drips single bytes would never be given up.
const minProgress = 16 << 10

// joinPatience is how long a peer that was asked to join in may take to its first byte. It may wait for one that it can't
// reach, but this node can.
const joinPatience = 2 * time.Second

var errIdle = errors.New("it sent too little for too long")

// body is a blob's bytes from a peer, from an offset on. Only the time that is spent waiting for the peer counts against
// it: not this node's disk, not its rate limit.
type body struct {
	io.Closer
	ctx    context.Context // ends with the idle time; a reader has no other way to say why
	cancel context.CancelCauseFunc
	from   io.Reader
	timer  *time.Timer
	idle   time.Duration
	left   time.Duration
	fresh  int
}

// request asks a peer for the blob's bytes from offset on.
func (s *Sync) request(ctx context.Context, src source, b Blob, offset int64) (*body, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &body{ctx: ctx, cancel: cancel, idle: s.cfg.IdleTimeout, left: s.cfg.IdleTimeout}
	r.timer = time.AfterFunc(r.idle, func() { cancel(errIdle) })
	if src.join {
		first := time.AfterFunc(joinPatience, func() { cancel(errNotThere) })
		defer first.Stop()
	}
	url := fmt.Sprintf("http://%s/blobs/%s", src.id, b.Digest)
	if src.join {
		url += "?join=1"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, errors.Join(err, r.end())
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	resp, err := s.peers.Transport().RoundTrip(req)
	r.timer.Stop()
	if err != nil {
		return nil, errors.Join(r.why(err), r.end())
	}
	r.Closer, r.from = resp.Body, resp.Body
	if err := checkPart(resp, offset); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// checkPart wants a success that begins at the offset.
func checkPart(resp *http.Response, offset int64) error {
	begins := int64(0)
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		text, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "-")
		var err error
		if begins, err = strconv.ParseInt(text, 10, 64); err != nil {
			return fmt.Errorf("answered Content-Range %q", resp.Header.Get("Content-Range"))
		}
	case http.StatusNotFound:
		return errNotThere
	default:
		return fmt.Errorf("answered %s", resp.Status)
	}
	if begins != offset {
		return fmt.Errorf("answered from %d on, not from %d", begins, offset)
	}
	return nil
}

// errNotThere is a peer's honest no.
var errNotThere = errors.New("it has not got it")

func (r *body) Read(p []byte) (int, error) {
	started := time.Now()
	r.timer.Reset(r.left)
	n, err := r.from.Read(p)
	r.timer.Stop()
	r.left -= time.Since(started)
	if r.fresh += n; r.fresh >= minProgress {
		r.fresh, r.left = 0, r.idle
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.why(err)
	}
	return n, err
}

// why prefers the reason for which this side gave up.
func (r *body) why(err error) error {
	if cause := context.Cause(r.ctx); errors.Is(cause, errIdle) || errors.Is(cause, errNotThere) {
		return cause
	}
	return err
}

func (r *body) end() error {
	r.timer.Stop()
	r.cancel(nil)
	return nil
}

func (r *body) Close() error { return errors.Join(r.end(), r.Closer.Close()) }
