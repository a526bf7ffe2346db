package promises

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/test/harness"
)

// The leader hangs, as under SIGSTOP, while the others elect another and take a push. Neither meanwhile nor when it goes on
// does it serve the old image as the fresh one.
func TestHungLeaderServesNothingStale(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	hung := c.Leader()
	old := harness.NewImage("team/app", "latest", 10)
	c.Must(hung.Push(old))
	c.Whole(old)
	c.Net.Freeze(hung.Name)
	fresh := harness.NewImage("team/app", "latest", 20)
	c.Must(others(c, hung)[0].PushPatiently(fresh))

	var marked, right atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for ctx.Err() == nil {
				resp, body, err := hung.Send(ctx, "GET", "/v2/team/app/manifests/latest", nil)
				switch {
				case err != nil:
				case resp.StatusCode == http.StatusServiceUnavailable || resp.Header.Get("Warning") != "":
					marked.Add(1)
				case resp.Header.Get("Docker-Content-Digest") == fresh.Digest.String():
					right.Add(1)
				default:
					t.Errorf("an unmarked answer that isn't the newest: %s %.100s", resp.Status, body)
				}
			}
		})
	}
	c.Eventually("the hung node answers with a mark", func() bool { return marked.Load() > 0 })
	thaw := time.NewTimer(time.Second) // so that reads are under way in every state of theirs
	<-thaw.C
	c.Net.Thaw(hung.Name)
	c.Eventually("the node serves the newest again", func() bool { return right.Load() > 20 })
	stop()
	readers.Wait()
	c.Whole(fresh)
}
