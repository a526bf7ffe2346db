package cluster

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// loopback starts a transport of Raft that answers every append with no.
func loopback(t *testing.T) *raft.NetworkTransport {
	t.Helper()
	tr, err := raft.NewTCPTransport("127.0.0.1:0", nil, 3, time.Minute, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case rpc := <-tr.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Success: false}, nil)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		_ = tr.Close()
	})
	return tr
}

// Nobody takes the answers of a pipeline: appends to it must end all the same, by their patience and when the node stops.
func TestPipelineWithoutReaderEnds(t *testing.T) {
	for _, c := range []struct {
		name     string
		patience time.Duration
		release  bool
	}{{"patience", 50 * time.Millisecond, false}, {"stop", time.Hour, true}} {
		t.Run(c.name, func(t *testing.T) {
			gated := newGatedTransport(loopback(t))
			gated.patience = c.patience
			p, err := gated.AppendEntriesPipeline("x", loopback(t).LocalAddr())
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				for {
					if _, err := p.AppendEntries(&raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{}); err != nil {
						ended <- err
						return
					}
				}
			}()
			if c.release {
				gated.letGo()
				if _, err := gated.AppendEntriesPipeline("x", loopback(t).LocalAddr()); !errors.Is(err, raft.ErrPipelineShutdown) {
					t.Errorf("a pipeline is opened while the node stops: %v", err)
				}
			}
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("the append waits for ever")
			}
			_ = p.Close()
		})
	}
}
