package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const readPatience = 5 * time.Second

// rounds shares work among readers. Whoever comes while a round is under way waits for the next one: the round under way
// may have begun before they asked, and proves nothing to them.
type rounds struct {
	tasks *crew
	fn    func() (uint64, error) // makes one; bounded

	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	done  chan struct{}
	index uint64
	err   error
}

// join waits for a round that begins after the call.
func (r *rounds) join(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
	}
	mine := r.next
	if !r.running {
		r.running = r.tasks.run(r.run)
	}
	running := r.running
	r.mu.Unlock()
	if !running {
		return 0, raft.ErrRaftShutdown
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-mine.done:
		return mine.index, mine.err
	}
}

// run makes rounds as long as somebody waits for one, and ends by itself.
func (r *rounds) run() {
	for {
		r.mu.Lock()
		now := r.next
		r.next = nil
		if now == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		now.index, now.err = r.fn()
		close(now.done)
	}
}

// ReadIndex returns nil once the local state holds everything that any node answered before the call. ErrNoQuorum after
// five seconds without a leader that a majority confirms; at once on a node that has known none for longer.
func (c *Cluster) ReadIndex(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	for {
		if c.isRemoved() {
			return ErrNotMember
		}
		if c.lonely() {
			return ErrNoQuorum
		}
		index, err := c.reads.join(ctx)
		if err == nil {
			if err = c.state.WaitApplied(ctx, index); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", ErrNoQuorum, err)
		case <-time.After(retryPause):
		}
	}
}

// lonely says that there has been no leader for longer than an election takes.
func (c *Cluster) lonely() bool {
	_, known := c.Leader()
	return !known && c.dead.leaderless(c.cfg.Now()) > max(3*c.cfg.RaftTimeout, 2*time.Second)
}

// readRound finds the index that a reader must wait for: here on the leader, there on the others.
func (c *Cluster) readRound() (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readPatience/2)
	defer cancel()
	leader, ok := c.Leader()
	if !ok {
		return 0, errNotLeader
	}
	if leader == c.ID() {
		return c.confirms.join(ctx)
	}
	body, err := c.call(ctx, leader, http.MethodPost, "/cluster/index", nil)
	if err != nil {
		return 0, err
	}
	if len(body) != 8 {
		return 0, fmt.Errorf("the leader's answer has %d bytes", len(body))
	}
	return binary.BigEndian.Uint64(body), nil
}

// confirmRound is the leader's round. It is apart from readRound: two nodes that each take the other for the leader would
// wait for each other.
func (c *Cluster) confirmRound() (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readPatience/2)
	defer cancel()
	return c.confirmedIndex(ctx)
}

// confirmedIndex is the read index of Ongaro's thesis, section 6.4: an entry committed in the own term (until then a new
// leader doesn't know what its predecessor acknowledged), the commit index, and after that a majority that is still in
// this term. A majority that says so now can't have elected anybody else before it said so.
func (c *Cluster) confirmedIndex(ctx context.Context) (uint64, error) {
	term := c.raft.CurrentTerm()
	if !c.leading() {
		return 0, errNotLeader
	}
	if err := c.settleTerm(ctx, term); err != nil {
		return 0, err
	}
	index := c.raft.CommitIndex()
	if err := c.confirmTerm(ctx, term); err != nil {
		return 0, err
	}
	if !c.leading() || c.raft.CurrentTerm() != term {
		return 0, errNotLeader
	}
	return c.lastVisible(index), nil
}

// settleTerm makes sure, once a term, that an entry of it is committed and applied.
func (c *Cluster) settleTerm(ctx context.Context, term uint64) error {
	if c.dead.settled(term) {
		return nil
	}
	if err := c.tasks.await(ctx, c.raft.Barrier(readPatience)); err != nil {
		return fmt.Errorf("%w: %w", errNotLeader, err)
	}
	if c.raft.CurrentTerm() != term {
		return errNotLeader
	}
	c.dead.settle(term)
	return nil
}

// confirmTerm asks the other voters whether they are still in the term, until a majority says yes.
func (c *Cluster) confirmTerm(ctx context.Context, term uint64) error {
	var others []NodeID
	voters, self := 0, 0
	for _, s := range c.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if NodeID(s.ID) == c.ID() {
			self = 1
		} else {
			others = append(others, NodeID(s.ID))
		}
	}
	need := voters/2 + 1 - self
	if need == 0 {
		return nil
	}
	return c.quorum(ctx, others, need, func(ctx context.Context, id NodeID) error {
		_, err := c.call(ctx, id, http.MethodPost, fmt.Sprintf("/cluster/term?term=%d", term), nil)
		return err
	})
}

// quorum asks all ids at once and returns nil with the need-th yes. The calls under way end with ctx's child.
func (c *Cluster) quorum(ctx context.Context, ids []NodeID, need int, ask func(context.Context, NodeID) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan error, len(ids))
	for _, id := range ids {
		if !c.tasks.run(func() { answers <- ask(ctx, id) }) {
			answers <- raft.ErrRaftShutdown
		}
	}
	var failed []error
	for range ids {
		err := <-answers
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if need--; need == 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", ErrNoQuorum, errors.Join(failed...))
}

func (c *Cluster) serveIndex(w http.ResponseWriter, r *http.Request) {
	if _, member := c.server(PeerOf(r.Context())); !member && c.leading() {
		http.Error(w, ErrNotMember.Error(), http.StatusGone)
		return
	}
	index, err := c.confirms.join(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
		return
	}
	_, _ = w.Write(binary.BigEndian.AppendUint64(nil, index))
}

// serveTerm says yes while this node's term is the asked one. A disk whose memory isn't confirmed may have forgotten a newer
// term that it has helped to begin.
func (c *Cluster) serveTerm(w http.ResponseWriter, r *http.Request) {
	var term uint64
	if _, err := fmt.Sscan(r.URL.Query().Get("term"), &term); err != nil || !c.Voting() || c.raft.CurrentTerm() != term {
		http.Error(w, "another term", http.StatusConflict)
	}
}
