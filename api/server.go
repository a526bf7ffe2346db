package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	headerTimeout = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
	// maxConnections is above what may be in flight and wait, so that a connection of HTTP/1 is never what is short.
	maxConnections = 16 << 10
)

// NewServer makes a server for the public port or the control socket. A TLS handshake must be done within 30 s, a header must
// come within 30 s and have at most 64 KiB (431 beyond); a connection may rest two minutes between requests, and beyond 16,384
// of them the registry answers 429. At most 2,048 may have asked nothing yet, and half of all rest; of each the oldest go, so that
// who only keeps connections keeps out nobody. Bodies have no deadline in all: the handlers move one with the progress made.
func NewServer(h http.Handler, logger *slog.Logger) *http.Server {
	return newServer(h, logger, maxConnections)
}

func newServer(h http.Handler, logger *slog.Logger, limit int64) *http.Server {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	var open atomic.Int64
	arriving, resting := newArrivals(maxArrivals), newArrivals(int(limit/2))
	return &http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			ctx = arriving.came(ctx, c)
			if open.Add(1) > limit {
				return context.WithValue(ctx, crowdedKey{}, true)
			}
			return ctx
		},
		ConnState: func(c net.Conn, s http.ConnState) {
			switch s {
			case http.StateIdle:
				resting.add(c)
			case http.StateActive:
				resting.gone(c)
			case http.StateClosed, http.StateHijacked:
				arriving.gone(c)
				resting.gone(c)
				open.Add(-1)
			}
		},
		Handler:           arriving.noting(h),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

// crowdedKey marks connections beyond those that a server takes.
type crowdedKey struct{}

func isCrowded(ctx context.Context) bool { return ctx.Value(crowdedKey{}) != nil }
