//go:build disks

package promises

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"pier/cmd/pier/node"
	"pier/test/harness"
)

// A disk that fills up refuses uploads clearly and goes on serving; after space is made everything goes on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	c := harness.StartOnDisks(t, 1, 64<<20, node.Tuning{ReserveBytes: 8 << 20})
	x := c.Nodes[0]
	img := harness.NewImage("team/app", "1", 4<<20)
	c.Must(x.Push(img))
	filler := filepath.Join(x.Dir, "filler")
	c.Must(os.WriteFile(filler, bytes.Repeat([]byte{1}, 44<<20), 0o600))
	more := harness.NewImage("team/app", "2", 8<<20)
	if err := x.Push(more); err == nil || !strings.Contains(err.Error(), ": 503 ") || !strings.Contains(err.Error(), "disk") {
		t.Errorf("a push onto a full disk: %v", err)
	}
	c.Must(x.Pull(img))
	c.Must(os.Remove(filler))
	c.Must(x.PushPatiently(more))
	c.Whole(img, more)
}

// A disk that fills up refuses what the others send: pushes and pulls go on, through that node too, and after space is made
// it catches up without a restart.
func TestFullDiskDuringAFetch(t *testing.T) {
	t.Parallel()
	c := harness.StartOnDisks(t, 3, 64<<20, node.Tuning{ReserveBytes: 16 << 20})
	img := harness.NewImage("team/app", "1", 1<<20)
	c.Must(c.Nodes[0].Push(img))
	c.Whole(img)
	x := c.Follower()
	filler := filepath.Join(x.Dir, "filler")
	c.Must(os.WriteFile(filler, bytes.Repeat([]byte{1}, 48<<20), 0o600)) // what is left is for the state and the log
	more := harness.NewImage("team/app", "2", 4<<20)
	c.Must(others(c, x)[0].PushPatiently(more))
	c.Must(x.Pull(img))
	c.Must(x.PullPatiently(more))
	for d, data := range more.Blobs {
		if len(data) > 1<<20 && x.Holds(d) {
			t.Error("the blob was kept on a full disk, so this tested nothing")
		}
	}
	if err := x.PushBlob("team/app", digest.FromString("no room"), []byte("no room")); err == nil || !strings.Contains(err.Error(), "disk") {
		t.Errorf("an upload to a full disk: %v", err)
	}
	c.Must(os.Remove(filler))
	c.Whole(img, more)
	if x.Logged("msg=ready") != 1 {
		t.Error("the node was started anew")
	}
}

// The disk fills up under the Raft log: the node ends rather than lie, and is whole after space is made and a restart.
func TestFullDiskInARaftWrite(t *testing.T) {
	t.Parallel()
	c := harness.StartOnDisks(t, 3, 64<<20, node.Tuning{ReserveBytes: 1})
	x := c.Leader()
	before := harness.NewImage("team/app", "1", 10)
	c.Must(x.Push(before))
	c.Whole(before)
	filler := filepath.Join(x.Dir, "filler")
	f, err := os.Create(filler)
	c.Must(err)
	for _, err = f.Write(make([]byte, 4096)); err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	c.Must(f.Close())
	var other *harness.Node
	for _, y := range c.Nodes {
		if y != x {
			other = y
		}
	}
	var images []harness.Image
	c.Eventually("the full node ends", func() bool {
		img := harness.NewImage("team/app", "2", 1<<20)
		if other.Push(img) == nil {
			images = append(images[:0], img)
		}
		return x.Ended()
	})
	after := harness.NewImage("team/app", "3", 10)
	c.Must(other.PushPatiently(after))
	c.Must(os.Remove(filler))
	x.Start()
	c.WaitReady()
	c.Whole(append(images, before, after)...)
}
