package auth

import (
	"testing"
	"time"
)

// A rule vouches for its own robot, at its own generation, and for nobody else.
func TestRulesVouchForRobots(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	rule := Rule("ci", "ci", 5)
	d := NewDirectory(true, []Principal{
		{Name: "ci", Kind: KindRobot, Generation: 3, Groups: []string{"bots"}}, {Name: "other", Kind: KindRobot, Generation: 3}, {Name: "alice", Kind: KindUser, Generation: 3},
		{Name: "late", Kind: KindRobot, Generation: 3, Expires: now},
	}, nil, rule, Rule("late", "late", 5), Rule("alice", "alice", 5), Provider{Name: "corp", Generation: 5})
	c, ok := d.Job(rule, now.Add(time.Minute), now)
	if !ok || c.Name != "ci" || c.Kind != KindRobot || !c.IsJob() || c.Until != now.Add(time.Minute) || len(c.Groups) != 1 {
		t.Fatalf("%+v %v", c, ok)
	}
	if again, ok := d.Renew(c, now); !ok || !again.IsJob() || again.Until != c.Until {
		t.Errorf("%+v %v", again, ok)
	}
	for name, rule := range map[string]Provider{
		"a user's": Rule("alice", "alice", 5), "one that has changed": Rule("ci", "ci", 6), "one that is gone": Rule("gone", "ci", 5),
		"an expired robot's": Rule("late", "late", 5), "a provider": {Name: "corp", Generation: 5, Robot: "ci"},
	} {
		if c, ok := d.Job(rule, now.Add(time.Minute), now); ok {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if got, ok := d.Renew(Caller{Kind: KindRobot, Name: "ci", Provider: "rule:gone"}, now); ok {
		t.Errorf("a job of before everything: %+v", got)
	}
	for name, change := range map[string]func(c *Caller){
		"another robot": func(c *Caller) { c.Name = "other" }, "another generation": func(c *Caller) { c.Generation = 2 },
		"another rule": func(c *Caller) { c.Provider = "rule:alice" }, "a user": func(c *Caller) { c.Kind = KindUser },
		"a user by a rule":            func(c *Caller) { c.Kind, c.Name, c.Provider = KindUser, "alice", "rule:alice" },
		"no rule, as a job of before": func(c *Caller) { c.ProviderGeneration = 4 },
	} {
		other := c
		change(&other)
		if got, ok := d.Renew(other, now); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
	keys, err := NewKeys([][]byte{make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	token, err := keys.Issue(c, "pier", nil, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := keys.Verify(token.Text, "pier", now); err != nil || !back.IsJob() || back.Provider != rule.Name {
		t.Errorf("%+v %v", back, err)
	}
}
