package promises

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pier/api/client"
	"pier/test/harness"
)

// A fourth and a fifth node join by invite while pushes run, the leader is removed and a third leaves: no push fails, no
// blob is missing, and status tells the truth at each step.
func TestJoinRemoveLeaveUnderPushes(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	ctx := t.Context()
	pushes := startPushes(t, c.Nodes[:3])
	for range 2 {
		x := c.StartAlone()
		invite, err := c.Nodes[0].Control().Invite(ctx, client.InviteRequest{})
		c.Must(err)
		_, err = x.Control().Join(ctx, client.JoinRequest{Token: invite.Token})
		c.Must(err)
		if _, err := x.Control().Join(ctx, client.JoinRequest{Token: invite.Token}); err == nil {
			t.Error("an invite was taken twice")
		}
		c.Eventually("the newcomer is a member", func() bool { return members(t, x) == len(c.Nodes) })
	}
	leader := c.Leader()
	var other, leaver *harness.Node
	for _, x := range c.Nodes {
		switch {
		case x == leader:
		case other == nil:
			other = x
		default:
			leaver = x
		}
	}
	pushes.stopOn(leader)
	c.Eventually("the leader can be spared", func() bool {
		err := other.Control().Remove(ctx, client.RemoveRequest{Node: leader.Name})
		if err != nil {
			t.Log(err)
		}
		return err == nil
	})
	c.Eventually("status shows four", func() bool { return members(t, other) == 4 })
	if resp, body, err := leader.Do("PUT", "/v2/a/manifests/x", []byte(`{}`), "Content-Type", "application/json"); err == nil && resp.StatusCode < 400 {
		t.Errorf("a removed node takes writes: %s %s", resp.Status, body)
	}
	leader.Kill()
	pushes.stopOn(leaver)
	c.Must(leaver.Control().Leave(ctx))
	c.Eventually("status shows three", func() bool { return members(t, other) == 3 })
	leaver.Kill()
	c.Whole(pushes.stop()...)
}

// A node that joins with --discard forgets its images, and doesn't keep their blobs: they go to the trash, which makes room.
func TestJoinDiscards(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 1)
	ctx := t.Context()
	before, after := harness.NewImage("old/app", "1", 20<<10), harness.NewImage("new/app", "1", 20<<10)
	c.Must(c.Nodes[0].Push(after))
	x := c.StartAlone()
	c.Must(x.Push(before))
	invite, err := c.Nodes[0].Control().Invite(ctx, client.InviteRequest{})
	c.Must(err)
	if _, err := x.Control().Join(ctx, client.JoinRequest{Token: invite.Token}); err == nil || !strings.Contains(err.Error(), "--discard") {
		t.Fatalf("images are dropped unasked: %v", err)
	}
	_, err = x.Control().Join(ctx, client.JoinRequest{Token: invite.Token, Discard: true})
	c.Must(err)
	c.Eventually("it has the cluster's image, and nothing else", func() bool {
		s, err := x.Control().Status(ctx)
		return err == nil && len(s.Nodes) == 2 && s.Healthy && s.Nodes[0].Blobs == s.Nodes[1].Blobs && x.Pull(after) == nil
	})
	if _, _, err := x.Want(http.StatusNotFound, "GET", "/v2/old/app/manifests/1", nil); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(x.Dir, "state.db.*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	c.Whole(after)
}

func members(t *testing.T, x *harness.Node) int {
	s, err := x.Control().Status(context.WithoutCancel(t.Context()))
	if err != nil || !s.Quorum {
		return 0
	}
	alive := 0
	for _, n := range s.Nodes {
		if n.State == "alive" {
			alive++
		}
	}
	if alive != len(s.Nodes) {
		return 0
	}
	return alive
}

// pusher pushes through nodes until it is told to stop.
type pusher struct {
	t      *testing.T
	work   sync.WaitGroup
	stops  map[*harness.Node]chan struct{}
	ended  map[*harness.Node]chan struct{}
	mu     sync.Mutex
	images []harness.Image
}

func startPushes(t *testing.T, nodes []*harness.Node) *pusher {
	p := &pusher{t: t, stops: map[*harness.Node]chan struct{}{}, ended: map[*harness.Node]chan struct{}{}}
	for _, x := range nodes {
		stop, end := make(chan struct{}), make(chan struct{})
		p.stops[x], p.ended[x] = stop, end
		p.work.Go(func() {
			defer close(end)
			p.push(x, stop)
		})
	}
	return p
}

func (p *pusher) push(x *harness.Node, stop chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		img := harness.NewImage("team/"+x.Name, fmt.Sprint(i), 20<<10)
		if err := x.PushPatiently(img); err != nil {
			p.t.Errorf("a push failed: %v", err)
			return
		}
		p.mu.Lock()
		p.images = append(p.images, img)
		p.mu.Unlock()
	}
}

// stopOn ends the pushes through a node, if any run.
func (p *pusher) stopOn(x *harness.Node) {
	if stop, ok := p.stops[x]; ok {
		close(stop)
		<-p.ended[x]
		delete(p.stops, x)
	}
}

// sofar gives what has been acknowledged.
func (p *pusher) sofar() []harness.Image {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.images)
}

func (p *pusher) count() int { return len(p.sofar()) }

// stop ends all pushes and gives what was acknowledged.
func (p *pusher) stop() []harness.Image {
	for x := range p.stops {
		p.stopOn(x)
	}
	p.work.Wait()
	return p.images
}
