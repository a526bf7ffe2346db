package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// The file is the snapshot. Raft's snapshot store is a view of it: its newest snapshot is the file's own applied index,
// taking one writes nothing, and only a follower that must be caught up makes the file stream, in one read transaction and
// with a checksum behind it. What a follower receives waits in a file of its own until Raft restores it by its ID.

const (
	ownSnapshot    = "state"
	receivedSuffix = ".received-"
)

// received is a snapshot that came whole.
type received struct {
	path string
	meta raft.SnapshotMeta
}

// Snapshot gives Raft a snapshot that is already on disk.
// A state that has stopped has none: Raft would cut off entries that it takes for applied.
func (s *State) Snapshot() (raft.FSMSnapshot, error) {
	if s.isHalted() {
		return nil, ErrHalted
	}
	return ownFile{}, nil
}

type ownFile struct{}

func (ownFile) Persist(sink raft.SnapshotSink) error { return sink.Close() }
func (ownFile) Release()                             {}

// Snapshots is the state file as Raft's snapshot store.
func (s *State) Snapshots() raft.SnapshotStore { return snapshots{s} }

type snapshots struct{ s *State }

// Create makes a sink. Its file comes with the first byte: this node's own snapshot needs none, and must not need room on
// a full disk, since the log is cut behind it.
func (v snapshots) Create(version raft.SnapshotVersion, index, term uint64, cfg raft.Configuration, cfgIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	meta := raft.SnapshotMeta{Version: version, ID: uuid.NewString(), Index: index, Term: term, Configuration: cfg, ConfigurationIndex: cfgIndex}
	return &sink{s: v.s, meta: meta}, nil
}

// List gives the snapshots that can be opened, newest first.
func (v snapshots) List() ([]*raft.SnapshotMeta, error) {
	var own *raft.SnapshotMeta
	err := v.s.view(func(tx *bolt.Tx) error {
		var err error
		own, err = ownMeta(tx)
		return err
	})
	if err != nil || own == nil {
		return nil, err
	}
	return []*raft.SnapshotMeta{own}, nil
}

// ownMeta describes the file as the transaction sees it; nil when nothing has been applied.
func ownMeta(tx *bolt.Tx) (*raft.SnapshotMeta, error) {
	index := readNumber(tx, keyApplied)
	stored := tx.Bucket(bucketMeta).Get(keyConfiguration)
	if index == 0 || len(stored) < 8 {
		return nil, nil
	}
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: ownSnapshot, Index: index, Term: readNumber(tx, keyTerm),
		ConfigurationIndex: binary.BigEndian.Uint64(stored), Configuration: raft.DecodeConfiguration(bytes.Clone(stored[8:])),
		Size: tx.Size() + sha256.Size,
	}, nil
}

// Open streams a snapshot. The description of the own file comes from the same transaction as its bytes: the file goes on
// while it is read.
func (v snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if id == ownSnapshot {
		return v.s.openOwn()
	}
	v.s.mu.Lock()
	r := v.s.received[id]
	v.s.mu.Unlock()
	if r == nil {
		return nil, nil, fmt.Errorf("no snapshot %s", id)
	}
	f, err := os.Open(r.path)
	if err != nil {
		return nil, nil, fmt.Errorf("open the received snapshot: %w", err)
	}
	meta := r.meta
	return &meta, f, nil
}

// openOwn copies the file aside first: a transaction that stays open while a slow follower reads would keep every page
// that is freed meanwhile.
func (s *State) openOwn() (*raft.SnapshotMeta, io.ReadCloser, error) {
	path := s.cfg.Path + receivedSuffix + "out-" + uuid.NewString()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("copy the state for a follower: %w", err)
	}
	_ = os.Remove(path) // the open file is all that is needed
	var meta *raft.SnapshotMeta
	sum := sha256.New()
	err = s.view(func(tx *bolt.Tx) error {
		if meta, err = ownMeta(tx); err != nil {
			return err
		}
		if meta == nil {
			return errors.New("the state is empty")
		}
		_, err := tx.WriteTo(io.MultiWriter(f, sum))
		return err
	})
	if err == nil {
		_, err = f.Write(sum.Sum(nil))
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("copy the state for a follower: %w", err)
	}
	return meta, f, nil
}

// sink takes a snapshot's bytes. One that got none is this node's own and keeps nothing.
type sink struct {
	s    *State
	f    *os.File // nil before the first byte
	meta raft.SnapshotMeta
	done bool // Raft closes a sink that its snapshot has closed already
}

func (k *sink) ID() string { return k.meta.ID }

func (k *sink) Write(p []byte) (int, error) {
	if k.f == nil {
		f, err := os.OpenFile(k.s.cfg.Path+receivedSuffix+k.meta.ID, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return 0, fmt.Errorf("make a file for a snapshot: %w", err)
		}
		k.f = f
	}
	n, err := k.f.Write(p)
	k.meta.Size += int64(n)
	return n, err
}

func (k *sink) Cancel() error {
	if k.done || k.f == nil {
		return nil
	}
	k.done = true
	return errors.Join(k.f.Close(), os.Remove(k.f.Name()))
}

func (k *sink) Close() error {
	if k.done || k.f == nil {
		return nil
	}
	if err := k.f.Sync(); err != nil {
		_ = k.Cancel()
		return fmt.Errorf("sync the received snapshot: %w", err)
	}
	k.done = true
	k.s.dropReceived() // Raft takes in one at a time: what is still here wasn't installed and won't be
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.s.received[k.meta.ID] = &received{path: k.f.Name(), meta: k.meta}
	return k.f.Close()
}

// Restore puts a received snapshot in the file's place: copied and checked first, then swapped by rename, so that a crash
// leaves the old file or the new one. Queries under way end on the old one. Whatever comes of it, the received file goes:
// after a failure Raft sends the snapshot anew.
func (s *State) Restore(r io.ReadCloser) error {
	defer s.dropReceived()
	next := s.cfg.Path + receivedSuffix + "next"
	if err := copyChecked(next, r); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	db, err := openFile(next)
	if newer := new(NewerStateError); errors.As(err, &newer) {
		s.halt(err) // Raft would send the same snapshot again and again
	}
	if err != nil {
		return errors.Join(err, os.Remove(next))
	}
	var index, access uint64
	err = db.View(func(tx *bolt.Tx) error {
		index, access = readNumber(tx, keyApplied), readNumber(tx, keyAccess)
		return nil
	})
	if err == nil {
		err = os.Rename(next, s.cfg.Path)
	}
	if err != nil {
		return fmt.Errorf("install the snapshot: %w", errors.Join(err, db.Close(), os.Remove(next)))
	}
	if err := syncDir(filepath.Dir(s.cfg.Path)); err != nil {
		s.halt(err) // nobody knows which of the two files a restart would find
		return errors.Join(err, db.Close())
	}
	s.access.Store(access) // before anybody can read the file: see AccessVersion
	old := s.swapIn(db)
	s.mu.Lock()
	s.installs++
	s.applied = index
	s.mu.Unlock()
	s.advance(index)
	return old.Close()
}

// swapIn gives the old file back, on which queries may still be under way: closing it waits for them.
func (s *State) swapIn(db *bolt.DB) *bolt.DB {
	s.swap.Lock()
	defer s.swap.Unlock()
	old := s.db
	s.db = db
	return old
}

func (s *State) dropReceived() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, got := range s.received {
		_ = os.Remove(got.path)
		delete(s.received, id)
	}
}

// copyChecked writes all but the trailing checksum to path, fsynced, and refuses bytes that don't match it.
func copyChecked(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600) // it has the hashes of passwords
	if err != nil {
		return fmt.Errorf("make the new state file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t := &trailer{w: f, sum: sha256.New()}
	if _, err := io.Copy(t, r); err != nil {
		return fmt.Errorf("copy the snapshot: %w", err)
	}
	if !bytes.Equal(t.sum.Sum(nil), t.held) {
		return errors.New("the snapshot was damaged on its way")
	}
	return f.Sync()
}

// trailer writes everything but the last sha256.Size bytes, which it holds.
type trailer struct {
	w    io.Writer
	sum  hash.Hash
	held []byte
}

func (t *trailer) Write(p []byte) (int, error) {
	all := append(t.held, p...)
	cut := max(len(all)-sha256.Size, 0)
	t.sum.Write(all[:cut])
	if _, err := t.w.Write(all[:cut]); err != nil {
		return 0, err
	}
	t.held = bytes.Clone(all[cut:])
	return len(p), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeLeftovers clears what a crash left of snapshots under way.
func removeLeftovers(path string) error {
	old, err := filepath.Glob(path + receivedSuffix + "*")
	for _, f := range old {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}
