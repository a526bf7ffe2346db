package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pier/api/client"
)

func (o *controlOptions) newSecret() *cobra.Command {
	cmd := &cobra.Command{
		Use: "secret", Short: "Replace the cluster's secret while it serves",
		Long: "The cluster's secret makes a node a member, signs the tokens of clients and is the CA of tls auto. It is replaced in\n" +
			"steps, each of which waits for every node: all accept the new one, all use it, all forget the old one.",
		Example: "  pier cluster secret rotate\n  pier cluster secret status",
	}
	group(cmd)
	cmd.AddCommand(o.newSecretRotate(), o.newSecretStatus(), o.newSecretDrop())
	return cmd
}

func (o *controlOptions) newSecretRotate() *cobra.Command {
	keep := ""
	cmd := &cobra.Command{
		Use: "rotate", Short: "Make a new secret, bring it to every node, and use it", Args: cobra.NoArgs,
		Long: "Make a new secret, bring it to every node, and use it. No node restarts and no request fails. The old one is accepted\n" +
			"for --keep-old after that, so that logins and clients that trust its CA go on; until then clients of tls auto have to\n" +
			"trust the new CA (pier trust). Invites from before end at once.\n\n" +
			"When the old secret may have leaked, first let nobody but the nodes reach the cluster port: whoever has it is a member\n" +
			"until it is dropped. Then rotate with --keep-old 0: it is dropped minutes after all use the new one, and everybody who\n" +
			"came in by a login that lasts (pier login, docker login with a refresh token) has to log in again.\n\n" +
			"Stopping this command stops nothing: `pier cluster secret status` shows how far it is.",
		Example: "  pier cluster secret rotate\n  pier cluster secret rotate --keep-old 7d\n  pier cluster secret rotate --keep-old 0",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := client.RotateSecretRequest{KeepOld: keep}
			if _, err := r.Keep(); err != nil {
				return &exitError{exitUsage, err.Error()}
			}
			s, err := o.client().RotateSecret(cmd.Context(), r)
			if err != nil {
				return err
			}
			if s, err = o.watchSecret(cmd, s); err != nil {
				return err
			}
			if o.format == "json" {
				return printJSON(cmd.OutOrStdout(), s)
			}
			sayRolled(cmd.OutOrStdout(), s)
			return nil
		},
	}
	cmd.Flags().StringVar(&keep, "keep-old", "30d", "how long the old secret is accepted after that, such as 12h or 7d; 0: minutes")
	return cmd
}

// watchSecret says what happens until every node uses the new secret.
func (o *controlOptions) watchSecret(cmd *cobra.Command, s client.SecretStatus) (client.SecretStatus, error) {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	said := ""
	patient := time.Now()
	for {
		line := map[string]string{"add": "bringing the new secret to every node", "roll": "every node accepts it; changing over to it"}[s.Step]
		if waits := waitsFor(s); waits != "" && time.Since(patient) > 2*time.Second {
			line += "\n" + waits
		}
		if line != said && !s.Rolled() {
			said = line
			fmt.Fprintln(cmd.ErrOrStderr(), line)
		}
		if s.Rolled() {
			return s, nil
		}
		select {
		case <-cmd.Context().Done():
			return s, fmt.Errorf("the rotation goes on without this command: %w", cmd.Context().Err())
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
		next, err := o.client().SecretStatus(ctx)
		cancel()
		if err != nil {
			return s, fmt.Errorf("the rotation goes on without this command: %w", err)
		}
		if next.Step != s.Step {
			patient = time.Now()
		}
		s = next
	}
}

// waitsFor names the nodes that a step waits for, and what can be done.
func waitsFor(s client.SecretStatus) string {
	if len(s.Waiting) == 0 {
		return ""
	}
	var b strings.Builder
	for _, n := range s.Nodes {
		if slices.Contains(s.Waiting, n.Name) {
			fmt.Fprintf(&b, "waiting for %s", n.Name)
			if n.Fault != "" {
				b.WriteString(": " + n.Fault)
			}
			b.WriteString("\n")
		}
	}
	b.WriteString("bring it back; a node that is lost: pier cluster remove NODE")
	return b.String()
}

// sayRolled says what is over, and what will be when the old secret ends.
func sayRolled(w io.Writer, s client.SecretStatus) {
	fmt.Fprintln(w, "every node uses the new secret; invites from before are void")
	sayEnds(w, s)
}

// aboutToEnd is more than the shortest time for which an old secret is kept, which nothing makes shorter.
const aboutToEnd = 10 * time.Minute

func sayEnds(w io.Writer, s client.SecretStatus) {
	if len(s.Secrets) < 2 {
		return
	}
	for _, old := range s.Secrets[1:] {
		if old.Until != nil {
			sooner := ""
			if time.Until(*old.Until) > aboutToEnd {
				sooner = " (sooner: pier cluster secret drop)"
			}
			fmt.Fprintf(w, "the old secret %s is accepted until %s%s\n", short(old.Fingerprint), moment(*old.Until), sooner)
		}
	}
	fmt.Fprintln(w, "until then: logins from before go on, and after it they have to be made again if they haven't ended by themselves")
	if s.Authority != "" {
		fmt.Fprintf(w, "until then: make every client trust the new CA, SHA-256 %s\n  (pier trust HOST:PORT --install, or pier ca); who knows only the old one is cut off then\n", s.Authority)
	}
}

func short(fingerprint string) string { return fingerprint[:min(8, len(fingerprint))] }

func (o *controlOptions) newSecretStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "How far the rotation is, and for whom it waits; exit 3 while it waits", Args: cobra.NoArgs,
		Example: "  pier cluster secret status\n  pier cluster secret status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := o.client().SecretStatus(cmd.Context())
			if err != nil {
				return err
			}
			if o.format == "json" {
				err = printJSON(cmd.OutOrStdout(), s)
			} else {
				err = printSecret(cmd.OutOrStdout(), s)
			}
			if err == nil && len(s.Waiting) > 0 {
				return &exitError{code: exitDegraded}
			}
			return err
		},
	}
}

func printSecret(w io.Writer, s client.SecretStatus) error {
	said := map[string]string{
		"":     "the secret was never replaced",
		"add":  "a new secret is on its way to every node",
		"roll": "every node accepts the new secret and changes over to it",
		"keep": "every node uses the new secret and accepts the old one",
		"drop": "every node forgets the old secret",
		"done": "the secret was replaced, and the old one is dropped",
	}[s.Step]
	if s.Begun != nil {
		said += fmt.Sprintf(" (begun %s at %s)", moment(*s.Begun), s.By)
	}
	fmt.Fprintln(w, said)
	if s.Step == "keep" {
		sayEnds(w, s)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nNODE\tUSES\tACCEPTS\tSTEP\tID")
	for _, n := range s.Nodes {
		uses, accepts, done := "?", "?", "not yet"
		if len(n.Secrets) > 0 {
			uses, accepts = short(n.Secrets[0]), "-"
			var also []string
			for _, f := range n.Secrets[1:] {
				also = append(also, short(f))
			}
			if also != nil {
				accepts = strings.Join(also, ",")
			}
		}
		if n.Done || s.Step == "" {
			done = "done"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", n.Name, uses, accepts, done, n.ID)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if waits := waitsFor(s); waits != "" {
		fmt.Fprintln(w, "\n"+waits)
	}
	return nil
}

func (o *controlOptions) newSecretDrop() *cobra.Command {
	return &cobra.Command{
		Use: "drop", Short: "Stop accepting the old secret as soon as possible", Args: cobra.NoArgs,
		Long: "Stop accepting the old secret once every node uses the new one and the access tokens from before have ended, which is\n" +
			"minutes. Logins from before and clients that trust only the old CA end with it.",
		Example: "  pier cluster secret drop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := o.client().DropSecret(cmd.Context())
			if err != nil {
				return err
			}
			if o.format == "json" {
				return printJSON(cmd.OutOrStdout(), s)
			}
			if !s.Rolled() {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "the old secret ends minutes after every node uses the new one")
				return err
			}
			sayEnds(cmd.OutOrStdout(), s)
			return nil
		},
	}
}
