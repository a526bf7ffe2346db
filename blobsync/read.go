package blobsync

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"pier/blobsync/store"
)

// heldBack is how much of a blob a client doesn't get before the whole is verified.
const heldBack = 64 << 10

// Open gives a blob's content: the file itself when it is on this disk, else a reader that follows its fetch, or passes by
// a full disk. The reader stops at end, and gives the last bytes before it only after verification. A damaged file is
// replaced from a peer first. ErrNoHolder when nobody who can be reached has it.
func (s *Sync) Open(ctx context.Context, b Blob, end int64) (io.ReadSeekCloser, error) {
	f, err := s.store.Open(b.Digest)
	if err == nil {
		return f, nil
	}
	s.mend(b.Digest, err)
	var damaged *store.DamagedError
	if !errors.Is(err, store.ErrUnknown) && !errors.As(err, &damaged) {
		return nil, err
	}
	for range s.peers.Nodes() {
		r, err := s.follow(ctx, b, end)
		switch {
		case err == nil:
			return r, nil
		case errors.Is(err, store.ErrNoSpace):
			return s.pass(ctx, b, end)
		case !errors.As(err, &damaged):
			return nil, err
		}
		// Nothing was shown yet, and the next try asks others first.
	}
	return nil, fmt.Errorf("%w: %w", ErrNoHolder, damaged)
}

// follow boards the blob's fetch. The first byte that may be shown, or the failure, decides what the client is told.
func (s *Sync) follow(ctx context.Context, b Blob, end int64) (*follower, error) {
	if err := s.store.Room(b.Size); err != nil {
		return nil, err
	}
	fl, err := s.board(b)
	if err != nil {
		return nil, err
	}
	fl.urgent.Store(true)
	first := int64(0)
	if end <= heldBack {
		first = b.Size
	}
	if _, _, err := fl.partial.WaitFor(ctx, first); err != nil {
		fl.release()
		return nil, err
	}
	return &follower{ctx: ctx, flight: fl, end: end}, nil
}

// follower reads a blob while it comes, up to end.
type follower struct {
	ctx    context.Context // of the request that reads; a reader has no other way to hear of its end
	flight *flight
	at     int64
	end    int64
}

func (r *follower) Read(p []byte) (int, error) {
	if r.at >= r.end {
		return 0, io.EOF
	}
	// Wait for at least one byte that may be shown: before the held-back part, or after verification.
	need, shown := r.at, r.end-heldBack
	if r.at >= shown {
		need = r.flight.blob.Size
	}
	have, done, err := r.flight.partial.WaitFor(r.ctx, need)
	if err != nil {
		return 0, err
	}
	if done {
		shown = r.end
	}
	if n := min(have, shown) - r.at; int64(len(p)) > n {
		p = p[:n]
	}
	n, err := r.flight.partial.ReadAt(p, r.at)
	r.at += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (r *follower) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.end
	}
	if offset < 0 {
		return 0, errors.New("a negative position")
	}
	r.at = offset
	return offset, nil
}

func (r *follower) Close() error {
	r.flight.release()
	return nil
}

// Doubt is for a reader of an opened blob whom the disk failed: the next one gets a file that was verified anew, or healed.
func (s *Sync) Doubt(d digest.Digest) { s.store.Doubt(d) }

// Reachable tells whether this node or one that answers has the blob.
func (s *Sync) Reachable(ctx context.Context, b Blob) bool {
	if s.has(b) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.IdleTimeout)
	defer cancel()
	answers := make(chan bool)
	asked := 0
	for _, n := range s.peers.Nodes() {
		if n.ID == s.peers.Self() || !n.Up {
			continue
		}
		asked++
		go func() {
			have, err := s.askHave(ctx, n.ID, []Blob{b})
			select {
			case answers <- err == nil && len(have) > 0:
			case <-ctx.Done():
			}
		}()
	}
	for range asked {
		select {
		case yes := <-answers:
			if yes {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
	return false
}
