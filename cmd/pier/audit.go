package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/spf13/cobra"

	"pier/api/client"
)

func newAudit() *cobra.Command {
	o := &controlOptions{}
	r := client.AuditRequest{}
	follow := false
	var since time.Duration
	cmd := &cobra.Command{
		Use: "audit", Short: "Who did what, on all nodes: changes, and what was refused", Args: cobra.NoArgs,
		Long:    "Show the audit logs of all nodes that answer, oldest line first. With -o json a line is one JSON object.",
		Example: "  pier audit --since 1h --user alice\n  pier audit --follow -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since > 0 {
				r.Since = time.Now().Add(-since)
			}
			return o.audit(cmd, r, follow)
		},
	}
	o.target.addFlags(cmd)
	o.output.addFlags(cmd)
	cmd.Flags().DurationVar(&since, "since", 0, "only what is younger than this")
	cmd.Flags().StringVar(&r.Principal, "user", "", "only what this user or robot did")
	cmd.Flags().StringVar(&r.Repository, "repository", "", "only what touched this repository")
	cmd.Flags().IntVar(&r.Limit, "limit", 100, "at most this many lines, the newest")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with what comes, until Ctrl-C")
	return cmd
}

const (
	followPause = time.Second
	followLimit = 10_000 // lines of a minute, so that a burst hides nothing
)

func (o *controlOptions) audit(cmd *cobra.Command, r client.AuditRequest, follow bool) error {
	c := o.client()
	shown := map[client.AuditLine]bool{} // clocks differ, so that "newer than the last" would miss some
	for {
		lines, err := c.Audit(cmd.Context(), r)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if shown[l] {
				continue
			}
			shown[l] = true
			if err := o.showLine(cmd, l); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		r.Since, r.Limit = time.Now().Add(-time.Minute), followLimit
		maps.DeleteFunc(shown, func(l client.AuditLine, _ bool) bool { return !l.Time.After(r.Since) }) // they don't come again
		if err := pause(cmd.Context(), followPause); err != nil {
			return nil // Ctrl-C
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (o *controlOptions) showLine(cmd *cobra.Command, l client.AuditLine) error {
	if o.format == "json" {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(l)
	}
	who, what := l.Principal, l.Repository
	if who == "" {
		who = l.Kind
	}
	switch {
	case l.Reference != "":
		what += ":" + l.Reference
	case l.Digest != "":
		what += "@" + l.Digest
	case l.Target != "":
		what = l.Target
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %-8s %-12s %-15s %3d  %-16s %s\n", l.Time.Local().Format("2006-01-02 15:04:05"), l.Node, who, l.Address, l.Status, l.Action, what)
	return err
}
