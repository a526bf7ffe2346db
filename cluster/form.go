package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
)

const formPause = 200 * time.Millisecond

// hello is what a node says to one that looks for a cluster.
type hello struct {
	ID       NodeID
	Address  string
	Formed   bool
	Promised NodeID
}

// newcomer asks to be let in, or tells where it is now.
type newcomer struct {
	ID      NodeID
	Name    string
	Address string
	Secrets []string // fingerprints
	Member  bool     `json:",omitempty"` // of a cluster, by what it knows: one that isn't any more was removed
}

func (c *Cluster) newcomer() newcomer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return newcomer{ID: c.ID(), Name: c.cfg.Name, Address: c.advertise, Secrets: c.own.now().Fingerprints(), Member: c.identity.Member}
}

// becomeMember forms or joins where there is nothing yet, confirms this boot, and puts it on record.
func (c *Cluster) becomeMember(ctx context.Context) error {
	if len(c.servers()) == 0 {
		if err := c.formOrJoin(ctx); err != nil {
			return ctxDone(ctx, err)
		}
	}
	if c.bootRefused() != nil {
		c.sayRefused(nil)
	}
	if err := c.confirmBoot(ctx); err != nil {
		return ctxDone(ctx, err)
	}
	if err := c.recordBoot(ctx); err != nil {
		return ctxDone(ctx, err)
	}
	if err := c.remember(func(id *identity) { id.Member = true }); err != nil {
		return err
	}
	c.isReady.Do(func() { close(c.ready) })
	return nil
}

func ctxDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// seeds are the addresses where others may be found.
func (c *Cluster) seeds() []string {
	c.mu.Lock()
	out := slices.Concat(c.cfg.Join, c.identity.Peers)
	c.mu.Unlock()
	for _, s := range c.servers() {
		out = append(out, string(s.Address))
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(a string) bool { return a == c.advertise || strings.HasPrefix(a, replacedPrefix) })
}

// formOrJoin waits until this node is in a configuration.
func (c *Cluster) formOrJoin(ctx context.Context) error {
	expect := c.cfg.BootstrapExpect
	if len(c.seeds()) == 0 && expect <= 1 {
		return c.bootstrap([]raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(c.ID()), Address: raft.ServerAddress(c.advertise)}})
	}
	tick := time.NewTicker(formPause)
	defer tick.Stop()
	said := ""
	for {
		found, silent := c.greetAll(ctx)
		if slices.ContainsFunc(found, func(h hello) bool { return h.Formed }) {
			if c.promised() != "" {
				c.keepPromise(ctx, found)
			}
			c.askIn(ctx, found)
		} else if expect > 0 && len(found)+1 >= expect {
			if expect == 1 || c.initiator(found) == c.ID() {
				c.tryForm(ctx, found[:expect-1])
			}
		}
		if len(c.servers()) > 0 {
			return nil
		}
		if waiting := strings.Join(silent, ", "); waiting != said {
			said = waiting
			c.cfg.Logger.Info("waiting for the other nodes", "found", len(found)+1, "expected", expect, "silent", waiting)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// innermost is the cause of an error, without the ports and paths around it that differ from try to try.
func innermost(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// greetAll says hello to every seed; each other node counts once, in the order of IDs.
func (c *Cluster) greetAll(ctx context.Context) (found []hello, silent []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	type answer struct {
		address string
		h       hello
		err     error
	}
	seeds := c.seeds()
	answers := make(chan answer, len(seeds))
	for _, a := range seeds {
		begun := c.tasks.run(func() {
			var h hello
			err := c.askAddress(ctx, a, http.MethodGet, "/cluster/hello", nil, &h)
			answers <- answer{a, h, err}
		})
		if !begun {
			answers <- answer{address: a, err: raft.ErrRaftShutdown}
		}
	}
	byID := map[NodeID]hello{}
	for range seeds {
		a := <-answers
		switch {
		case a.err != nil:
			c.cfg.Logger.Debug("no answer from another founder", "address", a.address, "err", a.err)
			silent = append(silent, a.address+" ("+innermost(a.err).Error()+")")
		case a.h.ID != c.ID():
			a.h.Address = a.address
			byID[a.h.ID] = a.h
		}
	}
	for _, h := range byID {
		found = append(found, h)
	}
	slices.SortFunc(found, func(a, b hello) int { return strings.Compare(string(a.ID), string(b.ID)) })
	slices.Sort(silent)
	return found, silent
}

func (c *Cluster) serveHello(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	promised := c.identity.Promised
	c.mu.Unlock()
	answerJSON(w, hello{ID: c.ID(), Address: c.advertise, Formed: len(c.servers()) > 0, Promised: promised})
}

// initiator is whom some have promised to follow already, if it is here, and the lowest ID otherwise.
func (c *Cluster) initiator(found []hello) NodeID {
	all := append(slices.Clone(found), hello{ID: c.ID(), Promised: c.promised()})
	first := c.ID()
	for _, h := range all {
		if slices.ContainsFunc(all, func(o hello) bool { return o.ID == h.Promised }) {
			return h.Promised
		}
		first = min(first, h.ID)
	}
	return first
}

// tryForm bootstraps when all the others promise to follow this node. A promise is given once and outlives a restart, so two
// halves can't both collect all of them.
func (c *Cluster) tryForm(ctx context.Context, others []hello) {
	if err := c.promise(c.ID()); err != nil {
		c.complain("this node can't form the cluster", c.ID(), err)
		return
	}
	servers := []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(c.ID()), Address: raft.ServerAddress(c.advertise)}}
	for _, o := range others {
		var granted hello
		if err := c.askAddress(ctx, o.Address, http.MethodPost, "/cluster/promise", c.newcomer(), &granted); err != nil || granted.ID != o.ID {
			c.complain("a node can't follow this one: was a founder's disk emptied while the cluster formed? Then empty the others' too", o.ID, err)
			return
		}
		s := raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(o.ID), Address: raft.ServerAddress(granted.Address)}
		if len(servers) >= c.cfg.MaxVoters {
			s.Suffrage = raft.Nonvoter
		}
		servers = append(servers, s)
	}
	if err := c.bootstrap(servers); err != nil {
		c.cfg.Logger.Error("can't form the cluster", "err", err)
	}
}

func (c *Cluster) bootstrap(servers []raft.Server) error {
	err := c.raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error()
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("form the cluster: %w", err)
	}
	return nil
}

// promise keeps whom this node will follow; asking again for the same is fine.
func (c *Cluster) promise(to NodeID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.identity.Promised == to {
		return nil
	}
	if c.identity.Promised != "" {
		return fmt.Errorf("promised to %s already", c.identity.Promised)
	}
	c.identity.Promised = to
	if err := writeIdentity(c.cfg.DataDir, c.identity); err != nil {
		c.identity.Promised = ""
		return err
	}
	return nil
}

func (c *Cluster) servePromise(w http.ResponseWriter, r *http.Request) {
	var from newcomer
	if !readJSON(w, r, &from) {
		return
	}
	if PeerOf(r.Context()) != from.ID || len(c.servers()) > 0 {
		http.Error(w, "this node is in a cluster already", http.StatusConflict)
		return
	}
	if err := c.promise(from.ID); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	// A founder has nothing to remember yet, so it may vote at once; if it waited for a configuration to ask about, the
	// first election could never be won.
	c.openGate()
	answerJSON(w, hello{ID: c.ID(), Address: c.advertise, Promised: from.ID})
}

func (c *Cluster) promised() NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.identity.Promised
}

// keepPromise is for a founder that was restarted between its promise and its first configuration: the cluster counts on
// its vote already. As any other voter it votes once enough others know of no newer boot of it. When the cluster was formed
// without it, which takes that its promise was to somebody who is gone, it joins like anybody else.
func (c *Cluster) keepPromise(ctx context.Context, found []hello) {
	yes := 0
	for _, h := range found {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := c.askAddress(ctx, h.Address, http.MethodPost, "/cluster/epoch", c.memory(), nil)
		cancel()
		if epochUsed(err) {
			c.refuseBoot()
			return
		}
		if err == nil {
			yes++
		}
	}
	if yes >= c.cfg.BootstrapExpect/2 {
		c.openGate()
	}
}

// askIn asks a cluster to take this node, through one of its nodes after the other: some may be cut off from the rest, or
// removed. Being taken shows when the leader's log arrives.
func (c *Cluster) askIn(ctx context.Context, found []hello) {
	for _, h := range found {
		if !h.Formed {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, proposePatience)
		err := c.askAddress(ctx, h.Address, http.MethodPost, "/cluster/join", c.newcomer(), nil)
		cancel()
		if err == nil {
			return
		}
		c.complain("not let in yet", h.ID, err)
	}
}

// complain logs what keeps this node from something, once until its cause changes.
func (c *Cluster) complain(what string, peer NodeID, err error) {
	cause := string(peer)
	if err != nil {
		cause += " " + innermost(err).Error()
	}
	c.mu.Lock()
	again := c.complaints[what] == cause
	c.complaints[what] = cause
	c.mu.Unlock()
	if !again {
		c.cfg.Logger.Info(what, "peer", peer, "err", err)
	}
}

const (
	contactPause = 500 * time.Millisecond
	strayPause   = 5 * time.Second
)

// gatherGossip brings gossip together: at once while this node is alone in it, and every few seconds with members that it
// takes for dead. Two halves of a cluster that were cut from each other forget each other, and would never look again.
func (c *Cluster) gatherGossip(ctx context.Context) error {
	tick := time.NewTicker(contactPause)
	defer tick.Stop()
	var looked time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch {
		case c.isRemoved() || len(c.servers()) < 2:
		case c.gossip.alone():
			c.gossip.join(c.seeds())
		case time.Since(looked) > strayPause:
			looked = time.Now()
			for _, s := range c.servers() {
				if h, _ := c.gossip.hint(NodeID(s.ID)); h.State != stateAlive && NodeID(s.ID) != c.ID() {
					c.gossip.join([]string{string(s.Address)})
				}
			}
		}
	}
}

// keepContact looks for lost members, tells the cluster when this node has moved, and tells every voter of this boot:
// elections need only some of them to know, but each that knows would recognize this disk if it came back older.
func (c *Cluster) keepContact(ctx context.Context) error {
	tick := time.NewTicker(contactPause)
	defer tick.Stop()
	told := make(map[NodeID]bool)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if c.isRemoved() || len(c.servers()) == 0 {
			continue
		}
		_, led := c.Leader()
		s, member := c.server(c.ID())
		moved := member && string(s.Address) != c.advertise
		for _, s := range c.servers() {
			id := NodeID(s.ID)
			if id == c.ID() || told[id] && led && !moved {
				continue
			}
			c.contact(ctx, id, moved, told)
		}
	}
}

// contact tells one member where this node is now and which boot it is.
func (c *Cluster) contact(ctx context.Context, id NodeID, moved bool, told map[NodeID]bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := c.ask(ctx, id, http.MethodPost, "/cluster/epoch", c.memory(), nil)
	told[id] = err == nil
	if epochUsed(err) && c.bootRefused() == nil {
		c.refuseBoot() // it was away when this node began to vote
	}
	if err == nil && moved {
		if err := c.ask(ctx, id, http.MethodPost, "/cluster/join", c.newcomer(), nil); err != nil {
			c.cfg.Logger.Debug("the new address isn't known yet", "peer", id, "err", err)
		}
	}
}

// nameCluster gives a new cluster its ID; the leader does it, once. It looks only after a read that is current: a leader
// that has just been elected may not have applied yet what its predecessor named.
func (c *Cluster) nameCluster(ctx context.Context) {
	if id, err := c.records.ClusterID(); err != nil || id != "" {
		return
	}
	if err := c.ReadIndex(ctx); err != nil {
		return
	}
	if id, err := c.records.ClusterID(); err != nil || id != "" {
		return
	}
	if err := c.records.SetClusterID(ctx, uuid.NewString()); err != nil {
		c.cfg.Logger.Debug("the cluster has no ID yet", "err", err)
	}
}
