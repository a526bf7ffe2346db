package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// referrer is a manifest that names another as its subject: by its own field, or because a client that doesn't trust the
// referrers API listed it in the fallback tag.
type referrer struct {
	_msgpack     struct{} `msgpack:",as_array"`
	MediaType    string
	Size         int64
	ArtifactType string
	Annotations  [][2]string // sorted: a map's order would differ between nodes
	Own, Listed  bool
}

func (c *change) refer(r Repo, subject digest.Digest, d Descriptor, listed bool) {
	k := key(string(r), string(subject), string(d.Digest))
	var rec referrer
	known := c.record(bucketReferrers, k, &rec)
	if known {
		c.del(bucketKinds, kindKey(r, subject, rec.ArtifactType, string(d.Digest)))
	}
	if !known || !rec.Own {
		rec.MediaType, rec.Size, rec.ArtifactType = d.MediaType, d.Size, d.ArtifactType
		rec.Annotations = nil
		for _, name := range slices.Sorted(maps.Keys(d.Annotations)) {
			rec.Annotations = append(rec.Annotations, [2]string{name, d.Annotations[name]})
		}
	}
	rec.Own, rec.Listed = rec.Own || !listed, rec.Listed || listed
	c.putRecord(bucketReferrers, k, &rec)
	c.put(bucketKinds, kindKey(r, subject, rec.ArtifactType, string(d.Digest)), nil)
}

// kindKey finds a subject's referrers of one artifact type in the digests' order. The type is hashed, since it may be any
// string; an empty digest gives the prefix.
func kindKey(r Repo, subject digest.Digest, artifactType, d string) []byte {
	sum := sha256.Sum256([]byte(artifactType))
	return append(append(prefix(string(r), string(subject)), sum[:]...), d...)
}

func (c *change) unrefer(r Repo, subject, d digest.Digest, listed bool) {
	k := key(string(r), string(subject), string(d))
	var rec referrer
	if !c.record(bucketReferrers, k, &rec) {
		return
	}
	rec.Own, rec.Listed = rec.Own && listed, rec.Listed && !listed
	if rec.Own || rec.Listed {
		c.putRecord(bucketReferrers, k, &rec)
		return
	}
	c.del(bucketReferrers, k)
	c.del(bucketKinds, kindKey(r, subject, rec.ArtifactType, string(d)))
}

// fallbackSubject gives the digest that a fallback tag is about (distribution spec, referrers tag schema).
func fallbackSubject(t Tag) (digest.Digest, bool) {
	algorithm, hex, found := strings.Cut(string(t), "-")
	if !found {
		return "", false
	}
	d, err := ParseDigest(algorithm + ":" + hex)
	return d, err == nil
}

func (c *change) fallback(r Repo, t Tag, p Parsed) {
	subject, ok := fallbackSubject(t)
	if !ok || p.MediaType != TypeOCIIndex {
		return
	}
	for _, d := range p.Manifests {
		c.refer(r, subject, d, true)
	}
}

func (c *change) unfallback(r Repo, t Tag, old digest.Digest) {
	subject, ok := fallbackSubject(t)
	if !ok {
		return
	}
	var m manifestFields
	body := c.get(bucketBodies, key(string(r), string(old)))
	if hasMoreObjects(body, maxObjects) || json.Unmarshal(body, &m) != nil { // it is no index
		return
	}
	for _, d := range m.Manifests {
		c.unrefer(r, subject, d.Digest, true)
	}
}

// Referrers lists at most n manifests that name the subject, after the given digest, in the digests' order; artifactType
// filters when it isn't empty. None is an empty list, also for a repository that doesn't exist.
func (s *State) Referrers(r Repo, subject digest.Digest, artifactType, after string, n int) ([]Descriptor, bool, error) {
	var out []Descriptor
	more := false
	err := s.view(func(tx *bolt.Tx) error {
		p, bucket := prefix(string(r), string(subject)), bucketReferrers
		if artifactType != "" {
			p, bucket = kindKey(r, subject, artifactType, ""), bucketKinds
		}
		cur := tx.Bucket(bucket).Cursor()
		for k, _ := cur.Seek(append(bytes.Clone(p), after...)); k != nil && bytes.HasPrefix(k, p); k, _ = cur.Next() {
			d := string(k[len(p):])
			// An index under a fallback tag may outlive what it lists.
			if d == after || tx.Bucket(bucketManifests).Get(key(string(r), d)) == nil {
				continue
			}
			if len(out) == n {
				more = true
				return nil
			}
			var rec referrer
			if err := decode(tx.Bucket(bucketReferrers).Get(key(string(r), string(subject), d)), &rec); err != nil {
				return err
			}
			out = append(out, rec.descriptor(digest.Digest(d)))
		}
		return nil
	})
	return out, more, err
}

func (r referrer) descriptor(d digest.Digest) Descriptor {
	out := Descriptor{MediaType: r.MediaType, Digest: d, Size: r.Size, ArtifactType: r.ArtifactType}
	if len(r.Annotations) > 0 {
		out.Annotations = make(map[string]string, len(r.Annotations))
		for _, a := range r.Annotations {
			out.Annotations[a[0]] = a[1]
		}
	}
	return out
}
