package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"pier/api/client"
	"pier/blobsync"
	"pier/blobsync/store"
	"pier/fsm"
	"pier/test/wait"
)

// testLog applies commands to the states of all its nodes, one after the other, as a Raft log without Raft would.
type testLog struct {
	mu    sync.Mutex
	index uint64
	nodes []*testNode
}

// nodeLog is one node's view of it. A lagging node gets the entries only when it asks to be current; one without a quorum
// can't ask.
type nodeLog struct {
	log  *testLog
	node *testNode

	mu       sync.Mutex
	alone    bool
	lagging  bool
	old      bool // a member is of the release before
	backlog  []*raft.Log
	currents int
}

func (l *nodeLog) Propose(_ context.Context, cmd fsm.Command) (fsm.Answer, error) {
	if l.isAlone() {
		return nil, &Unavailable{Reason: "no quorum", RetryAfter: 2 * time.Second}
	}
	if l.isOld() && fsm.Level(cmd) > 2 {
		return nil, fsm.ErrLevel
	}
	l.log.mu.Lock()
	defer l.log.mu.Unlock()
	l.log.index++
	data, err := fsm.Encode(fsm.Identity{Node: l.node.id, Epoch: 1, Seq: l.log.index}, cmd)
	if err != nil {
		return nil, err
	}
	entry := &raft.Log{Index: l.log.index, Term: 1, Type: raft.LogCommand, Data: data, AppendedAt: time.UnixMilli(int64(l.log.index))}
	for _, n := range l.log.nodes {
		n.log.hand(entry)
	}
	return fsm.DecodeAnswer(l.flush())
}

func (l *nodeLog) Current(context.Context) error {
	if l.isAlone() {
		return &Unavailable{Reason: "no quorum", RetryAfter: 2 * time.Second}
	}
	l.log.mu.Lock()
	defer l.log.mu.Unlock()
	l.mu.Lock()
	l.currents++
	l.mu.Unlock()
	l.flush()
	return nil
}

func (l *nodeLog) hand(entry *raft.Log) {
	l.mu.Lock()
	l.backlog = append(l.backlog, entry)
	lagging := l.lagging
	l.mu.Unlock()
	if !lagging {
		l.flush()
	}
}

// flush applies what is left and gives the last answer.
func (l *nodeLog) flush() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, entry := range l.backlog {
		l.node.last, _ = l.node.state.Apply(entry).([]byte)
	}
	l.backlog = nil
	return l.node.last
}

func (l *nodeLog) isAlone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alone
}

func (l *nodeLog) isOld() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.old
}

func (l *nodeLog) set(change func(l *nodeLog)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

// testNode is one node: real state, real disk, real sockets.
type testNode struct {
	id             fsm.NodeID
	dir            string
	state          *fsm.State
	store          *store.Store
	blobs          *blobsync.Sync
	log            *nodeLog
	last           []byte
	api            *API
	relayTransport http.RoundTripper
	url            string
	peer           string // address of its peer side
	down           func() // breaks its peer side
	stop           func() // ends it, and returns when nothing of it runs
}

// fixture is a cluster of nodes for one test.
type fixture struct {
	testing.TB
	nodes  []*testNode
	log    *testLog
	client *http.Client
	mu     sync.Mutex
	peers  map[string]string // node ID to address
}

// newFixture starts n nodes. At the end of the test no goroutine may be left, and no file of a node open.
func newFixture(t testing.TB, n int, change func(*Config)) *fixture {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { eventually(t, func() error { return goleak.Find(before) }) })
	f := &fixture{TB: t, log: &testLog{}, peers: make(map[string]string)}
	transport := &http.Transport{DisableCompression: true}
	f.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for i := range n {
		f.nodes = append(f.nodes, f.start(fsm.NodeID(fmt.Sprintf("node-%d", i)), change))
	}
	f.log.nodes = f.nodes
	for _, node := range f.nodes {
		f.must(node.log.Propose(t.Context(), fsm.BootNode{ID: node.id, Name: string(node.id), Epoch: 1, Level: 1, Nonce: "n"}))
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		for _, node := range f.nodes {
			node.checkClosed(t)
		}
		for _, node := range f.nodes {
			node.stop()
		}
		for _, node := range f.nodes {
			f.must(nil, node.state.Close())
		}
	})
	return f
}

func (f *fixture) must(_ any, err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) start(id fsm.NodeID, change func(*Config)) *testNode {
	f.Helper()
	n := &testNode{id: id, dir: f.TempDir()}
	var err error
	n.state, err = fsm.Open(fsm.Config{Path: filepath.Join(n.dir, "state.db"), Fatal: func(err error) { f.Error(err) }})
	f.must(n.state, err)
	n.store, err = store.Open(store.Config{Dir: n.dir, ReserveBytes: 1})
	f.must(n.store, err)
	n.log = &nodeLog{log: f.log, node: n}
	transport := f.peerTransport()
	n.relayTransport = transport
	n.blobs, err = blobsync.New(blobsync.Config{EnsureTimeout: 10 * time.Second}, n.store, stateIndex{n.state}, &statePeers{node: n, fixture: f, transport: transport})
	f.must(n.blobs, err)
	cfg := Config{Node: id, Name: string(id), Relay: transport, RelayWait: time.Millisecond, HolderWait: time.Millisecond, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	n.api, err = New(cfg, n.state, n.blobs, n.log, noCluster{})
	f.must(n.api, err)
	n.run(f)
	return n
}

// run serves the node until it is stopped.
func (n *testNode) run(f *fixture) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	var gate sync.RWMutex // held for reading by each request
	stopped := false
	counted := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gate.RLock()
			defer gate.RUnlock()
			if !stopped {
				h.ServeHTTP(w, r)
			}
		})
	}
	work.Go(func() { _ = n.blobs.Run(ctx) })
	public := NewServer(counted(n.api.Handler()), nil)
	lis := f.listen()
	n.url = "http://" + lis.Addr().String()
	work.Go(func() { _ = public.Serve(lis) })

	mux := http.NewServeMux()
	mux.Handle("/relay/", http.StripPrefix("/relay", n.api.Relay()))
	mux.Handle("/audit", n.api.Peer())
	mux.Handle("/doctor", n.api.Peer())
	mux.Handle("/blobs/", n.blobs.Handler())
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	peer := &http.Server{Handler: counted(mux), Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	peerLis := f.listen()
	n.peer = peerLis.Addr().String()
	f.setPeer(n.id, n.peer)
	work.Go(func() { _ = peer.Serve(peerLis) })
	n.down = func() { _ = peer.Close() }
	n.stop = func() {
		_ = public.Close()
		_ = peer.Close()
		gate.Lock()
		stopped = true
		gate.Unlock()
		cancel()
		work.Wait()
	}
}

func (f *fixture) listen() net.Listener {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	f.must(lis, err)
	return lis
}

func (f *fixture) setPeer(id fsm.NodeID, address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peers[string(id)] = address
}

// peerTransport speaks HTTP/2 without TLS and takes hosts for node IDs, as the cluster port does.
func (f *fixture) peerTransport() http.RoundTripper {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	t := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		f.mu.Lock()
		to, ok := f.peers[host]
		f.mu.Unlock()
		if !ok {
			return nil, fmt.Errorf("nobody is called %s", host)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, to)
	}}
	f.Cleanup(t.CloseIdleConnections)
	return t
}

// checkClosed wants none of the node's blobs and uploads to be open in this process.
func (n *testNode) checkClosed(t testing.TB) {
	eventually(t, func() error {
		if open := n.openFiles(); len(open) > 0 {
			return fmt.Errorf("still open: %v", open)
		}
		return nil
	})
}

// openFiles are the node's blobs and uploads that this process has open, where the system tells.
func (n *testNode) openFiles() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var open []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.HasPrefix(to, n.dir) && !strings.Contains(to, "state.db") {
			open = append(open, to)
		}
	}
	return open
}

// uploads are the names of the files in the node's folder of uploads.
func (n *testNode) uploads(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.dir, "uploads"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// eventually waits until check is content.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	wait.Until(t, 20*time.Second, t.Name(), check)
}

type stateIndex struct{ *fsm.State }

func (x stateIndex) Blob(d digest.Digest) (blobsync.Blob, error) {
	b, err := x.BlobRecord(d)
	if errors.Is(err, fsm.ErrBlobUnknown) {
		return blobsync.Blob{}, blobsync.ErrUnwanted
	}
	return syncBlob(b), err
}

func (x stateIndex) Wanted(since uint64, after digest.Digest, n int) ([]blobsync.Blob, bool, error) {
	page, more, err := x.State.Wanted(since, after, n)
	var out []blobsync.Blob
	for _, b := range page {
		out = append(out, syncBlob(b))
	}
	return out, more, err
}

type statePeers struct {
	node      *testNode
	fixture   *fixture
	transport http.RoundTripper
}

func (p *statePeers) Self() blobsync.NodeID        { return blobsync.NodeID(p.node.id) }
func (p *statePeers) Transport() http.RoundTripper { return p.transport }
func (p *statePeers) Nodes() []blobsync.Node {
	nodes, err := p.node.state.Nodes()
	if err != nil {
		return nil
	}
	var out []blobsync.Node
	for _, n := range nodes {
		out = append(out, blobsync.Node{ID: blobsync.NodeID(n.ID), Up: true})
	}
	return out
}

type noCluster struct{}

func (noCluster) Status(context.Context) (client.Status, error) { return client.Status{}, nil }
func (noCluster) Invite(context.Context, client.InviteRequest) (client.Invite, error) {
	return client.Invite{}, nil
}
func (noCluster) Join(context.Context, client.JoinRequest) (client.Joined, error) {
	return client.Joined{}, nil
}
func (noCluster) Leave(context.Context) error                            { return nil }
func (noCluster) Remove(context.Context, client.RemoveRequest) error     { return nil }
func (noCluster) Transfer(context.Context, client.TransferRequest) error { return nil }
func (noCluster) SecretStatus(context.Context) (client.SecretStatus, error) {
	return client.SecretStatus{}, nil
}
func (noCluster) RotateSecret(context.Context, client.RotateSecretRequest) (client.SecretStatus, error) {
	return client.SecretStatus{}, nil
}
func (noCluster) RenewCertificates(context.Context, client.RenewRequest) (client.Renewed, error) {
	return client.Renewed{}, nil
}
func (noCluster) DropSecret(context.Context) (client.SecretStatus, error) {
	return client.SecretStatus{}, nil
}

// answer is a response, read to its end.
type answer struct {
	*http.Response
	body []byte
}

// code is the first error code of an OCI error body.
func (a answer) code() string {
	var e errorBody
	if json.Unmarshal(a.body, &e) != nil || len(e.Errors) == 0 {
		return ""
	}
	return e.Errors[0].Code
}

// do sends a request to the first node. Headers come as "Name: value".
func (f *fixture) do(method, path string, body any, headers ...string) answer {
	f.Helper()
	return f.doOn(f.nodes[0], method, path, body, headers...)
}

func (f *fixture) doOn(n *testNode, method, path string, body any, headers ...string) answer {
	f.Helper()
	var src io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		src = bytes.NewReader(b)
	case string:
		src = strings.NewReader(b)
	case io.Reader:
		src = b
	}
	r, err := http.NewRequestWithContext(f.Context(), method, n.url+path, src)
	f.must(r, err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		f.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		f.Fatalf("%s %s: read the answer: %v", method, path, err)
	}
	return answer{resp, got}
}

// want checks the status, and for errors the code.
func (f *fixture) want(a answer, status int, code string) answer {
	f.Helper()
	if a.StatusCode != status || a.Request.Method != "HEAD" && a.code() != code {
		f.Fatalf("%s %s: got %d %s, want %d %s", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.body, status, code)
	}
	return a
}

// wantHeader checks "Name: value" pairs; an empty value means absent.
func (f *fixture) wantHeader(a answer, headers ...string) {
	f.Helper()
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if got := strings.Join(a.Header.Values(name), "|"); got != value {
			f.Errorf("%s %s: %s is %q, want %q", a.Request.Method, a.Request.URL.Path, name, got, value)
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// pushBlob pushes content in one POST.
func (f *fixture) pushBlob(n *testNode, repo string, content []byte) digest.Digest {
	f.Helper()
	d := digest.FromBytes(content)
	f.want(f.doOn(n, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), content), 201, "")
	return d
}

// image is a manifest of a config and layers that are in the repository.
func image(extra string, blobs ...[]byte) []byte {
	var parts []string
	for _, b := range blobs {
		parts = append(parts, fmt.Sprintf(`{"mediaType":"application/octet-stream","digest":%q,"size":%d}`, digest.FromBytes(b), len(b)))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]%s}`,
		fsm.TypeOCIManifest, parts[0], strings.Join(parts[1:], ","), extra)
}

// pushImage pushes a config, a layer and their manifest under a tag.
func (f *fixture) pushImage(n *testNode, repo, tag, extra string) (digest.Digest, []byte) {
	f.Helper()
	config, layer := []byte("{}"), []byte("layer of "+repo)
	f.pushBlob(n, repo, config)
	f.pushBlob(n, repo, layer)
	m := image(extra, config, layer)
	f.want(f.doOn(n, "PUT", "/v2/"+repo+"/manifests/"+tag, m, "Content-Type: "+fsm.TypeOCIManifest), 201, "")
	return digest.FromBytes(m), m
}
