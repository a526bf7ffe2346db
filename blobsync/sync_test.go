package blobsync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

func TestEveryNodeGetsEveryBlob(t *testing.T) {
	g := newGrid(t, 3, Config{}, 0)
	for i, size := range []int{0, 1, 70 << 10, 3 << 20} {
		b := g.nodes[i%3].push(payload(size, fmt.Sprint(i)))
		for _, x := range g.nodes {
			x.arrives(b)
		}
	}
	for _, x := range g.nodes {
		if f := x.Figures(); f.Blobs != 4 {
			t.Errorf("%s: %+v", x.id, f)
		}
	}
}

func TestReadThroughWhileItComes(t *testing.T) {
	g := newGrid(t, 2, Config{Workers: 1}, 20<<20)
	data := payload(4<<20, "through")
	b := g.nodes[0].push(data)
	var readers sync.WaitGroup
	for range 5 {
		readers.Go(func() {
			if got, err := g.nodes[1].read(b); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	readers.Wait()
	if n := g.nodes[1].Figures().FetchedBytes; n != int64(len(data)) {
		t.Errorf("five readers and the feed fetched %d bytes, not %d", n, len(data))
	}
}

func TestBrokenTransferGoesOnElsewhere(t *testing.T) {
	g := newGrid(t, 3, Config{}, 0)
	data := payload(2<<20, "broken")
	b := g.nodes[0].push(data)
	g.nodes[1].arrives(b)
	g.nodes[2].arrives(b)
	late := &gridNode{id: "late", grid: g}
	g.nodes[0].breaks.Store(600 << 10)
	g.nodes[1].breaks.Store(600 << 10)
	late.build(Config{})
	g.join(late)
	late.run()
	late.arrives(b)
	if n := late.Figures().FetchedBytes; n > int64(len(data)) {
		t.Errorf("%d bytes were fetched for %d", n, len(data))
	}
}

func TestLyingPeerIsFoundOut(t *testing.T) {
	g := newGrid(t, 2, Config{}, 0)
	g.nodes[0].rotten.Store(true)
	data := payload(1<<20, "true")
	b := g.nodes[0].push(data)
	if got, err := g.nodes[1].read(b); err == nil || bytes.Equal(got, data) || len(got) == len(data) {
		t.Errorf("a whole body of %d bytes came, err %v", len(got), err)
	}
	if g.nodes[1].holds(b) {
		t.Error("wrong bytes became a blob")
	}
	g.nodes[0].rotten.Store(false)
	g.nodes[1].arrives(b)
}

func TestDamageIsHealedFromAPeer(t *testing.T) {
	g := newGrid(t, 2, Config{}, 0)
	data := payload(1<<20, "heal")
	b := g.nodes[0].push(data)
	g.nodes[1].arrives(b)
	x := g.nodes[1]
	f, err := x.store.Open(b.Digest)
	if err != nil {
		t.Fatal(err)
	}
	path := f.Name()
	_ = f.Close()
	if err := os.WriteFile(filepath.Clean(path), payload(1<<20, "hurt"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := x.read(b); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestEnsureNeedsAMajorityAlive(t *testing.T) {
	g := newGrid(t, 3, Config{EnsureTimeout: 2 * time.Second}, 0)
	g.nodes[2].down.Store(true)
	blobs := []Blob{g.nodes[0].push(payload(100, "a")), g.nodes[0].push(payload(1<<20, "b"))}
	if err := g.nodes[1].Ensure(context.Background(), blobs); err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		if !g.nodes[1].holds(b) {
			t.Error("it was counted before it was there")
		}
	}
	g.nodes[1].down.Store(true)
	b := g.nodes[0].push(payload(100, "c"))
	var short *ShortError
	if err := g.nodes[0].Ensure(context.Background(), []Blob{b}); !errors.As(err, &short) || len(short.Digests) != 1 || short.Need != 2 {
		t.Errorf("one copy of three was enough: %v", err)
	}
}

func TestNobodyHasIt(t *testing.T) {
	g := newGrid(t, 3, Config{}, 0)
	b := Blob{Digest: digest.FromString("nowhere"), Size: 7, Origin: "n1"}
	if _, err := g.nodes[1].Open(context.Background(), b, b.Size); !errors.Is(err, ErrNoHolder) {
		t.Error(err)
	}
	if g.nodes[1].Reachable(context.Background(), b) {
		t.Error("it is reachable")
	}
}

func TestReplicasAreHandedOver(t *testing.T) {
	g := newGrid(t, 4, Config{Replicas: 2, CompareInterval: 50 * time.Millisecond}, 0)
	for i := range 6 {
		b := g.nodes[0].push(payload(1000, fmt.Sprint(i)))
		holders := Place(b.Digest, []NodeID{"n1", "n2", "n3", "n4"}, 2)
		for _, x := range g.nodes {
			if slices.Contains(holders, x.id) {
				x.arrives(b)
			}
		}
		late := time.After(30 * time.Second)
		for !slices.Contains(holders, "n1") && g.nodes[0].holds(b) {
			select {
			case <-g.nodes[0].store.Changed():
			case <-late:
				t.Fatal("the origin doesn't let go")
			}
		}
		for _, x := range g.nodes {
			if data, err := x.read(b); err != nil || len(data) != 1000 {
				t.Errorf("%s reads %d bytes, %v", x.id, len(data), err)
			}
		}
	}
}

// A newcomer reads in the log of blobs that were linked before it was a member.
func TestANewcomerGetsWhatWasThereBefore(t *testing.T) {
	g := newGrid(t, 2, Config{CompareInterval: time.Hour}, 0)
	newcomer := &gridNode{id: "n3", grid: g}
	newcomer.build(Config{CompareInterval: time.Hour})
	newcomer.run()
	before := g.nodes[0].push(payload(1000, "before"))
	g.nodes[1].arrives(before)
	if newcomer.has(before) {
		t.Fatal("a stranger fetched a blob")
	}
	g.join(newcomer)
	after := g.nodes[0].push(payload(1000, "after"))
	newcomer.arrives(after)
	newcomer.arrives(before)
}

func TestOnlyOn(t *testing.T) {
	g := newGrid(t, 2, Config{}, 0)
	shared := g.nodes[0].push(payload(10, "s"))
	g.nodes[1].arrives(shared)
	g.nodes[1].down.Store(true)
	alone := g.nodes[0].push(payload(10, "a"))
	g.nodes[1].down.Store(false)
	if g.nodes[1].holds(alone) {
		g.nodes[1].arrives(alone)
	}
	found, total, err := g.nodes[1].OnlyOn(context.Background(), "n2", 10)
	if err != nil || total != 0 || len(found) != 0 {
		t.Errorf("n2 alone holds %v (%d), %v", found, total, err)
	}
	g.nodes[1].down.Store(true)
	if _, total, err := g.nodes[0].OnlyOn(context.Background(), "n1", 10); err != nil || total != 2 {
		t.Errorf("with n2 down n1 alone holds %d, %v", total, err)
	}
}

func TestPlaceMovesOnlyWhatMustMove(t *testing.T) {
	nodes := []NodeID{"a", "b", "c", "d", "e"}
	count := map[NodeID]int{}
	for i := range 2000 {
		d := digest.FromString(fmt.Sprint(i))
		before := Place(d, nodes, 2)
		for _, id := range before {
			count[id]++
		}
		after := Place(d, nodes[:4], 2)
		for _, id := range before {
			if id != "e" && !slices.Contains(after, id) {
				t.Fatalf("%s moved off %s because e went", d, id)
			}
		}
	}
	for id, n := range count {
		if n < 600 || n > 1000 {
			t.Errorf("%s holds %d of 4000", id, n)
		}
	}
}

// BenchmarkFanout copies 1 GiB to all of n nodes whose links carry 64 MiB/s each, from its link on, and reports how many times as long as one
// transfer it takes.
func BenchmarkFanout(b *testing.B) {
	const size, speed = 1 << 30, 64 << 20
	for _, n := range []int{3, 5} {
		b.Run(fmt.Sprintf("%d-nodes", n), func(b *testing.B) {
			var took time.Duration
			for i := 0; b.Loop(); i++ {
				g := newGrid(b, n, Config{}, speed)
				data := payload(size, fmt.Sprintf("fan %d ", i))
				blob := g.nodes[0].push(data)
				began := time.Now()
				for _, x := range g.nodes {
					x.arrives(blob)
				}
				took += time.Since(began)
			}
			one := time.Duration(float64(size) / float64(speed) * float64(time.Second))
			b.ReportMetric(float64(took)/float64(b.N)/float64(one), "x-of-one-transfer")
		})
	}
}
