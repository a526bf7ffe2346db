package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"pier/test/process"
	"pier/test/proxy"
)

// runScenario starts a cluster of its own, runs the suite against it and stops the cluster.
func runScenario(ctx context.Context, s suite, o options, name string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("scenario %s: %w", name, err)
		}
	}()
	dir := filepath.Join(s.run, "data-"+name)
	nodes := 3
	if name == "one" {
		nodes = 1
	}
	start, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cluster, err := process.Start(start, process.Config{Binary: o.binary, Dir: dir, Nodes: nodes, TLS: name == "secure"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	switch name {
	case "one":
		return runVersions(ctx, s, o, name, strings.TrimPrefix(cluster.Nodes[0].URL, "http://"))
	case "three":
		return behind(ctx, name, proxy.Config{Backends: cluster.URLs()}, nil, func(ctx context.Context, _ *proxy.Proxy, address string) error {
			return runVersions(ctx, s, o, name, address)
		})
	case "secure":
		return secured(ctx, s, o, cluster, dir)
	default:
		cfg := proxy.Config{Backends: cluster.URLs(), Retry: 30 * time.Second}
		return behind(ctx, name, cfg, nil, func(ctx context.Context, p *proxy.Proxy, address string) error {
			return underKills(ctx, s, o, killed{cluster: cluster, proxy: p, address: address})
		})
	}
}

// behind serves a proxy on a free port of 127.0.0.1 while f runs, by HTTPS where it has a certificate.
func behind(ctx context.Context, name string, cfg proxy.Config, cert *tls.Certificate, f func(context.Context, *proxy.Proxy, string) error) error {
	p, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the proxy: %w", err)
	}
	srv := &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}
	group, ctx := errgroup.WithContext(ctx)
	serve := srv.Serve
	if cert != nil {
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}}
		serve = func(lis net.Listener) error { return srv.ServeTLS(lis, "", "") }
	}
	group.Go(func() error {
		if err := serve(lis); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		defer func() { _ = srv.Close() }()
		return f(ctx, p, lis.Addr().String())
	})
	err = group.Wait()
	stats := p.Stats()
	fmt.Printf("%-6s proxy: %d requests, %v by node, %d retries, %d failed; the slowest took %.1f s: %s\n",
		name, stats.Requests, stats.Backend, stats.Retries, stats.Failed, stats.Slowest.Seconds(), stats.Slow)
	if stats.Failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d requests got no answer of any node", stats.Failed))
	}
	return err
}

// killed is a cluster whose leaders die.
type killed struct {
	cluster *process.Cluster
	proxy   *proxy.Proxy
	address string
}

// underKills repeats the suite while leaders are killed, until each version has seen o.kills of them.
func underKills(ctx context.Context, s suite, o options, k killed) error {
	for _, version := range o.versions {
		kills, stop := 0, make(chan struct{})
		enough := make(chan struct{})
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error {
			ticker := time.NewTicker(o.every)
			defer ticker.Stop()
			for {
				if err := k.killLeader(ctx, o.dead); err != nil {
					return err
				}
				if kills++; kills == o.kills {
					close(enough)
				}
				select {
				case <-stop:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				case <-ticker.C:
				}
			}
		})
		group.Go(func() error {
			defer close(stop)
			for round := 1; ; round++ {
				err := s.once(ctx, runConfig{name: "kill", version: version, registry: k.address, round: round})
				if err != nil {
					return err
				}
				select {
				case <-enough:
					return nil
				default:
				}
			}
		})
		if err := group.Wait(); err != nil {
			return err
		}
		fmt.Printf("       %d leaders killed under version %s\n", kills, version)
	}
	return nil
}

// killLeader kills whoever leads, starts it again after a while, as a supervisor would, and waits until it is ready. The
// proxy sends it requests as soon as it answers, and it may answer 503 then.
func (k killed) killLeader(ctx context.Context, dead time.Duration) error {
	leader, err := k.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	node := k.cluster.Nodes[leader]
	back, cancel := context.WithTimeout(ctx, dead+30*time.Second)
	defer cancel()
	k.proxy.Quiet(leader, func() { err = replace(back, node, dead) })
	if err != nil {
		return err
	}
	return node.WaitReady(back)
}

// replace kills a node and starts it again after a while; it returns when the node answers.
func replace(ctx context.Context, node *process.Node, dead time.Duration) error {
	if err := node.Kill(); err != nil {
		return err
	}
	restart := time.NewTimer(dead)
	defer restart.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-restart.C:
	}
	if err := node.Start(); err != nil {
		return err
	}
	return node.WaitUp(ctx)
}
