package pebble

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// Server is an ACME server.
type Server struct {
	// Directory is its address, and CAFile what to trust about that.
	Directory, CAFile string
	// Roots are what to trust about the certificates that it gives.
	Roots *x509.CertPool
	// TLS and Web say where it goes with questions by tls-alpn-01 and by http-01.
	TLS, Web *Passage

	http   *httptest.Server
	away   atomic.Bool
	orders atomic.Int64
}

// Start runs a server whose certificates are good for so long. It ends with the test.
func Start(t testing.TB, validity time.Duration) *Server {
	t.Helper()
	quiet := log.New(io.Discard, "", 0)
	s := &Server{TLS: newPassage(t), Web: newPassage(t), Roots: x509.NewCertPool()}
	memory := db.NewMemoryStore()
	issuer := ca.New(quiet, memory, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: uint64(validity / time.Second)}})
	asks := va.New(quiet, s.Web.port(), s.TLS.port(), false, resolver(t), memory)
	front := wfe.New(quiet, memory, asks, issuer, []string{"pebble.test"}, false, false, 1, 1)
	s.http = httptest.NewTLSServer(s.door(front.Handler()))
	t.Cleanup(s.http.Close)
	s.Directory = s.http.URL + wfe.DirectoryPath
	s.CAFile = filepath.Join(t.TempDir(), "acme-ca.pem")
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
	if err := os.WriteFile(s.CAFile, own, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Roots.AppendCertsFromPEM(issuer.GetRootCert(0).PEM())
	return s
}

// door counts orders, and breaks every connection while the server is away.
func (s *Server) door(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.away.Load() {
			panic(http.ErrAbortHandler)
		}
		if strings.HasPrefix(r.URL.Path, "/order-plz") {
			w = &counter{ResponseWriter: w, made: &s.orders}
		}
		next.ServeHTTP(w, r)
	})
}

// counter counts what was made. The server refuses some requests for no reason, so that clients learn to repeat them.
type counter struct {
	http.ResponseWriter
	made *atomic.Int64
}

func (c *counter) WriteHeader(status int) {
	if status == http.StatusCreated {
		c.made.Add(1)
	}
	c.ResponseWriter.WriteHeader(status)
}

// Away makes the server unreachable, or reachable again.
func (s *Server) Away(away bool) { s.away.Store(away) }

// Orders is how many were made so far.
func (s *Server) Orders() int { return int(s.orders.Load()) }

// Passage passes connections on to one of its ends after the other.
type Passage struct {
	lis net.Listener

	mu   sync.Mutex
	ends []string
	used []string
}

func newPassage(t testing.TB) *Passage {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Passage{lis: lis}
	var running sync.WaitGroup
	running.Go(func() { p.accept(&running) })
	t.Cleanup(func() {
		_ = lis.Close()
		running.Wait()
	})
	return p
}

func (p *Passage) port() int { return p.lis.Addr().(*net.TCPAddr).Port }

// To says where connections go from now on.
func (p *Passage) To(addresses ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends, p.used = addresses, nil
}

// Add is one more address to which connections go.
func (p *Passage) Add(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.ends, address) {
		p.ends = append(p.ends, address)
	}
}

// Used gives where connections went since To.
func (p *Passage) Used() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.used...)
}

func (p *Passage) next() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ends) == 0 {
		return ""
	}
	end := p.ends[len(p.used)%len(p.ends)]
	p.used = append(p.used, end)
	return end
}

func (p *Passage) accept(running *sync.WaitGroup) {
	for {
		in, err := p.lis.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.next())
		if err != nil {
			_ = in.Close()
			continue
		}
		for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
			running.Go(func() {
				_, _ = io.Copy(way[1], way[0])
				_ = way[0].Close()
				_ = way[1].Close()
			})
		}
	}
}

// resolver is a DNS server that finds every name on this machine.
func resolver(t testing.TB) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: lis, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg)
		a.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			a.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1),
			}}
		}
		_ = w.WriteMsg(a)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ActivateAndServe()
	}()
	t.Cleanup(func() {
		_ = server.Shutdown()
		<-done
	})
	return lis.Addr().String()
}
