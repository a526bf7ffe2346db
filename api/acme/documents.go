package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// ErrChanged is what Put and Delete return when the document is no longer the one that was read.
var ErrChanged = errors.New("another node has changed it meanwhile")

// Store is the replicated state as far as certificates go: documents by name, each with a generation that is another one
// after every change.
type Store interface {
	// Local gives a document as this node has it. Generation 0 means that there is none.
	Local(name string) (body []byte, generation uint64, err error)
	// Current is Local once everything that was decided before the call has come here, or as it is without a quorum.
	Current(ctx context.Context, name string) (body []byte, generation uint64, err error)
	// Put makes a document (was 0) or replaces the one of that generation, and returns once this node has it.
	Put(ctx context.Context, name string, body []byte, was uint64) (generation uint64, err error)
	// Delete removes the document of that generation.
	Delete(ctx context.Context, name string, was uint64) error
}

// account is the document with the key that the ACME server knows the cluster by.
type account struct {
	Directory string `json:"directory"` // for people who look
	Key       string `json:"key"`
}

// certificate is the document of one name, in PEM.
type certificate struct {
	Chain string `json:"chain"`
	Key   string `json:"key"`
	Way   string `json:"way,omitempty"` // how the server was convinced; the next time that comes first
	// Replace says that somebody wants another one before this is due. It goes with the certificate.
	Replace bool `json:"replace,omitempty"`
}

// order is the document of a name while somebody gets a certificate for it, and after that has failed.
type order struct {
	By    string    `json:"by"`              // the node that is at it, or was
	Until time.Time `json:"until,omitzero"`  // when another one may take over
	Fails int       `json:"fails,omitempty"` // in a row
	Next  time.Time `json:"next,omitzero"`   // not before, after a failure
	Error string    `json:"error,omitempty"` // the last one

	Token  string       `json:"token,omitempty"`  // the server's question by http-01,
	Answer string       `json:"answer,omitempty"` // and what it wants to hear
	Proof  *certificate `json:"proof,omitempty"`  // the answer by tls-alpn-01
}

// names gives the documents' names. They carry the ACME server's, so that nodes that are told different ones don't take each
// other's certificates for theirs: nobody wants those of a test server back.
type names struct{ server string }

func namesOf(directory string) names {
	sum := sha256.Sum256([]byte(directory))
	return names{server: hex.EncodeToString(sum[:8])}
}

func (n names) account() string                { return "account@" + n.server }
func (n names) certificate(host string) string { return "certificate:" + host + "@" + n.server }
func (n names) order(host string) string       { return "order:" + host + "@" + n.server }

// read decodes what Local or Current gave. It leaves v alone where there is no document.
func read(v any, body []byte, generation uint64, err error) (uint64, error) {
	if err != nil || generation == 0 {
		return 0, err
	}
	if json.Unmarshal(body, v) != nil { // whose text may have parts of a key
		return generation, errors.New("a document about certificates is damaged")
	}
	return generation, nil
}

func put(ctx context.Context, s Store, name string, v any, was uint64) (uint64, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("encode %s: %w", name, err)
	}
	return s.Put(ctx, name, body, was)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func encodeKey(key crypto.PrivateKey) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

func decodeKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block != nil {
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if signer, ok := key.(crypto.Signer); ok {
				return signer, nil
			}
		}
	}
	return nil, errors.New("the account's key is damaged")
}

// encode makes a document of a certificate.
func encode(chain [][]byte, key crypto.PrivateKey) (*certificate, error) {
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	out := &certificate{Key: text}
	for _, der := range chain {
		out.Chain += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return out, nil
}

// parse makes a certificate of its document: the key must be the certificate's, and that for the host.
func (c *certificate) parse(host string) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair([]byte(c.Chain), []byte(c.Key))
	if err != nil {
		return nil, err
	}
	return &pair, pair.Leaf.VerifyHostname(host)
}
