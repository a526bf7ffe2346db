package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"pier/cmd/pier/node"
)

const (
	devHost        = "127.0.0.1"
	devClusterStep = 2000 // from a node's API port to its cluster port
	devMaxNodes    = 7
)

type devOptions struct {
	nodes   int
	port    int
	dataDir string
	verbose bool
}

func newDev() *cobra.Command {
	o := &devOptions{}
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole cluster on this machine", Args: cobra.NoArgs,
		Long:    "Run a cluster of three nodes in one process, to try things out. Ctrl-C ends it.",
		Example: "  pier dev\n  pier dev --nodes 5 --data-dir ./cluster",
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().IntVar(&o.nodes, "nodes", 3, "how many nodes, 1 to 7")
	cmd.Flags().IntVar(&o.port, "port", 5001, "the first node's port; the others follow")
	cmd.Flags().StringVar(&o.dataDir, "data-dir", "", "keep the data there (default: a temporary directory)")
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show the nodes' logs")
	return cmd
}

func (o *devOptions) validate() error {
	if o.nodes < 1 || o.nodes > devMaxNodes {
		return &exitError{exitUsage, fmt.Sprintf("--nodes: want 1 to %d", devMaxNodes)}
	}
	if o.port < 1 || o.port+devClusterStep+o.nodes > 65536 {
		return &exitError{exitUsage, fmt.Sprintf("--port: want 1 to %d", 65536-devClusterStep-o.nodes)}
	}
	return nil
}

func (o *devOptions) run(cmd *cobra.Command) error {
	if err := o.validate(); err != nil {
		return err
	}
	if err := o.checkData(); err != nil {
		return err
	}
	if err := o.checkPorts(); err != nil {
		return err
	}
	dir := o.dataDir
	if dir == "" {
		made, err := os.MkdirTemp("", "pier-dev-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(made) }()
		dir = made
	}
	nodes, err := o.build(cmd, dir)
	if err != nil {
		return err
	}
	err = runAll(cmd, nodes)
	fmt.Fprintln(cmd.OutOrStdout(), "stopped")
	return err
}

// runAll runs the nodes until the command ends or one fails. A node that was told to leave its cluster goes alone.
func runAll(cmd *cobra.Command, nodes []*node.Node) error {
	var group errgroup.Group
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	var running atomic.Int64
	running.Store(int64(len(nodes)))
	for _, n := range nodes {
		group.Go(func() error {
			err := n.Run(ctx)
			if err != nil || running.Add(-1) == 0 {
				stop()
			} else if ctx.Err() == nil {
				fmt.Fprintln(cmd.OutOrStdout(), n.Name()+" has left")
			}
			return err
		})
	}
	group.Go(func() error { return announce(ctx, cmd, nodes) })
	return group.Wait()
}

// checkPorts tries every port before anything starts.
func (o *devOptions) checkPorts() error {
	var taken []string
	for i := range o.nodes {
		for _, p := range []int{o.port + i, o.port + devClusterStep + i} {
			err := tryPort(o.address(p), p >= o.port+devClusterStep)
			switch {
			case errors.Is(err, syscall.EADDRINUSE):
				taken = append(taken, strconv.Itoa(p))
			case err != nil:
				return err
			}
		}
	}
	if len(taken) > 0 {
		return fmt.Errorf("port %s of %s is taken: end what uses it (another pier dev?), or choose others with --port", strings.Join(taken, ", "), devHost)
	}
	return nil
}

// tryPort binds an address for a moment, for UDP too where gossip needs it.
func tryPort(address string, udp bool) error {
	lis, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	_ = lis.Close()
	if !udp {
		return nil
	}
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	return packets.Close()
}

// checkData refuses to start a part of the nodes that a directory holds: without a majority they would wait for ever.
func (o *devOptions) checkData() error {
	if o.dataDir == "" {
		return nil
	}
	held := o.nodes
	for i := o.nodes + 1; i <= devMaxNodes; i++ {
		if _, err := os.Stat(filepath.Join(o.dataDir, nodeName(i))); err == nil {
			held = i
		}
	}
	if held > o.nodes {
		return &exitError{exitUsage, fmt.Sprintf("--nodes: %s holds %d nodes; start all of them, or choose another --data-dir", o.dataDir, held)}
	}
	return nil
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

func (o *devOptions) address(p int) string { return net.JoinHostPort(devHost, strconv.Itoa(p)) }

func (o *devOptions) build(cmd *cobra.Command, dir string) ([]*node.Node, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	secret := filepath.Join(dir, "cluster.secret") // the first node makes it
	logger := slog.New(slog.DiscardHandler)
	if o.verbose {
		logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	}
	var nodes []*node.Node
	for i := range o.nodes {
		cfg := node.Default()
		cfg.Name = nodeName(i + 1)
		cfg.DataDir = filepath.Join(dir, cfg.Name)
		cfg.Listen = o.address(o.port + i)
		cfg.ClusterListen = o.address(o.port + devClusterStep + i)
		cfg.ClusterSecretFile = secret
		cfg.BootstrapExpect = o.nodes
		for j := range o.nodes {
			if j != i {
				cfg.Join = append(cfg.Join, o.address(o.port+devClusterStep+j))
			}
		}
		n, err := node.New(cfg, node.Options{Logger: logger.With("on", cfg.Name), Version: versionText()})
		if err != nil {
			for _, made := range nodes {
				made.Close()
			}
			return nil, fmt.Errorf("%s: %w", cfg.Name, err)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// announce prints the ready lines when, and only when, every node can take pushes.
func announce(ctx context.Context, cmd *cobra.Command, nodes []*node.Node) error {
	for _, n := range nodes {
		select {
		case <-ctx.Done():
			return nil
		case <-n.Ready():
		}
	}
	out := cmd.OutOrStdout()
	ready, push := fmt.Sprintf("%d nodes are ready:", len(nodes)), "Push to one, pull from another:"
	if len(nodes) == 1 {
		ready, push = "1 node is ready:", "Push to it, pull from it:"
	}
	fmt.Fprintln(out, ready)
	for _, n := range nodes {
		fmt.Fprintln(out, "  "+n.URL())
	}
	first, last := nodes[0].Address(), nodes[len(nodes)-1].Address()
	fmt.Fprintf(out, "\n%s\n  printf 'FROM scratch\\nLABEL from=pier\\n' | docker build -q -t %s/hello:1 - && docker push %s/hello:1 && docker pull %s/hello:1\n\nSee who is in:\n  pier cluster status --server %s\n\nCtrl-C stops them.\n", push, first, first, last, first)
	return nil
}
