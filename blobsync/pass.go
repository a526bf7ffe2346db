package blobsync

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// passing reads a blob from its holders past a disk that has no room for it. It reads the whole from the beginning, since
// nothing else can be verified, and goes on with the next holder when one fails.
type passing struct {
	s       *Sync
	ctx     context.Context // of the request that reads
	blob    Blob
	at, end int64 // what the reader gets next, and where it stops
	pos     int64 // what has been read and hashed
	hash    hash.Hash
	sources []source
	from    *body
	by      []NodeID // whose bytes have been read
	broken  error
	out     []byte // read, and not given yet: the bytes from at on
	buf     []byte
}

// pass begins to read; the first byte, or the failure, decides what the client is told.
func (s *Sync) pass(ctx context.Context, b Blob, end int64) (*passing, error) {
	r := &passing{
		s: s, ctx: ctx, blob: b, end: end, hash: b.Digest.Algorithm().Hash(), sources: s.sources(b), buf: make([]byte, copyBuffer),
	}
	if err := r.open(errNotThere); err != nil {
		return nil, err
	}
	return r, nil
}

// open turns to the next holder that answers.
func (r *passing) open(failed error) error {
	for r.from == nil {
		if len(r.sources) == 0 || r.ctx.Err() != nil {
			return errors.Join(fmt.Errorf("%w: %w", ErrNoHolder, failed), r.ctx.Err())
		}
		src := r.sources[0]
		r.sources = r.sources[1:]
		src.join = false // nobody begins to fetch because of this node's disk
		var err error
		if r.from, err = r.s.request(r.ctx, src, r.blob, r.pos); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", src.id, err))
			continue
		}
		r.by = append(r.by, src.id)
	}
	return nil
}

func (r *passing) Read(p []byte) (int, error) {
	for r.broken == nil {
		shown := r.end - heldBack // before the whole is verified
		if r.pos == r.blob.Size {
			shown = r.end
		}
		if n := min(int64(len(r.out)), shown-r.at); n > 0 {
			m := copy(p, r.out[:n])
			r.out = r.out[m:]
			r.at += int64(m)
			return m, nil
		}
		if r.at >= r.end {
			return 0, io.EOF
		}
		r.broken = r.more()
	}
	return 0, r.broken
}

// more reads and hashes a piece; at the end it verifies.
func (r *passing) more() error {
	if err := r.open(io.ErrUnexpectedEOF); err != nil {
		return err
	}
	n, err := r.from.Read(r.buf[:min(int64(len(r.buf)), r.blob.Size-r.pos)])
	r.s.fetched.Add(int64(n))
	r.hash.Write(r.buf[:n])
	// out begins at max(at, pos); of this piece it gets what lies before the end.
	first := min(max(r.at-r.pos, 0), int64(n))
	last := min(max(r.end-r.pos, 0), int64(n))
	if first < last {
		r.out = append(r.out, r.buf[first:last]...)
	}
	r.pos += int64(n)
	if r.pos == r.blob.Size && digest.NewDigest(r.blob.Digest.Algorithm(), r.hash) != r.blob.Digest {
		for _, id := range r.by {
			r.s.trust.lied(id, time.Now())
		}
		return fmt.Errorf("%w: %w", ErrNoHolder, &DamagedError{Digest: r.blob.Digest})
	}
	if err != nil && r.pos < r.blob.Size {
		_ = r.from.Close()
		r.from = nil
	}
	return nil
}

// Seek says where to begin, before the first Read.
func (r *passing) Seek(offset int64, whence int) (int64, error) {
	if r.pos > 0 || whence != io.SeekStart || offset < 0 {
		return 0, errors.New("a blob that passes through can't be read again")
	}
	r.at = offset
	return offset, nil
}

func (r *passing) Close() error {
	if r.from == nil {
		return nil
	}
	return r.from.Close()
}
