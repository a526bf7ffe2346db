package cluster

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"pier/cluster/port"
)

// raftStream carries Raft over the port.
type raftStream struct {
	net.Listener
	port *port.Port
}

func (s *raftStream) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &patientConn{Conn: conn}, nil
}

func (s *raftStream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	// Raft falls back to the bare address of its configuration when the book has none. Without an ID whoever answers there
	// would be taken for the member that is meant, and its answers would count for another's.
	id, at, found := strings.Cut(string(address), addressMark)
	if !found || id == "" {
		return nil, fmt.Errorf("%w: no place is known of the server at %s", ErrUnavailable, address)
	}
	conn, err := s.port.Dial(ctx, port.ProtoRaft, NodeID(id), at)
	if err != nil {
		return nil, err
	}
	return &patientConn{Conn: conn}, nil
}

// writeChunk is what even a slow link moves within the limit.
const writeChunk = 64 << 10

// patientConn makes Raft's limit for a whole call one for progress: a batch of large commands may take minutes on a slow
// link, and would never arrive if each try were given up after the same few seconds. Silence still ends it in time.
type patientConn struct {
	net.Conn
	limit atomic.Int64 // nanoseconds of silence; 0 is no limit
}

func (c *patientConn) SetDeadline(t time.Time) error {
	if t.IsZero() {
		c.limit.Store(0)
		return c.Conn.SetDeadline(t)
	}
	c.limit.Store(int64(time.Until(t)))
	return c.Conn.SetDeadline(t)
}

func (c *patientConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

// Write counts only completed chunks as progress, and moves both deadlines on with each: whoever waits for the answer
// began to wait before the question was out.
func (c *patientConn) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, err := c.Conn.Write(p[written:min(len(p), written+writeChunk)])
		written += n
		if err != nil {
			return written, err
		}
		if limit := c.limit.Load(); limit > 0 {
			if err := c.Conn.SetDeadline(time.Now().Add(time.Duration(limit))); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}
