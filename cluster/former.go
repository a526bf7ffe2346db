package cluster

import (
	"maps"
)

// former tells whether a node was a member and was removed.
func (c *Cluster) former(id NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.identity.Removed[id]
}

// isRemoved tells whether this node itself was.
func (c *Cluster) isRemoved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removed
}

// Standing is nil for a member, and says why this node is none any more, or none that others may count on.
func (c *Cluster) Standing() error {
	if c.isRemoved() {
		return ErrNotMember
	}
	return c.bootRefused()
}

// wasRemoved takes a member's word that this node was removed: only who has seen the removal committed says so.
func (c *Cluster) wasRemoved(by NodeID) {
	c.mu.Lock()
	first := !c.removed
	c.removed = true
	c.mu.Unlock()
	if first && !c.leaving.Load() {
		c.transport.shut()
		c.newLeader.notify()
		c.cfg.Logger.Error("this node was removed from its cluster: empty its data directory to use it again", "peer", by)
	}
}

// remember makes a change of the identity durable, or leaves it as it was.
func (c *Cluster) remember(edit func(*identity)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.identity
	next.Seen, next.Removed = maps.Clone(next.Seen), maps.Clone(next.Removed)
	if next.Removed == nil {
		next.Removed = make(map[NodeID]bool)
	}
	edit(&next)
	if err := writeIdentity(c.cfg.DataDir, next); err != nil {
		return err
	}
	c.identity = next
	return nil
}

// noteMembers compares the committed configuration with the one before. Who is missing was removed, and is refused from
// now on, also after a restart. A configuration that isn't committed yet may be undone, and says nothing.
func (c *Cluster) noteMembers() error {
	now := c.raft.GetConfiguration()
	if now.Error() != nil || now.Index() > c.raft.CommitIndex() || len(now.Configuration().Servers) == 0 {
		return nil
	}
	members := make(map[NodeID]bool)
	for _, s := range now.Configuration().Servers {
		members[NodeID(s.ID)] = true
	}
	c.mu.Lock()
	before, member := c.identity.Members, c.identity.Member
	c.mu.Unlock()
	if maps.Equal(before, members) && member {
		return nil
	}
	var gone []NodeID
	for id := range before {
		if !members[id] && id != c.ID() {
			gone = append(gone, id)
		}
	}
	err := c.remember(func(id *identity) {
		id.Member, id.Members = true, members
		for _, g := range gone {
			id.Removed[g] = true
		}
	})
	if err != nil {
		return err
	}
	for _, g := range gone {
		c.port.Drop(g)
	}
	return nil
}
