package process

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pier/test/ports"
)

// Config says what to run.
type Config struct {
	// Binary is the path of the pier program; Dir gets data and logs, and must be empty or absent.
	Binary, Dir string
	// Nodes is the size of the cluster, one or more.
	Nodes int
	// TLS is HTTPS with certificates of the cluster's own authority.
	TLS bool
	// Args are further flags for every node's serve.
	Args []string
}

// Validate reports every fault at once.
func (c Config) Validate() error {
	var faults []error
	if c.Binary == "" {
		faults = append(faults, errors.New("process: no binary"))
	}
	if c.Dir == "" {
		faults = append(faults, errors.New("process: no directory"))
	}
	if c.Nodes < 1 {
		faults = append(faults, fmt.Errorf("process: %d nodes", c.Nodes))
	}
	return errors.Join(faults...)
}

// Cluster is a set of nodes. Its methods are for one goroutine at a time.
type Cluster struct {
	Nodes []*Node
	// Authority is the certificate of the cluster's authority, PEM, where clients come by HTTPS.
	Authority string

	cfg    Config
	client *http.Client
	ports  ports.Claim
}

// Start runs the nodes and returns when all of them take pushes, or when ctx ends. After an error nothing is left running.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the cluster's directory: %w", err)
	}
	c := &Cluster{cfg: cfg, client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	if err := c.lay(); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return nil, errors.Join(err, c.Stop())
		}
	}
	if cfg.TLS {
		if err := c.trust(ctx); err != nil {
			return nil, errors.Join(err, c.Stop())
		}
	}
	for _, n := range c.Nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nil, errors.Join(err, c.Stop())
		}
	}
	return c, nil
}

// trust asks the first node for its authority, and has the client trust that and nothing else.
func (c *Cluster) trust(ctx context.Context) error {
	err := poll(ctx, func() (err error) {
		c.Authority, err = c.Nodes[0].Pier(ctx, "ca")
		return err
	})
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(c.Authority)) {
		return fmt.Errorf("%s prints no certificate: %q", c.Nodes[0].Name, c.Authority)
	}
	c.client.Transport = &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}
	return nil
}

// lay gives every node its name, ports and flags.
func (c *Cluster) lay() error {
	n := c.cfg.Nodes
	ports, err := c.freePorts(2 * n)
	if err != nil {
		return err
	}
	var peers []string
	for _, p := range ports[n:] {
		peers = append(peers, fmt.Sprintf("127.0.0.1:%d", p))
	}
	var together []string
	if n > 1 {
		together = []string{"--join", strings.Join(peers, ","), "--bootstrap-expect", fmt.Sprint(n),
			"--cluster-secret-file", filepath.Join(c.cfg.Dir, "cluster.secret")}
	}
	for i := range n {
		c.add(ports[i], peers[i], together)
	}
	return nil
}

// add gives one more node its name and flags.
func (c *Cluster) add(port int, peer string, more []string) *Node {
	name := fmt.Sprintf("node%d", len(c.Nodes)+1)
	dir := filepath.Join(c.cfg.Dir, name)
	args := []string{"serve", "--name", name, "--data-dir", dir,
		"--listen", fmt.Sprintf("127.0.0.1:%d", port), "--cluster-listen", peer}
	scheme := "http"
	if c.cfg.TLS {
		scheme = "https"
		args = append(args, "--tls", "auto")
	}
	n := &Node{
		Name:    name,
		DataDir: dir,
		URL:     fmt.Sprintf("%s://127.0.0.1:%d", scheme, port),
		binary:  c.cfg.Binary,
		args:    slices.Concat(args, more, c.cfg.Args),
		logPath: dir + ".log",
		client:  c.client,
	}
	c.Nodes = append(c.Nodes, n)
	return n
}

// StartAlone starts one more node, which is a cluster of its own until it joins this one.
func (c *Cluster) StartAlone(ctx context.Context) (*Node, error) {
	ports, err := c.freePorts(2)
	if err != nil {
		return nil, err
	}
	n := c.add(ports[0], fmt.Sprintf("127.0.0.1:%d", ports[1]), nil)
	if err := n.Start(); err != nil {
		return nil, err
	}
	return n, n.WaitReady(ctx)
}

// URLs are the API addresses of the nodes, in order.
func (c *Cluster) URLs() []string {
	var urls []string
	for _, n := range c.Nodes {
		urls = append(urls, n.URL)
	}
	return urls
}

// Leader asks the nodes who leads and returns its index. It asks again until they know or ctx ends.
func (c *Cluster) Leader(ctx context.Context) (int, error) {
	found := -1
	err := poll(ctx, func() error {
		for _, n := range c.Nodes {
			name, err := c.leaderBy(ctx, n)
			if err != nil {
				continue
			}
			for i, m := range c.Nodes {
				if m.Name == name {
					found = i
					return nil
				}
			}
		}
		return errors.New("no node says who leads")
	})
	return found, err
}

func (c *Cluster) leaderBy(ctx context.Context, n *Node) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.URL+"/api/v1/cluster/status", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var status struct {
		Nodes []struct{ Name, Role string }
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&status); err != nil {
		return "", fmt.Errorf("read %s's status: %w", n.Name, err)
	}
	for _, member := range status.Nodes {
		if member.Role == "leader" {
			return member.Name, nil
		}
	}
	return "", errors.New("nobody leads")
}

// Stop ends all nodes as SIGTERM does and waits for them. Nodes that don't end in 20 s are killed, and that is an error.
func (c *Cluster) Stop() error {
	var faults []error
	for _, n := range c.Nodes {
		n.terminate()
	}
	for _, n := range c.Nodes {
		faults = append(faults, n.Stop())
	}
	c.ports.Release()
	return errors.Join(faults...)
}

// freePorts takes n ports of 127.0.0.1, which stay the cluster's until it stops.
func (c *Cluster) freePorts(n int) ([]int, error) {
	var taken []int
	for range n {
		p, err := c.ports.Take()
		if err != nil {
			return nil, err
		}
		taken = append(taken, p)
	}
	return taken, nil
}
