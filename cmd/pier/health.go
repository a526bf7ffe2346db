package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"pier/api/client"
	"pier/cmd/pier/node"
)

// target is where a command finds its node.
type target struct {
	dataDir string
	server  string
}

func (t *target) addFlags(cmd *cobra.Command) {
	dir := os.Getenv("PIER_DATA_DIR")
	if dir == "" {
		dir = node.Default().DataDir
	}
	cmd.PersistentFlags().StringVar(&t.dataDir, "data-dir", dir, "data directory of the node to talk to (PIER_DATA_DIR)")
	cmd.PersistentFlags().StringVar(&t.server, "server", os.Getenv("PIER_SERVER"), "URL of a node to talk to instead (PIER_SERVER)")
}

func (t *target) client() *client.Client {
	all, _ := readLogins() // without a login the server says what it needs
	login := all[t.server]
	login.CA += "\n" + installedCA(t.server)
	return client.New(client.Options{Socket: filepath.Join(t.dataDir, node.SocketName), Server: t.server, Login: login})
}

func newHealth() *cobra.Command {
	t := &target{}
	push := false
	cmd := &cobra.Command{
		Use: "health", Short: "Say whether a node can serve; exit 0 when it can", Args: cobra.NoArgs,
		Example: "  pier health\n  pier health --push --data-dir /data",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			if err := t.client().Health(ctx, push); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "ready")
			return err
		},
	}
	t.addFlags(cmd)
	cmd.Flags().BoolVar(&push, "push", false, "ask about pushes too, not pulls alone")
	return cmd
}
