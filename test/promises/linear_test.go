package promises

import (
	"fmt"
	"net/http"
	"sync"
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
	}
}

// recorder collects what clients saw. An answer that never came may have happened at any time until the end.
type recorder struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
}

func (r *recorder) now() int64 { return int64(time.Since(r.began)) }

func (r *recorder) add(client int, op tagOp, call int64, output int, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	back := r.now()
	if !known {
		back = int64(time.Hour)
	}
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: op, Call: call, Output: output, Return: back})
}

// Tags are linearizable: pushes and reads through all nodes, while the leader is killed and comes back.
func TestTagsAreLinearizable(t *testing.T) {
	c := harness.Start(t, 3)
	const images = 12
	byDigest := map[string]int{}
	var manifests [][]byte
	for i := range images {
		img := harness.NewImage("team/app", fmt.Sprintf("v%d", i), 10)
		c.Must(c.Nodes[0].Push(img))
		byDigest[img.Digest.String()] = i + 1
		manifests = append(manifests, img.Manifest)
	}
	victim := c.Leader()
	rec := &recorder{began: time.Now()}
	var clients sync.WaitGroup
	for id := range 6 {
		clients.Go(func() {
			for i := range 25 {
				x := c.Nodes[(id+i)%3]
				call := rec.now()
				if id < 3 {
					n := (id*5 + i) % images
					resp, _, err := x.Do(http.MethodPut, "/v2/team/app/manifests/latest", manifests[n], "Content-Type", fsm.TypeOCIManifest)
					rec.add(id*1000+i, tagOp{true, n + 1}, call, 0, err == nil && resp.StatusCode == http.StatusCreated)
					continue
				}
				resp, _, err := x.Do(http.MethodGet, "/v2/team/app/manifests/latest", nil)
				if err != nil || resp.Header.Get("Warning") != "" || resp.StatusCode == http.StatusServiceUnavailable {
					continue // no answer, or one that doesn't promise anything
				}
				rec.add(id*1000+i, tagOp{}, call, byDigest[resp.Header.Get("Docker-Content-Digest")], true)
			}
		})
	}
	victim.Kill()
	victim.Start()
	clients.Wait()
	c.WaitReady()
	if len(rec.ops) < 50 {
		t.Fatalf("only %d operations were answered", len(rec.ops))
	}
	if porcupine.CheckOperationsTimeout(register(), rec.ops, time.Minute) == porcupine.Illegal {
		t.Errorf("%d operations on a tag have no order that explains them", len(rec.ops))
	}
}
