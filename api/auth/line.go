package auth

import (
	"context"
	"sync"
	"time"
)

const (
	maxWaiting = 64 // logins that wait in one line
	maxFromOne = 32 // of those, from one source
)

// line lets a few in at a time and a bounded number wait; more are sent away. No source has the whole line to itself.
type line struct {
	places chan struct{}

	mu      sync.Mutex
	waiting int
	from    map[string]int // of those that wait, by source
}

func newLine(places int) *line {
	return &line{places: make(chan struct{}, places), from: make(map[string]int)}
}

func (l *line) enter(ctx context.Context, source string) error {
	if !l.join(source) {
		return &TooManyLoginsError{RetryAfter: time.Second}
	}
	defer l.leave(source)
	select {
	case l.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *line) join(source string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting >= maxWaiting || l.from[source] >= maxFromOne {
		return false
	}
	l.waiting++
	l.from[source]++
	return true
}

// leave ends the waiting, whether for a place or for nothing.
func (l *line) leave(source string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
	if l.from[source]--; l.from[source] == 0 {
		delete(l.from, source)
	}
}

// done gives the place back.
func (l *line) done() { <-l.places }
