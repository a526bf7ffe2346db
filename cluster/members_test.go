package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/cluster/port"
)

// load writes through the nodes until the returned function is called, which fails the test for every failed write.
func load(t *testing.T, nodes ...*member) (stop func()) {
	t.Helper()
	quit := make(chan struct{})
	var writers sync.WaitGroup
	var count atomic.Int64
	for w, m := range nodes {
		c := m.cluster
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-quit:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				_, err := propose(ctx, c, command{Op: "put", Key: fmt.Sprintf("load-%d-%d", w, i), Value: "x"})
				cancel()
				if err != nil {
					t.Errorf("write through %s: %v", m.name, err)
					return
				}
				count.Add(1)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(quit)
		writers.Wait()
		if count.Load() == 0 {
			t.Error("no write happened under load")
		}
	})
	t.Cleanup(stop)
	return stop
}

// join makes m, which must not run, a member through an invite of by.
func (m *member) join(by *member) error {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	token, _, err := by.cluster.Invite(ctx, time.Minute)
	if err != nil {
		return err
	}
	return m.use(token)
}

func (m *member) use(token string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := Join(ctx, JoinConfig{
		DataDir: m.dir, Token: token, Name: m.name, Advertise: m.address, API: "api-" + m.name, Network: m.house.net.of(m.address),
	})
	if err != nil {
		return err
	}
	m.state = newMapState()
	if m.secrets, err = port.LoadSecrets(filepath.Join(m.dir, secretFile)); err != nil {
		return err
	}
	return nil
}

func roles(s Status) map[string]int {
	out := map[string]int{}
	for _, n := range s.Nodes {
		out[n.Role]++
	}
	return out
}

func TestJoinByInviteUnderLoad(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	stop := load(t, nodes...)
	for range 2 {
		m := h.add(nil)
		m.secrets = port.Secrets{port.NewSecret()}
		m.start() // a cluster of one, as people have it before they join
		m.ready()
		m.mustPut("mine", "gone")
		m.stop()
		if err := m.join(nodes[1]); err != nil {
			t.Fatal(err)
		}
		m.start()
		m.ready()
		m.mustGet("mine", "")
		nodes = append(nodes, m)
	}
	stop()
	eventually(t, func() error {
		s := status(t, nodes[4])
		if r := roles(s); r["leader"] != 1 || r["voter"] != 4 || !s.Healthy {
			return fmt.Errorf("status: %+v", s)
		}
		return nil
	})
	leader(t, nodes).kill()
	for i, m := range nodes {
		if m.cluster != nil {
			m.mustPut(fmt.Sprintf("after-%d", i), "x")
		}
	}
}

func TestInvitesWorkOnce(t *testing.T) {
	h := newHouse(t)
	first := h.add(nil)
	first.start()
	first.ready()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	token, _, err := first.cluster.Invite(ctx, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	a, b := h.add(nil), h.add(nil)
	if err := a.use(token); err != nil {
		t.Fatal(err)
	}
	a.start()
	a.ready()
	if err := b.use(token); !errors.Is(err, ErrTokenUsed) {
		t.Fatalf("a second use: %v", err)
	}
	stale, _, err := first.cluster.Invite(ctx, -time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.use(stale); !errors.Is(err, ErrTokenExpired) {
		t.Fatalf("an expired invite: %v", err)
	}
	before := first.state.tries()
	guess := newToken([]string{first.address}, port.Fingerprint(h.secrets[0]), time.Now().Add(time.Minute)).String()
	if err := b.use(guess); !errors.Is(err, ErrTokenUsed) {
		t.Fatalf("a guess: %v", err)
	}
	if after := first.state.tries(); after != before {
		t.Fatal("a stranger's guess went through the log")
	}
	if err := b.use("pier-nonsense"); !errors.Is(err, ErrTokenInvalid) {
		t.Fatalf("nonsense: %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, secretFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a refused node got the secret")
	}
}

// A crash at any step of the switch leaves the old node or the new one, and the next start finishes it.
func TestJoiningOutlivesACrashAtEachStep(t *testing.T) {
	old := identity{ID: "old", Boot: boot{Epoch: 7, Nonce: "x"}, Member: true}
	next := staged{Identity: identity{ID: "new", Peers: []string{"a:1"}}, Secrets: port.Secrets{port.NewSecret()}}
	steps := []func(dir string) error{
		func(string) error { return nil },
		func(dir string) error { return os.Remove(filepath.Join(dir, logFile)) },
		func(dir string) error { return writeIdentity(dir, next.Identity) },
		func(dir string) error { return port.SaveSecrets(filepath.Join(dir, secretFile), next.Secrets) },
	}
	for crash := range len(steps) + 1 {
		dir := t.TempDir()
		err := errors.Join(writeIdentity(dir, old), os.WriteFile(filepath.Join(dir, logFile), []byte("old"), 0o600),
			port.SaveSecrets(filepath.Join(dir, secretFile), port.Secrets{port.NewSecret()}), os.WriteFile(filepath.Join(dir, stagedFile+".next"), []byte("half"), 0o600))
		want := old.ID
		if crash > 0 {
			err, want = errors.Join(err, stage(dir, next)), next.Identity.ID
		}
		for _, step := range steps[:crash] {
			err = errors.Join(err, step(dir))
		}
		if err = errors.Join(err, FinishJoin(dir)); err != nil {
			t.Fatal(err)
		}
		id, err := loadIdentity(dir)
		if err != nil || id.ID != want {
			t.Fatalf("after step %d the node is %s, %v", crash, id.ID, err)
		}
		secrets, err := port.LoadSecrets(filepath.Join(dir, secretFile))
		_, logErr := os.Stat(filepath.Join(dir, logFile))
		if fresh := err == nil && bytes.Equal(secrets[0], next.Secrets[0]); fresh != (want == "new") || errors.Is(logErr, os.ErrNotExist) != fresh {
			t.Fatalf("after step %d: new secret %t, log %v, %v", crash, fresh, logErr, err)
		}
	}
}

func TestRemoveTheLeaderUnderLoad(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(4)
	ldr := leader(t, nodes)
	rest := others(nodes, ldr)
	stop := load(t, rest...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	gone := ldr.cluster.ID()
	if err := rest[0].cluster.Remove(ctx, gone, false); err != nil {
		t.Fatal(err)
	}
	stop()
	eventually(t, func() error {
		for _, m := range rest {
			s := status(t, m)
			if len(s.Nodes) != 3 || !s.Healthy {
				return fmt.Errorf("%s: %+v", m.name, s)
			}
		}
		return nil
	})
	// Whoever was removed is refused, and says so.
	eventually(t, func() error {
		if err := ldr.cluster.ReadIndex(ctx); err == nil {
			return errors.New("a removed node reads as if it were a member")
		}
		short, stop := context.WithTimeout(ctx, 500*time.Millisecond)
		defer stop()
		if _, err := propose(short, ldr.cluster, command{Op: "put", Key: "a"}); !errors.Is(err, ErrNotMember) {
			return fmt.Errorf("a removed node's write: %v", err)
		}
		return nil
	})
	ldr.stop()
	ldr.start()
	rest[0].mustPut("still", "here")
	if _, err := propose(ctx, ldr.cluster, command{Op: "put", Key: "a"}); !errors.Is(err, ErrNotMember) {
		t.Fatalf("a removed node's write after its restart: %v", err)
	}
	if err := ldr.cluster.Standing(); !errors.Is(err, ErrNotMember) {
		t.Fatalf("a removed node's standing: %v", err)
	}
	// Terms prove nothing here, since a busy machine elects for itself: neither may it ask for votes, nor would it be heard.
	if ldr.cluster.Voting() {
		t.Fatal("a removed node takes part in elections")
	}
	for _, m := range rest {
		if err := m.cluster.admit(port.ProtoRaft, gone); !errors.Is(err, ErrNotMember) {
			t.Fatalf("%s hears a removed node: %v", m.name, err)
		}
	}
}

func TestRemoveRefuses(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	if err := nodes[0].cluster.Remove(ctx, "nobody", false); !errors.Is(err, ErrNodeUnknown) {
		t.Fatalf("nobody: %v", err)
	}
	victim := others(nodes, leader(t, nodes))[0]
	id := victim.cluster.ID()
	h.guard.mu.Lock()
	h.guard.only[id] = []string{"sha256:1", "sha256:2"}
	h.guard.mu.Unlock()
	var last *LastCopyError
	if err := nodes[0].cluster.Remove(ctx, id, false); !errors.As(err, &last) || last.Total != 2 {
		t.Fatalf("last copies: %v", err)
	}
	h.guard.mu.Lock()
	clear(h.guard.only)
	h.guard.mu.Unlock()
	dead := others(nodes, leader(t, nodes), victim)[0]
	dead.kill()
	rest := others(nodes, dead)
	eventually(t, func() error {
		if err := rest[0].cluster.Remove(ctx, id, false); !errors.Is(err, ErrWouldLoseQuorum) {
			return fmt.Errorf("a majority would be lost: %v", err)
		}
		return nil
	})
	// The dead one can go.
	for _, m := range status(t, rest[0]).Nodes {
		if m.Name == dead.name {
			if err := rest[0].cluster.Remove(ctx, m.ID, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	rest[1].mustPut("a", "1")
	if s := status(t, rest[1]); len(s.Nodes) != 2 {
		t.Fatalf("status: %+v", s)
	}
}

// Who can't be heard by a majority changes nobody's membership, and says why: the others have to come back first.
func TestMembershipNeedsAMajority(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	last, gone := nodes[0], nodes[1].cluster.ID()
	nodes[1].kill()
	nodes[2].kill()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	_, _, invited := last.cluster.Invite(ctx, time.Hour)
	for what, err := range map[string]error{
		"invite": invited, "remove": last.cluster.Remove(ctx, gone, false), "by force": last.cluster.Remove(ctx, gone, true),
		"leave": last.cluster.Leave(ctx),
	} {
		if !errors.Is(err, ErrNoQuorum) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A node that was removed, and hasn't heard of it, is told when it asks.
func TestARemovedNodeIsToldWhenItReads(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	gone := others(nodes, leader(t, nodes))[0]
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := others(nodes, gone)[0].cluster.Remove(ctx, gone.cluster.ID(), false); err != nil {
		t.Fatal(err)
	}
	if err := gone.cluster.ReadIndex(ctx); !errors.Is(err, ErrNotMember) {
		t.Fatalf("a removed node reads: %v", err)
	}
}

// Two removals that each could be afforded may be one too many, whoever is asked for them. What was removed is no holder of
// blobs any more, though the answer was lost half way.
func TestRemovalsAtOnceLeaveAMajority(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(4)
	ldr := leader(t, nodes)
	rest := others(nodes, ldr)
	rest[2].kill()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var both sync.WaitGroup
	errs := make([]error, 2)
	ids := []NodeID{rest[0].cluster.ID(), rest[1].cluster.ID()}
	for i := range 2 { // each asks for the other's end
		both.Go(func() { errs[i] = rest[i].cluster.Remove(ctx, ids[1-i], false) })
	}
	both.Wait()
	eventually(t, func() error { // a busy machine may be electing somebody
		if s := status(t, ldr); len(s.Nodes) != 3 || !s.Quorum {
			return fmt.Errorf("after two removals (%v): %+v", errs, s)
		}
		return nil
	})
	records := &mapRecords{state: ldr.state, cluster: ldr.cluster}
	ghost := Record{ID: "ghost", Name: "ghost", Epoch: 1, Nonce: "x"}
	if err := records.Boot(ctx, ghost); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		known, err := records.Nodes()
		if err != nil || slices.ContainsFunc(known, func(r Record) bool { return r.ID == ghost.ID }) {
			return fmt.Errorf("a node that is no member is still on record, %v", err)
		}
		return nil
	})
}

func TestLeaveUnderLoad(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(4)
	goes := leader(t, nodes)
	rest := others(nodes, goes)
	stop := load(t, rest...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := goes.cluster.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case err := <-goes.done:
		if !errors.Is(err, ErrLeft) {
			t.Fatalf("a node that left ends with %v", err)
		}
		goes.done <- err
	case <-ctx.Done():
		t.Fatal("a node that left goes on")
	}
	goes.stop()
	if err := goes.open(); !errors.Is(err, ErrLeft) {
		t.Fatalf("a node that left starts again: %v", err)
	}
	eventually(t, func() error {
		if s := status(t, rest[0]); len(s.Nodes) != 3 || !s.Healthy {
			return fmt.Errorf("status: %+v", s)
		}
		return nil
	})
	for _, m := range rest {
		m.mustPut("by "+m.name, "x")
	}
}

// A node is killed in the moment in which it says goodbye.
func TestGoodbyeAfterDeath(t *testing.T) {
	h := newHouse(t)
	m := h.formed(1)[0]
	m.cluster.gossip.kill()
	m.cluster.gossip.leave()
}

func TestANodeComesBackElsewhere(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	moved := nodes[1]
	moved.stop()
	moved.address = h.freeAddress()
	moved.start()
	moved.ready()
	moved.mustPut("a", "1")
	eventually(t, func() error {
		for _, m := range nodes {
			s, ok := m.cluster.server(moved.cluster.ID())
			if !ok || string(s.Address) != moved.address {
				return fmt.Errorf("%s has it at %s", m.name, s.Address)
			}
		}
		return nil
	})
}

// Two halves that each have company find each other again: Raft dials whom it knows, gossip has to look.
func TestGossipComesTogetherAgain(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(4)
	for _, m := range nodes {
		m.kill()
	}
	h.net.cut(nodes[:2], nodes[2:])
	for _, m := range nodes {
		m.start()
	}
	eventually(t, func() error {
		for _, m := range nodes {
			if m.cluster.gossip.alone() {
				return fmt.Errorf("%s is alone", m.name)
			}
		}
		return nil
	})
	h.net.heal()
	for _, m := range nodes {
		m.ready()
	}
	eventually(t, func() error {
		for _, m := range nodes {
			for _, o := range nodes {
				if hint, _ := m.cluster.gossip.hint(o.cluster.ID()); hint.State != stateAlive {
					return fmt.Errorf("for %s %s is %q", m.name, o.name, hint.State)
				}
			}
		}
		return nil
	})
}

// UDP may be blocked between the nodes: gossip is slower then, and everything works.
func TestUDPIsNotNeeded(t *testing.T) {
	h := newHouse(t)
	h.net.mute = true
	nodes := h.formed(3)
	nodes[0].mustPut("a", "1")
	nodes[1].mustGet("a", "1")
	eventually(t, func() error {
		if s := status(t, nodes[2]); !s.Healthy || len(s.Nodes) != 3 {
			return fmt.Errorf("status: %+v", s)
		}
		return nil
	})
	leader(t, nodes).kill()
	for _, m := range nodes {
		if m.cluster != nil {
			m.mustPut("by "+m.name, "x")
		}
	}
}

// A node that was removed while the leader of today wasn't there is let in no more, wherever it comes from.
func TestARemovedNodeIsNoNewcomer(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(4)
	ldr := leader(t, nodes)
	gone := others(nodes, ldr)[0]
	id := gone.cluster.ID()
	gone.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := ldr.cluster.Remove(ctx, id, false); err != nil {
		t.Fatal(err)
	}
	rest := others(nodes, gone)
	for _, m := range rest { // none of them remembers in person
		m.kill()
		edit, err := loadIdentity(m.dir)
		if err != nil {
			t.Fatal(err)
		}
		edit.Removed = nil
		if err := writeIdentity(m.dir, edit); err != nil {
			t.Fatal(err)
		}
	}
	startAll(rest...)
	gone.address = h.freeAddress()
	gone.start()
	eventually(t, func() error {
		if !gone.cluster.isRemoved() {
			return errors.New("a removed node doesn't know it")
		}
		return nil
	})
	if s := status(t, rest[0]); len(s.Nodes) != 3 {
		t.Fatalf("a removed node is back: %+v", s)
	}
}

// A removal that happened while a node was away is known to it as well.
func TestARemovalIsKnownToWhoWasAway(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(4)
	ldr := leader(t, nodes)
	gone, away := others(nodes, ldr)[0], others(nodes, ldr)[1]
	id := gone.cluster.ID()
	eventually(t, func() error { // it is noted in passing, and who dies before that can't miss anybody later
		away.cluster.mu.Lock()
		defer away.cluster.mu.Unlock()
		if !away.cluster.identity.Members[id] {
			return errors.New("a member doesn't know another one")
		}
		return nil
	})
	away.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := ldr.cluster.Remove(ctx, id, true); err != nil {
		t.Fatal(err)
	}
	away.start()
	eventually(t, func() error {
		if !away.cluster.former(id) {
			return errors.New("a removed node passes for a stranger")
		}
		return nil
	})
}

func TestStrangersAreRefused(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	stranger := h.add(func(c *Config) { c.Join = []string{nodes[0].address} })
	stranger.secrets = port.Secrets{port.NewSecret()}
	stranger.start()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := stranger.cluster.ReadIndex(ctx); err == nil {
		t.Fatal("a stranger reads")
	}
	if s := status(t, nodes[0]); len(s.Nodes) != 3 {
		t.Fatalf("a stranger got in: %+v", s)
	}
	conn, err := net.Dial("tcp", nodes[0].address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	nodes[1].mustPut("a", "1")
}
