package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"pier/api/auth"
)

// encrypted serves a node by TLS until the test ends.
func (f *fixture) encrypted(server *http.Server) (address string, trust *tls.Config) {
	f.Helper()
	authority, err := auth.NewAuthority(make([]byte, 32))
	f.must(authority, err)
	certs, err := auth.FromAuthority(func() (*auth.Authority, error) { return authority, nil }, func() []string { return []string{"127.0.0.1"} }, time.Now, f.nodes[0].api.logger)
	f.must(certs, err)
	server.TLSConfig = certs.TLS()
	lis := f.listen()
	var work sync.WaitGroup
	work.Go(func() { _ = server.ServeTLS(lis, "", "") })
	f.Cleanup(func() {
		_ = server.Close()
		work.Wait()
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.PEM())
	return lis.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
}

// halfHello is how a handshake begins, and doesn't go on.
func halfHello() string { return "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03half" }

// Five thousand connections that begin a handshake and stop: what they cost is bounded, who was there before stays, and who
// comes meanwhile is served.
func TestHalfOpenHandshakes(t *testing.T) {
	f := newFixture(t, 1, nil)
	address, trust := f.encrypted(NewServer(f.nodes[0].api.Handler(), nil))
	client := func() *http.Client {
		transport := &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	ask := func(c *http.Client) {
		t.Helper()
		resp, err := c.Get("https://" + address + "/v2/")
		f.must(resp, err)
		_ = resp.Body.Close()
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Fatal(resp.Proto, resp.Status)
		}
	}
	first := client()
	ask(first)
	goroutines, before := runtime.NumGoroutine(), heap()
	slowest := time.Duration(0)
	for i := range 5000 {
		c, err := net.Dial("tcp", address)
		f.must(c, err)
		t.Cleanup(func() { _ = c.Close() })
		_, _ = io.WriteString(c, halfHello()) // the oldest are closed by now
		if i%500 == 0 {
			begun := time.Now()
			ask(client())
			slowest = max(slowest, time.Since(begun))
		}
	}
	ask(first)
	eventually(t, func() error {
		if n := runtime.NumGoroutine() - goroutines; n > maxArrivals+200 {
			return errors.New("there are too many goroutines")
		}
		return nil
	})
	grown := heap() - before
	t.Logf("%d goroutines and %d MiB more; the slowest new client took %v", runtime.NumGoroutine()-goroutines, grown>>20, slowest)
	if grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// heap is what is in use, stacks too.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// A handshake that goes on for too long is cut off, however few there are.
func TestHandshakesEnd(t *testing.T) {
	f := newFixture(t, 1, nil)
	server := NewServer(f.nodes[0].api.Handler(), nil)
	server.ReadHeaderTimeout = 100 * time.Millisecond
	address, _ := f.encrypted(server)
	for _, sent := range []string{"", halfHello()} {
		c, err := net.Dial("tcp", address)
		f.must(c, err)
		_, err = io.WriteString(c, sent)
		f.must(nil, err)
		f.must(nil, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("after %q: %v", sent, err)
		}
		_ = c.Close()
	}
}

// Nobody is heard in an old version of TLS, and what is no TLS is told so.
func TestOldVersionsAreRefused(t *testing.T) {
	f := newFixture(t, 1, nil)
	address, trust := f.encrypted(NewServer(f.nodes[0].api.Handler(), nil))
	for version, fine := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		cfg := trust.Clone()
		cfg.MinVersion, cfg.MaxVersion = version, version
		c, err := tls.Dial("tcp", address, cfg)
		if (err == nil) != fine {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if c != nil {
			_ = c.Close()
		}
	}
}

// The oldest goes, and who has asked something doesn't count.
func TestArrivals(t *testing.T) {
	a := newArrivals(2)
	ends := map[string]net.Conn{}
	come := func(name string) context.Context {
		here, there := net.Pipe()
		t.Cleanup(func() { _, _ = here.Close(), there.Close() })
		ends[name] = there
		return a.came(t.Context(), here)
	}
	closed := func(name string) bool {
		_ = ends[name].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := ends[name].Read(make([]byte, 1))
		return errors.Is(err, io.EOF)
	}
	asked := come("one")
	come("two")
	r, err := http.NewRequestWithContext(asked, http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	a.noting(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
	come("three")
	come("four")
	for name, want := range map[string]bool{"one": false, "two": true, "three": false, "four": false} {
		if closed(name) != want {
			t.Errorf("%s is closed: %v", name, !want)
		}
	}
	if a.open.Len() != 2 || len(a.where) != 2 {
		t.Errorf("%d and %d are remembered", a.open.Len(), len(a.where))
	}
}
