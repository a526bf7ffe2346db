package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"pier/cluster/port"
)

const changeTimeout = 10 * time.Second

// Member is a node of the configuration with what gossip says of it.
type Member struct {
	ID                 NodeID
	Name, Address, API string
	Role               string // leader, voter, nonvoter
	State              string // alive, suspect, dead, left
	Self               bool
}

// Members lists the configuration's nodes, by name.
func (c *Cluster) Members() []Member {
	records, _ := c.records.Nodes()
	var out []Member
	for _, s := range c.servers() {
		id := NodeID(s.ID)
		// Whom gossip hasn't heard of may well be alive: a node that has just started knows nobody yet.
		m := Member{ID: id, Address: string(s.Address), Role: c.roleOf(id), State: stateSuspect, Self: id == c.ID()}
		if i := slices.IndexFunc(records, func(r Record) bool { return r.ID == id }); i >= 0 {
			m.Name, m.API = records[i].Name, records[i].API
		}
		if h, ok := c.gossip.hint(id); ok {
			m.State = h.State
			m.Name, m.API = h.Name, h.API
		}
		if m.Self {
			m.State, m.Name, m.API = stateAlive, c.cfg.Name, c.cfg.API
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name+"\x00"+string(a.ID), b.Name+"\x00"+string(b.ID)) })
	return out
}

// lead does the leader's chores while this node leads: promotes newcomers, replaces the dead, marks the absent.
func (c *Cluster) lead(ctx context.Context) error {
	tick := time.NewTicker(max(c.cfg.RaftTimeout/2, 50*time.Millisecond))
	defer tick.Stop()
	led := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.noteMembers(); err != nil {
			return err
		}
		if !c.leading() {
			led = false
			continue
		}
		if !led {
			led = true
			c.dead.forget()
		}
		c.nameCluster(ctx)
		c.tend(ctx)
	}
}

// view is what the leader's decision rests on.
type view struct {
	id       NodeID
	voter    bool
	self     bool
	address  string
	well     bool
	wellFor  time.Duration
	goneFor  time.Duration
	caughtUp bool
	away     bool
	known    bool // has a record in the state
	gone     bool // and nothing but that: its removal was cut short
	draining bool
}

// act is one chore.
type act struct {
	kind string // promote, retire, away, back, forget
	id   NodeID
}

// decide picks the next chore, a pure function of what is seen. The number of voters never shrinks by itself: a dead voter
// goes only when another stands in for it, which is a node that came with an empty disk to its very address and votes by
// now, or any newcomer that was promoted over the limit for it. One that is merely dead stays, and counts.
func decide(nodes []view, maxVoters int, voterDelay, repairDelay time.Duration) (act, bool) {
	voters, dead := 0, 0
	for _, n := range nodes {
		if n.gone {
			return act{"forget", n.id}, true
		}
		if n.voter {
			voters++
			if n.goneFor > voterDelay {
				dead++
			}
		}
	}
	for _, n := range nodes {
		fit := !n.voter && n.well && n.caughtUp && !n.draining && n.wellFor >= voterDelay
		if fit && (voters < maxVoters || dead > 0) {
			return act{"promote", n.id}, true
		}
	}
	for _, n := range nodes {
		if n.self || n.goneFor <= voterDelay {
			continue
		}
		if n.voter && voters > maxVoters || standsIn(nodes, n) {
			return act{"retire", n.id}, true
		}
	}
	for _, n := range nodes {
		if n.known && !n.away && n.goneFor > repairDelay {
			return act{"away", n.id}, true
		}
		if n.known && n.away && n.well {
			return act{"back", n.id}, true
		}
	}
	return act{}, false
}

// standsIn tells whether the node at the end of n's line of successors is well, and votes if n did. The line must not be
// broken before its end: whoever is a successor itself goes after its predecessor.
func standsIn(nodes []view, n view) bool {
	for _, other := range nodes {
		if heir, ok := successor(other.address); ok && heir == n.id {
			return false
		}
	}
	end := n
	for range nodes {
		heir, ok := successor(end.address)
		if !ok {
			break
		}
		i := slices.IndexFunc(nodes, func(v view) bool { return v.id == heir })
		if i < 0 {
			return false
		}
		end = nodes[i]
	}
	return end.id != n.id && end.well && (end.voter || !n.voter)
}

// The address of a member whose own was taken by a newcomer names the newcomer.
const (
	replacedPrefix = "replaced-by-"
	replacedSuffix = ":0"
)

func replacedBy(id NodeID) raft.ServerAddress {
	return raft.ServerAddress(replacedPrefix + string(id) + replacedSuffix)
}

func successor(address string) (NodeID, bool) {
	id, ok := strings.CutPrefix(address, replacedPrefix)
	return NodeID(strings.TrimSuffix(id, replacedSuffix)), ok
}

// tend looks at the members and does one chore.
func (c *Cluster) tend(ctx context.Context) {
	nodes, seen := c.look(ctx)
	a, ok := decide(nodes, c.cfg.MaxVoters, c.cfg.VoterDelay, c.cfg.RepairDelay)
	if !ok {
		return
	}
	var err error
	switch a.kind {
	case "promote":
		err = c.promote(ctx, a.id, seen)
	case "retire":
		err = c.retire(ctx, a.id, seen)
	case "forget":
		err = c.records.Forget(ctx, a.id)
	case "away", "back":
		i := slices.IndexFunc(nodes, func(n view) bool { return n.id == a.id })
		err = c.records.Mark(ctx, a.id, a.kind == "away", nodes[i].draining)
	}
	c.cfg.Logger.Info("changed the cluster", "act", a.kind, "peer", a.id, "err", err)
}

// look gives what there is to see, and the index of the configuration that it was seen in.
func (c *Cluster) look(ctx context.Context) ([]view, uint64) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	now := c.raft.GetConfiguration()
	if now.Error() != nil {
		return nil, 0
	}
	records, _ := c.records.Nodes()
	commit := c.raft.CommitIndex()
	servers := now.Configuration().Servers
	out := make([]view, len(servers))
	var group errgroup.Group // one that doesn't answer must not use up the time of the others
	for i, s := range servers {
		group.Go(func() error {
			out[i] = c.lookAt(ctx, s, commit)
			return nil
		})
	}
	_ = group.Wait()
	for _, r := range records {
		i := slices.IndexFunc(out, func(v view) bool { return v.id == r.ID })
		if i < 0 {
			out = append(out, view{id: r.ID, gone: true})
			continue
		}
		out[i].known, out[i].away, out[i].draining = true, r.Away, r.Draining
	}
	return out, now.Index()
}

func (c *Cluster) lookAt(ctx context.Context, s raft.Server, commit uint64) view {
	v := view{id: NodeID(s.ID), voter: s.Suffrage == raft.Voter, self: NodeID(s.ID) == c.ID(), address: string(s.Address)}
	h, heard := c.gossip.hint(v.id)
	v.well = v.self || heard && (h.State == stateAlive || h.State == stateSuspect)
	if !v.well && !strings.HasPrefix(v.address, replacedPrefix) {
		_, err := c.report(ctx, v.id) // gossip may be what fails: ask the node itself
		v.well = err == nil
	}
	v.wellFor, v.goneFor = c.dead.see(v.id, v.well, c.cfg.Now())
	if v.well && !v.voter && v.wellFor >= c.cfg.VoterDelay {
		report, err := c.report(ctx, v.id)
		v.caughtUp = err == nil && report.AppliedIndex+maxAppend >= commit && report.Member
	}
	return v
}

func (c *Cluster) promote(ctx context.Context, id NodeID, seen uint64) error {
	s, ok := c.server(id)
	if !ok {
		return ErrNodeUnknown
	}
	return c.change(ctx, func(uint64) raft.Future { return c.raft.AddVoter(s.ID, s.Address, seen, changeTimeout) })
}

// change does one membership change or transfer at a time (hashicorp/raft issue 696), and waits for it no longer than
// changeTimeout; the next one begins only when Raft is through with it, or leads no more. A membership change gets the index
// of the configuration that it was decided on: if another came between, Raft refuses it.
func (c *Cluster) change(ctx context.Context, begin func(now uint64) raft.Future) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	select {
	case c.changing <- struct{}{}:
	case <-ctx.Done():
		return &UnavailableError{Reason: "another membership change is under way", RetryAfter: c.cfg.RaftTimeout}
	}
	now := c.raft.GetConfiguration()
	if err := now.Error(); err != nil {
		<-c.changing
		return err
	}
	moved := c.newLeader.wait()
	done, ok := c.tasks.follow(begin(now.Index()))
	if !ok {
		return raft.ErrRaftShutdown
	}
	select {
	case err := <-done:
		<-c.changing
		return err
	case <-ctx.Done():
	}
	c.tasks.run(func() {
		select {
		case <-done:
		case <-moved:
		}
		<-c.changing
	})
	return &UnavailableError{Reason: "the membership change takes too long", RetryAfter: c.cfg.RaftTimeout}
}

// takeIn makes a node a member, or moves one to its new address. On a follower it asks the leader.
func (c *Cluster) takeIn(ctx context.Context, n newcomer) error {
	if !c.leading() {
		leader, ok := c.Leader()
		if !ok {
			return &UnavailableError{Reason: "there is no leader that could take a node in", RetryAfter: c.cfg.RaftTimeout}
		}
		err := c.ask(ctx, leader, http.MethodPost, "/cluster/join", n, nil)
		var refused *statusError
		switch {
		case errors.As(err, &refused) && refused.code == http.StatusForbidden:
			return fmt.Errorf("%s: %w", n.ID, ErrNotMember)
		case errors.As(err, &refused) && refused.code == http.StatusConflict:
			return fmt.Errorf("%w%s", ErrRotating, strings.TrimPrefix(refused.text, ErrRotating.Error()))
		}
		return err
	}
	known, member := c.server(n.ID)
	if member && string(known.Address) == n.Address {
		return nil
	}
	if !member && n.Member {
		return fmt.Errorf("%s: %w", n.ID, ErrNotMember)
	}
	if !member {
		// A leader that has just been elected may not have applied yet that a rotation has begun.
		if err := c.ReadIndex(ctx); err != nil {
			return err
		}
		if err := c.lacks(n); err != nil {
			return err
		}
	}
	there := c.answersAt(ctx, n)
	if member && !there {
		return fmt.Errorf("the node isn't at %s", n.Address)
	}
	// A lost disk comes back as a new node at the address of its dead former self, and Raft allows an address once. Who
	// answers at it owns it; a newcomer with an invite doesn't listen yet, so then the former owner must at least be silent.
	for _, s := range c.servers() {
		if string(s.Address) != n.Address || NodeID(s.ID) == n.ID {
			continue
		}
		if _, err := c.report(ctx, NodeID(s.ID)); !there && err == nil {
			return fmt.Errorf("another member is at %s: %s", n.Address, s.ID)
		}
		if err := c.readdress(ctx, s, replacedBy(n.ID)); err != nil {
			return err
		}
	}
	c.cfg.Logger.Info("taking a node in", "peer", n.ID, "name", n.Name, "address", n.Address, "moved", member)
	if member {
		return c.readdress(ctx, known, raft.ServerAddress(n.Address))
	}
	return c.change(ctx, func(prev uint64) raft.Future {
		if err := c.lacks(n); err != nil { // a step of a rotation waits for this change, or was before it
			return refusedChange{err}
		}
		return c.raft.AddNonvoter(raft.ServerID(n.ID), raft.ServerAddress(n.Address), prev, changeTimeout)
	})
}

// refusedChange is the future of a change that isn't begun.
type refusedChange struct{ why error }

func (r refusedChange) Error() error { return r.why }

func (c *Cluster) answersAt(ctx context.Context, n newcomer) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := c.port.Dial(ctx, port.ProtoPeer, n.ID, n.Address)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func (c *Cluster) readdress(ctx context.Context, s raft.Server, address raft.ServerAddress) error {
	return c.change(ctx, func(prev uint64) raft.Future {
		if s.Suffrage == raft.Voter {
			return c.raft.AddVoter(s.ID, address, prev, changeTimeout)
		}
		return c.raft.AddNonvoter(s.ID, address, prev, changeTimeout)
	})
}

// HandOver gives leadership away if this node has it: what a node does before it stops.
func (c *Cluster) HandOver(ctx context.Context) error {
	if !c.leading() {
		return nil
	}
	return c.transferHere(ctx, "")
}

// Transfer hands leadership to a node, or to the fittest for an empty ID. Any member may ask.
func (c *Cluster) Transfer(ctx context.Context, to NodeID) error {
	leader, ok := c.Leader()
	switch {
	case !ok:
		return &UnavailableError{Reason: "there is no leader", RetryAfter: c.cfg.RaftTimeout}
	case to != "" && leader == to:
		return nil
	}
	var err error
	if leader == c.ID() {
		err = c.transferHere(ctx, to)
	} else {
		err = c.ask(ctx, leader, http.MethodPost, "/cluster/transfer", removal{ID: to}, nil)
	}
	var status *statusError
	switch {
	case err == nil, errors.Is(err, ErrCantLead), errors.Is(err, ErrNodeUnknown):
		return err
	case errors.As(err, &status) && status.code == http.StatusConflict:
		return fmt.Errorf("%w%s", ErrCantLead, strings.TrimPrefix(status.text, ErrCantLead.Error()))
	}
	return &UnavailableError{Reason: "leadership was not handed on: " + err.Error(), RetryAfter: c.cfg.RaftTimeout}
}

func (c *Cluster) transferHere(ctx context.Context, to NodeID) error {
	voters := slices.DeleteFunc(c.servers(), func(s raft.Server) bool { return s.Suffrage != raft.Voter })
	if len(voters) < 2 {
		return fmt.Errorf("%w: no other node votes yet", ErrCantLead)
	}
	target, ok := c.server(to)
	if to != "" && !ok {
		return fmt.Errorf("%w: %s", ErrNodeUnknown, to)
	}
	if to != "" && target.Suffrage != raft.Voter {
		return fmt.Errorf("%w: %s does not vote yet", ErrCantLead, to)
	}
	return c.change(ctx, func(uint64) raft.Future {
		if to == "" {
			return c.raft.LeadershipTransfer()
		}
		return c.raft.LeadershipTransferToServer(target.ID, target.Address)
	})
}

func (c *Cluster) serveTransfer(w http.ResponseWriter, r *http.Request) {
	var x removal
	if !readJSON(w, r, &x) {
		return
	}
	if !c.leading() {
		http.Error(w, errNotLeader.Error(), http.StatusMisdirectedRequest)
		return
	}
	switch err := c.transferHere(r.Context(), x.ID); {
	case err == nil:
	case errors.Is(err, ErrCantLead), errors.Is(err, ErrNodeUnknown):
		http.Error(w, err.Error(), http.StatusConflict)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}
