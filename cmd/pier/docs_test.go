package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var (
	spans = regexp.MustCompile("(?m)`((?:pier |--)[^`\n]+)`|^ *(pier [^#\n]+)")
	flags = regexp.MustCompile(`--[a-z][a-z-]*`)
)

// known is every flag of every command.
func known(cmd *cobra.Command, into map[string]bool) map[string]bool {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { into["--"+f.Name] = true })
	cmd.PersistentFlags().VisitAll(func(f *pflag.Flag) { into["--"+f.Name] = true })
	for _, c := range cmd.Commands() {
		known(c, into)
	}
	return into
}

// The documents name no command and no flag that there isn't.
func TestDocumentsNameWhatThereIs(t *testing.T) {
	all, found := known(newRoot(), map[string]bool{"--help": true}), 0
	for _, path := range []string{"../../README.md", "../../CHANGELOG.md", "../../deploy/security.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range spans.FindAllStringSubmatch(strings.ReplaceAll(string(text), "\\\n", " "), -1) {
			span := m[1] + m[2]
			found++
			if !strings.HasPrefix(span, "pier ") {
				if f := flags.FindString(span); !all[f] {
					t.Errorf("%s: there is no %s", path, span)
				}
				continue
			}
			cmd, rest, err := newRoot().Find(strings.Fields(span)[1:])
			group := err == nil && cmd.HasSubCommands()
			if err != nil || group && len(rest) > 0 && rest[0] == strings.ToLower(rest[0]) && !strings.ContainsAny(rest[0], "-…|") {
				t.Errorf("%s: there is no %q", path, span)
				continue
			}
			for _, f := range flags.FindAllString(span, -1) {
				if !group && cmd.Flags().Lookup(f[2:]) == nil && cmd.InheritedFlags().Lookup(f[2:]) == nil || !all[f] {
					t.Errorf("%s: %q: there is no %s", path, span, f)
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d commands and flags were found", found)
	}
}
