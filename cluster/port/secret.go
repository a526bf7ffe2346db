package port

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const secretSize = 32

// Secrets are the cluster's secrets: the first signs and encrypts, all verify, so that one can follow the other without a
// stop.
type Secrets [][]byte

// NewSecret invents a secret.
func NewSecret() []byte {
	b := make([]byte, secretSize)
	_, _ = rand.Read(b) // never fails, by its documentation
	return b
}

// LoadSecrets reads a file with one base64 secret a line, the newest first.
func LoadSecrets(path string) (Secrets, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out Secrets
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		secret, err := base64.StdEncoding.DecodeString(string(line))
		if err != nil || len(secret) < 16 {
			return nil, fmt.Errorf("%s: a secret is at least 16 bytes in base64, one a line (`openssl rand -base64 32` makes one)", path)
		}
		out = append(out, secret)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no secret", path)
	}
	return out, nil
}

// SaveSecrets writes the file, whole or not at all: a new one for its owner alone, an old one for whom it was before. It is
// on the disk when this returns.
func SaveSecrets(path string, secrets Secrets) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a link stays one
	}
	var b bytes.Buffer
	for _, s := range secrets {
		fmt.Fprintln(&b, base64.StdEncoding.EncodeToString(s))
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".secret-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, likeBefore(f, path), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// likeBefore gives f the mode of the file that it replaces, and its owner and group where that is allowed.
func likeBefore(f *os.File, path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if was, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(was.Uid), int(was.Gid)) // only root may give files away
	}
	return f.Chmod(info.Mode().Perm())
}

// derive makes a key for one purpose. The salt is fixed: the secret is already uniform.
func derive(secret []byte, purpose string) []byte {
	k, err := hkdf.Key(sha256.New, secret, []byte("pier"), purpose, 32)
	if err != nil {
		panic(err) // only for lengths that HKDF can't give
	}
	return k
}

func caKey(secret []byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(derive(secret, "certificate authority"))
}

// GossipKeys are the keys for gossip packets, the one to encrypt with first.
func (s Secrets) GossipKeys() [][]byte {
	var out [][]byte
	for _, secret := range s {
		out = append(out, derive(secret, "gossip"))
	}
	return out
}

// TokenSeeds are what the keys come from that sign clients' tokens, the one to sign with first.
func (s Secrets) TokenSeeds() [][]byte {
	var out [][]byte
	for _, secret := range s {
		out = append(out, derive(secret, "client tokens"))
	}
	return out
}

// AuthoritySeeds are what the CAs come from that sign the certificates which clients see, the one in use first.
func (s Secrets) AuthoritySeeds() [][]byte {
	var out [][]byte
	for _, secret := range s {
		out = append(out, derive(secret, "client certificate authority"))
	}
	return out
}

// Fingerprint names a secret by its certificate authority. It is public, and nobody finds another secret that has it.
func Fingerprint(secret []byte) string {
	sum := sha256.Sum256(caKey(secret).Public().(ed25519.PublicKey))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Fingerprints names all secrets, in their order.
func (s Secrets) Fingerprints() []string {
	out := make([]string, 0, len(s))
	for _, secret := range s {
		out = append(out, Fingerprint(secret))
	}
	return out
}

// Find gives the secret of a fingerprint.
func (s Secrets) Find(fingerprint string) ([]byte, bool) {
	for _, secret := range s {
		if Fingerprint(secret) == fingerprint {
			return secret, true
		}
	}
	return nil, false
}
