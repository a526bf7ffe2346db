package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pier/api/client"
)

func newDoctor() *cobra.Command {
	o := &controlOptions{}
	all := false
	cmd := &cobra.Command{
		Use: "doctor", Short: "What is wrong on any node, and what to do about it", Args: cobra.NoArgs,
		Long: "Have all nodes look at themselves and at each other: certificates, who can get in, files, disks, blobs, clocks, versions.\n" +
			"Exit code: 0 no problem (there may be warnings), 3 a problem, 1 no answer.",
		Example: "  pier doctor\n  pier doctor --all --data-dir /var/lib/pier\n  pier doctor -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			found, err := o.client().Doctor(ctx)
			if err != nil {
				return err
			}
			if o.format == "json" {
				err = printJSON(cmd.OutOrStdout(), found)
			} else {
				err = printFindings(cmd.OutOrStdout(), found, all)
			}
			if err == nil && countLevel(found, client.LevelProblem) > 0 {
				return &exitError{code: exitDegraded}
			}
			return err
		},
	}
	o.addFlags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "show what is well, too")
	return cmd
}

func countLevel(found []client.Finding, level string) int {
	n := 0
	for _, f := range found {
		if f.Level == level {
			n++
		}
	}
	return n
}

// printFindings shows what needs a person, or everything.
func printFindings(w io.Writer, found []client.Finding, all bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range found {
		if f.Level == client.LevelOK && !all {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", f.Node, f.Check, f.Level, f.Message)
		if f.Remedy != "" {
			fmt.Fprintf(t, "\t\t\t  %s\n", f.Remedy)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d checks, %d problems, %d warnings\n", len(found), countLevel(found, client.LevelProblem), countLevel(found, client.LevelWarning))
	return err
}
