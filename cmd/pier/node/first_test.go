package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
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

// The first user is made once: not where access was decided, and by one of all nodes that are told to.
func TestFirstUserIsMadeOnce(t *testing.T) {
	n := run(t, func(*Config) {})
	told, inst := toldOf(t, n), n.instance()
	for _, err := range []error{fsm.ErrPrincipalExists, nil} {
		log := &hesitant{Log: inst.log}
		if err != nil {
			log.refusals = []error{err} // another node was quicker
		}
		if err := told.firstUser(t.Context(), inst, log); err != nil {
			t.Error(err)
		}
	}
	for _, set := range []string{fsm.AccessOn, fsm.AccessOpen} {
		if _, err := inst.log.Propose(t.Context(), fsm.SetSetting{Key: fsm.SettingAccess, Value: set}); err != nil {
			t.Fatal(err)
		}
		told.cfg.Access.AdminUser = "late"
		if err := told.firstUser(t.Context(), inst, inst.log); err != nil {
			t.Error(err)
		}
		if a, err := n.State().Access(); err != nil || len(a.Principals) != 1 {
			t.Errorf("access is %s, and somebody was made: %+v, %v", set, a.Principals, err)
		}
	}
}

// What keeps the first user from being made ends the node, which says why.
func TestFirstUserThatIsNone(t *testing.T) {
	n := run(t, func(*Config) {})
	for want, edit := range map[string]func(a *AccessConfig){
		"admin-password-file": func(a *AccessConfig) { a.AdminPasswordFile += ".none" },
		"admin-user: name":    func(a *AccessConfig) { a.AdminUser = "a b" },
		"admin-user: a passw": func(a *AccessConfig) {
			if err := os.WriteFile(a.AdminPasswordFile, []byte("short\r\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		told := toldOf(t, n)
		edit(&told.cfg.Access)
		if err := told.firstUser(t.Context(), n.instance(), n.instance().log); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if a, err := n.State().Access(); err != nil || len(a.Principals) != 0 || a.On {
		t.Errorf("somebody was made: %+v, %v", a, err)
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
