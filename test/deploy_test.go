package test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"pier/cmd/pier/node"
)

// TestExampleConfiguration loads deploy/pier.yaml with every line put into force: it has each setting, under its name, with a
// value that is accepted, and what it shows as a default is one.
func TestExampleConfiguration(t *testing.T) {
	example, err := os.ReadFile(filepath.Join(moduleRoot(t), "deploy", "pier.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	setting := regexp.MustCompile(`(?m)^#?([a-z-]+):( .*)$`)
	found := map[string]string{}
	var active strings.Builder
	for _, m := range setting.FindAllStringSubmatch(string(example), -1) {
		found[m[1]] = strings.Trim(strings.TrimSpace(m[2]), `"`)
		active.WriteString(m[1] + ":" + m[2] + "\n")
	}
	// These have no default, or one that the example replaces because it could not be used.
	own := []string{"name", "data-dir", "cluster-listen", "cluster-advertise", "join", "bootstrap-expect", "cluster-secret-file",
		"tls-cert", "tls-key", "tls-client-ca", "acme-email", "acme-ca-file", "public-name", "public-url", "trusted-proxies", "admin-user", "admin-password-file"}
	defaults := node.Default()
	for _, s := range node.Settings() {
		value, ok := found[s.Name]
		if !ok {
			t.Errorf("the example lacks %s", s.Name)
			continue
		}
		shown := defaults
		if err := s.Set(&shown, value); !slices.Contains(own, s.Name) && (err != nil || s.Value(shown) != s.Value(defaults)) {
			t.Errorf("the example shows %s: %s (%v); the default is %s", s.Name, value, err, s.Value(defaults))
		}
		delete(found, s.Name)
	}
	for name := range found {
		t.Errorf("the example has %s, which is no setting", name)
	}

	path := filepath.Join(t.TempDir(), "pier.yaml")
	if err := os.WriteFile(path, []byte(active.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	node.AddFlags(flags)
	if err := flags.Parse([]string{"--config", path}); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Load(flags, nil); err != nil {
		t.Errorf("the example with every line in force: %v", err)
	}
}
