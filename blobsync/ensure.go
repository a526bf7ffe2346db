package blobsync

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// ensureAtOnce bounds the fetches that pushes wait for, all pushes together.
const ensureAtOnce = 64

// Ensure returns once every blob has as many verified, durable copies as a push must have, on nodes that are to hold it. It
// asks each peer once, and again when one breaks off, joins fetches under way, and needs no answer of a dead peer while the
// others suffice. A *ShortError after the time that the configuration gives.
func (s *Sync) Ensure(ctx context.Context, blobs []Blob) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.EnsureTimeout)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	nodes := s.peers.Nodes()
	need := make(map[digest.Digest]int, len(blobs))
	have := make(map[digest.Digest]int, len(blobs))
	lists := make(map[NodeID][]Blob)
	for _, b := range blobs {
		if _, twice := need[b.Digest]; twice {
			continue
		}
		holders := s.holders(b.Digest, nodes)
		need[b.Digest] = s.copies(len(holders))
		for _, id := range holders {
			lists[id] = append(lists[id], b)
		}
	}
	copies := make(chan digest.Digest, 64)
	for id, list := range lists {
		asked.Go(func() { s.ensureOn(ctx, id, list, copies) })
	}
	short := len(need)
	for short > 0 {
		select {
		case d := <-copies:
			if have[d]++; have[d] == need[d] {
				short--
			}
		case <-ctx.Done():
			out := &ShortError{}
			for d, n := range need {
				if have[d] < n {
					out.Digests = append(out.Digests, d)
					out.Need = max(out.Need, n)
				}
			}
			return out
		}
	}
	return nil
}

// ensureOn reports each blob of the list once, as the node comes to have it. What fails is tried again until ctx ends.
func (s *Sync) ensureOn(ctx context.Context, id NodeID, list []Blob, copies chan<- digest.Digest) {
	left := make(map[digest.Digest]bool, len(list))
	for _, b := range list {
		left[b.Digest] = true
	}
	report := func(d digest.Digest) {
		if !left[d] {
			return // a node is one copy, however often it says so
		}
		delete(left, d)
		select {
		case copies <- d:
		case <-ctx.Done():
		}
	}
	for pause := firstPause; ; pause = min(2*pause, lastEnsurePause) {
		if id == s.peers.Self() {
			s.ensureHere(ctx, list, report)
		} else if err := s.ensureThere(ctx, id, list, report); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Debug("a node can't say that it has what was pushed", "peer", id, "err", err)
		}
		list = slices.DeleteFunc(list, func(b Blob) bool { return !left[b.Digest] })
		if len(list) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// ensureHere fetches the list, the smallest first, and tells of each when it is here.
func (s *Sync) ensureHere(ctx context.Context, list []Blob, report func(digest.Digest)) {
	var mu sync.Mutex
	var work sync.WaitGroup
	defer work.Wait()
	tell := func(d digest.Digest) {
		mu.Lock()
		defer mu.Unlock()
		report(d)
	}
	for _, b := range slices.SortedFunc(slices.Values(list), func(a, b Blob) int { return cmp.Compare(a.Size, b.Size) }) {
		if s.has(b) {
			tell(b.Digest)
			continue
		}
		f, leave := s.underWay(b.Digest), func() {}
		if f == nil {
			select {
			case s.hurried <- struct{}{}:
				leave = func() { <-s.hurried }
			case <-ctx.Done():
				return
			}
		}
		work.Go(func() {
			err := s.fetchNow(ctx, b, f)
			leave()
			if err == nil {
				tell(b.Digest)
			}
		})
	}
}

// fetchNow waits for a fetch, one under way or a new one, that goes before those that nobody waits for.
func (s *Sync) fetchNow(ctx context.Context, b Blob, f *flight) error {
	if f == nil {
		if s.has(b) {
			return nil
		}
		var err error
		if f, err = s.board(b); err != nil {
			return err
		}
	}
	f.urgent.Store(true)
	return f.wait(ctx)
}

func (s *Sync) ensureThere(ctx context.Context, id NodeID, list []Blob, report func(digest.Digest)) error {
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://%s/blobs/ensure", id), bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := s.peers.Transport().RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		report(digest.Digest(lines.Text()))
	}
	return lines.Err()
}

// OnlyOn gives blobs that no other node has, at most limit of them, and how many there are. Nodes that don't answer count
// as having nothing.
func (s *Sync) OnlyOn(ctx context.Context, id NodeID, limit int) ([]digest.Digest, int, error) {
	var out []digest.Digest
	total := 0
	since, after := uint64(0), digest.Digest("")
	for {
		page, more, err := s.index.Wanted(since, after, pageSize)
		if err != nil {
			return nil, 0, err
		}
		if len(page) > 0 {
			since, after = page[len(page)-1].Since, page[len(page)-1].Digest
		}
		left, err := s.unheld(ctx, id, page)
		if err != nil {
			return nil, 0, err
		}
		total += len(left)
		for _, b := range left {
			if len(out) < limit {
				out = append(out, b.Digest)
			}
		}
		if !more {
			return out, total, ctx.Err()
		}
	}
}

// unheld leaves what no node but id has.
func (s *Sync) unheld(ctx context.Context, id NodeID, left []Blob) ([]Blob, error) {
	for _, n := range s.peers.Nodes() {
		if n.ID == id || len(left) == 0 {
			continue
		}
		have, err := s.askHave(ctx, n.ID, left)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			continue
		}
		left = slices.DeleteFunc(slices.Clone(left), func(b Blob) bool { return slices.Contains(have, b.Digest) })
	}
	return left, nil
}

// askHave gives those of the blobs that a node has on its disk.
func (s *Sync) askHave(ctx context.Context, id NodeID, blobs []Blob) ([]digest.Digest, error) {
	if id == s.peers.Self() {
		return s.have(blobs), nil
	}
	return s.askList(ctx, id, "has", blobs)
}

// askList asks a node for those of the blobs of which something is true there.
func (s *Sync) askList(ctx context.Context, id NodeID, what string, blobs []Blob) ([]digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.IdleTimeout)
	defer cancel()
	data, err := json.Marshal(blobs)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://%s/blobs/%s", id, what), bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	resp, err := s.peers.Transport().RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New("answered " + resp.Status)
	}
	var out []digest.Digest
	return out, json.NewDecoder(io.LimitReader(resp.Body, maxList)).Decode(&out)
}

func (s *Sync) have(blobs []Blob) []digest.Digest {
	out := []digest.Digest{}
	for _, b := range blobs {
		if s.has(b) {
			out = append(out, b.Digest)
		}
	}
	return out
}
