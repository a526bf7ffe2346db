package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// certificates makes a CA and certificates of it: certificates CA NAME… writes CA.crt, NAME.crt and NAME.key.
func certificates(ts *testscript.TestScript, _ bool, args []string) {
	write := func(file, kind string, der []byte) {
		ts.Check(os.WriteFile(ts.MkAbs(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, name := range args {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: i == 0, BasicConstraintsValid: true,
		}
		if ca == nil {
			ca, caKey = cert, key
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, ca, key.Public(), caKey)
		ts.Check(err)
		write(name+".crt", "CERTIFICATE", der)
		der, err = x509.MarshalPKCS8PrivateKey(key)
		ts.Check(err)
		write(name+".key", "PRIVATE KEY", der)
	}
}
