package fsm

import (
	"bytes"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// maxHistory is how many moves of a tag are kept.
const maxHistory = 100

// HistoryEntry is one move of a tag; an empty digest is its deletion.
type HistoryEntry struct {
	_msgpack struct{} `msgpack:",as_array"`
	Digest   digest.Digest
	Time     uint64 // ms since 1970, by the leader's clock
}

// When is the entry's time.
func (h HistoryEntry) When() time.Time { return time.UnixMilli(int64(h.Time)).UTC() }

// moveTag points a tag at a manifest of the repository.
func (c *change) moveTag(r Repo, t Tag, d digest.Digest, p Parsed) {
	k := key(string(r), string(t))
	old := digest.Digest(c.get(bucketTags, k))
	if old == d {
		return
	}
	if old == "" {
		c.counts.Tags++
		c.resize(r, func(n *repoRecord) { n.Tags++ })
	} else {
		c.del(bucketTagged, key(string(r), string(old), string(t)))
		c.unfallback(r, t, old)
	}
	c.put(bucketTags, k, []byte(d))
	c.put(bucketTagged, key(string(r), string(d), string(t)), nil)
	c.note(r, t, d)
	c.fallback(r, t, p)
}

// dropTag removes a tag that exists.
func (c *change) dropTag(r Repo, t Tag) {
	k := key(string(r), string(t))
	old := digest.Digest(c.get(bucketTags, k))
	c.unfallback(r, t, old)
	c.del(bucketTags, k)
	c.del(bucketTagged, key(string(r), string(old), string(t)))
	c.counts.Tags--
	c.resize(r, func(n *repoRecord) { n.Tags-- })
	c.note(r, t, "")
}

// note adds to the tag's history, newest first, and lets the oldest entry go.
func (c *change) note(r Repo, t Tag, d digest.Digest) {
	p := prefix(string(r), string(t))
	c.putRecord(bucketHistory, append(bytes.Clone(p), number(^c.index)...), &HistoryEntry{Digest: d, Time: c.now})
	if all := keysBelow(c.tx, bucketHistory, p, 0); len(all) > maxHistory {
		for _, k := range all[maxHistory:] {
			c.del(bucketHistory, append(bytes.Clone(p), k...))
		}
	}
}

func (d DeleteTag) apply(c *change) (Answer, error) {
	if !c.has(bucketTags, key(string(d.Repo), string(d.Tag))) {
		return nil, ErrManifestUnknown
	}
	c.dropTag(d.Repo, d.Tag)
	return DeleteAnswer{}, nil
}

// ResolveTag gives the digest that a tag points at.
func (s *State) ResolveTag(r Repo, t Tag) (digest.Digest, error) {
	var out digest.Digest
	err := s.view(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketTags).Get(key(string(r), string(t)))
		if v == nil {
			return fmt.Errorf("%w: tag %s in %s", ErrManifestUnknown, t, r)
		}
		out = digest.Digest(v)
		return nil
	})
	return out, err
}

// Tags lists at most n tags after the given one, in byte order, and whether there are more.
func (s *State) Tags(r Repo, after string, n int) ([]Tag, bool, error) {
	var out []Tag
	more := false
	err := s.view(func(tx *bolt.Tx) error {
		if !repoExists(tx, r) {
			return fmt.Errorf("%w: %s", ErrNameUnknown, r)
		}
		names, m := page(tx, bucketTags, prefix(string(r)), after, n)
		more = m
		for _, name := range names {
			out = append(out, Tag(name))
		}
		return nil
	})
	return out, more, err
}

// History gives at most n moves of a tag, newest first, also of one that was deleted.
func (s *State) History(r Repo, t Tag, n int) ([]HistoryEntry, error) {
	var out []HistoryEntry
	err := s.view(func(tx *bolt.Tx) error {
		p := prefix(string(r), string(t))
		cur := tx.Bucket(bucketHistory).Cursor()
		for k, v := cur.Seek(p); k != nil && bytes.HasPrefix(k, p) && len(out) < n; k, v = cur.Next() {
			var h HistoryEntry
			if err := decode(v, &h); err != nil {
				return err
			}
			out = append(out, h)
		}
		return nil
	})
	return out, err
}
