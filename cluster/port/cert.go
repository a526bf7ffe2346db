package port

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Certificates are valid always: what expires is the secret, when it is replaced, and a clock that is an hour off must not
// split a cluster.
var (
	notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)
)

// authority makes the CA certificate of a secret.
func authority(secret []byte) (*x509.Certificate, ed25519.PrivateKey, error) {
	key := caKey(secret)
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pier cluster"}, NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make the cluster's certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// issue makes this node's certificate, whose one name is its ID, with the CA behind it for those who pin that.
func issue(id NodeID, secret []byte) (tls.Certificate, error) {
	ca, caKey, err := authority(secret)
	if err != nil {
		return tls.Certificate{}, err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: string(id)}, DNSNames: []string{string(id)},
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, pub, caKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the node's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.Raw}, PrivateKey: key}, nil
}

// trust holds what makes a peer a member.
type trust struct {
	cert        tls.Certificate
	roots       *x509.CertPool
	authorities map[string]*x509.Certificate // by the fingerprints of their secrets
	signs       string                       // the fingerprint of the secret that cert comes from
}

func newTrust(id NodeID, secrets Secrets) (*trust, error) {
	if len(secrets) == 0 {
		return nil, errors.New("there is no cluster secret")
	}
	t := &trust{roots: x509.NewCertPool(), authorities: make(map[string]*x509.Certificate), signs: Fingerprint(secrets[0])}
	for _, s := range secrets {
		ca, _, err := authority(s)
		if err != nil {
			return nil, err
		}
		t.roots.AddCert(ca)
		t.authorities[Fingerprint(s)] = ca
	}
	var err error
	t.cert, err = issue(id, secrets[0])
	return t, err
}

// verify checks a peer's chain against the cluster's roots. The roots of one secret are made anew by each process, so it
// is the key that counts, which they share.
func (t *trust) verify(usage x509.ExtKeyUsage) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the peer shows no certificate")
		}
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
			Roots: t.roots, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: notBefore.AddDate(1, 0, 0),
		})
		if err != nil {
			return fmt.Errorf("%w (%v)", ErrOtherSecret, err)
		}
		return nil
	}
}

// signer is the fingerprint of the secret that a verified peer's certificate comes from; "" for a guest, who shows none.
func (t *trust) signer(s tls.ConnectionState) string {
	if len(s.PeerCertificates) == 0 {
		return ""
	}
	for fingerprint, ca := range t.authorities {
		if s.PeerCertificates[0].CheckSignatureFrom(ca) == nil {
			return fingerprint
		}
	}
	return ""
}

// knows tells whether a connection that was made under a secret may go on.
func (t *trust) knows(fingerprint string) bool {
	return fingerprint == "" || t.authorities[fingerprint] != nil
}

func (t *trust) server() *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{t.cert}, NextProtos: protocols,
		ClientAuth: tls.RequireAnyClientCert, VerifyConnection: t.verify(x509.ExtKeyUsageClientAuth),
		SessionTicketsDisabled: true,
	}
	base.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(h.SupportedProtos) != 1 || h.SupportedProtos[0] != ProtoJoin {
			return nil, nil
		}
		join := base.Clone()
		join.GetConfigForClient, join.ClientAuth, join.VerifyConnection = nil, tls.NoClientCert, nil
		return join, nil
	}
	return base
}

func (t *trust) client(proto string, id NodeID) *tls.Config {
	verify := t.verify(x509.ExtKeyUsageServerAuth)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{t.cert}, NextProtos: []string{proto},
		InsecureSkipVerify: true, // VerifyConnection does it: the name to check is an ID, and the roots are ours
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := verify(s); err != nil {
				return err
			}
			if got := nameOf(s); id != "" && got != id {
				return fmt.Errorf("%w: wanted %s, got %s", ErrOtherNode, id, got)
			}
			return nil
		},
	}
}

func nameOf(s tls.ConnectionState) NodeID {
	if len(s.PeerCertificates) == 0 || len(s.PeerCertificates[0].DNSNames) != 1 {
		return ""
	}
	return NodeID(s.PeerCertificates[0].DNSNames[0])
}

// pinned trusts the one server whose CA has the fingerprint, and shows nothing of itself.
func pinned(fingerprint string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ProtoJoin},
		InsecureSkipVerify: true, // VerifyConnection does it, against the pinned authority
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) != 2 {
				return errors.New("the other side is no pier cluster port")
			}
			leaf, ca := s.PeerCertificates[0], s.PeerCertificates[1]
			key, ok := ca.PublicKey.(ed25519.PublicKey)
			sum := sha256.Sum256(key)
			if !ok || base64.RawURLEncoding.EncodeToString(sum[:]) != fingerprint {
				return errors.New("the other side is not the cluster that the token is for, or its secret was replaced since: ask for a new invite")
			}
			return leaf.CheckSignatureFrom(ca)
		},
	}
}

// PeerID is the node at the other end of a connection of this port, by its certificate.
func PeerID(c net.Conn) (NodeID, bool) {
	t, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return "", false
	}
	id := nameOf(t.ConnectionState())
	return id, id != ""
}
