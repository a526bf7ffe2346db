package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"pier/cluster/port"
	"pier/cluster/raftlog"
)

// Cluster is this node's part in the cluster. Safe for concurrent use.
type Cluster struct {
	cfg       Config
	state     State
	records   Records
	guard     Guard
	log       *raftlog.Store
	tail      tail
	port      *port.Port
	id        NodeID
	boot      boot
	advertise string
	started   time.Time
	transport *gatedTransport
	raft      *raft.Raft
	gossip    *gossip
	own       *ownSecrets
	peers     *renewable // blobs and requests, which may fill a link
	control   *renewable // the cluster's own calls, which must not wait behind them
	cache     *raft.LogCache
	meter     *logMeter // the state, as Raft sees it
	tasks     crew
	newLeader signal
	left      chan struct{} // closed when this node has left
	hasLeft   sync.Once
	leaving   atomic.Bool
	reads     *rounds // local readers
	confirms  *rounds // the leader's proofs that it still leads
	ready     chan struct{}
	booted    chan struct{} // closed when this boot is on record
	isReady   sync.Once
	killed    atomic.Bool
	hung      atomic.Bool // Raft doesn't end: the disk under its log hangs
	stopRun   context.CancelFunc
	changing  chan struct{} // holds one token: one membership change or transfer at a time
	removing  chan struct{} // and one: one removal at a time, with what is checked before it
	dead      *deaths

	mu         sync.Mutex
	identity   identity
	removed    bool // by the others' word
	complaints map[string]string
}

// New opens the identity, the log and the port, so that Addr is known; nothing runs yet. Each New is a new boot.
func New(cfg Config, state State, records Records, guard Guard) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	c := &Cluster{
		cfg: cfg, state: state, records: records, guard: guard, started: cfg.Now(), meter: &logMeter{State: state},
		ready: make(chan struct{}), booted: make(chan struct{}), left: make(chan struct{}),
		changing: make(chan struct{}, 1), removing: make(chan struct{}, 1), complaints: make(map[string]string),
	}
	c.tasks.ended = make(chan struct{})
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
	id.begin()
	c.identity, c.id, c.boot = id, id.ID, id.Boot
	c.log, err = raftlog.Open(raftlog.Config{
		Path: filepath.Join(c.cfg.DataDir, logFile), Fatal: c.cfg.Fatal, Snapshot: c.durable, Found: c.meter.note, Stored: c.tail.set,
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
	// A start that fails before this, because the port is taken, say, was no life.
	if err := writeIdentity(c.cfg.DataDir, id); err != nil {
		return err
	}
	c.advertise = c.cfg.Advertise
	if c.advertise == "" {
		c.advertise = reachable(c.port.Addr())
	}
	c.peers, c.control = newRenewable(c.newPeerTransport), newRenewable(c.newPeerTransport)
	c.own = &ownSecrets{file: c.cfg.SecretFile, list: c.cfg.Secrets, use: c.useSecrets}
	c.reads, c.confirms = &rounds{tasks: &c.tasks, fn: c.readRound}, &rounds{tasks: &c.tasks, fn: c.confirmRound}
	c.dead = newDeaths(c.started)
	if c.gossip, err = newGossip(gossipConfig{
		id: id.ID, meta: gossipMeta{Name: c.cfg.Name, API: c.cfg.API, Cluster: c.advertise}, port: c.port,
		advertise: c.advertise, keys: c.cfg.Secrets.GossipKeys(), logger: c.cfg.Logger,
	}); err != nil {
		return err
	}
	return c.openRaft()
}

// reachable names this machine in the place of an address that means all of its own and nothing to others.
func reachable(bound string) string {
	host, number, err := net.SplitHostPort(bound)
	if err != nil {
		return bound
	}
	name, err := os.Hostname()
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() || err != nil {
		return bound
	}
	return net.JoinHostPort(name, number)
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
	if c.transport != nil {
		c.transport.letGo()
	}
	if c.raft != nil && !c.hung.Load() {
		_ = c.endRaft()
	}
	if c.transport != nil {
		c.transport.stop()
	}
	if c.peers != nil {
		c.peers.CloseIdleConnections()
		c.control.CloseIdleConnections()
	}
	if c.port != nil {
		c.port.Close()
	}
	if c.log != nil {
		if !c.hung.Load() { // the file would be waited for
			_ = c.log.Close()
		}
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
	group.Go(func() error { return c.keepContact(inner) })
	group.Go(func() error { return c.gatherGossip(inner) })
	group.Go(func() error { return c.lead(inner) })
	group.Go(func() error { return c.keepSecrets(inner) })
	group.Go(func() error { return c.watchLog(inner) })
	if c.killed.Load() {
		stop()
	}
	select {
	case <-ctx.Done():
		if !c.killed.Load() {
			c.goodbye()
		}
	case <-c.left:
		c.gossip.leave()
	case <-inner.Done():
	}
	if c.killed.Load() {
		c.port.Close()
	}
	c.transport.letGo()
	err := c.endRaft()
	close(c.tasks.ended)
	c.newLeader.notify() // whoever waits for another leader waits in vain
	stop()
	if groupErr := group.Wait(); groupErr != nil && !errors.Is(groupErr, context.Canceled) {
		err = errors.Join(err, groupErr)
	}
	tasks := c.tasks.close()
	if !c.hung.Load() {
		select {
		case <-tasks:
		case <-time.After(applyPatience):
			c.cfg.Logger.Warn("a call of Raft hangs: it is left behind")
		}
	}
	select {
	case <-c.left:
		return ErrLeft
	default:
	}
	if err != nil {
		return fmt.Errorf("the cluster part stopped: %w", err)
	}
	return nil
}

// endRaft stops Raft. A disk that hangs under the log hangs Raft as well; then it is left behind, since the process must end.
func (c *Cluster) endRaft() error {
	done := make(chan error, 1)
	ended := c.raft.Shutdown()
	go func() { done <- ended.Error() }()
	select {
	case err := <-done:
		return err
	case <-time.After(applyPatience):
		c.hung.Store(true)
		return errors.New("the raft log hangs and is left behind")
	}
}

// goodbye hands leadership on, so that nobody has to wait for an election.
func (c *Cluster) goodbye() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*c.cfg.RaftTimeout)
	defer cancel()
	if err := c.HandOver(ctx); err != nil {
		c.cfg.Logger.Debug("leadership stays until the others notice", "err", err)
	}
	c.gossip.leave() // while the port still carries it
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
func (c *Cluster) ID() NodeID { return c.id }

// Epoch counts this node's starts.
func (c *Cluster) Epoch() uint64 { return c.boot.Epoch }

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
	return slices.Clone(f.Configuration().Servers) // Raft's own slice: whoever sorts or filters it would change the cluster
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
// leader, so it takes any holder of the secret. Removed nodes may ask over the peer protocol, to be told.
func (c *Cluster) admit(proto string, id NodeID) error {
	if proto == port.ProtoPeer {
		return nil
	}
	if c.former(id) {
		return fmt.Errorf("%s: %w", id, ErrNotMember)
	}
	if proto != port.ProtoRaft || len(c.servers()) == 0 {
		return nil
	}
	if _, ok := c.server(id); !ok {
		return fmt.Errorf("%s: %w", id, ErrNotMember)
	}
	return nil
}
