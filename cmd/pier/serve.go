package main

import (
	"errors"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"pier/cmd/pier/node"
)

func newServe() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a node", Args: cobra.NoArgs,
		Long: "Run a node: a working registry by itself, or one of a cluster.\nA setting is a flag, a PIER_* variable or a key of the --config file, in this order.",
		Example: "  pier serve\n" +
			"  pier serve --listen 0.0.0.0:5000 --data-dir /var/lib/pier\n" +
			"  pier serve --bootstrap-expect 3 --join a:7000,b:7000,c:7000 --cluster-listen 0.0.0.0:7000 --cluster-advertise a:7000 --cluster-secret-file secret",
	}
	node.AddFlags(cmd.Flags())
	for flag, values := range map[string][]string{"log-format": {"text", "json"}, "log-level": {"debug", "info", "warn", "error"}} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that isn't there
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := node.Load(cmd.Flags(), os.Environ())
		if err != nil {
			return &exitError{exitUsage, "the settings need a look:\n" + err.Error()}
		}
		logger := newLogger(cmd.ErrOrStderr(), cfg)
		n, err := node.New(cfg, node.Options{Logger: logger, Version: versionText()})
		if errors.Is(err, node.ErrLeft) {
			// Who starts every program again that ends would do so for ever, and ends nothing by it.
			logger.Error("this node has left its cluster and serves nothing; to use it again, empty its data directory and restart it: it starts as a new node", "data", cfg.DataDir)
			<-cmd.Context().Done()
		}
		if err != nil {
			return err
		}
		logger.Info("serving", "url", n.URL(), "node", n.ID(), "name", cfg.Name, "cluster", n.ClusterAddress(), "data", cfg.DataDir, "version", versionText())
		if open := n.Exposure(); open != "" {
			logger.Warn(open, "listen", cfg.Listen)
		}
		return n.Run(cmd.Context())
	}
	return cmd
}

func newLogger(w io.Writer, cfg node.Config) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.LogLevel)) // validated with the settings
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
