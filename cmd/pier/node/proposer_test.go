package node

import (
	"context"
	"errors"
	"strings"
	"testing"

	"pier/cluster"
	"pier/fsm"
)

func TestLaggingMembers(t *testing.T) {
	members := []cluster.Member{{ID: "1", Name: "one"}, {ID: "2", Name: "two"}}
	one, two := fsm.Node{ID: "1", Name: "one", Level: 2}, fsm.Node{ID: "2", Name: "two", Version: "v1.0.0", Level: 1}
	for _, c := range []struct {
		name      string
		level     uint64
		members   []cluster.Member
		announced []fsm.Node
		want      string
	}{
		{"all know it", 1, members, []fsm.Node{one, two}, ""},
		{"one is older", 2, members, []fsm.Node{one, two}, "two runs v1.0.0"},
		{"one has said nothing", 2, members, []fsm.Node{one}, "two 2 has not announced"},
		{"the older one is no member", 2, members[:1], []fsm.Node{one, two}, ""},
		{"members are not known", 2, nil, []fsm.Node{one}, "known yet"},
	} {
		err := lagging(c.level, c.members, c.announced)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, fsm.ErrLevel) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// newer is a command that this build has no number for: no node of this build can have announced it.
type newer struct{ fsm.SetSetting }

func TestNewerCommandIsNotProposed(t *testing.T) {
	cfg, err := load(t, "", nil, "--name", "one", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(cfg, Options{Version: "v1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	select {
	case <-n.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	inst := n.instance()
	log := newProposer(inst.cluster, inst.state)
	if _, err := log.Propose(ctx, newer{}); !errors.Is(err, fsm.ErrLevel) || !strings.Contains(err.Error(), "one runs v1.0.0") {
		t.Errorf("a command that nobody understands: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
