package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pier/api/client"
)

// run starts a node and waits until it takes pushes; it ends with the test.
func run(t *testing.T, edit func(*Config)) *Node {
	t.Helper()
	cfg := Default()
	cfg.DataDir, cfg.Listen, cfg.ClusterListen = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0", "127.0.0.1:0"
	edit(&cfg)
	n, err := New(cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-n.Ready():
	case <-t.Context().Done():
		t.Fatal("the node does not get ready")
	}
	return n
}

// HTTPS without a file to make, the first administrator without a person, and no way around either.
func TestSecureFromTheStart(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var dir string
	n := run(t, func(c *Config) {
		dir = c.DataDir
		c.Access = AccessConfig{TLS: "auto", PublicNames: []string{"registry.lan"}, AdminUser: "root", AdminPasswordFile: password}
	})
	control := client.New(client.Options{Socket: filepath.Join(dir, SocketName)})
	ca, err := control.Authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.PEM))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "registry.lan"}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	ask := func(url, user string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			r.SetBasicAuth(user, "correct horse")
		}
		resp, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp
	}
	for { // the administrator is made once the node is ready
		if a, err := control.Access(t.Context()); err != nil {
			t.Fatal(err)
		} else if a.On {
			break
		}
	}
	if resp := ask(n.URL(), ""); resp.StatusCode != 401 || !strings.Contains(resp.Header.Get("WWW-Authenticate"), `realm="https://`) || resp.ProtoMajor != 2 {
		t.Errorf("without a login: %s %s %v", resp.Proto, resp.Status, resp.Header)
	}
	if resp := ask(n.URL(), "root"); resp.StatusCode != 200 {
		t.Errorf("the administrator: %s", resp.Status)
	}
	if resp := ask(strings.Replace(n.URL(), "https", "http", 1), "root"); resp.StatusCode != 426 {
		t.Errorf("plain HTTP: %s", resp.Status)
	}
}

// Where passwords would travel in the open a node doesn't start, unless it is told to.
func TestPasswordsNeedTLS(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Default()
	cfg.DataDir, cfg.Listen, cfg.ClusterListen = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
	cfg.Access = AccessConfig{AdminUser: "root", AdminPasswordFile: password}
	early := cfg
	early.DataDir, early.Listen = t.TempDir(), "0.0.0.0:0"
	if _, err := New(early, Options{}); err == nil || !strings.Contains(err.Error(), "--insecure-http") {
		t.Errorf("a first start without TLS: %v", err)
	}
	first, err := New(cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	control := client.New(client.Options{Socket: filepath.Join(cfg.DataDir, SocketName)})
	for {
		if a, err := control.Access(t.Context()); err == nil && a.On {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	cfg.Listen = "0.0.0.0:0"
	if _, err := New(cfg, Options{}); err == nil || !strings.Contains(err.Error(), "--insecure-http") {
		t.Errorf("a start without TLS: %v", err)
	}
	for _, edit := range []func(*Config){
		func(c *Config) { c.Access.InsecureHTTP = true }, func(c *Config) { c.Access.TLS = "auto" }, func(c *Config) { c.Listen = "127.0.0.1:0" },
	} {
		fine := cfg
		edit(&fine)
		n, err := New(fine, Options{})
		if err != nil {
			t.Fatal(err)
		}
		n.Close()
	}
}
