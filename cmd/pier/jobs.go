package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"pier/api/client"
)

const trustHelp = "A CI system that makes ID tokens for its jobs (OpenID Connect) says which job is which. A trust rule lets the jobs of one\n" +
	"issuer in as a robot, by that token and with no secret to keep: docker login -u ROBOT --password-stdin takes it, and so does\n" +
	"an exchange at /token (RFC 8693). What comes of a token ends with it, with the rule and with the robot.\n\n" +
	"All claims have to match, to the letter. In a pattern a * stands for any part of a segment between / and :, and at its end\n" +
	"for whatever follows. A claim that is a list matches when one of its entries does. Claims inside others are not looked at.\n" +
	"Where an issuer serves everybody, as GitHub's and GitLab.com's do, name what is yours: the claim sub, or repository."

func (o *controlOptions) newRobotTrust() *cobra.Command {
	cmd := &cobra.Command{
		Use: "trust", Short: "Let CI jobs in as a robot by their own ID tokens", Long: "Let CI jobs in as a robot by their own ID tokens.\n\n" + trustHelp,
		Example: "  pier robot trust add ci --issuer https://token.actions.githubusercontent.com --audience registry.lan --claim 'sub=repo:team/app:*'\n  pier robot trust ls",
	}
	group(cmd)
	cmd.AddCommand(o.newTrustAdd(), o.newTrustList(), o.newTrustRemove(), o.newTrustTest())
	return cmd
}

func (o *controlOptions) newTrustAdd() *cobra.Command {
	var r client.TrustRequest
	ca := ""
	cmd := &cobra.Command{
		Use: "add NAME --issuer URL --audience AUDIENCE --claim CLAIM=PATTERN…", Short: "Add a rule", Long: "Add a rule.\n\n" + trustHelp, Args: cobra.ExactArgs(1),
		Example: "  pier robot add ci --no-secret --grant push:team/app\n" +
			"  pier robot trust add ci --issuer https://token.actions.githubusercontent.com --audience registry.lan --claim 'sub=repo:team/app:*'\n" +
			"  pier robot trust add ci-main --robot ci --issuer https://gitlab.lan --ca gitlab-ca.crt --audience registry.lan --claim project_path=team/app --claim ref=main",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if r.Rule.CA, err = readCA(ca); err != nil {
				return err
			}
			r.Rule.Name = args[0]
			if r.Rule.Robot == "" {
				r.Rule.Robot = r.Rule.Name
			}
			if err := o.client().AddTrust(cmd.Context(), r); err != nil {
				return err
			}
			return o.show(cmd, r.Rule, "jobs of %s come in as %s", r.Rule.Issuer, r.Rule.Robot)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Rule.Robot, "robot", "", "who such a job is here; empty: the robot of the rule's name")
	f.StringVar(&r.Rule.Issuer, "issuer", "", "who makes the tokens, a URL as it is in them")
	f.StringVar(&ca, "ca", "", "file with the CA of the issuer's certificate, PEM; empty: what the nodes' systems trust")
	f.StringVar(&r.Rule.Audience, "audience", "", "what the token must be made for; the job says it when it asks for one")
	f.StringArrayVar(&r.Rule.Claims, "claim", nil, "CLAIM=PATTERN that must match; may be repeated, and then all must")
	f.BoolVar(&r.Rule.AnyJob, "any-job", false, "let every job of the issuer in that asks for this audience")
	f.BoolVar(&r.Rule.Insecure, "insecure-http", false, "ask the issuer without TLS, where others can change what it says")
	f.BoolVar(&r.Replace, "replace", false, "replace the rule of that name; what came in by it ends")
	return cmd
}

func (o *controlOptions) newTrustList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the rules", Args: cobra.NoArgs, Example: "  pier robot trust ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			rules, err := o.client().TrustRules(cmd.Context())
			if err != nil {
				return err
			}
			if o.format == "json" {
				return printJSON(cmd.OutOrStdout(), rules)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "NAME\tROBOT\tISSUER\tAUDIENCE\tCLAIMS")
			for _, r := range rules {
				claims := strings.Join(r.Claims, " ")
				if len(r.Claims) == 0 {
					claims = "(any job)"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Name, r.Robot, r.Issuer, r.Audience, claims)
			}
			return t.Flush()
		},
	}
}

func (o *controlOptions) newTrustRemove() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Remove a rule; what came in by it ends", Args: cobra.ExactArgs(1), Example: "  pier robot trust rm ci",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.client().RemoveTrust(cmd.Context(), client.NameRequest{Name: args[0]}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "removed the rule %s", args[0])
		},
	}
}

func (o *controlOptions) newTrustTest() *cobra.Command {
	return &cobra.Command{
		Use: "test", Short: "Tell what the rules make of an ID token, from standard input; exit 0 when one admits it", Args: cobra.NoArgs,
		Example: "  pier robot trust test < token.jwt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := firstLine(cmd.InOrStdin(), "the token")
			if err != nil {
				return err
			}
			verdicts, err := o.client().TestTrust(cmd.Context(), client.TrustTest{Token: strings.TrimSpace(text)})
			if err != nil {
				return err
			}
			code := 1
			var lines []string
			for _, v := range verdicts {
				line := fmt.Sprintf("%s: no: %s", v.Rule, v.Reason)
				if v.Admits {
					code, line = 0, fmt.Sprintf("%s: yes, as %s", v.Rule, v.Robot)
				}
				lines = append(lines, line)
			}
			if err := o.show(cmd, verdicts, "%s", strings.Join(lines, "\n")); err != nil || code == 0 {
				return err
			}
			return &exitError{code: code}
		},
	}
}
