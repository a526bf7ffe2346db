package blobsync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"pier/blobsync/store"
)

// grid is some nodes over loopback, with one list of what is wanted.
type grid struct {
	t     testing.TB
	mu    sync.Mutex
	blobs []Blob
	moved chan struct{}
	whole atomic.Int64 // how often all of it was read
	nodes []*gridNode
	bps   int // bytes per second that a node can send; 0: no limit
}

type gridNode struct {
	*Sync
	id     NodeID
	grid   *grid
	store  *store.Store
	server *httptest.Server
	sent   *rate.Limiter
	down   atomic.Bool
	rotten atomic.Bool  // what it sends is wrong
	breaks atomic.Int64 // its answers end after as many bytes, when above zero
	drips  atomic.Bool  // it sends byte by byte
	gets   atomic.Int64 // requests for blobs that it answered
	looks  atomic.Int64 // how often it was asked who there is

	reserve int64                                             // of its disk
	marks   atomic.Pointer[map[NodeID]Node]                   // what it alone thinks of the others
	answer  func(w http.ResponseWriter, r *http.Request) bool // in its place, when it returns true
}

func newGrid(t testing.TB, n int, cfg Config, bps int) *grid {
	t.Helper()
	g := &grid{t: t, moved: make(chan struct{}), bps: bps}
	for i := range n {
		g.nodes = append(g.nodes, &gridNode{id: NodeID(fmt.Sprintf("n%d", i+1)), grid: g})
	}
	for _, x := range g.nodes {
		x.build(cfg)
	}
	for _, x := range g.nodes {
		x.run()
	}
	return g
}

func (x *gridNode) build(cfg Config) {
	t := x.grid.t
	var err error
	if x.store, err = store.Open(store.Config{Dir: t.TempDir(), ReserveBytes: max(x.reserve, 1)}); err != nil {
		t.Fatal(err)
	}
	if x.Sync, err = New(cfg, x.store, x.grid, x); err != nil {
		t.Fatal(err)
	}
	if x.grid.bps > 0 {
		x.sent = rate.NewLimiter(rate.Limit(x.grid.bps), 1<<20)
	}
	x.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if x.answer != nil && x.answer(w, r) {
			return
		}
		if r.Method == http.MethodGet {
			x.gets.Add(1)
		}
		x.Handler().ServeHTTP(&wire{ResponseWriter: w, node: x, blob: r.Method == http.MethodGet, gone: r.Context().Done()}, r)
	}))
}

func (x *gridNode) run() {
	t := x.grid.t
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	<-x.began
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		x.server.CloseClientConnections()
		x.server.Close()
	})
}

// wire is a node's link to the others: slow, broken or lying.
type wire struct {
	http.ResponseWriter
	node *gridNode
	blob bool
	gone <-chan struct{}
	n    int64
}

func (w *wire) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *wire) Write(p []byte) (int, error) {
	x := w.node
	if w.blob {
		if x.rotten.Load() {
			p = bytes.Repeat([]byte{'!'}, len(p))
		}
		for x.drips.Load() && len(p) > 1 {
			select {
			case <-w.gone:
				panic(http.ErrAbortHandler)
			case <-time.After(10 * time.Millisecond):
			}
			_, _ = w.ResponseWriter.Write(p[:1])
			_ = http.NewResponseController(w.ResponseWriter).Flush()
			p = p[1:]
		}
		if n := x.breaks.Load(); n > 0 && w.n+int64(len(p)) > n {
			panic(http.ErrAbortHandler)
		}
		for rest := len(p); x.sent != nil && rest > 0; rest -= 1 << 20 {
			_ = x.sent.WaitN(context.Background(), min(rest, 1<<20))
		}
	}
	w.n += int64(len(p))
	return w.ResponseWriter.Write(p)
}

func (g *grid) members() []*gridNode {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.nodes)
}

func (g *grid) join(x *gridNode) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nodes = append(g.nodes, x)
}

func (x *gridNode) Self() NodeID { return x.id }

func (x *gridNode) Nodes() []Node {
	var out []Node
	for _, y := range x.grid.members() {
		n := Node{ID: y.id, Up: !y.down.Load()}
		if marks := x.marks.Load(); marks != nil {
			n.Away, n.Draining = (*marks)[y.id].Away, (*marks)[y.id].Draining
		}
		out = append(out, n)
	}
	x.looks.Add(1)
	return out
}

func (x *gridNode) Transport() http.RoundTripper { return x }

func (x *gridNode) RoundTrip(r *http.Request) (*http.Response, error) {
	for _, y := range x.grid.members() {
		if string(y.id) == r.URL.Host {
			if y.down.Load() {
				return nil, errors.New("no route")
			}
			out := r.Clone(r.Context())
			out.URL.Host = y.server.Listener.Addr().String()
			return http.DefaultTransport.RoundTrip(out)
		}
	}
	return nil, errors.New("nobody is called so")
}

func (g *grid) Blob(d digest.Digest) (Blob, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range g.blobs {
		if b.Digest == d {
			return b, nil
		}
	}
	return Blob{}, ErrUnwanted
}

func (g *grid) Wanted(since uint64, after digest.Digest, n int) ([]Blob, bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Blob
	if since == 0 {
		g.whole.Add(1)
	}
	for _, b := range g.blobs {
		if b.Since > since || b.Since == since && b.Digest > after {
			out = append(out, b)
		}
	}
	if len(out) > n {
		return out[:n], true, nil
	}
	return out, false, nil
}

func (g *grid) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.moved
}

func (g *grid) Installs() uint64 { return 0 }

// push puts a blob on a node's disk; link makes it wanted.
func (x *gridNode) push(data []byte) Blob {
	t := x.grid.t
	u, err := x.NewUpload("r", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(context.Background(), -1, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	if _, err := u.Commit(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	return x.grid.link(Blob{Digest: d, Size: int64(len(data)), Origin: x.id})
}

func (g *grid) link(b Blob) Blob {
	g.mu.Lock()
	defer g.mu.Unlock()
	b.Since = uint64(len(g.blobs) + 1)
	g.blobs = append(g.blobs, b)
	close(g.moved)
	g.moved = make(chan struct{})
	return b
}

func (x *gridNode) holds(b Blob) bool {
	_, err := x.store.Stat(b.Digest)
	return err == nil
}

// arrives waits until the node has the blob.
func (x *gridNode) arrives(b Blob) {
	t := x.grid.t
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		changed := x.store.Changed()
		if x.holds(b) {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%s does not get %s", x.id, b.Digest)
		}
	}
}

func (x *gridNode) read(b Blob) ([]byte, error) {
	r, err := x.Open(context.Background(), b, b.Size)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

func payload(n int, mark string) []byte {
	data := bytes.Repeat([]byte(mark), n/len(mark)+1)[:n]
	return slices.Clone(data)
}
