package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

// settleState finishes what a join began: the state that was put aside belongs back when this node is still who it was,
// and goes when it has become a member elsewhere.
func settleState(dir string) error {
	found, err := filepath.Glob(filepath.Join(dir, asideFile+"*"))
	if err != nil || len(found) == 0 {
		return err
	}
	id, err := cluster.StoredID(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the identity: %w", err)
	}
	state := filepath.Join(dir, stateFile)
	for _, aside := range found {
		if filepath.Base(aside) == asideFile+string(id) {
			if _, err := os.Stat(state); errors.Is(err, os.ErrNotExist) {
				if err := os.Rename(aside, state); err != nil {
					return fmt.Errorf("bring the old state back: %w", err)
				}
				continue
			}
		}
		if err := os.Remove(aside); err != nil {
			return fmt.Errorf("remove the state of the former cluster: %w", err)
		}
	}
	return nil
}
