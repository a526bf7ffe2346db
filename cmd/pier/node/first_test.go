package node

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"pier/api"
	"pier/fsm"
)

// hesitant is a log whose cluster doesn't know at first what its nodes understand, and that has no quorum for a moment.
type hesitant struct {
	api.Log
	refusals []error
}

func (h *hesitant) Propose(ctx context.Context, cmd fsm.Command) (fsm.Answer, error) {
	if len(h.refusals) > 0 {
		err := h.refusals[0]
		h.refusals = h.refusals[1:]
		return nil, err
	}
	return h.Log.Propose(ctx, cmd)
}

// A node that is to make the first user while its cluster forms tries again, and doesn't end.
func TestFirstUserWaitsForTheCluster(t *testing.T) {
	n := run(t, func(*Config) {})
	told := toldOf(t, n)
	inst := n.instance()
	log := &hesitant{Log: inst.log, refusals: []error{fsm.ErrLevel, &api.Unavailable{Reason: "no leader"}}}
	if err := told.firstUser(t.Context(), inst, log); err != nil {
		t.Errorf("the node would end: %v", err)
	}
	if a, err := n.State().Access(); err != nil || len(a.Principals) != 1 || !a.On {
		t.Errorf("%+v, %v", a, err)
	}
}

// toldOf is the node with a first user to make.
func toldOf(t *testing.T, n *Node) *Node {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("long enough"), 0o600); err != nil {
		t.Fatal(err)
	}
	told := &Node{cfg: n.cfg, logger: n.logger}
	told.cfg.Access.AdminUser, told.cfg.Access.AdminPasswordFile = "root", file
	return told
}

// parting is the log of a node that ends before it has its answer.
type parting struct {
	api.Log
	end func()
}

func (p parting) Propose(context.Context, fsm.Command) (fsm.Answer, error) {
	p.end()
	return nil, &api.Unavailable{Reason: "no leader"}
}

// A node that is told to stop while it makes the first user has nothing to complain about.
func TestFirstUserEndsWithItsNode(t *testing.T) {
	n := run(t, func(*Config) {})
	ctx, cancel := context.WithCancel(t.Context())
	if err := toldOf(t, n).firstUser(ctx, n.instance(), parting{n.instance().log, cancel}); err != nil {
		t.Errorf("a polite stop ends with %v", err)
	}
}
