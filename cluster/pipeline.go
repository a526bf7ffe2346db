package cluster

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// boundedPipeline ends with the first answer that is no, and silence is one within the transport's timeout. Raft stops reading
// a pipeline's answers then, and only then tells the side that sends; with two appends in flight that side may already be
// waiting for room, for ever: the follower gets nothing any more, and the node can't stop (hashicorp/raft v1.8.0,
// pipelineReplicate; this can go when its AppendEntries ends with its reader).
type boundedPipeline struct {
	raft.AppendPipeline
	tail    *tail         // of the log that is sent
	quiet   time.Duration // how often a follower that has heard everything is told so
	answers chan raft.AppendFuture
	ended   chan struct{}
	closed  func() // once or more; closes ended

	said news // in the last append that was sent
	when time.Time
}

// news is what a follower knows of the leader's log when it has taken an append.
type news struct{ term, index, indexTerm, commit uint64 }

func newsOf(a *raft.AppendEntriesRequest) news {
	n := news{a.Term, a.PrevLogEntry, a.PrevLogTerm, a.LeaderCommitIndex}
	if len(a.Entries) > 0 {
		last := a.Entries[len(a.Entries)-1]
		n.index, n.indexTerm = last.Index, last.Term
	}
	return n
}

// stale tells whether an append says again what the last one said. Raft makes one in each CommitTimeout, whether or not there
// is anything new, so that followers hear soon of what is committed. One that isn't sent has no answer either; the leader's
// lease and its reads rest on heartbeats, which go their own way.
func (p *boundedPipeline) stale(a *raft.AppendEntriesRequest, now time.Time) bool {
	return len(a.Entries) == 0 && newsOf(a) == p.said && now.Sub(p.when) < p.quiet
}

// rest waits while there can be nothing new, since all that the log holds is committed and the follower was told so. To make
// an append and not to send it costs little, but 300 times a second for each follower. The pause ends, since Raft doesn't hear
// meanwhile that this node leads no more. True says that it is over, and that the append is due; false that Raft had better
// look again.
func (p *boundedPipeline) rest(a *raft.AppendEntriesRequest) bool {
	if a.LeaderCommitIndex < a.PrevLogEntry {
		return false // Raft tells nobody when an entry is committed
	}
	pause := time.NewTimer(time.Until(p.when.Add(p.quiet)))
	defer pause.Stop()
	select {
	case <-p.tail.beyond(a.PrevLogEntry):
		return false
	case <-p.ended:
		return false
	case <-pause.C:
		return true
	}
}

// AppendEntries sends. Raft calls it one at a time, and looks at the error only.
func (p *boundedPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.stale(args, time.Now()) && !p.rest(args) {
		return nil, nil
	}
	p.said, p.when = newsOf(args), time.Now()
	return p.AppendPipeline.AppendEntries(args, resp)
}

// Consumer gives the answers up to the first no.
func (p *boundedPipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// pass hands the answers on, and ends the pipeline after a no: whoever waits for room then waits in vain, and whoever rests
// isn't told by Raft either.
func (p *boundedPipeline) pass() {
	defer func() { _ = p.Close() }()
	for {
		select {
		case answer := <-p.AppendPipeline.Consumer():
			yes := answer.Response().Success
			select {
			case p.answers <- answer:
			case <-p.ended:
				return
			}
			if !yes {
				return
			}
		case <-p.ended:
			return
		}
	}
}

// Close may come more than once.
func (p *boundedPipeline) Close() error {
	p.closed()
	return p.AppendPipeline.Close()
}

// pipelines are the open ones, to be closed before Raft's shutdown, which waits for their appends.
type pipelines struct {
	tail  *tail
	quiet time.Duration

	mu      sync.Mutex
	open    map[*boundedPipeline]struct{} // nil after the end
	passing sync.WaitGroup
}

func newPipelines(tail *tail, quiet time.Duration) *pipelines {
	return &pipelines{tail: tail, quiet: quiet, open: make(map[*boundedPipeline]struct{})}
}

func (s *pipelines) add(p raft.AppendPipeline) (raft.AppendPipeline, error) {
	b := &boundedPipeline{AppendPipeline: p, tail: s.tail, quiet: s.quiet, answers: make(chan raft.AppendFuture, 1), ended: make(chan struct{})}
	b.closed = sync.OnceFunc(func() {
		close(b.ended)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, b)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return nil, errors.Join(raft.ErrPipelineShutdown, p.Close())
	}
	s.open[b] = struct{}{}
	s.passing.Go(b.pass)
	return b, nil
}

// end closes all, and every one that is opened after it.
func (s *pipelines) end() {
	s.mu.Lock()
	all := s.open
	s.open = nil
	s.mu.Unlock()
	for p := range all {
		_ = p.Close()
	}
	s.passing.Wait()
}

// AppendEntriesPipeline is the library's, bounded.
func (t *gatedTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return t.pipelines.add(p)
}
