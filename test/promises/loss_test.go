package promises

import (
	"net/http"
	"os"
	"sync"
	"testing"

	"pier/test/harness"
)

// The node that was pushed to dies right after the push returned.
func TestOriginDiesAfterPush(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	img := harness.NewImage("team/app", "1", 1<<20, 2<<20)
	c.Must(c.Nodes[0].Push(img))
	c.Nodes[0].Kill()
	c.Whole(img)
}

// All nodes lose power at once while pushes run; everything acknowledged is there afterwards, and the pushes go on.
func TestAllKilledAtOnce(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	gone := bury(c, c.Nodes[0])
	pushes := startPushes(t, c.Nodes)
	for range 2 {
		before := pushes.count()
		c.Eventually("pushes go through", func() bool { return pushes.count() >= before+6 })
		var all sync.WaitGroup
		for _, x := range c.Nodes {
			all.Go(x.Kill)
		}
		all.Wait()
		acknowledged := pushes.sofar()
		for _, x := range c.Nodes {
			x.Start()
		}
		c.WaitReady()
		c.Whole(acknowledged...)
	}
	c.Whole(pushes.stop()...)
	staysBuried(c, gone)
}

// A node's disk is replaced by an empty one, under pushes: it is a new node, gets everything back, and revives nothing.
func TestWipedDisk(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"leader", "follower"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			c := harness.Start(t, 3)
			img := harness.NewImage("team/app", "1", 1<<20)
			c.Must(c.Nodes[0].Push(img))
			gone := bury(c, c.Nodes[0])
			x := c.Leader()
			if role == "follower" {
				x = c.Follower()
			}
			was := x.ID()
			pushes := startPushes(t, others(c, x))
			x.Kill()
			x.Wipe()
			x.Start()
			c.WaitReady()
			if x.ID() == was {
				t.Error("an empty disk has the ID of the old one")
			}
			after := harness.NewImage("team/app", "2", 10)
			c.Must(x.PushPatiently(after))
			c.Whole(append(pushes.stop(), img, after)...)
			staysBuried(c, gone)
			c.Eventually("the former self is retired", func() bool { return members(t, x) == 3 })
		})
	}
}

// A node comes back with last week's disk. It must not vote, and nothing newer may be lost or undone.
func TestOldDiskDoesNotVote(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	old := harness.NewImage("team/app", "latest", 10)
	c.Must(c.Nodes[0].Push(old))
	gone := harness.NewImage("team/app", "gone", 10)
	c.Must(c.Nodes[0].Push(gone))
	c.Whole(old, gone)
	x := c.Follower()
	x.Stop()
	disk := x.SaveDisk()
	x.Start()
	c.WaitReady()
	fresh := harness.NewImage("team/app", "latest", 20)
	c.Must(c.Leader().Push(fresh))
	c.Must(dig(c.Leader(), gone))
	x.Kill()
	x.RestoreDisk(disk)
	x.Start()
	for _, y := range others(c, x) {
		c.Must(y.PullPatiently(fresh))
	}
	c.Eventually("the old disk catches up", func() bool { return x.Pull(fresh) == nil })
	staysBuried(c, gone)
	if x.Cluster().Voting() {
		t.Error("a node with an old disk takes part in elections")
	}
	if x.Logged("stays out of elections") != 1 {
		t.Errorf("the node with the old disk says %d times what to do", x.Logged("stays out of elections"))
	}
	// The only up-to-date follower goes: the old disk must not help to elect anybody, nor lose what it has learnt.
	third := others(c, x)
	for i, y := range third {
		if y == c.Leader() {
			third = append(third[:i:i], third[i+1:]...)
			break
		}
	}
	third[0].Kill()
	third[0].Start()
	c.Eventually("the others go on", func() bool { return third[0].Pull(fresh) == nil })
	staysBuried(c, gone)
}

// Bytes rot on a disk: the damage is found before it is served, and healed from a peer.
func TestDamagedBlobIsHealed(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	img := harness.NewImage("team/app", "1", 1<<20)
	c.Must(c.Nodes[0].Push(img))
	c.Whole(img)
	x := c.Nodes[1]
	for d, data := range img.Blobs {
		rotten := append([]byte(nil), data...)
		rotten[len(rotten)/2] ^= 1
		c.Must(os.WriteFile(x.BlobPath(d), rotten, 0o600))
	}
	c.Must(x.PullPatiently(img))
	for d, data := range img.Blobs {
		got, err := os.ReadFile(x.BlobPath(d))
		c.Must(err)
		if string(got) != string(data) {
			t.Errorf("%s is not healed", d)
		}
	}
	if found, err := os.ReadDir(x.Dir + "/quarantine"); err != nil || len(found) != len(img.Blobs) {
		t.Errorf("the quarantine holds %d files, err %v", len(found), err)
	}
}

// bury pushes an image, deletes all of it and gives it, for staysBuried.
func bury(c *harness.Cluster, x *harness.Node) harness.Image {
	c.T.Helper()
	gone := harness.NewImage("team/app", "gone", 10)
	c.Must(x.Push(gone))
	c.Whole(gone)
	c.Must(dig(x, gone))
	return gone
}

// dig deletes an image's tag, its manifest and its blobs.
func dig(x *harness.Node, img harness.Image) error {
	paths := []string{"manifests/" + img.Tag, "manifests/" + img.Digest.String()}
	for d := range img.Blobs {
		paths = append(paths, "blobs/"+d.String())
	}
	for _, p := range paths {
		if _, _, err := x.Want(http.StatusAccepted, "DELETE", "/v2/"+img.Repo+"/"+p, nil); err != nil {
			return err
		}
	}
	return nil
}

// staysBuried makes sure that no running node serves anything of what was deleted.
func staysBuried(c *harness.Cluster, img harness.Image) {
	c.T.Helper()
	for _, x := range c.Nodes {
		if !x.Running() {
			continue
		}
		paths := []string{"manifests/" + img.Tag, "manifests/" + img.Digest.String()}
		for d := range img.Blobs {
			paths = append(paths, "blobs/"+d.String())
		}
		for _, p := range paths {
			if _, _, err := x.Want(http.StatusNotFound, "GET", "/v2/"+img.Repo+"/"+p, nil); err != nil {
				c.T.Errorf("what was deleted is back: %v", err)
			}
		}
	}
}
