package fsm

import (
	"encoding/binary"
	"strings"

	"github.com/vmihailenco/msgpack/v5"
	bolt "go.etcd.io/bbolt"
)

// The layout of the file. Parts of a key are separated by a zero byte, which no name or digest contains, so ranges are in
// the order of their strings.
var (
	bucketMeta       = []byte("meta")
	bucketRepos      = []byte("repos")      // repo → repoRecord
	bucketManifests  = []byte("manifests")  // repo, digest → manifestRecord
	bucketBodies     = []byte("bodies")     // repo, digest → body
	bucketTags       = []byte("tags")       // repo, tag → digest
	bucketTagged     = []byte("tagged")     // repo, digest, tag → nothing
	bucketHistory    = []byte("history")    // repo, tag, ^index → HistoryEntry
	bucketBlobs      = []byte("blobs")      // digest → blobRecord
	bucketLinks      = []byte("links")      // repo, digest → index of the link
	bucketNeeds      = []byte("needs")      // repo, child digest, manifest digest → nothing
	bucketReferrers  = []byte("referrers")  // repo, subject, digest → referrer
	bucketKinds      = []byte("kinds")      // repo, subject, hash of the artifact type, digest → nothing
	bucketFeed       = []byte("feed")       // index, digest → nothing
	bucketNodes      = []byte("nodes")      // node → Node
	bucketProposers  = []byte("proposers")  // node → proposer
	bucketAnswers    = []byte("answers")    // node, epoch+seq → answer
	bucketInvites    = []byte("invites")    // hash → expiry in ms
	bucketSettings   = []byte("settings")   // key → value
	bucketPrincipals = []byte("principals") // name → Principal
	bucketGrants     = []byte("grants")     // subject, right, pattern → Grant
	bucketDocuments  = []byte("documents")  // kind, name → Document

	buckets = [][]byte{
		bucketMeta, bucketRepos, bucketManifests, bucketBodies, bucketTags, bucketTagged, bucketHistory, bucketBlobs,
		bucketLinks, bucketNeeds, bucketReferrers, bucketKinds, bucketFeed, bucketNodes, bucketProposers, bucketAnswers, bucketInvites,
		bucketSettings, bucketPrincipals, bucketGrants, bucketDocuments,
	}

	keyApplied       = []byte("applied")
	keyTerm          = []byte("term")
	keyTime          = []byte("time")
	keyLevel         = []byte("level") // the highest of the commands that made the file
	keyConfiguration = []byte("configuration")
	keyCounts        = []byte("counts")
)

const separator = "\x00"

func key(parts ...string) []byte { return []byte(strings.Join(parts, separator)) }

// prefix is the start of every key below the parts.
func prefix(parts ...string) []byte { return []byte(strings.Join(parts, separator) + separator) }

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func readNumber(tx *bolt.Tx, k []byte) uint64 {
	if v := tx.Bucket(bucketMeta).Get(k); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func putNumber(tx *bolt.Tx, k []byte, n uint64) { _ = tx.Bucket(bucketMeta).Put(k, number(n)) }

// change is one batch on its way into the file. The first failed write is kept and ends the batch.
type change struct {
	tx     *bolt.Tx
	index  uint64
	now    uint64 // the state's time, ms since 1970
	level  uint64 // the highest command level so far
	counts Counts
	err    error
}

// Counts are the sizes that pages and metrics show; they are kept, not computed.
type Counts struct {
	_msgpack                             struct{} `msgpack:",as_array"`
	Repositories, Manifests, Tags, Blobs uint64
	Bytes                                int64
}

func (c *change) load() {
	c.now, c.level = readNumber(c.tx, keyTime), readNumber(c.tx, keyLevel)
	if v := c.tx.Bucket(bucketMeta).Get(keyCounts); v != nil {
		c.err = decode(v, &c.counts)
	}
}

func (c *change) store() error {
	putNumber(c.tx, keyTime, c.now)
	putNumber(c.tx, keyLevel, c.level)
	c.putRecord(bucketMeta, keyCounts, &c.counts)
	return c.err
}

func (c *change) get(bucket, k []byte) []byte { return c.tx.Bucket(bucket).Get(k) }

func (c *change) has(bucket, k []byte) bool { return c.get(bucket, k) != nil }

func (c *change) put(bucket, k, v []byte) {
	if err := c.tx.Bucket(bucket).Put(k, v); err != nil && c.err == nil {
		c.err = err
	}
}

func (c *change) putRecord(bucket, k []byte, v any) {
	data, err := msgpack.Marshal(v)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.put(bucket, k, data)
}

func (c *change) record(bucket, k []byte, v any) bool {
	data := c.get(bucket, k)
	if data == nil {
		return false
	}
	if err := decode(data, v); err != nil && c.err == nil {
		c.err = err
	}
	return true
}

func (c *change) del(bucket, k []byte) {
	if err := c.tx.Bucket(bucket).Delete(k); err != nil && c.err == nil {
		c.err = err
	}
}

// keysBelow copies the rests of the keys that begin with p, at most limit of them (0: all).
func keysBelow(tx *bolt.Tx, bucket, p []byte, limit int) []string {
	var out []string
	cur := tx.Bucket(bucket).Cursor()
	for k, _ := cur.Seek(p); k != nil && strings.HasPrefix(string(k), string(p)); k, _ = cur.Next() {
		out = append(out, string(k[len(p):]))
		if limit > 0 && len(out) == limit {
			break
		}
	}
	return out
}
