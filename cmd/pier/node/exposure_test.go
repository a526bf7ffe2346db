package node

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pier/api/acme"
	"pier/api/client"
	"pier/cluster/port"
	"pier/fsm"
)

func TestIsLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:5000": true, "127.9.9.9:0": true, "[::1]:5000": true, "localhost:5000": true,
		"": false, "127.0.0.1": false, ":5000": false, "0.0.0.0:5000": false, "[::]:5000": false, "10.0.0.1:5000": false, "registry.lan:5000": false, "localhost.evil:5000": false,
	} {
		if isLoopback(address) != want {
			t.Errorf("%q is this machine's alone: %v", address, !want)
		}
	}
}

// What is said of a node, and whether it may start, by where it listens, whether it encrypts, and whether the registry is closed.
func TestExposure(t *testing.T) {
	inner := run(t, func(*Config) {})
	node := func(listen, tls string, edit func(*Config)) *Node {
		n := &Node{cfg: inner.cfg, logger: inner.logger, current: inner.instance()}
		n.cfg.Listen, n.cfg.Access.TLS = listen, tls
		if edit != nil {
			edit(&n.cfg)
		}
		return n
	}
	promised := func(c *Config) { c.Access.AdminUser = "root" }
	insecure := func(c *Config) { c.Access.InsecureHTTP = true }
	const here, anywhere = "127.0.0.1:0", "0.0.0.0:0"
	type expected struct {
		n       *Node
		exposed string
		starts  bool
	}
	check := func(when string, all ...expected) {
		t.Helper()
		for i, x := range all {
			said, remedy := x.n.exposure()
			if (said == "") != (x.exposed == "") || (remedy == "") != (said == "") || !strings.HasPrefix(said, x.exposed) || said != x.n.Exposure() {
				t.Errorf("%s, %d: said %q (%s), want %q", when, i, said, remedy, x.exposed)
			}
			if strings.Contains(said, "the next start is refused") == x.starts && said != "" {
				t.Errorf("%s, %d: said %q", when, i, said)
			}
			if err := x.n.guarded(inner.State()); (err == nil) != x.starts {
				t.Errorf("%s, %d: a start gives %v", when, i, err)
			}
		}
	}
	const open, plain = "THE REGISTRY IS OPEN: it listens beyond this machine without access control;", "PASSWORDS TRAVEL IN THE OPEN"
	const bare = "THE REGISTRY IS OPEN: it listens beyond this machine, without access control and without TLS"
	check("open", expected{node(here, "", nil), "", true}, expected{node(anywhere, "", nil), bare, true}, expected{node(anywhere, "auto", nil), open, true},
		expected{node(anywhere, "", promised), plain, false}, expected{node(anywhere, "auto", promised), "", true}, expected{node(here, "", promised), "", true})
	put := func(cmd fsm.Command) {
		t.Helper()
		if _, err := inner.instance().log.Propose(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	put(fsm.PutPrincipal{Principal: fsm.Principal{Name: "root"}})
	check("closed", expected{node(here, "", nil), "", true}, expected{node(anywhere, "", nil), plain, false}, expected{node(anywhere, "", insecure), plain, true}, expected{node(anywhere, "auto", nil), "", true})
	put(fsm.SetSetting{Key: fsm.SettingAccess, Value: fsm.AccessOpen})
	check("opened by hand", expected{node(anywhere, "", promised), bare, true}, expected{node(anywhere, "auto", promised), open, true})
}

// A node doesn't start with files that it can't use, and says which.
func TestFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	none, text := filepath.Join(dir, "none"), filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	acme := AccessConfig{TLS: tlsACME, PublicNames: []string{"registry.example"}, ACMEDirectory: defaultDirectory}
	missing, bad := acme, acme
	missing.ACMECAFile, bad.ACMECAFile = none, text
	for want, access := range map[string]AccessConfig{
		"tls-client-ca": {TLS: "auto", TLSClientCA: none}, none: {TLSCert: none, TLSKey: none}, "acme-ca-file: open": missing, "holds no certificate": bad,
	} {
		cfg := Default()
		cfg.DataDir, cfg.Listen, cfg.ClusterListen, cfg.Access = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0", "127.0.0.1:0", access
		n, err := New(cfg, Options{})
		if err == nil {
			n.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// The certificate of tls auto is for all that the node knows clients to use.
func TestHosts(t *testing.T) {
	n := &Node{cfg: Default()}
	n.cfg.Access.PublicNames = []string{"registry.lan", "localhost"}
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for advertise, more := range map[string]string{"node.lan:7000": "node.lan", ":7000": "", "": ""} {
		n.cfg.ClusterAdvertise = advertise
		hosts := n.hosts()
		for _, want := range []string{"registry.lan", "localhost", own, "127.0.0.1", more} {
			if slices.Contains(hosts, want) != (want != "") {
				t.Errorf("advertising %q: %q is there or missing in %q", advertise, want, hosts)
			}
		}
		if !slices.IsSorted(hosts) || len(slices.Compact(slices.Clone(hosts))) != len(hosts) {
			t.Errorf("%q", hosts)
		}
	}
}

func TestAuthorityComesWithASecret(t *testing.T) {
	var a authority
	if ca, err := a.Load(); err == nil {
		t.Errorf("a CA without a secret: %v", ca)
	}
	if err := a.store(port.Secrets{port.NewSecret()}.AuthoritySeeds()); err != nil {
		t.Fatal(err)
	}
	first, err := a.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.store([][]byte{nil}); err == nil {
		t.Error("a CA of nothing")
	}
	if again, err := a.Load(); again != first || err != nil {
		t.Errorf("what failed has taken the CA: %v", err)
	}
}

// A document that another node has changed is the keeper's to look at anew; other faults are as they are.
func TestACMEDocumentsThatChanged(t *testing.T) {
	other := errors.New("no quorum")
	for _, x := range []struct{ err, want error }{
		{fsm.ErrDocumentExists, acme.ErrChanged}, {fsm.ErrDocumentUnknown, acme.ErrChanged}, {fsm.ErrDocumentChanged, acme.ErrChanged}, {other, other}, {nil, nil},
	} {
		if got := changed(x.err); !errors.Is(got, x.want) {
			t.Errorf("%v is %v", x.err, got)
		}
	}
	n := run(t, func(*Config) {})
	store := &acmeStore{node: n}
	first, err := store.Put(t.Context(), "x", []byte("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(t.Context(), "x", []byte("2"), 0); !errors.Is(err, acme.ErrChanged) {
		t.Errorf("a second one of that name: %v", err)
	}
	if err := store.Delete(t.Context(), "x", first+1); !errors.Is(err, acme.ErrChanged) {
		t.Errorf("another one is deleted: %v", err)
	}
	if body, generation, err := store.Current(t.Context(), "x"); err != nil || string(body) != "1" || generation != first {
		t.Errorf("%s, %d, %v", body, generation, err)
	}
	if err := store.Delete(t.Context(), "x", first); err != nil {
		t.Error(err)
	}
	if body, _, err := store.Local("x"); err != nil || len(body) != 0 {
		t.Errorf("%s, %v", body, err)
	}
	if n.gone("node "+n.ID()) || n.gone("") || !n.gone("node another") {
		t.Error("who is a member is gone, or who is none isn't")
	}
}

// The secret's file stands as it is, and is made only where there is none.
func TestSecretIsLoaded(t *testing.T) {
	cfg := Default()
	cfg.DataDir = t.TempDir()
	made, err := loadSecrets(cfg)
	if err != nil || len(made) != 1 {
		t.Fatalf("%d, %v", len(made), err)
	}
	if again, err := loadSecrets(cfg); err != nil || !bytes.Equal(again[0], made[0]) {
		t.Errorf("another one: %v", err)
	}
	path := filepath.Join(cfg.DataDir, secretFile)
	if left, err := os.ReadDir(cfg.DataDir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	var said bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&said, nil))
	if warnReadable(cfg, logger); said.Len() != 0 {
		t.Errorf("of a file of its user's own: %s", said.String())
	}
	if err := os.Chmod(path, 0o604); err != nil {
		t.Fatal(err)
	}
	if warnReadable(cfg, logger); !strings.Contains(said.String(), "SECRET IS OPEN") {
		t.Errorf("of a file that all can read: %s", said.String())
	}
	if err := os.WriteFile(path, []byte("cut o"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadSecrets(cfg); err == nil {
		t.Error("a file that is broken is replaced")
	}
	cfg.ClusterSecretFile = filepath.Join(cfg.DataDir, "none", "secret")
	if _, err := loadSecrets(cfg); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("where there is no folder: %v", err)
	}
}

// Whoever asks how to close the registry hears of a node that is open.
func TestFirstUserIsWarned(t *testing.T) {
	var dir string
	run(t, func(c *Config) { c.Listen = "0.0.0.0:0"; dir = c.DataDir })
	control := client.New(client.Options{Socket: filepath.Join(dir, SocketName)})
	added, err := control.AddUser(t.Context(), client.UserRequest{Name: "root", Password: "correct horse"})
	if err != nil || !strings.Contains(added.Warning, "the next start is refused") {
		t.Errorf("%+v, %v", added, err)
	}
}
