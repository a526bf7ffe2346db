package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/api/client"
	"pier/cluster/port"
	"pier/cmd/pier/node"
	"pier/test/ports"
)

// patience is how long the harness waits for what must happen.
const patience = 60 * time.Second

// Cluster is n nodes of a test, named n1, n2 …
type Cluster struct {
	T     testing.TB
	Net   *Net
	Nodes []*Node
	dir   string
	http  *http.Client
	tune  node.Tuning
	ports ports.Claim
	// configure changes a node's settings before each of its lives; nil changes nothing.
	configure func(x *Node, cfg *node.Config)
}

// Node is one of them; it may be running or not.
type Node struct {
	*node.Node
	*Client
	Name    string
	Dir     string
	cluster *Cluster
	address string
	listen  string
	scheme  string
	secret  string // the cluster's secret file; empty: one of its own
	log     *journal
	stop    context.CancelFunc
	done    chan error
}

// Start forms a cluster of n and waits until all can take pushes.
func Start(t testing.TB, n int) *Cluster {
	t.Helper()
	return StartTuned(t, n, node.Tuning{})
}

// StartTuned is Start with other times and bounds; zero fields mean the harness's own, which are short.
func StartTuned(t testing.TB, n int, tune node.Tuning) *Cluster {
	t.Helper()
	return StartConfigured(t, n, tune, nil)
}

// StartConfigured is StartTuned with settings of the test's own.
func StartConfigured(t testing.TB, n int, tune node.Tuning, configure func(x *Node, cfg *node.Config)) *Cluster {
	t.Helper()
	c := lay(t, n, tune)
	c.configure = configure
	return c.start()
}

// lay makes the nodes; none runs.
func lay(t testing.TB, n int, tune node.Tuning) *Cluster {
	t.Helper()
	set(&tune.VoterDelay, 500*time.Millisecond)
	set(&tune.CompareInterval, 500*time.Millisecond)
	set(&tune.ReserveBytes, 1)
	set(&tune.Grace, 2*time.Second)
	set(&tune.AwayWait, 2*time.Second)
	c := &Cluster{T: t, Net: NewNet(), dir: t.TempDir(), http: &http.Client{Transport: &http.Transport{}}, tune: tune}
	t.Cleanup(c.http.CloseIdleConnections)
	t.Cleanup(c.ports.Release)
	secret := filepath.Join(c.dir, "secret")
	if err := port.SaveSecrets(secret, port.Secrets{port.NewSecret()}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		c.add(fmt.Sprintf("n%d", i+1))
	}
	return c
}

func (c *Cluster) start() *Cluster {
	c.T.Helper()
	c.T.Cleanup(c.end) // before the disks go
	for _, x := range c.Nodes {
		x.Start()
	}
	c.WaitReady()
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Cluster) add(name string) *Node {
	x := &Node{
		Name: name, Dir: filepath.Join(c.dir, name), cluster: c, address: c.freeAddress(), listen: c.freeAddress(),
		secret: filepath.Join(c.dir, "secret"), log: newJournal(c.T),
	}
	x.Client = &Client{name: name, url: x.URL, http: c.http}
	c.Nodes = append(c.Nodes, x)
	return x
}

// freeAddress is a loopback address that stays the test's, also while no node listens at it.
func (c *Cluster) freeAddress() string {
	c.T.Helper()
	n, err := c.ports.Take()
	if err != nil {
		c.T.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", n)
}

// StartAlone starts one more node, which is a cluster of its own.
func (c *Cluster) StartAlone() *Node {
	c.T.Helper()
	x := c.add(fmt.Sprintf("n%d", len(c.Nodes)+1))
	x.secret = ""
	x.Start()
	c.WaitReady()
	return x
}

// AddStranger makes a node that is told to join the cluster and has another secret. It isn't started.
func (c *Cluster) AddStranger() *Node {
	c.T.Helper()
	x := c.add(fmt.Sprintf("n%d", len(c.Nodes)+1))
	x.secret = filepath.Join(c.dir, "another-secret")
	return x
}

// SecretFile is where the node has the cluster's secret.
func (x *Node) SecretFile() string { return x.secret }

// Control is the node's control socket.
func (x *Node) Control() *client.Client {
	return client.New(client.Options{Socket: filepath.Join(x.Dir, node.SocketName)})
}

func (c *Cluster) peers(but string) []string {
	var out []string
	for _, x := range c.Nodes {
		if x.Name != but && x.secret != "" {
			out = append(out, x.address)
		}
	}
	return out
}

// Start runs the node, with whatever its directory holds.
func (x *Node) Start() {
	t := x.cluster.T
	t.Helper()
	cfg := node.Default()
	cfg.Name, cfg.DataDir, cfg.Listen, cfg.ClusterListen = x.Name, x.Dir, x.listen, x.address
	cfg.RaftTimeout = 300 * time.Millisecond
	cfg.ClusterSecretFile = x.secret
	if len(x.cluster.Nodes) > 1 && x.secret != "" {
		cfg.Join, cfg.BootstrapExpect = x.cluster.peers(x.Name), len(x.cluster.Nodes)
	}
	if x.cluster.configure != nil {
		x.cluster.configure(x, &cfg)
	}
	scheme := "http://"
	if cfg.Access.TLS != "" || cfg.Access.TLSCert != "" {
		scheme = "https://"
	}
	if x.scheme != scheme { // clients of its life before may be reading it
		x.scheme = scheme
	}
	n, err := node.New(cfg, node.Options{
		Network: x.cluster.Net.Of(x.Name), Logger: x.log.logger(x.Name), Version: "test",
		Tuning: x.cluster.tune,
	})
	if err != nil {
		t.Fatalf("%s: %v", x.Name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x.Node, x.stop, x.done = n, cancel, make(chan error, 1)
	go func() { x.done <- n.Run(ctx) }()
}

// URL is where clients reach the node, in this life and the next.
func (x *Node) URL() string { return x.scheme + x.listen }

// Stop ends the node politely and waits.
func (x *Node) Stop() {
	if x.stop == nil {
		return
	}
	x.stop()
	x.wait("stop")
}

// Kill ends the node as a power cut would, and waits until its files are free.
func (x *Node) Kill() {
	if x.stop == nil {
		return
	}
	x.Node.Kill()
	x.wait("die")
}

func (x *Node) wait(what string) {
	select {
	case err := <-x.done:
		if err != nil && !errors.Is(err, context.Canceled) {
			x.cluster.T.Logf("%s ended: %v", x.Name, err)
		}
	case <-time.After(patience):
		x.cluster.T.Errorf("%s does not %s", x.Name, what)
	}
	x.stop = nil
}

// Ended tells whether the node has ended by itself. It can be started again then.
func (x *Node) Ended() bool {
	if x.stop == nil {
		return true
	}
	select {
	case err := <-x.done:
		x.cluster.T.Logf("%s ended by itself: %v", x.Name, err)
		x.stop = nil
		return true
	default:
		return false
	}
}

// Move gives the node other addresses, as a new lease or a new container would. It must not be running.
func (x *Node) Move() {
	x.address, x.listen = x.cluster.freeAddress(), x.cluster.freeAddress()
}

// Wipe empties the node's disk. It must not be running.
func (x *Node) Wipe() {
	if err := os.RemoveAll(x.Dir); err != nil {
		x.cluster.T.Fatal(err)
	}
}

// SaveDisk copies the disk of a node that isn't running; RestoreDisk brings the copy back.
func (x *Node) SaveDisk() string {
	to := filepath.Join(x.cluster.dir, fmt.Sprintf("%s-%d", x.Name, time.Now().UnixNano()))
	if err := os.CopyFS(to, os.DirFS(x.Dir)); err != nil {
		x.cluster.T.Fatal(err)
	}
	return to
}

// RestoreDisk replaces the disk by a copy.
func (x *Node) RestoreDisk(from string) {
	x.Wipe()
	if err := os.CopyFS(x.Dir, os.DirFS(from)); err != nil {
		x.cluster.T.Fatal(err)
	}
}

// BlobPath is where the node keeps a blob.
func (x *Node) BlobPath(d digest.Digest) string {
	return filepath.Join(x.Dir, "blobs", string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}

// Holds tells whether the blob is on the node's disk.
func (x *Node) Holds(d digest.Digest) bool {
	_, err := os.Stat(x.BlobPath(d))
	return err == nil
}

// Running tells whether the node was started and not ended by the test.
func (x *Node) Running() bool { return x.stop != nil }

// WaitReady waits until every running node can take pushes.
func (c *Cluster) WaitReady() {
	c.T.Helper()
	for _, x := range c.Nodes {
		if !x.Running() {
			continue
		}
		select {
		case <-x.Ready():
		case err := <-x.done:
			c.T.Fatalf("%s ended: %v", x.Name, err)
		case <-time.After(patience):
			c.T.Fatalf("%s does not become ready", x.Name)
		}
	}
}

// Leader gives the node that leads, once all running nodes agree.
func (c *Cluster) Leader() *Node {
	c.T.Helper()
	var found *Node
	c.Eventually("the nodes agree on a leader", func() bool {
		found = nil
		for _, x := range c.Nodes {
			if x.Running() && x.Cluster().Role() == "leader" {
				found = x
			}
		}
		return found != nil
	})
	return found
}

// Follower gives a running node that doesn't lead.
func (c *Cluster) Follower() *Node {
	leader := c.Leader()
	for _, x := range c.Nodes {
		if x.Running() && x != leader {
			return x
		}
	}
	c.T.Fatal("there is no follower")
	return nil
}

// Eventually waits until ok, or fails the test with what was waited for.
func (c *Cluster) Eventually(what string, ok func() bool) {
	c.T.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			c.T.Fatalf("it did not come true that %s", what)
		case <-tick.C:
		}
	}
}
