package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"pier/api/client"
)

// output is how a command shows its answer: to a person, or as JSON.
type output struct{ format string }

func (o *output) addFlags(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVarP(&o.format, "output", "o", "", "json for programs")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that isn't there
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return o.check() }
}

func (o *output) check() error {
	if o.format != "" && o.format != "json" {
		return &exitError{exitUsage, fmt.Sprintf("-o %s: want json", o.format)}
	}
	return nil
}

// show prints JSON or a line.
func (o *output) show(cmd *cobra.Command, v any, line string, args ...any) error {
	if o.format == "json" {
		return printJSON(cmd.OutOrStdout(), v)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), line+"\n", args...)
	return err
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printStatus shows the cluster to a person.
func printStatus(w io.Writer, s client.Status) error {
	health := "healthy"
	switch {
	case !s.Quorum:
		health = "NO QUORUM: pulls by digest work, pushes wait"
	case !s.Healthy:
		health = "degraded"
	}
	if len(s.Nodes) == 0 {
		_, err := fmt.Fprintln(w, "no cluster yet: this node waits for the others; its log says for whom")
		return err
	}
	fmt.Fprintf(w, "cluster %s: %s, term %d\n\n", s.ClusterID, health, s.Term)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tROLE\tSTATE\tAPPLIED\tBLOBS\tMISSING\tSIZE\tFREE\tAPI\tCLUSTER\tVERSION\tID")
	for _, n := range s.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Role, n.State, n.AppliedIndex, n.Blobs, n.BlobsMissing,
			size(n.Bytes), size(n.DiskFree), n.API, n.Cluster, n.Version, n.ID)
	}
	return t.Flush()
}

// moment is a time as a person's clock shows it.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04 MST") }

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
