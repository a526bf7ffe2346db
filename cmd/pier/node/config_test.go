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

// What can't be read doesn't hide what can't be: all is said at once, and each thing under the name that the user wrote.
func TestProblemsOfAllKindsAtOnce(t *testing.T) {
	file := "listen: 5000\ncolour: blue\nname: [a, b]\njoin: {a: b}\nlog-format:\nupload-ttl: -5m\n"
	_, err := load(t, file, []string{"PIER_REPLICAS=x", "PIER_LISTN=1", "PIER_WRITE_COPIES=-1"},
		"--max-voters", "0", "--disk-reserve", "NaN%", "--blob-rate", "15EiB", "--bootstrap-expect", "9", "--cluster-listen", "a:b", "--repair-delay", "-1s")
	if err == nil {
		t.Fatal("it was taken")
	}
	wants := []string{
		`pier.yaml:1: listen: "5000" is no host:port`, "pier.yaml:2: colour: there is no such setting", "pier.yaml:3: name: want one plain value",
		"pier.yaml:4: join: want one plain value", "pier.yaml:5: log-format: want a value", "pier.yaml:6: upload-ttl: want more than 0",
		"PIER_REPLICAS: want a whole number", "PIER_LISTN: there is no such setting", "PIER_WRITE_COPIES: can't be negative",
		"--max-voters: want 1 to 9", "--disk-reserve: want a share", "--blob-rate: want a size", "--bootstrap-expect: want 0 to 7",
		`--cluster-listen: "a:b" is no host:port`, "--repair-delay: can't be negative",
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing of %q in:\n%v", want, err)
		}
	}
	// bootstrap-expect without join is the only one that is said twice
	if got := strings.Count(err.Error(), "\n") + 1; got != len(wants)+1 {
		t.Errorf("%d problems, not %d:\n%v", got, len(wants)+1, err)
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

// A switch needs no value, as the documents and the messages write it; a list may be given bit by bit; the help says what each
// of the others wants.
func TestFlagsAreAsPeopleWriteThem(t *testing.T) {
	cfg, err := load(t, "", nil, "--insecure-http", "--metrics-open", "--access-log=false", "--public-name", "a", "--listen", "0.0.0.0:1",
		"--listen", "0.0.0.0:2", "--public-name", "b,c")
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.Access.InsecureHTTP || !cfg.Access.MetricsOpen || cfg.AccessLog || cfg.Listen != "0.0.0.0:2" || len(cfg.Access.PublicNames) != 3 {
		t.Errorf("%+v", cfg)
	}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	AddFlags(flags)
	help := flags.FlagUsages()
	for _, want := range []string{"--insecure-http  ", "--max-voters int  ", "--upload-ttl duration  ", "--join strings  ", "--blob-rate size  ", "--name string  "} {
		if !strings.Contains(help, want) {
			t.Errorf("the help has no %q", want)
		}
	}
}
