package api

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"pier/api/client"
	"pier/fsm"
)

// doctor gives the findings that the first node has of all, as "NODE CHECK" to the level.
func (f *fixture) doctor() map[string]string {
	f.Helper()
	got := f.want(f.do("GET", "/api/v1/doctor", nil, "Authorization: "+basic(f, "root")), 200, "")
	var all []client.Finding
	f.must(nil, json.Unmarshal(got.body, &all))
	out := map[string]string{}
	for _, x := range all {
		if out[x.Node+" "+x.Check] != "" || x.Message == "" || (x.Level == client.LevelOK) != (x.Remedy == "") {
			f.Errorf("%+v", x)
		}
		out[x.Node+" "+x.Check] = x.Level
	}
	return out
}

// What is found is said in the same order each time.
func TestFindingsAreInOrder(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	for _, name := range []string{"c", "f", "a", "e", "b", "d"} {
		p := deadProvider(t)
		p.Name = name
		f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: p}), 200, "")
	}
	var said []string
	for _, x := range f.nodes[0].api.ownDiagnosis(t.Context()).Findings {
		said = append(said, x.Check)
	}
	if len(said) != 6 || !slices.IsSorted(said) {
		t.Errorf("%q", said)
	}
}

// All nodes say what they find of themselves; one that is silent, and what only shows beside each other, is said by the
// node that was asked.
func TestDoctorAsksAllNodes(t *testing.T) {
	slow := time.Duration(0)
	f := withAccess(t, 3, func(c *Config) {
		c.Doctor = func(context.Context) []client.Finding { return []client.Finding{client.Fine("own "+c.Name, "well")} }
		if c.Name == "node-1" {
			c.Access.Now = func() time.Time { return time.Now().Add(-slow) }
		}
	})
	f.user("root")
	f.user("eve")
	check := func(want map[string]string) {
		t.Helper()
		got := f.doctor()
		for _, x := range []string{"node-0 own node-0", "node-1 own node-1", "node-2 own node-2", "node-0 quorum", "node-0 versions", "node-0 rotation", "node-1 clock", "node-2 clock"} {
			if _, ok := want[x]; !ok {
				want[x] = client.LevelOK
			}
		}
		for x, level := range want {
			if got[x] != level {
				t.Errorf("%s is %q, not %q", x, got[x], level)
			}
			delete(got, x)
		}
		if len(got) > 0 {
			t.Errorf("nobody expects %v", got)
		}
	}
	check(map[string]string{})
	slow = 10 * time.Second
	check(map[string]string{"node-1 clock": client.LevelWarning})
	slow = time.Hour
	check(map[string]string{"node-1 clock": client.LevelProblem})
	slow = -time.Hour
	check(map[string]string{"node-1 clock": client.LevelProblem})
	slow = 0
	f.must(f.nodes[0].log.Propose(t.Context(), fsm.BootNode{ID: "node-2", Name: "node-2", Epoch: 2, Level: 2, Version: "v2", Nonce: "n"}))
	check(map[string]string{"node-0 versions": client.LevelWarning})
	f.nodes[0].log.set(func(l *nodeLog) { l.alone = true })
	f.nodes[2].down()
	check(map[string]string{"node-0 versions": client.LevelWarning, "node-0 quorum": client.LevelProblem, "node-2 reach": client.LevelProblem, "node-2 own node-2": "", "node-2 clock": ""})
	f.want(f.do("GET", "/api/v1/doctor", nil, "Authorization: "+basic(f, "eve")), 403, codeDenied)
	f.want(f.do("GET", "/api/v1/doctor", nil), 401, codeUnauthorized)
}

// expecting is a cluster with a member that has never come up.
type expecting struct{ noCluster }

func (expecting) Status(context.Context) (client.Status, error) {
	return client.Status{Nodes: []client.NodeStatus{{ID: "node-0", Name: "node-0"}, {ID: "newcomer", Cluster: "127.0.0.1:7000"}}}, nil
}

// A member that was taken in and can't be reached has no record of itself, and is named all the same.
func TestDoctorNamesWhoNeverCame(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	if got := f.doctor(); got["newcomer reach"] != "" {
		t.Errorf("before: %v", got)
	}
	f.nodes[0].api.cluster = expecting{}
	if got := f.doctor(); got["newcomer reach"] != client.LevelWarning || got["node-0 reach"] != "" {
		t.Errorf("%v", got)
	}
}

// A difference counts as far as the time of the answer does not explain it.
func TestClocks(t *testing.T) {
	now := time.Now()
	for off, want := range map[time.Duration]string{
		0: client.LevelOK, 4 * time.Second: client.LevelOK, 6 * time.Second: client.LevelWarning, time.Minute: client.LevelProblem,
		-6 * time.Second: client.LevelWarning, -time.Minute: client.LevelProblem,
	} {
		if f := clocks("b", "a", now.Add(off), now.Add(-time.Millisecond), now); f.Level != want || f.Node != "b" || !strings.Contains(f.Message, "a") {
			t.Errorf("%v: %+v", off, f)
		}
	}
	// An answer that took long says little.
	if f := clocks("b", "a", now.Add(-50*time.Second), now.Add(-time.Minute), now); f.Level != client.LevelOK {
		t.Errorf("within the time that the answer took: %+v", f)
	}
}

// A rotation that a node keeps from going on is one to look at; one that goes its way is not.
func TestRotationFinding(t *testing.T) {
	if f := rotationFinding(client.SecretStatus{Step: "keep"}); f.Level != client.LevelOK {
		t.Errorf("%+v", f)
	}
	if f := rotationFinding(client.SecretStatus{Step: "roll", Waiting: []string{"n2"}}); f.Level != client.LevelWarning || !strings.Contains(f.Message, "n2") || f.Remedy == "" {
		t.Errorf("%+v", f)
	}
}
