package promises

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"pier/fsm"
	"pier/test/harness"
)

// tagOp is a push or a read of one tag; the value is the image's number, 0 for none.
type tagOp struct {
	write bool
	value int
}

// register is a tag as its users see it.
func register() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, input, output any) (bool, any) {
			op := input.(tagOp)
			if op.write {
				return true, op.value
			}
			return output.(int) == state.(int), state
		},
		DescribeOperation: func(input, output any) string {
			if op := input.(tagOp); op.write {
				return fmt.Sprintf("push %d", op.value)
			}
			return fmt.Sprintf("read %d", output)
		},
	}
}

// recorder collects what clients saw. A push whose answer never came may have happened at any time until the end.
type recorder struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
	sure  int // pushes and reads that were answered
}

func (r *recorder) now() int64 { return int64(time.Since(r.began)) }

func (r *recorder) add(client int, op tagOp, call int64, output int, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	back := r.now()
	if known {
		r.sure++
	} else {
		back = int64(time.Hour)
	}
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: op, Call: call, Output: output, Return: back})
}

func (r *recorder) answered() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sure
}

// tagClients push to and read one tag through all nodes until ctx ends.
type tagClients struct {
	nodes     []*harness.Node
	manifests [][]byte
	byDigest  map[string]int
	rec       *recorder
}

func newTagClients(c *harness.Cluster, images int) *tagClients {
	tc := &tagClients{nodes: c.Nodes, byDigest: map[string]int{}, rec: &recorder{began: time.Now()}}
	for i := range images {
		img := harness.NewImage("team/app", fmt.Sprintf("v%d", i), 10)
		c.Must(c.Nodes[0].Push(img))
		tc.byDigest[img.Digest.String()] = i + 1
		tc.manifests = append(tc.manifests, img.Manifest)
	}
	return tc
}

// write pushes one image after the other. Each attempt is a client of its own to the checker: one whose answer was lost may
// still be under way when the next begins.
func (tc *tagClients) write(ctx context.Context, id int) {
	for i := 0; ctx.Err() == nil; i++ {
		n := rand.IntN(len(tc.manifests))
		call := tc.rec.now()
		resp, _, err := tc.pick().Send(context.Background(), http.MethodPut, "/v2/team/app/manifests/latest", bytes.NewReader(tc.manifests[n]), "Content-Type", fsm.TypeOCIManifest)
		if errors.Is(err, syscall.ECONNREFUSED) {
			rest(ctx)
			continue // it never left
		}
		tc.rec.add(id*100000+i, tagOp{true, n + 1}, call, 0, err == nil && resp.StatusCode == http.StatusCreated)
		rest(ctx)
	}
}

func (tc *tagClients) read(ctx context.Context, id int) {
	for i := 0; ctx.Err() == nil; i++ {
		call := tc.rec.now()
		resp, _, err := tc.pick().Send(context.Background(), http.MethodGet, "/v2/team/app/manifests/latest", http.NoBody)
		if err == nil && resp.Header.Get("Warning") == "" && resp.StatusCode != http.StatusServiceUnavailable {
			tc.rec.add(id*100000+i, tagOp{}, call, tc.byDigest[resp.Header.Get("Docker-Content-Digest")], true)
		}
		rest(ctx)
	}
}

// rest keeps a client from asking so often that there is too much to check.
func rest(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Millisecond):
	}
}

func (tc *tagClients) pick() *harness.Node { return tc.nodes[rand.IntN(len(tc.nodes))] }

// Tags are linearizable: pushes and reads through all nodes, while leaders are killed, cut off and hung.
func TestTagsAreLinearizable(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	tc := newTagClients(c, 8)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	for id := range 3 {
		clients.Go(func() { tc.write(ctx, id) })
		clients.Go(func() { tc.read(ctx, 10+id) })
		clients.Go(func() { tc.read(ctx, 20+id) })
	}
	progress := func() {
		before := tc.rec.answered()
		c.Eventually("clients are answered", func() bool { return tc.rec.answered() >= before+30 })
	}
	for _, fault := range []func(leader *harness.Node) (mend func()){
		func(x *harness.Node) func() { x.Kill(); return x.Start },
		func(x *harness.Node) func() {
			for _, y := range others(c, x) {
				c.Net.Cut(x.Name, y.Name)
			}
			return c.Net.Heal
		},
		func(x *harness.Node) func() { c.Net.Freeze(x.Name); return func() { c.Net.Thaw(x.Name) } },
		func(x *harness.Node) func() { c.Net.CutOneWay(x.Name, others(c, x)[0].Name); return c.Net.Heal },
		func(x *harness.Node) func() { x.Stop(); return x.Start },
	} {
		progress()
		mend := fault(c.Leader())
		progress()
		mend()
		progress()
	}
	stop()
	clients.Wait()
	c.WaitReady()
	switch porcupine.CheckOperationsTimeout(register(), tc.rec.ops, 30*time.Second) {
	case porcupine.Illegal:
		t.Errorf("%d operations on a tag have no order that explains them", len(tc.rec.ops))
	case porcupine.Unknown:
		t.Errorf("whether %d operations have an order was not found out in time", len(tc.rec.ops))
	}
}

// The checker finds a read that is too old, so that the test above can fail.
func TestRegisterFindsAStaleRead(t *testing.T) {
	t.Parallel()
	ops := []porcupine.Operation{
		{ClientId: 1, Input: tagOp{true, 1}, Call: 0, Output: 0, Return: 10},
		{ClientId: 1, Input: tagOp{true, 2}, Call: 20, Output: 0, Return: 30},
		{ClientId: 2, Input: tagOp{}, Call: 40, Output: 1, Return: 50},
	}
	if porcupine.CheckOperations(register(), ops) {
		t.Error("a stale read is fine with the checker")
	}
}
