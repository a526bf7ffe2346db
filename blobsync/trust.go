package blobsync

import (
	"sync"
	"time"
)

const (
	firstDoubt = time.Second
	lastDoubt  = time.Minute
)

// trust remembers which peers failed or sent wrong bytes, so that the others are asked before them for a while.
type trust struct {
	mu     sync.Mutex
	doubts map[NodeID]doubt
}

type doubt struct {
	until time.Time
	pause time.Duration
}

// failed doubts a peer, longer each time.
func (t *trust) failed(id NodeID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.doubts[id]
	d.pause = min(max(2*d.pause, firstDoubt), lastDoubt)
	t.doubt(id, d, now)
}

// lied doubts a peer as long as there is.
func (t *trust) lied(id NodeID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doubt(id, doubt{pause: lastDoubt}, now)
}

func (t *trust) doubt(id NodeID, d doubt, now time.Time) {
	if t.doubts == nil {
		t.doubts = make(map[NodeID]doubt)
	}
	d.until = now.Add(d.pause)
	t.doubts[id] = d
}

// worked takes a doubt back that has run out. One that still runs was about other bytes than these.
func (t *trust) worked(id NodeID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d, ok := t.doubts[id]; ok && now.After(d.until) {
		delete(t.doubts, id)
	}
}

func (t *trust) doubtful(id NodeID, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return now.Before(t.doubts[id].until)
}
