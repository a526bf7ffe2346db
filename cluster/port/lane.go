package port

import (
	"crypto/tls"
	"net"
	"sync"
)

// tracked is a connection that the port can break.
type tracked struct {
	*tls.Conn
	raw  net.Conn
	port *Port
}

func (p *Port) track(c *tls.Conn, id NodeID) net.Conn {
	if id == "" {
		id = nameOf(c.ConnectionState())
	}
	t := &tracked{Conn: c, raw: c.NetConn(), port: p}
	p.mu.Lock()
	p.conns[t] = id
	p.mu.Unlock()
	select {
	case <-p.closing:
		_ = t.Close()
	default:
	}
	return t
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
