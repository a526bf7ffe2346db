package promises

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
	"pier/test/harness"
)

// The minority of a partition serves digests, marks tags, refuses writes with a time to try again, and catches up by
// itself when the network is whole.
func TestMinority(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	before := harness.NewImage("team/app", "latest", 100<<10)
	c.Must(c.Nodes[0].Push(before))
	for _, lone := range []*harness.Node{c.Leader(), c.Follower()} {
		c.Whole(before)
		for _, x := range others(c, lone) {
			c.Net.Cut(lone.Name, x.Name)
		}
		c.Must(lone.PullDigests(before))
		c.Eventually("the minority marks what may be old", func() bool {
			for _, path := range []string{"/v2/team/app/manifests/latest", "/v2/team/app/tags/list", "/v2/_catalog"} {
				resp, _, err := lone.Do("GET", path, nil)
				if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Warning") == "" {
					return false
				}
			}
			return true
		})
		refusesWrites(t, lone, before)
		after := harness.NewImage("team/app", "latest", 100<<10)
		c.Must(others(c, lone)[0].PushPatiently(after))
		c.Net.Heal()
		c.Eventually("the minority catches up", func() bool { return lone.Pull(after) == nil })
		before = after
	}
	c.Whole(before)
}

// refusesWrites tries every kind of write at once. Each must be refused within 15 s, with a time to try again.
func refusesWrites(t *testing.T, x *harness.Node, known harness.Image) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	manifest := "/v2/team/app/manifests/"
	fresh := []byte("a blob that is new")
	_, resp, err := x.Want(http.StatusAccepted, "POST", "/v2/team/app/blobs/uploads/", nil) // a matter of this node alone
	if err != nil {
		t.Error(err)
		return
	}
	var writes sync.WaitGroup
	for _, w := range []struct {
		method, path string
		body         []byte
	}{
		{"PUT", manifest + "other", known.Manifest},
		{"PUT", manifest + "other", harness.NewImage("team/app", "other").Manifest}, // and its config is unknown
		{"PUT", resp.Header.Get("Location") + "?digest=" + digest.FromBytes(fresh).String(), fresh},
		{"POST", "/v2/team/app/blobs/uploads/?digest=" + digest.FromString("x").String(), []byte("x")},
		{"POST", "/v2/team/new/blobs/uploads/?from=team/app&mount=" + known.AnyBlob().String(), nil},
		{"DELETE", manifest + "latest", nil},
		{"DELETE", manifest + known.Digest.String(), nil},
		{"DELETE", "/v2/team/app/blobs/" + known.AnyBlob().String(), nil},
	} {
		writes.Go(func() {
			resp, body, err := x.Send(ctx, w.method, w.path, bytes.NewReader(w.body), "Content-Type", fsm.TypeOCIManifest)
			if err != nil {
				t.Errorf("%s %s without quorum: %v", w.method, w.path, err)
				return
			}
			if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode != 503 || err != nil || seconds < 1 {
				t.Errorf("%s %s without quorum: %s, Retry-After %q: %s", w.method, w.path, resp.Status, resp.Header.Get("Retry-After"), body)
			}
			if !strings.Contains(string(body), "UNAVAILABLE") {
				t.Errorf("%s %s without quorum: %s", w.method, w.path, body)
			}
		})
	}
	writes.Wait()
}

// A link that loses everything one way, whichever it is, doesn't stop the majority: whoever isn't at its end goes on, and
// everybody does when the leader isn't.
func TestOneWayCuts(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	var images []harness.Image
	for _, from := range c.Nodes {
		for _, to := range others(c, from) {
			c.Net.CutOneWay(from.Name, to.Name)
			// An end may not hear of the majority while the other end leads, and the lead may move at any time.
			apart := func(x *harness.Node) bool {
				leader := c.Leader()
				return x != leader && (x == from || x == to) && (leader == from || leader == to)
			}
			for _, x := range c.Nodes {
				img, skipped := harness.NewImage("team/"+from.Name+to.Name, x.Name, 10), apart(x)
				err := c.Patiently(func() error {
					if skipped = skipped || apart(x); skipped {
						return nil
					}
					return x.Push(img)
				})
				if err != nil {
					t.Fatalf("%s is deaf to %s, %s leads, push to %s: %v", to.Name, from.Name, c.Leader().Name, x.Name, err)
				}
				if !skipped {
					images = append(images, img)
				}
			}
			c.Net.Heal()
			c.Eventually("the ends of the link catch up", func() bool {
				last := images[len(images)-1]
				return from.Pull(last) == nil && to.Pull(last) == nil
			})
		}
	}
	c.Whole(images...)
}

// Two halves that don't see each other, and a bridge that sees both: the half with the leader goes on through the bridge,
// the other serves what it has and doesn't disturb, and all are equal afterwards.
func TestBridge(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 5)
	before := harness.NewImage("team/app", "latest", 10)
	c.Must(c.Nodes[0].Push(before))
	c.Whole(before)
	leader := c.Leader()
	rest := others(c, leader)
	mine, bridge, theirs := rest[0], rest[1], rest[2:]
	for _, a := range []*harness.Node{leader, mine} {
		for _, b := range theirs {
			c.Net.Cut(a.Name, b.Name)
		}
	}
	after := harness.NewImage("team/app", "latest", 10)
	for _, x := range []*harness.Node{bridge, leader, mine} {
		c.Must(x.PushPatiently(after))
		c.Must(x.PullPatiently(after))
	}
	for _, x := range theirs {
		c.Must(x.PullDigests(before))
		resp, _, err := x.Do("GET", "/v2/team/app/manifests/latest", nil)
		c.Must(err)
		if resp.Header.Get("Docker-Content-Digest") != after.Digest.String() && resp.Header.Get("Warning") == "" && resp.StatusCode == 200 {
			t.Errorf("%s serves an old tag as a fresh one", x.Name)
		}
	}
	c.Net.Heal()
	for _, x := range theirs {
		c.Eventually("the far half catches up", func() bool { return x.Pull(after) == nil })
	}
	c.Whole(after)
}
