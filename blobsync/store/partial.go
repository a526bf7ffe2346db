package store

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Partial is a blob on its way from a peer. One goroutine writes; any number may read what has come, which is unverified
// until Finish. It keeps its file open until Close.
type Partial struct {
	s     *Store
	d     digest.Digest
	want  int64
	found int64 // bytes of an earlier process, which Resume reads again
	f     *os.File

	mu      sync.Mutex
	size    int64
	hash    hash.Hash
	room    int64
	grown   chan struct{}
	lost    bool
	ended   bool
	outcome error
}

// half is the hash of what an earlier try of this process left.
type half struct {
	hash hash.Hash
	size int64
}

// NewPartial begins a fetch, or goes on with what an earlier one left: Resume comes before the first Write.
func (s *Store) NewPartial(d digest.Digest, size int64) (*Partial, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.partialPath(d), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("begin to fetch %s: %w", d, noSpace(err))
	}
	p := &Partial{s: s, d: d, want: size, f: f, hash: d.Algorithm().Hash(), grown: make(chan struct{})}
	info, err := f.Stat()
	if err == nil && info.Size() > size {
		err = f.Truncate(0)
	} else if err == nil {
		p.found = info.Size()
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("go on fetching %s: %w", d, err)
	}
	if kept, ok := s.halves.LoadAndDelete(d); ok && kept.(half).size <= p.found {
		p.hash, p.size = kept.(half).hash, kept.(half).size
	}
	return p, nil
}

// Resume hashes what an earlier process left. Its bytes count as they are read; what can't be read is fetched again.
func (p *Partial) Resume(ctx context.Context) error {
	buf := make([]byte, bufferSize)
	for p.Size() < p.found {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := p.f.ReadAt(buf[:min(int64(len(buf)), p.found-p.Size())], p.Size())
		p.mu.Lock()
		p.add(buf[:n])
		p.mu.Unlock()
		if err != nil {
			return nil
		}
	}
	return nil
}

// add counts bytes that are in the file. The caller holds mu.
func (p *Partial) add(b []byte) {
	p.hash.Write(b)
	p.size += int64(len(b))
	close(p.grown)
	p.grown = make(chan struct{})
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
		if err := p.s.Room(p.want - p.size); err != nil {
			return 0, err
		}
		p.room = roomEvery
	}
	p.room -= int64(len(b))
	n, err := p.f.WriteAt(b, p.size)
	p.add(b[:n])
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
		return errors.Join(&DamagedError{Digest: p.d}, p.drop())
	}
	err := p.s.syncFile(p.f)
	if err == nil {
		err = p.s.adopt(p.s.partialPath(p.d), p.d, p.want)
	}
	if errors.Is(err, ErrLost) {
		return errors.Join(err, p.drop())
	}
	return err
}

// drop forgets the bytes: the next try begins anew.
func (p *Partial) drop() error {
	p.mu.Lock()
	p.lost = true
	p.mu.Unlock()
	err := os.Remove(p.s.partialPath(p.d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// End tells the readers how it went; the bytes that came stay for the next try. Readers may go on until Close.
func (p *Partial) End(outcome error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.ended, p.outcome = true, outcome
	if outcome != nil && !p.lost {
		p.s.halves.Store(p.d, half{hash: p.hash, size: p.size})
	}
	close(p.grown)
	p.grown = make(chan struct{})
}

// Close releases the file.
func (p *Partial) Close() error { return p.f.Close() }

// SweepFetches drops what unfinished fetches of blobs left that nobody keeps.
func (s *Store) SweepFetches(keep func(digest.Digest) bool) error {
	entries, err := os.ReadDir(s.path("fetches"))
	if err != nil {
		return fmt.Errorf("look for unfinished fetches: %w", err)
	}
	for _, e := range entries {
		algorithm, encoded, _ := strings.Cut(e.Name(), "-")
		d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
		if d.Validate() == nil && keep(d) {
			continue
		}
		s.halves.Delete(d)
		err = errors.Join(err, os.Remove(s.path("fetches", e.Name())))
	}
	return err
}
