package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// listener waits for a text in what is written.
type listener struct {
	bytes.Buffer
	text  string
	heard func()
}

func (l *listener) Write(p []byte) (int, error) {
	n, err := l.Buffer.Write(p)
	if strings.Contains(l.String(), l.text) {
		l.heard()
	}
	return n, err
}

// A node that has left says so and how it comes back, and doesn't end by itself: Docker and systemd would start it again and
// again.
func TestServeWaitsAfterLeaving(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte(`{"id":"gone","left":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said, ended := make(chan struct{}), make(chan int, 1)
	log := &listener{text: "empty its data directory and restart it", heard: sync.OnceFunc(func() { close(said) })}
	go func() {
		ended <- run(ctx, []string{"serve", "--data-dir", dir, "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0"}, io.Discard, log)
	}()
	select {
	case <-said:
	case code := <-ended:
		t.Fatalf("it ended with code %d, having said:\n%s", code, log)
	}
	select {
	case code := <-ended:
		t.Errorf("it ended by itself with code %d", code)
	case <-time.After(200 * time.Millisecond):
		cancel()
		if code := <-ended; code != 1 {
			t.Errorf("told to end, it did with code %d", code)
		}
	}
}
