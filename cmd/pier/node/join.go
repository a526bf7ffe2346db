package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"pier/blobsync/store"
	"pier/cluster"
)

const (
	stateFile = "state.db"
	// asideFile keeps the old state while a join is under way; the ID in its name says whose it is.
	asideFile = "state.db.before-join-"
)

// join makes this node a new member of the cluster that the order's token names. The inside is stopped meanwhile. The old
// state steps aside first and comes back when joining fails, so that a crash at any point leaves either the old node or
// the new one, never a new member with an old memory.
func (n *Node) join(ctx context.Context, order joinOrder) (cluster.Joined, error) {
	old := n.instance()
	aside := filepath.Join(n.cfg.DataDir, asideFile+string(old.cluster.ID()))
	state := filepath.Join(n.cfg.DataDir, stateFile)
	if err := os.Rename(state, aside); err != nil {
		return cluster.Joined{}, fmt.Errorf("put the old state aside: %w", err)
	}
	joined, err := cluster.Join(ctx, cluster.JoinConfig{
		DataDir: n.cfg.DataDir, Token: order.token, Name: n.cfg.Name, Advertise: old.cluster.Advertised(),
		API: advertisedAPI(n.cfg, n.public.address()), Network: n.opts.Network, Logger: n.logger,
	})
	if err != nil {
		return cluster.Joined{}, err
	}
	return joined, nil
}

// settleState brings back the state that was put aside for a join which came to nothing: this node is still who it was.
func settleState(dir string) error {
	id, err := cluster.StoredID(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the identity: %w", err)
	}
	state, aside := filepath.Join(dir, stateFile), filepath.Join(dir, asideFile+string(id))
	if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(aside, state); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bring the old state back: %w", err)
	}
	return nil
}

// dropFormer lets go of what this node held as somebody else, before it joined. The state goes last: while it is there this
// isn't done.
func dropFormer(dir string, id cluster.NodeID, blobs *store.Store) error {
	former, err := filepath.Glob(filepath.Join(dir, asideFile+"*"))
	former = slices.DeleteFunc(former, func(aside string) bool { return filepath.Base(aside) == asideFile+string(id) })
	if err != nil || len(former) == 0 {
		return err
	}
	if err := blobs.ReleaseAll(context.Background()); err != nil {
		return fmt.Errorf("let go of the blobs from before: %w", err)
	}
	for _, aside := range former {
		if err := os.Remove(aside); err != nil {
			return fmt.Errorf("remove the state of the former cluster: %w", err)
		}
	}
	return nil
}
