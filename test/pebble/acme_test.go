package pebble

import (
	"context"
	"crypto/tls"
	"path/filepath"
	"testing"
	"time"

	"pier/cmd/pier/node"
)

const host = "registry.example.org"

// One node gets a certificate by tls-alpn-01, with nothing but a name and a server.
func TestCertificateOfAnACMEServer(t *testing.T) {
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	server := Start(t, time.Hour)
	cfg := node.Default()
	cfg.DataDir, cfg.Listen, cfg.ClusterListen = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0", "127.0.0.1:0"
	cfg.Access.TLS, cfg.Access.PublicNames = "acme", []string{host}
	cfg.Access.ACMEDirectory, cfg.Access.ACMECAFile = server.Directory, server.CAFile
	n, err := node.New(cfg, node.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server.TLS.To(n.Address())
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	deadline := time.After(time.Minute)
	for {
		c, err := tls.Dial("tcp", n.Address(), &tls.Config{ServerName: host, RootCAs: server.Roots})
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
