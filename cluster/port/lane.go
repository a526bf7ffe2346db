package port

import (
	"crypto/tls"
	"net"
	"sync"
)

// tracked is a connection that the port can break.
type tracked struct {
	*tls.Conn
	raw   net.Conn
	port  *Port
	id    NodeID
	proto string
	// under are the fingerprints of the secrets that both sides' certificates come from.
	under [2]string
}

// track keeps a connection whose handshake was made with t, unless its secrets have been dropped since.
func (p *Port) track(c *tls.Conn, id NodeID, t *trust) net.Conn {
	state := c.ConnectionState()
	if id == "" {
		id = nameOf(state)
	}
	k := &tracked{
		Conn: c, raw: c.NetConn(), port: p, id: id, proto: state.NegotiatedProtocol, under: [2]string{t.signs, t.signer(state)},
	}
	p.mu.Lock()
	p.conns[k] = struct{}{}
	known := p.trust.knows(k.under[0]) && p.trust.knows(k.under[1])
	p.mu.Unlock()
	select {
	case <-p.closing:
		known = false
	default:
	}
	if !known {
		_ = k.Close()
	}
	return k
}

// Close breaks the connection at once: a TLS goodbye could wait for a peer that is gone.
func (t *tracked) Close() error {
	t.port.mu.Lock()
	delete(t.port.conns, t)
	t.port.mu.Unlock()
	return t.raw.Close()
}

// lane is one protocol's net.Listener.
type lane struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	port   *Port
}

// Listener gives the connections of one protocol.
func (p *Port) Listener(proto string) net.Listener { return p.lanes[proto] }

func (l *lane) offer(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.closed:
		_ = c.Close()
	case <-l.port.closing:
		_ = c.Close()
	}
}

func (l *lane) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
	case <-l.port.closing:
	}
	return nil, net.ErrClosed
}

func (l *lane) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *lane) Addr() net.Addr { return l.addr }
