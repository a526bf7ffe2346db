package cluster

import "sync/atomic"

// tail is the newest entry in this node's log, for those who wait for the next one.
type tail struct {
	index atomic.Uint64
	moved signal
}

// set notes what was written.
func (t *tail) set(index uint64) {
	t.index.Store(index)
	t.moved.notify()
}

// beyond gives a channel that is closed when something is written, or at once if the log goes beyond index already.
func (t *tail) beyond(index uint64) <-chan struct{} {
	moved := t.moved.wait()
	if t.index.Load() > index {
		t.moved.notify()
	}
	return moved
}
