package promises

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pier/cmd/pier/node"
	"pier/test/harness"
)

// A node was away for longer than the log reaches: it gets the state as a snapshot, then the blobs, and revives nothing
// that was deleted meanwhile.
func TestAwayBeyondTheLog(t *testing.T) {
	c := harness.StartTuned(t, 3, node.Tuning{TrailingLogs: 16, SnapshotThreshold: 16, SnapshotInterval: 100 * time.Millisecond})
	gone := harness.NewImage("team/app", "gone", 10)
	c.Must(c.Nodes[0].Push(gone))
	away := c.Follower()
	away.Stop()
	here := c.Leader()
	resp, body, err := here.Do("DELETE", "/v2/team/app/manifests/"+gone.Digest.String(), nil)
	c.Must(err)
	if resp.StatusCode != 202 {
		t.Fatalf("%s %s", resp.Status, body)
	}
	var images []harness.Image
	for i := range 40 {
		img := harness.NewImage("team/app", fmt.Sprint(i), 10)
		c.Must(here.Push(img))
		images = append(images, img)
	}
	away.Start()
	c.WaitReady()
	c.Whole(images...)
	if _, body, err := away.Do("GET", "/metrics", nil); err != nil || !strings.Contains(string(body), "pier_state_installs_total 1") {
		t.Errorf("no snapshot was installed, so this tested nothing: %v", err)
	}
	if resp, _, err := away.Do("GET", "/v2/team/app/manifests/"+gone.Digest.String(), nil); err != nil || resp.StatusCode != 404 {
		t.Errorf("what was deleted is back: %v %v", resp, err)
	}
}

// Two thousand connections that do nothing, and a listing of ten thousand tags, keep nobody from pushing.
func TestIdleConnectionsAndLongListing(t *testing.T) {
	c := harness.Start(t, 1)
	x := c.Nodes[0]
	harness.HoldConnections(t, x.Address(), 2000)
	img := harness.NewImage("team/app", "0", 10)
	c.Must(x.Push(img))
	for i := range 100 {
		path := "/v2/team/app/manifests/" + img.Digest.String() + "?tag=t0"
		for j := range 100 {
			if j > 0 {
				path += fmt.Sprintf("&tag=t%d-%d", i, j)
			}
		}
		resp, body, err := x.Do("PUT", path, img.Manifest, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
		c.Must(err)
		if resp.StatusCode != 201 {
			t.Fatalf("%s %s", resp.Status, body)
		}
	}
	resp, body, err := x.Do("GET", "/v2/team/app/tags/list", nil)
	c.Must(err)
	if resp.StatusCode != 200 || len(body) < 9900*5 {
		t.Errorf("%s, %d bytes", resp.Status, len(body))
	}
}
