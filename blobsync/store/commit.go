package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// adopt makes a whole, verified and fsynced file the final one, one at a time for a digest. A blob that is there already
// stays when it is whole, and the file goes. An ErrLost means that both are gone.
func (s *Store) adopt(path string, d digest.Digest, size int64) error {
	defer s.settle(d)()
	final := s.blobPath(d)
	dir := filepath.Dir(final)
	if err := s.makeFolder(dir); err != nil {
		return err
	}
	there, err := s.isWhole(d)
	if err != nil {
		return err
	}
	if there {
		// It may be of a process that was killed before its fsync.
		if err := s.syncs.sync(dir); err != nil {
			return fmt.Errorf("make %s durable: %w", d, noSpace(err))
		}
		return os.Remove(path)
	}
	s.hide(d, true)
	defer s.hide(d, false)
	if err := os.Rename(path, final); err != nil {
		return fmt.Errorf("make %s final: %w", d, noSpace(err))
	}
	if err := s.syncs.sync(dir); err != nil {
		// What a disk keeps after a failed fsync nobody knows, so this never was a blob.
		return errors.Join(fmt.Errorf("%w: make %s durable: %w", ErrLost, d, noSpace(err)), os.Remove(final))
	}
	if f, err := os.Open(final); err == nil {
		if st, err := stampOf(f); err == nil {
			s.verified.Store(d, st)
		}
		_ = f.Close()
	}
	s.count(1, size)
	s.hide(d, false)
	s.notify()
	return nil
}

// isWhole verifies what is there already: a damaged file goes to quarantine rather than stand in the way of a good one.
func (s *Store) isWhole(d digest.Digest) (bool, error) {
	f, err := s.Open(d)
	var damaged *DamagedError
	switch {
	case err == nil:
		return true, f.Close()
	case errors.Is(err, ErrUnknown), errors.As(err, &damaged):
		return false, nil
	}
	return false, err
}

// settle makes the caller the one who makes the digest final, until it calls what it gets.
func (s *Store) settle(d digest.Digest) (settled func()) {
	mine := &settling{done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := s.settling[d]; other != nil; other = s.settling[d] {
		s.mu.Unlock()
		<-other.done
		s.mu.Lock()
	}
	s.settling[d] = mine
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.settling, d)
		close(mine.done)
	}
}

func (s *Store) hide(d digest.Digest, hidden bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settling[d].hidden = hidden
}

// hidden tells of a file whose name isn't durable yet.
func (s *Store) hidden(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settling[d] != nil && s.settling[d].hidden
}

// makeFolder makes a folder and its name durable, once for all of a process: one that is there already may be another's
// whose fsync is still under way, or failed.
func (s *Store) makeFolder(dir string) error {
	if _, ok := s.durable.Load(dir); ok {
		return nil
	}
	err := os.Mkdir(dir, 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = s.syncs.sync(filepath.Dir(dir))
	}
	if err != nil {
		return fmt.Errorf("make a folder for blobs: %w", noSpace(err))
	}
	s.durable.Store(dir, true)
	return nil
}

// syncFile makes a file's bytes durable. One that can't be is lost: the kernel may drop its pages and call the next fsync
// a success.
func (s *Store) syncFile(f *os.File) error {
	if err := s.fsync(f); err != nil {
		return fmt.Errorf("%w: make it durable: %w", ErrLost, noSpace(err))
	}
	return nil
}

func (s *Store) syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(s.fsync(f), f.Close())
}
