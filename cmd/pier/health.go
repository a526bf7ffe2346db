package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

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
