package api

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// raw sends text on a connection of its own and reads the one answer to it.
func (f *fixture) raw(n *testNode, text string) answer {
	f.Helper()
	method, rest, _ := strings.Cut(text, " ")
	target, _, _ := strings.Cut(rest, " ")
	conn := f.dial(n, text)
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), httptest.NewRequest(method, target, nil))
	f.must(resp, err)
	body, err := io.ReadAll(resp.Body)
	f.must(body, err)
	_ = resp.Body.Close()
	return answer{resp, body}
}

// Requests as no modern client sends them, and as HTTP allows them.
func TestRequestForms(t *testing.T) {
	f := newFixture(t, 1, nil)
	d := f.pushBlob(f.nodes[0], "a", []byte("hello"))
	blob := "/v2/a/blobs/" + d.String()
	for _, c := range []struct {
		text, body string
		closes     bool
	}{
		{"GET http://elsewhere.example/v2/ HTTP/1.1\r\nHost: x\r\n\r\n", "{}", false},
		{"GET http://elsewhere.example" + blob + " HTTP/1.1\r\nHost: x\r\n\r\n", "hello", false},
		{"GET /v2/ HTTP/1.0\r\n\r\n", "{}", true},
		{"GET " + blob + " HTTP/1.0\r\n\r\n", "hello", true},
		{"GET " + blob + " HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "hello", false},
		{"HEAD " + blob + " HTTP/1.0\r\n\r\n", "", true},
		{"HEAD " + blob + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", "", false},
		{"GET " + blob + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", "hello", false},
		{"HEAD /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n", "", false},
		{"HEAD /v2/a/tags/list HTTP/1.1\r\nHost: x\r\n\r\n", "", false},
		{"HEAD /v2/a/referrers/" + someDigest + " HTTP/1.1\r\nHost: x\r\n\r\n", "", false},
		{"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "", false},
	} {
		got := f.want(f.raw(f.nodes[0], c.text), 200, "")
		if string(got.body) != c.body || got.Close != c.closes {
			t.Errorf("%q: %q, closes: %v", c.text, got.body, got.Close)
		}
		if strings.Contains(c.text, blob) && got.ContentLength != 5 {
			t.Errorf("%q: Content-Length %d", c.text, got.ContentLength)
		}
	}
}

// A method that an endpoint doesn't know is a 405 which names those that it knows, whether HTTP knows the method or nobody.
func TestMethods(t *testing.T) {
	f := newFixture(t, 1, nil)
	for path, allow := range map[string]string{
		"/v2":                           "GET, HEAD",
		"/v2/":                          "GET, HEAD",
		"/v2/_catalog":                  "GET, HEAD",
		"/v2/a/tags/list":               "GET, HEAD",
		"/v2/a/referrers/" + someDigest: "GET, HEAD",
		"/v2/a/manifests/t":             "DELETE, GET, HEAD, PUT",
		"/v2/a/blobs/" + someDigest:     "DELETE, GET, HEAD",
		"/v2/a/blobs/uploads/":          "POST",
		"/v2/a/blobs/uploads/node-0.x":  "DELETE, GET, PATCH, PUT",
		"/healthz":                      "GET, HEAD",
		"/readyz":                       "GET, HEAD",
		"/metrics":                      "GET, HEAD",
		"/api/v1/cluster/status":        "GET", // POST: to be told to use the socket
	} {
		for _, method := range []string{"BREW", "OPTIONS", "TRACE"} {
			f.wantHeader(f.want(f.do(method, path, nil), 405, codeUnsupported), "Allow: "+allow)
		}
	}
	f.want(f.do("BREW", "/nowhere", nil), 404, codeUnsupported)
	f.want(f.do("BREW", "/v2/UPPER/tags/list", nil), 400, codeNameInvalid)
}

// A slash too many makes another path. None of them is quietly taken for the one without.
func TestStraySlashes(t *testing.T) {
	f := newFixture(t, 1, nil)
	f.pushImage(f.nodes[0], "a", "t", "")
	for path, status := range map[string]int{
		"//v2/": 404, "/v2//": 400, "/v2/_catalog/": 400, "/v2/a/tags/list/": 400, "/v2/a/manifests/t/": 400, "/v2/a//manifests/t": 400,
		"/v2//a/manifests/t": 400, "/v2/a/manifests//t": 400, "/v2/a/blobs//uploads/": 400, "/healthz/": 404, "/v2/../v2/": 400,
		"/v2/./a/tags/list": 400, "/v2/a/blobs/uploads//": 400,
	} {
		if got := f.raw(f.nodes[0], "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); got.StatusCode != status || got.code() == "" {
			t.Errorf("%s: %s %s", path, got.Status, got.body)
		}
	}
}

// A body whose framing breaks is the client's fault, at the node that has the upload and at one that relays to it; what the
// upload's node had heard until then counts.
func TestBrokenChunks(t *testing.T) {
	f := newFixture(t, 2, nil)
	for _, n := range f.nodes {
		loc := f.begin(f.nodes[1], "a", "")
		head := "PATCH " + loc + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
		f.want(f.raw(n, head+"3\r\nabc\r\nnonsense\r\n"), 400, codeUploadInvalid)
		conn := f.dial(n, head+"3\r\ndef\r\n")
		f.must(nil, conn.(*net.TCPConn).CloseWrite())
		if got := readAll(t, conn); !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, codeSizeInvalid) {
			t.Errorf("a stream that ends without its last chunk: %s", got)
		}
		if n == f.nodes[1] {
			f.wantHeader(f.do("GET", loc, nil), "Range: 0-5")
		}
	}
}

// spyListener counts what its connections are given to send as files.
type spyListener struct {
	net.Listener
	files atomic.Int64 // bytes
}

func (l *spyListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &spyConn{TCPConn: conn.(*net.TCPConn), files: &l.files}, nil
}

type spyConn struct {
	*net.TCPConn
	files *atomic.Int64
}

// ReadFrom is where net makes sendfile of a limited file.
func (c *spyConn) ReadFrom(src io.Reader) (int64, error) {
	n, err := c.TCPConn.ReadFrom(src)
	for l, ok := src.(*io.LimitedReader); ok; l, ok = src.(*io.LimitedReader) {
		src = l.R
	}
	if _, ok := src.(*os.File); ok {
		c.files.Add(n)
	}
	return n, err
}

// A blob on the disk reaches the connection as a file, through all that is wrapped around it.
func TestBlobsLeaveBySendfile(t *testing.T) {
	const first = 512 // net/http copies these together with the header
	f := newFixture(t, 1, nil)
	content := randomBytes(3 << 20)
	path := "/v2/a/blobs/" + f.pushBlob(f.nodes[0], "a", content).String()
	lis := &spyListener{Listener: f.listen()}
	server := NewServer(f.nodes[0].api.Handler(), nil)
	ended := make(chan error)
	go func() { ended <- server.Serve(lis) }()
	spied := *f.nodes[0]
	spied.url = "http://" + lis.Addr().String()
	for _, header := range []string{"Range: bytes=0-", "Range: bytes=1000-2000999"} {
		lis.files.Store(0)
		got := f.want(f.doOn(&spied, "GET", path, nil, header), 206, "")
		eventually(t, func() error { // the client has the last bytes before they are counted
			if n := lis.files.Load(); n != got.ContentLength-first {
				return fmt.Errorf("%d of %d bytes went as a file", n, got.ContentLength)
			}
			return nil
		})
	}
	f.must(nil, server.Close())
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}
