package oidc

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

// Server is an issuer that ends with its test.
type Server struct {
	*mockoidc.MockOIDC
	t testing.TB

	mu     sync.RWMutex // over what the server reads, too
	down   bool
	hangs  <-chan struct{}
	asked  map[string]int    // by path
	answer map[string]string // in place of its own, by path
}

// New starts a server, with TLS where there is a configuration for that.
func New(t testing.TB, cfg *tls.Config) *Server {
	t.Helper()
	m, err := mockoidc.NewServer(nil)
	if err == nil {
		_, err = m.Keypair.KeyID() // it is kept: not by several requests at once
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{MockOIDC: m, t: t, asked: map[string]int{}, answer: map[string]string{}}
	if err := m.AddMiddleware(s.between); err != nil {
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
	return s
}

func (s *Server) between(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked[r.URL.Path]++
		down, hangs, answer := s.down, s.hangs, s.answer[r.URL.Path]
		s.mu.Unlock()
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
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(answer))
			return
		}
		s.mu.RLock()
		defer s.mu.RUnlock()
		next.ServeHTTP(w, r)
	})
}

func (s *Server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// Down breaks every connection from now on, or no more.
func (s *Server) Down(down bool) { s.set(func() { s.down = down }) }

// Hang lets all who ask from now on wait until the channel is closed.
func (s *Server) Hang(until <-chan struct{}) { s.set(func() { s.hangs = until }) }

// Answer gives a text at a path in place of what belongs there; "redirect:URL" sends elsewhere.
func (s *Server) Answer(path, text string) { s.set(func() { s.answer[path] = text }) }

// Asked counts the requests for a path; all, for an empty one.
func (s *Server) Asked(path string) (n int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for at, times := range s.asked {
		if path == "" || path == at {
			n += times
		}
	}
	return n
}

// Rotate gives the server another key, in the place of the one before.
func (s *Server) Rotate() {
	s.t.Helper()
	k, err := mockoidc.RandomKeypair(2048)
	if err == nil {
		_, err = k.KeyID()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.set(func() { s.Keypair = k })
}

// Claims are those of a job on the main branch of team/app for the audience registry, with changes; nil takes a claim away.
func (s *Server) Claims(now time.Time, changes jwt.MapClaims) jwt.MapClaims {
	c := jwt.MapClaims{
		"iss": s.Issuer(), "aud": "registry", "sub": "repo:team/app:ref:refs/heads/main", "ref": "refs/heads/main",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// Token is an ID token with those claims.
func (s *Server) Token(now time.Time, changes jwt.MapClaims) string {
	s.t.Helper()
	s.mu.RLock()
	defer s.mu.RUnlock()
	text, err := s.Keypair.SignJWT(s.Claims(now, changes))
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}
