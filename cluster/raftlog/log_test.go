package raftlog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func open(t *testing.T, applied, term uint64, fatal func(error)) *Store {
	t.Helper()
	s, err := Open(Config{
		Path: filepath.Join(t.TempDir(), "raft.db"), Fatal: fatal,
		Snapshot: func() (uint64, uint64) { return applied, term },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFailedWriteIsFatalOnce(t *testing.T) {
	fatal := make(chan error, 2)
	s := open(t, 0, 0, func(err error) { fatal <- err })
	if err := s.StoreLog(&raft.Log{Index: 1, Term: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // the disk is gone
		t.Fatal(err)
	}
	if err := errors.Join(s.StoreLog(&raft.Log{Index: 2}), s.SetUint64([]byte("k"), 1)); err == nil {
		t.Error("a write to a closed file went well")
	}
	if err := <-fatal; err == nil || len(fatal) != 0 {
		t.Errorf("fatal: %v, and %d more", err, len(fatal))
	}
}

func TestHungWriteIsFatal(t *testing.T) {
	fatal := make(chan error, 1)
	s := open(t, 0, 0, func(err error) { fatal <- err })
	defer func() { _ = s.Close() }()
	s.cfg.HangLimit = 20 * time.Millisecond
	hung := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- s.watched("write", func() error { <-hung; return nil }) }()
	if err := <-fatal; err == nil {
		t.Error("nobody said why")
	}
	close(hung)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSnapshotIndexHasATerm(t *testing.T) {
	s := open(t, 7, 3, func(err error) { t.Error(err) })
	defer func() { _ = s.Close() }()
	var l raft.Log
	if err := s.GetLog(7, &l); err != nil || l.Term != 3 || l.Index != 7 {
		t.Errorf("%+v, %v", l, err)
	}
	if err := s.GetLog(8, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Error(err)
	}
}

func TestFoundAreTheEntriesOfAFormerLife(t *testing.T) {
	cfg := Config{Path: filepath.Join(t.TempDir(), "raft.db"), Snapshot: func() (uint64, uint64) { return 0, 0 }}
	if err := os.WriteFile(cfg.Path, nil, 0o600); err != nil { // a start that was cut off
		t.Fatal(err)
	}
	found := map[uint64]int{}
	cfg.Found = func(index uint64, size int) { found[index] = size }
	for life := range uint64(2) {
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.StoreLog(&raft.Log{Index: life + 1, Term: 1, Data: make([]byte, 5000)}), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if len(found) != 1 || found[1] < 5000 || found[1] > 6000 {
		t.Errorf("found %v", found)
	}
}

func TestFrontIsNeverCutBeyondTheState(t *testing.T) {
	s := open(t, 5, 1, func(err error) { t.Error(err) })
	defer func() { _ = s.Close() }()
	for i := range uint64(10) {
		if err := s.StoreLog(&raft.Log{Index: i + 1, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteRange(1, 8); err != nil {
		t.Fatal(err)
	}
	if first, err := s.FirstIndex(); err != nil || first != 6 {
		t.Errorf("first %d, %v", first, err)
	}
	if err := s.DeleteRange(9, 10); err != nil {
		t.Fatal(err)
	}
	if last, err := s.LastIndex(); err != nil || last != 8 {
		t.Errorf("last %d, %v", last, err)
	}
}
