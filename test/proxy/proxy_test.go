package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// front serves p and gives a client that keeps no connections behind the test.
func front(t *testing.T, p *Proxy) (string, *http.Client) {
	t.Helper()
	srv := httptest.NewServer(p)
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		srv.Close()
		p.reverse.Transport.(*chooser).next.(*http.Transport).CloseIdleConnections()
	})
	return srv.URL, client
}

func backend(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

func deadAddress(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return "http://" + lis.Addr().String()
}

func TestEveryBackendGetsRequests(t *testing.T) {
	var urls []string
	for i := range 3 {
		urls = append(urls, backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, i) }))
	}
	p, err := New(Config{Backends: urls, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	url, client := front(t, p)
	for range 60 {
		resp, err := client.Get(url + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	s := p.Stats()
	if s.Requests != 60 || s.Retries != 0 {
		t.Fatalf("stats %+v, want 60 requests and no retry", s)
	}
	for i, n := range s.Backend {
		if n < 5 {
			t.Errorf("backend %d got %d of 60 requests", i, n)
		}
	}
}

func TestRequestArrivesAsItWasSent(t *testing.T) {
	type seen struct{ method, uri, body, kind string }
	got := make(chan seen, 1)
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.Method, r.RequestURI, string(body), r.Header.Get("Content-Type")}
		w.Header().Set("Location", "/v2/a/blobs/uploads/7")
		w.WriteHeader(http.StatusAccepted)
	})
	for _, retry := range []time.Duration{0, time.Second} {
		p, err := New(Config{Backends: []string{b}, Retry: retry})
		if err != nil {
			t.Fatal(err)
		}
		url, client := front(t, p)
		req, _ := http.NewRequest("PATCH", url+"/v2/a%2Fb/x?digest=sha256:1", strings.NewReader("hello"))
		req.Header.Set("Content-Type", "application/octet-stream")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		want := seen{"PATCH", "/v2/a%2Fb/x?digest=sha256:1", "hello", "application/octet-stream"}
		if g := <-got; g != want {
			t.Errorf("backend saw %+v, want %+v", g, want)
		}
		if l := resp.Header.Get("Location"); l != "/v2/a/blobs/uploads/7" || resp.StatusCode != http.StatusAccepted {
			t.Errorf("client got %d with Location %q", resp.StatusCode, l)
		}
	}
}

func TestBodyStreamsBothWays(t *testing.T) {
	arrived, release := make(chan string, 1), make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 5)
		_, _ = io.ReadFull(r.Body, buf)
		arrived <- string(buf)
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "begun")
		_ = http.NewResponseController(w).Flush()
		<-release
	})
	p, err := New(Config{Backends: []string{b}})
	if err != nil {
		t.Fatal(err)
	}
	url, client := front(t, p)
	pr, pw := io.Pipe()
	go func() {
		_, _ = io.WriteString(pw, "first")
		if got := <-arrived; got != "first" { // before the rest is sent
			_ = pw.CloseWithError(fmt.Errorf("the backend read %q", got))
		}
		_ = pw.Close()
	}()
	resp, err := client.Post(url, "text/plain", pr)
	if err != nil {
		t.Fatal(err)
	}
	close(release)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "begun" {
		t.Fatalf("read %q, %v", rest, err)
	}
	_ = resp.Body.Close()
}

func TestRetryPassesOverBusyBackends(t *testing.T) {
	busy := backend(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	good := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	p, err := New(Config{Backends: []string{busy, good}, Retry: time.Minute, Pause: time.Millisecond, Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	url, client := front(t, p)
	for range 30 {
		resp, err := client.Post(url, "text/plain", strings.NewReader("again"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || string(body) != "again" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	}
	if s := p.Stats(); s.Retries == 0 || s.Failed != 0 {
		t.Errorf("stats %+v, want retries and no failure", s)
	}
}

func TestADeadBackendIsNoReasonToRetry(t *testing.T) {
	good := backend(t, func(w http.ResponseWriter, r *http.Request) {})
	p, err := New(Config{Backends: []string{deadAddress(t), good}, Retry: time.Minute, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	url, client := front(t, p)
	seen := map[int]uint64{}
	for range 20 {
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		seen[resp.StatusCode]++
	}
	if s := p.Stats(); seen[502] == 0 || seen[200] == 0 || s.Failed != seen[502] || s.Retries != 0 {
		t.Errorf("answers %v, stats %+v", seen, s)
	}
}

func TestNoRetryUnlessAsked(t *testing.T) {
	busy := backend(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	good := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	status := func(cfg Config, body string) map[int]int {
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		url, client := front(t, p)
		seen := map[int]int{}
		for range 20 {
			resp, err := client.Post(url, "text/plain", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			seen[resp.StatusCode]++
		}
		return seen
	}
	if s := status(Config{Backends: []string{busy, good}, Seed: 1}, "x"); s[503] == 0 || s[200] == 0 {
		t.Errorf("without Retry: %v, want both answers", s)
	}
	cfg := Config{Backends: []string{busy, good}, Seed: 1, Retry: time.Minute, Spool: 4}
	if s := status(cfg, "longer than the spool"); s[503] == 0 || s[200] == 0 {
		t.Errorf("with a body over the spool: %v, want both answers", s)
	}
}

func TestQuietWaitsForRequestsInFlight(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
	})
	other := backend(t, func(w http.ResponseWriter, r *http.Request) {})
	p, err := New(Config{Backends: []string{b, other}})
	if err != nil {
		t.Fatal(err)
	}
	p.resting[1] = true
	url, client := front(t, p)
	done := make(chan error, 1)
	go func() {
		resp, err := client.Get(url)
		if err == nil {
			err = resp.Body.Close()
		}
		done <- err
	}()
	<-entered
	p.mu.Lock()
	p.resting[1] = false
	p.mu.Unlock()
	quiet := make(chan error, 1)
	go p.Quiet(0, func() {
		select {
		case <-release:
		default:
			quiet <- errors.New("called with a request in flight")
			return
		}
		for range 10 {
			resp, err := client.Get(url)
			if err != nil {
				quiet <- err
				return
			}
			_ = resp.Body.Close()
		}
		quiet <- nil
	})
	close(release)
	if err := <-quiet; err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := p.Stats(); s.Backend[0] != 1 {
		t.Errorf("the resting backend got %d requests, want the first only", s.Backend[0])
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	err := Config{Backends: []string{"nonsense"}, Retry: -1}.Validate()
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 2 {
		t.Errorf("got %v, want two faults", err)
	}
	if (Config{}).Validate() == nil {
		t.Error("no backends were accepted")
	}
}
