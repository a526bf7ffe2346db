package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
)

type removal struct {
	ID    NodeID
	Force bool
}

// Remove takes a node out. Without force it refuses what would lose the majority or the last copy of a blob.
func (c *Cluster) Remove(ctx context.Context, id NodeID, force bool) error {
	if _, ok := c.server(id); !ok {
		return fmt.Errorf("%w: %s", ErrNodeUnknown, id)
	}
	if !slices.ContainsFunc(c.servers(), func(s raft.Server) bool { return s.Suffrage == raft.Voter && NodeID(s.ID) != id }) {
		return fmt.Errorf("%w: no other node votes", ErrWouldLoseQuorum) // and nothing can force that
	}
	deadline := c.cfg.Now().Add(proposePatience)
	for {
		err := c.ReadIndex(ctx)
		if err == nil {
			err = c.removeOnce(ctx, id, force)
		}
		if id == c.ID() && errors.Is(err, ErrNotMember) {
			return nil // it is done, and only the answer was lost
		}
		var last *LastCopyError
		if err == nil || errors.Is(err, ErrNoQuorum) || errors.Is(err, ErrWouldLoseQuorum) || errors.As(err, &last) {
			return err
		}
		if c.cfg.Now().After(deadline) {
			return &UnavailableError{Reason: "the node was not removed: " + err.Error(), RetryAfter: 2 * c.cfg.RaftTimeout}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(formPause):
		}
	}
}

// canSpare tells whether the rest would still have a majority and every blob.
func (c *Cluster) canSpare(ctx context.Context, id NodeID) error {
	rest := slices.DeleteFunc(c.servers(), func(s raft.Server) bool { return s.Suffrage != raft.Voter || NodeID(s.ID) == id })
	voters, live := len(rest), c.countLive(ctx, rest)
	if live < voters/2+1 {
		return fmt.Errorf("%w (%d of %d remaining voters are alive)", ErrWouldLoseQuorum, live, voters)
	}
	digests, total, err := c.guard.OnlyOn(ctx, id, 10)
	if err != nil {
		return fmt.Errorf("look for blobs that only this node holds: %w", err)
	}
	if total > 0 {
		return &LastCopyError{Digests: digests, Total: total}
	}
	return nil
}

// countLive asks the servers themselves: gossip takes seconds to notice a death.
func (c *Cluster) countLive(ctx context.Context, servers []raft.Server) int {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var live atomic.Int64
	var group errgroup.Group
	for _, s := range servers {
		group.Go(func() error {
			if NodeID(s.ID) == c.ID() {
				live.Add(1)
			} else if _, err := c.report(ctx, NodeID(s.ID)); err == nil {
				live.Add(1)
			}
			return nil
		})
	}
	_ = group.Wait()
	return int(live.Load())
}

func (c *Cluster) removeOnce(ctx context.Context, id NodeID, force bool) error {
	leader, ok := c.Leader()
	if !ok {
		return errNotLeader
	}
	if leader == id && len(c.servers()) > 1 {
		if !force {
			if err := c.canSpare(ctx, id); err != nil {
				return err
			}
		}
		// a leader hands over before it goes, so that nobody waits for an election
		if id == c.ID() {
			if err := c.transferHere(ctx, ""); err != nil {
				return err
			}
			return errNotLeader
		}
		if err := c.ask(ctx, leader, http.MethodPost, "/cluster/transfer", removal{}, nil); err != nil {
			return err
		}
		return errNotLeader
	}
	if leader != c.ID() {
		return refusedRemoval(c.ask(ctx, leader, http.MethodPost, "/cluster/remove", removal{ID: id, Force: force}, nil))
	}
	return c.expel(ctx, id, force)
}

// expel removes a node on the leader, one at a time: of two removals that each could be afforded, both may be one too many.
func (c *Cluster) expel(ctx context.Context, id NodeID, force bool) error {
	select {
	case c.removing <- struct{}{}:
		defer func() { <-c.removing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	nodes, seen := c.look(ctx)
	for _, n := range nodes {
		if n.gone { // it would still count as a holder of blobs
			if err := c.records.Forget(ctx, n.id); err != nil {
				return err
			}
		}
	}
	if _, ok := c.server(id); !ok {
		return nil
	}
	if !force {
		if err := c.canSpare(ctx, id); err != nil {
			return err
		}
	}
	return c.forgetServer(ctx, id, seen)
}

// retire removes a node whose place another has taken, unless a removal by hand is under way.
func (c *Cluster) retire(ctx context.Context, id NodeID, seen uint64) error {
	select {
	case c.removing <- struct{}{}:
		defer func() { <-c.removing }()
	default:
		return errors.New("a node is being removed")
	}
	return c.forgetServer(ctx, id, seen)
}

// forgetServer takes a node out of the configuration, if that is still the one that was seen, and out of the records. Its
// connections go too: it is told when it dials again.
func (c *Cluster) forgetServer(ctx context.Context, id NodeID, seen uint64) error {
	err := c.change(ctx, func(uint64) raft.Future { return c.raft.RemoveServer(raft.ServerID(id), seen, changeTimeout) })
	if err != nil {
		return err
	}
	c.cfg.Logger.Info("removed a node", "peer", id)
	return c.records.Forget(ctx, id)
}

// refusal is the leader's no to a removal, which would be the same tomorrow.
type refusal struct {
	Quorum string `json:",omitempty"`
	Last   *LastCopyError
}

// refusedRemoval is the error that the leader had.
func refusedRemoval(err error) error {
	var status *statusError
	var r refusal
	if !errors.As(err, &status) || status.code != http.StatusConflict || json.Unmarshal([]byte(status.text), &r) != nil {
		return err
	}
	if r.Last != nil {
		return r.Last
	}
	return fmt.Errorf("%w%s", ErrWouldLoseQuorum, strings.TrimPrefix(r.Quorum, ErrWouldLoseQuorum.Error()))
}

func (c *Cluster) serveRemove(w http.ResponseWriter, r *http.Request) {
	var x removal
	if !readJSON(w, r, &x) {
		return
	}
	if !c.leading() {
		http.Error(w, errNotLeader.Error(), http.StatusMisdirectedRequest)
		return
	}
	err := c.removeOnce(r.Context(), x.ID, x.Force)
	var no refusal
	switch {
	case err == nil:
	case errors.As(err, &no.Last), errors.Is(err, ErrWouldLoseQuorum):
		no.Quorum = err.Error()
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(no)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// Leave drains this node and takes it out: first its blobs must be with others. The mark that it left stays on its disk.
func (c *Cluster) Leave(ctx context.Context) error {
	if len(c.servers()) < 2 {
		return fmt.Errorf("%w: it is the only one", ErrWouldLoseQuorum)
	}
	if err := c.ReadIndex(ctx); err != nil {
		return err
	}
	if err := c.records.Mark(ctx, c.ID(), false, true); err != nil {
		return err
	}
	err := c.drained(ctx)
	if err == nil {
		c.leaving.Store(true)
		err = c.Remove(ctx, c.ID(), false)
	}
	if err != nil {
		c.leaving.Store(false)
		return errors.Join(err, c.records.Mark(context.WithoutCancel(ctx), c.ID(), false, false))
	}
	if err := c.remember(func(id *identity) { id.Left = true }); err != nil {
		return err
	}
	c.hasLeft.Do(func() { close(c.left) })
	return nil
}

// drained waits until every blob of this node is with others too.
func (c *Cluster) drained(ctx context.Context) error {
	said := -1
	for {
		_, total, err := c.guard.OnlyOn(ctx, c.ID(), 1)
		if err == nil && total == 0 {
			return nil
		}
		if total != said {
			said = total
			c.cfg.Logger.Info("leaving: waiting until others hold this node's blobs", "blobs", total, "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(formPause):
		}
	}
}
