package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/sync/errgroup"
)

const (
	// pause is how soon a certificate that another node got is in use here.
	pause = time.Second
	// orderTime bounds one order; leaseTime is when others may think that the node which made it is gone.
	orderTime = 4 * time.Minute
	leaseTime = 5 * time.Minute
	// noteTime is for writing down how an order went; a node that is about to end has less.
	noteTime     = 15 * time.Second
	lastNoteTime = 2 * time.Second
)

// Config is what a Keeper is told.
type Config struct {
	// Names get a certificate each; a client that asks for another one is refused.
	Names []string
	// Directory is the ACME server's address.
	Directory string
	// Email is given to the ACME server; it may be empty.
	Email string
	// Roots are whom to trust about the ACME server; nil is the system's.
	Roots *x509.CertPool
	// Web says that port 80 of the names reaches ServeHTTP, which http-01 needs.
	Web bool
	// Node names this node, as no other one is named.
	Node func() string
	// Gone is a hint that a node won't finish its order; nil means never. Two that order at once do no harm: the second makes
	// the first give up.
	Gone func(node string) bool
	// UserAgent is what the ACME server sees.
	UserAgent string
	Store     Store
	Logger    *slog.Logger
}

// Validate reports every fault at once.
func (c Config) Validate() error {
	var faults []error
	if len(c.Names) == 0 {
		faults = append(faults, errors.New("no name to get a certificate for"))
	}
	for _, name := range c.Names {
		if !IsName(name) {
			faults = append(faults, fmt.Errorf("%q: an ACME server gives certificates for plain names of hosts only, and only in lower case", name))
		}
	}
	if c.Directory == "" || c.Node == nil || c.Store == nil || c.Logger == nil {
		faults = append(faults, errors.New("a directory, a node, a store and a logger are needed"))
	}
	return errors.Join(faults...)
}

// IsName tells whether an ACME server can be asked for a certificate for the name: letters, digits and hyphens with dots
// between, no address, no pattern.
func IsName(name string) bool {
	if len(name) > 200 || net.ParseIP(name) != nil {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

// Keeper has the certificates of the names, and sees to it that there are some.
type Keeper struct {
	cfg     Config
	docs    names
	stopgap *tls.Certificate
	http    *http.Client
	started time.Time

	looking sync.Mutex // one look at a time
	mu      sync.Mutex
	known   map[string]held
}

// held is what this node knows of a name.
type held struct {
	certificate *tls.Certificate // nil: none yet
	generation  uint64
	replace     bool // it is to be replaced though it isn't due
	fault       string
	blocked     string // why this node can't even try to get one
}

// New checks cfg and reads what certificates there are. It asks nobody for any: Run does.
func New(cfg Config) (*Keeper, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Gone == nil {
		cfg.Gone = func(string) bool { return false }
	}
	stopgap, err := newStopgap(time.Now())
	if err != nil {
		return nil, fmt.Errorf("make a certificate for the time without one: %w", err)
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots},
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
	}
	k := &Keeper{
		cfg: cfg, docs: namesOf(cfg.Directory), stopgap: stopgap, started: time.Now(), known: make(map[string]held),
		http: &http.Client{Transport: transport, Timeout: time.Minute},
	}
	k.look()
	return k, nil
}

// Run looks for certificates that others got, and orders those that are missing or about to end, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.http.CloseIdleConnections()
	k.forget()
	group, ctx := errgroup.WithContext(ctx)
	every := func(do func()) func() error {
		return func() error {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				do()
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
				}
			}
		}
	}
	group.Go(every(k.look))
	group.Go(every(func() {
		for _, name := range k.cfg.Names {
			if ctx.Err() == nil && k.due(name) {
				k.renew(ctx, name)
			}
		}
	}))
	return group.Wait()
}

// forget makes the next look read everything: the node may be in another cluster than it was.
func (k *Keeper) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, now := range k.known {
		now.generation = 0
		k.known[name] = now
	}
}

// look takes over what the documents say.
func (k *Keeper) look() {
	k.looking.Lock()
	defer k.looking.Unlock()
	for _, name := range k.cfg.Names {
		k.mu.Lock()
		was := k.known[name]
		k.mu.Unlock()
		now := k.lookAt(name, was)
		k.mu.Lock()
		now.blocked = k.known[name].blocked
		k.known[name] = now
		k.mu.Unlock()
		if now.certificate != was.certificate && (was.certificate == nil || !now.certificate.Leaf.Equal(was.certificate.Leaf)) {
			k.cfg.Logger.Info("a certificate is in use", "host", name, "until", now.certificate.Leaf.NotAfter, "issuer", now.certificate.Leaf.Issuer.CommonName)
		}
		if now.fault != was.fault && now.fault != "" {
			k.cfg.Logger.Warn("a public name has no good certificate", "host", name, "err", now.fault)
		}
	}
}

func (k *Keeper) lookAt(name string, was held) held {
	now := was
	body, generation, err := k.cfg.Store.Local(k.docs.certificate(name))
	if err == nil && generation != was.generation && generation != 0 {
		var doc certificate
		if _, err = read(&doc, body, generation, nil); err == nil {
			var next *tls.Certificate
			if next, err = doc.parse(name); err == nil {
				now.certificate, now.generation, now.replace = next, generation, doc.Replace
			}
		}
	}
	now.fault = k.judge(name, now, err)
	return now
}

// judge says what is wrong with a name's certificate, for people.
func (k *Keeper) judge(name string, it held, err error) string {
	if err != nil {
		return "its document can't be used: " + err.Error()
	}
	var o order
	body, generation, err := k.cfg.Store.Local(k.docs.order(name))
	if _, err = read(&o, body, generation, err); err != nil {
		return err.Error()
	}
	failed := "; node " + o.By + " got none from the ACME server: " + o.Error
	if o.Error == "" {
		failed = " until the ACME server " + k.cfg.Directory + " has given one"
	}
	switch now, current := time.Now(), it.certificate; {
	case current == nil:
		return "there is no certificate yet, and clients that ask for this name are refused" + failed
	case now.After(current.Leaf.NotAfter):
		return "the certificate has ended on " + day(current.Leaf.NotAfter) + ", and clients refuse it" + failed
	case o.Error != "" && it.replace:
		return "the certificate is to be replaced, and goes on being used" + failed
	case o.Error != "" && it.due(now):
		return "the certificate ends on " + day(current.Leaf.NotAfter) + failed
	}
	return ""
}

func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// due tells whether the name needs a new certificate.
func (k *Keeper) due(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.known[name].due(time.Now())
}

func (h held) due(now time.Time) bool {
	return h.certificate == nil || h.replace || isDue(h.certificate.Leaf, now)
}

// isDue is so for the last third of a certificate's time, and at most 30 days before its end.
func isDue(leaf *x509.Certificate, now time.Time) bool {
	ahead := min(leaf.NotAfter.Sub(leaf.NotBefore)/3, 30*24*time.Hour)
	return now.After(leaf.NotAfter.Add(-ahead))
}

// Fault is what is wrong with the certificates; nil when nothing is.
func (k *Keeper) Fault() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var faults []error
	for _, name := range k.cfg.Names {
		now := k.known[name]
		var said []string
		if now.fault != "" {
			said = append(said, now.fault)
		}
		if now.blocked != "" && now.due(time.Now()) {
			said = append(said, "no certificate can be asked for now: "+now.blocked)
		}
		if said != nil {
			faults = append(faults, fmt.Errorf("%s: %s", name, strings.Join(said, "; ")))
		}
	}
	return errors.Join(faults...)
}

// TLS is what a listener needs: the certificate of the name that a client asks for, and the answers to an ACME server that
// asks by tls-alpn-01. A client that names nobody gets the certificate of the first name.
func (k *Keeper) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1", acme.ALPNProto},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			host := hello.ServerName
			if host == "" {
				host = k.cfg.Names[0]
			}
			if host = plainHost(host); !k.Covers(host) {
				return nil, nil // the client hears: unrecognized name
			}
			if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
				return k.proof(hello.Context(), host)
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			if current := k.known[host].certificate; current != nil {
				return current, nil
			}
			return k.stopgap, nil
		},
	}
}

// Covers tells whether the host is one that this keeps a certificate for.
func (k *Keeper) Covers(host string) bool { return slices.Contains(k.cfg.Names, plainHost(host)) }

func plainHost(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }
