package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"pier/api/client"
)

func newAccess() *cobra.Command {
	o := &controlOptions{}
	cmd := o.group("access", "Say who may do what", "  pier access grant alice push 'team/**'\n  pier access ls")
	cmd.AddCommand(o.newGrant(), o.newRevoke(), o.newExplain(), o.newGrants(), o.newOpen(), o.newClose())
	return cmd
}

const grantHelp = "SUBJECT is a user, a robot, group:NAME, or anonymous for everybody.\n" +
	"RIGHT is pull, push (and pull), delete, or admin (all of it).\n" +
	"PATTERN is a repository; * stands for any part of one segment, ** for any segments. Quote it from the shell."

func (o *controlOptions) newGrant() *cobra.Command {
	return &cobra.Command{
		Use: "grant SUBJECT RIGHT PATTERN", Short: "Give a right", Long: "Give a right.\n" + grantHelp, Args: cobra.ExactArgs(3),
		Example: "  pier access grant alice push 'team/**'\n  pier access grant anonymous pull 'public/**'\n  pier access grant group:dev pull '**'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.client().Grant(cmd.Context(), client.Grant{Subject: args[0], Right: args[1], Pattern: args[2]}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "%s may %s %s", args[0], args[1], args[2])
		},
	}
}

func (o *controlOptions) newRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke SUBJECT RIGHT PATTERN", Short: "Take a right away, at once and on every node", Args: cobra.ExactArgs(3),
		Example: "  pier access revoke alice push 'team/**'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.client().Revoke(cmd.Context(), client.Grant{Subject: args[0], Right: args[1], Pattern: args[2]}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "took %s on %s from %s", args[1], args[2], args[0])
		},
	}
}

func (o *controlOptions) newExplain() *cobra.Command {
	return &cobra.Command{
		Use: "explain SUBJECT RIGHT REPOSITORY", Short: "Tell which grant decides; exit 0 when it is allowed", Args: cobra.ExactArgs(3),
		Example: "  pier access explain alice push team/app",
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := o.client().Explain(cmd.Context(), client.ExplainRequest{Subject: args[0], Right: args[1], Repository: args[2]})
			if err != nil {
				return err
			}
			word := "no"
			if e.Allowed {
				word = "yes"
			}
			if err := o.show(cmd, e, "%s: %s", word, e.Reason); err != nil || e.Allowed {
				return err
			}
			return &exitError{code: 1}
		},
	}
}

func (o *controlOptions) newGrants() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the grants", Args: cobra.NoArgs, Example: "  pier access ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			access, err := o.client().Access(cmd.Context())
			if err != nil {
				return err
			}
			if o.format == "json" {
				return printJSON(cmd.OutOrStdout(), access)
			}
			if !access.On {
				fmt.Fprintln(cmd.OutOrStdout(), "access control is off: everybody may pull, push and delete")
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "SUBJECT\tRIGHT\tPATTERN")
			for _, g := range access.Grants {
				fmt.Fprintf(t, "%s\t%s\t%s\n", g.Subject, g.Right, g.Pattern)
			}
			return t.Flush()
		},
	}
}

func (o *controlOptions) newOpen() *cobra.Command {
	sure := false
	cmd := &cobra.Command{
		Use: "open", Short: "Turn access control off: everybody may pull, push and delete", Args: cobra.NoArgs,
		Example: "  pier access open --yes-i-mean-it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sure {
				return &exitError{exitUsage, "this lets everybody who reaches a node pull, push and delete; say --yes-i-mean-it"}
			}
			if err := o.client().OpenAccess(cmd.Context()); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "access control is off")
		},
	}
	cmd.Flags().BoolVar(&sure, "yes-i-mean-it", false, "open it")
	return cmd
}

func (o *controlOptions) newClose() *cobra.Command {
	return &cobra.Command{
		Use: "close", Short: "Turn access control on again, with the users and grants that there are", Args: cobra.NoArgs,
		Example: "  pier access close",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.client().CloseAccess(cmd.Context()); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "access control is on")
		},
	}
}
