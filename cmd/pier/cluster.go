package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pier/api/client"
)

func newCluster() *cobra.Command {
	o := &controlOptions{}
	cmd := o.group("cluster", "Look at the cluster, and change who is in it", "  pier cluster status\n  pier cluster remove node3 --data-dir /var/lib/pier")
	cmd.AddCommand(o.newStatus(), o.newInvite(), o.newJoin(), o.newLeave(), o.newRemove(), o.newTransfer(), o.newSecret())
	return cmd
}

func (o *controlOptions) newStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Who is in, who leads, who is behind", Args: cobra.NoArgs,
		Long:    "Show the cluster as a node and its peers see it.\nExit code: 0 healthy, 3 degraded, 4 no quorum, 1 no answer.",
		Example: "  pier cluster status\n  pier cluster status -o json --data-dir /data",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			s, err := o.client().Status(ctx)
			if err != nil {
				return err
			}
			if o.format == "json" {
				err = printJSON(cmd.OutOrStdout(), s)
			} else {
				err = printStatus(cmd.OutOrStdout(), s)
			}
			switch {
			case err != nil:
				return err
			case !s.Quorum:
				return &exitError{code: exitNoQuorum}
			case !s.Healthy:
				return &exitError{code: exitDegraded}
			}
			return nil
		},
	}
}

func (o *controlOptions) newInvite() *cobra.Command {
	ttl := ""
	cmd := &cobra.Command{
		Use: "invite", Short: "Make a one-time token that lets a node in", Args: cobra.NoArgs,
		Example: "  pier cluster invite --ttl 10m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, err := o.client().Invite(cmd.Context(), client.InviteRequest{TTL: ttl})
			if err != nil {
				return err
			}
			return o.show(cmd, i, "%s", i.Token)
		},
	}
	cmd.Flags().StringVar(&ttl, "ttl", "1h", "how long the token can be used, such as 10m or 7d")
	return cmd
}

func (o *controlOptions) newJoin() *cobra.Command {
	discard := false
	cmd := &cobra.Command{
		Use: "join TOKEN", Short: "Make this node a member of the cluster that the token comes from", Args: cobra.ExactArgs(1),
		Long: "Make this node a member of the cluster that the token comes from. With - the token is read from standard input, where\n" +
			"no list of processes shows it.",
		Example: "  pier cluster join pier1-…\n  ssh node1 pier cluster invite | pier cluster join -",
		RunE: func(cmd *cobra.Command, args []string) error {
			token := args[0]
			if token == "-" {
				var err error
				if token, err = firstLine(cmd.InOrStdin(), "the token"); err != nil {
					return err
				}
			}
			j, err := o.client().Join(cmd.Context(), client.JoinRequest{Token: token, Discard: discard})
			if err != nil {
				return err
			}
			if err := o.waitMember(cmd.Context(), j); err != nil {
				return err
			}
			return o.show(cmd, j, "joined cluster %s as %s", j.ClusterID, j.ID)
		},
	}
	cmd.Flags().BoolVar(&discard, "discard", false, "join even though this node holds images, which it then drops")
	return cmd
}

// waitMember waits until the node serves as a member under its new ID.
func (o *controlOptions) waitMember(ctx context.Context, j client.Joined) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if o.client().Health(ctx, true) == nil {
			s, err := o.client().Status(ctx)
			for _, n := range s.Nodes {
				if err == nil && n.ID == j.ID && s.Quorum {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster has taken the node in as %s, but it isn't ready yet. The others look for it at %s: if they can't reach that, "+
				"remove it there (pier cluster remove %s), and start it anew with an empty data directory, and --cluster-listen and --cluster-advertise as they need it", j.ID, j.Cluster, j.ID)
		case <-tick.C:
		}
	}
}

func (o *controlOptions) newLeave() *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "Take this node out of its cluster, once others hold what it holds", Args: cobra.NoArgs,
		Long: "Take this node out of its cluster, once others hold what it holds. Its process ends; started again it says that it has left,\n" +
			"and waits. To use it again, empty its data directory and restart it: it starts as a new node, which joins as its settings say\n" +
			"or by an invite.",
		Example: "  pier cluster leave\n  pier cluster leave --data-dir /var/lib/pier",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.client().Leave(cmd.Context()); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "this node has left; its process ends, and its data directory can go")
		},
	}
}

func (o *controlOptions) newRemove() *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "Take a node out that can't leave by itself", Args: cobra.ExactArgs(1),
		Long:    "Take a node out, by its name or ID. Refused when the cluster would lose its majority or the last copy of a blob.",
		Example: "  pier cluster remove node3", ValidArgsFunction: o.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.client().Remove(cmd.Context(), client.RemoveRequest{Node: args[0], Force: force}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "removed %s", args[0])
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it whatever is lost")
	return cmd
}

func (o *controlOptions) newTransfer() *cobra.Command {
	return &cobra.Command{
		Use: "transfer [NODE]", Short: "Hand leadership to another node", Args: cobra.MaximumNArgs(1), ValidArgsFunction: o.completeNodes,
		Example: "  pier cluster transfer          to the fittest\n  pier cluster transfer node2",
		RunE: func(cmd *cobra.Command, args []string) error {
			var r client.TransferRequest
			if len(args) == 1 {
				r.Node = args[0]
			}
			if err := o.client().Transfer(cmd.Context(), r); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "leadership was handed on")
		},
	}
}

// completeNodes offers the members' names to a shell.
func (o *controlOptions) completeNodes(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var names []string
	if s, err := o.client().Status(ctx); err == nil && len(args) == 0 {
		for _, n := range s.Nodes {
			names = append(names, n.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
