package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
)

// A follower's writes go on while the leader dies: slower, never failed, and none twice.
func TestProposeThroughAFollowerOutlivesTheLeader(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	ldr := leader(t, nodes)
	through := others(nodes, ldr)
	var writers sync.WaitGroup
	var count atomic.Int64
	half, stop := make(chan struct{}), make(chan struct{})
	for w := range 8 {
		writers.Go(func() {
			m := through[w%2]
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				_, err := propose(ctx, m.cluster, command{Op: "add", Key: fmt.Sprint(w), Value: fmt.Sprintf("%d,", i)})
				cancel()
				if err != nil {
					t.Errorf("write %d of writer %d: %v", i, w, err)
					return
				}
				if count.Add(1) == 100 {
					close(half)
				}
			}
		})
	}
	<-half
	ldr.kill()
	eventually(t, func() error {
		if through[0].cluster.Role() != "leader" && through[1].cluster.Role() != "leader" {
			return errors.New("no new leader")
		}
		return through[0].put("after", "1")
	})
	close(stop)
	writers.Wait()
	for w := range 8 {
		got, err := through[0].get(fmt.Sprint(w))
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		for i := range strings.Count(got, ",") {
			want += fmt.Sprintf("%d,", i)
		}
		if got != want {
			t.Fatalf("writer %d: %s", w, got)
		}
	}
	ldr.start()
	ldr.ready()
	ldr.mustGet("after", "1")
}

// The way to the leader swallows what is sent, for a moment: whoever waits for a connection that was begun then begins another.
func TestProposeOutlivesADialWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.formed(3)
	ldr := leader(t, nodes)
	m := others(nodes, ldr)[0]
	m.cluster.gossip.kill()                  // it would be the first to ask
	for _, key := range []string{"a", "b"} { // at the first it may still be telling others of its start, by another connection
		swallowed := h.net.swallow([]*member{m}, []*member{ldr})
		put := make(chan error, 1)
		go func() { put <- m.put(key, "1") }()
		<-swallowed
		h.net.heal()
		if err := <-put; err != nil {
			t.Fatal(err)
		}
	}
}

// The same bytes proposed again get the first answer.
func TestProposeTwiceAppliesOnce(t *testing.T) {
	h := newHouse(t)
	m := h.add(nil)
	m.start()
	m.ready()
	data, err := json.Marshal(command{ID: uuid.NewString(), Op: "add", Key: "a", Value: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := m.cluster.Propose(t.Context(), data); err != nil {
			t.Fatal(err)
		}
	}
	m.mustGet("a", "x")
}

// Every read that begins after a write was answered sees it, on whichever node, while leadership moves about.
func TestReadsAreLinearizable(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	var acked atomic.Int64
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for i := int64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := nodes[i%3].put("n", fmt.Sprint(i)); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			acked.Store(i)
		}
	})
	var reads atomic.Int64
	enough := make(chan struct{})
	for _, m := range nodes {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				floor := acked.Load()
				v, err := m.get("n")
				if err != nil {
					continue // an election under way; what is read is what counts
				}
				var got int64
				_, _ = fmt.Sscan(v, &got)
				if got < floor {
					t.Errorf("%s read %d after %d was acknowledged", m.name, got, floor)
					return
				}
				if reads.Add(1) == 600 {
					close(enough)
				}
			}
		})
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := leader(t, nodes).cluster.Transfer(ctx, ""); err != nil {
			t.Logf("transfer: %v", err)
		}
		cancel()
	}
	select {
	case <-enough:
	case <-time.After(patience):
	}
	close(stop)
	all.Wait()
	if reads.Load() < 100 {
		t.Fatalf("only %d reads", reads.Load())
	}
}

// A leader that is cut off must not serve what it knows as current, and takes no writes; healed, it follows.
func TestAMinorityRefuses(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	nodes[0].mustPut("a", "1")
	alone := leader(t, nodes)
	rest := others(nodes, alone)
	h.net.cut([]*member{alone}, rest)
	fresh := leader(t, rest)
	fresh.mustPut("a", "2")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := alone.cluster.ReadIndex(ctx); !errors.Is(err, ErrNoQuorum) && !errors.Is(err, ErrUnavailable) {
		t.Fatalf("the minority's read: %v", err)
	}
	short, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if _, err := propose(short, alone.cluster, command{Op: "put", Key: "a", Value: "3"}); err == nil {
		t.Fatal("the minority took a write")
	}
	s := status(t, alone)
	if s.Quorum || s.Healthy {
		t.Fatalf("the minority's status: %+v", s)
	}
	h.net.heal()
	eventually(t, func() error {
		v, err := alone.get("a")
		if err != nil || v != "2" {
			return fmt.Errorf("healed: a = %q, %v", v, err)
		}
		return nil
	})
	alone.mustPut("b", "1")
}

// beyondTheLog forms a cluster of three, of which one is away for longer than the log reaches. The others have 0 to 199.
func (h *house) beyondTheLog() (away *member, rest []*member) {
	h.t.Helper()
	h.cfg = func(c *Config) { c.TrailingLogs, c.SnapshotThreshold = 10, 20 }
	nodes := h.formed(3)
	away = others(nodes, leader(h.t, nodes))[0]
	away.kill()
	rest = others(nodes, away)
	for i := range 200 {
		rest[i%2].mustPut(fmt.Sprint(i), "x")
	}
	eventually(h.t, func() error {
		for _, m := range rest {
			first, err := m.cluster.log.FirstIndex()
			if err != nil || first < 50 {
				return fmt.Errorf("%s still has the log from %d on, %v", m.name, first, err)
			}
			rest[0].mustPut("more", "x")
		}
		return nil
	})
	return away, rest
}

// A node that was away for longer than the log reaches gets the state itself.
func TestANodeBehindTheLogCatchesUp(t *testing.T) {
	away, _ := newHouse(t).beyondTheLog()
	away.start()
	away.ready()
	away.mustGet("199", "x")
	for i := range 20 {
		away.mustPut(fmt.Sprintf("after%d", i), "x")
	}
}

// The state isn't copied again and again for a node that went away while it was to get it.
func TestTheStateIsCopiedForWhoIsThere(t *testing.T) {
	h := newHouse(t)
	away, rest := h.beyondTheLog()
	var copies atomic.Int64
	for _, m := range rest {
		m.state.mu.Lock()
		m.state.opening = func() {
			if copies.Add(1) == 1 {
				h.net.cut([]*member{away}, rest)
			}
		}
		m.state.mu.Unlock()
	}
	away.start()
	eventually(t, func() error {
		if copies.Load() == 0 {
			return errors.New("nobody sends the state")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for ctx.Err() == nil {
		rest[0].mustPut("meanwhile", "x")
	}
	if n := copies.Load(); n != 1 {
		t.Errorf("the state was copied %d times for a node that is away", n)
	}
	h.net.heal()
	away.ready()
	away.mustGet("meanwhile", "x")
}

// A follower that the leader can't reach falls behind, and disturbs nobody.
func TestAOneWayCutDoesNotStopTheMajority(t *testing.T) {
	h := newHouse(t)
	h.raftTimeout = time.Second // a busy machine must not elect by itself
	nodes := h.formed(3)
	ldr := leader(t, nodes)
	deaf := others(nodes, ldr)[0]
	h.net.cutOneWay([]*member{ldr}, []*member{deaf})
	term := ldr.cluster.Term()
	for i := range 100 {
		ldr.mustPut(fmt.Sprint(i), "x")
	}
	eventually(t, func() error {
		if _, known := deaf.cluster.Leader(); known {
			return errors.New("the deaf one still believes in its leader")
		}
		return nil
	})
	others(nodes, deaf)[0].mustPut("more", "x")
	if now := ldr.cluster.Term(); now != term {
		t.Fatalf("the deaf node forced an election: term %d, was %d", now, term)
	}
	h.net.heal()
	eventually(t, func() error {
		if v, err := deaf.get("more"); err != nil || v != "x" {
			return fmt.Errorf("healed: %q, %v", v, err)
		}
		return nil
	})
}

// A follower that can't reach the leader, but is reached by it, goes on following.
func TestAFollowerThatCannotBeHeardDisturbsNobody(t *testing.T) {
	h := newHouse(t)
	h.raftTimeout = time.Second // a busy machine must not elect by itself
	nodes := h.formed(3)
	ldr := leader(t, nodes)
	mute := others(nodes, ldr)[0]
	term := ldr.cluster.Term()
	h.net.cutOneWay([]*member{mute}, []*member{ldr})
	for i := range 100 {
		ldr.mustPut(fmt.Sprint(i), "x")
	}
	eventually(t, func() error {
		if v := mute.state.value("99"); v != "x" {
			return fmt.Errorf("the mute one has %q", v)
		}
		return nil
	})
	others(nodes, mute)[1].mustPut("more", "x")
	if now := ldr.cluster.Term(); now != term {
		t.Fatalf("the mute node forced an election: term %d, was %d", now, term)
	}
	h.net.heal()
	mute.mustPut("healed", "x")
}

// A leader that reaches nobody gives up, though the others reach it.
func TestALeaderThatReachesNobodyIsReplaced(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	ldr := leader(t, nodes)
	rest := others(nodes, ldr)
	ldr.mustPut("a", "1")
	h.net.cutOneWay([]*member{ldr}, rest)
	leader(t, rest)
	rest[0].mustPut("a", "2")
	rest[1].mustGet("a", "2")
	eventually(t, func() error { // its log still comes to it
		if v := ldr.state.value("a"); v != "2" {
			return fmt.Errorf("the former leader has %q", v)
		}
		return nil
	})
	h.net.heal()
	ldr.mustGet("a", "2")
}

// The log is cut by bytes where its entries are large.
func TestTheLogIsBoundedByBytes(t *testing.T) {
	h := newHouse(t)
	m := h.add(func(c *Config) { c.TrailingBytes = 1 << 20 })
	m.start()
	m.ready()
	large := strings.Repeat("x", 100<<10)
	eventually(t, func() error {
		for i := range 20 {
			m.mustPut(fmt.Sprint(i), large)
		}
		first, err := m.cluster.log.FirstIndex()
		last, err2 := m.cluster.log.LastIndex()
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if last < 60 || last-first > 40 {
			return fmt.Errorf("the log holds %d to %d", first, last)
		}
		return nil
	})
	// What is there from a former life counts too.
	for range 3 {
		m.kill()
		m.start()
		m.ready()
		for i := range 8 {
			m.mustPut(fmt.Sprint(i), large)
		}
	}
	eventually(t, func() error {
		first, err := m.cluster.log.FirstIndex()
		last, err2 := m.cluster.log.LastIndex()
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if last-first > 15 {
			return fmt.Errorf("after restarts the log holds %d to %d", first, last)
		}
		return nil
	})
	m.mustGet("19", large)
}
