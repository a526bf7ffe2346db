package harness

import (
	"context"
	"errors"
	"net"
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
	conns map[*conn]struct{}
}

// NewNet is a network without faults.
func NewNet() *Net {
	return &Net{homes: map[string]string{}, cut: map[[2]string]bool{}, delay: map[[2]string]time.Duration{}, conns: map[*conn]struct{}{}}
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

// Delay makes each write from a to b take longer.
func (n *Net) Delay(a, b string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay[[2]string{a, b}] = d
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
	if delay > 0 {
		wait(ctx, delay)
	}
	inner, err := port.System().Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, net: v.net, from: v.node, to: to}
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
}

func (c *conn) Write(p []byte) (int, error) {
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
	if cut, _ := p.view.net.fault(p.view.node, p.view.net.home(to.String())); cut {
		return len(b), nil
	}
	return p.PacketConn.WriteTo(b, to)
}
