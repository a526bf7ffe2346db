package blobsync

import (
	"container/heap"
	"time"

	"github.com/opencontainers/go-digest"
)

// pending is a blob that this node should have and hasn't.
type pending struct {
	blob  Blob
	since time.Time
	next  time.Time // when it is tried again
	pause time.Duration
}

// queue is what is missing: ready in the order of size, or pausing in the order of time. One that is being fetched is in
// neither pile. Sync's lock guards it.
type queue struct {
	all            map[digest.Digest]*pending
	ready, pausing pile
}

func newQueue() queue {
	return queue{
		all:     make(map[digest.Digest]*pending),
		ready:   pile{less: func(a, b *pending) bool { return a.blob.Size < b.blob.Size }},
		pausing: pile{less: func(a, b *pending) bool { return a.next.Before(b.next) }},
	}
}

// add puts a blob on the list, once.
func (q *queue) add(b Blob, now time.Time) bool {
	if q.all[b.Digest] != nil {
		return false
	}
	p := &pending{blob: b, since: now, pause: firstPause}
	q.all[b.Digest] = p
	heap.Push(&q.ready, p)
	return true
}

// take gives the smallest blob whose time has come, or says how long nothing is to do.
func (q *queue) take(now time.Time) (*pending, time.Duration) {
	for len(q.pausing.items) > 0 && !q.pausing.items[0].next.After(now) {
		heap.Push(&q.ready, heap.Pop(&q.pausing))
	}
	if len(q.ready.items) > 0 {
		return heap.Pop(&q.ready).(*pending), 0
	}
	if len(q.pausing.items) > 0 {
		return nil, min(q.pausing.items[0].next.Sub(now), time.Minute)
	}
	return nil, time.Minute
}

// again puts back what take gave, for after its pause.
func (q *queue) again(p *pending, now time.Time) {
	p.next = now.Add(p.pause)
	p.pause = min(2*p.pause, lastPause)
	heap.Push(&q.pausing, p)
}

func (q *queue) done(p *pending) { delete(q.all, p.blob.Digest) }

// pile is a heap.
type pile struct {
	items []*pending
	less  func(a, b *pending) bool
}

func (p *pile) Len() int           { return len(p.items) }
func (p *pile) Less(i, j int) bool { return p.less(p.items[i], p.items[j]) }
func (p *pile) Swap(i, j int)      { p.items[i], p.items[j] = p.items[j], p.items[i] }
func (p *pile) Push(x any)         { p.items = append(p.items, x.(*pending)) }

func (p *pile) Pop() any {
	last := p.items[len(p.items)-1]
	p.items[len(p.items)-1] = nil
	p.items = p.items[:len(p.items)-1]
	return last
}
