package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"pier/api/client"
)

// userOptions are what the commands about users share.
type userOptions struct {
	controlOptions
	fromStdin bool
}

func newUser() *cobra.Command {
	o := &userOptions{}
	cmd := o.group("user", "Say who may come in", "  pier user add alice\n  pier user disable alice")
	cmd.AddCommand(o.newAdd(), o.newChange(), o.newSwitch("disable", true), o.newSwitch("enable", false), o.newGroups(), o.newRemovePrincipal("user"), o.newListOf("user"), o.newImport())
	return cmd
}

func (o *userOptions) newAdd() *cobra.Command {
	var groups []string
	provider := ""
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Make a user; the first one turns access control on and is administrator", Args: cobra.ExactArgs(1),
		Example: "  pier user add alice\n  pier user add bob --group dev --password-stdin < password.txt\n  pier user add carol --provider corp",
		RunE: func(cmd *cobra.Command, args []string) error {
			r := client.UserRequest{Name: args[0], Provider: provider, Groups: groups}
			if provider == "" {
				var err error
				if r.Password, err = o.newPassword(cmd); err != nil {
					return err
				}
			}
			added, err := o.client().AddUser(cmd.Context(), r)
			if err != nil {
				return err
			}
			line := "added %s"
			if added.First {
				line = "added %s, who is administrator; from now on nobody comes in without a login or a grant"
			}
			if added.Warning != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", added.Warning)
			}
			return o.show(cmd, added, line, args[0])
		},
	}
	cmd.Flags().StringSliceVar(&groups, "group", nil, "a group that the user is in; may be repeated")
	cmd.Flags().StringVar(&provider, "provider", "", "who checks the password (pier provider ls); needed only for grants of the user's own, and to keep one out")
	o.addStdin(cmd)
	return cmd
}

func (o *userOptions) addStdin(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.fromStdin, "password-stdin", false, "read the password from standard input, its first line")
}

// newPassword asks twice at a terminal.
func (o *userOptions) newPassword(cmd *cobra.Command) (string, error) {
	return o.password(cmd, "Password: ", "Once more: ")
}

// password asks once for each prompt at a terminal, and wants the same answer. Elsewhere it must be asked for by name: a
// password that is taken from standard input by mistake ends in a log.
func (o *userOptions) password(cmd *cobra.Command, prompts ...string) (string, error) {
	if o.fromStdin {
		return firstLine(cmd.InOrStdin(), "the password")
	}
	in, ok := terminal(cmd)
	if !ok {
		return "", &exitError{exitUsage, "there is no terminal to ask for the password; use --password-stdin"}
	}
	answer := ""
	for i, prompt := range prompts {
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		typed, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		if i > 0 && string(typed) != answer {
			return "", errors.New("the two passwords differ; nothing was changed")
		}
		answer = string(typed)
	}
	return answer, nil
}

// firstLine reads a secret, which among the arguments would be in every list of processes.
func firstLine(in io.Reader, what string) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(in, 64<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// terminal is standard input where a person sits at it.
func terminal(cmd *cobra.Command) (*os.File, bool) {
	in, ok := cmd.InOrStdin().(*os.File)
	return in, ok && term.IsTerminal(int(in.Fd()))
}

// ask reads an answer at a terminal, and no byte more: a password may follow.
func ask(cmd *cobra.Command, in io.Reader, prompt string) (string, error) {
	fmt.Fprint(cmd.ErrOrStderr(), prompt)
	var line []byte
	for b := make([]byte, 1); len(line) < 4096; line = append(line, b[0]) {
		if _, err := io.ReadFull(in, b); err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		if b[0] == '\n' {
			break
		}
	}
	return strings.TrimSpace(string(line)), nil
}

func (o *userOptions) newChange() *cobra.Command {
	cmd := &cobra.Command{
		Use: "password NAME", Short: "Give a user a new password; the tokens from before end", Args: cobra.ExactArgs(1),
		Example: "  pier user password alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			password, err := o.newPassword(cmd)
			if err != nil {
				return err
			}
			if err := o.client().ChangePrincipal(cmd.Context(), client.PrincipalChange{Name: args[0], Password: &password}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "%s has a new password", args[0])
		},
	}
	o.addStdin(cmd)
	return cmd
}

func (o *userOptions) newSwitch(word string, disabled bool) *cobra.Command {
	short := map[bool]string{true: "Keep a user or a robot out, on every node; its tokens end", false: "Let a user or a robot in again"}[disabled]
	return &cobra.Command{
		Use: word + " NAME", Short: short, Args: cobra.ExactArgs(1),
		Example: "  pier user " + word + " alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.client().ChangePrincipal(cmd.Context(), client.PrincipalChange{Name: args[0], Disabled: &disabled}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, word+"d %s", args[0])
		},
	}
}

func (o *userOptions) newGroups() *cobra.Command {
	return &cobra.Command{
		Use: "groups NAME [GROUP…]", Short: "Say which groups a user is in, and no others", Args: cobra.MinimumNArgs(1),
		Long: "Say which groups a user is in, and no others. The user's tokens from before end, and with them what docker login has kept: it\n" +
			"is to be done anew.",
		Example: "  pier user groups alice dev ops",
		RunE: func(cmd *cobra.Command, args []string) error {
			groups := append([]string{}, args[1:]...)
			if err := o.client().ChangePrincipal(cmd.Context(), client.PrincipalChange{Name: args[0], Groups: &groups}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "%s is in %d groups", args[0], len(groups))
		},
	}
}

func (o *controlOptions) newRemovePrincipal(kind string) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Remove a " + kind + " with its grants", Args: cobra.ExactArgs(1), Example: "  pier " + kind + " rm NAME",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.client().RemovePrincipal(cmd.Context(), client.RemovalRequest{Name: args[0], Kind: kind}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "removed %s and its grants", args[0])
		},
	}
}

func (o *controlOptions) newListOf(kind string) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the " + kind + "s", Args: cobra.NoArgs, Example: "  pier " + kind + " ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			access, err := o.client().Access(cmd.Context())
			if err != nil {
				return err
			}
			found := []client.Principal{}
			for _, p := range access.Principals {
				if p.Kind == kind {
					found = append(found, p)
				}
			}
			if o.format == "json" {
				return printJSON(cmd.OutOrStdout(), found)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "NAME\tSTATE\tGROUPS\t"+map[string]string{"user": "PROVIDER", "robot": "EXPIRES"}[kind])
			for _, p := range found {
				state, last := "active", p.Provider
				if p.Disabled {
					state = "disabled"
				}
				if p.Expires != nil {
					last = moment(*p.Expires)
				} else if kind == "robot" {
					last = "never"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, state, strings.Join(p.Groups, ","), last)
			}
			return t.Flush()
		},
	}
}

func (o *userOptions) newImport() *cobra.Command {
	file := ""
	cmd := &cobra.Command{
		Use: "import --htpasswd FILE", Short: "Make users from a file of NAME:HASH lines, bcrypt as htpasswd -B writes it", Args: cobra.NoArgs,
		Example: "  pier user import --htpasswd /etc/registry/htpasswd",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return &exitError{exitUsage, "say with --htpasswd which file"}
			}
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return o.importLines(cmd.Context(), cmd, data)
		},
	}
	cmd.Flags().StringVar(&file, "htpasswd", "", "the file")
	return cmd
}

// importLines goes on behind a line that is refused, and says which; so that the rest of the file need not wait for it.
func (o *userOptions) importLines(ctx context.Context, cmd *cobra.Command, data []byte) error {
	var faults []error
	count := 0
	for n, line := range bytes.Split(data, []byte("\n")) {
		text := strings.TrimSpace(string(line))
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		name, hash, ok := strings.Cut(text, ":")
		err := errors.New("want NAME:HASH")
		if ok {
			_, err = o.client().AddUser(ctx, client.UserRequest{Name: name, Hash: hash})
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("line %d: %w", n+1, err))
			continue
		}
		count++
	}
	if err := o.show(cmd, map[string]int{"added": count}, "added %d users", count); err != nil {
		return err
	}
	return errors.Join(faults...)
}
