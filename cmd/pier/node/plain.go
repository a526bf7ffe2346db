package node

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"pier/api"
)

// plainTime bounds what one client may take of the port that speaks only HTTP. All answers are short.
const plainTime = 30 * time.Second

// openPlain binds the port that speaks HTTP, if there is to be one, to say where HTTPS is.
func (n *Node) openPlain() error {
	if n.cfg.Access.HTTPListen == "" {
		return nil
	}
	lis, err := net.Listen("tcp", n.cfg.Access.HTTPListen)
	if err != nil {
		return fmt.Errorf("listen for HTTP: %w%s", err, otherwise(err, "http-listen"))
	}
	_, port, _ := net.SplitHostPort(n.public.address()) // an address of a listener
	sign := api.Signpost{PublicURL: n.cfg.Access.PublicURL, Port: port, Covers: n.certs.Covers}
	sign.Challenge, _ = n.certs.(http.Handler) // who deals with ACME servers
	n.plain = newFrontDoor(lis, n.logger)
	n.plain.server.ReadTimeout, n.plain.server.WriteTimeout = plainTime, plainTime
	n.plain.server.SetKeepAlivesEnabled(false) // who has been told needs nothing more
	n.plain.serve(sign)
	return nil
}

// HTTPAddress is where the node says by HTTP that it speaks HTTPS; empty if it doesn't.
func (n *Node) HTTPAddress() string {
	if n.plain == nil {
		return ""
	}
	return n.plain.address()
}

// mistaken tells clients that speak HTTP to a port for HTTPS what is wrong in words that they show.
type mistaken struct{ net.Listener }

func (m mistaken) Accept() (net.Conn, error) {
	conn, err := m.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &mistakenConn{conn}, nil
}

// mistakenConn is a connection below TLS. net/http (Go 1.26) writes a fixed text on it when HTTP comes, and has no setting for
// that; nothing that TLS writes looks like it.
type mistakenConn struct{ net.Conn }

func (c *mistakenConn) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(p, []byte("HTTP/")) {
		return c.Conn.Write(p)
	}
	_, err := c.Conn.Write(api.PlainRefusal())
	// The connection is closed next. What then lies unread would take the answer from the client.
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(time.Second / 2))
		_, _ = io.CopyN(io.Discard, c.Conn, 64<<10)
	}
	return len(p), err
}
