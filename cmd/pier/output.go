package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"pier/api/client"
)

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
	fmt.Fprintf(w, "cluster %s: %s, term %d\n\n", s.ClusterID, health, s.Term)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tROLE\tSTATE\tAPPLIED\tBLOBS\tMISSING\tSIZE\tFREE\tAPI\tCLUSTER\tVERSION\tID")
	for _, n := range s.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Role, n.State, n.AppliedIndex, n.Blobs, n.BlobsMissing,
			size(n.Bytes), size(n.DiskFree), n.API, n.Cluster, n.Version, n.ID)
	}
	return t.Flush()
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
