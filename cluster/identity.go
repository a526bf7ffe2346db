package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"pier/cluster/port"
)

const (
	identityFile = "node.json"
	logFile      = "raft.db"
	secretFile   = "cluster.secret"
)

// NodeID is the Raft ID of a node, made with its data directory.
type NodeID = port.NodeID

// boot names one life of a node.
type boot struct {
	Epoch uint64 `json:"epoch"`
	Nonce string `json:"nonce"`
}

// maxLives is how many former lives a disk remembers.
const maxLives = 256

// memory is what a disk says of itself: this life, and the nonces of those before it. Numbers alone would prove nothing: a
// disk from last week counts on from there with each start, and is soon past what the others know.
type memory struct {
	boot
	Lives []string
}

// holds tells whether the disk remembers the life that is known of its node.
func (m memory) holds(known boot) bool {
	return known == boot{} || known == m.boot || known.Epoch < m.Epoch && slices.Contains(m.Lives, known.Nonce)
}

// identity is what a node must not forget beside its log.
type identity struct {
	ID   NodeID `json:"id"`
	Boot boot   `json:"boot"`
	// Lives are the nonces of the boots before, the newest last.
	Lives []string `json:"lives,omitempty"`
	// Refused says that somebody knew of a life that this disk has forgotten: it takes no part in elections any more.
	Refused bool `json:"refused,omitempty"`
	// Seen are the newest boots of others: what lets a peer tell that its disk is old.
	Seen map[NodeID]boot `json:"seen,omitempty"`
	// Promised is the initiator whose forming this node has agreed to; given once.
	Promised NodeID `json:"promised,omitempty"`
	// Peers are addresses of the cluster that this node was taken into.
	Peers []string `json:"peers,omitempty"`
	// Member says that a log of a cluster has been here: an identity without its log has forgotten its votes.
	Member bool `json:"member,omitempty"`
	// Members are those of the last committed configuration that this node saw: who is in the next one no more was removed.
	Members map[NodeID]bool `json:"members,omitempty"`
	// Removed are former members, which are refused for ever: an ID is never used again.
	Removed map[NodeID]bool `json:"removed,omitempty"`
	// Left says that the node left its cluster, and must not start as a member again.
	Left bool `json:"left,omitempty"`
}

// begin starts the next life.
func (id *identity) begin() {
	if id.Boot.Nonce != "" {
		id.Lives = append(id.Lives, id.Boot.Nonce)
		id.Lives = slices.Clone(id.Lives[max(0, len(id.Lives)-maxLives):])
	}
	id.Boot = boot{Epoch: id.Boot.Epoch + 1, Nonce: uuid.NewString()}
}

// loadIdentity reads the identity, and makes one in an empty directory.
func loadIdentity(dir string) (identity, error) {
	data, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, os.ErrNotExist) {
		return identity{ID: NodeID(uuid.NewString()), Seen: map[NodeID]boot{}}, nil
	}
	if err != nil {
		return identity{}, fmt.Errorf("read the node's identity: %w", err)
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil || id.ID == "" {
		return identity{}, fmt.Errorf("the node's identity in %s is damaged: restore it, or empty the data directory to start as a new node", identityFile)
	}
	if id.Seen == nil {
		id.Seen = map[NodeID]boot{}
	}
	return id, nil
}

// writeIdentity replaces the file, durably and whole.
func writeIdentity(dir string, id identity) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	next := filepath.Join(dir, identityFile+".next")
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the node's identity: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(next, filepath.Join(dir, identityFile))
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write the node's identity: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// StoredID is the ID in a data directory; os.ErrNotExist when there is none.
func StoredID(dir string) (NodeID, error) {
	if _, err := os.Stat(filepath.Join(dir, identityFile)); err != nil {
		return "", err
	}
	id, err := loadIdentity(dir)
	return id.ID, err
}
