package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// watchPause is how soon a changed file is noticed.
const watchPause = time.Second

// Certificates serves one certificate that changes while connections live. Make it with FromFiles or FromAuthority, and
// run it.
type Certificates struct {
	load   func(now time.Time) (*tls.Certificate, error) // a nil certificate means that there is nothing new
	now    func() time.Time
	logger *slog.Logger
	busy   sync.Mutex // one load at a time

	mu      sync.Mutex
	current *tls.Certificate
	fault   error
}

// FromFiles serves a pair of PEM files, and the new pair when they change. A pair that can't be used is refused at once
// here; later it leaves the old one in place, and Fault says why. One that is over, or not good yet, is used only where there was
// none before: a node with an old certificate still serves its peers, and the clients that look away.
func FromFiles(cert, key string, logger *slog.Logger) (*Certificates, error) {
	return fromFiles(cert, key, time.Now, logger)
}

func fromFiles(cert, key string, now func() time.Time, logger *slog.Logger) (*Certificates, error) {
	var last [2]stamp
	load := func(at time.Time) (*tls.Certificate, error) {
		var now [2]stamp
		for i, path := range []string{cert, key} {
			var err error
			if now[i], err = stampOf(path); err != nil {
				return nil, err
			}
		}
		if now == last {
			return nil, nil
		}
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("the certificate %s with the key %s: %w", cert, key, err)
		}
		if err := inTime(pair.Leaf, at); err != nil && last != [2]stamp{} {
			return nil, fmt.Errorf("%s: %w", cert, err)
		}
		last = now
		return &pair, nil
	}
	return newCertificates(load, now, logger)
}

func inTime(leaf *x509.Certificate, at time.Time) error {
	switch {
	case at.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is not good before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	case at.After(leaf.NotAfter):
		return fmt.Errorf("the certificate has been over since %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// stamp tells one content of a file from another without reading it.
type stamp struct {
	size     int64
	modified time.Time
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path) // through links: Kubernetes and certbot change those
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.Size(), info.ModTime()}, nil
}

// FromAuthority serves a certificate of the authority for the hosts, and renews it before it ends. both come from
// functions, since a cluster's secret and a node's addresses change while it runs.
func FromAuthority(authority func() (*Authority, error), hosts func() []string, now func() time.Time, logger *slog.Logger) (*Certificates, error) {
	var last *tls.Certificate
	var by *Authority
	load := func(at time.Time) (*tls.Certificate, error) {
		a, err := authority()
		if err != nil {
			return nil, err
		}
		// Where the clock was ahead, what it made isn't good yet when it is put right.
		if a == by && !at.Before(last.Leaf.NotBefore) && at.Before(last.Leaf.NotAfter.Add(-certificateRenew)) && covers(last.Leaf, hosts()) {
			return nil, nil
		}
		next, err := a.Issue(hosts(), at)
		if err == nil {
			last, by = next, a
		}
		return next, err
	}
	return newCertificates(load, now, logger)
}

func covers(leaf *x509.Certificate, hosts []string) bool {
	for _, h := range hosts {
		if leaf.VerifyHostname(h) != nil {
			return false
		}
	}
	return true
}

func newCertificates(load func(time.Time) (*tls.Certificate, error), now func() time.Time, logger *slog.Logger) (*Certificates, error) {
	c := &Certificates{load: load, now: now, logger: logger}
	c.Refresh()
	if c.current == nil {
		return nil, c.fault
	}
	if err := c.Fault(); err != nil {
		logger.Error("clients will refuse this node", "err", err)
	}
	return c, nil
}

// Run looks for a new certificate until ctx ends.
func (c *Certificates) Run(ctx context.Context) error { return watch(ctx, c.Refresh) }

// watch looks again and again, until ctx ends.
func watch(ctx context.Context, look func()) error {
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			look()
		}
	}
}

// Refresh looks for a new certificate now: when it is known that there is one, nobody should still see the old.
func (c *Certificates) Refresh() {
	c.busy.Lock()
	defer c.busy.Unlock()
	next, err := c.load(c.now())
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && (c.fault == nil || c.fault.Error() != err.Error()) {
		c.logger.Error("the new certificate can't be used; the one before stays", "err", err)
	}
	if next != nil {
		if c.current != nil {
			c.logger.Info("a new certificate is in use")
		}
		c.current = next
	}
	c.fault = err
}

// Fault is why the newest certificate isn't in use, or why the one in use is none for clients; nil when all is well.
func (c *Certificates) Fault() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != nil {
		return c.fault
	}
	return inTime(c.current.Leaf, c.now())
}

// Leaf is the certificate in use.
func (c *Certificates) Leaf() *x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.Leaf
}

// Covers tells whether the certificate is good for the host, a name or an address.
func (c *Certificates) Covers(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.Leaf.VerifyHostname(host) == nil
}

// TLS is what a listener needs. TLS 1.2 is the oldest that is spoken, for clients of the last decade.
func (c *Certificates) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.current, nil
		},
	}
}
