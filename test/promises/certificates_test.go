package promises

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pier/api/auth"
	"pier/cmd/pier/node"
	"pier/test/harness"
)

// serving is the certificate that a node shows to a new connection.
func serving(t testing.TB, x *harness.Node) *x509.Certificate {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", x.Address(), &tls.Config{InsecureSkipVerify: true}) // it is only looked at
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0]
}

// writeCertificate makes the two files of a certificate, as a person would: one after the other.
func writeCertificate(t testing.TB, dir string, c *tls.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{"tls.crt", "CERTIFICATE", c.Certificate[0]}, {"tls.key", "PRIVATE KEY", key}} {
		if err := os.WriteFile(filepath.Join(dir, f.name), pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// The files of --tls-cert and --tls-key change again and again, and are broken in between, while clients push and pull with
// tokens and passwords, over connections that they keep and over new ones. No request fails; a broken pair leaves the one before
// it in use.
func TestCertificateFilesChangeUnderPushes(t *testing.T) {
	t.Parallel()
	ca, err := auth.NewAuthority(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	issue := func() *tls.Certificate {
		c, err := ca.Issue([]string{"127.0.0.1"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	dir := t.TempDir()
	current := issue()
	writeCertificate(t, dir, current)
	g := closeDoor(t, harness.StartConfigured(t, 3, node.Tuning{}, func(_ *harness.Node, cfg *node.Config) {
		cfg.RaftTimeout = 2 * time.Second
		cfg.Access.TLSCert, cfg.Access.TLSKey = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	}), ca.PEM())
	tr := startTraffic(t, g.Nodes, g.root, ca.PEM(), time.Now)
	for i := range 4 {
		if i%2 == 1 {
			if err := os.WriteFile(filepath.Join(dir, "tls.key"), []byte("broken"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, x := range g.Nodes {
				g.Eventually(x.Name+" says what is wrong", func() bool { return x.Logged("the new certificate can't be used") >= i/2+1 })
			}
			tr.goesOn(g.Cluster)
			for _, x := range g.Nodes {
				if !serving(t, x).Equal(current.Leaf) {
					t.Errorf("with a broken pair %s shows another certificate", x.Name)
				}
			}
		}
		current = issue()
		writeCertificate(t, dir, current)
		for _, x := range g.Nodes {
			g.Eventually(x.Name+" shows the new certificate", func() bool { return serving(t, x).Equal(current.Leaf) })
		}
		tr.goesOn(g.Cluster)
	}
	tr.end()
	t.Log(tr.done())
}

// The certificates of --tls auto come to their end, twice, under the same load: they are renewed before, and no request fails.
func TestAutomaticCertificatesAreRenewedUnderPushes(t *testing.T) {
	t.Parallel()
	var at clock
	c := harness.StartConfigured(t, 3, node.Tuning{Clock: at.now, TokenLife: 1000 * 24 * time.Hour}, func(_ *harness.Node, cfg *node.Config) {
		cfg.Access.TLS, cfg.RaftTimeout = "auto", 2*time.Second
	})
	ca, err := c.Nodes[0].Control().Authority(t.Context())
	c.Must(err)
	g := closeDoor(t, c, []byte(ca.PEM))
	tr := startTraffic(t, g.Nodes, g.root, []byte(ca.PEM), at.now)
	for range 2 {
		var before []*x509.Certificate
		for _, x := range g.Nodes {
			before = append(before, serving(t, x))
		}
		tr.goesOn(g.Cluster)
		at.pass(time.Until(before[0].NotAfter) - time.Duration(at.ahead.Load()) - 24*time.Hour)
		for i, x := range g.Nodes {
			g.Eventually(x.Name+" has a new certificate", func() bool { return !serving(t, x).Equal(before[i]) })
		}
		tr.goesOn(g.Cluster)
	}
	tr.end()
	t.Log(tr.done())
}
