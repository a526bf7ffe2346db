package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pier/api/auth"
	"pier/cluster"
	"pier/cluster/port"
	"pier/fsm"
)

// Options are what a program or a test gives a node beside its settings. The zero value is a node on the real network that
// logs nothing.
type Options struct {
	// Network is what the cluster port listens and dials on; nil is the machine's own.
	Network port.Network
	// Logger gets the node's log; nil discards it.
	Logger *slog.Logger
	// Version is what the node says of itself in status and metrics.
	Version string
	// Tuning changes what has no setting; tests make nodes impatient with it.
	Tuning Tuning
}

// Tuning holds the times and bounds that nobody should have to set. Zero fields mean the default of the part in question.
type Tuning struct {
	VoterDelay        time.Duration // how long a newcomer must be healthy before it votes
	TrailingLogs      uint64        // entries kept behind a snapshot
	SnapshotInterval  time.Duration
	SnapshotThreshold uint64
	EnsureTimeout     time.Duration // how long a manifest push waits for copies
	CompareInterval   time.Duration // between two looks at what changed about want and have
	ReserveBytes      int64         // free disk space that is never used, in place of a share
	Grace             time.Duration // how long requests may take to finish at the end
	AwayWait          time.Duration // how long a request waits for the node that has its upload or the only copy
	SecretGrace       time.Duration // how long an old cluster secret is accepted at the least
	TokenLife         time.Duration // how long a client's access token is good
	// Clock is what time it is for tokens and certificates; nil is the machine's.
	Clock func() time.Time
}

// ErrLeft says that the data directory is that of a node which has left its cluster.
var ErrLeft = cluster.ErrLeft

// Node is one running Pier. It owns the data directory, the API listeners and the life of everything inside, which it can
// stop and start anew while the listeners stay open: that is how a running node becomes a member of another cluster.
type Node struct {
	cfg       Config
	opts      Options
	logger    *slog.Logger
	lock      *os.File
	public    *frontDoor
	certs     certificates  // nil without TLS
	clients   *auth.Clients // nil where clients show no certificates
	authority authority
	socket    *frontDoor
	plain     *frontDoor // nil unless HTTP is to say where HTTPS is
	fatal     chan error
	joins     chan joinOrder
	killed    chan struct{}
	kill      sync.Once
	// abandoned says that what is inside was told to end already, and may hang with its disk.
	abandoned atomic.Bool

	mu      sync.Mutex
	current *instance
	ready   chan struct{}
	isReady sync.Once
}

// New takes the data directory and binds the API port and the control socket, so that a port or a directory in use is
// known before anything starts. Run must follow, or Close.
func New(cfg Config, opts Options) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opts.Network == nil {
		opts.Network = port.System()
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Tuning.Grace == 0 {
		opts.Tuning.Grace = 10 * time.Second
	}
	if opts.Tuning.Clock == nil {
		opts.Tuning.Clock = time.Now
	}
	n := &Node{
		cfg:    cfg,
		opts:   opts,
		logger: opts.Logger,
		fatal:  make(chan error, 1),
		joins:  make(chan joinOrder),
		killed: make(chan struct{}),
		ready:  make(chan struct{}),
	}
	if err := n.open(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// open takes what only one process may have: the data directory and the listening sockets.
func (n *Node) open() error {
	if err := os.MkdirAll(n.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	lock, err := lockDirectory(n.cfg.DataDir)
	if err != nil {
		return err
	}
	n.lock = lock
	lis, err := net.Listen("tcp", n.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for clients: %w%s", err, otherwise(err, "listen"))
	}
	n.public = newFrontDoor(lis, n.logger)
	if err := n.openSocket(); err != nil {
		return err
	}
	if err := n.readClientCAs(); err != nil {
		return err
	}
	inst, err := newInstance(n)
	if err != nil {
		return err
	}
	n.current = inst
	if err := n.encrypt(); err != nil {
		return err
	}
	if err := n.openPlain(); err != nil {
		return err
	}
	return n.guarded(inst.state)
}

// openSocket binds the control socket, or sees to it that there is none.
func (n *Node) openSocket() error {
	path := filepath.Join(n.cfg.DataDir, SocketName)
	if !n.cfg.ControlSocket {
		return removeSocket(path)
	}
	sock, err := listenSocket(path)
	if err != nil {
		return err
	}
	n.socket = newFrontDoor(sock, n.logger)
	return nil
}

// doors are the listeners that this node has.
func (n *Node) doors() []*frontDoor {
	return slices.DeleteFunc([]*frontDoor{n.public, n.socket, n.plain}, func(d *frontDoor) bool { return d == nil })
}

// Close gives back what New took, for a node that was never run. It is safe to call more than once.
func (n *Node) Close() {
	if inst := n.instance(); inst != nil && !n.abandoned.Load() {
		inst.close()
	}
	for _, door := range n.doors() {
		door.close()
	}
	if n.lock != nil {
		_ = n.lock.Close()
	}
}

// Run serves until ctx ends or something fails that a restart of the process may mend. On the way out it stops accepting,
// hands leadership on, lets requests finish within the grace time, and closes everything; the error is nil when ctx
// ended it.
func (n *Node) Run(ctx context.Context) error {
	defer n.Close()
	doors, stopDoors := context.WithCancel(context.Background())
	defer stopDoors()
	group, doors := errgroup.WithContext(doors)
	for _, door := range n.doors() {
		group.Go(func() error { return door.run(doors) })
	}
	if n.clients != nil {
		group.Go(func() error { return n.clients.Run(doors) })
	}
	err := n.live(ctx)
	stopDoors()
	return errors.Join(err, group.Wait())
}

// live runs one instance after the other: a node that joins another cluster gets a new one.
func (n *Node) live(ctx context.Context) error {
	for {
		inst := n.instance()
		order, err := n.liveOnce(ctx, inst)
		if order == nil {
			return err
		}
		joined, joinErr := n.join(ctx, *order)
		next, err := newInstance(n)
		if err != nil {
			order.answer <- joinAnswer{err: err}
			return err
		}
		n.mu.Lock()
		n.current = next
		n.mu.Unlock()
		order.answer <- joinAnswer{joined: joined, err: joinErr}
	}
}

// liveOnce runs inst until it ends, and returns the order to join if that is why.
func (n *Node) liveOnce(ctx context.Context, inst *instance) (*joinOrder, error) {
	runCtx, stop := context.WithCancel(context.Background())
	defer stop()
	group, runCtx := errgroup.WithContext(runCtx)
	group.Go(func() error { return inst.run(runCtx) })
	group.Go(func() error { return n.watchReady(runCtx, inst) })
	group.Go(func() error { return n.firstUser(runCtx, inst, inst.log) })
	renewing, stopRenewing := context.WithCancel(runCtx)
	defer stopRenewing()
	if n.certs != nil {
		group.Go(func() error { return n.certs.Run(renewing) })
	}
	n.public.serve(inst.api.Handler())
	if n.socket != nil {
		n.socket.serve(inst.api.Control())
	}

	var order *joinOrder
	var cause error
	select {
	case <-ctx.Done():
		stopRenewing() // while the cluster can still be told
		n.drain(inst)
	case <-n.killed:
		for _, door := range n.doors() {
			door.close()
		}
		inst.cluster.Kill()
	case cause = <-n.fatal:
		n.logger.Error("the node has to stop", "err", cause)
		inst.cluster.Kill()
	case o := <-n.joins:
		order = &o
		n.public.serve(nil)
	case <-runCtx.Done():
	}
	stop()
	if cause != nil {
		n.abandon(func() { _ = group.Wait(); inst.close() })
		return nil, cause
	}
	err := group.Wait()
	inst.close()
	if errors.Is(err, cluster.ErrLeft) {
		n.logger.Info("this node has left its cluster; its data directory can go")
		return nil, nil
	}
	if err != nil && !errors.Is(err, context.Canceled) && order == nil {
		return nil, err
	}
	return order, nil
}

// abandon ends what can't go on. The disk that is to blame may never answer, and then nobody waits for what hangs with it:
// the process is about to end.
func (n *Node) abandon(end func()) {
	n.abandoned.Store(true) // Close would wait for it again
	done := make(chan struct{})
	go func() {
		defer close(done)
		end()
	}()
	select {
	case <-done:
	case <-time.After(n.opts.Tuning.Grace):
		n.logger.Error("a disk doesn't answer: some of what this node did is left behind")
	}
}

// drain is the polite end: no new requests, leadership to somebody else, and time for what is under way.
func (n *Node) drain(inst *instance) {
	n.logger.Info("stopping: finishing the requests under way")
	ctx, cancel := context.WithTimeout(context.Background(), n.opts.Tuning.Grace)
	defer cancel()
	var group errgroup.Group
	group.Go(func() error {
		if err := inst.cluster.HandOver(ctx); err != nil {
			n.logger.Debug("leadership stays", "err", err)
		}
		return nil
	})
	for _, door := range n.doors() {
		group.Go(func() error { door.shutdown(ctx); return nil })
	}
	_ = group.Wait()
}

func (n *Node) watchReady(ctx context.Context, inst *instance) error {
	select {
	case <-ctx.Done():
	case <-inst.cluster.Ready():
		n.logger.Info("ready", "node", inst.cluster.ID(), "url", n.URL())
		n.isReady.Do(func() { close(n.ready) })
	}
	return nil
}

// Kill ends the node as if its process had been killed: connections break, nothing is handed on. Run then returns.
func (n *Node) Kill() { n.kill.Do(func() { close(n.killed) }) }

// Ready is closed once this node is a member of its cluster and can take pushes.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// URL is where clients reach this node.
func (n *Node) URL() string {
	if n.secure() {
		return "https://" + n.public.address()
	}
	return "http://" + n.public.address()
}

// Address is the host and port where clients reach this node.
func (n *Node) Address() string { return n.public.address() }

// ClusterAddress is the host and port of the node's cluster port.
func (n *Node) ClusterAddress() string { return n.instance().cluster.Addr() }

// ID is the node's Raft ID, which changes when it joins another cluster.
func (n *Node) ID() string { return string(n.instance().cluster.ID()) }

// Name is what people call the node.
func (n *Node) Name() string { return n.cfg.Name }

// Cluster is the node's consensus part, for tests and status.
func (n *Node) Cluster() *cluster.Cluster { return n.instance().cluster }

// State is the node's replicated state, for tests.
func (n *Node) State() *fsm.State { return n.instance().state }

func (n *Node) instance() *instance {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

// die reports what the process can't live on with. Only the first report counts.
func (n *Node) die(err error) {
	select {
	case n.fatal <- err:
	default:
	}
}
