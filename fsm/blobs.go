package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Blob is what the state knows of a blob: never its bytes.
type Blob struct {
	Digest digest.Digest
	Size   int64
	Origin NodeID // who took the upload
	Since  uint64 // index at which the digest came to be wanted
}

type blobRecord struct {
	_msgpack struct{} `msgpack:",as_array"`
	Size     int64
	Origin   NodeID
	Since    uint64
	Links    uint64
}

func (l LinkBlob) apply(c *change) (Answer, error) {
	if err := checkNames(l.Repo, "", l.Digest); err != nil {
		return nil, err
	}
	var rec blobRecord
	known := c.record(bucketBlobs, []byte(l.Digest), &rec)
	if known && rec.Size != l.Size || l.Size < 0 {
		return nil, ErrSizeMismatch
	}
	rec.Size, rec.Origin = l.Size, l.Origin
	c.link(l.Repo, l.Digest, rec, known)
	return LinkAnswer{}, nil
}

func (m MountBlob) apply(c *change) (Answer, error) {
	if err := checkNames(m.Repo, "", m.Digest); err != nil {
		return nil, err
	}
	var rec blobRecord
	if !c.record(bucketBlobs, []byte(m.Digest), &rec) {
		return nil, ErrBlobUnknown
	}
	if m.From != "" && !c.has(bucketLinks, key(string(m.From), string(m.Digest))) {
		return nil, ErrBlobUnknown
	}
	c.link(m.Repo, m.Digest, rec, true)
	return LinkAnswer{}, nil
}

// link makes sure of the link and stores the record. A digest that nobody wanted is new to the feed.
func (c *change) link(r Repo, d digest.Digest, rec blobRecord, known bool) {
	if !known {
		rec.Since = c.index
		c.put(bucketFeed, feedKey(rec.Since, d), nil)
		c.counts.Blobs++
		c.counts.Bytes += rec.Size
	}
	k := key(string(r), string(d))
	if !c.has(bucketLinks, k) {
		c.put(bucketLinks, k, number(c.index))
		rec.Links++
		c.resize(r, func(n *repoRecord) { n.Links++ })
	}
	c.putRecord(bucketBlobs, []byte(d), &rec)
}

func (d DeleteBlob) apply(c *change) (Answer, error) {
	k := key(string(d.Repo), string(d.Digest))
	if !c.has(bucketLinks, k) {
		return nil, ErrBlobUnknown
	}
	if needed := keysBelow(c.tx, bucketNeeds, prefix(string(d.Repo), string(d.Digest)), 10); len(needed) > 0 {
		refused := &ReferencedError{}
		for _, m := range needed {
			refused.Manifests = append(refused.Manifests, digest.Digest(m))
		}
		return nil, refused
	}
	c.del(bucketLinks, k)
	c.resize(d.Repo, func(n *repoRecord) { n.Links-- })
	var rec blobRecord
	c.record(bucketBlobs, []byte(d.Digest), &rec)
	rec.Links--
	if rec.Links > 0 {
		c.putRecord(bucketBlobs, []byte(d.Digest), &rec)
		return DeleteAnswer{}, nil
	}
	c.del(bucketBlobs, []byte(d.Digest))
	c.del(bucketFeed, feedKey(rec.Since, d.Digest))
	c.counts.Blobs--
	c.counts.Bytes -= rec.Size
	return DeleteAnswer{}, nil
}

func feedKey(since uint64, d digest.Digest) []byte { return append(number(since), d...) }

// checkNames refuses what an API would have refused, since apply trusts nobody.
func checkNames(r Repo, t Tag, d digest.Digest) error {
	if _, err := ParseRepo(string(r)); err != nil {
		return err
	}
	if t != "" {
		if _, err := ParseTag(string(t)); err != nil {
			return err
		}
	}
	_, err := ParseDigest(string(d))
	return err
}

// Blob finds a blob that is linked in the repository.
func (s *State) Blob(r Repo, d digest.Digest) (Blob, error) {
	return s.blob(d, func(tx *bolt.Tx) bool { return tx.Bucket(bucketLinks).Get(key(string(r), string(d))) != nil })
}

// BlobRecord finds a blob that is linked anywhere.
func (s *State) BlobRecord(d digest.Digest) (Blob, error) {
	return s.blob(d, func(*bolt.Tx) bool { return true })
}

func (s *State) blob(d digest.Digest, linked func(*bolt.Tx) bool) (Blob, error) {
	var out Blob
	err := s.view(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketBlobs).Get([]byte(d))
		if v == nil || !linked(tx) {
			return fmt.Errorf("%w: %s", ErrBlobUnknown, d)
		}
		var err error
		out, err = blobOf(d, v)
		return err
	})
	return out, err
}

func blobOf(d digest.Digest, v []byte) (Blob, error) {
	var rec blobRecord
	err := decode(v, &rec)
	return Blob{Digest: d, Size: rec.Size, Origin: rec.Origin, Since: rec.Since}, err
}

// Wanted lists at most n blobs that came to be wanted at or after index since, in the order of (Since, Digest), beginning
// after the given digest within since, and whether there are more. Continue with the last one's Since and Digest.
func (s *State) Wanted(since uint64, after digest.Digest, n int) ([]Blob, bool, error) {
	var out []Blob
	more := false
	err := s.view(func(tx *bolt.Tx) error {
		from := feedKey(since, after)
		cur := tx.Bucket(bucketFeed).Cursor()
		for k, _ := cur.Seek(from); k != nil; k, _ = cur.Next() {
			if bytes.Equal(k, from) && after != "" {
				continue
			}
			if len(out) == n {
				more = true
				return nil
			}
			d := digest.Digest(k[8:])
			b, err := blobOf(d, tx.Bucket(bucketBlobs).Get([]byte(d)))
			if err != nil {
				return err
			}
			b.Since = binary.BigEndian.Uint64(k[:8])
			out = append(out, b)
		}
		return nil
	})
	return out, more, err
}
