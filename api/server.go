package api

import (
	"log/slog"
	"net/http"
	"time"
)

const (
	headerTimeout = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
)

// NewServer makes a server for the public port or the control socket. A header must come within 30 s and have at most
// 64 KiB (431 beyond); a connection may rest two minutes between requests. Bodies have no deadline in all: the handlers
// move one with the progress made.
func NewServer(h http.Handler, logger *slog.Logger) *http.Server {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}
