package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/oauth2-proxy/mockoidc"

	"pier/test/oidc"
)

func isRejected(err error) bool {
	var r *RejectedError
	return errors.As(err, &r)
}

func isUnreachable(err error) bool {
	var u *UnreachableError
	return errors.As(err, &u)
}

func TestGoodToken(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	issuers := NewIssuers(at.Now)
	text := i.Token(at.Now(), jwt.MapClaims{"groups": []string{"dev", "ops"}, "aud": []string{"other", "registry"}, "email_verified": "true"})
	if iss, ok := IssuerOf(text); !ok || iss != i.Issuer() {
		t.Errorf("the token is of %q", iss)
	}
	c, err := issuers.Verify(t.Context(), Issuer{URL: i.Issuer()}, text)
	if err != nil {
		t.Fatal(err)
	}
	if c.Text("sub") != "repo:team/app:ref:refs/heads/main" || strings.Join(c.Texts("groups"), " ") != "dev ops" || !c.For("registry") || c.For("regis") || !c.True("email_verified") {
		t.Errorf("%+v", c)
	}
	if d := c.Expires.Sub(at.Now()); d < 9*time.Minute || d > 10*time.Minute {
		t.Errorf("it ends in %s", d)
	}
}

// Every way in which a token can be wrong, by an issuer that works.
func TestBadTokens(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	now := at.Now()
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	id, err := i.Keypair.KeyID()
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: mustPKIX(t, i.Keypair.PublicKey)})
	good := i.Token(now, nil)
	parts := strings.Split(good, ".")
	encode := base64.RawURLEncoding.EncodeToString
	tokens := map[string]string{
		"expired":                    i.Token(now, jwt.MapClaims{"exp": now.Add(-time.Second).Unix()}),
		"no end":                     i.Token(now, jwt.MapClaims{"exp": nil}),
		"an end that is text":        i.Token(now, jwt.MapClaims{"exp": "tomorrow"}),
		"an end under EXP":           i.Token(now, jwt.MapClaims{"exp": nil, "EXP": now.Add(time.Hour).Unix()}),
		"not yet valid":              i.Token(now, jwt.MapClaims{"nbf": now.Add(2 * time.Minute).Unix()}),
		"issued tomorrow":            i.Token(now, jwt.MapClaims{"iat": now.Add(24 * time.Hour).Unix()}),
		"another issuer":             i.Token(now, jwt.MapClaims{"iss": "https://issuer.example"}),
		"another under its fold":     i.Token(now, jwt.MapClaims{"iss": "https://issuer.example", "i\u017fs": i.Issuer()}), // which encoding/json takes for iss
		"no issuer":                  i.Token(now, jwt.MapClaims{"iss": nil}),
		"an issuer's list":           i.Token(now, jwt.MapClaims{"iss": []string{i.Issuer()}}),
		"alg none":                   forge(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, id, i.Claims(now, nil)),
		"HS256 by public key":        forge(t, jwt.SigningMethodHS256, public, id, i.Claims(now, nil)),
		"another key":                forge(t, jwt.SigningMethodRS256, other, id, i.Claims(now, nil)),
		"another key, unnamed":       forge(t, jwt.SigningMethodRS256, other, "", i.Claims(now, nil)),
		"PS256, unannounced":         forge(t, jwt.SigningMethodPS256, i.Keypair.PrivateKey, id, i.Claims(now, nil)),
		"changed":                    parts[0] + "." + encode([]byte(`{"iss":"`+i.Issuer()+`","aud":"registry","exp":9999999999}`)) + "." + parts[2],
		"no signature":               parts[0] + "." + parts[1] + ".",
		"two parts":                  parts[0] + "." + parts[1],
		"JSON form":                  `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"a line end":                 good + "\n",
		"a megabyte":                 parts[0] + "." + strings.Repeat("A", 1<<20) + "." + parts[2],
		"a megabyte of dots":         strings.Repeat(".", 1<<20),
		"nothing":                    "",
		"an unknown critical header": forgeCritical(t, i, i.Claims(now, nil)),
	}
	issuers := NewIssuers(at.Now)
	if _, err := issuers.Verify(t.Context(), Issuer{URL: i.Issuer()}, good); err != nil {
		t.Fatal(err)
	}
	for name, text := range tokens {
		c, err := issuers.Verify(t.Context(), Issuer{URL: i.Issuer()}, text)
		if !isRejected(err) {
			t.Errorf("%s: %v, %+v", name, err, c)
		} else if len(err.Error()) > 300 || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%s: the refusal is %.400q", name, err)
		}
	}
	at.pass(askPause) // it could be asked again; but its key is known
	forged := forge(t, jwt.SigningMethodRS256, other, id, i.Claims(now, nil))
	if _, err := issuers.Verify(t.Context(), Issuer{URL: i.Issuer()}, forged); !isRejected(err) {
		t.Error(err)
	}
	if n := i.Asked(mockoidc.JWKSEndpoint); n != 1 {
		t.Errorf("the issuer was asked %d times for its keys", n)
	}
}

func mustPKIX(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// forgeCritical signs well, under a header that whoever doesn't know it must refuse.
func forgeCritical(t *testing.T, i *oidc.Server, claims jwt.MapClaims) string {
	t.Helper()
	o := (&jose.SignerOptions{}).WithHeader("crit", []string{"magic"}).WithHeader("magic", true)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: i.Keypair.PrivateKey}, o)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Strangers with key IDs of their own don't make a node ask more than once in a while; a new key of the issuer is found.
func TestRotationAndRandomKeys(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	issuers, from := NewIssuers(at.Now), Issuer{URL: i.Issuer()}
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	flood := func() {
		t.Helper()
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				text := forge(t, jwt.SigningMethodRS256, stranger, rand.Text(), i.Claims(at.Now(), nil))
				if _, err := issuers.Verify(t.Context(), from, text); !isRejected(err) && !isUnreachable(err) { // more than can wait
					t.Errorf("a stranger's token: %v", err)
				}
			})
		}
		all.Wait()
	}
	flood()
	if n := i.Asked(mockoidc.JWKSEndpoint); n != 1 {
		t.Errorf("200 strangers made the node ask %d times", n)
	}
	old := i.Token(at.Now(), nil)
	i.Rotate()
	fresh := i.Token(at.Now(), nil)
	if _, err := issuers.Verify(t.Context(), from, fresh); !isRejected(err) {
		t.Errorf("right after the last question: %v", err)
	}
	at.pass(askPause)
	flood()
	if n := i.Asked(mockoidc.JWKSEndpoint); n != 2 {
		t.Errorf("after the pause the node has asked %d times", n)
	}
	if _, err := issuers.Verify(t.Context(), from, fresh); err != nil {
		t.Errorf("a token by the new key: %v", err)
	}
	if _, err := issuers.Verify(t.Context(), from, old); !isRejected(err) {
		t.Errorf("a token by the withdrawn key: %v", err)
	}
}

// A key that the issuer has withdrawn ends, also when no token names another one.
func TestWithdrawnKey(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	issuers, from := NewIssuers(at.Now), Issuer{URL: i.Issuer()}
	stolen := i.Token(at.Now(), jwt.MapClaims{"exp": at.Now().Add(48 * time.Hour).Unix()})
	if _, err := issuers.Verify(t.Context(), from, stolen); err != nil {
		t.Fatal(err)
	}
	i.Rotate()
	at.pass(askAgain)
	if _, err := issuers.Verify(t.Context(), from, stolen); !isRejected(err) {
		t.Errorf("%v", err)
	}
}

// Out of reach: keys that are known go on working, for a day; without any the answer is that nobody can tell.
func TestIssuerDown(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	from := Issuer{URL: i.Issuer()}
	text := i.Token(at.Now(), jwt.MapClaims{"exp": at.Now().Add(48 * time.Hour).Unix()})
	i.Down(true)
	issuers := NewIssuers(at.Now)
	for range 3 {
		if _, err := issuers.Verify(t.Context(), from, text); !isUnreachable(err) {
			t.Fatalf("without keys: %v", err)
		}
	}
	if n := i.Asked(mockoidc.DiscoveryEndpoint); n != 1 {
		t.Errorf("an issuer that is down was asked %d times in a row", n)
	}
	i.Down(false)
	at.pass(askPause)
	if _, err := issuers.Verify(t.Context(), from, text); err != nil {
		t.Fatalf("it is back: %v", err)
	}
	i.Down(true)
	for _, d := range []time.Duration{time.Minute, askAgain, keepFor - 2*askAgain} {
		at.pass(d)
		if _, err := issuers.Verify(t.Context(), from, text); err != nil {
			t.Errorf("%s later: %v", d, err)
		}
	}
	stranger := forge(t, jwt.SigningMethodRS256, i.Keypair.PrivateKey, "new", i.Claims(at.Now(), nil))
	at.pass(askPause)
	if _, err := issuers.Verify(t.Context(), from, stranger); !isUnreachable(err) {
		t.Errorf("a key that can't be asked for: %v", err)
	}
	at.pass(2 * askAgain)
	if _, err := issuers.Verify(t.Context(), from, text); !isUnreachable(err) {
		t.Errorf("keys of yesterday: %v", err)
	}
}

// An issuer that hangs holds up a bounded number of those who ask about its tokens, and nobody for long whose keys are known.
func TestIssuerHangs(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	text := i.Token(at.Now(), jwt.MapClaims{"exp": at.Now().Add(48 * time.Hour).Unix()})
	from, issuers := Issuer{URL: i.Issuer()}, NewIssuers(at.Now)
	known := NewIssuers(at.Now)
	if _, err := known.Verify(t.Context(), from, text); err != nil {
		t.Fatal(err)
	}
	hangs := make(chan struct{})
	i.Hang(hangs)
	const tokens = 3 * askWaiting
	ctx, cancel := context.WithCancel(t.Context())
	ends := make(chan error, tokens)
	for range tokens {
		go func() {
			_, err := issuers.Verify(ctx, from, text)
			ends <- err
		}()
	}
	for range tokens - askWaiting { // who has no place is told so at once
		if err := <-ends; !isUnreachable(err) {
			t.Error(err)
		}
	}
	cancel()
	for range askWaiting {
		if err := <-ends; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	at.pass(2 * askAgain)
	for range 3 {
		if _, err := known.Verify(t.Context(), from, text); err != nil {
			t.Errorf("a key that is known: %v", err)
		}
	}
	close(hangs)
}

// What an issuer answers can be anything.
func TestStrangeIssuers(t *testing.T) {
	at := &clock{now: time.Now()}
	discovery, keys := mockoidc.DiscoveryEndpoint, mockoidc.JWKSEndpoint
	for name, x := range map[string]struct {
		path, answer, want string
	}{
		"not JSON":          {discovery, "<html>", "decode"},
		"another issuer":    {discovery, `{"issuer":"https://issuer.example"}`, "issuer.example"},
		"no keys":           {keys, `{"keys":[]}`, "none that a token"},
		"a shared secret":   {keys, `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, "none that a token"},
		"endless keys":      {keys, `OWN` + strings.Repeat(" ", 2*maxAnswer) + `}`, "EOF"},
		"keys without TLS":  {discovery, `{"issuer":"ISSUER","jwks_uri":"http://keys.example/"}`, "without TLS"},
		"keys in a file":    {discovery, `{"issuer":"ISSUER","jwks_uri":"file:///etc/passwd"}`, "without TLS"},
		"keys somewhere":    {keys, "redirect:/elsewhere", "redirects"},
		"itself somewhere":  {discovery, "redirect:http://127.0.0.1:1/", "redirects"},
		"another machine's": {discovery, `{"issuer":"ISSUER","jwks_uri":"http://127.0.0.1.evil.example/"}`, "without TLS"},
	} {
		i := oidc.New(t, nil)
		own, err := i.Keypair.JWKS()
		if err != nil {
			t.Fatal(err)
		}
		i.Answer(x.path, strings.NewReplacer("ISSUER", i.Issuer(), "OWN", strings.TrimSuffix(string(own), "}")).Replace(x.answer))
		_, err = NewIssuers(at.Now).Verify(t.Context(), Issuer{URL: i.Issuer()}, i.Token(at.Now(), nil))
		if !isUnreachable(err) || !strings.Contains(err.Error(), x.want) || len(err.Error()) > 500 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Issuers sign with other keys than RSA's too; each announces how.
func TestOtherAlgorithms(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	at := &clock{now: time.Now()}
	for _, x := range []struct {
		method    jwt.SigningMethod
		key       any
		public    any
		announced string
		good      bool
	}{
		{jwt.SigningMethodES256, curve, curve.Public(), `["ES256"]`, true},
		{jwt.SigningMethodEdDSA, edwards, public, `["none","HS256","EdDSA"]`, true},
		{jwt.SigningMethodES256, curve, curve.Public(), `["RS256"]`, false},
		{jwt.SigningMethodES256, curve, curve.Public(), `[]`, false}, // then it is RS256
	} {
		i := oidc.New(t, nil)
		set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: x.public, KeyID: "k", Use: "sig"}}})
		if err != nil {
			t.Fatal(err)
		}
		i.Answer(mockoidc.JWKSEndpoint, string(set))
		i.Answer(mockoidc.DiscoveryEndpoint, `{"issuer":"`+i.Issuer()+`","jwks_uri":"`+i.JWKSEndpoint()+`","id_token_signing_alg_values_supported":`+x.announced+`}`)
		_, err = NewIssuers(at.Now).Verify(t.Context(), Issuer{URL: i.Issuer()}, forge(t, x.method, x.key, "k", i.Claims(at.Now(), nil)))
		if (err == nil) != x.good || err != nil && !isRejected(err) {
			t.Errorf("%s where %s is announced: %v", x.method.Alg(), x.announced, err)
		}
	}
}

// A key is good for the algorithm that its issuer says it is for.
func TestKeyOfAnotherAlgorithm(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	own, err := i.Keypair.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	i.Answer(mockoidc.JWKSEndpoint, strings.Replace(string(own), `"RS256"`, `"RS512"`, 1))
	if _, err := NewIssuers(at.Now).Verify(t.Context(), Issuer{URL: i.Issuer()}, i.Token(at.Now(), nil)); !isRejected(err) {
		t.Error(err)
	}
}

// A private issuer's CA counts for it alone, and nothing else does.
func TestPrivateCA(t *testing.T) {
	server := httptest.NewTLSServer(nil) // for its certificate
	server.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	i, at := oidc.New(t, server.TLS), &clock{now: time.Now()}
	from, text := Issuer{URL: i.Issuer(), CA: ca}, i.Token(at.Now(), nil)
	if err := from.Validate(); err != nil {
		t.Fatal(err)
	}
	issuers := NewIssuers(at.Now)
	if _, err := issuers.Verify(t.Context(), from, text); err != nil {
		t.Error(err)
	}
	if _, err := issuers.Verify(t.Context(), Issuer{URL: i.Issuer()}, text); !isUnreachable(err) {
		t.Errorf("without its CA: %v", err)
	}
}

// Who asks and goes away stops no question that others wait for.
func TestGoneWhileAsking(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	issuers, from := NewIssuers(at.Now), Issuer{URL: i.Issuer()}
	if _, err := issuers.Verify(gone, from, i.Token(at.Now(), nil)); err == nil {
		t.Log("it was quicker")
	} else if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := issuers.Verify(t.Context(), from, i.Token(at.Now(), nil)); err != nil {
		t.Error(err)
	}
	if n := i.Asked(mockoidc.JWKSEndpoint); n != 1 {
		t.Errorf("%d questions", n)
	}
}

// Keys of kinds that are not known here don't hide those that are.
func TestOddKeysInTheSet(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	own, err := i.Keypair.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	i.Answer(mockoidc.JWKSEndpoint, strings.Replace(string(own), `[`, `[{"kty":"OKP","crv":"Ed448","x":"AA"},{"kty":"magic"},7,{"kty":"oct","k":"c2VjcmV0"},`, 1))
	if _, err := NewIssuers(at.Now).Verify(t.Context(), Issuer{URL: i.Issuer()}, i.Token(at.Now(), nil)); err != nil {
		t.Error(err)
	}
}

func TestIssuerNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"https://token.actions.githubusercontent.com": true, "https://gitlab.example:8443/x": true, "http://127.0.0.1:9": true, "http://localhost": true,
		"http://[::1]:9/a": true, "http://gitlab.example": false, "gitlab.example": false, "": false, "ftp://a": false, "https://": false,
		"https://a/?b": false, "https://a/#b": false, "https://u:p@a": false, "https://" + strings.Repeat("a", maxURL): false, "http://127.0.0.1.evil.example": false,
	} {
		if err := (Issuer{URL: name}).Validate(); (err == nil) != ok {
			t.Errorf("%.80q: %v", name, err)
		}
	}
	if err := (Issuer{URL: "http://gitlab.lan", Insecure: true}).Validate(); err != nil {
		t.Error(err)
	}
	if err := (Issuer{URL: "https://gitlab.lan", CA: "nonsense"}).Validate(); err == nil {
		t.Error("a CA that is none")
	}
}

func TestUnverifiedIssuer(t *testing.T) {
	i, at := oidc.New(t, nil), &clock{now: time.Now()}
	for _, text := range []string{
		"", "a.b", "a.b.c", "..", "a.!!!.c", "eyJ9." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":7}`)) + ".x",
		"eyJ9." + base64.RawURLEncoding.EncodeToString([]byte(`[]`)) + ".x", "eyJ9." + base64.RawURLEncoding.EncodeToString([]byte(`null`)) + ".x",
		"eyJ9." + base64.RawURLEncoding.EncodeToString([]byte{0, 255, 1}) + ".x", strings.Repeat("a", maxToken) + ".b.c",
	} {
		if iss, ok := IssuerOf(text); ok {
			t.Errorf("%.40q is of %q", text, iss)
		}
	}
	if iss, ok := IssuerOf(i.Token(at.Now(), nil)); !ok || iss != i.Issuer() {
		t.Errorf("%q", iss)
	}
}
