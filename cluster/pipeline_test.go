package cluster

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
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
			gated := newGatedTransport(loopback(t, c.says), newPipelines(new(tail), time.Hour))
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
	const quiet = time.Second
	p := boundedPipeline{quiet: quiet}
	now := time.Unix(0, 0)
	told := raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 7, PrevLogTerm: 2, LeaderCommitIndex: 6}
	full, committed, after, done, other := told, told, told, told, told
	committed.LeaderCommitIndex, full.LeaderCommitIndex = 7, 7
	full.Entries = []*raft.Log{{Index: 8, Term: 2}}
	after.PrevLogEntry, after.LeaderCommitIndex = 8, 7
	done.PrevLogEntry, done.LeaderCommitIndex = 8, 8
	other.Term = 3
	for i, step := range []struct {
		request raft.AppendEntriesRequest
		after   time.Duration
		stale   bool
	}{
		{told, 0, false}, {told, quiet - 1, true}, {told, 1, false}, {told, quiet / 2, true},
		{committed, 0, false}, {committed, 0, true}, {full, 0, false}, {full, 0, false}, {after, 0, true}, {done, 0, false}, {done, 0, true},
		{other, 0, false}, {other, 0, true},
	} {
		now = now.Add(step.after)
		if got := p.stale(&step.request, now); got != step.stale {
			t.Errorf("step %d: stale %v, want %v", i, got, step.stale)
		}
		if !step.stale {
			p.said, p.when = newsOf(&step.request), now
		}
	}
}

// Who rests is woken by the next entry, also if it came a moment before, by a no, and by the end of the pipeline; who may
// miss that an entry was committed doesn't rest.
func TestRestEnds(t *testing.T) {
	told := raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 7, PrevLogTerm: 1, LeaderCommitIndex: 7}
	open := told
	open.LeaderCommitIndex = 6
	for _, c := range []struct {
		name    string
		request raft.AppendEntriesRequest
		yes     bool
		before  uint64 // what the log's last entry is already
		wake    func(p raft.AppendPipeline, log *tail)
		rested  bool // until the pause was over
		sent    int
	}{
		{"nothing", told, true, 7, nil, true, 2},
		{"an entry", told, true, 7, func(_ raft.AppendPipeline, log *tail) { log.set(8) }, false, 1},
		{"an entry before", told, true, 8, nil, false, 1},
		{"not committed", open, true, 7, nil, false, 1},
		{"no", told, false, 7, nil, false, 1},
		{"the end", told, true, 7, func(p raft.AppendPipeline, _ *tail) { _ = p.Close() }, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, ears := new(tail), &echo{yes: c.yes, answers: make(chan raft.AppendFuture, 9)}
				log.set(c.before)
				all := newPipelines(log, time.Second)
				defer all.end()
				p, err := all.add(ears)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				for range 2 {
					if c.wake != nil && ears.sent == 1 {
						time.AfterFunc(0, func() { c.wake(p, log) })
					}
					if _, err := p.AppendEntries(&c.request, new(raft.AppendEntriesResponse)); err != nil {
						t.Error(err)
					}
				}
				if rested := time.Since(began) == time.Second; rested != c.rested || ears.sent != c.sent {
					t.Errorf("%d were sent in %s", ears.sent, time.Since(began))
				}
			})
		})
	}
}

// echo is a pipeline that gives every append the same answer.
type echo struct {
	yes     bool
	sent    int
	answers chan raft.AppendFuture
}

func (e *echo) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	e.sent++
	e.answers <- echoed{yes: e.yes}
	return nil, nil
}

func (e *echo) Consumer() <-chan raft.AppendFuture { return e.answers }
func (e *echo) Close() error                       { return nil }

type echoed struct {
	raft.AppendFuture
	yes bool
}

func (e echoed) Response() *raft.AppendEntriesResponse {
	return &raft.AppendEntriesResponse{Success: e.yes}
}
