package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"pier/cluster/port"
	"pier/cluster/raftlog"
)

// State is what applies commands.
type State interface {
	raft.BatchingFSM
	raft.ConfigurationStore
	Snapshots() raft.SnapshotStore
	AppliedIndex() uint64
	WaitApplied(context.Context, uint64) error
}

// Records is what the cluster keeps of itself in the replicated state.
type Records interface {
	// Boot announces this node's start; ErrEpochUsed when the state knows a newer one.
	Boot(ctx context.Context, r Record, nonce string) error
	Forget(ctx context.Context, id NodeID) error
	Mark(ctx context.Context, id NodeID, away, draining bool) error
	CreateInvite(ctx context.Context, hash []byte, expires time.Time) error
	RedeemInvite(ctx context.Context, hash []byte) error
	SetClusterID(ctx context.Context, id string) error
	ClusterID() (string, error)
	Nodes() ([]Record, error)
}

// Record is a member as the state knows it.
type Record struct {
	ID                          NodeID
	Name, API, Cluster, Version string
	Epoch, Level                uint64
	Away, Draining              bool
}

// Guard says which blobs would go with a node.
type Guard interface {
	OnlyOn(ctx context.Context, id NodeID, limit int) (digests []string, total int, err error)
}

// Figures are what a node says of its blobs.
type Figures struct {
	Blobs, BlobsMissing, Bytes, DiskFree int64
}

// Config says who the node is and how patient it is. Zero times and counts mean the defaults.
type Config struct {
	DataDir, Name, Listen, Advertise, API string
	Join                                  []string
	BootstrapExpect                       int
	Secrets                               port.Secrets
	Network                               port.Network
	RaftTimeout, VoterDelay, RepairDelay  time.Duration
	MaxVoters                             int
	TrailingLogs                          uint64
	TrailingBytes                         int64
	SnapshotInterval                      time.Duration
	SnapshotThreshold                     uint64
	Version                               string
	Level                                 uint64
	PeerHandler                           http.Handler
	Figures                               func() Figures
	Fatal                                 func(error)
	Logger                                *slog.Logger
	Now                                   func() time.Time
}

func (c *Config) setDefaults() {
	set(&c.RaftTimeout, time.Second)
	set(&c.VoterDelay, 10*time.Second)
	set(&c.RepairDelay, 15*time.Minute)
	set(&c.MaxVoters, 5)
	set(&c.TrailingLogs, 100_000)
	set(&c.TrailingBytes, 256<<20)
	set(&c.SnapshotInterval, 30*time.Second)
	set(&c.SnapshotThreshold, 8192)
	if c.Now == nil {
		c.Now = time.Now
	}
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Cluster is this node's part in the cluster. Safe for concurrent use.
type Cluster struct {
	cfg       Config
	state     State
	records   Records
	guard     Guard
	log       *raftlog.Store
	port      *port.Port
	advertise string
	started   time.Time
	transport *gatedTransport
	raft      *raft.Raft
	gossip    *gossip
	peers     *http.Transport
	reads     *rounds
	ready     chan struct{}
	isReady   sync.Once
	killed    atomic.Bool
	stopRun   context.CancelFunc
	changing  sync.Mutex // one membership change or transfer at a time
	dead      *deaths

	mu       sync.Mutex
	identity identity
	removed  bool
}

// New opens the identity, the log and the port, so that Addr is known; nothing runs yet. Each New is a new boot.
func New(cfg Config, state State, records Records, guard Guard) (*Cluster, error) {
	cfg.setDefaults()
	c := &Cluster{cfg: cfg, state: state, records: records, guard: guard, started: cfg.Now(), ready: make(chan struct{})}
	if err := c.open(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) open() error {
	if err := finishJoin(c.cfg.DataDir); err != nil {
		return err
	}
	id, err := loadIdentity(c.cfg.DataDir)
	if err != nil {
		return err
	}
	if id.Left {
		return ErrLeft
	}
	id.Boot = boot{Epoch: id.Boot.Epoch + 1, Nonce: uuid.NewString()}
	if err := writeIdentity(c.cfg.DataDir, id); err != nil {
		return err
	}
	c.identity = id
	c.log, err = raftlog.Open(raftlog.Config{
		Path: filepath.Join(c.cfg.DataDir, logFile), Fatal: c.cfg.Fatal, Snapshot: c.durable,
	})
	if err != nil {
		return err
	}
	c.port, err = port.New(port.Config{
		ID: id.ID, Listen: c.cfg.Listen, Secrets: c.cfg.Secrets, Network: c.cfg.Network, Logger: c.cfg.Logger, Admit: c.admit,
	})
	if err != nil {
		return err
	}
	c.advertise = c.cfg.Advertise
	if c.advertise == "" {
		c.advertise = c.port.Addr()
	}
	c.peers = c.newPeerTransport()
	c.reads = newRounds()
	c.dead = newDeaths()
	if c.gossip, err = newGossip(gossipConfig{
		id: id.ID, meta: gossipMeta{Name: c.cfg.Name, API: c.cfg.API, Cluster: c.advertise}, port: c.port,
		advertise: c.advertise, keys: c.cfg.Secrets.GossipKeys(), logger: c.cfg.Logger,
	}); err != nil {
		return err
	}
	return c.openRaft()
}

// durable is the state's own index and term, as its newest snapshot says.
func (c *Cluster) durable() (index, term uint64) {
	list, err := c.state.Snapshots().List()
	if err != nil || len(list) == 0 {
		return 0, 0
	}
	return list[0].Index, list[0].Term
}

// Close releases the port and the log. It comes after Run, or in its place; more than once is fine.
func (c *Cluster) Close() {
	if c.gossip != nil {
		c.gossip.kill()
	}
	if c.raft != nil {
		_ = c.raft.Shutdown().Error()
	}
	if c.transport != nil {
		c.transport.stop()
	}
	if c.peers != nil {
		c.peers.CloseIdleConnections()
	}
	if c.port != nil {
		c.port.Close()
	}
	if c.log != nil {
		_ = c.log.Close()
		c.log = nil
	}
}

// Run takes part until ctx ends: then it says goodbye and closes. No goroutine is left when it returns.
func (c *Cluster) Run(ctx context.Context) error {
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	c.mu.Lock()
	c.stopRun = stop
	c.mu.Unlock()
	group, inner := errgroup.WithContext(inner)
	group.Go(func() error { return c.port.Run(inner) })
	group.Go(func() error { return c.transport.run(inner) })
	group.Go(func() error { return c.servePeers(inner) })
	group.Go(func() error { return serveJoins(inner, c.port.Listener(port.ProtoJoin), c.admitInvited) })
	group.Go(func() error { return c.gossip.run(inner) })
	group.Go(func() error { return c.becomeMember(inner) })
	group.Go(func() error { return c.lead(inner) })
	group.Go(func() error { return c.watchLog(inner) })
	if c.killed.Load() {
		stop()
	}
	select {
	case <-ctx.Done():
		if !c.killed.Load() {
			c.goodbye()
		}
	case <-inner.Done():
	}
	if c.killed.Load() {
		c.port.Close()
	}
	err := c.raft.Shutdown().Error()
	stop()
	if groupErr := group.Wait(); groupErr != nil && !errors.Is(groupErr, context.Canceled) {
		err = errors.Join(err, groupErr)
	}
	if err != nil {
		return fmt.Errorf("the cluster part stopped: %w", err)
	}
	return nil
}

// goodbye hands leadership on, so that nobody has to wait for an election.
func (c *Cluster) goodbye() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*c.cfg.RaftTimeout)
	defer cancel()
	if err := c.Transfer(ctx, ""); err != nil {
		c.cfg.Logger.Debug("leadership stays until the others notice", "err", err)
	}
}

// Kill breaks everything at once, as a power cut would. Run then returns.
func (c *Cluster) Kill() {
	c.killed.Store(true)
	c.gossip.kill()
	c.port.Close()
	c.mu.Lock()
	stop := c.stopRun
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// ID is this node's Raft ID.
func (c *Cluster) ID() NodeID { return c.identity.ID }

// Epoch counts this node's starts.
func (c *Cluster) Epoch() uint64 { return c.identity.Boot.Epoch }

// Addr is the bound address of the cluster port.
func (c *Cluster) Addr() string { return c.port.Addr() }

// Advertised is the address at which the others reach this node.
func (c *Cluster) Advertised() string { return c.advertise }

// Ready is closed when this node is a member, has caught up once and its boot is on record.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

// Term is Raft's current term.
func (c *Cluster) Term() uint64 { return c.raft.CurrentTerm() }

// Role is leader, voter or nonvoter.
func (c *Cluster) Role() string { return c.roleOf(c.ID()) }

// Leader is who leads, as far as this node knows.
func (c *Cluster) Leader() (NodeID, bool) {
	_, id := c.raft.LeaderWithID()
	return NodeID(id), id != ""
}

func (c *Cluster) leading() bool { return c.raft.State() == raft.Leader }

// servers is Raft's configuration, which may hold a change that isn't committed yet.
func (c *Cluster) servers() []raft.Server {
	f := c.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

func (c *Cluster) server(id NodeID) (raft.Server, bool) {
	for _, s := range c.servers() {
		if s.ID == raft.ServerID(id) {
			return s, true
		}
	}
	return raft.Server{}, false
}

func (c *Cluster) roleOf(id NodeID) string {
	if leader, ok := c.Leader(); ok && leader == id {
		return "leader"
	}
	if s, ok := c.server(id); ok && s.Suffrage == raft.Voter {
		return "voter"
	}
	return "nonvoter"
}

// admit lets only members of the configuration speak Raft here. A node that has no configuration yet waits for its first
// leader, so it takes any holder of the secret; one that was removed is no longer in anybody's.
func (c *Cluster) admit(proto string, id NodeID) error {
	if proto != port.ProtoRaft {
		return nil
	}
	if servers := c.servers(); len(servers) > 0 {
		if _, ok := c.server(id); !ok {
			if _, self := c.server(c.ID()); self && len(servers) > 1 {
				return ErrNotMember
			}
		}
	}
	return nil
}
