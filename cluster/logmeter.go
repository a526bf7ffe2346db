package cluster

import (
	"context"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// logMeter stands before the state and counts the bytes of what is applied, so that the log behind it can be bounded by
// bytes: with manifests of 4 MiB a hundred thousand entries would be 400 GB. The size of the log's file says nothing, since
// it never shrinks. What a former life left in the log is counted when it is opened.
type logMeter struct {
	State

	mu    sync.Mutex
	last  uint64 // newest entry that was counted
	total int64
	marks []mark // one for about every markBytes
}

type mark struct {
	index uint64 // up to and with this entry
	total int64  // this many bytes
}

const markBytes = 64 << 10

// ApplyBatch counts and passes on.
func (m *logMeter) ApplyBatch(logs []*raft.Log) []any {
	answers := m.State.ApplyBatch(logs)
	for _, l := range logs {
		m.note(l.Index, len(l.Data))
	}
	return answers
}

// note counts an entry, once: after a start Raft applies again what is in the log.
func (m *logMeter) note(index uint64, size int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.last {
		return
	}
	m.last = index
	m.total += int64(size)
	if n := len(m.marks); n == 0 || m.total-m.marks[n-1].total >= markBytes {
		m.marks = append(m.marks, mark{index, m.total})
	}
}

// Apply counts and passes on.
func (m *logMeter) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// measured is how many bytes were counted so far.
func (m *logMeter) measured() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// keep is how many entries before last have about the given number of bytes; marks before them are forgotten.
func (m *logMeter) keep(last uint64, bytes int64) (entries uint64, all bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := sort.Search(len(m.marks), func(i int) bool { return m.marks[i].total > m.total-bytes })
	if i == 0 || i == len(m.marks) {
		return 0, true
	}
	m.marks = append(m.marks[:0], m.marks[i-1:]...)
	if from := m.marks[0].index; from < last {
		return last - from, false
	}
	return 1, false
}

// watchLog keeps the log behind the state within its bytes, and takes a snapshot, which only cuts the log, when that many
// bytes came since the last one however few entries they are.
func (c *Cluster) watchLog(ctx context.Context) error {
	tick := time.NewTicker(max(c.cfg.SnapshotInterval/10, 50*time.Millisecond))
	defer tick.Stop()
	trailing, snapshotAt := c.cfg.TrailingLogs, int64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		total := c.meter.measured()
		keep, all := c.meter.keep(c.raft.LastIndex(), c.cfg.TrailingBytes)
		if keep = min(keep, c.cfg.TrailingLogs); all {
			keep = c.cfg.TrailingLogs
		}
		if keep != trailing {
			trailing = keep
			c.keepTrailing(keep)
		}
		if total-snapshotAt > c.cfg.TrailingBytes/4 {
			snapshotAt = total
			if err := c.tasks.await(ctx, c.raft.Snapshot()); err != nil {
				c.cfg.Logger.Debug("the log isn't cut yet", "err", err)
			}
		}
	}
}

func (c *Cluster) keepTrailing(entries uint64) {
	cfg := c.raft.ReloadableConfig()
	cfg.TrailingLogs = entries
	if err := c.raft.ReloadConfig(cfg); err != nil {
		c.cfg.Logger.Warn("can't change how much log is kept", "err", err)
	}
}
