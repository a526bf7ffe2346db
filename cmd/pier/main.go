package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"pier/api/client"
)

// Exit codes beside 0 and 1.
const (
	exitUsage    = 2
	exitDegraded = 3
	exitNoQuorum = 4

	exitInterrupted = 130 // as a shell has it for what Ctrl-C ends
)

func main() {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stop()
		// A second one ends the process at once. It is waited for here: a shell that started this in the background has told
		// it to ignore Ctrl-C, and giving the signal back would make that true again.
		<-signals
		os.Exit(exitInterrupted)
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// exitError asks for an exit code. An empty message has been shown already.
type exitError struct {
	code    int
	message string
}

func (e *exitError) Error() string { return e.message }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	stdout, stderr = plainWriter{stdout}, plainWriter{stderr}
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if err.Error() != "" {
		fmt.Fprintln(stderr, "pier:", err)
	}
	var refused *client.Error
	if errors.As(err, &refused) && refused.Status == http.StatusServiceUnavailable {
		fmt.Fprintln(stderr, "`pier doctor` tells what is wrong")
	}
	return code
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:                        "pier",
		Short:                      "A container registry that is a cluster",
		Long:                       "Pier is a container registry that is a cluster: start it on one machine or on seven; push to any node, pull from any.",
		Example:                    "  pier serve              a working registry on 127.0.0.1:5000\n  pier dev                three nodes on this machine\n  pier cluster status     who is in, who leads, who is behind",
		Version:                    versionText(),
		SuggestionsMinimumDistance: 2,
		SilenceUsage:               true,
		SilenceErrors:              true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &exitError{exitUsage, err.Error() + " (--help shows what there is)"}
	})
	root.AddCommand(newServe(), newDev(), newCluster(), newUser(), newRobot(), newAccess(), newProvider(), newACME(), newAudit(), newDoctor(), newAuthority(), newTrust(), newLogin(), newLogout(), newToken(), newHealth(), newVersion())
	root.SetVersionTemplate("pier {{.Version}}\n")
	group(root)
	strict(root)
	return root
}

// group makes a command that only has others under it show them, and refuse what is none of them.
func group(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return errors.New(text)
	}
}

// strict gives wrong arguments the exit code of wrong flags.
func strict(cmd *cobra.Command) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			err := args(cmd, given)
			if err == nil {
				return nil
			}
			text := err.Error()
			if !cmd.HasSubCommands() { // cobra counts arguments, or takes one for a command
				text = "want " + cmd.UseLine()
				if len(given) > 0 {
					text += fmt.Sprintf(", not %q", strings.Join(given, " "))
				}
			}
			return &exitError{exitUsage, text + " (--help shows what there is)"}
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}
