package cluster

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkPropose measures commands a second through all three nodes with fsynced logs and the given number in flight.
func BenchmarkPropose(b *testing.B) {
	for _, inFlight := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			nodes := newHouse(b).formed(3)
			leader(b, nodes)
			inFlightly(b, inFlight, func(i int64) error { return nodes[i%3].put(fmt.Sprint(i%1000), "x") })
		})
	}
}

// BenchmarkReadIndex measures linearizable reads a second on a follower.
func BenchmarkReadIndex(b *testing.B) {
	for _, inFlight := range []int{1, 64} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			nodes := newHouse(b).formed(3)
			follower := others(nodes, leader(b, nodes))[0]
			inFlightly(b, inFlight, func(int64) error { return follower.cluster.ReadIndex(b.Context()) })
		})
	}
}

func inFlightly(b *testing.B, n int, do func(i int64) error) {
	var next atomic.Int64
	var all sync.WaitGroup
	b.ResetTimer()
	for range n {
		all.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}
