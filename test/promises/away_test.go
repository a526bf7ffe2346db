package promises

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"pier/cmd/pier/node"
	"pier/fsm"
	"pier/test/harness"
)

// impatientLog makes a node snapshot and cut its log so often that one that was away for a moment is beyond it.
func impatientLog() node.Tuning {
	return node.Tuning{TrailingLogs: 16, SnapshotThreshold: 16, SnapshotInterval: 100 * time.Millisecond}
}

// A node was away for longer than the log reaches: it gets the state as a snapshot, under load, then the blobs, and revives
// nothing that was deleted meanwhile.
func TestAwayBeyondTheLog(t *testing.T) {
	t.Parallel()
	c := harness.StartTuned(t, 3, impatientLog())
	gone := harness.NewImage("team/app", "gone", 10)
	c.Must(c.Nodes[0].Push(gone))
	c.Whole(gone)
	away := c.Follower()
	away.Stop()
	c.Must(dig(c.Leader(), gone))
	pushes := startPushes(t, others(c, away))
	c.Eventually("the log is long", func() bool { return pushes.count() >= 30 })
	away.Start()
	c.WaitReady()
	if away.State().Installs() == 0 {
		t.Error("no snapshot was installed, so this tested nothing")
	}
	c.Whole(pushes.stop()...)
	staysBuried(c, gone)
}

// The node is killed while a snapshot comes in, again and again; when it is left alone it has everything.
func TestKillDuringSnapshotInstall(t *testing.T) {
	t.Parallel()
	c := harness.StartTuned(t, 3, impatientLog())
	gone := harness.NewImage("team/app", "gone", 10)
	c.Must(c.Nodes[0].Push(gone))
	c.Whole(gone)
	away := c.Follower()
	away.Stop()
	here := c.Leader()
	c.Must(dig(here, gone))
	var images []harness.Image
	for i := range 20 {
		img := harness.NewImage("team/app", fmt.Sprint(i), 10)
		c.Must(here.PushPatiently(img))
		images = append(images, img)
	}
	for range 2 {
		for _, x := range others(c, away) {
			c.Net.Delay(x.Name, away.Name, 150*time.Millisecond) // each write: the state takes many
		}
		away.Start()
		c.Eventually("a snapshot comes in", func() bool {
			under, err := filepath.Glob(filepath.Join(away.Dir, "state.db.received-*"))
			return err == nil && len(under) > 0
		})
		away.Kill()
		c.Net.Heal()
	}
	away.Start()
	c.WaitReady()
	c.Whole(images...)
	if away.State().Installs() == 0 {
		t.Error("no snapshot was installed, so this tested nothing")
	}
	if left, _ := filepath.Glob(filepath.Join(away.Dir, "state.db.received-*")); len(left) > 0 {
		t.Errorf("the broken installs left %v", left)
	}
	staysBuried(c, gone)
	if _, err := away.State().ResolveTag(fsm.Repo("team/app"), fsm.Tag("19")); err != nil {
		t.Error(err)
	}
}
