package cluster

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// loopback starts a transport of Raft that answers every append with yes or no.
func loopback(t *testing.T, yes bool) *raft.NetworkTransport {
	t.Helper()
	tr, err := raft.NewTCPTransport("127.0.0.1:0", nil, 3, time.Minute, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case rpc := <-tr.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Success: yes}, nil)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		_ = tr.Close()
	})
	return tr
}

// Nobody takes the answers of a pipeline: appends to it must end all the same, after a no and when the node stops.
func TestPipelineWithoutReaderEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		says bool
	}{{"no", false}, {"stop", true}} {
		t.Run(c.name, func(t *testing.T) {
			gated := newGatedTransport(loopback(t, c.says))
			p, err := gated.AppendEntriesPipeline("x", loopback(t, c.says).LocalAddr())
			if err != nil {
				t.Fatal(err)
			}
			sent, ended := make(chan struct{}, 100), make(chan error, 1)
			go func() {
				for i := uint64(1); ; i++ {
					if _, err := p.AppendEntries(&raft.AppendEntriesRequest{PrevLogEntry: i}, &raft.AppendEntriesResponse{}); err != nil {
						ended <- err
						return
					}
					sent <- struct{}{}
				}
			}()
			if c.says {
				<-sent
				gated.letGo()
				if _, err := gated.AppendEntriesPipeline("x", loopback(t, true).LocalAddr()); !errors.Is(err, raft.ErrPipelineShutdown) {
					t.Errorf("a pipeline is opened while the node stops: %v", err)
				}
			}
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("the append waits for ever")
			}
			_ = p.Close()
		})
	}
}

// What a follower has heard already isn't said again, but for once in a while; anything new is said at once.
func TestPipelineSaysNothingTwice(t *testing.T) {
	var p boundedPipeline
	now := time.Unix(0, 0)
	quiet := raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 7, PrevLogTerm: 2, LeaderCommitIndex: 6}
	full, committed, later, other := quiet, quiet, quiet, quiet
	full.Entries = []*raft.Log{{Index: 8}}
	committed.LeaderCommitIndex = 7
	later.PrevLogEntry, other.Term = 8, 3
	for i, step := range []struct {
		request raft.AppendEntriesRequest
		after   time.Duration
		stale   bool
	}{
		{quiet, 0, false}, {quiet, quietPause - 1, true}, {quiet, 1, false}, {quiet, quietPause / 2, true},
		{committed, 0, false}, {committed, 0, true}, {full, 0, false}, {full, 0, false}, {later, 0, false}, {later, 0, true},
		{other, 0, false}, {other, 0, true},
	} {
		now = now.Add(step.after)
		if got := p.stale(&step.request, now); got != step.stale {
			t.Errorf("step %d: stale %v, want %v", i, got, step.stale)
		}
	}
}
