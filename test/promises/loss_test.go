package promises

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"pier/test/harness"
)

// The node that was pushed to dies right after the push returned.
func TestOriginDiesAfterPush(t *testing.T) {
	c := harness.Start(t, 3)
	img := harness.NewImage("team/app", "1", 1<<20, 2<<20)
	c.Must(c.Nodes[0].Push(img))
	c.Nodes[0].Kill()
	c.Whole(img)
}

// Any node is killed while pushes through the others run: their clients end with success, and nothing is lost.
func TestKillDuringPushes(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			c := harness.Start(t, 3)
			victim := c.Leader()
			if who == "follower" {
				victim = c.Follower()
			}
			var images []harness.Image
			var mu sync.Mutex
			var pushes sync.WaitGroup
			for _, x := range c.Nodes {
				if x == victim {
					continue
				}
				pushes.Go(func() {
					for i := range 6 {
						img := harness.NewImage("team/"+x.Name, fmt.Sprint(i), 200<<10)
						if err := x.PushPatiently(img); err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						images = append(images, img)
						mu.Unlock()
					}
				})
			}
			victim.Kill()
			pushes.Wait()
			c.Whole(images...)
			victim.Start()
			c.WaitReady()
			c.Whole(images...)
		})
	}
}

// All nodes lose power at once; everything acknowledged is there afterwards.
func TestAllKilledAtOnce(t *testing.T) {
	c := harness.Start(t, 3)
	var images []harness.Image
	for i := range 5 {
		img := harness.NewImage("team/app", fmt.Sprint(i), 50<<10)
		c.Must(c.Nodes[i%3].Push(img))
		images = append(images, img)
	}
	var all sync.WaitGroup
	for _, x := range c.Nodes {
		all.Go(x.Kill)
	}
	all.Wait()
	for _, x := range c.Nodes {
		x.Start()
	}
	c.WaitReady()
	c.Whole(images...)
}

// A node's disk is replaced by an empty one: it is a new node, and gets everything back.
func TestWipedDisk(t *testing.T) {
	c := harness.Start(t, 3)
	img := harness.NewImage("team/app", "1", 1<<20)
	c.Must(c.Nodes[0].Push(img))
	x := c.Follower()
	x.Kill()
	x.Wipe()
	x.Start()
	c.WaitReady()
	c.Whole(img)
	after := harness.NewImage("team/app", "2", 10)
	c.Must(x.Push(after))
	c.Whole(img, after)
}

// A node comes back with last week's disk. It must not vote, and nothing newer may be lost or undone.
func TestOldDiskDoesNotVote(t *testing.T) {
	c := harness.Start(t, 3)
	old := harness.NewImage("team/app", "latest", 10)
	c.Must(c.Nodes[0].Push(old))
	x := c.Follower()
	x.Stop()
	disk := x.SaveDisk()
	x.Start()
	c.WaitReady()
	fresh := harness.NewImage("team/app", "latest", 20)
	c.Must(c.Leader().Push(fresh))
	x.Kill()
	x.RestoreDisk(disk)
	x.Start()
	for _, y := range c.Nodes {
		if y != x {
			c.Must(y.Pull(fresh))
		}
	}
	c.Eventually("the old disk catches up", func() bool { return x.PullDigests(fresh) == nil })
	if x.Cluster().Voting() {
		t.Error("a node with an old disk takes part in elections")
	}
}

// Bytes rot on a disk: the damage is found before it is served, and healed from a peer.
func TestDamagedBlobIsHealed(t *testing.T) {
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
	c.Must(x.Pull(img))
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
