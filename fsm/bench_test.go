package fsm

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// million makes a state with a million tags, the quick way: what is measured is reading it.
func million(b *testing.B) string {
	path := filepath.Join(b.TempDir(), "s")
	s := open(b, path)
	configure(s)
	err := s.db.Update(func(tx *bolt.Tx) error {
		c := &change{tx: tx}
		d := []byte(digest.FromString("x"))
		for r := range 1000 {
			repo := fmt.Sprintf("team/repo-%04d", r)
			c.putRecord(bucketRepos, []byte(repo), &repoRecord{Tags: 1000})
			for t := range 1000 {
				c.put(bucketTags, key(repo, fmt.Sprintf("v%04d", t)), d)
			}
		}
		putNumber(tx, keyApplied, binary.MaxVarintLen64)
		return c.err
	})
	if err != nil {
		b.Fatal(err)
	}
	return path
}

func BenchmarkMillionTags(b *testing.B) {
	path := million(b)
	b.Run("open", func(b *testing.B) {
		other := filepath.Join(b.TempDir(), "copy")
		data, err := os.ReadFile(path)
		if err != nil || os.WriteFile(other, data, 0o600) != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			s, err := Open(Config{Path: other})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	other := filepath.Join(b.TempDir(), "pages")
	data, err := os.ReadFile(path)
	if err != nil || os.WriteFile(other, data, 0o600) != nil {
		b.Fatal(err)
	}
	s := open(b, other)
	b.Run("tags", func(b *testing.B) {
		for b.Loop() {
			if got, _, err := s.Tags("team/repo-0500", "v0500", 100); err != nil || len(got) != 100 {
				b.Fatal(len(got), err)
			}
		}
	})
	b.Run("catalog", func(b *testing.B) {
		for b.Loop() {
			if got, _, err := s.Repositories("team/repo-0500", 100); err != nil || len(got) != 100 {
				b.Fatal(len(got), err)
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	for _, size := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("batch-%d", size), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "s"))
			configure(s)
			index, n := uint64(1), 0
			for b.Loop() {
				logs := make([]*raft.Log, size)
				for i := range logs {
					index++
					n++
					data, err := Encode(Identity{Node: "n", Epoch: 1, Seq: index, Done: index - 2}, LinkBlob{Repo: "a", Digest: blobDigest(n), Size: 1})
					if err != nil {
						b.Fatal(err)
					}
					logs[i] = &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
				}
				s.ApplyBatch(logs)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "commands/s")
		})
	}
}
