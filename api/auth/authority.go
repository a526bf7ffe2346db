package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// certificateLife is short enough for clients that refuse long ones, and renewed long before its end.
const (
	certificateLife  = 90 * 24 * time.Hour
	certificateRenew = 30 * 24 * time.Hour // before the end
)

// The CA's own dates are fixed, like everything else in it: each node makes the same certificate, byte for byte, from the
// same secret, and a client trusts it once.
var (
	authorityBegins = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	authorityEnds   = time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Authority is the cluster's own CA for the certificates that clients see. P-256, which every client knows.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// crossed are certificates of the same key by the CAs before it, for clients that trust only those.
	crossed [][]byte
}

// NewAuthority derives the CA from 32 uniform bytes. older are the seeds of the CAs that clients trusted before and that
// vouch for this one, as long as the cluster holds their secrets.
func NewAuthority(seed []byte, older ...[]byte) (*Authority, error) {
	a, err := newRoot(seed)
	if err != nil {
		return nil, err
	}
	for _, s := range older {
		before, err := newRoot(s)
		if err != nil {
			return nil, err
		}
		crossed, err := before.vouch(a)
		if err != nil {
			return nil, err
		}
		a.crossed = append(a.crossed, crossed)
	}
	return a, nil
}

func newRoot(seed []byte) (*Authority, error) {
	if len(seed) != 32 {
		return nil, fmt.Errorf("a certificate authority's seed has %d bytes, not 32", len(seed))
	}
	key, err := authorityKey(seed)
	if err != nil {
		return nil, err
	}
	template := authorityTemplate(&key.PublicKey)
	template.SerialNumber, template.MaxPathLen = big.NewInt(1), 1 // the certificate of the CA after this one
	a := &Authority{key: key}
	a.cert, err = sign(template, template, &key.PublicKey, key)
	return a, err
}

// vouch makes the certificate with which whoever trusts a trusts next.
func (a *Authority) vouch(next *Authority) ([]byte, error) {
	template := authorityTemplate(&next.key.PublicKey)
	id := keyID(&next.key.PublicKey)
	template.SerialNumber, template.MaxPathLenZero = new(big.Int).SetBytes(id[:16]), true
	cert, err := sign(template, a.cert, &next.key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return cert.Raw, nil
}

// authorityTemplate has the name of the key in the CA's own: clients tell CAs apart by their names.
func authorityTemplate(key *ecdsa.PublicKey) *x509.Certificate {
	id := keyID(key)
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: "Pier registry CA " + hex.EncodeToString(id[:4])}, NotBefore: authorityBegins, NotAfter: authorityEnds,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: id[:20],
	}
}

func keyID(key *ecdsa.PublicKey) [sha256.Size]byte {
	raw, _ := key.Bytes() // fails only for other curves than P-256
	sum := sha256.Sum256(raw)
	sum[0] &= 0x7f // it is a serial number too, which are not negative
	return sum
}

// sign makes the same certificate each time: without a random source ECDSA signs by RFC 6979.
func sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(nil, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate authority: %w", err)
	}
	return x509.ParseCertificate(der)
}

// authorityKey takes the first hash of the seed that is a key: all but one in 2^32 are.
func authorityKey(seed []byte) (*ecdsa.PrivateKey, error) {
	for i := range byte(8) {
		sum := sha256.Sum256(append([]byte{i}, seed...))
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), sum[:]); err == nil {
			return key, nil
		}
	}
	return nil, errors.New("no key comes from this secret")
}

// PEM is the CA certificate as clients install it.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Fingerprint names the CA: the SHA-256 of its certificate, in hex, as openssl x509 -fingerprint -sha256 shows it.
func (a *Authority) Fingerprint() string {
	sum := sha256.Sum256(a.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Issue makes a server certificate for names and addresses, good from an hour before now.
func (a *Authority) Issue(hosts []string, now time.Time) (*tls.Certificate, error) {
	if len(hosts) == 0 {
		return nil, errors.New("a certificate needs a name or an address")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: hosts[0]}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate for clients: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	// The CA itself comes last: that is where `pier trust` looks for what to trust from now on.
	chain := append(append([][]byte{der}, a.crossed...), a.cert.Raw)
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}
