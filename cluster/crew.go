package cluster

import (
	"context"
	"reflect"
	"sync"

	"github.com/hashicorp/raft"
)

// crew counts the goroutines that requests start, so that Run can wait for the last of them.
type crew struct {
	ended chan struct{} // closed when Raft has ended: what it hasn't answered by then it never will

	mu     sync.Mutex
	busy   int
	closed bool
	nobody chan struct{}
}

// run starts fn, or tells that the crew has gone home.
func (w *crew) run(fn func()) bool {
	if !w.enter() {
		return false
	}
	go func() {
		defer w.done()
		fn()
	}()
	return true
}

// enter counts the caller's goroutine in until it calls done; false when the crew has gone home.
func (w *crew) enter() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.busy++
	return true
}

func (w *crew) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy--
	if w.closed && w.busy == 0 {
		close(w.nobody)
	}
}

// close lets nobody start any more and gives a channel that is closed when all have ended.
func (w *crew) close() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.nobody
	}
	w.closed = true
	w.nobody = make(chan struct{})
	if w.busy == 0 {
		close(w.nobody)
	}
	return w.nobody
}

// await waits for a future or for ctx. A future of Raft may hang over a change of leader (hashicorp/raft issue 498), until
// Raft ends; the goroutine that hangs with it belongs to the crew.
func (w *crew) await(ctx context.Context, f raft.Future) error {
	done, ok := w.follow(f)
	if !ok {
		return raft.ErrRaftShutdown
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		return err
	}
}

// follow gives a future's error when it comes.
func (w *crew) follow(f raft.Future) (<-chan error, bool) {
	endWith(f, w.ended)
	done := make(chan error, 1)
	return done, w.run(func() { done <- f.Error() })
}

// endWith gives a future of Raft a way out when Raft ends. One that is still queued then is never answered: the library has
// the field for that, and sets it for some kinds only (hashicorp/raft v1.8.0; this can go when ApplyLog and Barrier set it).
func endWith(f raft.Future, ended chan struct{}) {
	v := reflect.Indirect(reflect.ValueOf(f))
	if v.Kind() != reflect.Struct {
		return
	}
	if out := v.FieldByName("ShutdownCh"); out.IsValid() && out.CanSet() && out.Type() == reflect.TypeOf(ended) && out.IsNil() {
		out.Set(reflect.ValueOf(ended))
	}
}
