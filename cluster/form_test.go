package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pier/cluster/port"
)

func TestOneNodeIsAClusterAtOnce(t *testing.T) {
	h := newHouse(t)
	m := h.add(nil)
	m.start()
	m.ready()
	m.mustPut("a", "1")
	m.mustGet("a", "1")
	m.kill()
	m.start()
	m.ready()
	m.mustGet("a", "1")
	m.stop()
	m.start()
	m.ready()
	m.mustGet("a", "1")
}

func TestThreeFormInAnyOrder(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			nodes := h.expecting(3)
			for _, i := range order {
				nodes[i].start()
			}
			for _, m := range nodes {
				m.ready()
			}
			for i, m := range nodes {
				m.mustPut(fmt.Sprint(i), "x")
			}
			for _, m := range nodes {
				for i := range nodes {
					m.mustGet(fmt.Sprint(i), "x")
				}
			}
			eventually(t, func() error {
				s := status(t, nodes[0])
				if !s.Quorum || !s.Healthy || len(s.Nodes) != 3 || s.ClusterID == "" {
					return fmt.Errorf("status: %+v", s)
				}
				return nil
			})
		})
	}
}

func TestTwoOfThreeWait(t *testing.T) {
	h := newHouse(t)
	nodes := h.expecting(3)
	nodes[0].start()
	nodes[1].start()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := propose(ctx, nodes[0].cluster, command{Op: "put", Key: "a"}); err == nil {
		t.Fatal("two of three took a write before the cluster was formed")
	}
	for _, m := range nodes[:2] {
		select {
		case <-m.cluster.Ready():
			t.Fatalf("%s is ready without the third", m.name)
		default:
		}
	}
	nodes[2].start()
	for _, m := range nodes {
		m.ready()
	}
	nodes[2].mustPut("a", "1")
}

func TestAllRestartAtOnce(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	for i := range 50 {
		nodes[i%3].mustPut(fmt.Sprint(i), fmt.Sprint(i))
	}
	for round := range 2 {
		for _, m := range nodes {
			if round == 0 {
				m.kill()
			} else {
				m.stop()
			}
		}
		for _, m := range nodes {
			m.start()
		}
		for _, m := range nodes {
			m.ready()
			for i := range 50 {
				m.mustGet(fmt.Sprint(i), fmt.Sprint(i))
			}
		}
	}
}

func TestAWipedNodeComesBackAsANewOne(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	nodes[0].mustPut("a", "1")
	old := nodes[2].cluster.ID()
	nodes[2].kill()
	nodes[2].wipe()
	nodes[2].start()
	nodes[2].ready()
	if nodes[2].cluster.ID() == old {
		t.Fatal("an empty disk kept its ID")
	}
	nodes[2].mustGet("a", "1")
	// The dead voter makes room once the new one votes, and the cluster can lose a node again.
	eventually(t, func() error {
		s := status(t, nodes[0])
		if len(s.Nodes) != 3 || !s.Healthy {
			return fmt.Errorf("status: %+v", s)
		}
		for _, n := range s.Nodes {
			if n.ID == old || n.Role == "nonvoter" {
				return fmt.Errorf("status: %+v", s)
			}
		}
		return nil
	})
	nodes[1].kill()
	nodes[0].mustPut("b", "2")
	nodes[2].mustGet("b", "2")
}

func TestAnOldDiskDoesNotVote(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	nodes[0].mustPut("a", "1")
	old := nodes[2]
	old.stop()
	dir, state := old.disk()
	old.start()
	old.ready()
	nodes[0].mustPut("a", "2")
	old.kill()
	old.dir, old.state = dir, state
	old.start()
	// With the old disk and one other node there would be a majority by numbers, and the other's entries could be lost.
	ldr := leader(t, nodes[:2])
	survivor := others(nodes[:2], ldr)[0]
	eventually(t, func() error {
		if !errors.Is(old.cluster.bootRefused(), ErrEpochUsed) {
			return errors.New("the old disk has not been refused yet")
		}
		return nil
	})
	ldr.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := propose(ctx, survivor.cluster, command{Op: "put", Key: "a", Value: "3"}); err == nil {
		t.Fatal("an old disk helped to elect a leader")
	}
	if _, err := propose(ctx, old.cluster, command{Op: "put", Key: "a", Value: "5"}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("an old disk's write: %v", err)
	}
	ldr.start()
	ldr.ready()
	survivor.mustPut("a", "4")
	ldr.mustGet("a", "4")
}

// However often an old disk is started, and however high it counts meanwhile, it doesn't remember the life that it lacks.
func TestAnOldDiskStaysOutOverRestarts(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	old := nodes[2]
	old.stop()
	dir, state := old.disk()
	old.start()
	old.ready()
	nodes[0].mustPut("a", "1")
	old.kill()
	old.dir, old.state = dir, state
	refused := func() error {
		if !errors.Is(old.cluster.bootRefused(), ErrEpochUsed) || old.cluster.Voting() {
			return errors.New("the old disk has not been refused yet")
		}
		return nil
	}
	for range 3 { // lives that end before they have asked anybody
		if err := old.open(); err != nil {
			t.Fatal(err)
		}
		old.cluster.Close()
	}
	old.start()
	eventually(t, refused)
	old.kill()
	old.start()
	if err := refused(); err != nil {
		eventually(t, refused)
	}
	select {
	case <-old.cluster.Ready():
		t.Fatal("an old disk calls itself ready")
	default:
	}
	if s := status(t, nodes[0]); s.Healthy || !s.Quorum {
		t.Fatalf("status while a voter stays out: %+v", s)
	}
}

// One founder that expects only itself still looks for a cluster first.
func TestExpectingOneForms(t *testing.T) {
	h := newHouse(t)
	first := h.add(nil)
	first.cfg = func(c *Config) { c.Join, c.BootstrapExpect = []string{first.address, h.freeAddress()}, 1 }
	first.start()
	first.ready()
	second := h.add(func(c *Config) { c.Join, c.BootstrapExpect = []string{first.address}, 1 })
	second.start()
	second.ready()
	first.mustPut("a", "1")
	second.mustGet("a", "1")
}

// A log that is gone took the node's votes with it.
func TestALostLogIsRefused(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(3)
	m := nodes[0]
	m.kill()
	if err := os.Remove(filepath.Join(m.dir, logFile)); err != nil {
		t.Fatal(err)
	}
	m.state = newMapState()
	if err := m.open(); !errors.Is(err, ErrEpochUsed) {
		if err == nil {
			m.cluster.Close()
			m.cluster = nil
		}
		t.Fatalf("a node without its log: %v", err)
	}
}

// A disk that hangs under the log hangs Raft with it; the process must come to its end all the same.
func TestAHungLogDoesNotKeepTheNodeAlive(t *testing.T) {
	h := newHouse(t)
	m := h.add(nil)
	m.start()
	m.ready()
	eventually(t, func() error {
		if status(t, m).ClusterID == "" {
			return errors.New("the cluster has no ID yet")
		}
		return nil
	})
	defer hangLog(t, m.cluster)()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := propose(ctx, m.cluster, command{Op: "put", Key: "a"}); err == nil {
		t.Fatal("a write went through a disk that hangs")
	}
	m.kill()
}

// Commands that Raft hasn't looked at when it ends are given up, and don't keep their goroutines.
func TestQueuedCommandsEndWithRaft(t *testing.T) {
	h := newHouse(t)
	m := h.add(nil)
	m.start()
	m.ready()
	defer hangLog(t, m.cluster)()
	c := m.cluster
	const queued = 5
	answers := make(chan error, queued)
	for range queued {
		future := c.raft.Apply([]byte("{}"), time.Second)
		go func() { answers <- c.tasks.await(context.Background(), future) }()
	}
	m.kill()
	for range queued {
		select {
		case err := <-answers:
			if err == nil {
				t.Error("a command went through a disk that hangs")
			}
		case <-time.After(patience):
			t.Fatalf("a command waits for ever; %d tasks are left", c.tasks.busy)
		}
	}
}

// A founder that lost its disk while the cluster formed, and came back with the lowest ID, follows whom the others have
// promised to follow: they can't promise again.
func TestAFounderEmptiedWhileFormingFollows(t *testing.T) {
	h := newHouse(t)
	nodes := h.expecting(3)
	ids := []NodeID{"00000000", "10000000", "20000000"}
	for i, m := range nodes {
		id := identity{ID: ids[i], Seen: map[NodeID]boot{}}
		if i > 0 {
			id.Promised = ids[1]
		}
		if err := writeIdentity(m.dir, id); err != nil {
			t.Fatal(err)
		}
		m.start()
	}
	for _, m := range nodes {
		m.ready()
	}
	nodes[0].mustPut("a", "1")
	if s := status(t, nodes[2]); len(s.Nodes) != 3 {
		t.Fatalf("status: %+v", s)
	}
}

// An address that means every interface here means nothing elsewhere.
func TestListeningOnAllIsAnnouncedByName(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for bound, want := range map[string]string{"[::]:7000": name + ":7000", "0.0.0.0:7000": name + ":7000", "10.0.0.1:7000": "10.0.0.1:7000"} {
		if got := reachable(bound); got != want {
			t.Errorf("%s is announced as %s", bound, got)
		}
	}
}

// Half of the founders must not be enough: the other half could do the same.
func TestExpectingHalfIsRefused(t *testing.T) {
	cfg := Config{DataDir: "x", Listen: "a:1", Advertise: "a:1", Secrets: port.Secrets{port.NewSecret()}, Join: []string{"a:1", "b:1", "c:1", "d:1"}, BootstrapExpect: 2}
	if err := cfg.Validate(); err == nil {
		t.Error("two of four may form a cluster")
	}
	cfg.BootstrapExpect = 3
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg.Advertise = "e:1"
	cfg.Join, cfg.BootstrapExpect = cfg.Join[1:], 2 // with itself they are four
	if err := cfg.Validate(); err == nil {
		t.Error("two of four may form a cluster")
	}
}

// A founder that restarts between its promise and the first election keeps the promise, and the cluster forms.
func TestAFounderRestartsAfterItsPromise(t *testing.T) {
	h := newHouse(t)
	nodes := h.expecting(3)
	for _, m := range nodes {
		m.start()
	}
	eventually(t, func() error {
		for _, m := range nodes {
			id, err := loadIdentity(m.dir)
			if err != nil || id.Promised == "" {
				return fmt.Errorf("%s has promised nothing, %v", m.name, err)
			}
		}
		return nil
	})
	for _, m := range nodes {
		m.kill()
		m.start()
	}
	for _, m := range nodes {
		m.ready()
	}
	nodes[2].mustPut("a", "1")
	nodes[0].mustGet("a", "1")
	if s := status(t, nodes[1]); len(s.Nodes) != 3 {
		t.Fatalf("status: %+v", s)
	}
}

// What goes wrong at each try is told once, though two things go wrong in turn, and from another port each time.
func TestComplaintsAreToldOnce(t *testing.T) {
	var log bytes.Buffer
	c := &Cluster{cfg: Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}, complaints: make(map[string]string)}
	for number := range 5 {
		from := &net.TCPAddr{Port: 40_000 + number}
		c.complain("no secret", "a", &net.OpError{Op: "read", Source: from, Err: os.NewSyscallError("read", syscall.ECONNRESET)})
		c.complain("no member", "b", nil)
	}
	c.complain("no secret", "a", syscall.ECONNREFUSED)
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}
