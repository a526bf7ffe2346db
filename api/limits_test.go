package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
)

func TestGate(t *testing.T) {
	g := newGate(1, 1, time.Minute)
	has, err := g.enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	enter := func(ctx context.Context) {
		_, err := g.enter(ctx, "a")
		waiting <- err
	}
	go enter(ctx)
	eventually(t, func() error {
		if g.queued.Load() != 1 {
			return errors.New("nobody waits")
		}
		return nil
	})
	_, err = g.enter(t.Context(), "a")
	if p := explain(err); p.status != 429 || p.retry == 0 {
		t.Errorf("beyond the queue: %v", p)
	}
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter that went away got %v", err)
	}
	go enter(t.Context())
	g.leave(has)
	if err := <-waiting; err != nil {
		t.Errorf("the next in the queue got %v", err)
	}
	short := newGate(1, 1, time.Millisecond)
	_, _ = short.enter(t.Context(), "a")
	_, err = short.enter(t.Context(), "a")
	if p := explain(err); p.status != 503 || p.retry == 0 {
		t.Errorf("after the wait: %v", p)
	}
}

// Sources that have many places leave those that are kept for others, and get them back when these have gone.
func TestGateKeepsPlaces(t *testing.T) {
	g := newGate(128, 100, time.Millisecond)
	var all []place
	fill := func(source string) (got int) {
		for {
			p, err := g.enter(t.Context(), source)
			if err != nil {
				return got
			}
			all = append(all, p)
			got++
		}
	}
	if got := fill("first"); got != 64+4 {
		t.Errorf("the first source gets %d places", got)
	}
	for i := range 60 / 4 {
		if got := fill(fmt.Sprint(i)); got != 4 {
			t.Errorf("source %d gets %d places", i, got)
		}
	}
	if got := fill("late"); got != 0 {
		t.Errorf("%d places are there beyond all", got)
	}
	for _, p := range all {
		g.leave(p)
	}
	if len(g.places) != 0 || len(g.kept) != 0 || len(g.from) != 0 || g.queued.Load() != 0 {
		t.Errorf("%d and %d places are taken, %v", len(g.places), len(g.kept), g.from)
	}
	if got := fill("first"); got != 64+4 {
		t.Errorf("the first source gets %d places afterwards", got)
	}
}

// One source has a quarter of the queue, and leaves nothing behind there.
func TestGateQueueIsShared(t *testing.T) {
	g := newGate(1, 8, time.Minute)
	has, err := g.enter(t.Context(), "served")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 4)
	for i := range cap(ended) {
		go func() {
			_, err := g.enter(ctx, []string{"crowd", "other"}[i%2])
			ended <- err
		}()
	}
	eventually(t, func() error {
		if n := g.queued.Load(); n != 4 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	if _, err := g.enter(ctx, "crowd"); explain(err).status != 429 {
		t.Errorf("one more of the crowd: %v", err)
	}
	cancel()
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	if g.leave(has); g.queued.Load() != 0 || len(g.waiting) != 0 || len(g.from) != 0 {
		t.Errorf("%v and %v are left", g.waiting, g.from)
	}
}

// A flood waits its turn; what is beyond the queue is told when to come back. Health answers in any case.
func TestInFlightLimit(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) { c.MaxInFlight, c.MaxQueue = 1, 1 })
	gate := f.nodes[0].api.gate
	has, err := gate.enter(t.Context(), "elsewhere")
	f.must(has, err)
	var work sync.WaitGroup
	work.Go(func() { f.want(f.do("GET", "/v2/", nil), 200, "") })
	eventually(t, func() error {
		if gate.queued.Load() != 1 {
			return errors.New("the request does not wait")
		}
		return nil
	})
	got := f.want(f.do("GET", "/v2/", nil), 429, codeTooManyRequests)
	f.wantHeader(got, "Retry-After: 5")
	f.want(f.do("GET", "/healthz", nil), 200, "")
	gate.leave(has)
	work.Wait()
}

// Beyond the connections that a server takes, a request is told so and its connection ended; health answers still. A
// connection that ends makes room.
func TestConnectionLimit(t *testing.T) {
	f := newFixture(t, 1, nil)
	lis := f.listen()
	server := newServer(f.nodes[0].api.Handler(), nil, 2)
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(lis) })
	crowded := *f.nodes[0]
	crowded.url = "http://" + lis.Addr().String()
	idle := []net.Conn{f.dial(&crowded, ""), f.dial(&crowded, "")}
	got := f.raw(&crowded, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
	f.wantHeader(f.want(got, 429, codeTooManyRequests), "Retry-After: 5")
	if !got.Close {
		t.Error("the connection stays open")
	}
	f.want(f.raw(&crowded, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), 200, "")
	f.must(nil, idle[0].Close())
	eventually(t, func() error {
		if got := f.raw(&crowded, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"); got.StatusCode != 200 {
			return errors.New(got.Status)
		}
		return nil
	})
	f.must(nil, server.Close())
	work.Wait()
}

// Connections that rest make room for one that asks.
func TestRestingConnectionsGo(t *testing.T) {
	f := newFixture(t, 1, nil)
	lis := f.listen()
	server := newServer(f.nodes[0].api.Handler(), nil, 4)
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(lis) })
	crowded := *f.nodes[0]
	crowded.url = "http://" + lis.Addr().String()
	const ask = "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
	ended := make(chan error, 10)
	for i := range cap(ended) {
		var answers *bufio.Reader
		eventually(t, func() error { // the server counts one that it closes a little later
			answers = bufio.NewReader(f.dial(&crowded, ask))
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
				return fmt.Errorf("connection %d: %s, %v", i, resp.Status, err)
			}
			return nil
		})
		if i > 1 {
			f.must(nil, <-ended) // one of two went for it
		}
		work.Go(func() {
			_, err := answers.ReadByte()
			if errors.Is(err, io.EOF) {
				err = nil
			}
			ended <- err
		})
	}
	f.must(nil, server.Close())
	work.Wait()
}

// Pushes of manifests share a bounded memory, of which each source has a part. One that gets none of it for long is told to come
// again.
func TestManifestMemory(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) {
		c.QueueWait, c.Access.Proxies = 50*time.Millisecond, mustPrefixes(t, "127.0.0.0/8")
	})
	memory := f.nodes[0].api.memory
	release, err := memory.acquire(t.Context(), "127.0.0.1", manifestPart)
	f.must(nil, err)
	got := f.want(f.do("PUT", "/v2/a/manifests/t", []byte("{}"), typeManifest), 503, codeUnavailable)
	if got.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	f.want(f.do("PUT", "/v2/a/manifests/t", []byte("{}"), typeManifest, "X-Forwarded-For: 192.0.2.7"), 400, codeManifestInvalid)
	release()
	f.want(f.do("PUT", "/v2/a/manifests/t", []byte("{}"), typeManifest), 400, codeManifestInvalid)
	if len(memory.from) != 0 {
		t.Errorf("of who has gone is left %v", memory.from)
	}
}

// What holds memory while it comes has a time for the whole.
func TestBodyWithinATime(t *testing.T) {
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequest("PUT", "/", strings.NewReader(strings.Repeat("x", 3*minProgress)))
	b := steady(w, r, time.Hour)
	began := time.Now()
	b.within(time.Minute)
	if _, err := io.ReadFull(r.Body, make([]byte, 2*minProgress)); err != nil {
		t.Fatal(err)
	}
	if last := w.set[len(w.set)-1]; b.left >= time.Minute || last.After(began.Add(2*time.Minute)) {
		t.Errorf("after progress %v are left, until %v", b.left, last)
	}
	(*steadyBody)(nil).within(time.Minute) // of a request without a body
}

// A header that comes byte by byte is cut off by a time for the whole of it.
func TestDrippingHeader(t *testing.T) {
	f := newFixture(t, 1, nil)
	lis := f.listen()
	server := NewServer(f.nodes[0].api.Handler(), nil)
	server.ReadHeaderTimeout = 100 * time.Millisecond
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(lis) })
	dripped := *f.nodes[0]
	dripped.url = "http://" + lis.Addr().String()
	conn := f.dial(&dripped, "GET /v2/ HTTP/1.1\r\nX-Endless: ")
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	sent := 0
	for sent < 2000 {
		<-tick.C
		if _, err := conn.Write([]byte("x")); err != nil {
			break
		}
		sent++
	}
	if sent == 2000 {
		t.Error("the server listens for ever")
	}
	f.must(nil, server.Close())
	work.Wait()
}

// A body of a few bytes now and then ends; what came is kept, and the upload goes on.
func TestDrippingBody(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) { c.BodyIdle = 100 * time.Millisecond })
	loc := f.begin(f.nodes[0], "a", "")
	conn := f.dial(f.nodes[0], "PATCH "+loc+" HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
	var work sync.WaitGroup
	defer work.Wait()
	stop := make(chan struct{})
	defer close(stop)
	work.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
		}
	})
	if got := readAll(t, conn); !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, codeUploadInvalid) {
		t.Errorf("answer: %s", got)
	}
	f.want(f.do("PATCH", loc, []byte("more")), 202, "")
}

// A body that keeps moving has no limit in all.
func TestSlowButLivingBody(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) { c.BodyIdle = 200 * time.Millisecond })
	loc := f.begin(f.nodes[0], "a", "")
	r, w := io.Pipe()
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for range 30 {
			<-tick.C
			_, _ = w.Write(make([]byte, minProgress))
		}
		_ = w.Close()
	})
	f.wantHeader(f.want(f.do("PATCH", loc, io.Reader(r)), 202, ""), fmt.Sprintf("Range: 0-%d", 30*minProgress-1))
	work.Wait()
}

// A client that takes nothing is ended, and the blob's file with it.
func TestStuckReader(t *testing.T) {
	f := newFixture(t, 1, nil)
	d := f.pushBlob(f.nodes[0], "a", randomBytes(64<<20))
	f.nodes[0].api.cfg.BodyIdle = 100 * time.Millisecond // not before: a busy machine may take longer over a piece of a push
	conn := f.dial(f.nodes[0], "GET /v2/a/blobs/"+d.String()+" HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f.nodes[0].checkClosed(t)
	if n, _ := io.Copy(io.Discard, conn); n >= 64<<20 {
		t.Error("a stuck client got everything")
	}
}

func TestHeaderLimits(t *testing.T) {
	f := newFixture(t, 1, nil)
	conn := f.dial(f.nodes[0], "")
	// The server may answer and close before all of it is sent.
	_, _ = io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Large: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
	if got := readAll(t, conn); !strings.HasPrefix(got, "HTTP/1.1 431 ") {
		t.Errorf("a header of 1 MB: %.200s", got)
	}
	s := NewServer(http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if s.ReadHeaderTimeout == 0 || s.IdleTimeout == 0 || s.ReadTimeout != 0 || s.WriteTimeout != 0 {
		t.Errorf("timeouts: header %v, idle %v, read %v, write %v", s.ReadHeaderTimeout, s.IdleTimeout, s.ReadTimeout, s.WriteTimeout)
	}
}

// A body shorter than its Content-Length is the client's fault, and what came counts.
func TestShortBody(t *testing.T) {
	f := newFixture(t, 1, nil)
	loc := f.begin(f.nodes[0], "a", "")
	for _, request := range []string{"PATCH " + loc, "PUT " + loc + "?digest=" + someDigest, "POST /v2/a/blobs/uploads/?digest=" + someDigest, "PUT /v2/a/manifests/t"} {
		conn := f.dial(f.nodes[0], request+" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nshort")
		f.must(nil, conn.(*net.TCPConn).CloseWrite())
		if got := readAll(t, conn); !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, codeSizeInvalid) {
			t.Errorf("%s: %s", request, got)
		}
	}
	f.wantHeader(f.do("GET", loc, nil), "Range: 0-9")
}

// A client that asks before it sends hears a refusal without sending anything, and is told to go on otherwise.
func TestExpectContinue(t *testing.T) {
	f := newFixture(t, 1, nil)
	loc := f.begin(f.nodes[0], "a", "")
	for path, want := range map[string]string{"/v2/a/blobs/uploads/node-0.none": "HTTP/1.1 404 ", loc: "HTTP/1.1 100 "} {
		conn := f.dial(f.nodes[0], "PATCH "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, want) {
			t.Errorf("%s: %q (%v), want %s", path, line, err, want)
		}
		_ = conn.Close()
	}
}

// Five hundred uploads that stand still in the middle keep nobody from pushing and pulling, and end well.
func TestManyPushes(t *testing.T) {
	f := newFixture(t, 1, nil)
	n := f.nodes[0]
	content := strings.Repeat("p", 1000)
	d := digest.FromString(content)
	conns := make([]net.Conn, 500)
	for i := range conns {
		loc := f.begin(n, fmt.Sprintf("many/%d", i), "")
		conns[i] = f.dial(n, "PUT "+loc+"?digest="+d.String()+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"+content[:500])
	}
	eventually(t, func() error {
		if held := len(n.api.gate.places); held != len(conns) {
			return fmt.Errorf("%d of %d requests are under way", held, len(conns))
		}
		return nil
	})
	m, _ := f.pushImage(n, "other", "t", "")
	f.want(f.do("GET", "/v2/other/manifests/"+m.String(), nil), 200, "")
	f.want(f.do("GET", "/v2/other/tags/list", nil), 200, "")
	for _, conn := range conns {
		_, err := io.WriteString(conn, content[500:])
		f.must(nil, err)
	}
	for _, conn := range conns {
		if got := readAll(t, conn); !strings.HasPrefix(got, "HTTP/1.1 201 ") {
			t.Fatalf("a push ended with %s", got)
		}
	}
	f.wantBlob(n, "many/499", []byte(content), d)
}

// Clients hang up after every byte that matters. Nothing may be left: no goroutine and no open file (the fixture looks), no
// file but the session's own, and no 500.
func TestHangUps(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	f := newFixture(t, 2, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
	n := f.nodes[0]
	config := []byte("{}")
	f.pushBlob(n, "a", config)
	m := string(image("", config))
	content := strings.Repeat("c", 4000)
	d := digest.FromString(content)
	stored := f.pushBlob(n, "a", randomBytes(1<<20))
	local, remote := f.begin(n, "a", ""), f.begin(f.nodes[1], "a", "")
	for name, request := range map[string]string{
		"whole":     "POST /v2/a/blobs/uploads/?digest=" + d.String() + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n" + content,
		"patch":     "PATCH " + local + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n" + content,
		"chunked":   "PATCH " + local + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfa0\r\n" + content + "\r\n0\r\n\r\n",
		"relayed":   "PATCH " + remote + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n" + content,
		"final":     "PUT " + remote + "?digest=" + d.String() + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n" + content,
		"manifest":  fmt.Sprintf("PUT /v2/a/manifests/t HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", fsm.TypeOCIManifest, len(m), m),
		"blob":      "GET /v2/a/blobs/" + stored.String() + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"range":     "GET /v2/a/blobs/" + stored.String() + " HTTP/1.1\r\nHost: x\r\nRange: bytes=100-\r\n\r\n",
		"streamed":  "PATCH " + remote + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfa0\r\n" + content + "\r\n0\r\n\r\n",
		"ordered":   "PATCH " + remote + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\nContent-Range: 1-4000\r\n\r\n" + content,
		"expecting": "PATCH " + local + " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4000\r\n\r\n" + content,
		"asking":    "GET " + remote + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"mount":     "POST /v2/b/blobs/uploads/?from=a&mount=" + stored.String() + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"head":      "HEAD /v2/a/blobs/" + stored.String() + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"tags":      "GET /v2/a/tags/list HTTP/1.1\r\nHost: x\r\n\r\n",
		"delete":    "DELETE /v2/a/manifests/none HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		head := strings.Index(request, "\r\n\r\n") + 4
		for _, at := range []int{1, head / 2, head - 1, head, head + 1, head + (len(request)-head)/2, len(request) - 1, len(request)} {
			if at > len(request) {
				continue
			}
			for _, abrupt := range []bool{false, true} {
				conn := f.dial(n, request[:at])
				if abrupt {
					f.must(nil, conn.(*net.TCPConn).SetLinger(0))
				}
				f.must(nil, conn.Close())
			}
		}
		// The node still answers after each.
		if got := f.do("GET", "/v2/", nil); got.StatusCode != 200 {
			t.Errorf("after %s: %s", name, got.Status)
		}
	}
	for i, loc := range []string{local, remote} {
		eventually(t, func() error {
			var data []string // beside them there are records of what was finished
			for _, name := range f.nodes[i].uploads(t) {
				if !strings.HasSuffix(name, ".json") {
					data = append(data, name)
				}
			}
			// The final PUT may have come whole behind nothing, and then the upload is a blob.
			if len(data) > 1 || len(data) == 1 && !strings.HasSuffix(loc, data[0]) {
				return fmt.Errorf("uploads left: %v, want that of %s", data, loc)
			}
			return nil
		})
		got := f.doOn(f.nodes[i], "GET", "/metrics", nil)
		for line := range strings.Lines(string(got.body)) {
			if strings.Contains(line, `status="5`) {
				t.Errorf("a hang-up was answered as a fault of the node: %s\n%s", line, log.String())
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(log.String(), "panicked") {
		t.Error(log.String())
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func TestSteadyBodyStopsTheClockAtTheEnd(t *testing.T) {
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequest("PUT", "/", strings.NewReader(strings.Repeat("x", 3*minProgress)))
	b := steady(w, r, time.Minute)
	if _, err := io.ReadFull(r.Body, make([]byte, minProgress)); err != nil {
		t.Fatal(err)
	}
	if b.left != time.Minute || len(w.set) < 2 {
		t.Errorf("after progress %v are left, the deadline was set %d times", b.left, len(w.set))
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil || b.count.Load() != 3*minProgress {
		t.Fatalf("read %d: %v", b.count.Load(), err)
	}
	if !w.set[len(w.set)-1].IsZero() {
		t.Error("a deadline is left after the end of the body")
	}
}

type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}
