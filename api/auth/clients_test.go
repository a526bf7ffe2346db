package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// signer is a CA, or what it has signed.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// sign makes a certificate that ends after life; a nil signer signs itself.
func (s *signer) sign(t testing.TB, name string, ca bool, life time.Duration) *signer {
	t.Helper()
	return s.signFor(t, pkix.Name{CommonName: name}, ca, life)
}

func (s *signer) signFor(t testing.TB, subject pkix.Name, ca bool, life time.Duration) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		IsCA: ca, BasicConstraintsValid: true,
	}
	if s == nil {
		s = &signer{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.cert, key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{cert, key}
}

func (s *signer) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw}))
}

func clientsOf(t testing.TB, bundle string) (*Clients, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clients.crt")
	if err := os.WriteFile(path, []byte(bundle), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := ClientsFromFile(path, silent())
	if err != nil {
		t.Fatal(err)
	}
	return c, path
}

// What was found good ends when the first certificate of its chain does, though it is remembered.
func TestVerdictsEnd(t *testing.T) {
	root := (*signer)(nil).sign(t, "root", true, 10*time.Hour)
	between := root.sign(t, "between", true, 2*time.Hour)
	leaf := between.sign(t, "alice", false, 5*time.Hour)
	c, _ := clientsOf(t, root.pem())
	chain := []*x509.Certificate{leaf.cert, between.cert}
	if _, _, err := c.Verify(chain[:1], time.Now()); !errors.Is(err, ErrCertificate) {
		t.Errorf("without what is between: %v", err)
	}
	for range 2 {
		if name, until, err := c.Verify(chain, time.Now()); name != "alice" || !until.Equal(between.cert.NotAfter) || err != nil {
			t.Errorf("%q until %v, %v; want alice until %v", name, until, err, between.cert.NotAfter)
		}
	}
	if _, _, err := c.Verify(chain, time.Now().Add(3*time.Hour)); !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), "a CA between") {
		t.Errorf("after the end of the CA between: %v", err)
	}
	if _, _, err := c.Verify(chain, time.Now()); !errors.Is(err, ErrCertificate) {
		t.Errorf("a refusal is forgotten at once: %v", err)
	}
	for len(chain) < maxShown {
		chain = append(chain, between.cert)
	}
	if _, _, err := c.Verify(chain, time.Now()); err != nil {
		t.Errorf("with as many others as there may be: %v", err)
	}
	if _, _, err := c.Verify(append(chain, between.cert), time.Now()); !errors.Is(err, ErrCertificate) {
		t.Errorf("with one more: %v", err)
	}
	if _, _, err := c.Verify(nil, time.Now()); !errors.Is(err, ErrCertificate) {
		t.Errorf("without any: %v", err)
	}
}

// A refusal is kept for a minute: what was refused may have become good.
func TestRefusalsEnd(t *testing.T) {
	root := (*signer)(nil).sign(t, "root", true, time.Hour)
	leaf := root.sign(t, "alice", false, time.Hour)
	c, _ := clientsOf(t, root.pem())
	begins := leaf.cert.NotBefore
	for _, x := range []struct {
		at   time.Time
		want string
	}{
		{begins.Add(-refusedFor / 2), "not valid before"}, {begins.Add(refusedFor/2 - time.Second), "not valid before"}, {begins.Add(refusedFor / 2), ""},
		{leaf.cert.NotAfter.Add(time.Second), "it has expired"},
	} {
		_, _, err := c.Verify([]*x509.Certificate{leaf.cert}, x.at)
		if x.want == "" && err != nil || x.want != "" && (!errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("at %s: %v", x.at.Sub(begins), err)
		}
	}
}

// The common name is the caller's, whatever else the subject says; and nothing else is.
func TestOnlyTheCommonNameCounts(t *testing.T) {
	root := (*signer)(nil).sign(t, "root", true, time.Hour)
	c, _ := clientsOf(t, root.pem())
	for _, x := range []struct {
		subject pkix.Name
		want    string
	}{
		{pkix.Name{CommonName: "alice", Organization: []string{"bob"}, OrganizationalUnit: []string{"carol"}}, "alice"},
		{pkix.Name{Organization: []string{"alice"}}, ""}, {pkix.Name{}, ""}, {pkix.Name{CommonName: "al ice"}, ""}, {pkix.Name{CommonName: Anonymous}, ""},
		{pkix.Name{CommonName: "alice", ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "root"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "alice"}}}, ""},
	} {
		leaf := root.signFor(t, x.subject, false, time.Hour)
		if name, _, err := c.Verify([]*x509.Certificate{leaf.cert}, time.Now()); name != x.want || (err == nil) != (x.want != "") {
			t.Errorf("%s: %q, %v", leaf.cert.Subject, name, err)
		}
	}
}

// Whoever shows however many certificates, what is remembered of them is bounded.
func TestVerdictsAreBounded(t *testing.T) {
	root := (*signer)(nil).sign(t, "root", true, time.Hour)
	c, _ := clientsOf(t, root.pem())
	for i := range maxVerdicts + 10 {
		c.keep(c.pool, sha256.Sum256([]byte{byte(i), byte(i >> 8)}), verdict{})
	}
	if n := len(c.verdicts); n != 10 {
		t.Errorf("%d verdicts are kept of those since there were too many", n)
	}
	c.keep(x509.NewCertPool(), [sha256.Size]byte{}, verdict{name: "root", until: time.Now().Add(time.Hour)})
	if v := c.verdicts[[sha256.Size]byte{}]; v.name != "" {
		t.Error("what other CAs made of a certificate is kept")
	}
}

// A file that is no list of CAs is refused whole, and says where.
func TestBundles(t *testing.T) {
	one, two := (*signer)(nil).sign(t, "one", true, time.Hour), (*signer)(nil).sign(t, "two", true, time.Hour)
	client := one.sign(t, "alice", false, time.Hour)
	c, path := clientsOf(t, "A comment.\n"+one.pem()+"Another.\n"+two.pem()+"\n")
	if c.Fault() != nil {
		t.Error(c.Fault())
	}
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: one.cert.Raw}))
	for name, bad := range map[string]string{
		"nothing": "", "a client's": client.pem(), "a key": one.pem() + key, "cut off": one.pem() + two.pem()[:100], "no DER": strings.Replace(one.pem(), "MII", "AAA", 1),
		"huge": one.pem() + strings.Repeat("#", maxBundle+1-len(one.pem())),
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ClientsFromFile(path, silent()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		before := c.pool
		c.refresh()
		if c.Fault() == nil || c.pool != before {
			t.Errorf("%s: fault %v", name, c.Fault())
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if c.refresh(); c.Fault() == nil || c.pool == nil {
		t.Error("a missing file has no fault")
	}
	if _, err := ClientsFromFile(path, silent()); err == nil {
		t.Error("there is no file, and no fault at the start")
	}
	if err := os.WriteFile(path, []byte(two.pem()), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.refresh(); c.Fault() != nil {
		t.Error(c.Fault())
	}
	if _, _, err := c.Verify([]*x509.Certificate{client.cert}, time.Now()); err == nil {
		t.Error("a CA that isn't in the file any more vouches")
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	c.refresh()
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if c.refresh(); c.Fault() != nil {
		t.Errorf("the file is back as it was: %v", c.Fault())
	}
}

// A bundle may have as many bytes as it may, ends with the first of its CAs, and is read again only when it has changed.
func TestBundleThatIsGood(t *testing.T) {
	long, short := (*signer)(nil).sign(t, "long", true, 2*time.Hour), (*signer)(nil).sign(t, "short", true, time.Hour)
	text := long.pem() + short.pem() + long.pem()
	c, _ := clientsOf(t, text+strings.Repeat("#", maxBundle-len(text)))
	if !c.Ends().Equal(short.cert.NotAfter) {
		t.Errorf("it ends %v", c.Ends())
	}
	before := c.pool
	if c.refresh(); c.pool != before {
		t.Error("a file that is as it was is read again, and what was found good is forgotten")
	}
}

func BenchmarkClientCertificate(b *testing.B) {
	root := (*signer)(nil).sign(b, "root", true, time.Hour)
	leaf := root.sign(b, "alice", false, time.Hour)
	c, _ := clientsOf(b, root.pem())
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := c.Verify([]*x509.Certificate{leaf.cert}, now); err != nil {
			b.Fatal(err)
		}
	}
}
