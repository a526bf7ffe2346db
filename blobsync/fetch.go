package blobsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"pier/blobsync/store"
)

const copyBuffer = 256 << 10

// flight is the one fetch of a digest that all share who want it.
type flight struct {
	blob    Blob
	partial *store.Partial
	done    chan struct{}
	err     error // set before done is closed

	mu      sync.Mutex
	readers int
	ended   bool
}

// hold keeps the file open for a reader.
func (f *flight) hold() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended && f.readers == 0 {
		return false
	}
	f.readers++
	return true
}

func (f *flight) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	f.closeIdle()
}

func (f *flight) closeIdle() {
	if f.ended && f.readers == 0 {
		_ = f.partial.Close()
	}
}

// fetch returns nil once the blob is on this disk.
func (s *Sync) fetch(ctx context.Context, b Blob) error {
	if _, err := s.store.Stat(b.Digest); err == nil {
		return nil
	}
	f, err := s.board(b)
	if err != nil {
		return err
	}
	defer f.release()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-f.done:
		return f.err
	}
}

// board joins the fetch under way, or begins one. The caller releases it.
func (s *Sync) board(b Blob) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[b.Digest]; f != nil && f.hold() {
		return f, nil
	}
	if s.running == nil || s.running.Err() != nil {
		return nil, fmt.Errorf("%w: this node is starting or stopping", ErrNoHolder)
	}
	p, err := s.store.NewPartial(b.Digest, b.Size)
	if err != nil {
		return nil, err
	}
	f := &flight{blob: b, partial: p, done: make(chan struct{}), readers: 1}
	s.flights[b.Digest] = f
	ctx := s.running
	s.work.Go(func() { s.fly(ctx, f) })
	return f, nil
}

// fly tries the holders one after the other; each goes on where the one before stopped.
func (s *Sync) fly(ctx context.Context, f *flight) {
	err := s.collect(ctx, f)
	if err == nil {
		err = f.partial.Finish()
	}
	s.mu.Lock()
	delete(s.flights, f.blob.Digest)
	s.mu.Unlock()
	f.err = err
	f.partial.End(err)
	close(f.done)
	f.mu.Lock()
	f.ended = true
	f.closeIdle()
	f.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.Debug("a fetch ended", "digest", f.blob.Digest, "err", err)
	}
}

// source is a peer to fetch from; join lets it begin to fetch the blob itself.
type source struct {
	id   NodeID
	join bool
}

// sources lists the peers to try. Only nodes earlier in the chain are asked to join in, so no two wait for each other.
func (s *Sync) sources(b Blob) []source {
	nodes := s.peers.Nodes()
	order := chain(b, nodes)
	me := slices.Index(order, s.peers.Self())
	up := make(map[NodeID]bool, len(nodes))
	for _, n := range nodes {
		up[n.ID] = n.Up
	}
	var live, doubtful []source
	add := func(id NodeID, join bool) {
		if up[id] {
			live = append(live, source{id, join})
		} else {
			doubtful = append(doubtful, source{id, join})
		}
	}
	for i := me - 1; i >= 0; i-- {
		add(order[i], true)
	}
	for i := me + 1; i < len(order); i++ {
		add(order[i], false)
	}
	return append(live, doubtful...)
}

func (s *Sync) collect(ctx context.Context, f *flight) error {
	if err := f.partial.Resume(ctx); err != nil || f.partial.Size() == f.blob.Size {
		return err
	}
	var failed []error
	for _, src := range s.sources(f.blob) {
		err := s.pull(ctx, f, src)
		if err == nil {
			return nil
		}
		if errors.Is(err, store.ErrNoSpace) || ctx.Err() != nil {
			return err
		}
		failed = append(failed, fmt.Errorf("%s: %w", src.id, err))
	}
	return fmt.Errorf("%w: %w", ErrNoHolder, errors.Join(failed...))
}

// pull fetches what is missing from one peer. A peer that sends nothing for the idle time is given up.
func (s *Sync) pull(ctx context.Context, f *flight, src source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(s.cfg.IdleTimeout, cancel)
	defer idle.Stop()
	url := fmt.Sprintf("http://%s/blobs/%s", src.id, f.blob.Digest)
	if src.join {
		url += "?join=1"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	offset := f.partial.Size()
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	resp, err := s.peers.Transport().RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("answered %s", resp.Status)
	}
	if resp.StatusCode == http.StatusOK && offset > 0 {
		if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			return err
		}
	}
	buf := make([]byte, copyBuffer)
	for f.partial.Size() < f.blob.Size {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			idle.Reset(s.cfg.IdleTimeout)
			s.fetched.Add(int64(n))
			if s.limit != nil {
				if err := s.limit.WaitN(ctx, n); err != nil {
					return err
				}
			}
			if _, err := f.partial.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil && f.partial.Size() < f.blob.Size {
			return err
		}
	}
	return nil
}

// handOver lets go of what this node holds without being meant to, once those that are have it.
func (s *Sync) handOver(ctx context.Context) {
	if s.cfg.Replicas == 0 {
		return
	}
	since, after := uint64(0), Blob{}.Digest
	for {
		page, more, err := s.index.Wanted(since, after, pageSize)
		if err != nil {
			return
		}
		nodes := s.peers.Nodes()
		for _, b := range page {
			since, after = b.Since, b.Digest
			if _, err := s.store.Stat(b.Digest); err != nil || s.mine(b, nodes) {
				continue
			}
			if s.heldBy(ctx, b, s.holders(b.Digest, nodes)) {
				if err := s.store.Release(b.Digest); err != nil {
					s.cfg.Logger.Warn("can't let go of a blob", "digest", b.Digest, "err", err)
				}
			}
		}
		if !more || ctx.Err() != nil {
			return
		}
	}
}

func (s *Sync) heldBy(ctx context.Context, b Blob, ids []NodeID) bool {
	for _, id := range ids {
		have, err := s.askHave(ctx, id, []Blob{b})
		if err != nil || len(have) == 0 {
			return false
		}
	}
	return len(ids) > 0
}
