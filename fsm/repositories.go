package fsm

import (
	"bytes"

	bolt "go.etcd.io/bbolt"
)

// repoRecord counts what a repository holds. A repository exists while any count is above zero.
type repoRecord struct {
	_msgpack               struct{} `msgpack:",as_array"`
	Manifests, Tags, Links uint64
}

// resize changes a repository's counts, and makes or removes its record.
func (c *change) resize(r Repo, fn func(*repoRecord)) {
	var rec repoRecord
	if !c.record(bucketRepos, []byte(r), &rec) {
		c.counts.Repositories++
	}
	fn(&rec)
	if rec == (repoRecord{}) {
		c.del(bucketRepos, []byte(r))
		c.counts.Repositories--
		return
	}
	c.putRecord(bucketRepos, []byte(r), &rec)
}

// page collects the rests of at most n keys below p that come after `after`, and whether there are more.
func page(tx *bolt.Tx, bucket, p []byte, after string, n int) ([]string, bool) {
	cur := tx.Bucket(bucket).Cursor()
	from := append(bytes.Clone(p), after...)
	k, _ := cur.Seek(from)
	if after != "" && bytes.Equal(k, from) {
		k, _ = cur.Next()
	}
	var out []string
	for ; k != nil && bytes.HasPrefix(k, p); k, _ = cur.Next() {
		if len(out) == n {
			return out, true
		}
		out = append(out, string(k[len(p):]))
	}
	return out, false
}

// Repositories lists at most n names after the given one, in byte order, and whether there are more.
func (s *State) Repositories(after string, n int) ([]Repo, bool, error) {
	var out []Repo
	var more bool
	err := s.view(func(tx *bolt.Tx) error {
		names, m := page(tx, bucketRepos, nil, after, n)
		more = m
		for _, name := range names {
			out = append(out, Repo(name))
		}
		return nil
	})
	return out, more, err
}

// Counts gives the sizes of the whole registry.
func (s *State) Counts() (Counts, error) {
	var out Counts
	err := s.view(func(tx *bolt.Tx) error {
		if v := tx.Bucket(bucketMeta).Get(keyCounts); v != nil {
			return decode(v, &out)
		}
		return nil
	})
	return out, err
}

func repoExists(tx *bolt.Tx, r Repo) bool { return tx.Bucket(bucketRepos).Get([]byte(r)) != nil }
