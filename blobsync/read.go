package blobsync

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"

	"pier/blobsync/store"
)

// heldBack is how much of a blob a client doesn't get before the whole is verified.
const heldBack = 64 << 10

// Open gives a blob's content: the file itself when it is on this disk, else a reader that follows its fetch. A damaged
// file is replaced from a peer first. ErrNoHolder when nobody who can be reached has it.
func (s *Sync) Open(ctx context.Context, b Blob) (io.ReadSeekCloser, error) {
	f, err := s.store.Open(b.Digest)
	if err == nil {
		return f, nil
	}
	var damaged *store.DamagedError
	if !errors.Is(err, store.ErrUnknown) && !errors.As(err, &damaged) {
		return nil, err
	}
	fl, err := s.board(b)
	if err != nil {
		return nil, err
	}
	// The first byte, or the failure, decides what the client is told.
	if _, _, err := fl.partial.WaitFor(ctx, 0); err != nil {
		fl.release()
		return nil, err
	}
	return &follower{ctx: ctx, flight: fl}, nil
}

// follower reads a blob while it comes.
type follower struct {
	ctx    context.Context // of the request that reads; a reader has no other way to hear of its end
	flight *flight
	at     int64
}

func (r *follower) Read(p []byte) (int, error) {
	size := r.flight.blob.Size
	if r.at >= size {
		return 0, io.EOF
	}
	// Wait for at least one byte that may be shown: before the end of the held-back part, or after verification.
	need := r.at
	if r.at >= size-heldBack {
		need = size
	}
	have, done, err := r.flight.partial.WaitFor(r.ctx, need)
	if err != nil {
		return 0, err
	}
	if !done {
		have = min(have, size-heldBack)
	}
	if n := have - r.at; int64(len(p)) > n {
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
		offset += r.flight.blob.Size
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
	if _, err := s.store.Stat(b.Digest); err == nil {
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
