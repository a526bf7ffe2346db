package promises

import (
	"net/http"
	"strconv"
	"testing"

	"pier/fsm"
	"pier/test/harness"
)

// The minority of a partition serves digests, marks tags, refuses writes with a time to try again, and catches up by
// itself when the network is whole.
func TestMinority(t *testing.T) {
	c := harness.Start(t, 3)
	before := harness.NewImage("team/app", "latest", 100<<10)
	c.Must(c.Nodes[0].Push(before))
	c.Whole(before)
	lone := c.Leader()
	for _, x := range c.Nodes {
		if x != lone {
			c.Net.Cut(lone.Name, x.Name)
		}
	}
	c.Must(lone.PullDigests(before))
	c.Eventually("the minority marks its tags", func() bool {
		resp, _, err := lone.Do("GET", "/v2/team/app/manifests/latest", nil)
		return err == nil && resp.StatusCode == http.StatusOK && resp.Header.Get("Warning") != ""
	})
	resp, body, err := lone.Do("PUT", "/v2/team/app/manifests/other", before.Manifest, "Content-Type", fsm.TypeOCIManifest)
	c.Must(err)
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode != 503 || err != nil || seconds < 1 {
		t.Errorf("a write without quorum: %s, Retry-After %q: %s", resp.Status, resp.Header.Get("Retry-After"), body)
	}
	after := harness.NewImage("team/app", "latest", 100<<10)
	for _, x := range c.Nodes {
		if x != lone {
			c.Must(x.PushPatiently(after))
			break
		}
	}
	c.Net.Heal()
	c.Eventually("the minority catches up", func() bool { return lone.Pull(after) == nil })
	c.Whole(after)
}

// A link that loses everything one way doesn't stop the majority.
func TestOneWayCut(t *testing.T) {
	c := harness.Start(t, 3)
	deaf := c.Follower()
	c.Net.CutOneWay(c.Leader().Name, deaf.Name)
	img := harness.NewImage("team/app", "1", 10)
	for _, x := range c.Nodes {
		if x != deaf {
			c.Must(x.PushPatiently(img))
		}
	}
	c.Net.Heal()
	c.Eventually("the deaf node catches up", func() bool { return deaf.Pull(img) == nil })
}
