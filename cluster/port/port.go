package port

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// The protocols of the port, by their ALPN names.
const (
	ProtoRaft   = "raft"
	ProtoPeer   = "peer"
	ProtoGossip = "gossip"
	ProtoJoin   = "join"
)

var protocols = []string{ProtoRaft, ProtoPeer, ProtoGossip, ProtoJoin}

// ErrOtherSecret says that the other side is no member: its certificate doesn't come from this cluster's secret.
var ErrOtherSecret = errors.New("it has another cluster secret")

// ErrOtherNode says that another node than the one meant answered at an address.
var ErrOtherNode = errors.New("another node answers at this address")

const (
	handshakeTimeout = 10 * time.Second
	maxHandshakes    = 256
	backlog          = 64
)

// NodeID is the name in a node's certificate.
type NodeID string

// Network is what lies below: the machine's own, or a test's that loses and delays.
type Network interface {
	Listen(address string) (net.Listener, error)
	ListenPacket(address string) (net.PacketConn, error)
	Dial(ctx context.Context, address string) (net.Conn, error)
}

// System is the machine's own network.
func System() Network { return system{} }

type system struct{}

func (system) Listen(a string) (net.Listener, error)         { return net.Listen("tcp", a) }
func (system) ListenPacket(a string) (net.PacketConn, error) { return net.ListenPacket("udp", a) }
func (system) Dial(ctx context.Context, a string) (net.Conn, error) {
	d := net.Dialer{Timeout: handshakeTimeout, KeepAlive: 15 * time.Second}
	return d.DialContext(ctx, "tcp", a)
}

// Config says who listens where.
type Config struct {
	ID      NodeID
	Listen  string
	Secrets Secrets
	Network Network
	Logger  *slog.Logger
	// Admit decides about each inbound connection of a member, after its handshake; nil admits all.
	Admit func(proto string, id NodeID) error
}

// Port listens on one number of TCP and UDP. Safe for concurrent use.
type Port struct {
	cfg     Config
	tcp     net.Listener
	udp     net.PacketConn
	lanes   map[string]*lane
	closing chan struct{}
	once    sync.Once
	refused *strangers
	shaking *Newcomers // whose handshake is under way

	mu    sync.Mutex
	trust *trust
	conns map[*tracked]struct{}
}

// New binds TCP and UDP on the same number; with number 0 it looks for one that both have free.
func New(cfg Config) (*Port, error) {
	t, err := newTrust(cfg.ID, cfg.Secrets)
	if err != nil {
		return nil, err
	}
	p := &Port{
		cfg: cfg, trust: t, lanes: make(map[string]*lane), closing: make(chan struct{}), conns: make(map[*tracked]struct{}),
		refused: &strangers{now: time.Now}, shaking: NewNewcomers(maxHandshakes),
	}
	if p.tcp, p.udp, err = bind(cfg.Network, cfg.Listen); err != nil {
		return nil, err
	}
	for _, proto := range protocols {
		p.lanes[proto] = &lane{addr: p.tcp.Addr(), conns: make(chan net.Conn, backlog), closed: make(chan struct{}), port: p}
	}
	return p, nil
}

func bind(n Network, address string) (net.Listener, net.PacketConn, error) {
	host, number, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, fmt.Errorf("the cluster's address %q: %w", address, err)
	}
	var udpErr error
	for range 20 {
		tcp, err := n.Listen(address)
		if err != nil {
			return nil, nil, fmt.Errorf("listen for the cluster: %w", err)
		}
		bound := tcp.Addr().(*net.TCPAddr).Port
		udp, err := n.ListenPacket(net.JoinHostPort(host, strconv.Itoa(bound)))
		if err == nil {
			return tcp, udp, nil
		}
		_ = tcp.Close()
		if udpErr = err; number != "0" {
			break
		}
	}
	return nil, nil, fmt.Errorf("listen for the cluster's gossip: %w", udpErr)
}

// Addr is the bound host and number.
func (p *Port) Addr() string { return p.tcp.Addr().String() }

// Packets is the UDP side.
func (p *Port) Packets() net.PacketConn { return p.udp }

// Run accepts until ctx ends or Close; no goroutine of it is left when it returns.
func (p *Port) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.Close)
	defer stop()
	var shakes sync.WaitGroup
	defer shakes.Wait()
	for {
		c, err := p.tcp.Accept()
		if err != nil {
			select {
			case <-p.closing:
				return nil
			default:
			}
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			p.cfg.Logger.Warn("the cluster port can't accept for a moment", "err", err)
			select {
			case <-p.closing:
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		p.expect(c)
		shakes.Go(func() { p.greet(ctx, c) })
	}
}

// expect notes a handshake.
func (p *Port) expect(c net.Conn) {
	p.shaking.Expect(c)
	select {
	case <-p.closing:
		_ = c.Close()
	default:
	}
}

// greet shakes hands and hands the connection to its protocol.
func (p *Port) greet(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	t := p.trusted()
	c := tls.Server(raw, t.server())
	err := c.HandshakeContext(ctx)
	p.shaking.Shown(raw)
	if !stop() || err != nil {
		_ = raw.Close()
		p.refuse(raw.RemoteAddr(), "", err)
		return
	}
	proto := c.ConnectionState().NegotiatedProtocol
	id := nameOf(c.ConnectionState())
	l := p.lanes[proto]
	if l == nil {
		_ = c.Close()
		return
	}
	if proto != ProtoJoin && p.cfg.Admit != nil {
		if err := p.cfg.Admit(proto, id); err != nil {
			_ = c.Close()
			p.refuse(raw.RemoteAddr(), id, err)
			return
		}
	}
	l.offer(p.track(c, id, t))
}

// refuse tells of each stranger once: by the ID where a certificate proves it, by the machine otherwise.
func (p *Port) refuse(from net.Addr, id NodeID, err error) {
	who := string(id)
	if host, _, splitErr := net.SplitHostPort(from.String()); who == "" && splitErr == nil {
		who = host
	}
	if p.refused.news(who) {
		p.cfg.Logger.Warn("refused a connection to the cluster port", "peer", id, "from", from.String(), "err", err)
	}
}

// Dial reaches a member: id, or whoever answers when it is empty.
func (p *Port) Dial(ctx context.Context, proto string, id NodeID, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := p.cfg.Network.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	t := p.trusted()
	c := tls.Client(raw, t.client(proto, id))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("shake hands with %s: %w", address, err)
	}
	return p.track(c, id, t), nil
}

// DialJoin reaches the cluster that the fingerprint names, as a stranger with an invite.
func DialJoin(ctx context.Context, n Network, address, fingerprint string) (net.Conn, error) {
	raw, err := n.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, pinned(fingerprint))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("shake hands with %s: %w", address, err)
	}
	return c, nil
}

// Drop breaks every connection with a node.
func (p *Port) Drop(id NodeID) {
	p.cut(func(c *tracked) bool { return c.id == id })
}

func (p *Port) trusted() *trust {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trust
}

// Swap puts other secrets in force for every handshake from now on. Connections made under a secret that isn't among them
// are broken.
func (p *Port) Swap(secrets Secrets) error {
	t, err := newTrust(p.cfg.ID, secrets)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.trust = t
	p.mu.Unlock()
	p.cut(func(c *tracked) bool { return !t.knows(c.under[0]) || !t.knows(c.under[1]) })
	return nil
}

// Renew breaks the connections of a protocol that were made under another secret than the first, so that they are made
// anew under that.
func (p *Port) Renew(proto string) {
	first := p.trusted().signs
	p.cut(func(c *tracked) bool { return c.proto == proto && c.under != [2]string{first, first} })
}

// Old tells whether a connection is open that wasn't made under the first secret on both sides.
func (p *Port) Old() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if c.under != [2]string{p.trust.signs, p.trust.signs} && c.under[1] != "" {
			return true
		}
	}
	return false
}

// Under counts the open connections that were made under a secret.
func (p *Port) Under(fingerprint string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for c := range p.conns {
		if slices.Contains(c.under[:], fingerprint) {
			n++
		}
	}
	return n
}

func (p *Port) cut(which func(*tracked) bool) {
	p.mu.Lock()
	var cut []*tracked
	for c := range p.conns {
		if which(c) {
			cut = append(cut, c)
		}
	}
	p.mu.Unlock()
	for _, c := range cut {
		_ = c.Close()
	}
}

// Close ends everything at once. Run then returns.
func (p *Port) Close() {
	p.once.Do(func() { close(p.closing) })
	_ = p.tcp.Close()
	_ = p.udp.Close()
	p.mu.Lock()
	open := p.shaking.all()
	for c := range p.conns {
		open = append(open, c)
	}
	p.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}
