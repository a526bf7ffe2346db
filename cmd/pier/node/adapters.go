package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/api"
	"pier/blobsync"
	"pier/cluster"
	"pier/fsm"
)

// That the parts fit each other is said here, once.
var (
	_ api.Log         = (*proposer)(nil)
	_ api.Cluster     = (*control)(nil)
	_ cluster.State   = (*fsm.State)(nil)
	_ cluster.Records = (*records)(nil)
	_ cluster.Guard   = (*guard)(nil)
	_ blobsync.Index  = index{}
	_ blobsync.Peers  = (*peers)(nil)
)

// records keeps the cluster's own facts in the replicated state.
type records struct {
	state *fsm.State
	log   *proposer
}

func (r *records) Boot(ctx context.Context, rec cluster.Record) error {
	_, err := r.log.Propose(ctx, fsm.BootNode{
		ID: fsm.NodeID(rec.ID), Name: rec.Name, API: rec.API, Cluster: rec.Cluster, Version: rec.Version,
		Epoch: rec.Epoch, Level: rec.Level, Nonce: rec.Nonce,
	})
	var used *fsm.EpochError
	if errors.As(err, &used) || errors.Is(err, fsm.ErrStale) {
		return cluster.ErrEpochUsed
	}
	return err
}

func (r *records) Forget(ctx context.Context, id cluster.NodeID) error {
	_, err := r.log.Propose(ctx, fsm.ForgetNode{ID: fsm.NodeID(id)})
	return err
}

func (r *records) Mark(ctx context.Context, id cluster.NodeID, away, draining bool) error {
	_, err := r.log.Propose(ctx, fsm.MarkNode{ID: fsm.NodeID(id), Away: away, Draining: draining})
	return err
}

func (r *records) CreateInvite(ctx context.Context, hash []byte, expires time.Time) error {
	last, err := r.state.Time()
	if err != nil {
		return err
	}
	_, err = r.log.Propose(ctx, fsm.CreateInvite{Hash: hash, Expires: byStateTime(expires, time.Now(), last).UnixMilli()})
	return err
}

// byStateTime gives an invite as long by the state's time as by this node's clock. The state's doesn't run back: where a leader's
// clock was ahead for a moment, every invite would have expired when it is made, until the clocks are there too.
func byStateTime(expires, now, last time.Time) time.Time {
	return expires.Add(max(0, last.Sub(now)))
}

func (r *records) RedeemInvite(ctx context.Context, hash []byte) error {
	_, err := r.log.Propose(ctx, fsm.RedeemInvite{Hash: hash})
	switch {
	case errors.Is(err, fsm.ErrInviteExpired):
		return cluster.ErrTokenExpired
	case errors.Is(err, fsm.ErrInviteUnknown):
		return cluster.ErrTokenUsed
	}
	return err
}

func (r *records) Invited(hash []byte) (bool, error) { return r.state.Invited(hash) }

// rotationName is the one document of its kind.
const rotationName = "secret"

func (r *records) Rotation() (cluster.Rotation, uint64, error) {
	var out cluster.Rotation
	d, found, err := r.state.Document(fsm.KindRotation, rotationName)
	if err != nil || !found {
		return out, 0, err
	}
	if err := json.Unmarshal(d.Body, &out); err != nil {
		return out, 0, fmt.Errorf("read the rotation of the cluster's secret: %w", err)
	}
	return out, d.Generation, nil
}

func (r *records) PutRotation(ctx context.Context, next cluster.Rotation, was uint64) error {
	body, err := json.Marshal(next)
	if err != nil {
		return err
	}
	_, err = r.log.Propose(ctx, fsm.PutDocument{Document: fsm.Document{Kind: fsm.KindRotation, Name: rotationName, Body: body}, Was: was})
	if errors.Is(err, fsm.ErrDocumentChanged) || errors.Is(err, fsm.ErrDocumentExists) || errors.Is(err, fsm.ErrDocumentUnknown) {
		return cluster.ErrRotationChanged
	}
	return err
}

func (r *records) SetClusterID(ctx context.Context, id string) error {
	_, err := r.log.Propose(ctx, fsm.SetSetting{Key: fsm.SettingClusterID, Value: id})
	return err
}

func (r *records) ClusterID() (string, error) { return r.state.Setting(fsm.SettingClusterID) }

func (r *records) Nodes() ([]cluster.Record, error) {
	nodes, err := r.state.Nodes()
	if err != nil {
		return nil, err
	}
	out := make([]cluster.Record, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, cluster.Record{
			ID: cluster.NodeID(n.ID), Name: n.Name, API: n.API, Cluster: n.Cluster, Version: n.Version,
			Epoch: n.Epoch, Level: n.Level, Nonce: n.Nonce, Away: n.Away, Draining: n.Draining,
		})
	}
	return out, nil
}

// guard answers what would be lost with a node. Its blobs are set once they exist, before anything runs.
type guard struct{ blobs *blobsync.Sync }

func (g *guard) OnlyOn(ctx context.Context, id cluster.NodeID, limit int) ([]string, int, error) {
	digests, total, err := g.blobs.OnlyOn(ctx, blobsync.NodeID(id), limit)
	out := make([]string, 0, len(digests))
	for _, d := range digests {
		out = append(out, d.String())
	}
	return out, total, err
}

// index shows blobsync what the replicated state wants.
type index struct{ state *fsm.State }

func (x index) Blob(d digest.Digest) (blobsync.Blob, error) {
	b, err := x.state.BlobRecord(d)
	if errors.Is(err, fsm.ErrBlobUnknown) {
		return blobsync.Blob{}, blobsync.ErrUnwanted
	}
	return wanted(b), err
}

func (x index) Wanted(since uint64, after digest.Digest, n int) ([]blobsync.Blob, bool, error) {
	page, more, err := x.state.Wanted(since, after, n)
	out := make([]blobsync.Blob, 0, len(page))
	for _, b := range page {
		out = append(out, wanted(b))
	}
	return out, more, err
}

func (x index) Changed() <-chan struct{} { return x.state.Changed() }

func (x index) Installs() uint64 { return x.state.Installs() }

func wanted(b fsm.Blob) blobsync.Blob {
	return blobsync.Blob{Digest: b.Digest, Size: b.Size, Origin: blobsync.NodeID(b.Origin), Since: b.Since}
}

// peers shows blobsync the other nodes: who there is comes from the state, so that all nodes place blobs alike; who seems
// to be up comes from gossip.
type peers struct {
	cluster   *cluster.Cluster
	state     *fsm.State
	transport http.RoundTripper
}

func newPeers(c *cluster.Cluster, s *fsm.State) *peers {
	return &peers{cluster: c, state: s, transport: c.Transport()}
}

func (p *peers) Self() blobsync.NodeID { return blobsync.NodeID(p.cluster.ID()) }

func (p *peers) Transport() http.RoundTripper { return p.transport }

func (p *peers) Nodes() []blobsync.Node {
	nodes, err := p.state.Nodes()
	if err != nil {
		return nil
	}
	up := make(map[cluster.NodeID]bool)
	for _, m := range p.cluster.Members() {
		up[m.ID] = m.Self || m.State == "alive" || m.State == "suspect"
	}
	out := make([]blobsync.Node, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, blobsync.Node{
			ID: blobsync.NodeID(n.ID), Up: up[cluster.NodeID(n.ID)], Away: n.Away, Draining: n.Draining,
		})
	}
	return out
}
