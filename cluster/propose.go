package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
)

const (
	proposePatience = 10 * time.Second
	applyPatience   = 5 * time.Second
	retryPause      = 20 * time.Millisecond
	maxRetryPause   = 250 * time.Millisecond
	maxCommand      = 8 << 20
)

// errNotLeader makes the proposer look for the leader again.
var errNotLeader = errors.New("not the leader")

// Propose puts a command through the log and gives the state's answer and the command's index, once the state of this node
// holds it. It follows the leader from node to node for ten seconds with the same bytes; an *UnavailableError after that
// means that the command may or may not have happened.
func (c *Cluster) Propose(ctx context.Context, cmd []byte) ([]byte, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, proposePatience)
	defer cancel()
	if err := c.waitBooted(ctx); err != nil {
		return nil, 0, err
	}
	if ctx.Value(hereKey{}) != nil {
		return c.applyHere(ctx, cmd) // Raft refuses it where this node doesn't lead
	}
	pause := retryPause
	var last error
	for {
		changed := c.newLeader.wait()
		if c.isRemoved() {
			return nil, 0, ErrNotMember
		}
		answer, index, err := c.proposeOnce(ctx, cmd)
		if err == nil {
			wait, stop := context.WithTimeout(context.WithoutCancel(ctx), applyPatience)
			defer stop()
			_ = c.state.WaitApplied(wait, index) // it is committed: a slow local state doesn't make it undone
			return answer, index, nil
		}
		if last = err; errors.Is(err, ErrNotMember) {
			return nil, 0, err
		}
		select {
		case <-ctx.Done():
			reason := fmt.Sprintf("no leader took the change within %s (%v)", proposePatience, last)
			return nil, 0, &UnavailableError{Reason: reason, RetryAfter: 2 * c.cfg.RaftTimeout}
		case <-changed:
		case <-time.After(pause):
			pause = min(2*pause, maxRetryPause)
		}
	}
}

// waitBooted holds commands back until this boot is on record. Their identity carries its epoch: a node with an old disk
// would use one again, and would be given the answers of its former life for things that never happened.
func (c *Cluster) waitBooted(ctx context.Context) error {
	if ctx.Value(bootKey{}) != nil {
		return nil
	}
	for {
		changed := c.newLeader.wait()
		if err := c.bootRefused(); err != nil {
			return &UnavailableError{Reason: err.Error(), RetryAfter: time.Minute}
		}
		if c.isRemoved() {
			return ErrNotMember
		}
		select {
		case <-c.booted:
			return nil
		case <-changed:
		case <-ctx.Done():
			return &UnavailableError{Reason: "this node's start is not on record yet", RetryAfter: 2 * c.cfg.RaftTimeout}
		}
	}
}

func (c *Cluster) proposeOnce(ctx context.Context, cmd []byte) ([]byte, uint64, error) {
	leader, ok := c.Leader()
	switch {
	case !ok:
		return nil, 0, errNotLeader
	case leader == c.ID():
		return c.applyHere(ctx, cmd)
	}
	return c.forward(ctx, leader, cmd)
}

// applyHere applies on the leader. The future may hang over a leader change (hashicorp/raft issue 498), so ctx counts too.
func (c *Cluster) applyHere(ctx context.Context, cmd []byte) ([]byte, uint64, error) {
	future := c.raft.Apply(cmd, proposePatience)
	if err := c.tasks.await(ctx, future); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errNotLeader, err)
	}
	answer, ok := future.Response().([]byte)
	if !ok {
		return nil, 0, errNotLeader
	}
	return answer, future.Index(), nil
}

func (c *Cluster) forward(ctx context.Context, leader NodeID, cmd []byte) ([]byte, uint64, error) {
	body, err := c.call(ctx, leader, http.MethodPost, "/cluster/propose", bytes.NewReader(cmd))
	if err != nil {
		return nil, 0, err
	}
	if len(body) < 8 {
		return nil, 0, fmt.Errorf("the leader's answer has %d bytes", len(body))
	}
	return body[8:], binary.BigEndian.Uint64(body), nil
}

// servePropose is the leader's side of forward.
func (c *Cluster) servePropose(w http.ResponseWriter, r *http.Request) {
	cmd, err := io.ReadAll(io.LimitReader(r.Body, maxCommand))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !c.leading() {
		http.Error(w, errNotLeader.Error(), http.StatusMisdirectedRequest)
		return
	}
	if _, member := c.server(PeerOf(r.Context())); !member {
		http.Error(w, ErrNotMember.Error(), http.StatusGone)
		return
	}
	answer, index, err := c.applyHere(r.Context(), cmd)
	if err != nil {
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
		return
	}
	_, _ = w.Write(append(binary.BigEndian.AppendUint64(nil, index), answer...))
}

const (
	spreadPatience = 2 * time.Second
	// deadPatience is for members that gossip takes for dead: one that has just come back serves before gossip hears of it.
	deadPatience = 300 * time.Millisecond
)

// Spread waits, for at most two seconds, until every member that answers has applied index. Whom gossip hasn't heard of
// counts as alive: a node that has just started knows nobody yet.
func (c *Cluster) Spread(ctx context.Context, index uint64) error {
	path := fmt.Sprintf("/cluster/applied?index=%d", index)
	var group errgroup.Group
	for _, s := range c.servers() {
		id := NodeID(s.ID)
		if id == c.ID() {
			continue
		}
		patience := spreadPatience
		if h, heard := c.gossip.hint(id); heard && (h.State == stateDead || h.State == stateLeft) {
			patience = deadPatience
		}
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			_, err := c.call(ctx, id, http.MethodPost, path, nil)
			return err
		})
	}
	return group.Wait()
}

// serveApplied answers once this node's state holds the index.
func (c *Cluster) serveApplied(w http.ResponseWriter, r *http.Request) {
	var index uint64
	if _, err := fmt.Sscan(r.URL.Query().Get("index"), &index); err != nil {
		http.Error(w, "index: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := c.state.WaitApplied(r.Context(), index); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// lastVisible is the newest entry at or before index that the state gets to see. Raft keeps its no-ops and barriers to
// itself, and waiting for the state to hold one would take for ever.
//
// Entries that the state holds need no look. An entry that is neither held nor in the log can only have been cut off behind
// a snapshot meanwhile; a snapshot covers what the state holds, so what the state holds now is enough to wait for.
// raft.AppliedIndex would be no help: it moves when entries are handed to the state, before they are applied.
func (c *Cluster) lastVisible(index uint64) uint64 {
	floor := c.state.AppliedIndex()
	for i := index; i > floor; i-- {
		var l raft.Log
		if err := c.cache.GetLog(i, &l); err != nil {
			return c.state.AppliedIndex()
		}
		if l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			return i
		}
	}
	return floor
}
