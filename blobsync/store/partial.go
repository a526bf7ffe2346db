package store

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Partial is a blob on its way from a peer. One goroutine writes; any number may read what has come, which is unverified
// until Finish. It keeps its file open until Finish, Abort or Close.
type Partial struct {
	s    *Store
	d    digest.Digest
	want int64
	f    *os.File

	mu      sync.Mutex
	size    int64
	hash    hash.Hash
	room    int64
	grown   chan struct{}
	ended   bool
	outcome error
}

// NewPartial begins a fetch, or goes on with what an earlier one left.
func (s *Store) NewPartial(d digest.Digest, size int64) (*Partial, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	path := s.partialPath(d)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("begin to fetch %s: %w", d, noSpace(err))
	}
	p := &Partial{s: s, d: d, want: size, f: f, hash: d.Algorithm().Hash(), grown: make(chan struct{})}
	n, err := io.Copy(p.hash, f)
	if err == nil && n > size {
		n = 0
		p.hash = d.Algorithm().Hash()
		err = f.Truncate(0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("go on fetching %s: %w", d, err)
	}
	p.size = n
	return p, nil
}

func (s *Store) partialPath(d digest.Digest) string {
	return s.path("fetches", string(d.Algorithm())+"-"+d.Encoded())
}

// Size is how many bytes have come.
func (p *Partial) Size() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size
}

// Write adds to the end. More bytes than the blob has are refused.
func (p *Partial) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size+int64(len(b)) > p.want {
		return 0, &DamagedError{Digest: p.d}
	}
	if p.room < int64(len(b)) {
		if err := p.s.room(min(roomEvery, p.want-p.size)); err != nil {
			return 0, err
		}
		p.room = roomEvery
	}
	p.room -= int64(len(b))
	n, err := p.f.WriteAt(b, p.size)
	p.hash.Write(b[:n])
	p.size += int64(n)
	close(p.grown)
	p.grown = make(chan struct{})
	return n, noSpace(err)
}

// ReadAt reads what has come, also after Finish for those who are still at it.
func (p *Partial) ReadAt(b []byte, at int64) (int, error) { return p.f.ReadAt(b, at) }

// WaitFor returns once more than offset bytes have come or the fetch has ended: how many there are, whether they are
// final and verified, and why not where it failed.
func (p *Partial) WaitFor(ctx context.Context, offset int64) (size int64, done bool, err error) {
	for {
		p.mu.Lock()
		size, done, err, grown := p.size, p.ended, p.outcome, p.grown
		p.mu.Unlock()
		if done || size > offset {
			return size, done, err
		}
		select {
		case <-ctx.Done():
			return size, false, ctx.Err()
		case <-grown:
		}
	}
}

// Finish verifies the whole, fsyncs it and makes it a blob. Bytes with another digest are dropped, as a *DamagedError.
func (p *Partial) Finish() error {
	if p.Size() != p.want {
		return fmt.Errorf("%s ended after %d of %d bytes: %w", p.d, p.Size(), p.want, io.ErrUnexpectedEOF)
	}
	if digest.NewDigest(p.d.Algorithm(), p.hash) != p.d {
		_ = os.Remove(p.s.partialPath(p.d))
		return &DamagedError{Digest: p.d}
	}
	if err := p.f.Sync(); err != nil {
		_ = os.Remove(p.s.partialPath(p.d))
		return fmt.Errorf("make %s durable: %w", p.d, noSpace(err))
	}
	return p.s.adopt(p.s.partialPath(p.d), p.d, p.want)
}

// End tells the readers how it went; the bytes that came stay for the next try. Readers may go on until Close.
func (p *Partial) End(outcome error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.ended, p.outcome = true, outcome
	close(p.grown)
	p.grown = make(chan struct{})
}

// Close releases the file.
func (p *Partial) Close() error { return p.f.Close() }

// Abort drops what has come.
func (p *Partial) Abort() error {
	p.End(errors.New("the fetch was given up"))
	return errors.Join(p.f.Close(), os.Remove(p.s.partialPath(p.d)))
}
