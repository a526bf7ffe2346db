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
	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	done  chan struct{}
	index uint64
	err   error
}

func newRounds() *rounds { return &rounds{} }

// join waits for a round that begins after the call; fn makes one.
func (r *rounds) join(ctx context.Context, fn func() (uint64, error)) (uint64, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
	}
	mine := r.next
	if !r.running {
		r.running = true
		go r.run(fn)
	}
	r.mu.Unlock()
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-mine.done:
		return mine.index, mine.err
	}
}

// run makes rounds as long as somebody waits for one, and ends by itself: fn is bounded.
func (r *rounds) run(fn func() (uint64, error)) {
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
		now.index, now.err = fn()
		close(now.done)
	}
}

// ReadIndex returns nil once the local state holds everything that any node answered before the call. ErrNoQuorum after
// five seconds without a leader that a majority confirms; at once on a node that has known none for longer.
func (c *Cluster) ReadIndex(ctx context.Context) error {
	if c.lonely() {
		return ErrNoQuorum
	}
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	for {
		index, err := c.reads.join(ctx, c.readRound)
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
		if c.lonely() {
			return ErrNoQuorum
		}
	}
}

// lonely says that there has been no leader for longer than an election takes.
func (c *Cluster) lonely() bool {
	_, known := c.Leader()
	return c.dead.leaderless(known, c.cfg.Now()) > max(3*c.cfg.RaftTimeout, time.Second)
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
		return c.confirmedIndex(ctx)
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
	barrier := c.raft.Barrier(readPatience)
	done := make(chan error, 1)
	go func() { done <- barrier.Error() }() // bounded by the barrier's own time
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w: %w", errNotLeader, err)
		}
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
	voters := 0
	for _, s := range c.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if NodeID(s.ID) != c.ID() {
			others = append(others, NodeID(s.ID))
		}
	}
	need := voters/2 + 1 - 1 // this node is one
	if need <= 0 {
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
		go func() { answers <- ask(ctx, id) }()
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
	index, err := c.reads.join(r.Context(), func() (uint64, error) {
		ctx, cancel := context.WithTimeout(context.Background(), readPatience/2)
		defer cancel()
		return c.confirmedIndex(ctx)
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
		return
	}
	_, _ = w.Write(binary.BigEndian.AppendUint64(nil, index))
}

// serveTerm says yes while this node's term is the asked one.
func (c *Cluster) serveTerm(w http.ResponseWriter, r *http.Request) {
	var term uint64
	if _, err := fmt.Sscan(r.URL.Query().Get("term"), &term); err != nil || c.raft.CurrentTerm() != term {
		http.Error(w, "another term", http.StatusConflict)
	}
}
