package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pier/api/client"
)

func newAudit() *cobra.Command {
	o := &controlOptions{}
	r := client.AuditRequest{}
	follow := false
	since := ""
	cmd := &cobra.Command{
		Use: "audit", Short: "Who did what, on all nodes: changes, and what was refused", Args: cobra.NoArgs,
		Long: "Show the audit logs of all nodes that answer, oldest line first. With -o json a line is one JSON object.\n" +
			"NAME? is who a wrong password was given for; a name that nobody has isn't kept, since it may be a password.",
		Example: "  pier audit --since 1h --user alice\n  pier audit --follow -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since != "" {
				age, err := client.ParseLifetime(since)
				if err != nil {
					return &exitError{exitUsage, "--since " + err.Error()}
				}
				r.Since = time.Now().Add(-age)
			}
			if r.Limit < 1 {
				return &exitError{exitUsage, "--limit: want at least 1"}
			}
			return o.audit(cmd, r, follow)
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&since, "since", "", "only what is younger than this, such as 1h or 7d")
	cmd.Flags().StringVar(&r.Principal, "user", "", "only what this user or robot did")
	cmd.Flags().StringVar(&r.Repository, "repository", "", "only what touched this repository")
	cmd.Flags().IntVar(&r.Limit, "limit", 100, "at most this many lines, the newest")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with what comes, until Ctrl-C")
	return cmd
}

const (
	followPause = time.Second
	followLimit = 1000 // lines of a node at a time
)

func (o *controlOptions) audit(cmd *cobra.Command, r client.AuditRequest, follow bool) error {
	c := o.client()
	silent := ""
	for {
		page, err := c.Audit(cmd.Context(), r)
		if err != nil {
			return err
		}
		if now := strings.Join(page.Silent, ", "); now != silent {
			if silent = now; now != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: no answer from %s, whose lines are missing\n", now)
			}
		}
		for _, l := range page.Lines {
			if err := o.showLine(cmd, l); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		full := r.After != "" && len(page.Lines) >= followLimit // there may be more
		r.After, r.Since, r.Limit = page.Next, time.Time{}, followLimit
		if full {
			continue
		}
		select {
		case <-cmd.Context().Done():
			return nil // Ctrl-C
		case <-time.After(followPause):
		}
	}
}

func (o *controlOptions) showLine(cmd *cobra.Command, l client.AuditLine) error {
	if o.format == "json" {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(l)
	}
	who, what := l.Principal, l.Repository
	switch {
	case who == "" && l.Claimed != "":
		who = l.Claimed + "?"
	case who == "":
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
