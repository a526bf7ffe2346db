package cluster

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Status is the cluster as this node and its peers see it.
type Status struct {
	ClusterID string
	Name      string
	Leader    NodeID
	Term      uint64
	Quorum    bool
	Healthy   bool
	Nodes     []NodeStatus
}

// NodeStatus is one member: what the configuration and gossip say, and what it says itself where it answers.
type NodeStatus struct {
	Member
	Cluster      string
	AppliedIndex uint64
	Blobs        int64
	BlobsMissing int64
	MissingFor   time.Duration
	Bytes        int64
	DiskFree     int64
	Version      string
	Started      time.Time
}

// usualCopying is for how long a blob may be on its way to a node: while people push, some always are.
const usualCopying = 10 * time.Second

// behind reports whether a node lacks more than what is on its way to every node at any time.
func (n NodeStatus) behind(newest uint64) bool {
	return n.BlobsMissing > 0 && n.MissingFor > usualCopying || n.AppliedIndex+maxAppend < newest
}

// report is what a node says of itself.
type report struct {
	AppliedIndex uint64
	Figures      Figures
	Version      string
	Started      time.Time
	Member       bool // has a part in all that is agreed
}

func (c *Cluster) ownReport() report {
	r := report{AppliedIndex: c.state.AppliedIndex(), Version: c.cfg.Version, Started: c.started, Figures: c.cfg.Figures()}
	select {
	case <-c.ready:
		r.Member = c.bootRefused() == nil && !c.isRemoved()
	default:
	}
	return r
}

func (c *Cluster) serveStatus(w http.ResponseWriter, _ *http.Request) { answerJSON(w, c.ownReport()) }

func (c *Cluster) report(ctx context.Context, id NodeID) (report, error) {
	var r report
	body, err := c.call(ctx, id, http.MethodGet, "/cluster/status", nil)
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	return r, err
}

// Unheard are the members that answer by TCP, and whose gossip packets don't come through. It takes up to three seconds.
func (c *Cluster) Unheard(ctx context.Context) []NodeID {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return slices.DeleteFunc(c.gossip.unheard(), func(id NodeID) bool {
		_, err := c.report(ctx, id)
		return err != nil // it is down, which others say
	})
}

// Status asks every member, for at most two seconds. Quorum is proved by a read, not guessed.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	leader, _ := c.Leader()
	id, err := c.records.ClusterID()
	if err != nil {
		return Status{}, err
	}
	out := Status{ClusterID: id, Name: c.cfg.Name, Leader: leader, Term: c.Term()}
	var group errgroup.Group
	group.Go(func() error {
		out.Quorum = c.ReadIndex(ctx) == nil
		return nil
	})
	members := c.Members()
	nodes := make([]NodeStatus, len(members))
	var mu sync.Mutex
	unfit := 0 // silent, or no members by their own word: kept out of elections, or not there yet
	for i, m := range members {
		group.Go(func() error {
			n := NodeStatus{Member: m, Cluster: m.Address}
			r, err := c.ownReport(), error(nil)
			if !m.Self {
				r, err = c.report(ctx, m.ID)
			}
			if err != nil || !r.Member {
				mu.Lock()
				unfit++
				mu.Unlock()
			}
			if err != nil {
				if _, heard := c.gossip.hint(m.ID); !heard {
					n.State = stateDead
				} else if n.State == stateAlive {
					n.State = stateSuspect
				}
			} else {
				n.State = stateAlive
				n.AppliedIndex, n.Version, n.Started = r.AppliedIndex, r.Version, r.Started
				n.Blobs, n.BlobsMissing, n.MissingFor = r.Figures.Blobs, r.Figures.BlobsMissing, r.Figures.MissingFor
				n.Bytes, n.DiskFree = r.Figures.Bytes, r.Figures.DiskFree
			}
			nodes[i] = n
			return nil
		})
	}
	_ = group.Wait()
	out.Nodes = nodes
	out.Healthy = out.Quorum && unfit == 0 && len(nodes) > 0
	var newest uint64
	for _, n := range nodes {
		newest = max(newest, n.AppliedIndex)
	}
	for _, n := range nodes {
		if n.behind(newest) {
			out.Healthy = false
		}
	}
	return out, nil
}
