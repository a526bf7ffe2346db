package identity

import (
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/oauth2-proxy/mockoidc"
)

// issuer is an OIDC server of the test. Its answers can be replaced, and it can be out of reach.
type issuer struct {
	*mockoidc.MockOIDC
	t testing.TB

	mu     sync.RWMutex
	down   bool
	hangs  chan struct{} // until it is closed; nil: not at all
	asked  map[string]int
	answer map[string]string // in place of its own, by path
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	return startIssuer(t, nil)
}

// startIssuer starts one with TLS, where there is a certificate.
func startIssuer(t testing.TB, cfg *tls.Config) *issuer {
	t.Helper()
	m, err := mockoidc.NewServer(nil)
	if err == nil {
		_, err = m.Keypair.KeyID() // it is kept: not by several requests at once
	}
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{MockOIDC: m, t: t, asked: map[string]int{}, answer: map[string]string{}}
	if err := m.AddMiddleware(i.between); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil && cfg != nil {
		lis = tls.NewListener(lis, cfg)
	}
	if err == nil {
		err = m.Start(lis, cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Shutdown() })
	return i
}

func (i *issuer) between(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.asked[r.URL.Path]++
		down, hangs, answer := i.down, i.hangs, i.answer[r.URL.Path]
		i.mu.Unlock()
		if hangs != nil {
			<-hangs
		}
		if down {
			panic(http.ErrAbortHandler)
		}
		if to, ok := strings.CutPrefix(answer, "redirect:"); ok {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		if answer != "" {
			_, _ = w.Write([]byte(answer))
			return
		}
		i.mu.RLock()
		defer i.mu.RUnlock()
		next.ServeHTTP(w, r)
	})
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

// questions counts how often the issuer was asked for its keys, or at another path.
func (i *issuer) questions(path ...string) int {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.asked[append(path, mockoidc.JWKSEndpoint)[0]]
}

// rotate gives the issuer another key, in the place of the one before.
func (i *issuer) rotate() {
	i.t.Helper()
	k, err := mockoidc.RandomKeypair(2048)
	if err == nil {
		_, err = k.KeyID()
	}
	if err != nil {
		i.t.Fatal(err)
	}
	i.set(func() { i.Keypair = k })
}

// claims are those of a good token, with changes; nil takes a claim away.
func (i *issuer) claims(now time.Time, changes jwt.MapClaims) jwt.MapClaims {
	c := jwt.MapClaims{
		"iss": i.Issuer(), "aud": "registry", "sub": "repo:team/app:ref:refs/heads/main",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func (i *issuer) token(now time.Time, changes jwt.MapClaims) string {
	i.t.Helper()
	i.mu.RLock()
	defer i.mu.RUnlock()
	text, err := i.Keypair.SignJWT(i.claims(now, changes))
	if err != nil {
		i.t.Fatal(err)
	}
	return text
}

// forge signs with any method, key and key ID.
func forge(t *testing.T, method jwt.SigningMethod, key any, id string, claims jwt.Claims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	if id != "" {
		token.Header["kid"] = id
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// clock is a time that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
