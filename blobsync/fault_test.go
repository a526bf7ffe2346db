package blobsync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// ordered gives a payload of n bytes whose chain goes through the nodes as they are listed.
func ordered(t *testing.T, n int, order ...NodeID) []byte {
	t.Helper()
	var nodes []Node
	for _, id := range order {
		nodes = append(nodes, Node{ID: id})
	}
	for i := range 10000 {
		data := payload(n, fmt.Sprintf("%s %d ", order, i))
		same := true
		for j, id := range chain(Blob{Digest: digest.FromBytes(data), Origin: order[0]}, nodes) {
			same = same && order[j] == id
		}
		if same {
			return data
		}
	}
	t.Fatal("no payload takes that way")
	return nil
}

func (g *grid) named(id NodeID) *gridNode {
	for _, x := range g.members() {
		if x.id == id {
			return x
		}
	}
	g.t.Fatalf("there is no %s", id)
	return nil
}

// newcomer is a node that comes to the grid later.
func (g *grid) newcomer(id NodeID, cfg Config) *gridNode {
	x := &gridNode{id: id, grid: g}
	x.build(cfg)
	g.join(x)
	x.run()
	return x
}

// A peer that lies is asked after the others, though it stands first in the chain.
func TestALiarIsPassedOver(t *testing.T) {
	for _, size := range []int{1000, 1 << 20} {
		g := newGrid(t, 2, Config{}, 0)
		data := ordered(t, size, "n1", "n2", "late")
		b := g.nodes[0].push(data)
		g.nodes[1].arrives(b)
		g.nodes[1].rotten.Store(true)
		late := g.newcomer("late", Config{})
		if size <= heldBack { // nothing is shown before it is verified, so the client hears nothing of the lie
			if got, err := late.read(b); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		}
		late.arrives(b)
	}
}

func TestADripIsGivenUp(t *testing.T) {
	g := newGrid(t, 2, Config{}, 0)
	b := g.nodes[0].push(ordered(t, 1<<20, "n1", "n2", "late"))
	g.nodes[1].arrives(b)
	g.nodes[1].drips.Store(true)
	g.newcomer("late", Config{IdleTimeout: 500 * time.Millisecond}).arrives(b)
}

// An answer that begins elsewhere than it was asked to must not be taken for what is missing.
func TestAnAnswerFromTheWrongPlaceIsRefused(t *testing.T) {
	g := newGrid(t, 2, Config{}, 0)
	b := g.nodes[0].push(ordered(t, 1<<20, "n1", "n2", "late"))
	g.nodes[1].arrives(b)
	g.nodes[1].answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", b.Size-1, b.Size))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(make([]byte, b.Size))
		return true
	}
	late := g.newcomer("late", Config{})
	late.arrives(b)
	if n := late.Figures().FetchedBytes; n != b.Size {
		t.Errorf("%d bytes were fetched for %d", n, b.Size)
	}
}

// Two nodes that both begin, while the origin is gone and only the last one of the chain has the blob.
func TestNoTwoWaitForEachOther(t *testing.T) {
	g := newGrid(t, 4, Config{IdleTimeout: time.Hour}, 0)
	g.nodes[0].down.Store(true)
	data := ordered(t, 1<<20, "n1", "n2", "n3", "n4")
	b := Blob{Digest: digest.FromBytes(data), Size: int64(len(data)), Origin: "n1"}
	u, err := g.nodes[3].NewUpload("r", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), -1, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), b.Digest); err != nil {
		t.Fatal(err)
	}
	g.link(b)
	g.nodes[1].arrives(b)
	g.nodes[2].arrives(b)
}

// The node before this one in the chain waits for an origin that it can't reach any more. This one can, and doesn't wait with it.
func TestAStuckPredecessorIsPassedBy(t *testing.T) {
	g := newGrid(t, 3, Config{IdleTimeout: time.Hour}, 0)
	data := payload(1<<20, "past the one before")
	first := g.nodes[0]
	order := chain(Blob{Digest: digest.FromBytes(data), Origin: first.id}, first.Nodes())
	stuck, last := g.named(order[1]), g.named(order[2])
	stuck.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		<-r.Context().Done()
		return true
	}
	last.arrives(first.push(data))
}

// A part of a blob is content under the blob's digest: its end isn't given before the whole is verified.
func TestARangeEndsAfterVerification(t *testing.T) {
	g := newGrid(t, 2, Config{}, 0)
	g.nodes[0].rotten.Store(true)
	b := g.nodes[0].push(payload(4<<20, "range"))
	for _, end := range []int64{10, 100 << 10} {
		r, err := g.nodes[1].Open(t.Context(), b, end)
		if err != nil {
			continue
		}
		if got, err := io.ReadAll(r); err == nil || int64(len(got)) == end {
			t.Errorf("all of the %d bytes came, unverified: %v", len(got), err)
		}
		_ = r.Close()
	}
	g.nodes[0].rotten.Store(false)
	g.nodes[1].arrives(b)
}

func TestEnsureAsksAgain(t *testing.T) {
	g := newGrid(t, 3, Config{EnsureTimeout: 20 * time.Second}, 0)
	g.nodes[2].down.Store(true)
	refusals := 1
	g.nodes[1].answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/blobs/ensure" || refusals == 0 {
			return false
		}
		refusals--
		panic(http.ErrAbortHandler)
	}
	b := g.nodes[0].push(payload(1000, "again"))
	if err := g.nodes[0].Ensure(t.Context(), []Blob{b}); err != nil {
		t.Error(err)
	}
}

// A blob that can't be fetched at first counts when it comes within the time.
func TestEnsureWaitsForAHolderThatComesBack(t *testing.T) {
	g := newGrid(t, 3, Config{EnsureTimeout: 20 * time.Second}, 0)
	g.nodes[2].down.Store(true)
	g.nodes[0].down.Store(true)
	b := g.nodes[0].push(payload(1000, "back"))
	done := make(chan error, 1)
	go func() { done <- g.nodes[1].Ensure(context.Background(), []Blob{b}) }()
	for g.nodes[1].trust.doubtful("n1", time.Now()) == false {
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	g.nodes[0].down.Store(false)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestANodeIsOneCopy(t *testing.T) {
	g := newGrid(t, 3, Config{EnsureTimeout: 500 * time.Millisecond, WriteCopies: 3}, 0)
	g.nodes[2].down.Store(true)
	b := g.nodes[0].push(payload(1000, "once"))
	g.nodes[1].answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/blobs/ensure" {
			_, _ = fmt.Fprintf(w, "%[1]s\n%[1]s\n%[1]s\n", b.Digest)
		}
		return r.URL.Path == "/blobs/ensure"
	}
	var short *ShortError
	if err := g.nodes[0].Ensure(t.Context(), []Blob{b}); !errors.As(err, &short) {
		t.Errorf("two nodes are three copies: %v", err)
	}
}

// The origin's copy is no copy when it isn't to hold the blob.
func TestOnlyHoldersAreCopies(t *testing.T) {
	g := newGrid(t, 4, Config{Replicas: 3, EnsureTimeout: 500 * time.Millisecond}, 0)
	data := payload(1000, "holders")
	for i := 0; Place(digest.FromBytes(data), []NodeID{"n1", "n2", "n3", "n4"}, 0)[3] != "n1"; i++ {
		data = payload(1000, fmt.Sprint(i))
	}
	g.nodes[2].down.Store(true)
	g.nodes[3].down.Store(true)
	b := g.nodes[0].push(data)
	var short *ShortError
	if err := g.nodes[0].Ensure(t.Context(), []Blob{b}); !errors.As(err, &short) || short.Need != 2 {
		t.Errorf("one of three holders is enough: %v", err)
	}
	g.nodes[2].down.Store(false)
	g.nodes[2].arrives(b)
	if err := g.nodes[0].Ensure(t.Context(), []Blob{b}); err != nil {
		t.Error(err)
	}
}

// Two nodes that see two memberships don't both let go because the other has it.
func TestNoTwoLetGoOfEachOther(t *testing.T) {
	g := newGrid(t, 2, Config{Replicas: 2, CompareInterval: time.Hour}, 0)
	b := g.nodes[0].push(payload(1000, "views"))
	g.nodes[1].arrives(b)
	for _, x := range g.nodes {
		x.marks.Store(&map[NodeID]Node{x.id: {Draining: true}})
		x.consider(b, x.Nodes())
	}
	for range 2 {
		for _, x := range g.nodes {
			x.handOver(t.Context())
		}
	}
	for _, x := range g.nodes {
		if !x.holds(b) {
			t.Errorf("%s let go, though %s thinks itself no holder", x.id, g.nodes[0].id)
		}
	}
	// Once they see the same, the one that is to go hands over.
	g.nodes[1].marks.Store(&map[NodeID]Node{"n1": {Draining: true}})
	g.nodes[0].handOver(t.Context())
	if g.nodes[0].holds(b) || !g.nodes[1].holds(b) {
		t.Error("it was not handed over")
	}
}

func TestAMarkedNodeHandsOver(t *testing.T) {
	g := newGrid(t, 3, Config{Replicas: 1, CompareInterval: time.Second}, 0)
	b := g.nodes[0].push(payload(1000, "mark"))
	holder := Place(b.Digest, []NodeID{"n1", "n2", "n3"}, 0)
	at := map[NodeID]*gridNode{}
	for _, x := range g.nodes {
		at[x.id] = x
	}
	at[holder[0]].arrives(b)
	for _, x := range g.nodes {
		x.marks.Store(&map[NodeID]Node{holder[0]: {Away: true}})
	}
	at[holder[1]].arrives(b)
	late := time.After(30 * time.Second)
	for at[holder[0]].holds(b) {
		select {
		case <-at[holder[0]].store.Changed():
		case <-time.After(20 * time.Millisecond):
		case <-late:
			t.Fatal("it is not let go of")
		}
	}
}

// With a full disk a node still answers every pull.
func TestAFullDiskIsPassedBy(t *testing.T) {
	g := newGrid(t, 3, Config{}, 0)
	data := ordered(t, 2<<20, "n1", "n2", "full")
	b := g.nodes[0].push(data)
	g.nodes[1].arrives(b)
	full := &gridNode{id: "full", grid: g, reserve: math.MaxInt64 / 2}
	full.build(Config{})
	g.join(full)
	full.run()
	g.nodes[1].breaks.Store(1 << 20)
	if got, err := full.read(b); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	r, err := full.Open(t.Context(), b, 1<<20+10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Seek(1<<20, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[1<<20:1<<20+10]) {
		t.Errorf("a part: %d bytes, %v", len(got), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, x := range g.nodes {
		x.breaks.Store(0)
		x.rotten.Store(true)
	}
	if r, err = full.Open(t.Context(), b, b.Size); err == nil {
		got, err := io.ReadAll(r)
		if again, _ := io.ReadAll(r); err == nil || len(got)+len(again) >= len(data) {
			t.Errorf("%d wrong bytes came, err %v", len(got), err)
		}
		_ = r.Close()
	}
	if full.holds(b) {
		t.Error("it was written to a full disk")
	}
}

// Waiting for the rate limit isn't the peer's silence.
func TestTheRateLimitIsNotIdleTime(t *testing.T) {
	g := newGrid(t, 2, Config{Rate: 512 << 10, IdleTimeout: 200 * time.Millisecond}, 0)
	g.nodes[1].down.Store(true) // until all is there to be fetched at once
	var blobs []Blob
	for i := range 4 {
		blobs = append(blobs, g.nodes[0].push(payload(400<<10, fmt.Sprint(i))))
	}
	g.nodes[1].down.Store(false)
	before := g.nodes[0].gets.Load()
	g.nodes[1].ensureHere(t.Context(), blobs, func(digest.Digest) {})
	for _, b := range blobs {
		g.nodes[1].arrives(b)
	}
	if n := g.nodes[0].gets.Load() - before; n > int64(len(blobs)) {
		t.Errorf("%d requests for %d blobs", n, len(blobs))
	}
}

// A tick costs what changed, not what there is.
func TestATickReadsNothingAgain(t *testing.T) {
	g := newGrid(t, 1, Config{CompareInterval: time.Millisecond}, 0)
	x := g.nodes[0]
	b := x.push(payload(10, "tick"))
	looked := func(n int64) {
		late := time.After(30 * time.Second)
		for target := x.looks.Load() + n; x.looks.Load() < target; {
			select {
			case <-time.After(time.Millisecond):
			case <-late:
				t.Fatal("it doesn't tick")
			}
		}
	}
	looked(10)
	before := g.whole.Load()
	looked(compareAll / 2)
	if n := g.whole.Load() - before; n > 1 {
		t.Errorf("everything was read %d times", n)
	}
	// And yet what nobody tells of is found in the end.
	if err := x.store.Quarantine(b.Digest); err != nil {
		t.Fatal(err)
	}
	late := time.After(30 * time.Second)
	for x.Figures().Missing != 1 {
		select {
		case <-time.After(time.Millisecond):
		case <-late:
			t.Fatal("it isn't missed")
		}
	}
}

// Damage that a peer's request finds is healed without anybody asking for the blob here.
func TestDamageThatAPeerFindsIsHealed(t *testing.T) {
	g := newGrid(t, 2, Config{}, 0)
	b := g.nodes[0].push(payload(1<<20, "peer"))
	g.nodes[1].arrives(b)
	x := g.nodes[1]
	f, err := x.store.Open(b.Digest)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Clean(f.Name())
	_ = f.Close()
	if err := os.WriteFile(path, payload(1<<20, "hurt"), 0o600); err != nil {
		t.Fatal(err)
	}
	resp, err := g.nodes[0].RoundTrip(mustRequest(t, "http://n2/blobs/"+b.Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		t.Error("the damaged file was sent")
	}
	x.arrives(b)
}

func mustRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestQueueOrder(t *testing.T) {
	q, now := newQueue(), time.Unix(1e9, 0)
	for _, n := range []int64{30, 10, 20} {
		if b := (Blob{Digest: digest.FromString(fmt.Sprint(n)), Size: n}); !q.add(b, now) || q.add(b, now) {
			t.Fatal("a blob is on the list once")
		}
	}
	p, _ := q.take(now)
	if p.blob.Size != 10 {
		t.Fatalf("%d before 10", p.blob.Size)
	}
	q.again(p, now)
	for _, n := range []int64{20, 30} {
		if p, _ := q.take(now); p.blob.Size != n {
			t.Fatalf("%d in place of %d", p.blob.Size, n)
		}
	}
	if p, wait := q.take(now); p != nil || wait != firstPause {
		t.Fatalf("%v, wait %s", p, wait)
	}
	if again, _ := q.take(now.Add(firstPause)); again != p {
		t.Fatal("it doesn't come back")
	}
	if q.done(p); len(q.all) != 2 {
		t.Errorf("%d left", len(q.all))
	}
}
