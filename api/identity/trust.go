package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"pier/api/client"
)

const (
	maxClaims   = 16
	maxClaim    = 128 // bytes of a claim's name
	maxPattern  = 512
	maxAudience = 512
)

// Rule is a trust rule that the state has, at a generation of its settings.
type Rule struct {
	client.TrustRule
	Generation uint64
	claims     []claim
}

// claim is what a claim of a token has to be.
type claim struct {
	name, text string
	pattern    *regexp.Regexp
}

// ParseRule reads a trust rule and reports every fault at once, but whether its name and its robot's are names.
func ParseRule(r client.TrustRule, generation uint64) (Rule, error) {
	out := Rule{TrustRule: r, Generation: generation}
	faults := []error{out.From().Validate()}
	if r.Audience == "" || len(r.Audience) > maxAudience {
		faults = append(faults, fmt.Errorf("an audience of 1 to %d bytes is needed: what the job asks its token for, such as the registry's name", maxAudience))
	}
	if len(r.Claims) > maxClaims {
		faults = append(faults, fmt.Errorf("%d claims; %d are the limit", len(r.Claims), maxClaims))
		r.Claims = nil
	}
	for _, text := range r.Claims {
		c, err := parseClaim(text)
		out.claims = append(out.claims, c)
		faults = append(faults, err)
	}
	if !r.AnyJob && !slices.ContainsFunc(out.claims, func(c claim) bool { return c.text != "*" }) {
		faults = append(faults, errors.New("without a claim every job of the issuer would come in, other people's too: name one, such as sub=repo:team/app:*, or say --any-job"))
	}
	return out, errors.Join(faults...)
}

// From is who makes the tokens.
func (r Rule) From() Issuer { return Issuer{URL: r.Issuer, CA: r.CA, Insecure: r.Insecure} }

// parseClaim reads NAME=PATTERN. A name may have any character but = in it, and is never a path.
func parseClaim(s string) (claim, error) {
	name, text, ok := strings.Cut(s, "=")
	c := claim{name: name, text: text}
	switch {
	case !ok || name == "" || text == "":
		return c, fmt.Errorf("claim %.80q: want NAME=PATTERN, such as sub=repo:team/app:*", s)
	case len(name) > maxClaim || len(text) > maxPattern:
		return c, fmt.Errorf("claim %.80q: a name has at most %d bytes, a pattern %d", s, maxClaim, maxPattern)
	case slices.Contains([]string{"iss", "aud", "exp", "nbf", "iat"}, name):
		return c, fmt.Errorf("claim %s is checked anyhow; the issuer and the audience have places of their own", name)
	case strings.Contains(text, "**"):
		return c, fmt.Errorf("claim %s: one * is enough; at the end of a pattern it stands for whatever follows", name)
	}
	var err error
	c.pattern, err = regexp.Compile(expression(text))
	return c, err
}

// expression writes a pattern as the library's, which takes no longer for a nasty one.
func expression(pattern string) string {
	parts := strings.Split(pattern, "*")
	last := len(parts) - 1
	var b strings.Builder
	b.WriteString(`\A`)
	for i, part := range parts {
		b.WriteString(regexp.QuoteMeta(part))
		switch {
		case i == last:
		case i == last-1 && parts[last] == "":
			b.WriteString(`(?s:.*)`)
		default:
			b.WriteString(`[^/:]*`)
		}
	}
	return b.String() + `\z`
}

// matches tells whether a claim's value is what was asked for: a string, a truth value or a number as it is written, or a
// list that has one of those in it.
func (c claim) matches(value any) bool {
	switch v := value.(type) {
	case string:
		return c.pattern.MatchString(v)
	case bool:
		return c.pattern.MatchString(strconv.FormatBool(v))
	case json.Number:
		return c.pattern.MatchString(v.String())
	case []any:
		return slices.ContainsFunc(v, func(x any) bool {
			_, list := x.([]any)
			return !list && c.matches(x)
		})
	}
	return false
}

// Admits tells whether a verified token is of a job that the rule is for, and else why not.
func (r Rule) Admits(c Claims) error {
	no := func(format string, args ...any) error {
		return &RejectedError{Reason: fmt.Sprintf(format, args...), Private: true}
	}
	if c.Issuer != r.Issuer {
		return no("it is of another issuer")
	}
	if !c.For(r.Audience) {
		return no("it is for another audience than %s", r.Audience)
	}
	for _, want := range r.claims {
		value, ok := c.values[want.name]
		if !ok {
			return no("it has no claim %s", want.name)
		}
		if !want.matches(value) {
			return no("its claim %s does not match %s", want.name, want.text)
		}
	}
	return nil
}
