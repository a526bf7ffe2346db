package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
)

// mapState is a replicated state of the smallest kind: a map, nodes and invites, with one JSON document as its file. It
// outlives the Cluster that it is given to, as a file on disk would.
type mapState struct {
	mu       sync.Mutex
	data     document
	changed  chan struct{}
	received map[string]received
	redeems  int
	opening  func() // is told before the state itself is copied for a follower
}

type document struct {
	Index, Term uint64
	Config      []byte
	ConfigIndex uint64
	Values      map[string]string
	Done        map[string][]byte // answers by command ID
	Nodes       map[NodeID]Record
	Invites     map[string]time.Time
	ClusterID   string
	Rotation    Rotation
	RotatedAt   uint64
}

type received struct {
	meta raft.SnapshotMeta
	body []byte
}

func newMapState() *mapState {
	return &mapState{changed: make(chan struct{}), received: map[string]received{}, data: document{
		Values: map[string]string{}, Done: map[string][]byte{}, Nodes: map[NodeID]Record{},
		Invites: map[string]time.Time{},
	}}
}

// clone is a copy of the disk as it is now.
func (s *mapState) clone() *mapState {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := newMapState()
	body, err := json.Marshal(s.data)
	if err = errors.Join(err, json.Unmarshal(body, &out.data)); err != nil {
		panic(err)
	}
	return out
}

type command struct {
	ID, Op, Key, Value string
	Node               Record
	Away, Draining     bool
	Hash               []byte
	Expires            time.Time
	Rotation           Rotation
	Was                uint64
}

type reply struct{ Value, Err string }

func (s *mapState) Apply(l *raft.Log) any { return s.ApplyBatch([]*raft.Log{l})[0] }

func (s *mapState) ApplyBatch(logs []*raft.Log) []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]any, len(logs))
	for i, l := range logs {
		if l.Index <= s.data.Index {
			continue
		}
		s.data.Index, s.data.Term = l.Index, l.Term
		if l.Type == raft.LogConfiguration {
			s.data.Config, s.data.ConfigIndex = bytes.Clone(l.Data), l.Index
			continue
		}
		out[i] = s.apply(l)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return out
}

func (s *mapState) apply(l *raft.Log) []byte {
	var c command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		panic(err)
	}
	if known, ok := s.data.Done[c.ID]; ok {
		return known
	}
	answer, err := json.Marshal(s.change(c, l))
	if err != nil {
		panic(err)
	}
	s.data.Done[c.ID] = answer
	return answer
}

func (s *mapState) change(c command, l *raft.Log) reply {
	switch d := &s.data; c.Op {
	case "put":
		old := d.Values[c.Key]
		d.Values[c.Key] = c.Value
		return reply{Value: old}
	case "add": // not idempotent by itself: shows commands that were applied twice
		d.Values[c.Key] += c.Value
	case "boot":
		known, ok := d.Nodes[c.Node.ID]
		if ok && (c.Node.Epoch < known.Epoch || c.Node.Epoch == known.Epoch && known.Nonce != c.Node.Nonce) {
			return reply{Err: "epoch"}
		}
		c.Node.Away, c.Node.Draining = known.Away, known.Draining
		d.Nodes[c.Node.ID] = c.Node
	case "forget":
		delete(d.Nodes, c.Node.ID)
	case "mark":
		n := d.Nodes[c.Node.ID]
		n.Away, n.Draining = c.Away, c.Draining
		d.Nodes[c.Node.ID] = n
	case "invite":
		d.Invites[string(c.Hash)] = c.Expires
	case "redeem":
		s.redeems++
		expires, ok := d.Invites[string(c.Hash)]
		delete(d.Invites, string(c.Hash))
		if !ok {
			return reply{Err: "used"}
		}
		if l.AppendedAt.After(expires) {
			return reply{Err: "expired"}
		}
	case "rotation":
		if d.RotatedAt != c.Was {
			return reply{Err: "changed"}
		}
		d.Rotation, d.RotatedAt = c.Rotation, l.Index
	case "cluster":
		if d.ClusterID == "" {
			d.ClusterID = c.Value
		}
	}
	return reply{}
}

func (s *mapState) StoreConfiguration(index uint64, cfg raft.Configuration) {
	s.ApplyBatch([]*raft.Log{{Index: index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(cfg)}})
}

func (s *mapState) AppliedIndex() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.Index
}

func (s *mapState) WaitApplied(ctx context.Context, index uint64) error {
	for {
		s.mu.Lock()
		done, next := s.data.Index >= index, s.changed
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

func (s *mapState) value(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.Values[key]
}

// tries is how many commands to use an invite were applied.
func (s *mapState) tries() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.redeems
}

type nothing struct{}

func (nothing) Persist(sink raft.SnapshotSink) error { return sink.Close() }
func (nothing) Release()                             {}

func (s *mapState) Snapshot() (raft.FSMSnapshot, error) { return nothing{}, nil }

func (s *mapState) Restore(r io.ReadCloser) error {
	fresh := newMapState()
	if err := json.NewDecoder(r).Decode(&fresh.data); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data = fresh.data
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

func (s *mapState) Snapshots() raft.SnapshotStore { return s }

func (s *mapState) meta() raft.SnapshotMeta {
	m := raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: "state", Index: s.data.Index, Term: s.data.Term, ConfigurationIndex: s.data.ConfigIndex}
	if s.data.Config != nil {
		m.Configuration = raft.DecodeConfiguration(s.data.Config)
	}
	return m
}

func (s *mapState) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data.Index == 0 {
		return nil, nil
	}
	m := s.meta()
	return []*raft.SnapshotMeta{&m}, nil
}

func (s *mapState) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.received[id]; ok {
		delete(s.received, id)
		return &r.meta, io.NopCloser(bytes.NewReader(r.body)), nil
	}
	if s.opening != nil {
		s.opening()
	}
	body, err := json.Marshal(s.data)
	m := s.meta()
	m.Size = int64(len(body))
	return &m, io.NopCloser(bytes.NewReader(body)), err
}

func (s *mapState) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &sink{state: s, meta: raft.SnapshotMeta{Version: v, ID: uuid.NewString(), Index: index, Term: term, Configuration: c, ConfigurationIndex: at}}, nil
}

type sink struct {
	bytes.Buffer
	state *mapState
	meta  raft.SnapshotMeta
}

func (k *sink) ID() string    { return k.meta.ID }
func (k *sink) Cancel() error { return nil }
func (k *sink) Close() error {
	if k.Len() > 0 {
		k.state.mu.Lock()
		defer k.state.mu.Unlock()
		k.state.received[k.meta.ID] = received{meta: k.meta, body: bytes.Clone(k.Bytes())}
	}
	return nil
}

// mapRecords proposes what the cluster keeps of itself.
type mapRecords struct {
	state   *mapState
	cluster *Cluster
	member  *member
}

func (r *mapRecords) do(ctx context.Context, c command) error {
	_, err := propose(ctx, r.cluster, c)
	return err
}

// propose proposes c under a fresh identity and decodes the answer.
func propose(ctx context.Context, to *Cluster, c command) (string, error) {
	c.ID = uuid.NewString()
	data, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	raw, _, err := to.Propose(ctx, data)
	if err != nil {
		return "", err
	}
	var a reply
	if err := json.Unmarshal(raw, &a); err != nil {
		return "", err
	}
	switch a.Err {
	case "":
		return a.Value, nil
	case "epoch":
		return "", ErrEpochUsed
	case "used":
		return "", ErrTokenUsed
	case "expired":
		return "", ErrTokenExpired
	case "changed":
		return "", ErrRotationChanged
	}
	return "", fmt.Errorf("refused: %s", a.Err)
}

func (r *mapRecords) Boot(ctx context.Context, rec Record) error {
	return r.do(ctx, command{Op: "boot", Node: rec})
}
func (r *mapRecords) Forget(ctx context.Context, id NodeID) error {
	return r.do(ctx, command{Op: "forget", Node: Record{ID: id}})
}
func (r *mapRecords) Mark(ctx context.Context, id NodeID, away, draining bool) error {
	return r.do(ctx, command{Op: "mark", Node: Record{ID: id}, Away: away, Draining: draining})
}
func (r *mapRecords) CreateInvite(ctx context.Context, hash []byte, expires time.Time) error {
	return r.do(ctx, command{Op: "invite", Hash: hash, Expires: expires})
}
func (r *mapRecords) RedeemInvite(ctx context.Context, hash []byte) error {
	return r.do(ctx, command{Op: "redeem", Hash: hash})
}
func (r *mapRecords) Invited(hash []byte) (bool, error) {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	_, ok := r.state.data.Invites[string(hash)]
	return ok, nil
}
func (r *mapRecords) Rotation() (Rotation, uint64, error) {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return r.state.data.Rotation, r.state.data.RotatedAt, nil
}
func (r *mapRecords) PutRotation(ctx context.Context, next Rotation, was uint64) error {
	if h := r.member.house.proposing.Load(); h != nil {
		if err := (*h)(next); err != nil {
			return err
		}
	}
	err := r.do(ctx, command{Op: "rotation", Rotation: next, Was: was})
	if h := r.member.house.proposed.Load(); h != nil { // a step may have been taken though its proposer heard of no answer
		(*h)(next)
	}
	return err
}
func (r *mapRecords) SetClusterID(ctx context.Context, id string) error {
	return r.do(ctx, command{Op: "cluster", Value: id})
}
func (r *mapRecords) ClusterID() (string, error) {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return r.state.data.ClusterID, nil
}
func (r *mapRecords) Nodes() ([]Record, error) {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return slices.Collect(maps.Values(r.state.data.Nodes)), nil
}

// blobGuard says that a node holds the last copies of what is listed under it.
type blobGuard struct {
	mu   sync.Mutex
	only map[NodeID][]string
}

func (g *blobGuard) OnlyOn(_ context.Context, id NodeID, limit int) ([]string, int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := g.only[id]
	return all[:min(limit, len(all))], len(all), nil
}
