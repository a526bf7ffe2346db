package auth

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

func authority(t *testing.T, b byte) *Authority {
	t.Helper()
	a, err := NewAuthority(seed(b))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// dial makes one handshake with what c serves, as a client that trusts a.
func dial(t *testing.T, c *Certificates, a *Authority, name string) (*x509.Certificate, error) {
	t.Helper()
	lis, err := tls.Listen("tcp", "127.0.0.1:0", c.TLS())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := lis.Accept()
		if err == nil {
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("the CA's PEM is no certificate")
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", lis.Addr().String(), &tls.Config{RootCAs: roots, ServerName: name})
	<-done
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0], nil
}

// Every node makes the same CA from the same secret, so a client that trusts one trusts all.
func TestAuthorityIsTheSameEverywhere(t *testing.T) {
	one, two, other := authority(t, 1), authority(t, 1), authority(t, 2)
	if !bytes.Equal(one.PEM(), two.PEM()) || bytes.Equal(one.PEM(), other.PEM()) {
		t.Error("the CA isn't a function of the secret")
	}
	c, err := FromAuthority(func() (*Authority, error) { return two, nil }, func() []string { return []string{"registry.lan", "127.0.0.1"} }, time.Now, silent())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"registry.lan", "127.0.0.1"} {
		if _, err := dial(t, c, one, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := dial(t, c, other, "registry.lan"); err == nil {
		t.Error("another cluster's CA vouches for it")
	}
	if _, err := dial(t, c, one, "elsewhere.lan"); err == nil {
		t.Error("the certificate is good for any name")
	}
}

// While the CA before is kept, clients that know only that one, and those that know only the new one, both come in; a third
// CA vouches for nobody, and without the old one's word its clients are left out.
func TestAuthorityIsFollowedByAnother(t *testing.T) {
	old, older := authority(t, 1), authority(t, 2)
	next, err := NewAuthority(seed(3), seed(1), seed(2))
	if err != nil {
		t.Fatal(err)
	}
	twin, err := NewAuthority(seed(3), seed(1), seed(2))
	if err != nil || !bytes.Equal(bytes.Join(next.crossed, nil), bytes.Join(twin.crossed, nil)) {
		t.Errorf("two nodes cross-sign differently: %v", err)
	}
	if !bytes.Equal(next.PEM(), authority(t, 3).PEM()) {
		t.Error("the CA depends on those before it")
	}
	c, err := FromAuthority(func() (*Authority, error) { return next, nil }, func() []string { return []string{"a.lan"} }, time.Now, silent())
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*Authority{"old": old, "older": older, "new": next} {
		if _, err := dial(t, c, a, "a.lan"); err != nil {
			t.Errorf("a client that trusts the %s CA alone: %v", name, err)
		}
	}
	if _, err := dial(t, c, authority(t, 4), "a.lan"); err == nil {
		t.Error("a CA that never was vouches for the certificate")
	}
	last := c.current.Certificate[len(c.current.Certificate)-1]
	if !bytes.Equal(last, next.cert.Raw) {
		t.Error("the chain doesn't end with the CA that is to be trusted from now on")
	}
	next = authority(t, 3)
	c.Refresh()
	if _, err := dial(t, c, old, "a.lan"); err == nil {
		t.Error("the old CA is still good after its end")
	}
}

func TestAuthorityRefuses(t *testing.T) {
	for _, seeds := range [][][]byte{{seed(1)[1:]}, {nil}, {seed(1), seed(2)[1:]}} {
		if _, err := NewAuthority(seeds[0], seeds[1:]...); err == nil {
			t.Errorf("a CA comes from a short seed: %x", seeds)
		}
	}
	if _, err := authority(t, 1).Issue(nil, time.Now()); err == nil {
		t.Error("a certificate for no host")
	}
	none := func() (*Authority, error) { return nil, errors.New("no secret yet") }
	if c, err := FromAuthority(none, func() []string { return []string{"a.lan"} }, time.Now, silent()); err == nil {
		t.Errorf("certificates without a CA: %v", c)
	}
}

func TestCertificateIsRenewed(t *testing.T) {
	at := &clock{at: time.Now()}
	hosts, by := []string{"a.lan"}, authority(t, 1)
	c, err := FromAuthority(func() (*Authority, error) { return by, nil }, func() []string { return hosts }, at.now, silent())
	if err != nil {
		t.Fatal(err)
	}
	first := c.current
	c.Refresh()
	if c.current != first {
		t.Error("a good certificate is replaced")
	}
	at.pass(certificateLife - certificateRenew + time.Hour)
	c.Refresh()
	renewed := c.current
	if renewed == first || !renewed.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Error("the certificate isn't renewed before it ends")
	}
	hosts = []string{"a.lan", "b.lan"}
	c.Refresh()
	if c.current == renewed || c.current.Leaf.VerifyHostname("b.lan") != nil {
		t.Error("a new name isn't covered")
	}
	by = authority(t, 2)
	at.pass(certificateRenew - certificateLife - time.Hour) // today again, for a client that looks
	c.Refresh()
	if _, err := dial(t, c, by, "b.lan"); err != nil {
		t.Errorf("after the secret has changed: %v", err)
	}
}

// A node whose clock was hours ahead when it made its certificate, or hours behind, has a good one as soon as the clock is right.
func TestCertificateFollowsTheClock(t *testing.T) {
	for _, wrong := range []time.Duration{-30 * 365 * 24 * time.Hour, -12 * time.Hour, 12 * time.Hour, 2 * certificateLife} {
		at := &clock{at: time.Now().Add(wrong)}
		by := authority(t, 1)
		c, err := FromAuthority(func() (*Authority, error) { return by, nil }, func() []string { return []string{"a.lan"} }, at.now, silent())
		if err != nil {
			t.Fatal(err)
		}
		at.pass(-wrong)
		c.Refresh()
		if _, err := dial(t, c, by, "a.lan"); err != nil || c.Fault() != nil {
			t.Errorf("after the clock was wrong by %s: %v, %v", wrong, err, c.Fault())
		}
	}
}

func writePair(t *testing.T, dir string, c *tls.Certificate) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// A new pair of files is taken; a broken one leaves the old in place and is reported; a missing one at the start is an error.
func TestFilesAreReloaded(t *testing.T) {
	a, dir := authority(t, 1), t.TempDir()
	if _, err := FromFiles(filepath.Join(dir, "no"), filepath.Join(dir, "no"), silent()); err == nil {
		t.Error("missing files are accepted")
	}
	first, err := a.Issue([]string{"a.lan"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, key := writePair(t, dir, first)
	c, err := FromFiles(cert, key, silent())
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	c.logger = slog.New(slog.NewTextHandler(&said, nil))
	c.Refresh()
	if said.Len() != 0 {
		t.Errorf("there is nothing new: %s", said.String())
	}
	if err := os.WriteFile(key, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Refresh()
	c.Refresh()
	if c.Fault() == nil || strings.Count(said.String(), "can't be used") != 1 {
		t.Errorf("of a broken key is said %q", said.String())
	}
	if _, err := dial(t, c, a, "a.lan"); err != nil {
		t.Errorf("after a broken change the old certificate is gone: %v", err)
	}
	second, err := a.Issue([]string{"b.lan"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	writePair(t, dir, second)
	c.Refresh()
	if _, err := dial(t, c, a, "b.lan"); err != nil || c.Fault() != nil || !c.Covers("b.lan") || c.Covers("a.lan") {
		t.Errorf("the new pair isn't in use: %v, %v", err, c.Fault())
	}
	c.Refresh()
	if strings.Count(said.String(), "is in use") != 1 || strings.Count(said.String(), "\n") != 2 {
		t.Errorf("of two changes is said %q", said.String())
	}
}

// A new pair that no client would take leaves the good one in place: one that is over, isn't good yet, or doesn't belong
// together. What isn't good yet is taken when it is. At the start there is nothing better.
func TestNewPairIsNotGood(t *testing.T) {
	a, dir, at := authority(t, 1), t.TempDir(), &clock{at: time.Now()}
	issue := func(host string, when time.Duration) *tls.Certificate {
		t.Helper()
		c, err := a.Issue([]string{host}, time.Now().Add(when))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	cert, key := writePair(t, dir, issue("good.lan", 0))
	c, err := fromFiles(cert, key, at.now, silent())
	if err != nil {
		t.Fatal(err)
	}
	over, early, strange := issue("over.lan", -2*certificateLife), issue("early.lan", 48*time.Hour), issue("strange.lan", 0)
	strange.PrivateKey = early.PrivateKey
	for name, bad := range map[string]*tls.Certificate{"has been over": over, "does not match": strange, "is not good before": early} {
		writePair(t, dir, bad)
		for range 2 {
			c.Refresh()
			if err := c.Fault(); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: the fault is %v", name, err)
			}
			if c.Leaf().VerifyHostname("good.lan") != nil {
				t.Errorf("%s: it replaces the good one", name)
			}
		}
	}
	writePair(t, dir, early)
	at.pass(72 * time.Hour)
	if c.Refresh(); c.Fault() != nil || c.Leaf().VerifyHostname("early.lan") != nil {
		t.Errorf("what has become good isn't in use: %v", c.Fault())
	}
	at.pass(2 * certificateLife)
	if c.Refresh(); c.Fault() == nil {
		t.Error("the certificate in use is over, and there is no fault")
	}
	writePair(t, dir, over)
	if c, err = fromFiles(cert, key, at.now, silent()); err != nil || c.Fault() == nil {
		t.Errorf("a node doesn't start with an old certificate, or has no fault: %v", err)
	}
}
