package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"pier/api"
	"pier/cluster"
	"pier/fsm"
)

// proposer turns typed commands into the cluster's bytes and back. It numbers this boot's commands, so that a command that
// is proposed again after a lost answer gets the first answer.
type proposer struct {
	cluster *cluster.Cluster
	state   *fsm.State

	mu   sync.Mutex
	next uint64              // the last number given out
	open map[uint64]struct{} // numbers without an answer yet
	done uint64              // every number up to this one is answered
	used uint64              // the highest level that the state has seen
}

func newProposer(c *cluster.Cluster, s *fsm.State) *proposer {
	return &proposer{cluster: c, state: s, open: make(map[uint64]struct{})}
}

// Propose puts cmd through the log and returns the state's answer once this node has applied it. After a delete it also
// waits, for a bounded time, until every live node has applied it: reads by digest are local, and a deleted manifest must
// not be served by a node that hasn't heard.
func (p *proposer) Propose(ctx context.Context, cmd fsm.Command) (fsm.Answer, error) {
	if err := p.understood(cmd); err != nil {
		return nil, err
	}
	var id fsm.Identity
	// A boot is known by its nonce: a disk that was restored would number its commands as its former life did.
	if _, boot := cmd.(fsm.BootNode); !boot {
		id = p.begin()
		defer p.end(id.Seq)
	}
	data, err := fsm.Encode(id, cmd)
	if err != nil {
		return nil, fmt.Errorf("encode the command: %w", err)
	}
	raw, at, err := p.cluster.Propose(ctx, data)
	if err != nil {
		return nil, unavailable(err)
	}
	answer, err := fsm.DecodeAnswer(raw)
	if err != nil {
		return nil, err
	}
	switch inner(cmd).(type) {
	case fsm.DeleteManifest, fsm.DeleteTag, fsm.DeleteBlob:
		_ = p.cluster.Spread(ctx, at)
	}
	return answer, nil
}

// inner is what a command does.
func inner(cmd fsm.Command) fsm.Command {
	if a, ok := cmd.(fsm.Admitted); ok {
		return a.Command
	}
	return cmd
}

// Current returns once the local state holds everything that was acknowledged before the call.
func (p *proposer) Current(ctx context.Context) error {
	return unavailable(p.cluster.ReadIndex(ctx))
}

func (p *proposer) begin() fsm.Identity {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	p.open[p.next] = struct{}{}
	return fsm.Identity{Node: fsm.NodeID(p.cluster.ID()), Epoch: p.cluster.Epoch(), Seq: p.next, Done: p.done}
}

func (p *proposer) end(seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, seq)
	for p.done < p.next {
		if _, waiting := p.open[p.done+1]; waiting {
			return
		}
		p.done++
	}
}

// understood refuses a command that a member would have to stop at. The first level is known to all.
func (p *proposer) understood(cmd fsm.Command) error {
	level := fsm.Level(cmd)
	if level <= 1 || p.isUsed(level) {
		return nil
	}
	nodes, err := p.state.Nodes()
	if err != nil {
		return err
	}
	return lagging(level, p.cluster.Members(), nodes)
}

// isUsed tells whether the log has had commands of that level already. Then every member has to understand them, and there
// is nobody to ask.
func (p *proposer) isUsed(level uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used < level {
		p.used, _ = p.state.Level()
	}
	return p.used >= level
}

// lagging names a member that hasn't announced the level. One that has announced nothing yet may be of any version.
func lagging(level uint64, members []cluster.Member, announced []fsm.Node) error {
	if len(members) == 0 {
		return fmt.Errorf("%w: who is in the cluster isn't known yet", fsm.ErrLevel)
	}
	for _, m := range members {
		i := slices.IndexFunc(announced, func(n fsm.Node) bool { return n.ID == fsm.NodeID(m.ID) })
		switch {
		case i < 0:
			return fmt.Errorf("%w: %s %s has not announced its version yet", fsm.ErrLevel, m.Name, m.ID)
		case announced[i].Level < level:
			return fmt.Errorf("%w: %s runs %s; upgrade it first", fsm.ErrLevel, announced[i].Name, announced[i].Version)
		}
	}
	return nil
}

// unavailable translates what the cluster says into what the API knows.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	var u *cluster.UnavailableError
	if errors.As(err, &u) {
		return &api.Unavailable{Reason: u.Reason, RetryAfter: u.RetryAfter, Err: err}
	}
	if errors.Is(err, cluster.ErrNoQuorum) || errors.Is(err, cluster.ErrUnavailable) || errors.Is(err, cluster.ErrNotMember) {
		return &api.Unavailable{Reason: err.Error(), Err: err}
	}
	return err
}
