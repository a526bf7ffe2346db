package blobsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pier/blobsync/store"
)

const copyBuffer = 256 << 10

// flight is the one fetch of a digest that all share who want it.
type flight struct {
	blob    Blob
	partial *store.Partial
	done    chan struct{}
	err     error       // set before done is closed
	urgent  atomic.Bool // somebody waits for it

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
	if s.has(b) {
		return nil
	}
	f, err := s.board(b)
	if err != nil {
		return err
	}
	return f.wait(ctx)
}

// has tells whether the blob is on this disk. A file of another size is verified, which takes it out of the way.
func (s *Sync) has(b Blob) bool {
	size, err := s.store.Stat(b.Digest)
	if err == nil && size != b.Size {
		if f, err := s.store.Open(b.Digest); err == nil {
			_ = f.Close()
		}
	}
	return err == nil && size == b.Size
}

// wait returns with the end of the flight, and releases it.
func (f *flight) wait(ctx context.Context) error {
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
	from, err := s.collect(ctx, f)
	if err == nil {
		err = f.partial.Finish()
	}
	if damaged := (*DamagedError)(nil); errors.As(err, &damaged) {
		for _, id := range from {
			s.cfg.Logger.Warn("a fetch brought wrong bytes", "digest", f.blob.Digest, "peer", id)
			s.trust.lied(id, time.Now())
		}
	}
	s.mu.Lock()
	f.partial.End(err) // what it keeps of the hash is for the next flight
	delete(s.flights, f.blob.Digest)
	s.mu.Unlock()
	f.err = err
	close(f.done)
	f.mu.Lock()
	f.ended = true
	f.closeIdle()
	f.mu.Unlock()
	if err == nil && s.cfg.Replicas > 0 {
		s.consider(f.blob, s.peers.Nodes()) // a copy that only passed through is to go again
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.Debug("a fetch ended", "digest", f.blob.Digest, "err", err)
	}
}

// source is a peer to fetch from; join lets it begin to fetch the blob itself.
type source struct {
	id   NodeID
	join bool
}

// sources lists the peers to try: those that seem to be up and didn't fail lately, then the rest. Only nodes earlier in
// the chain are asked to join in, so no two wait for each other.
func (s *Sync) sources(b Blob) []source {
	nodes, now := s.peers.Nodes(), time.Now()
	order := chain(b, nodes)
	me := slices.Index(order, s.peers.Self())
	up := make(map[NodeID]bool, len(nodes))
	for _, n := range nodes {
		up[n.ID] = n.Up && !s.trust.doubtful(n.ID, now)
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

// collect brings all of the bytes, and says from whom.
func (s *Sync) collect(ctx context.Context, f *flight) (from []NodeID, err error) {
	if err := f.partial.Resume(ctx); err != nil || f.partial.Size() == f.blob.Size {
		return nil, err
	}
	if err := s.store.Room(f.blob.Size - f.partial.Size()); err != nil {
		return nil, err // before anything is sent for nothing
	}
	var failed []error
	for _, src := range s.sources(f.blob) {
		before := f.partial.Size()
		err := s.pull(ctx, f, src)
		if f.partial.Size() > before {
			from = append(from, src.id)
		}
		if err == nil {
			s.trust.worked(src.id, time.Now())
			return from, nil
		}
		if errors.Is(err, store.ErrNoSpace) || ctx.Err() != nil {
			return from, err
		}
		if !errors.Is(err, errNotThere) && !errors.Is(err, io.EOF) {
			s.trust.failed(src.id, time.Now())
		}
		failed = append(failed, fmt.Errorf("%s: %w", src.id, err))
	}
	return from, fmt.Errorf("%w: %w", ErrNoHolder, errors.Join(failed...))
}

// pull fetches what is missing from one peer.
func (s *Sync) pull(ctx context.Context, f *flight, src source) error {
	from, err := s.request(ctx, src, f.blob, f.partial.Size())
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	buf := make([]byte, copyBuffer)
	for f.partial.Size() < f.blob.Size {
		n, err := from.Read(buf[:min(s.turn(f), f.blob.Size-f.partial.Size())])
		s.fetched.Add(int64(n))
		if n > 0 && s.limit != nil {
			if err := s.limit.WaitN(ctx, n); err != nil {
				return err
			}
		}
		if _, err := f.partial.Write(buf[:n]); err != nil {
			return err
		}
		if err != nil && f.partial.Size() < f.blob.Size {
			return err
		}
	}
	return nil
}

// turn is how much a flight takes at a time. Under a rate limit turns come round in order, so one that nobody waits for
// takes little of it.
func (s *Sync) turn(f *flight) int64 {
	if s.limit != nil && !f.urgent.Load() {
		return copyBuffer / 8
	}
	return copyBuffer
}
