package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"pier/cluster/port"
)

const (
	maxAppend = 512
	logCache  = 1024
	// minRPCTimeout is the silence after which a connection of Raft is given up. Short, so that a link that was cut without a
	// word is dialled anew soon after it is whole again.
	minRPCTimeout = 3 * time.Second
	headerTimeout = 10 * time.Second
	commitPause   = 2 * time.Millisecond // until a follower hears what is committed, while there is anything to hear
	poolPerPeer   = 3
	addressMark   = "@"
)

func (c *Cluster) raftConfig() *raft.Config {
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(c.ID())
	cfg.HeartbeatTimeout, cfg.ElectionTimeout = c.cfg.RaftTimeout, c.cfg.RaftTimeout
	cfg.LeaderLeaseTimeout = c.cfg.RaftTimeout / 2
	cfg.CommitTimeout = commitPause
	cfg.MaxAppendEntries = maxAppend
	cfg.BatchApplyCh = true
	cfg.TrailingLogs = c.cfg.TrailingLogs
	cfg.SnapshotInterval = c.cfg.SnapshotInterval
	cfg.SnapshotThreshold = c.cfg.SnapshotThreshold
	cfg.NoSnapshotRestoreOnStart = true // the state file is never older than its own snapshot
	cfg.ShutdownOnRemove = false        // a removed node must be able to say so
	cfg.NoLegacyTelemetry = true
	cfg.Logger = newRaftLogger(c.cfg.Logger)
	return cfg
}

func (c *Cluster) openRaft() error {
	opened := make(chan struct{}) // Raft's goroutines begin before its pointer is in place
	defer close(opened)
	cfg := c.raftConfig()
	inner := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: addressBook{c, opened}, Stream: &raftStream{Listener: c.port.Listener(port.ProtoRaft), port: c.port},
		MaxPool: poolPerPeer, MaxRPCsInFlight: 2, Timeout: c.rpcTimeout(), Logger: cfg.Logger, MsgpackUseNewTimeFormat: true,
	})
	c.transport = newGatedTransport(inner, newPipelines(&c.tail, c.cfg.RaftTimeout))
	c.transport.tasks = &c.tasks
	c.transport.pause = min(c.cfg.RaftTimeout/4, 250*time.Millisecond)
	c.transport.again = func(id NodeID, term uint64) bool {
		<-opened
		_, member := c.server(id)
		return member && c.leading() && c.raft.CurrentTerm() == term
	}
	c.transport.answers = func(id NodeID) bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := c.report(ctx, id)
		return err == nil
	}
	cached, err := raft.NewLogCache(logCache, c.log)
	if err != nil {
		return err
	}
	used, err := raft.HasExistingState(cached, c.log, c.state.Snapshots())
	if err != nil {
		return fmt.Errorf("look at the raft log: %w", err)
	}
	if c.identity.Member && !used {
		return fmt.Errorf("%s is gone, and with it this node's votes: %w", logFile, ErrEpochUsed)
	}
	c.cache = cached
	c.raft, err = raft.NewRaft(cfg, c.meter, cached, c.log, c.state.Snapshots(), c.transport)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	c.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if now, ok := o.Data.(raft.LeaderObservation); ok { // in Raft's own goroutine: nothing here waits
			if now.LeaderID == "" {
				c.dead.lostLeader(c.cfg.Now())
			}
			c.newLeader.notify()
		}
		return false
	}))
	return nil
}

func (c *Cluster) rpcTimeout() time.Duration { return max(minRPCTimeout, 3*c.cfg.RaftTimeout) }

// addressBook finds where a member is now. It puts the ID into the address, so that the connection can insist on it.
type addressBook struct {
	c      *Cluster
	opened <-chan struct{}
}

func (b addressBook) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	<-b.opened
	address, err := b.c.addressOf(NodeID(id))
	if err != nil {
		return "", err
	}
	return raft.ServerAddress(string(id) + addressMark + address), nil
}

// addressOf prefers what a live node says of itself to what the configuration knows: it may have moved.
func (c *Cluster) addressOf(id NodeID) (string, error) {
	if h, ok := c.gossip.hint(id); ok && h.State == stateAlive && h.Cluster != "" {
		return h.Cluster, nil
	}
	if s, ok := c.server(id); ok && !strings.HasPrefix(string(s.Address), replacedPrefix) {
		return string(s.Address), nil
	}
	return "", fmt.Errorf("%w: %s", ErrNodeUnknown, id)
}

var errGate = errors.New("this node does not vote until others confirm that its memory is whole")

// gatedTransport keeps a node out of elections until its boot epoch is confirmed: a disk from last week has forgotten
// votes and entries, and would help to elect a leader that lacks what was acknowledged. Appending is harmless.
type gatedTransport struct {
	*raft.NetworkTransport
	tasks   *crew
	out     chan raft.RPC
	stopped chan struct{}
	once    sync.Once
	gate    atomic.Bool // open

	// again tells whether an append to a silent peer is worth another try in this term, answers whether a peer is there.
	again    func(id NodeID, term uint64) bool
	answers  func(id NodeID) bool
	pause    time.Duration
	released chan struct{}
	release  sync.Once

	pipelines *pipelines
}

func newGatedTransport(t *raft.NetworkTransport, p *pipelines) *gatedTransport {
	return &gatedTransport{NetworkTransport: t, pipelines: p, out: make(chan raft.RPC), stopped: make(chan struct{}), released: make(chan struct{})}
}

func (t *gatedTransport) open()        { t.gate.Store(true) }
func (t *gatedTransport) shut()        { t.gate.Store(false) }
func (t *gatedTransport) isOpen() bool { return t.gate.Load() }

// letGo ends the appends that wait for silent peers. It must come before Raft's shutdown, which waits for them.
func (t *gatedTransport) letGo() {
	t.release.Do(func() {
		close(t.released)
		t.pipelines.end()
	})
}

// AppendEntries tries a silent peer again and again, instead of telling Raft. Raft would wait longer after each failure, up
// to ten seconds, and for that long a node that comes back would get nothing but heartbeats: it would know the leader and
// miss what was acknowledged. Heartbeats themselves fail as they do, since the leader's lease rests on them.
func (t *gatedTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	for {
		err := t.NetworkTransport.AppendEntries(id, target, args, resp)
		heartbeat := args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
		if err == nil || heartbeat || !t.again(NodeID(id), args.Term) || !t.rest() {
			return err
		}
	}
}

// rest waits before another try, or tells that there is to be none.
func (t *gatedTransport) rest() bool {
	select {
	case <-t.released:
		return false
	case <-time.After(t.pause):
		return true
	}
}

// InstallSnapshot tells Raft that a snapshot didn't arrive only when the peer is there again. Raft would copy the state for
// each try, and wait longer after each, up to ten seconds. The copy at hand goes: it would be old by then.
func (t *gatedTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	err := t.NetworkTransport.InstallSnapshot(id, target, args, resp, data)
	if copied, ok := data.(io.Closer); ok && err != nil {
		_ = copied.Close()
	}
	for err != nil && t.again(NodeID(id), args.Term) && !t.answers(NodeID(id)) && t.rest() {
	}
	return err
}

func (t *gatedTransport) stop() {
	t.letGo()
	t.once.Do(func() { close(t.stopped) })
	_ = t.NetworkTransport.Close()
}

// run passes inbound calls on, but for those of elections while the gate is shut.
func (t *gatedTransport) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.stopped:
			return nil
		case rpc := <-t.NetworkTransport.Consumer():
			if isElection(rpc.Command) && !t.isOpen() {
				rpc.Respond(nil, errGate)
				continue
			}
			select {
			case t.out <- rpc:
			case <-ctx.Done():
				return nil
			case <-t.stopped:
				return nil
			}
		}
	}
}

// electNow makes Raft stand for election without waiting whether there is a leader: the only voter knows that there is none.
func (t *gatedTransport) electNow(ctx context.Context) {
	select {
	case t.out <- raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, RespChan: make(chan raft.RPCResponse, 1)}:
	case <-ctx.Done():
	case <-t.stopped:
	}
}

func isElection(command any) bool {
	switch command.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest, *raft.TimeoutNowRequest:
		return true
	}
	return false
}

// SetHeartbeatHandler has heartbeats answered in the goroutine that reads them, as the library does. Its shutdown doesn't wait
// for one that is being answered: that would find the log closed, and ends the process when it can't write a newer term
// (hashicorp/raft v1.8.0, processHeartbeat; this can go when Shutdown waits).
func (t *gatedTransport) SetHeartbeatHandler(answer func(raft.RPC)) {
	t.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if !t.tasks.enter() {
			rpc.Respond(nil, raft.ErrRaftShutdown)
			return
		}
		defer t.tasks.done()
		answer(rpc)
	})
}

// Consumer gives Raft what may pass.
func (t *gatedTransport) Consumer() <-chan raft.RPC { return t.out }

// RequestVote asks for a vote, once the gate is open.
func (t *gatedTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if !t.isOpen() {
		return errGate
	}
	return t.NetworkTransport.RequestVote(id, target, args, resp)
}

// RequestPreVote asks whether a vote would be given, once the gate is open.
func (t *gatedTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if !t.isOpen() {
		return errGate
	}
	return t.NetworkTransport.RequestPreVote(id, target, args, resp)
}

// newRaftLogger turns the library's lines into ours. Its own levels are one too loud for an operator.
func newRaftLogger(l *slog.Logger) hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Info, Output: io.Discard})
	h.RegisterSink(slogSink{l})
	return h
}

type slogSink struct{ l *slog.Logger }

func (s slogSink) Accept(name string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	if level >= hclog.Error {
		to = slog.LevelInfo
	}
	s.l.With("part", name).Log(context.Background(), to, msg, printable(args)...)
}

func printable(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case error, string, fmt.Stringer:
			out[i] = v
		default:
			out[i] = fmt.Sprint(v)
		}
	}
	return out
}

// newStdLogger gives libraries that want the standard logger one that writes to ours.
func newStdLogger(l *slog.Logger, part string) *log.Logger {
	return slog.NewLogLogger(l.With("part", part).Handler(), slog.LevelDebug)
}

// Voting tells whether this node takes part in elections: its memory was found whole after its start.
func (c *Cluster) Voting() bool { return c.transport.isOpen() }
