package node

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"pier/cluster/port"
)

const secretFile = "cluster.secret"

// warnReadable says aloud that the file is open to everybody on this machine: whoever reads it is a member.
func warnReadable(cfg Config, logger *slog.Logger) {
	path := secretPath(cfg)
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o007 != 0 {
		logger.Warn("THE CLUSTER'S SECRET IS OPEN: every user of this machine can read or change it; chmod o= it", "file", path, "mode", info.Mode().Perm())
	}
}

func secretPath(cfg Config) string {
	return cmp.Or(cfg.ClusterSecretFile, filepath.Join(cfg.DataDir, secretFile))
}

// loadSecrets reads the cluster's secrets, and invents one where there is none yet. Several nodes that share the file
// (a volume, say) may start at once: the file appears whole or not at all, and the first one's stands.
func loadSecrets(cfg Config) (port.Secrets, error) {
	path := secretPath(cfg)
	secrets, err := port.LoadSecrets(path)
	if err == nil {
		return secrets, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the cluster secret: %w", err)
	}
	fresh := path + "." + uuid.NewString()
	defer func() { _ = os.Remove(fresh) }()
	if err := port.SaveSecrets(fresh, port.Secrets{port.NewSecret()}); err != nil {
		return nil, fmt.Errorf("make a cluster secret (the file %s is missing): %w", path, err)
	}
	if err := os.Link(fresh, path); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make a cluster secret: %w", err)
	}
	secrets, err = port.LoadSecrets(path)
	if err != nil {
		return nil, fmt.Errorf("read the cluster secret: %w", err)
	}
	return secrets, nil
}
