package promises

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
	"pier/test/harness"
)

// Two thousand connections that do nothing, 500 pushes at once and a listing of 10,000 tags: memory stays bounded, nothing
// fails, and nobody else is kept waiting. This test measures the heap of the whole process, so nothing runs beside it.
func TestFlood(t *testing.T) {
	c := harness.Start(t, 1)
	x := c.Nodes[0]
	first := harness.NewImage("team/app", "first", 100<<10)
	c.Must(x.Push(first))
	manyTags(c, x, first)
	harness.HoldConnections(t, x.Address(), 2000)

	const pushes, size = 500, 1 << 20
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	heap := watchHeap(ctx)
	var served atomic.Int64
	var bystanders sync.WaitGroup
	bystanders.Go(func() {
		for ctx.Err() == nil {
			if err := bystand(x, first); err != nil {
				t.Errorf("a bystander was kept from reading: %v", err)
				return
			}
			served.Add(1)
		}
	})
	shared := bytes.Repeat([]byte("layer of all "), size/13)
	start := make(chan struct{})
	var flood sync.WaitGroup
	for i := range pushes {
		flood.Go(func() {
			<-start
			if err := c.Patiently(func() error { return pushShared(x, fmt.Sprintf("flood/%d", i), shared) }); err != nil {
				t.Errorf("push %d: %v", i, err)
			}
		})
	}
	close(start)
	flood.Wait()
	stop()
	bystanders.Wait()
	if served.Load() == 0 {
		t.Errorf("nobody else was served while %d pushes ran", pushes)
	}
	const bound = 256 << 20 // all bodies at once would be 500 MiB here, and the clients' half of everything is counted too
	if peak := heap(); peak > bound {
		t.Errorf("the heap grew to %d MiB, more than %d", peak>>20, bound>>20)
	} else {
		t.Logf("heap: %d MiB at most; a bystander was served %d times", peak>>20, served.Load())
	}
}

// manyTags gives the image ten thousand tags beside its own.
func manyTags(c *harness.Cluster, x *harness.Node, img harness.Image) {
	c.T.Helper()
	const all, batch = 10000, 100
	for i := range all / batch {
		var query []string
		for j := range batch {
			query = append(query, fmt.Sprintf("tag=t%05d", i*batch+j))
		}
		_, _, err := x.Want(http.StatusCreated, "PUT", "/v2/team/app/manifests/"+img.Digest.String()+"?"+strings.Join(query, "&"), img.Manifest,
			"Content-Type", fsm.TypeOCIManifest)
		c.Must(err)
	}
}

// bystand is what somebody else does meanwhile: read a tag, a blob and the long listing.
func bystand(x *harness.Node, img harness.Image) error {
	for _, path := range []string{"manifests/" + img.Tag, "blobs/" + img.AnyBlob().String(), "tags/list"} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		resp, body, err := x.Send(ctx, "GET", "/v2/team/app/"+path, http.NoBody)
		cancel()
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s %.200s", path, resp.Status, body)
		}
		var list struct{ Tags []string }
		if path == "tags/list" && (json.Unmarshal(body, &list) != nil || len(list.Tags) != 10000) {
			return fmt.Errorf("the listing has %d tags", len(list.Tags))
		}
	}
	return nil
}

// pushShared pushes an image whose layer is the repository's name and then bytes that all pushes share, so that the test
// itself needs little memory.
func pushShared(x *harness.Node, repo string, shared []byte) error {
	sum := digest.SHA256.Digester()
	_, _ = io.WriteString(sum.Hash(), repo)
	_, _ = sum.Hash().Write(shared)
	d, size := sum.Digest(), len(repo)+len(shared)
	_, resp, err := x.Want(http.StatusAccepted, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
	if err != nil {
		return err
	}
	body := io.MultiReader(strings.NewReader(repo), bytes.NewReader(shared))
	resp, answer, err := x.Send(context.Background(), "PUT", resp.Header.Get("Location")+"?digest="+d.String(), body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT: %s %s", resp.Status, answer)
	}
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/x","digest":%q,"size":%d},"layers":[]}`,
		fsm.TypeOCIManifest, d, size)
	_, _, err = x.Want(http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/1", manifest, "Content-Type", fsm.TypeOCIManifest)
	return err
}

// watchHeap looks at the live heap until ctx ends; the function that it gives tells how far it grew.
func watchHeap(ctx context.Context) func() uint64 {
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	peak := make(chan uint64, 1)
	go func() {
		var most uint64
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
			select {
			case <-ctx.Done():
				peak <- most - min(most, before.HeapAlloc)
				return
			case <-tick.C:
			}
		}
	}()
	return func() uint64 { return <-peak }
}
