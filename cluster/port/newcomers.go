package port

import (
	"net"
	"slices"
	"sync"
)

// Newcomers are connections that haven't shown yet what they come for. Their number is bounded, and one too many ends the oldest:
// who means it takes milliseconds, and must not wait for strangers who say nothing.
type Newcomers struct {
	limit int

	mu    sync.Mutex
	conns []net.Conn // the oldest first
}

// NewNewcomers makes room for so many.
func NewNewcomers(limit int) *Newcomers { return &Newcomers{limit: limit} }

// Expect notes a connection.
func (n *Newcomers) Expect(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.conns) == n.limit {
		_ = n.conns[0].Close()
		n.conns = n.conns[1:]
	}
	n.conns = append(n.conns, c)
}

// Shown notes that a connection is none of them any more. It is false for one that was ended for another.
func (n *Newcomers) Shown(c net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.Index(n.conns, c)
	if i < 0 {
		return false
	}
	n.conns = slices.Delete(n.conns, i, i+1)
	return true
}

func (n *Newcomers) all() []net.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.conns)
}
