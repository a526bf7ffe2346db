package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Each request of an upload may meet another node.
func TestRelayWholeUpload(t *testing.T) {
	f := newFixture(t, 3, nil)
	a, b, c := f.nodes[0], f.nodes[1], f.nodes[2]
	content := randomBytes(3 << 20)
	d := digest.FromBytes(content)
	loc := f.begin(a, "team/app", "")
	got := f.want(f.doOn(b, "PATCH", loc, io.MultiReader(bytes.NewReader(content[:1<<20])), "X-Request-Id: follows-me"), 202, "")
	f.wantHeader(got, "Location: "+loc, "Range: 0-1048575", "X-Request-Id: follows-me", "Docker-Distribution-API-Version: registry/2.0")
	got = f.want(f.doOn(c, "PATCH", loc, content[:5], "Content-Range: 0-4"), 416, codeUploadInvalid)
	f.wantHeader(got, "Location: "+loc, "Range: 0-1048575")
	f.want(f.doOn(c, "PATCH", loc, content[1<<20:2<<20], "Content-Range: 1048576-2097151"), 202, "")
	f.wantHeader(f.want(f.doOn(b, "GET", loc, nil), 204, ""), "Range: 0-2097151")
	for _, n := range []*testNode{b, c, a} {
		got = f.want(f.doOn(n, "PUT", loc+"?digest="+d.String(), content[2<<20:], "Content-Range: 2097152-3145727"), 201, "")
		f.wantHeader(got, "Location: /v2/team/app/blobs/"+d.String())
	}
	for _, n := range f.nodes {
		f.wantBlob(n, "team/app", content, d)
	}
	loc = f.begin(a, "team/app", "")
	f.want(f.doOn(b, "PUT", loc+"?digest="+someDigest, content), 400, codeDigestInvalid)
	f.want(f.doOn(b, "DELETE", loc, nil), 204, "")
	f.want(f.doOn(c, "GET", loc, nil), 404, codeUploadUnknown)
	f.want(f.doOn(b, "PATCH", "/v2/other/blobs/uploads/"+loc[strings.LastIndex(loc, "/")+1:], content), 404, codeUploadUnknown)
}

// It was decided who may do it where the request came in: the password ends there.
func TestRelayKeepsCredentials(t *testing.T) {
	f := newFixture(t, 1, nil)
	r, err := http.NewRequestWithContext(t.Context(), "PATCH", "http://x", nil)
	f.must(r, err)
	r.SetBasicAuth("alice", "secret")
	out := f.nodes[0].api.relayRequest(t.Context(), r, route{kind: kindUpload, repo: "a", owner: "node-1", upload: "u"}, nil)
	if out.Header.Get("Authorization") != "" || r.Header.Get("Authorization") == "" {
		t.Errorf("relayed with %v", out.Header)
	}
}

func TestRelayOwnerGone(t *testing.T) {
	f := newFixture(t, 2, nil)
	loc := f.begin(f.nodes[1], "a", "")
	f.want(f.do("GET", loc, nil), 204, "")
	f.nodes[1].down()
	for _, method := range []string{"GET", "PATCH", "PUT", "DELETE"} {
		f.want(f.do(method, loc+"?digest="+someDigest, []byte("x")), 404, codeUploadUnknown)
	}
}

// A node that restarts has its uploads still: the relay waits for it.
func TestRelayWaitsForOwner(t *testing.T) {
	f := newFixture(t, 2, func(c *Config) { c.RelayWait = time.Minute })
	loc := f.begin(f.nodes[1], "a", "")
	f.setPeer("node-1", "127.0.0.1:1")
	var tried sync.Once
	first := make(chan struct{})
	f.nodes[0].api.cfg.Relay = roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := f.nodes[0].relayTransport.RoundTrip(r)
		tried.Do(func() { close(first) })
		return resp, err
	})
	var back sync.WaitGroup
	back.Go(func() {
		<-first
		f.setPeer("node-1", f.nodes[1].peer)
	})
	f.wantHeader(f.want(f.do("PATCH", loc, []byte("hello")), 202, ""), "Range: 0-4")
	back.Wait()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A relayed request for an upload of a third node is nobody's: relays don't chain.
func TestRelayOnlyOnce(t *testing.T) {
	f := newFixture(t, 2, nil)
	loc := f.begin(f.nodes[0], "a", "")
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://node-1/relay"+loc, nil)
	f.must(r, err)
	resp, err := f.nodes[0].relayTransport.RoundTrip(r)
	f.must(resp, err)
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	f.want(answer{&http.Response{StatusCode: resp.StatusCode, Request: r}, body}, 404, codeUploadUnknown)
}

// An owner that answers before the body's end is heard at once, by a client that waits before it goes on.
func TestRelayEarlyAnswer(t *testing.T) {
	f := newFixture(t, 2, nil)
	loc := f.begin(f.nodes[1], "a", "")
	conn := f.dial(f.nodes[0], "PATCH "+loc+" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nContent-Range: 5-1000004\r\n\r\nabc")
	if got := readAll(t, conn); !strings.HasPrefix(got, "HTTP/1.1 416 ") || !strings.Contains(got, "Connection: close") {
		t.Errorf("answer: %s", got)
	}
}

// When the client of a relay breaks off, the owner keeps what came and lets the next one write.
func TestRelayClientBreaksOff(t *testing.T) {
	f := newFixture(t, 2, nil)
	loc := f.begin(f.nodes[1], "a", "")
	conn := f.dial(f.nodes[0], "PATCH "+loc+" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 5000))
	eventually(t, func() error {
		if got := f.do("GET", loc, nil).Header.Get("Range"); got != "0-4999" {
			return errors.New("Range is " + got)
		}
		return nil
	})
	_ = conn.Close()
	f.want(f.do("PATCH", loc, []byte("more")), 202, "")
}

// A client that drips hears of it through a relay as it does at the upload's own node.
func TestRelayDrippingBody(t *testing.T) {
	f := newFixture(t, 2, func(c *Config) { c.BodyIdle = 100 * time.Millisecond })
	loc := f.begin(f.nodes[1], "a", "")
	conn := f.dial(f.nodes[0], "PATCH "+loc+" HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
	if got := readAll(t, conn); !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, codeUploadInvalid) {
		t.Errorf("answer: %s", got)
	}
	f.want(f.do("PATCH", loc, []byte("more")), 202, "")
}

// A relayed request has one ID in the logs of both nodes.
func TestRelayKeepsRequestID(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	f := newFixture(t, 2, func(c *Config) {
		c.AccessLog = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil)).With("node", c.Node)
	})
	loc := f.begin(f.nodes[1], "a", "")
	id := f.want(f.do("PATCH", loc, []byte("hello")), 202, "").Header.Get("X-Request-Id")
	eventually(t, func() error {
		mu.Lock()
		defer mu.Unlock()
		for _, n := range f.nodes {
			if line := fmt.Sprintf("msg=request node=%s request=%s method=PATCH ", n.id, id); !strings.Contains(log.String(), line) {
				return fmt.Errorf("no %q in\n%s", line, log.String())
			}
		}
		return nil
	})
}

// dial opens a connection to a node and sends text, for requests that no HTTP client would send.
func (f *fixture) dial(n *testNode, text string) net.Conn {
	f.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(n.url, "http://"))
	f.must(conn, err)
	f.Cleanup(func() { _ = conn.Close() })
	_, err = io.WriteString(conn, text)
	f.must(nil, err)
	return conn
}

// readAll reads until the server closes the connection.
func readAll(t *testing.T, conn net.Conn) string {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(conn)
	if err != nil && len(got) == 0 {
		t.Fatalf("read the answer: %v", err)
	}
	return string(got)
}
