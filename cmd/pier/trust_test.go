package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// issuer signs certificates; the zero value signs itself.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (by issuer) sign(t *testing.T, name string, isCA bool) issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: isCA, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name},
	}
	if by.cert == nil {
		by = issuer{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{cert, key}
}

// Only what a cluster itself vouches for is installed: an ACME server's intermediate CA is nobody's to trust.
func TestWhichAuthorityIsInstalled(t *testing.T) {
	root := issuer{}.sign(t, "a root", true)
	between := root.sign(t, "an intermediate", true)
	long, short := between.sign(t, "registry.lan", false).cert, root.sign(t, "registry.lan", false).cert
	alone := issuer{}.sign(t, "registry.lan", false).cert
	system := x509.NewCertPool()
	system.AddCert(root.cert)
	for name, c := range map[string]struct {
		chain  []*x509.Certificate
		system *x509.CertPool
		want   *x509.Certificate
		fails  bool
	}{
		"tls auto":                    {[]*x509.Certificate{short, root.cert}, x509.NewCertPool(), root.cert, false},
		"tls auto, trusted":           {[]*x509.Certificate{short, root.cert}, system, root.cert, false},
		"acme, public":                {[]*x509.Certificate{long, between.cert}, system, nil, false},
		"acme, of a stranger":         {[]*x509.Certificate{long, between.cert}, x509.NewCertPool(), nil, true},
		"without its intermediate":    {[]*x509.Certificate{long}, system, nil, true},
		"one certificate, trusted":    {[]*x509.Certificate{short}, system, nil, false},
		"one that nobody vouches for": {[]*x509.Certificate{alone}, system, nil, true},
	} {
		got, err := authorityOf(c.chain, "registry.lan:443", "registry.lan", c.system)
		if (err != nil) != c.fails || !got.Equal(c.want) {
			t.Errorf("%s: %v (%v)", name, got, err)
		}
	}
	if _, err := authorityOf([]*x509.Certificate{short, root.cert}, "other.lan:443", "other.lan", system); err == nil {
		t.Error("a certificate for another name will do")
	}
}
