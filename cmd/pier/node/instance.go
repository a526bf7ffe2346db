package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"pier/api"
	"pier/api/auth"
	"pier/blobsync"
	"pier/blobsync/store"
	"pier/cluster"
	"pier/cluster/port"
	"pier/fsm"
)

// instance is one life of everything inside a node: state, cluster, blobs and API, wired to each other. It is made whole,
// run once and closed; the order in which its parts die is the reverse of who needs whom.
type instance struct {
	state   *fsm.State
	cluster *cluster.Cluster
	store   *store.Store
	blobs   *blobsync.Sync
	audit   *api.Audit
	log     *proposer
	keys    atomic.Pointer[auth.Keys]
	api     *api.API
	holdAll bool // every node holds every blob
}

func newInstance(n *Node) (*instance, error) {
	inst := &instance{holdAll: n.cfg.Replicas == 0}
	if err := inst.build(n); err != nil {
		inst.close()
		return nil, err
	}
	return inst, nil
}

func (i *instance) build(n *Node) error {
	if err := cluster.FinishJoin(n.cfg.DataDir); err != nil {
		return err
	}
	if err := settleState(n.cfg.DataDir); err != nil {
		return err
	}
	secrets, err := loadSecrets(n.cfg)
	if err != nil {
		return err
	}
	warnReadable(n.cfg, n.logger)
	i.state, err = fsm.Open(fsm.Config{Path: filepath.Join(n.cfg.DataDir, stateFile), Logger: n.logger, Fatal: n.die})
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	i.store, err = store.Open(store.Config{
		Dir: n.cfg.DataDir, Reserve: n.cfg.DiskReserve.Share, ReserveBytes: max(n.cfg.DiskReserve.Bytes, n.opts.Tuning.ReserveBytes),
		UploadTTL: n.cfg.UploadTTL, Logger: n.logger,
	})
	if err != nil {
		return fmt.Errorf("open the blob store: %w", err)
	}
	peers := http.NewServeMux()
	records := &records{state: i.state}
	guard := &guard{}
	i.cluster, err = cluster.New(i.clusterConfig(n, secrets, peers), i.state, records, guard)
	if err != nil {
		return fmt.Errorf("set up the cluster: %w%s", err, otherwise(err, "cluster-listen"))
	}
	if err := dropFormer(n.cfg.DataDir, i.cluster.ID(), i.store); err != nil {
		return err
	}
	i.log = newProposer(i.cluster, i.state)
	records.log = i.log
	i.blobs, err = blobsync.New(blobsync.Config{
		Replicas: n.cfg.Replicas, WriteCopies: n.cfg.WriteCopies, Rate: n.cfg.BlobRate,
		EnsureTimeout: n.opts.Tuning.EnsureTimeout, CompareInterval: n.opts.Tuning.CompareInterval, Logger: n.logger,
	}, i.store, index{i.state}, newPeers(i.cluster, i.state))
	if err != nil {
		return fmt.Errorf("set up the copying of blobs: %w", err)
	}
	guard.blobs = i.blobs
	if err := i.useSecrets(n)(secrets); err != nil {
		return fmt.Errorf("make the keys for clients: %w", err)
	}
	i.audit = api.NewAudit(n.cfg.DataDir, n.cfg.AuditPulls, n.logger)
	i.api, err = api.New(i.apiConfig(n), i.state, i.blobs, i.log, &control{node: n, inst: i})
	if err != nil {
		return fmt.Errorf("set up the API: %w", err)
	}
	peers.Handle("/blobs/", i.blobs.Handler())
	peers.Handle("/audit", i.api.Peer())
	peers.Handle("/doctor", i.api.Peer())
	peers.Handle("/relay/", http.StripPrefix("/relay", i.api.Relay()))
	return nil
}

func (i *instance) clusterConfig(n *Node, secrets port.Secrets, peers http.Handler) cluster.Config {
	return cluster.Config{
		DataDir: n.cfg.DataDir, Name: n.cfg.Name, Listen: n.cfg.ClusterListen, Advertise: n.cfg.ClusterAdvertise,
		API: advertisedAPI(n.cfg, n.public.address()), Join: n.cfg.Join, BootstrapExpect: n.cfg.BootstrapExpect,
		Secrets: secrets, SecretFile: secretPath(n.cfg), OnSecrets: i.useSecrets(n), SecretGrace: n.opts.Tuning.SecretGrace,
		Network: n.opts.Network, RaftTimeout: n.cfg.RaftTimeout, MaxVoters: n.cfg.MaxVoters,
		RepairDelay: n.cfg.RepairDelay, VoterDelay: n.opts.Tuning.VoterDelay, TrailingLogs: n.opts.Tuning.TrailingLogs,
		SnapshotInterval: n.opts.Tuning.SnapshotInterval, SnapshotThreshold: n.opts.Tuning.SnapshotThreshold,
		Version: n.opts.Version, Level: fsm.CurrentLevel, PeerHandler: peers, Figures: i.figures,
		Fatal: n.die, Logger: n.logger,
	}
}

func (i *instance) apiConfig(n *Node) api.Config {
	cfg := api.Config{
		Node: fsm.NodeID(i.cluster.ID()), Name: n.cfg.Name, Version: n.opts.Version, Relay: i.cluster.Transport(),
		Alive: i.alive, Figures: i.apiFigures, Exposure: n.Exposure, Doctor: (&doctor{node: n, inst: i}).examine, MetricsOpen: n.cfg.Access.MetricsOpen, Ready: i.ready, MaxInFlight: n.cfg.MaxInFlight, Logger: n.logger,
		RelayWait: n.opts.Tuning.AwayWait, HolderWait: n.opts.Tuning.AwayWait,
		Audit: i.audit, Access: api.Access{
			Keys: i.keys.Load, PublicURL: n.cfg.Access.PublicURL, Proxies: n.cfg.Access.proxies(), Clients: n.clients,
			Authority: n.authority.Load, Closed: n.cfg.Access.AdminUser != "",
			TokenLife: n.opts.Tuning.TokenLife, Now: n.opts.Tuning.Clock,
		},
	}
	if n.cfg.AccessLog {
		cfg.AccessLog = n.logger
	}
	return cfg
}

// run owns the parts' goroutines. When ctx ends the cluster goes last, so that the others can still finish what they say
// to peers.
func (i *instance) run(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return i.store.Run(groupCtx) })
	group.Go(func() error { return i.blobs.Run(groupCtx) })
	group.Go(func() error { return i.audit.Run(groupCtx) })
	group.Go(func() error { return i.cluster.Run(groupCtx) })
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// close releases the files. It comes after run has returned, or in its place.
func (i *instance) close() {
	if i.cluster != nil {
		i.cluster.Close()
	}
	if i.state != nil {
		_ = i.state.Close()
	}
}

// ready tells whether this node can serve pulls, or pushes too, and why not.
func (i *instance) ready(push bool) error {
	select {
	case <-i.cluster.Ready():
	default:
		return api.ErrStarting
	}
	standing := i.cluster.Standing()
	if errors.Is(standing, cluster.ErrNotMember) || push && standing != nil {
		return standing
	}
	if !push {
		return nil
	}
	if _, ok := i.cluster.Leader(); !ok {
		return errors.New("the cluster has no leader: pushes wait for a majority of its nodes")
	}
	free, reserve, err := i.store.Space()
	if err != nil {
		return fmt.Errorf("measure the disk: %w", err)
	}
	if free <= reserve {
		return store.ErrNoSpace
	}
	return nil
}

func (i *instance) alive(id fsm.NodeID) bool {
	for _, m := range i.cluster.Members() {
		if m.ID == cluster.NodeID(id) {
			return m.Self || m.State != "dead" && m.State != "left"
		}
	}
	return false
}

func (i *instance) figures() cluster.Figures {
	f := i.blobs.Figures()
	return cluster.Figures{
		Blobs: f.Blobs, BlobsMissing: f.Missing, MissingFor: f.OldestMissing, Bytes: f.Bytes, DiskFree: f.DiskFree,
	}
}

// apiFigures are what /metrics shows. What is wanted comes from the state where that knows, since blobs that were deleted
// stay on the disk for a time.
func (i *instance) apiFigures() api.Figures {
	f := i.blobs.Figures()
	if counts, err := i.state.Counts(); err == nil && i.holdAll {
		f.Wanted = int64(counts.Blobs)
	}
	return api.Figures{
		UploadsOpen: f.UploadsOpen, BlobsWanted: f.Wanted, BlobsMissing: f.Missing, Blobs: f.Blobs, Bytes: f.Bytes,
		FetchedBytes: f.FetchedBytes, ServedBytes: f.ServedBytes, ReplicationLag: f.OldestMissing,
		RaftTerm: i.cluster.Term(), RaftRole: i.cluster.Role(), RaftApplied: i.state.AppliedIndex(), DiskFree: f.DiskFree,
		StateInstalls: i.state.Installs(),
	}
}

// advertisedAPI is the address that status shows for the node's API: what it listens on, with the cluster's name for the
// host where it listens on everything.
func advertisedAPI(cfg Config, bound string) string {
	host, p, err := net.SplitHostPort(bound)
	if err != nil {
		return bound
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return bound
	}
	if adv, _, err := net.SplitHostPort(cfg.ClusterAdvertise); err == nil && adv != "" {
		return net.JoinHostPort(adv, p)
	}
	if name, err := os.Hostname(); err == nil {
		return net.JoinHostPort(name, p)
	}
	return bound
}
