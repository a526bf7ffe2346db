package fsm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
)

// million makes a state with a million tags on a hundred thousand manifests in a thousand repositories, by the commands
// themselves but in large transactions that aren't synced: what is measured is reading it.
func million(b *testing.B) string {
	path := filepath.Join(b.TempDir(), "s")
	s := open(b, path)
	configure(s)
	s.db.NoSync = true
	index := uint64(1)
	for r := range 1000 {
		repo := Repo(fmt.Sprintf("team/repo-%04d", r))
		commands := []Command{LinkBlob{Repo: repo, Digest: blobDigest(r), Size: 1, Origin: "n1"}}
		for m := range 100 {
			var tags []Tag
			for t := range 10 {
				tags = append(tags, Tag(fmt.Sprintf("v%04d", 10*m+t)))
			}
			subject := digest.FromString(fmt.Sprint(r, m))
			commands = append(commands, image(repo, []digest.Digest{blobDigest(r)}, subject, tags...))
		}
		var logs []*raft.Log
		for _, c := range commands {
			index++
			data, err := Encode(Identity{}, c)
			if err != nil {
				b.Fatal(err)
			}
			logs = append(logs, &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data})
		}
		s.ApplyBatch(logs)
	}
	if c, err := s.Counts(); err != nil || c.Tags != 1e6 {
		b.Fatal(c, err)
	}
	if err := errors.Join(s.db.Sync(), s.Close()); err != nil {
		b.Fatal(err)
	}
	return path
}

// BenchmarkMillionTags has the budgets of a registry with a million tags: a page in 10 ms at the 99th percentile, a start
// in 5 s, 100 MB of heap.
func BenchmarkMillionTags(b *testing.B) {
	path := million(b)
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			s, err := Open(Config{Path: path})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	before := heap()
	s := open(b, path)
	b.Run("tags", func(b *testing.B) {
		pages(b, func(repo, tag string) (int, error) {
			got, _, err := s.Tags(Repo(repo), tag, 100)
			return len(got), err
		})
		b.ReportMetric(max(heap()-before, 0)/1e6, "MB-heap")
	})
	b.Run("catalog", func(b *testing.B) {
		pages(b, func(repo, _ string) (int, error) {
			got, _, err := s.Repositories(repo, 100)
			return len(got), err
		})
	})
}

// pages reads pages from random places and reports the slowest hundredth.
func pages(b *testing.B, read func(repo, tag string) (int, error)) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var took []time.Duration
	for b.Loop() {
		repo, tag := fmt.Sprintf("team/repo-%04d", rnd.IntN(899)), fmt.Sprintf("v%04d", rnd.IntN(899))
		start := time.Now()
		if n, err := read(repo, tag); err != nil || n != 100 {
			b.Fatal(n, err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func BenchmarkApply(b *testing.B) {
	plain := func(c Command) Command { return c }
	for _, size := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("batch-%d", size), func(b *testing.B) { benchmarkApply(b, size, plain) })
	}
	b.Run("admitted-256", func(b *testing.B) { benchmarkApply(b, 256, func(c Command) Command { return Admitted{Command: c} }) })
}

func benchmarkApply(b *testing.B, size int, as func(Command) Command) {
	s := open(b, filepath.Join(b.TempDir(), "s"))
	configure(s)
	index, n := uint64(1), 0
	for b.Loop() {
		logs := make([]*raft.Log, size)
		for i := range logs {
			index++
			n++
			data, err := Encode(Identity{Node: "n", Epoch: 1, Seq: index, Done: index - 2}, as(LinkBlob{Repo: "a", Digest: blobDigest(n), Size: 1}))
			if err != nil {
				b.Fatal(err)
			}
			logs[i] = &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
		}
		s.ApplyBatch(logs)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "commands/s")
}
