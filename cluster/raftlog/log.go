package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bolt "go.etcd.io/bbolt"
)

const lockPatience = 5 * time.Second

// Config says where the log lives and whom to tell when its disk fails.
type Config struct {
	Path      string
	HangLimit time.Duration // 10 s when zero
	Fatal     func(error)   // called once
	// Snapshot gives the index and term up to which the state is durable elsewhere.
	Snapshot func() (index, term uint64)
	// Found is told of each entry that is there already, and its size; nil doesn't want to know.
	Found func(index uint64, size int)
	// Stored is told the index of the last entry that was written; nil doesn't want to know.
	Stored func(index uint64)
}

// Store is Raft's log store and stable store. Safe for concurrent use.
type Store struct {
	*raftboltdb.BoltStore
	cfg  Config
	once sync.Once
}

// Open opens or makes the file.
func Open(cfg Config) (*Store, error) {
	if cfg.HangLimit == 0 {
		cfg.HangLimit = 10 * time.Second
	}
	if err := survey(cfg); err != nil {
		return nil, fmt.Errorf("look through the raft log %s: %w", cfg.Path, err)
	}
	b, err := raftboltdb.New(raftboltdb.Options{
		Path: cfg.Path, MsgpackUseNewTimeFormat: true,
		BoltOptions: &bolt.Options{Timeout: lockPatience, NoFreelistSync: true, FreelistType: bolt.FreelistMapType},
	})
	if err != nil {
		return nil, fmt.Errorf("open the raft log %s: %w", cfg.Path, err)
	}
	return &Store{BoltStore: b, cfg: cfg}, nil
}

// survey tells of the entries, by their sizes alone: their bytes stay on the disk. raft-boltdb shows its file to nobody, so
// it is looked into before.
func survey(cfg Config) error {
	info, err := os.Stat(cfg.Path)
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 || cfg.Found == nil {
		return nil
	}
	if err != nil {
		return err
	}
	db, err := bolt.Open(cfg.Path, 0o600, &bolt.Options{Timeout: lockPatience, ReadOnly: true})
	if err != nil {
		return err
	}
	err = db.View(func(tx *bolt.Tx) error {
		logs := tx.Bucket([]byte("logs")) // raft-boltdb's name
		if logs == nil {
			return nil
		}
		return logs.ForEach(func(k, v []byte) error {
			cfg.Found(binary.BigEndian.Uint64(k), len(v))
			return nil
		})
	})
	return errors.Join(err, db.Close())
}

// watched runs a write under the watchdog.
func (s *Store) watched(what string, write func() error) error {
	dog := time.AfterFunc(s.cfg.HangLimit, func() {
		s.die(fmt.Errorf("%s has hung for %s: the disk of the raft log does not answer", what, s.cfg.HangLimit))
	})
	err := write()
	dog.Stop()
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
		s.die(err)
	}
	return err
}

func (s *Store) die(err error) {
	s.once.Do(func() { s.cfg.Fatal(err) })
}

// StoreLog writes one entry, durably.
func (s *Store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs writes entries, durably.
func (s *Store) StoreLogs(l []*raft.Log) error {
	err := s.watched("write the raft log", func() error { return s.BoltStore.StoreLogs(l) })
	if err == nil && len(l) > 0 && s.cfg.Stored != nil {
		s.cfg.Stored(l[len(l)-1].Index)
	}
	return err
}

// DeleteRange removes entries. What the state doesn't hold yet is never cut off the front: the state counts commands, and
// Raft's snapshot index may be ahead of it by its own no-ops.
func (s *Store) DeleteRange(first, last uint64) error {
	if applied, _ := s.cfg.Snapshot(); first <= applied {
		last = min(last, applied)
	}
	return s.watched("shorten the raft log", func() error { return s.BoltStore.DeleteRange(first, last) })
}

// Set writes a vote or a term, durably.
func (s *Store) Set(k, v []byte) error {
	return s.watched("write the raft vote", func() error { return s.BoltStore.Set(k, v) })
}

// SetUint64 writes a vote or a term, durably.
func (s *Store) SetUint64(k []byte, v uint64) error {
	return s.watched("write the raft term", func() error { return s.BoltStore.SetUint64(k, v) })
}

// GetLog reads an entry. For the snapshot's own index it answers with that term when the entry is gone: a leader that can't
// tell the term there would send its follower snapshots for ever (hashicorp/raft issue 697).
func (s *Store) GetLog(index uint64, l *raft.Log) error {
	err := s.BoltStore.GetLog(index, l)
	if !errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	if applied, term := s.cfg.Snapshot(); index == applied && term > 0 {
		*l = raft.Log{Index: index, Term: term, Type: raft.LogNoop}
		return nil
	}
	return err
}
