package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Config says where requests go. Backends is needed, everything else has a useful zero value.
type Config struct {
	// Backends are the base URLs of the nodes, such as http://127.0.0.1:5001.
	Backends []string
	// Retry is for how long a request is tried again on another node after a 503, and after nothing else. Zero: the first
	// answer stands.
	Retry time.Duration
	// Pause is the time between two tries; zero means 100 ms.
	Pause time.Duration
	// Spool is how many bytes of a request body are kept to be sent again; zero means 16 MiB. A request with a longer body
	// is sent once.
	Spool int64
	// Roots are the authorities of backends with HTTPS; nil means those of the system.
	Roots *x509.CertPool
	// Seed makes the choice of nodes repeatable; zero means a random one.
	Seed uint64
}

// Validate reports every fault of the configuration at once.
func (c Config) Validate() error {
	var faults []error
	if len(c.Backends) == 0 {
		faults = append(faults, errors.New("proxy: no backends"))
	}
	for _, b := range c.Backends {
		if u, err := url.Parse(b); err != nil || u.Scheme == "" || u.Host == "" {
			faults = append(faults, fmt.Errorf("proxy: backend %q is not an absolute URL", b))
		}
	}
	if c.Retry < 0 || c.Pause < 0 || c.Spool < 0 {
		faults = append(faults, errors.New("proxy: Retry, Pause and Spool can't be negative"))
	}
	return errors.Join(faults...)
}

// Stats counts what passed since New.
type Stats struct {
	Requests uint64         // requests that clients sent
	Retries  uint64         // tries beyond a request's first
	Failed   uint64         // requests that ended without an answer of any node
	Backend  []uint64       // tries by backend, in the order of Config.Backends
	Status   map[int]uint64 // answers of nodes by status

	Slowest time.Duration // the longest time from a request to the end of its answer, retries included
	Slow    string        // that request's method and path
}

// Proxy is an http.Handler. All methods may be called at once.
type Proxy struct {
	backends []*url.URL
	retry    time.Duration
	pause    time.Duration
	spool    int64
	reverse  *httputil.ReverseProxy

	mu       sync.Mutex // guards what follows
	changed  *sync.Cond // at each end of a try
	random   *rand.Rand
	stats    Stats
	inFlight []int
	resting  []bool
}

// New makes a proxy; it starts nothing.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	seed := cfg.Seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	p := &Proxy{
		retry:    cfg.Retry,
		pause:    cfg.Pause,
		spool:    cfg.Spool,
		random:   rand.New(rand.NewPCG(seed, seed)),
		inFlight: make([]int, len(cfg.Backends)),
		resting:  make([]bool, len(cfg.Backends)),
	}
	p.changed = sync.NewCond(&p.mu)
	p.stats.Backend, p.stats.Status = make([]uint64, len(cfg.Backends)), make(map[int]uint64)
	if p.pause == 0 {
		p.pause = 100 * time.Millisecond
	}
	if p.spool == 0 {
		p.spool = 16 << 20
	}
	for _, b := range cfg.Backends {
		u, err := url.Parse(b)
		if err != nil {
			return nil, fmt.Errorf("proxy: backend %q: %w", b, err)
		}
		p.backends = append(p.backends, u)
	}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:       func(*httputil.ProxyRequest) {}, // the transport chooses the node, so that it can choose another
		FlushInterval: -1,
		Transport:     &chooser{proxy: p, next: newTransport(cfg.Roots)},
		ErrorHandler:  p.fail,
	}
	return p, nil
}

func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true,
		TLSClientConfig:     &tls.Config{RootCAs: roots},
		// A connection that a killed node left behind must not cost a request that cannot be repeated.
		IdleConnTimeout: time.Second,
	}
}

// ServeHTTP sends the request to some node.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.stats.Requests++
	p.mu.Unlock()
	began, what := time.Now(), r.Method+" "+r.URL.Path
	p.reverse.ServeHTTP(w, r)
	p.mu.Lock()
	defer p.mu.Unlock()
	if took := time.Since(began); took > p.stats.Slowest {
		p.stats.Slowest, p.stats.Slow = took, what
	}
}

// Stats returns the counts of this moment.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Backend, s.Status = slices.Clone(s.Backend), maps.Clone(s.Status)
	return s
}

// Quiet calls f at a moment when the given backend has no request of this proxy in flight, and sends it none until f returns.
// A test that kills a node does it in here, until the node answers again: what the dead node's own clients would have to
// repeat is their protocol's matter, and what the other nodes were asking of it at that moment is the cluster's.
func (p *Proxy) Quiet(backend int, f func()) {
	p.mu.Lock()
	p.resting[backend] = true
	for p.inFlight[backend] > 0 {
		p.changed.Wait()
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.resting[backend] = false
		p.mu.Unlock()
	}()
	f()
}

func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	p.mu.Lock()
	p.stats.Failed++
	p.mu.Unlock()
	if r.Context().Err() == nil {
		http.Error(w, "proxy: "+err.Error(), http.StatusBadGateway)
	}
}

// begin picks a node that is not resting, other than last if there is another.
func (p *Proxy) begin(last int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var free []int
	for i := range p.backends {
		if !p.resting[i] && i != last {
			free = append(free, i)
		}
	}
	choice := last
	if len(free) > 0 {
		choice = free[p.random.IntN(len(free))]
	} else if last < 0 {
		choice = p.random.IntN(len(p.backends))
	}
	if last >= 0 {
		p.stats.Retries++
	}
	p.stats.Backend[choice]++
	p.inFlight[choice]++
	return choice
}

func (p *Proxy) count(status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Status[status]++
}

func (p *Proxy) end(choice int) {
	p.mu.Lock()
	p.inFlight[choice]--
	p.mu.Unlock()
	p.changed.Broadcast()
}

// chooser is the transport below the reverse proxy: it gives each try a node.
type chooser struct {
	proxy *Proxy
	next  http.RoundTripper
}

// RoundTrip sends the request to one node and, where that is allowed, to the next ones until an answer stands.
func (c *chooser) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := c.spool(r)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(c.proxy.retry)
	last := -1
	for {
		last = c.proxy.begin(last)
		resp, err := c.send(r, last, body)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable || !body.whole || time.Now().After(deadline) {
			return resp, err
		}
		_ = resp.Body.Close()
		if err := wait(r.Context(), c.proxy.pause); err != nil {
			return nil, err
		}
	}
}

// send makes one try; the node counts as busy until the answer's body is closed.
func (c *chooser) send(r *http.Request, choice int, body spooled) (*http.Response, error) {
	out := r.Clone(r.Context())
	target := c.proxy.backends[choice]
	out.URL.Scheme, out.URL.Host = target.Scheme, target.Host
	if body.whole {
		out.Body = http.NoBody
		if len(body.kept) > 0 {
			out.Body = io.NopCloser(bytes.NewReader(body.kept))
		}
	}
	resp, err := c.next.RoundTrip(out)
	if err != nil {
		c.proxy.end(choice)
		return nil, err
	}
	c.proxy.count(resp.StatusCode)
	resp.Body = &ending{ReadCloser: resp.Body, end: sync.OnceFunc(func() { c.proxy.end(choice) })}
	return resp, nil
}

// spooled is a request body that was read ahead. It is whole when all of it is in kept and it can be sent again.
type spooled struct {
	kept  []byte
	whole bool
}

// spool reads the body ahead as far as it may be repeated; a longer one is put together again and streams.
func (c *chooser) spool(r *http.Request) (spooled, error) {
	if c.proxy.retry == 0 {
		return spooled{}, nil
	}
	if r.Body == nil || r.Body == http.NoBody {
		return spooled{whole: true}, nil
	}
	kept, err := io.ReadAll(io.LimitReader(r.Body, c.proxy.spool+1))
	if err != nil {
		return spooled{}, fmt.Errorf("read the request's body: %w", err)
	}
	if int64(len(kept)) <= c.proxy.spool {
		return spooled{kept: kept, whole: true}, nil
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(kept), r.Body), r.Body}
	return spooled{}, nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// ending tells the proxy when an answer has passed.
type ending struct {
	io.ReadCloser
	end func()
}

// Close ends the answer.
func (e *ending) Close() error {
	defer e.end()
	return e.ReadCloser.Close()
}
