package cluster

import (
	"context"
	"encoding/json"
	"net"
	"testing"
	"time"
)

// Strangers who open connections for the invited and say nothing take nobody's place.
func TestSilentGuestsTakeNoPlace(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- serveJoins(ctx, lis, func(_ context.Context, r joinRequest) (joinReply, error) {
			return joinReply{ClusterID: r.Node.Name}, nil
		})
	}()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}
	var silent []net.Conn
	for range 10 * maxJoins {
		silent = append(silent, dial())
	}
	guest := dial()
	var reply joinReply
	if err := json.NewEncoder(guest).Encode(joinRequest{Node: newcomer{ID: "guest", Name: "guest"}}); err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(guest).Decode(&reply); err != nil || reply.ClusterID != "guest" {
		t.Errorf("the guest gets %+v, %v", reply, err)
	}
	for _, c := range silent {
		_ = c.Close()
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
