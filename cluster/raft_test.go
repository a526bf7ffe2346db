package cluster

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A heartbeat that is being answered may have a newer term to write: the log must not be closed before.
func TestTheEndWaitsForHeartbeats(t *testing.T) {
	h := newHouse(t)
	nodes := h.formed(2)
	m := others(nodes, leader(t, nodes))[0]
	asked, answered := make(chan raft.RPC, 1), make(chan struct{})
	m.cluster.transport.SetHeartbeatHandler(func(rpc raft.RPC) {
		select {
		case asked <- rpc:
			<-answered
		default:
		}
		rpc.Respond(nil, raft.ErrRaftShutdown)
	})
	<-asked
	m.cancel()
	<-m.cluster.tasks.ended
	select {
	case err := <-m.done:
		m.done <- err
		t.Errorf("it has ended (%v) before a heartbeat was answered", err)
	case <-time.After(time.Second):
	}
	close(answered)
}
