package promises

import (
	"fmt"
	"sync"
	"testing"

	"pier/test/harness"
)

// Every node is restarted, one after the other, under pushes and pulls through all of them: nothing fails that a client
// tries again as its protocol says, and nothing is lost.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	first := harness.NewImage("team/app", "1", 50<<10)
	c.Must(c.Nodes[0].Push(first))
	c.Whole(first)
	pushes := startPushes(t, c.Nodes)
	stop := make(chan struct{})
	var pulls sync.WaitGroup
	for _, x := range c.Nodes {
		pulls.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := x.PullPatiently(first); err != nil {
					t.Errorf("a pull failed: %v", err)
					return
				}
			}
		})
	}
	for _, x := range c.Nodes {
		x.Stop()
		x.Start()
		c.WaitReady()
	}
	images := pushes.stop()
	close(stop)
	pulls.Wait()
	if len(images) < 3 {
		t.Errorf("only %d pushes went through", len(images))
	}
	c.Whole(append(images, first)...)
}

// All nodes come back at other addresses, as after a compose down and up: they find each other, and everything is there.
func TestAddressesChange(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	img := harness.NewImage("team/app", "1", 50<<10)
	c.Must(c.Nodes[0].Push(img))
	c.Whole(img)

	one := c.Leader() // first one alone, while the others run
	one.Stop()
	one.Move()
	one.Start()
	c.WaitReady()
	second := harness.NewImage("team/app", "2", 10)
	c.Must(one.PushPatiently(second))
	c.Whole(img, second)

	for _, x := range c.Nodes {
		x.Stop()
		x.Move()
	}
	for _, x := range c.Nodes {
		x.Start()
	}
	c.WaitReady()
	images := []harness.Image{img, second}
	for i, x := range c.Nodes {
		more := harness.NewImage("team/app", fmt.Sprintf("m%d", i), 10)
		c.Must(x.PushPatiently(more))
		images = append(images, more)
	}
	c.Whole(images...)
	c.Eventually("status knows the new addresses", func() bool {
		for _, x := range c.Nodes {
			s, err := x.Control().Status(t.Context())
			if err != nil || !s.Healthy {
				return false
			}
			for _, n := range s.Nodes {
				if !atNewAddress(c, n.Cluster, n.API) {
					return false
				}
			}
		}
		return true
	})
}

func atNewAddress(c *harness.Cluster, cluster, api string) bool {
	for _, x := range c.Nodes {
		if x.ClusterAddress() == cluster && x.Address() == api {
			return true
		}
	}
	return false
}
