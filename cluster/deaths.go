package cluster

import (
	"sync"
	"time"
)

// deaths remembers since when members have been silent, since when there has been no leader, and which term is settled.
type deaths struct {
	mu          sync.Mutex
	gone        map[NodeID]time.Time
	well        map[NodeID]time.Time
	noLeader    time.Time
	settledTerm uint64
}

func newDeaths(now time.Time) *deaths {
	return &deaths{gone: make(map[NodeID]time.Time), well: make(map[NodeID]time.Time), noLeader: now}
}

// lostLeader notes that nobody is known to lead any more.
func (d *deaths) lostLeader(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noLeader = now
}

// leaderless is for how long no leader has been known, where none is.
func (d *deaths) leaderless(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return now.Sub(d.noLeader)
}

func (d *deaths) settled(term uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settledTerm == term
}

func (d *deaths) settle(term uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settledTerm = max(d.settledTerm, term)
}

// see notes whether a member is well, and gives for how long it has been as it is.
func (d *deaths) see(id NodeID, well bool, now time.Time) (wellFor, goneFor time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	on, off := d.well, d.gone
	if !well {
		on, off = d.gone, d.well
	}
	delete(off, id)
	since, ok := on[id]
	if !ok {
		on[id], since = now, now
	}
	if well {
		return now.Sub(since), 0
	}
	return 0, now.Sub(since)
}

// forget starts anew: a new leader has seen nothing yet.
func (d *deaths) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.gone)
	clear(d.well)
}
