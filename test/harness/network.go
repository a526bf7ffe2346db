package harness

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"pier/cluster/port"
)

var errCut = errors.New("the link is cut")

// Net is the network between the nodes. Links are one-way: from a node to the node that listens at an address.
type Net struct {
	mu    sync.Mutex
	homes map[string]string // address → node that listens there
	cut   map[[2]string]bool
	delay map[[2]string]time.Duration
	froze map[string]chan struct{} // closed when the node thaws
	conns map[*conn]struct{}

	mute   bool // packets get lost, all of them
	taping bool
	tape   []Packet
}

// Packet is one that a node sent by UDP.
type Packet struct {
	To   string
	Data []byte
}

// NewNet is a network without faults.
func NewNet() *Net {
	return &Net{
		homes: map[string]string{}, cut: map[[2]string]bool{}, delay: map[[2]string]time.Duration{}, froze: map[string]chan struct{}{},
		conns: map[*conn]struct{}{},
	}
}

// Cut breaks both directions between two nodes, connections under way included.
func (n *Net) Cut(a, b string) {
	n.CutOneWay(a, b)
	n.CutOneWay(b, a)
}

// CutOneWay makes b deaf to what a sends.
func (n *Net) CutOneWay(a, b string) {
	n.mu.Lock()
	n.cut[[2]string{a, b}] = true
	n.mu.Unlock()
}

// Mute loses every packet from now on, and no stream: a firewall that knows TCP only.
func (n *Net) Mute(mute bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mute = mute
}

// Tape begins to keep the packets that pass, as somebody on the way could; Taped gives them.
func (n *Net) Tape() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.taping = true
}

// Taped are the packets since Tape.
func (n *Net) Taped() []Packet {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.tape)
}

// packet notes a packet, and tells whether it gets lost.
func (n *Net) packet(to string, b []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.taping {
		n.tape = append(n.tape, Packet{To: to, Data: slices.Clone(b)})
	}
	return n.mute
}

// Delay makes each write from a to b take longer.
func (n *Net) Delay(a, b string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay[[2]string{a, b}] = d
}

// Freeze stops everything to and from a node as SIGSTOP would: nothing is lost, and it all goes on at once when the node
// thaws.
func (n *Net) Freeze(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.froze[node] == nil {
		n.froze[node] = make(chan struct{})
	}
}

// Thaw ends a freeze.
func (n *Net) Thaw(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if frozen := n.froze[node]; frozen != nil {
		close(frozen)
		delete(n.froze, node)
	}
}

// frozen gives what to wait for before anything passes between two nodes; nil when nothing is frozen.
func (n *Net) frozen(a, b string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.froze[a]; c != nil {
		return c
	}
	return n.froze[b]
}

// pass returns once neither node is frozen, or with an error when over is closed or the deadline, if there is one, comes first.
func (n *Net) pass(a, b string, over <-chan struct{}, deadline time.Time) error {
	var late <-chan time.Time
	for {
		frozen := n.frozen(a, b)
		if frozen == nil {
			return nil
		}
		if late == nil && !deadline.IsZero() {
			timer := time.NewTimer(time.Until(deadline))
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-frozen:
		case <-over:
			return net.ErrClosed
		case <-late:
			return os.ErrDeadlineExceeded
		}
	}
}

// Heal takes every fault away. What was sent into a cut is lost, so the connections that had one break.
func (n *Net) Heal() {
	n.mu.Lock()
	var broken []*conn
	for c := range n.conns {
		if n.cut[[2]string{c.from, c.to}] || n.cut[[2]string{c.to, c.from}] {
			broken = append(broken, c)
		}
	}
	clear(n.cut)
	clear(n.delay)
	for node, frozen := range n.froze {
		close(frozen)
		delete(n.froze, node)
	}
	n.mu.Unlock()
	for _, c := range broken {
		_ = c.Close()
	}
}

func (n *Net) home(address string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.homes[address]
}

func (n *Net) settle(address, node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.homes[address] = node
}

func (n *Net) fault(from, to string) (cut bool, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[[2]string{from, to}], n.delay[[2]string{from, to}]
}

// Of is the network as one node sees it.
func (n *Net) Of(node string) port.Network { return &view{net: n, node: node} }

type view struct {
	net  *Net
	node string
}

func (v *view) Listen(address string) (net.Listener, error) {
	lis, err := port.System().Listen(address)
	if err == nil {
		v.net.settle(lis.Addr().String(), v.node)
	}
	return lis, err
}

func (v *view) ListenPacket(address string) (net.PacketConn, error) {
	p, err := port.System().ListenPacket(address)
	if err != nil {
		return nil, err
	}
	v.net.settle(p.LocalAddr().String(), v.node)
	return &packets{PacketConn: p, view: v}, nil
}

// Dial fails after the dialler's own patience when the link is cut, as packets that vanish would make it.
func (v *view) Dial(ctx context.Context, address string) (net.Conn, error) {
	to := v.net.home(address)
	out, delay := v.net.fault(v.node, to)
	back, _ := v.net.fault(to, v.node)
	if out || back {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		return nil, errCut
	}
	if err := v.net.pass(v.node, to, ctx.Done(), time.Time{}); err != nil {
		return nil, err
	}
	if delay > 0 {
		wait(ctx, delay)
	}
	inner, err := port.System().Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, net: v.net, from: v.node, to: to, closed: make(chan struct{})}
	v.net.mu.Lock()
	v.net.conns[c] = struct{}{}
	v.net.mu.Unlock()
	return c, nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// conn is the dialler's end. The dialler knows both names, so both directions are decided here: what it writes, and what it
// reads.
type conn struct {
	net.Conn
	net      *Net
	from, to string
	closed   chan struct{}
	once     sync.Once

	mu     sync.Mutex
	latest time.Time // by when a write must be done
}

// SetDeadline and SetWriteDeadline also count for what waits in a freeze.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.Conn.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetWriteDeadline is half of SetDeadline.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.latest = t
	c.mu.Unlock()
	return c.Conn.SetWriteDeadline(t)
}

func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	latest := c.latest
	c.mu.Unlock()
	if err := c.net.pass(c.from, c.to, c.closed, latest); err != nil {
		return 0, err
	}
	cut, delay := c.net.fault(c.from, c.to)
	if cut {
		return len(p), nil
	}
	if delay > 0 {
		wait(context.Background(), delay)
	}
	return c.Conn.Write(p)
}

func (c *conn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil && n == 0 {
			return 0, err // a deadline too: who waits for a frozen node gives up in time
		}
		if err := c.net.pass(c.from, c.to, c.closed, time.Time{}); err != nil {
			return 0, err
		}
		cut, delay := c.net.fault(c.to, c.from)
		if err != nil {
			return n, err
		}
		if delay > 0 {
			wait(context.Background(), delay)
		}
		if !cut {
			return n, nil
		}
	}
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	return c.Conn.Close()
}

type packets struct {
	net.PacketConn
	view *view
}

func (p *packets) WriteTo(b []byte, to net.Addr) (int, error) {
	home := p.view.net.home(to.String())
	if cut, _ := p.view.net.fault(p.view.node, home); cut || p.view.net.frozen(p.view.node, home) != nil {
		return len(b), nil // a frozen node's packets overflow its buffer
	}
	if p.view.net.packet(to.String(), b) {
		return len(b), nil
	}
	return p.PacketConn.WriteTo(b, to)
}
