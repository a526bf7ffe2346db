package node

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// speak sends bytes to an address and gives what comes back until the other end closes.
func speak(t *testing.T, address, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	go func() { _, _ = io.WriteString(conn, request) }()
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("after %.40q: %v; got %q", request, err, answer)
	}
	return string(answer)
}

// The port for HTTP sends browsers to the one for HTTPS, which in turn tells clients that speak HTTP what is wrong.
func TestHTTPSaysWhereHTTPSIs(t *testing.T) {
	n := run(t, func(c *Config) {
		c.Access = AccessConfig{TLS: "auto", PublicNames: []string{"registry.lan"}, HTTPListen: "127.0.0.1:0"}
	})
	_, port, _ := net.SplitHostPort(n.Address())
	get := func(path string) string {
		return speak(t, n.HTTPAddress(), "GET "+path+" HTTP/1.1\r\nHost: registry.lan\r\nConnection: close\r\n\r\n")
	}
	if got := get("/some/page"); !strings.HasPrefix(got, "HTTP/1.1 308 ") || !strings.Contains(got, "\r\nLocation: https://registry.lan:"+port+"/some/page\r\n") {
		t.Errorf("a page: %s", got)
	}
	if got := get("/v2/"); !strings.HasPrefix(got, "HTTP/1.1 426 ") || !strings.Contains(got, "use https://registry.lan:"+port) {
		t.Errorf("the registry: %s", got)
	}
	if got := get("/healthz"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("health: %s", got)
	}
	long := strings.Repeat("x", 30<<10)
	if got := get("/?" + long + long + long); !strings.HasPrefix(got, "HTTP/1.1 431 ") {
		t.Errorf("a header of 90 KiB: %.100s", got)
	}
	// A push that streams is cut off, not read.
	push := "PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: registry.lan\r\nContent-Length: 100000000\r\nAuthorization: Basic YWxpY2U6cGFzc3dvcmQ=\r\n\r\n" + long
	if got := speak(t, n.HTTPAddress(), push); !strings.HasPrefix(got, "HTTP/1.1 426 ") || strings.Contains(strings.ToLower(got), "www-authenticate") {
		t.Errorf("a push: %s", got)
	}
	for _, request := range []string{"GET /v2/ HTTP/1.1\r\nHost: registry.lan\r\n\r\n", strings.Replace(push, "PATCH", "PUT", 1)} {
		got := speak(t, n.Address(), request)
		answer, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
		if err != nil || answer.StatusCode != http.StatusUpgradeRequired || !strings.Contains(got, "use https://") {
			t.Errorf("HTTP at the port for HTTPS: %s (%v)", got, err)
		}
	}
}

// Without HTTPS there is nothing to say.
func TestHTTPNeedsHTTPS(t *testing.T) {
	for _, args := range [][]string{
		{"--http-listen", "127.0.0.1:0"}, {"--http-listen", "80", "--tls", "auto"}, {"--tls", "acme"}, {"--tls", "acme", "--public-name", "192.0.2.7"},
		{"--tls", "acme", "--public-name", "*.lan"}, {"--tls", "acme", "--public-name", "a.example", "--acme-directory", "http://ca.lan"},
		{"--tls", "acme", "--public-name", "a.example", "--acme-email", "me"},
	} {
		if cfg, err := load(t, "", nil, args...); err == nil {
			t.Errorf("%v was taken: %+v", args, cfg.Access)
		}
	}
	if _, err := load(t, "", nil, "--tls", "acme", "--public-name", "a.example,b", "--acme-email", "me@a.example", "--http-listen", ":80"); err != nil {
		t.Error(err)
	}
}
