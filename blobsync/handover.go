package blobsync

import (
	"context"
	"errors"
	"slices"

	"github.com/opencontainers/go-digest"
)

// handOver lets go of what this node holds without being meant to, once those that are have it and promise to keep it.
func (s *Sync) handOver(ctx context.Context) {
	if s.cfg.Replicas == 0 {
		return
	}
	s.mu.Lock()
	list := make([]Blob, 0, len(s.surplus))
	for _, b := range s.surplus {
		list = append(list, b)
	}
	s.mu.Unlock()
	for len(list) > 0 && ctx.Err() == nil {
		n := min(len(list), pageSize)
		s.handOverSome(ctx, list[:n])
		list = list[n:]
	}
}

func (s *Sync) handOverSome(ctx context.Context, list []Blob) {
	nodes := s.peers.Nodes()
	need := make(map[digest.Digest]int, len(list))
	asks := make(map[NodeID][]Blob)
	for _, b := range list {
		_, err := s.index.Blob(b.Digest)
		if errors.Is(err, ErrUnwanted) || s.mine(b, nodes) || !s.has(b) {
			s.noSurplus(b.Digest)
			continue
		}
		holders := s.holders(b.Digest, nodes)
		need[b.Digest] = len(holders)
		for _, id := range holders {
			asks[id] = append(asks[id], b)
		}
	}
	kept := make(map[digest.Digest]int, len(list))
	for id, blobs := range asks {
		promised, err := s.askList(ctx, id, "keeps", blobs)
		if err != nil {
			s.cfg.Logger.Debug("a node can't say that it keeps what it is to hold", "peer", id, "err", err)
		}
		slices.Sort(promised)
		for _, d := range slices.Compact(promised) {
			kept[d]++
		}
	}
	for _, b := range list {
		if n := need[b.Digest]; n > 0 && kept[b.Digest] == n {
			s.letGo(b)
		}
	}
}

// letGo moves a blob to the trash, unless this node is to hold it after all. A promise to keep it is made under the same
// lock: else two nodes that see two memberships could each let go because of the other.
func (s *Sync) letGo(b Blob) {
	s.letting.Lock()
	defer s.letting.Unlock()
	nodes := s.peers.Nodes()
	if len(nodes) == 0 || s.mine(b, nodes) {
		return // where nobody is known, the state can't be read
	}
	if err := s.store.Release(b.Digest); err != nil {
		s.cfg.Logger.Warn("can't let go of a blob", "digest", b.Digest, "err", err)
		return
	}
	s.noSurplus(b.Digest)
}

// keeps gives those of the blobs that this node has and is to hold.
func (s *Sync) keeps(blobs []Blob) []digest.Digest {
	s.letting.Lock()
	defer s.letting.Unlock()
	nodes := s.peers.Nodes()
	out := []digest.Digest{}
	for _, b := range blobs {
		if s.mine(b, nodes) && s.has(b) {
			out = append(out, b.Digest)
		}
	}
	return out
}

func (s *Sync) noSurplus(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.surplus, d)
}
