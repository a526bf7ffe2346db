package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func load(t *testing.T, file string, env []string, args ...string) (Config, error) {
	t.Helper()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	AddFlags(flags)
	if file != "" {
		path := filepath.Join(t.TempDir(), "pier.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(flags, env)
}

func TestFlagBeforeVariableBeforeFile(t *testing.T) {
	file := "name: file\nreplicas: 3\nlisten: 127.0.0.1:1\njoin:\n  - a:1\n  - b:2\ndisk-reserve: 10GiB\n"
	cfg, err := load(t, file, []string{"PIER_NAME=variable", "PIER_REPLICAS=2", "HOME=/x"}, "--name", "flag")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Name != "flag" || cfg.Replicas != 2 || cfg.Listen != "127.0.0.1:1" || len(cfg.Join) != 2 || cfg.DiskReserve.Bytes != 10<<30 {
		t.Errorf("%+v", cfg)
	}
	if cfg.RepairDelay != 15*time.Minute {
		t.Errorf("the default is gone: %v", cfg.RepairDelay)
	}
}

func TestEveryProblemUnderItsName(t *testing.T) {
	_, err := load(t, "colour: blue\nmax-voters: many\n", []string{"PIER_REPLICASS=3", "PIER_UPLOAD_TTL=soon"}, "--blob-rate", "fast")
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, want := range []string{"colour", "max-voters", "PIER_REPLICASS", "PIER_UPLOAD_TTL", "--blob-rate"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %s in:\n%v", want, err)
		}
	}
	_, err = load(t, "", nil, "--listen", "5000", "--bootstrap-expect", "3", "--write-copies", "3", "--replicas", "2", "--log-level", "loud", "--max-voters", "0")
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, want := range []string{"listen:", "bootstrap-expect:", "write-copies:", "log-level:", "max-voters:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %s in:\n%v", want, err)
		}
	}
}

// Each setting takes what it shows, so that the defaults in the help can be written as they stand.
func TestSettingsRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Settings() {
		cfg := Default()
		if err := s.Set(&cfg, s.Value(cfg)); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		if seen[s.Name] || s.Help == "" {
			t.Errorf("%s: twice, or without help", s.Name)
		}
		seen[s.Name] = true
	}
	cfg := Default()
	if err := setReserve(&cfg, "7%"); err != nil || cfg.DiskReserve.Share != 0.07 || reserveText(cfg) != "7%" {
		t.Errorf("%+v %v", cfg.DiskReserve, err)
	}
}
