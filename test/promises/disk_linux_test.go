//go:build disks

package promises

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
