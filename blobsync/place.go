package blobsync

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Place gives the nodes that are to hold a digest: the highest in rendezvous order (Thaler and Ravishankar, 1998), so that
// a node that comes or goes moves only what it gains or held. All of them for replicas 0, in that order too.
func Place(d digest.Digest, nodes []NodeID, replicas int) []NodeID {
	type scored struct {
		id    NodeID
		score uint64
	}
	all := make([]scored, 0, len(nodes))
	for _, id := range nodes {
		sum := sha256.Sum256([]byte(string(id) + "\x00" + string(d)))
		all = append(all, scored{id, binary.BigEndian.Uint64(sum[:8])})
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.id, b.id))
	})
	if replicas > 0 && replicas < len(all) {
		all = all[:replicas]
	}
	out := make([]NodeID, 0, len(all))
	for _, s := range all {
		out = append(out, s.id)
	}
	return out
}

// holders are the nodes that are to hold a blob: none that has been away for long or is about to leave, as long as there
// are others.
func (s *Sync) holders(d digest.Digest, nodes []Node) []NodeID {
	var ids, all []NodeID
	for _, n := range nodes {
		all = append(all, n.ID)
		if !n.Away && !n.Draining {
			ids = append(ids, n.ID)
		}
	}
	if len(ids) == 0 {
		ids = all
	}
	return Place(d, ids, s.cfg.Replicas)
}

func (s *Sync) mine(b Blob, nodes []Node) bool {
	return slices.Contains(s.holders(b.Digest, nodes), s.peers.Self())
}

// copies is how many copies a push waits for.
func (s *Sync) copies(holders int) int {
	if s.cfg.WriteCopies > 0 {
		return min(s.cfg.WriteCopies, max(holders, 1))
	}
	return holders/2 + 1
}

// chain is the order in which a blob travels: from its origin along the rendezvous order, each node fetching from the one
// before it while that one still receives.
func chain(b Blob, nodes []Node) []NodeID {
	ids := make([]NodeID, 0, len(nodes))
	for _, n := range nodes {
		ids = append(ids, n.ID)
	}
	order := Place(b.Digest, ids, 0)
	if i := slices.Index(order, b.Origin); i > 0 {
		order = slices.Insert(slices.Delete(order, i, i+1), 0, b.Origin)
	}
	return order
}
