package fsm

import (
	"bytes"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// maxMissing is how many digests a refusal names: it is remembered.
const maxMissing = 100

// Manifest is a stored manifest, its body exactly as pushed.
type Manifest struct {
	ManifestInfo
	Body []byte
}

// ManifestInfo is a manifest without its body.
type ManifestInfo struct {
	Digest    digest.Digest
	MediaType string
	Size      int64
	Created   time.Time
}

type manifestRecord struct {
	_msgpack  struct{} `msgpack:",as_array"`
	MediaType string
	Size      int64
	Created   uint64
	Subject   digest.Digest
	Needs     []digest.Digest
}

func (p PutManifest) apply(c *change) (Answer, error) {
	if err := checkNames(p.Repo, "", p.Digest); err != nil {
		return nil, err
	}
	for _, t := range p.Tags {
		if _, err := ParseTag(string(t)); err != nil {
			return nil, err
		}
	}
	if p.Digest.Algorithm().FromBytes(p.Body) != p.Digest {
		return nil, ErrDigestInvalid
	}
	parsed, err := ParseManifest(p.MediaType, p.Body)
	if err != nil {
		return nil, err
	}
	if missing := c.missing(p.Repo, parsed); len(missing) > 0 {
		return nil, &MissingError{Digests: missing[:min(len(missing), maxMissing)]}
	}
	if err := c.condition(p); err != nil {
		return nil, err
	}
	c.putManifest(p, parsed)
	for _, t := range p.Tags {
		c.moveTag(p.Repo, t, p.Digest, parsed)
	}
	return PutManifestAnswer{Digest: p.Digest, Subject: parsed.Subject}, nil
}

// missing lists what the manifest requires and the repository hasn't, each once, in the manifest's order. A manifest of
// 4 MiB can name 50,000.
func (c *change) missing(r Repo, p Parsed) []digest.Digest {
	var out []digest.Digest
	seen := make(map[digest.Digest]bool)
	add := func(bucket []byte, ds []Descriptor) {
		for _, d := range ds {
			if !seen[d.Digest] && !c.has(bucket, key(string(r), string(d.Digest))) {
				out = append(out, d.Digest)
			}
			seen[d.Digest] = true
		}
	}
	add(bucketLinks, p.Blobs)
	add(bucketManifests, p.Manifests)
	return out
}

func (c *change) condition(p PutManifest) error {
	if p.If == (Condition{}) || len(p.Tags) == 0 {
		return nil
	}
	current := c.get(bucketTags, key(string(p.Repo), string(p.Tags[0])))
	if p.If.Absent && current != nil || p.If.Digest != "" && string(current) != string(p.If.Digest) {
		return ErrConditionFailed
	}
	return nil
}

func (c *change) putManifest(p PutManifest, parsed Parsed) {
	k := key(string(p.Repo), string(p.Digest))
	var old manifestRecord
	known := c.record(bucketManifests, k, &old)
	if known && old.MediaType == parsed.MediaType {
		return
	}
	rec := manifestRecord{MediaType: parsed.MediaType, Size: parsed.Size, Created: c.now, Subject: parsed.Subject}
	// Bytes that don't say what they are may come again under another type, and mean something else from then on.
	var tags []string
	if known {
		rec.Created = old.Created
		tags = keysBelow(c.tx, bucketTagged, prefix(string(p.Repo), string(p.Digest)), 0)
		for _, t := range tags {
			c.unfallback(p.Repo, Tag(t), p.Digest)
		}
		c.unmean(p.Repo, p.Digest, old)
	} else {
		c.put(bucketBodies, k, p.Body)
		c.counts.Manifests++
		c.resize(p.Repo, func(n *repoRecord) { n.Manifests++ })
	}
	for _, d := range parsed.Blobs {
		rec.Needs = append(rec.Needs, d.Digest)
		c.put(bucketNeeds, key(string(p.Repo), string(d.Digest), string(p.Digest)), nil)
	}
	c.putRecord(bucketManifests, k, &rec)
	if parsed.Subject != "" {
		c.refer(p.Repo, parsed.Subject, Descriptor{
			MediaType: parsed.MediaType, Digest: p.Digest, Size: parsed.Size,
			ArtifactType: parsed.ArtifactType, Annotations: parsed.Annotations,
		}, false)
	}
	for _, t := range tags {
		c.fallback(p.Repo, Tag(t), parsed)
	}
}

// unmean takes back what a manifest's content says: which blobs it needs, and what it refers to.
func (c *change) unmean(r Repo, d digest.Digest, rec manifestRecord) {
	for _, b := range rec.Needs {
		c.del(bucketNeeds, key(string(r), string(b), string(d)))
	}
	if rec.Subject != "" {
		c.unrefer(r, rec.Subject, d, false)
	}
}

func (d DeleteManifest) apply(c *change) (Answer, error) {
	k := key(string(d.Repo), string(d.Digest))
	var rec manifestRecord
	if !c.record(bucketManifests, k, &rec) {
		return nil, ErrManifestUnknown
	}
	for _, t := range keysBelow(c.tx, bucketTagged, prefix(string(d.Repo), string(d.Digest)), 0) {
		c.dropTag(d.Repo, Tag(t))
	}
	c.unmean(d.Repo, d.Digest, rec)
	c.del(bucketManifests, k)
	c.del(bucketBodies, k)
	c.counts.Manifests--
	c.resize(d.Repo, func(n *repoRecord) { n.Manifests-- })
	return DeleteAnswer{}, nil
}

// Manifest gives a manifest with its body.
func (s *State) Manifest(r Repo, d digest.Digest) (Manifest, error) {
	var out Manifest
	err := s.view(func(tx *bolt.Tx) error {
		info, err := manifestInfo(tx, r, d)
		if err != nil {
			return err
		}
		out = Manifest{ManifestInfo: info, Body: bytes.Clone(tx.Bucket(bucketBodies).Get(key(string(r), string(d))))}
		return nil
	})
	return out, err
}

// StatManifest gives a manifest without its body.
func (s *State) StatManifest(r Repo, d digest.Digest) (ManifestInfo, error) {
	var out ManifestInfo
	err := s.view(func(tx *bolt.Tx) error {
		var err error
		out, err = manifestInfo(tx, r, d)
		return err
	})
	return out, err
}

func manifestInfo(tx *bolt.Tx, r Repo, d digest.Digest) (ManifestInfo, error) {
	v := tx.Bucket(bucketManifests).Get(key(string(r), string(d)))
	if v == nil {
		return ManifestInfo{}, fmt.Errorf("%w: %s in %s", ErrManifestUnknown, d, r)
	}
	var rec manifestRecord
	if err := decode(v, &rec); err != nil {
		return ManifestInfo{}, err
	}
	return ManifestInfo{Digest: d, MediaType: rec.MediaType, Size: rec.Size, Created: time.UnixMilli(int64(rec.Created)).UTC()}, nil
}

// Missing lists what a parsed manifest requires and the repository doesn't have in this node's state.
func (s *State) Missing(r Repo, p Parsed) ([]digest.Digest, error) {
	var out []digest.Digest
	err := s.view(func(tx *bolt.Tx) error {
		out = (&change{tx: tx}).missing(r, p)
		return nil
	})
	return out, err
}
