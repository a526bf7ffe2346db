package harness

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
)

// journal keeps what a node logs, over all its lives, and shows it with a failing test and with -v.
type journal struct {
	t     testing.TB
	mu    sync.Mutex
	over  bool // t.Log must not be called when the test has ended
	lines []string
}

func newJournal(t testing.TB) *journal {
	j := &journal{t: t}
	t.Cleanup(func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.over = true
	})
	return j
}

func (j *journal) logger(name string) *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("PIER_TEST_LOG") == "debug" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: level})).With("on", name)
}

func (j *journal) Write(p []byte) (int, error) {
	line := string(bytes.TrimRight(p, "\n"))
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
	if !j.over {
		j.t.Log(line)
	}
	return len(p), nil
}

// Logged counts the lines of the node's log that have the text.
func (x *Node) Logged(text string) int {
	x.log.mu.Lock()
	defer x.log.mu.Unlock()
	n := 0
	for _, line := range x.log.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
