package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"pier/cluster/port"
)

const maxAnswer = 16 << 20

type peerKey struct{}

// PeerOf is the node that sent a request over the peer protocol.
func PeerOf(ctx context.Context) NodeID {
	id, _ := ctx.Value(peerKey{}).(NodeID)
	return id
}

// plainListener hides the TLS of its connections: net/http speaks HTTP/2 without ALPN's word for it only on what looks
// like a plain connection.
type plainListener struct{ net.Listener }

type plainConn struct {
	net.Conn
	peer NodeID
}

func (l plainListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	id, _ := port.PeerID(conn)
	return plainConn{Conn: conn, peer: id}, nil
}

// newPeerTransport speaks HTTP/2 over the port; the host of a URL is a node's ID.
func (c *Cluster) newPeerTransport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // the port has encrypted already
	return &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			at, err := c.addressOf(NodeID(host))
			if err != nil {
				return nil, err
			}
			// What was sent into a link that was cut is never answered, also when it is whole again: try again before long.
			ctx, cancel := context.WithTimeout(ctx, c.rpcTimeout())
			defer cancel()
			return c.port.Dial(ctx, port.ProtoPeer, NodeID(host), at)
		},
		IdleConnTimeout:     2 * time.Minute,
		MaxIdleConnsPerHost: 4,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 3 * time.Second, PingTimeout: 3 * time.Second, MaxReceiveBufferPerStream: 4 << 20, MaxReceiveBufferPerConnection: 16 << 20},
	}
}

// renewable is a transport whose connections can be given up for new ones. Requests under way keep the old ones, which are
// closed when they are done.
type renewable struct {
	fresh           func() *http.Transport
	current, before atomic.Pointer[http.Transport]
}

func newRenewable(fresh func() *http.Transport) *renewable {
	r := &renewable{fresh: fresh}
	r.current.Store(fresh())
	return r
}

// RoundTrip sends a request by the connections of today.
func (r *renewable) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.current.Load().RoundTrip(req)
}

// CloseIdleConnections closes what nobody uses.
func (r *renewable) CloseIdleConnections() {
	r.tidy()
	r.current.Load().CloseIdleConnections()
}

func (r *renewable) renew() {
	r.before.Store(r.current.Swap(r.fresh()))
	r.tidy()
}

// tidy closes the connections from before that nobody uses any more.
func (r *renewable) tidy() {
	if t := r.before.Load(); t != nil {
		t.CloseIdleConnections()
	}
}

// Transport reaches members: the host of a URL is a node's ID. It adds nothing to a request.
func (c *Cluster) Transport() http.RoundTripper { return c.peers }

// refuseFormer answers removed nodes with nothing but that they were removed, so that they can say so.
func (c *Cluster) refuseFormer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.tasks.enter() {
			http.Error(w, "this node is stopping", http.StatusServiceUnavailable)
			return
		}
		defer c.tasks.done() // closing a server doesn't wait for its handlers
		if c.former(PeerOf(r.Context())) {
			http.Error(w, ErrNotMember.Error(), http.StatusGone)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// servePeers answers the others until ctx ends.
func (c *Cluster) servePeers(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cluster/propose", c.servePropose)
	mux.HandleFunc("POST /cluster/applied", c.serveApplied)
	mux.HandleFunc("POST /cluster/index", c.serveIndex)
	mux.HandleFunc("POST /cluster/term", c.serveTerm)
	mux.HandleFunc("POST /cluster/epoch", c.serveEpoch)
	mux.HandleFunc("GET /cluster/hello", c.serveHello)
	mux.HandleFunc("POST /cluster/promise", c.servePromise)
	mux.HandleFunc("POST /cluster/join", c.serveJoin)
	mux.HandleFunc("POST /cluster/remove", c.serveRemove)
	mux.HandleFunc("POST /cluster/transfer", c.serveTransfer)
	mux.HandleFunc("GET /cluster/status", c.serveStatus)
	mux.HandleFunc("GET /cluster/secrets", c.serveSecrets)
	mux.HandleFunc("POST /cluster/secrets", c.serveSecrets)
	mux.HandleFunc("GET /cluster/secrets/{fingerprint}", c.serveSecret)
	mux.Handle("/", c.cfg.PeerHandler)
	members := c.refuseFormer(mux)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler: members, Protocols: protocols, ReadHeaderTimeout: headerTimeout, ErrorLog: newStdLogger(c.cfg.Logger, "peer"),
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000, MaxReceiveBufferPerStream: 4 << 20, MaxReceiveBufferPerConnection: 16 << 20},
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, conn.(plainConn).peer)
		},
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(plainListener{c.port.Listener(port.ProtoPeer)})
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// statusError is a peer's refusal.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

// call asks a member and gives the body of its 2xx.
func (c *Cluster) call(ctx context.Context, id NodeID, method, path string, body io.Reader) ([]byte, error) {
	data, err := call(ctx, c.control, method, "http://"+string(id)+path, body)
	var refused *statusError
	if errors.As(err, &refused) && refused.code == http.StatusGone {
		c.wasRemoved(id)
		err = fmt.Errorf("%w (says %s)", ErrNotMember, id)
	}
	return data, err
}

func call(ctx context.Context, t http.RoundTripper, method, url string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, &statusError{code: resp.StatusCode, text: string(bytes.TrimSpace(data))}
	}
	return data, nil
}

// ask calls with JSON both ways.
func (c *Cluster) ask(ctx context.Context, id NodeID, method, path string, in, out any) error {
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := c.call(ctx, id, method, path, bytes.NewReader(data))
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

// askAddress asks whoever is at an address: before a node is a member it knows addresses only.
func (c *Cluster) askAddress(ctx context.Context, address, method, path string, in, out any) error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	// A call that was given up may still be busy when the idle ones are closed.
	t := &http.Transport{Protocols: protocols, IdleConnTimeout: time.Second, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.port.Dial(ctx, port.ProtoPeer, "", address)
	}}
	defer t.CloseIdleConnections()
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := call(ctx, t, method, "http://peer"+path, bytes.NewReader(data))
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(v); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}
