package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"pier/cluster/port"
)

// State is what the commands are applied to. Its file is its own snapshot.
type State interface {
	raft.BatchingFSM
	raft.ConfigurationStore
	Snapshots() raft.SnapshotStore
	// AppliedIndex is the index of the last command or configuration that was applied; Raft's own no-ops don't count.
	AppliedIndex() uint64
	WaitApplied(ctx context.Context, index uint64) error
}

// Records is what the cluster itself keeps in the replicated state. Those that change it propose commands, so they need a
// leader and a majority.
type Records interface {
	// Boot announces a start of a node. It is ErrEpochUsed when the state knows a newer one, or another one of that epoch.
	Boot(ctx context.Context, r Record) error
	Forget(ctx context.Context, id NodeID) error
	Mark(ctx context.Context, id NodeID, away, draining bool) error
	CreateInvite(ctx context.Context, hash []byte, expires time.Time) error
	RedeemInvite(ctx context.Context, hash []byte) error
	// Invited tells whether the local state has the invite.
	Invited(hash []byte) (bool, error)
	// Rotation is what the local state says of the cluster's secrets, with its generation; 0 where there was none yet.
	Rotation() (Rotation, uint64, error)
	// PutRotation replaces the rotation of a generation, or is ErrRotationChanged.
	PutRotation(ctx context.Context, r Rotation, was uint64) error
	SetClusterID(ctx context.Context, id string) error
	ClusterID() (string, error)
	Nodes() ([]Record, error)
}

// Record is what the state keeps of a node.
type Record struct {
	ID                          NodeID
	Name, API, Cluster, Version string
	Epoch, Level                uint64
	Nonce                       string // of the boot
	Away, Draining              bool
}

// Guard knows what would be lost with a node.
type Guard interface {
	// OnlyOn lists at most limit blobs that no other node holds, and how many there are.
	OnlyOn(ctx context.Context, id NodeID, limit int) (digests []string, total int, err error)
}

// Figures are a node's blobs and disk, for status. MissingFor is how long the oldest missing blob has been missing.
type Figures struct {
	Blobs, BlobsMissing, Bytes, DiskFree int64
	MissingFor                           time.Duration
}

// Config is a node's place in a cluster. Zero values of what has a default mean the default.
type Config struct {
	DataDir   string
	Name      string
	Listen    string // host:port of the cluster port
	Advertise string // host:port where others reach it; "" is the bound address, or this machine's name where that is all
	API       string // host:port that clients use, for status
	// Join are cluster addresses of others, asked at start for a cluster to be in.
	Join []string
	// BootstrapExpect is the number of empty nodes that form a cluster together; 0 forms none when Join is set.
	BootstrapExpect int
	// Secrets are the cluster's as this node's file has them now. The file, and what OnSecrets gets, change when they rotate.
	Secrets     port.Secrets
	SecretFile  string // cluster.secret in DataDir
	OnSecrets   func(port.Secrets) error
	SecretGrace time.Duration // for which an old secret is accepted at the least when all use the new one, 6 min
	Network     port.Network

	RaftTimeout time.Duration // heartbeat and election, 1 s
	MaxVoters   int           // 5
	VoterDelay  time.Duration // health before a newcomer votes, 10 s
	RepairDelay time.Duration // absence before others copy what a node held, 15 min

	TrailingLogs      uint64        // entries kept behind a snapshot, 100,000
	TrailingBytes     int64         // and their bytes, 256 MiB
	SnapshotInterval  time.Duration // 30 s
	SnapshotThreshold uint64        // 8,192 entries

	Version string
	Level   uint64 // newest command that this program understands
	// PeerHandler gets the peers' requests outside /cluster/.
	PeerHandler http.Handler
	Figures     func() Figures
	// Fatal is told what the process can't live on with: a broken disk under the log.
	Fatal  func(error)
	Logger *slog.Logger
	Now    func() time.Time
}

// Validate names everything that is wrong.
func (c Config) Validate() error {
	var faults []error
	if c.DataDir == "" {
		faults = append(faults, errors.New("the cluster needs a data directory"))
	}
	addresses := append([]string{c.Listen}, c.Join...)
	if c.Advertise != "" {
		addresses = append(addresses, c.Advertise)
	}
	for _, a := range addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			faults = append(faults, fmt.Errorf("cluster address %q: %w", a, err))
		}
	}
	if len(c.Secrets) == 0 {
		faults = append(faults, errors.New("the cluster needs a secret"))
	}
	if c.BootstrapExpect < 0 || c.BootstrapExpect > 7 {
		faults = append(faults, fmt.Errorf("bootstrap-expect is %d: 0 to 7 nodes can form a cluster", c.BootstrapExpect))
	}
	if c.BootstrapExpect > 1 && len(c.Join) == 0 {
		faults = append(faults, errors.New("bootstrap-expect needs join: the addresses of the nodes to form a cluster with"))
	}
	if n := c.founders(); c.BootstrapExpect > 1 && 2*c.BootstrapExpect <= n {
		faults = append(faults, fmt.Errorf("bootstrap-expect is %d and join names %d nodes: two halves could form two clusters; expect at least %d", c.BootstrapExpect, n, n/2+1))
	}
	if c.RaftTimeout < 0 || c.RaftTimeout > 0 && c.RaftTimeout < 20*time.Millisecond {
		faults = append(faults, fmt.Errorf("raft-timeout is %s: at least 20ms", c.RaftTimeout))
	}
	if c.MaxVoters < 0 {
		faults = append(faults, fmt.Errorf("max-voters is %d: at least 1", c.MaxVoters))
	}
	return errors.Join(faults...)
}

// founders is how many nodes might form a cluster together, as far as the settings tell.
func (c Config) founders() int {
	all := slices.Clone(c.Join)
	if c.Advertise != "" {
		all = append(all, c.Advertise)
	}
	slices.Sort(all)
	return len(slices.Compact(all))
}

func orElse[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}

func (c Config) withDefaults() Config {
	c.Network = orElse[port.Network](c.Network, port.System())
	c.SecretFile = orElse(c.SecretFile, filepath.Join(c.DataDir, secretFile))
	c.SecretGrace = orElse(c.SecretGrace, 6*time.Minute)
	c.RaftTimeout = orElse(c.RaftTimeout, time.Second)
	c.MaxVoters = orElse(c.MaxVoters, 5)
	c.VoterDelay = orElse(c.VoterDelay, 10*time.Second)
	c.RepairDelay = orElse(c.RepairDelay, 15*time.Minute)
	c.TrailingLogs = orElse(c.TrailingLogs, 100_000)
	c.TrailingBytes = orElse(c.TrailingBytes, 256<<20)
	c.SnapshotInterval = orElse(c.SnapshotInterval, 30*time.Second)
	c.SnapshotThreshold = orElse(c.SnapshotThreshold, 8192)
	if c.PeerHandler == nil {
		c.PeerHandler = http.NotFoundHandler()
	}
	if c.Figures == nil {
		c.Figures = func() Figures { return Figures{} }
	}
	if c.Fatal == nil {
		c.Fatal = func(error) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}
