package main

import (
	"os"
	"path/filepath"
	"strings"

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
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return t.check() }
}

// check sees to it that a login is found that there is, however the URL was written.
func (t *target) check() error {
	t.server = strings.TrimRight(t.server, "/")
	if t.server == "" {
		return nil
	}
	_, err := readLogins()
	return err
}

// needServer is for what is about a login.
func (t *target) needServer() error {
	if t.server == "" {
		return &exitError{exitUsage, "say with --server which node, such as --server https://registry.lan:5000"}
	}
	return nil
}

func (t *target) client() *client.Client {
	all, _ := readLogins() // checked before; without a login the server says what it needs
	login := all[t.server]
	login.CA += "\n" + installedCA(t.server)
	return client.New(client.Options{Socket: filepath.Join(t.dataDir, node.SocketName), Server: t.server, Login: login})
}

// controlOptions are what the commands share that ask a node to do something.
type controlOptions struct {
	target
	output
}

func (o *controlOptions) addFlags(cmd *cobra.Command) {
	o.target.addFlags(cmd)
	o.output.addFlags(cmd)
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error {
		if err := o.output.check(); err != nil {
			return err
		}
		return o.target.check()
	}
}

// group makes a command that only has others under it, which all get the shared flags.
func (o *controlOptions) group(use, short, example string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example}
	group(cmd)
	o.addFlags(cmd)
	return cmd
}
