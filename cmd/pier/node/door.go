package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"

	"pier/api"
)

// SocketName is the file in the data directory that the control API listens on.
const SocketName = "pier.sock"

// frontDoor is one listener whose handler can change while it is open.
type frontDoor struct {
	lis     net.Listener
	server  *http.Server
	handler atomic.Pointer[http.Handler]
}

// otherwise says which setting names another address, where one is taken.
func otherwise(err error, setting string) string {
	if errors.Is(err, syscall.EADDRINUSE) {
		return "; end what uses it, or choose another with --" + setting
	}
	return ""
}

func newFrontDoor(lis net.Listener, logger *slog.Logger) *frontDoor {
	d := &frontDoor{lis: lis}
	d.server = api.NewServer(http.HandlerFunc(d.dispatch), logger)
	return d
}

// secure makes it a door for HTTPS. It comes before run.
func (d *frontDoor) secure(cfg *tls.Config) { d.server.TLSConfig = cfg }

// serve sends requests to h from now on; nil answers that the node isn't there yet.
func (d *frontDoor) serve(h http.Handler) {
	if h == nil {
		d.handler.Store(nil)
		return
	}
	d.handler.Store(&h)
}

func (d *frontDoor) dispatch(w http.ResponseWriter, r *http.Request) {
	if h := d.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte(`{"errors":[{"code":"UNAVAILABLE","message":"the node is starting; try again"}]}`))
}

// run accepts until the door is shut or ctx ends.
func (d *frontDoor) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, d.close)
	defer stop()
	serve := d.server.Serve
	if d.server.TLSConfig != nil {
		serve = func(lis net.Listener) error { return d.server.ServeTLS(mistaken{lis}, "", "") }
	}
	err := serve(d.lis)
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve %s: %w", d.lis.Addr(), err)
}

// shutdown stops accepting and waits for the requests under way until ctx ends.
func (d *frontDoor) shutdown(ctx context.Context) { _ = d.server.Shutdown(ctx) }

// close breaks every connection at once.
func (d *frontDoor) close() {
	_ = d.server.Close()
	_ = d.lis.Close()
}

func (d *frontDoor) address() string { return d.lis.Addr().String() }

// listenSocket binds the control socket. A socket file left by a process that was killed is replaced: the directory's
// lock says that nobody serves it.
func listenSocket(path string) (net.Listener, error) {
	if err := removeSocket(path); err != nil {
		return nil, err
	}
	lis, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("the path of the control socket %s is longer than the system allows; use a shorter --data-dir", path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = lis.Close()
		return nil, fmt.Errorf("protect the control socket: %w", err)
	}
	return lis, nil
}

// removeSocket removes what an earlier process left.
func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the old control socket: %w", err)
	}
	return nil
}

// lockDirectory makes sure that one process alone uses the directory. The lock goes with the process.
func lockDirectory(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir+"/lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the data directory's lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another pier uses the data directory %s: %w", dir, err)
	}
	return f, nil
}
