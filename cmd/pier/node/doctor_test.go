package node

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/api/client"
)

// served writes a certificate for a server and its key.
func (ca *testCA) served(dir, name string, life time.Duration) {
	ca.t.Helper()
	cert := ca.issue(name, func(x *x509.Certificate) {
		x.ExtKeyUsage, x.DNSNames = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []string{name}
		x.NotBefore, x.NotAfter = time.Now().Add(-90*24*time.Hour), time.Now().Add(life)
	})
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		ca.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			ca.t.Fatal(err)
		}
	}
}

// Each thing that can be wrong with a node is found, with what to do about it, and is gone when it was done.
func TestDoctorFinds(t *testing.T) {
	c := &certified{T: t, ca: newTestCA(t)}
	dir := t.TempDir()
	in := func(file string) string { return filepath.Join(dir, file) }
	c.ca.served(dir, "registry.lan", 30*24*time.Hour)
	c.write(in("clients.crt"), c.ca.pem())
	n := run(t, func(cfg *Config) {
		cfg.DataDir = in("data")
		cfg.Access = AccessConfig{TLSCert: in("tls.crt"), TLSKey: in("tls.key"), TLSClientCA: in("clients.crt"), PublicNames: []string{"registry.lan"}}
	})
	control := client.New(client.Options{Socket: filepath.Join(in("data"), SocketName)})
	find := func(check string) client.Finding {
		t.Helper()
		all, err := control.Doctor(t.Context())
		c.must(err)
		var found client.Finding
		for _, f := range all {
			if f.Check == check {
				found = f
			}
			if f.Check != check && f.Level != client.LevelOK {
				t.Errorf("while %s is tried: %+v", check, f)
			}
		}
		return found
	}
	secret, data := filepath.Join(in("data"), secretFile), in("data")
	chmod := func(path string, mode os.FileMode) func() { return func() { c.must(os.Chmod(path, mode)) } }
	for _, step := range []struct {
		check, level, says string
		harm, mend         func()
	}{
		{"certificate", client.LevelProblem, "tls.crt", func() { c.write(in("tls.crt"), []byte("broken")) }, func() { c.ca.served(dir, "registry.lan", 30*24*time.Hour) }},
		{"certificate", client.LevelProblem, "has been over", func() { c.ca.served(dir, "registry.lan", -time.Hour) }, func() { c.ca.served(dir, "registry.lan", 30*24*time.Hour) }},
		{"certificate", client.LevelWarning, "ends at", func() { c.ca.served(dir, "registry.lan", 48*time.Hour) }, func() { c.ca.served(dir, "registry.lan", 30*24*time.Hour) }},
		{"names", client.LevelWarning, "registry.lan", func() { c.ca.served(dir, "other.lan", 30*24*time.Hour) }, func() { c.ca.served(dir, "registry.lan", 30*24*time.Hour) }},
		{"client-ca", client.LevelProblem, "CAs from before", func() { c.write(in("clients.crt"), nil) }, func() { c.write(in("clients.crt"), c.ca.pem()) }},
		{"client-ca", client.LevelWarning, "ends at", func() { c.write(in("clients.crt"), append(c.ca.pem(), newEndingCA(t).pem()...)) }, func() { c.write(in("clients.crt"), c.ca.pem()) }},
		{"secret", client.LevelProblem, "mode 0604", chmod(secret, 0o604), chmod(secret, 0o600)},
		{"data-directory", client.LevelWarning, "mode 0755", chmod(data, 0o755), chmod(data, 0o700)},
		{"data-directory", client.LevelProblem, "mode 0777", chmod(data, 0o777), chmod(data, 0o700)},
	} {
		step.harm()
		var f client.Finding
		c.eventually(func() bool { f = find(step.check); return f.Level != client.LevelOK })
		if f.Level != step.level || !strings.Contains(f.Message, step.says) || f.Remedy == "" || f.Node != n.Name() {
			t.Errorf("%s: %+v", step.check, f)
		}
		step.mend()
		c.eventually(func() bool { return find(step.check).Level == client.LevelOK })
	}
}

// What somebody who reaches the node can do is a problem until nobody can do it.
func TestDoctorSeesAnOpenRegistry(t *testing.T) {
	var dir string
	run(t, func(cfg *Config) {
		cfg.Listen, cfg.Access.TLS = "0.0.0.0:0", "auto"
		dir = cfg.DataDir
	})
	control := client.New(client.Options{Socket: filepath.Join(dir, SocketName)})
	exposure := func() client.Finding {
		t.Helper()
		all, err := control.Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			if f.Check == "exposure" {
				return f
			}
		}
		return client.Finding{}
	}
	if f := exposure(); f.Level != client.LevelProblem || !strings.Contains(f.Message, "REGISTRY IS OPEN") || f.Remedy == "" {
		t.Errorf("an open registry: %+v", f)
	}
	if _, err := control.AddUser(t.Context(), client.UserRequest{Name: "root", Password: "correct horse"}); err != nil {
		t.Fatal(err)
	}
	if f := exposure(); f.Level != client.LevelOK {
		t.Errorf("a closed one: %+v", f)
	}
}

// A name that the certificates have nothing for is none that a client could be sent to.
func TestNothingIsShown(t *testing.T) {
	for _, cfg := range []*tls.Config{
		{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }},
		{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, os.ErrNotExist }},
	} {
		if shown(cfg, "a.lan") != nil {
			t.Error("there is a certificate where there is none")
		}
	}
}
