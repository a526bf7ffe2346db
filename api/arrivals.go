package api

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// maxArrivals is how many connections may have asked nothing yet: their handshake is under way, or their first header. Each costs
// about 14 KiB.
const maxArrivals = 2048

// arrivals are the connections that have asked nothing yet. One too many ends the oldest: a client's handshake takes
// milliseconds, and must not wait for strangers who say nothing. Those have a deadline, too, but a new one comes with each.
type arrivals struct {
	limit int

	mu    sync.Mutex
	open  *list.List // of net.Conn, the oldest first
	where map[net.Conn]*list.Element
}

func newArrivals(limit int) *arrivals {
	return &arrivals{limit: limit, open: list.New(), where: make(map[net.Conn]*list.Element)}
}

type arrivalKey struct{}

// came notes a connection, for the context of its requests.
func (a *arrivals) came(ctx context.Context, c net.Conn) context.Context {
	a.add(c)
	return context.WithValue(ctx, arrivalKey{}, c)
}

func (a *arrivals) add(c net.Conn) {
	a.mu.Lock()
	a.forget(c)
	var oldest net.Conn
	if a.open.Len() == a.limit {
		oldest = a.open.Front().Value.(net.Conn)
		a.forget(oldest)
	}
	a.where[c] = a.open.PushBack(c)
	a.mu.Unlock()
	if t, ok := oldest.(*tls.Conn); ok {
		oldest = t.NetConn() // a TLS goodbye could wait for who is to go
	}
	if oldest != nil {
		_ = oldest.Close()
	}
}

// gone forgets a connection that has asked something, or ended.
func (a *arrivals) gone(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forget(c)
}

func (a *arrivals) forget(c net.Conn) {
	if e, ok := a.where[c]; ok {
		a.open.Remove(e)
		delete(a.where, c)
	}
}

// noting makes the first request on a connection its arrival's end.
func (a *arrivals) noting(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(arrivalKey{}).(net.Conn); ok {
			a.gone(c)
		}
		next.ServeHTTP(w, r)
	})
}
