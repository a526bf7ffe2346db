package cluster

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

const tokenPrefix = "pier1-"

// token is an invite: where the cluster is, what proves that it is the one, and what proves that one is invited.
type token struct {
	Addresses   []string `json:"a"`
	Fingerprint string   `json:"f"`
	Key         []byte   `json:"k"`
	Expires     int64    `json:"e"` // seconds since 1970
}

func newToken(addresses []string, fingerprint string, expires time.Time) token {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails, by its documentation
	return token{Addresses: addresses, Fingerprint: fingerprint, Key: key, Expires: expires.Unix()}
}

func (t token) String() string {
	data, _ := json.Marshal(t) // strings, bytes and a number
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(data)
}

// keyHash is what the state keeps of an invite. The secret of the moment is in it, so that a rotation ends the invites from
// before.
func keyHash(key []byte, fingerprint string) []byte {
	sum := sha256.Sum256(append([]byte(fingerprint+"\x00"), key...))
	return sum[:]
}

func parseToken(s string, now time.Time) (token, error) {
	var t token
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok || len(rest) > 8<<10 {
		return t, ErrTokenInvalid
	}
	data, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil || json.Unmarshal(data, &t) != nil || len(t.Addresses) == 0 || len(t.Key) != 32 || t.Fingerprint == "" {
		return t, ErrTokenInvalid
	}
	if now.Unix() > t.Expires {
		return t, ErrTokenExpired
	}
	return t, nil
}

// CheckToken tells whether an invite could be used: whole, and not expired by this node's clock.
func CheckToken(s string, now time.Time) error {
	_, err := parseToken(s, now)
	return err
}
