package fsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/vmihailenco/msgpack/v5"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Config says where the state lives and whom to tell when it can't go on.
type Config struct {
	Path   string
	Logger *slog.Logger
	// Fatal is called once when applying must stop: an unknown command or a failed write. From then on nothing is answered
	// to Raft but the error ErrHalted in an answer's place, and the process should end.
	Fatal func(error)
}

// State is the replicated state. Raft's goroutine applies; any number of others may query at the same time.
type State struct {
	cfg Config

	access atomic.Uint64 // see AccessVersion

	// swap is held for reading while a transaction begins, and for writing while an installed snapshot takes the file's place.
	swap sync.RWMutex
	db   *bolt.DB

	mu       sync.Mutex
	applied  uint64
	changed  chan struct{}
	installs uint64
	halted   error
	received map[string]*received // snapshots that came whole and wait to be installed
}

// Open opens or makes the state file. A file that another process holds is an error after five seconds.
func Open(cfg Config) (*State, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(error) {}
	}
	s := &State{cfg: cfg, changed: make(chan struct{}), received: make(map[string]*received)}
	if err := removeLeftovers(cfg.Path); err != nil {
		return nil, err
	}
	db, err := openFile(cfg.Path)
	if err != nil {
		return nil, err
	}
	s.db = db
	err = db.View(func(tx *bolt.Tx) error {
		s.applied = readNumber(tx, keyApplied)
		s.access.Store(readNumber(tx, keyAccess))
		return nil
	})
	if err != nil {
		_ = db.Close()
		return nil, err
	}
	return s, nil
}

// mapped is how much of the address space the file gets at once. A file that outgrows its mapping is mapped anew, for which
// bbolt waits until all reads have ended: what is applied would wait for a copy of the state.
const mapped = 8 << 30

func openFile(path string) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: 5 * time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, InitialMmapSize: mapped,
	})
	if err != nil {
		return nil, fmt.Errorf("open the state file %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = db.View(understood)
	}
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("prepare the state file: %w", err)
	}
	return db, nil
}

// Close waits for queries under way and closes the file.
func (s *State) Close() error {
	s.swap.Lock()
	defer s.swap.Unlock()
	s.dropReceived()
	return s.db.Close()
}

// Apply applies one entry; Raft uses ApplyBatch instead.
func (s *State) Apply(l *raft.Log) any { return s.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies entries in one fsynced transaction and gives an encoded answer for each command. Entries that the
// file already holds are passed over: Raft replays its log after a restart. A state that has stopped gives an error and no
// bytes: the entry is committed, and the proposer will hear its answer from the next leader.
func (s *State) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	for i := range answers {
		answers[i] = ErrHalted
	}
	if s.isHalted() {
		return answers
	}
	fresh := make([][]byte, len(logs))
	s.swap.RLock()
	last := s.AppliedIndex()
	err := s.db.Update(func(tx *bolt.Tx) error {
		c := &change{tx: tx}
		c.load()
		for i, l := range logs {
			if l.Index <= last {
				continue
			}
			answer, err := c.entry(l)
			if err != nil {
				return fmt.Errorf("entry %d: %w", l.Index, err)
			}
			fresh[i] = answer
			last = l.Index
			putNumber(tx, keyApplied, l.Index)
			putNumber(tx, keyTerm, l.Term)
		}
		if err := c.store(); err != nil {
			return err
		}
		s.access.Store(readNumber(tx, keyAccess)) // now, before it is committed: see AccessVersion
		return nil
	})
	s.swap.RUnlock()
	if err != nil {
		s.halt(err)
		return answers
	}
	for i, a := range fresh {
		answers[i] = a
	}
	s.advance(last)
	return answers
}

// entry applies one log entry. Its error means that the state can't go on; a refusal is an answer.
func (c *change) entry(l *raft.Log) ([]byte, error) {
	c.index = l.Index
	if l.Type == raft.LogConfiguration {
		return nil, c.configuration(l.Index, l.Data)
	}
	if l.Type != raft.LogCommand {
		return nil, nil
	}
	id, cmd, err := Decode(l.Data)
	var unknown *UnknownCommandError
	if errors.As(err, &unknown) {
		unknown.Newest = newestVersion(c.tx)
		return nil, err
	}
	if err != nil {
		return encodeAnswer(nil, err), nil
	}
	c.level = max(c.level, Level(cmd))
	c.clock(l.AppendedAt)
	if known, err := c.recall(id); known != nil || err != nil {
		return encodeKnown(known, err), nil
	}
	answer := encodeAnswer(cmd.apply(c))
	return answer, errors.Join(c.err, c.remember(id, answer))
}

func encodeKnown(known []byte, err error) []byte {
	if err != nil {
		return encodeAnswer(nil, err)
	}
	return known
}

// clock moves the state's time to the leader's stamp, never backwards. Milliseconds, since every stamp is stored.
func (c *change) clock(stamp time.Time) {
	if ms := uint64(max(stamp.UnixMilli(), 0)); !stamp.IsZero() && ms > c.now {
		c.now = ms
	}
}

// Time is the newest stamp of a leader that the state has seen, by which what expires does.
func (s *State) Time() (time.Time, error) {
	var out time.Time
	err := s.view(func(tx *bolt.Tx) error {
		out = time.UnixMilli(int64(readNumber(tx, keyTime)))
		return nil
	})
	return out, err
}

func (c *change) configuration(index uint64, data []byte) error {
	return c.tx.Bucket(bucketMeta).Put(keyConfiguration, append(binary.BigEndian.AppendUint64(nil, index), data...))
}

// StoreConfiguration is Raft's way to hand over a configuration outside a batch.
func (s *State) StoreConfiguration(index uint64, cfg raft.Configuration) {
	s.ApplyBatch([]*raft.Log{{Index: index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(cfg)}})
}

func (s *State) halt(err error) {
	s.mu.Lock()
	first := s.halted == nil
	if first {
		s.halted = err
	}
	s.mu.Unlock()
	if first {
		s.cfg.Fatal(fmt.Errorf("the replicated state can't go on: %w", err))
	}
}

func (s *State) isHalted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.halted != nil
}

func (s *State) advance(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = max(s.applied, index)
	close(s.changed)
	s.changed = make(chan struct{})
}

// AppliedIndex is the index of the last command or configuration that the file holds. Raft's no-ops don't count.
func (s *State) AppliedIndex() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied
}

// Changed is closed when the next batch or snapshot is in. Take it before reading.
func (s *State) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Installs counts the snapshots that took the file's place.
func (s *State) Installs() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.installs
}

// WaitApplied returns once the state holds the command or configuration at index, or ctx ends.
func (s *State) WaitApplied(ctx context.Context, index uint64) error {
	for {
		s.mu.Lock()
		done, next := s.applied >= index, s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
}

// view runs a read transaction, to its end on the file with which it began. After Close there is nothing to read: ErrHalted.
func (s *State) view(fn func(*bolt.Tx) error) error {
	s.swap.RLock()
	tx, err := s.db.Begin(false)
	s.swap.RUnlock()
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return fmt.Errorf("%w: its file is closed", ErrHalted)
	}
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	return fn(tx)
}

func decode(data []byte, v any) error {
	if err := msgpack.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode a record of the state: %w", err)
	}
	return nil
}
