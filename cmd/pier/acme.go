package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"pier/api/client"
)

func newACME() *cobra.Command {
	o := &controlOptions{}
	cmd := o.group("acme", "Deal with the certificates of an ACME server (tls acme)", "  pier acme renew")
	cmd.AddCommand(o.newRenew())
	return cmd
}

func (o *controlOptions) newRenew() *cobra.Command {
	return &cobra.Command{
		Use: "renew [NAME…]", Short: "Replace certificates before they are due, with new keys, on every node",
		Long: "Have the ACME server give new certificates, with new keys, for the public names (all of them unless some are named). One\n" +
			"node orders each, and all use it. Certificates renew by themselves: this is for a key that may have leaked, and to try at\n" +
			"once what has failed. The server may count it against its limits, and doesn't revoke the old ones for it.\n\n" +
			"Stopping this command stops nothing: `pier doctor` shows what doesn't work.",
		Example: "  pier acme renew\n  pier acme renew registry.example.org",
		RunE: func(cmd *cobra.Command, args []string) error {
			renewed, err := o.client().RenewCertificates(cmd.Context(), client.RenewRequest{Names: args})
			if err != nil {
				return err
			}
			if o.format == "json" {
				return printJSON(cmd.OutOrStdout(), renewed)
			}
			for _, name := range slices.Sorted(maps.Keys(renewed.Ends)) {
				fmt.Fprintf(cmd.OutOrStdout(), "%s has a new certificate, until %s\n", name, moment(renewed.Ends[name]))
			}
			return nil
		},
	}
}
