package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	maxBundle   = 1 << 20
	maxShown    = 8 // certificates that a client may show: its own and those between it and the CA
	maxVerdicts = 4096
	// refusedFor is how long a refusal is kept: its reason may go with time.
	refusedFor = time.Minute
)

// Clients knows the CAs whose certificates name callers. Make it with ClientsFromFile, and run it. Safe for concurrent use.
//
// The common name of a certificate's subject is the caller's name, and nothing else in it counts. Alternative names are for
// hosts, mail and workloads: there may be many, of kinds that look alike as text, and a CA that vouches for a host's name
// doesn't mean a user of that name. Groups come from the cluster's state, which can take them away again.
type Clients struct {
	path   string
	logger *slog.Logger

	mu       sync.Mutex
	read     stamp
	pool     *x509.CertPool
	ends     time.Time // of the CA that ends first
	fault    error
	verdicts map[[sha256.Size]byte]verdict // a client shows the same certificate with each request
}

// verdict is what came of a certificate, and until when that holds.
type verdict struct {
	name  string
	until time.Time
	err   error
}

// ErrCertificate is what every refusal of a client's certificate is. Its text may be shown to the client.
var ErrCertificate = errors.New("the client certificate is not accepted")

// ClientsFromFile takes the CA certificates of a PEM file, and those of the new file when it changes. A file that can't be
// used is refused at once here; later it leaves the CAs from before in place, and Fault says why.
func ClientsFromFile(path string, logger *slog.Logger) (*Clients, error) {
	c := &Clients{path: path, logger: logger}
	c.refresh()
	if c.pool == nil {
		return nil, c.fault
	}
	return c, nil
}

// Run looks for a changed file until ctx ends.
func (c *Clients) Run(ctx context.Context) error { return watch(ctx, c.refresh) }

func (c *Clients) refresh() {
	now, err := stampOf(c.path)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && now == c.read && c.fault == nil {
		return
	}
	var pool *x509.CertPool
	var ends time.Time
	if err == nil {
		pool, ends, err = readBundle(c.path)
	}
	if err != nil {
		if c.pool != nil && (c.fault == nil || c.fault.Error() != err.Error()) {
			c.logger.Error("the new CAs for client certificates can't be used; those before stay", "err", err)
		}
		c.fault = err
		return
	}
	if c.pool != nil {
		c.logger.Info("the CAs for client certificates were read again")
	}
	c.read, c.pool, c.ends, c.fault, c.verdicts = now, pool, ends, nil, make(map[[sha256.Size]byte]verdict)
}

// readBundle takes a file whole or not at all: one that is cut off would silently shut somebody out.
func readBundle(path string) (pool *x509.CertPool, ends time.Time, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, ends, err
	}
	if len(data) > maxBundle {
		return nil, ends, fmt.Errorf("%s has more than %d bytes", path, maxBundle)
	}
	found := 0
	pool = x509.NewCertPool()
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, ends, fmt.Errorf("%s: block %d (%.40s) is no certificate", path, found+1, block.Type)
		}
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return nil, ends, fmt.Errorf("%s: certificate %d (%.80s) is no CA's; the file is for the CAs of clients, not for clients", path, found+1, cert.Subject)
		}
		pool.AddCert(cert)
		if found == 0 || cert.NotAfter.Before(ends) {
			ends = cert.NotAfter
		}
		found++
	}
	if found == 0 || bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, ends, fmt.Errorf("%s: after %d CA certificates in PEM comes something that is none", path, found)
	}
	return pool, ends, nil
}

// Ends is when the first of the CAs in use does.
func (c *Clients) Ends() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ends
}

// Fault is why the newest file isn't in use; nil when it is.
func (c *Clients) Fault() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// Ask makes a listener ask clients for certificates of these CAs. One that a client shows isn't judged in the handshake, whose
// failure no client can explain to a person, but with each request: there is a place for the reason, and what has ended
// meanwhile or was taken back ends on an open connection, too. That the client has the key is proved in the handshake.
func (c *Clients) Ask(base *tls.Config) *tls.Config {
	asking := base.Clone()
	asking.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cfg := base.Clone()
		c.mu.Lock()
		defer c.mu.Unlock()
		cfg.ClientAuth, cfg.ClientCAs = tls.RequestClientCert, c.pool
		return cfg, nil
	}
	return asking
}

// Verify gives the name in the certificate that a client has shown first, and when its chain ends. Every error is an
// ErrCertificate.
func (c *Clients) Verify(shown []*x509.Certificate, now time.Time) (name string, until time.Time, err error) {
	if len(shown) == 0 || len(shown) > maxShown {
		return "", time.Time{}, fmt.Errorf("%w: it comes with %d others, and %d may be", ErrCertificate, len(shown)-1, maxShown-1)
	}
	sum := sha256.New()
	for _, s := range shown {
		_, _ = sum.Write(s.Raw)
	}
	key := [sha256.Size]byte(sum.Sum(nil))
	c.mu.Lock()
	pool := c.pool
	v := c.verdicts[key]
	c.mu.Unlock()
	if !now.Before(v.until) {
		v = judge(pool, shown, now)
		c.keep(pool, key, v)
	}
	if v.err != nil {
		return "", time.Time{}, v.err
	}
	return v.name, v.until, nil
}

// keep remembers a verdict, unless the CAs have changed since.
func (c *Clients) keep(pool *x509.CertPool, key [sha256.Size]byte, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pool != pool {
		return
	}
	if len(c.verdicts) >= maxVerdicts {
		clear(c.verdicts)
	}
	c.verdicts[key] = v
}

func judge(pool *x509.CertPool, shown []*x509.Certificate, now time.Time) verdict {
	leaf := shown[0]
	between := x509.NewCertPool()
	for _, s := range shown[1:] {
		between.AddCert(s)
	}
	refused := func(format string, args ...any) verdict {
		return verdict{until: now.Add(refusedFor), err: fmt.Errorf("%w: "+format, append([]any{ErrCertificate}, args...)...)}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, CurrentTime: now,
	})
	if err != nil {
		return refused("%s", whyNot(leaf, err, now))
	}
	name, err := commonName(leaf)
	if err != nil {
		return refused("%w", err)
	}
	v := verdict{name: name}
	for _, chain := range chains {
		end := leaf.NotAfter
		for _, link := range chain {
			if link.NotAfter.Before(end) {
				end = link.NotAfter
			}
		}
		if end.After(v.until) {
			v.until = end
		}
	}
	return v
}

// whyNot says it to a person who has the certificate at hand, and not to one who has read Go's source.
func whyNot(leaf *x509.Certificate, err error, now time.Time) string {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return "it is not of a CA that this registry takes clients' certificates from"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "it is not for clients (extended key usage clientAuth)"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(leaf.NotBefore):
		return "it is not valid before " + leaf.NotBefore.UTC().Format(time.RFC3339)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.After(leaf.NotAfter):
		return "it has expired, at " + leaf.NotAfter.UTC().Format(time.RFC3339)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "a CA between it and this registry's has expired, or is not valid yet"
	}
	return err.Error()
}

// commonName gives the one name that a principal could have.
func commonName(leaf *x509.Certificate) (string, error) {
	var names []string
	for _, a := range leaf.Subject.Names {
		if text, ok := a.Value.(string); ok && a.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			names = append(names, text)
		}
	}
	if len(names) != 1 {
		return "", fmt.Errorf("its subject has %d common names, and one is needed: the user's or the robot's", len(names))
	}
	if err := CheckName(names[0]); err != nil {
		return "", fmt.Errorf("its common name is none of a user or a robot: %w", err)
	}
	return names[0], nil
}
