package identity

import (
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"pier/api/client"
	"pier/test/oidc"
)

// Whatever is sent for an ID token is refused, without a panic and without a word of it in the refusal.
func FuzzIDToken(f *testing.F) {
	i := oidc.New(f, nil)
	now := time.Now()
	issuers, from := NewIssuers(func() time.Time { return now }), Issuer{URL: i.Issuer()}
	good := i.Token(now, jwt.MapClaims{"exp": now.Add(time.Hour).Unix()})
	f.Fuzz(func(t *testing.T, text string, at uint16) {
		for _, token := range []string{text, good[:int(at)%len(good)] + text, strings.Replace(good, ".", "."+text, 1)} {
			_, _ = IssuerOf(token)
			c, err := issuers.Verify(t.Context(), from, token)
			switch {
			case err == nil && token != good:
				t.Errorf("%q is taken: %+v", token, c)
			case err != nil && !isRejected(err):
				t.Error(err)
			}
		}
	})
}

// A pattern that is accepted matches itself where it has no star, keeps to its beginning, and never reaches across a
// separator in its middle.
func FuzzClaim(f *testing.F) {
	f.Fuzz(func(t *testing.T, pattern, value string) {
		rule, err := ParseRule(client.TrustRule{Issuer: "https://a", Audience: "r", Claims: []string{"c=" + pattern}, AnyJob: true}, 1)
		if err != nil {
			return
		}
		got := rule.claims[0].matches(value)
		head, tail, stars := strings.Cut(pattern, "*")
		switch {
		case !stars && got != (value == pattern):
			t.Errorf("%q for %q: %v", pattern, value, got)
		case got && !strings.HasPrefix(value, head):
			t.Errorf("%q matches %q", pattern, value)
		case tail == "" && stars && got != strings.HasPrefix(value, head):
			t.Errorf("%q for %q: %v", pattern, value, got)
		case got && stars && !strings.HasSuffix(pattern, "*") && strings.Count(value, ":")+strings.Count(value, "/") != strings.Count(pattern, ":")+strings.Count(pattern, "/"):
			t.Errorf("%q reaches across in %q", pattern, value)
		}
	})
}

// BenchmarkVerify is what an ID token costs each time that it is shown as a password.
func BenchmarkVerify(b *testing.B) {
	i := oidc.New(b, nil)
	now := time.Now()
	issuers, from := NewIssuers(func() time.Time { return now }), Issuer{URL: i.Issuer()}
	text := i.Token(now, nil)
	rule, err := ParseRule(client.TrustRule{Issuer: i.Issuer(), Audience: "registry", Claims: []string{"sub=repo:team/app:*"}}, 1)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := issuers.Verify(b.Context(), from, text)
		if err == nil {
			err = rule.Admits(c)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkForeignPassword is what a password that is no token costs before it is taken for one.
func BenchmarkForeignPassword(b *testing.B) {
	for b.Loop() {
		if _, ok := IssuerOf("correct horse battery staple"); ok {
			b.Fatal("it has an issuer")
		}
	}
}
