package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"pier/api/client"
)

func newRobot() *cobra.Command {
	o := &controlOptions{}
	cmd := o.group("robot", "Let programs in, with secrets of their own", "  pier robot add ci --grant push:'team/app' --expires 90d")
	cmd.AddCommand(o.newRobotAdd(), o.newRobotRotate(), o.newRemovePrincipal("robot"), o.newListOf("robot"), o.newRobotTrust())
	return cmd
}

func (o *controlOptions) newRobotAdd() *cobra.Command {
	var grants []string
	expires, bare := "", false
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Make a robot and print its secret, this once", Args: cobra.ExactArgs(1),
		Example: "  pier robot add ci --grant push:'team/app' --expires 90d\n  pier robot add ci --grant push:'team/app' --no-secret",
		RunE: func(cmd *cobra.Command, args []string) error {
			r := client.RobotRequest{Name: args[0], TTL: expires, NoSecret: bare}
			for _, g := range grants {
				right, pattern, ok := strings.Cut(g, ":")
				if !ok {
					return &exitError{exitUsage, fmt.Sprintf("--grant %s: want RIGHT:PATTERN", g)}
				}
				r.Grants = append(r.Grants, client.Grant{Right: right, Pattern: pattern})
			}
			s, err := o.client().AddRobot(cmd.Context(), r)
			if err != nil {
				return err
			}
			if bare {
				return o.show(cmd, s, "added %s, which has no secret; `pier robot trust add %s` lets its jobs in", s.Name, s.Name)
			}
			return o.show(cmd, s, "%s", s.Secret)
		},
	}
	cmd.Flags().BoolVar(&bare, "no-secret", false, "make no secret: it comes in by trust rules alone")
	cmd.Flags().StringArrayVar(&grants, "grant", nil, "RIGHT:PATTERN that it gets; may be repeated")
	cmd.Flags().StringVar(&expires, "expires", "", "how long it lives, such as 12h or 90d; empty: for ever")
	return cmd
}

func (o *controlOptions) newRobotRotate() *cobra.Command {
	keep := ""
	cmd := &cobra.Command{
		Use: "rotate NAME", Short: "Give a robot a new secret and print it, this once", Args: cobra.ExactArgs(1),
		Example: "  pier robot rotate ci --keep 24h",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := o.client().RotateRobot(cmd.Context(), client.RotateRequest{Name: args[0], Keep: keep})
			if err != nil {
				return err
			}
			return o.show(cmd, s, "%s", s.Secret)
		},
	}
	cmd.Flags().StringVar(&keep, "keep", "", "how long the secrets from before stay good; empty: not at all")
	return cmd
}
