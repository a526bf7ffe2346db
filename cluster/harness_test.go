package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	bolt "go.etcd.io/bbolt"

	"pier/cluster/port"
	"pier/test/ports"
	"pier/test/wait"
)

const patience = 20 * time.Second

// house is a set of nodes with one secret on one network.
type house struct {
	t       testing.TB
	secrets port.Secrets
	net     *wires
	guard   *blobGuard
	nodes   []*member
	ports   ports.Claim

	raftTimeout time.Duration
	// cfg changes the settings of all nodes, before their own.
	cfg func(*Config)
	// proposing is called before a step of a rotation is proposed, proposed after.
	proposing atomic.Pointer[func(next Rotation) error]
	proposed  atomic.Pointer[func(next Rotation)]
}

func newHouse(t testing.TB) *house {
	h := &house{t: t, secrets: port.Secrets{port.NewSecret()}, net: newWires(), guard: &blobGuard{only: map[NodeID][]string{}}, raftTimeout: 300 * time.Millisecond}
	t.Cleanup(h.ports.Release)
	return h
}

// member is one node: its disk outlives its lives.
type member struct {
	house   *house
	t       testing.TB
	name    string
	dir     string
	address string
	cfg     func(*Config)
	secrets port.Secrets
	state   *mapState

	cluster *Cluster
	cancel  context.CancelFunc
	done    chan error
	fatal   chan error
}

// add makes a node that isn't started yet, at a port of its own.
func (h *house) add(edit func(*Config)) *member {
	h.t.Helper()
	m := &member{
		house: h, t: h.t, name: fmt.Sprintf("n%d", len(h.nodes)+1), dir: h.t.TempDir(), address: h.freeAddress(),
		cfg: edit, state: newMapState(), secrets: h.secrets,
	}
	h.nodes = append(h.nodes, m)
	h.t.Cleanup(m.stop)
	return m
}

// freeAddress is one that stays the house's, also while no node listens at it.
func (h *house) freeAddress() string {
	h.t.Helper()
	n, err := h.ports.Take()
	if err != nil {
		h.t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", n)
}

// expecting makes n nodes that form a cluster together.
func (h *house) expecting(n int) []*member {
	var addresses []string
	out := make([]*member, 0, n)
	for range n {
		out = append(out, h.add(func(c *Config) { c.Join, c.BootstrapExpect = addresses, n }))
	}
	for _, m := range out {
		addresses = append(addresses, m.address)
	}
	return out
}

// formed starts n nodes and waits until all are ready.
func (h *house) formed(n int) []*member {
	h.t.Helper()
	out := h.expecting(n)
	startAll(out...)
	return out
}

// startAll starts nodes and waits until all are ready.
func startAll(nodes ...*member) {
	for _, m := range nodes {
		m.start()
	}
	for _, m := range nodes {
		m.ready()
	}
}

func (m *member) config() Config {
	level := slog.LevelError
	if os.Getenv("PIER_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	cfg := Config{
		DataDir: m.dir, Name: m.name, Listen: m.address, API: "api-" + m.name, Secrets: m.secrets, Network: m.house.net.of(m.address),
		RaftTimeout: m.house.raftTimeout, VoterDelay: 300 * time.Millisecond, SnapshotInterval: 200 * time.Millisecond,
		Version: "test", Level: 1, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", m.name),
		Fatal: func(err error) {
			select {
			case m.fatal <- err:
			default:
			}
		},
	}
	for _, edit := range []func(*Config){m.house.cfg, m.cfg} {
		if edit != nil {
			edit(&cfg)
		}
	}
	if stored, err := port.LoadSecrets(m.secretFile(cfg)); err == nil {
		cfg.Secrets = stored
	}
	return cfg
}

func (m *member) secretFile(cfg Config) string {
	return orElse(cfg.SecretFile, filepath.Join(m.dir, secretFile))
}

// open makes the node without running it.
func (m *member) open() error {
	m.fatal = make(chan error, 1)
	records := &mapRecords{state: m.state, member: m}
	c, err := New(m.config(), m.state, records, m.house.guard)
	if err != nil {
		return err
	}
	records.cluster = c
	m.cluster = c
	return nil
}

func (m *member) start() {
	m.t.Helper()
	if err := m.open(); err != nil {
		m.t.Fatal(err)
	}
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(context.Background())
	m.done = make(chan error, 1)
	c, done := m.cluster, m.done
	go func() { done <- c.Run(ctx) }()
}

// ready waits until the node is.
func (m *member) ready() {
	m.t.Helper()
	select {
	case <-m.cluster.Ready():
	case err := <-m.done:
		m.done <- err
		m.t.Fatalf("%s ended: %v", m.name, err)
	case <-time.After(patience):
		m.t.Fatalf("%s is not ready after %s: role %s", m.name, patience, m.cluster.Role())
	}
}

// stop ends the node politely; a node that isn't running stays so.
func (m *member) stop() { m.end(func() { m.cancel() }) }

// kill breaks it off.
func (m *member) kill() { m.end(func() { m.cluster.Kill() }) }

func (m *member) end(how func()) {
	if m.cluster == nil {
		return
	}
	how()
	select {
	case <-m.done:
	case <-time.After(patience):
		m.t.Errorf("%s doesn't end", m.name)
	}
	m.cancel()
	m.cluster.Close()
	m.cluster = nil
}

// wipe takes the disk away from a stopped node.
func (m *member) wipe() {
	m.dir, m.state = m.t.TempDir(), newMapState()
}

// disk copies what a stopped node has on disk.
func (m *member) disk() (dir string, state *mapState) {
	m.t.Helper()
	dir = m.t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "copy"), os.DirFS(m.dir)); err != nil {
		m.t.Fatal(err)
	}
	return filepath.Join(dir, "copy"), m.state.clone()
}

// hangLog keeps every write to a node's log waiting, as a disk does that answers no more, until the returned function.
func hangLog(t *testing.T, c *Cluster) (release func()) {
	t.Helper()
	field := reflect.ValueOf(c.log.BoltStore).Elem().FieldByName("conn")
	file := *(**bolt.DB)(unsafe.Pointer(field.UnsafeAddr()))
	tx, err := file.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback() }
}

func (m *member) put(key, value string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := propose(ctx, m.cluster, command{Op: "put", Key: key, Value: value})
	return err
}

func (m *member) mustPut(key, value string) {
	m.t.Helper()
	if err := m.put(key, value); err != nil {
		m.t.Fatalf("put %s through %s: %v", key, m.name, err)
	}
}

// get is a linearizable read.
func (m *member) get(key string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.cluster.ReadIndex(ctx); err != nil {
		return "", err
	}
	return m.state.value(key), nil
}

// mustGet reads once there is a majority; what it reads must be right the first time.
func (m *member) mustGet(key, want string) {
	m.t.Helper()
	eventually(m.t, func() error {
		got, err := m.get(key)
		if err == nil && got != want {
			m.t.Fatalf("%s reads %s = %q; want %q", m.name, key, got, want)
		}
		return err
	})
}

// eventually waits until check finds nothing wrong.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	wait.Until(t, patience, t.Name(), check)
}

// leader waits until one of the nodes leads.
func leader(t testing.TB, nodes []*member) *member {
	t.Helper()
	var found *member
	eventually(t, func() error {
		for _, m := range nodes {
			if m.cluster != nil && m.cluster.Role() == "leader" {
				found = m
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return found
}

func others(nodes []*member, but ...*member) []*member {
	var out []*member
outer:
	for _, m := range nodes {
		for _, b := range but {
			if m == b {
				continue outer
			}
		}
		out = append(out, m)
	}
	return out
}

func status(t testing.TB, m *member) Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := m.cluster.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wires is a network on loopback whose links can be cut, each direction alone: a connection belongs to who dialled it, and
// what flows on it belongs to both directions, so a cut breaks it.
type wires struct {
	mu    sync.Mutex
	cuts  map[[2]string]bool
	conns map[*wire]struct{}
	mute  bool // no packet passes
	// swallowed hears of dials over a cut link that get no answer; where it is nil they fail at once.
	swallowed chan struct{}
}

func newWires() *wires { return &wires{cuts: map[[2]string]bool{}, conns: map[*wire]struct{}{}} }

func (w *wires) of(address string) port.Network { return end{wires: w, address: address} }

// cut separates each of a from each of b.
func (w *wires) cut(a, b []*member) {
	w.cutOneWay(a, b)
	w.cutOneWay(b, a)
}

// cutOneWay lets nobody of a reach any of b, while b still reaches a.
func (w *wires) cutOneWay(a, b []*member) {
	w.mu.Lock()
	var broken []*wire
	for _, x := range a {
		for _, y := range b {
			w.cuts[[2]string{x.address, y.address}] = true
		}
	}
	for c := range w.conns {
		if w.cuts[c.ends] {
			broken = append(broken, c)
		}
	}
	w.mu.Unlock()
	for _, c := range broken {
		_ = c.Close()
	}
}

// swallow cuts so that nobody is told: who dials waits. It gives a channel that hears of a dial.
func (w *wires) swallow(a, b []*member) <-chan struct{} {
	heard := make(chan struct{}, 1)
	w.mu.Lock()
	w.swallowed = heard
	w.mu.Unlock()
	w.cutOneWay(a, b)
	return heard
}

func (w *wires) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.cuts)
	w.swallowed = nil
}

type end struct {
	wires   *wires
	address string
}

func (e end) Listen(a string) (net.Listener, error) { return port.System().Listen(a) }

func (e end) ListenPacket(a string) (net.PacketConn, error) {
	c, err := port.System().ListenPacket(a)
	if err != nil {
		return nil, err
	}
	return packets{PacketConn: c, end: e}, nil
}

func (e end) Dial(ctx context.Context, to string) (net.Conn, error) {
	c, err := port.System().Dial(ctx, to)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: c, wires: e.wires, ends: [2]string{e.address, to}}
	e.wires.mu.Lock()
	broken, swallowed := e.wires.cuts[w.ends], e.wires.swallowed
	if !broken {
		e.wires.conns[w] = struct{}{}
	}
	e.wires.mu.Unlock()
	if broken {
		_ = c.Close()
		if swallowed != nil {
			select {
			case swallowed <- struct{}{}:
			default:
			}
			<-ctx.Done()
		}
		return nil, errors.New("the link is cut")
	}
	return w, nil
}

type wire struct {
	net.Conn
	wires *wires
	ends  [2]string
}

func (w *wire) Close() error {
	w.wires.mu.Lock()
	delete(w.wires.conns, w)
	w.wires.mu.Unlock()
	return w.Conn.Close()
}

type packets struct {
	net.PacketConn
	end end
}

func (p packets) WriteTo(b []byte, to net.Addr) (int, error) {
	p.end.wires.mu.Lock()
	broken := p.end.wires.mute || p.end.wires.cuts[[2]string{p.end.address, to.String()}]
	p.end.wires.mu.Unlock()
	if broken {
		return len(b), nil
	}
	return p.PacketConn.WriteTo(b, to)
}
