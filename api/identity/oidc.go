package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

const (
	maxToken   = 16 << 10 // bytes of an ID token; usual ones have one or two thousand
	maxURL     = 512
	maxCA      = 64 << 10
	maxKnown   = 256         // issuers that a node remembers
	clockSlack = time.Minute // clocks may differ by this much where a token isn't good yet
)

// Issuer is who makes ID tokens, and how a node reaches it.
type Issuer struct {
	URL string // as the tokens have it in iss, to the letter
	// CA is what the issuer's certificate is signed by, PEM; empty: what the node's system trusts.
	CA string
	// Insecure lets the issuer be reached without TLS: whoever sits in between can then make tokens.
	Insecure bool
}

// Validate reports every fault at once.
func (i Issuer) Validate() error {
	var faults []error
	u, err := url.Parse(i.URL)
	switch {
	case err != nil || len(i.URL) > maxURL || u.Host == "" || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		faults = append(faults, fmt.Errorf("issuer %.80q: want a URL such as https://gitlab.example, without a query", i.URL))
	case !i.mayReach(i.URL):
		faults = append(faults, fmt.Errorf("issuer %s: whoever sits between it and the nodes could make tokens; use https, or say --insecure-http", i.URL))
	}
	if len(i.CA) > maxCA || i.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(i.CA)) {
		faults = append(faults, errors.New("the issuer's CA is no certificate in PEM form"))
	}
	return errors.Join(faults...)
}

// mayReach tells whether a node may ask at the URL: with TLS, on its own machine, or anyhow where that was said.
func (i Issuer) mayReach(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	return u.Scheme == "https" || u.Scheme == "http" && (local || i.Insecure)
}

// RejectedError says why an ID token isn't accepted.
type RejectedError struct {
	Reason string
	// Private says that the token is genuine, and the reason tells of a rule that not everybody who has one is to know.
	Private bool
}

func (e *RejectedError) Error() string { return "the ID token is not accepted: " + e.Reason }

func rejected(format string, args ...any) error {
	return &RejectedError{Reason: fmt.Sprintf(format, args...)}
}

// UnreachableError says that an issuer can't be asked now. The cause is for the log.
type UnreachableError struct {
	Issuer string
	Err    error
}

func (e *UnreachableError) Error() string {
	text := e.Err.Error()
	return fmt.Sprintf("the issuer %s can't be asked: %s", e.Issuer, text[:min(len(text), 300)])
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// Claims are what a verified ID token says.
type Claims struct {
	Issuer  string
	Expires time.Time
	values  map[string]any // numbers as json.Number
}

// parseClaims reads what a token says, without a look at who signed it.
func parseClaims(payload []byte) (Claims, error) {
	var c Claims
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	if err := dec.Decode(&c.values); err != nil || c.values == nil {
		return c, errors.New("its content is no JSON object")
	}
	c.Issuer, _ = c.values["iss"].(string)
	c.Expires, _ = c.instant("exp")
	return c, nil
}

// instant is a claim that is a time.
func (c Claims) instant(name string) (time.Time, bool) {
	n, ok := c.values[name].(json.Number)
	if !ok {
		return time.Time{}, false
	}
	seconds, err := n.Float64()
	if err != nil || seconds < 0 || seconds > 1<<40 {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

// Text is a claim that is a string.
func (c Claims) Text(name string) string {
	text, _ := c.values[name].(string)
	return text
}

// Texts is a claim that is a string or a list of strings; what else is in a list is left out.
func (c Claims) Texts(name string) []string {
	switch v := c.values[name].(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, x := range v {
			if s, ok := x.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// True tells whether a claim says yes, as a boolean or as some issuers write one.
func (c Claims) True(name string) bool {
	return c.values[name] == true || c.values[name] == "true"
}

// For tells whether the token was made for an audience.
func (c Claims) For(audience string) bool { return slices.Contains(c.Texts("aud"), audience) }

// timely checks what the library is more patient about, or leaves to the caller.
func (c Claims) timely(now time.Time) error {
	if c.Expires.IsZero() || !now.Before(c.Expires) {
		return rejected("it has expired")
	}
	for _, name := range []string{"nbf", "iat"} {
		if _, set := c.values[name]; !set {
			continue
		}
		if t, ok := c.instant(name); !ok || now.Add(clockSlack).Before(t) {
			return rejected("it is not valid yet; are the clocks of its issuer and of this node right?")
		}
	}
	return nil
}

// IssuerOf is who a token says has made it: what to ask, and nothing to believe.
func IssuerOf(token string) (string, bool) {
	if len(token) > maxToken || !compact.MatchString(token) {
		return "", false
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		return "", false
	}
	c, err := parseClaims(payload)
	return c.Issuer, err == nil && c.Issuer != ""
}

// compact is the one form of signed tokens that is taken here.
var compact = regexp.MustCompile(`^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*$`)

// Issuers verifies ID tokens, with what their issuers publish. Safe for concurrent use.
type Issuers struct {
	now func() time.Time

	mu    sync.Mutex
	known map[Issuer]*published
}

// NewIssuers knows nothing of any issuer yet; it asks when the first token comes.
func NewIssuers(now func() time.Time) *Issuers {
	return &Issuers{now: now, known: make(map[Issuer]*published)}
}

// of is what is known of an issuer, which an administrator has named.
func (s *Issuers) of(i Issuer) *published {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.known[i]
	if !ok {
		if len(s.known) >= maxKnown {
			clear(s.known) // those still in use are asked again; nothing cleverer is needed
		}
		p = newPublished(i, s.now)
		s.known[i] = p
	}
	return p
}

// Reach tells whether the issuer can be asked from here, and why not: now, or where it was asked a moment ago, then.
func (s *Issuers) Reach(ctx context.Context, i Issuer) error { return s.of(i).ask(ctx) }

// Verify gives what a token of the issuer says. It is not asked whom the token was made for: see Claims.For. A *RejectedError
// says no, an *UnreachableError that nobody can tell now.
func (s *Issuers) Verify(ctx context.Context, i Issuer, token string) (Claims, error) {
	if len(token) > maxToken {
		return Claims{}, rejected("it has more than %d bytes", maxToken)
	}
	if !compact.MatchString(token) {
		return Claims{}, rejected("it is not of the form HEADER.CONTENT.SIGNATURE")
	}
	p := s.of(i)
	algorithms, err := p.ready(ctx)
	if err != nil {
		return Claims{}, err
	}
	keys := &keySet{from: p, algorithms: algorithms}
	verifier := oidc.NewVerifier(i.URL, keys, &oidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: algorithms, Now: s.now})
	_, err = verifier.Verify(ctx, token)
	var expired *oidc.TokenExpiredError
	switch {
	case keys.fault != nil:
		return Claims{}, keys.fault
	case keys.payload == nil:
		return Claims{}, rejected("it is not signed in one of the ways that its issuer announces (%s)", strings.Join(algorithms, ", "))
	case errors.As(err, &expired):
		return Claims{}, rejected("it has expired")
	case err != nil:
		return Claims{}, rejected("its issuer, its audience or its times are not what they are to be")
	}
	c, err := parseClaims(keys.payload)
	if err != nil || c.Issuer != i.URL {
		return Claims{}, rejected("its issuer is not %s", i.URL)
	}
	return c, c.timely(s.now())
}
