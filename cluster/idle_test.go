package cluster

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// trio is Raft on three servers in memory, with the node's settings and its way with pipelines, and counts what passes. It is
// for a bubble of synctest, whose clock stands still while anybody works.
type trio struct {
	rafts [3]*raft.Raft
	asked atomic.Int64 // appends that Raft gave to pipelines
	sent  atomic.Int64 // and those of them that were sent
}

// quiet is what a node gives its pipelines when raft-timeout isn't set.
const quiet = time.Second

// talk is one server's transport.
type talk struct {
	*raft.InmemTransport
	trio      *trio
	pipelines *pipelines
}

func (k *talk) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := k.InmemTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	if p, err = k.pipelines.add(counted{p, &k.trio.sent}); err != nil {
		return nil, err
	}
	return counted{p, &k.trio.asked}, nil
}

type counted struct {
	raft.AppendPipeline
	n *atomic.Int64
}

func (p counted) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.n.Add(1)
	return p.AppendPipeline.AppendEntries(args, resp)
}

// toldLog tells the tail what is written, as the log on disk does.
type toldLog struct {
	*raft.InmemStore
	tail *tail
}

func (l toldLog) StoreLogs(logs []*raft.Log) error {
	err := l.InmemStore.StoreLogs(logs)
	l.tail.set(logs[len(logs)-1].Index)
	return err
}

func (l toldLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// startTrio starts the servers; the function that it gives ends them.
func startTrio(t *testing.T) (*trio, func()) {
	s := new(trio)
	var talks [3]*talk
	var servers raft.Configuration
	for i := range talks {
		id := fmt.Sprint("n", i)
		address, transport := raft.NewInmemTransport(raft.ServerAddress(id))
		talks[i] = &talk{InmemTransport: transport, trio: s, pipelines: newPipelines(new(tail), quiet)}
		servers.Servers = append(servers.Servers, raft.Server{ID: raft.ServerID(id), Address: address})
	}
	for i, k := range talks {
		for _, other := range talks {
			k.Connect(other.LocalAddr(), other.InmemTransport)
		}
		c := &Cluster{id: NodeID(servers.Servers[i].ID), cfg: Config{Logger: slog.New(slog.DiscardHandler)}.withDefaults()}
		log := toldLog{raft.NewInmemStore(), k.pipelines.tail}
		r, err := raft.NewRaft(c.raftConfig(), &raft.MockFSM{}, log, log, raft.NewInmemSnapshotStore(), k)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.BootstrapCluster(servers).Error(); err != nil {
			t.Fatal(err)
		}
		s.rafts[i] = r
	}
	return s, func() {
		for i, k := range talks {
			k.pipelines.end()
			if err := s.rafts[i].Shutdown().Error(); err != nil {
				t.Error(err)
			}
		}
	}
}

// leader waits until there is one, and for longer than it takes to tell everybody everything.
func (s *trio) leader(t *testing.T) *raft.Raft {
	t.Helper()
	<-time.After(time.Minute)
	for _, r := range s.rafts {
		if r.State() == raft.Leader {
			return r
		}
	}
	t.Fatal("nobody leads")
	return nil
}

// Raft wakes for a follower that has heard everything once in raft-timeout, and not in each CommitTimeout.
func TestIdleLeaderRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, end := startTrio(t)
		defer end()
		s.leader(t)
		asked, sent := s.asked.Load(), s.sent.Load()
		<-time.After(time.Minute)
		asked, sent = s.asked.Load()-asked, s.sent.Load()-sent
		if most := int64(2 * time.Minute / quiet); sent > most || sent < most*9/10 {
			t.Errorf("%d appends a minute were sent to two followers, and %d are to be", sent, most)
		}
		if asked > sent+2 {
			t.Errorf("raft made %d appends in vain", asked-sent)
		}
	})
}

// Rest costs nobody any time: however long there was nothing to do, both followers hold an entry when Raft has looked twice.
func TestRestEndsWithTheNextEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, end := startTrio(t)
		defer end()
		leader := s.leader(t)
		for i := range 200 {
			<-time.After(time.Duration(i) * quiet / 150)
			began := time.Now()
			f := leader.Apply([]byte("x"), 0)
			if err := f.Error(); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 0 {
				t.Errorf("entry %d was committed after %s", i, took)
			}
			<-time.After(2 * commitPause)
			synctest.Wait()
			for _, r := range s.rafts {
				if r.AppliedIndex() < f.Index() {
					t.Fatalf("entry %d isn't everywhere after two commit pauses", i)
				}
			}
		}
	})
}

// What a node writes to its log on disk wakes its own pipelines.
func TestLogWakesPipelines(t *testing.T) {
	first := leader(t, newHouse(t).formed(1))
	woken := first.cluster.tail.beyond(first.cluster.raft.LastIndex())
	if err := first.put("k", "v"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-woken:
	default:
		t.Error("an entry was written and committed, and nobody was woken")
	}
}
