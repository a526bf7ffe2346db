package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	maxClaims  = 16
	maxName    = 128
	maxPattern = 512
)

// TrustRule lets the jobs of an issuer in as a robot, by the ID tokens that the issuer makes for them.
type TrustRule struct {
	Robot string `json:"robot"`
	Issuer
	Audience string  `json:"audience"` // what aud has to name
	Claims   []Claim `json:"claims,omitempty"`
	// AnyJob says that whoever has a token of this issuer for this audience is meant.
	AnyJob bool `json:"any_job,omitempty"`
}

// Claim is what a claim of a token has to be. In the pattern a * stands for any part of a segment between / and :, and at its
// end for whatever follows.
type Claim struct {
	Name    string `json:"name"`
	Pattern string `json:"pattern"`
}

func (c Claim) String() string { return c.Name + "=" + c.Pattern }

// ParseClaim reads NAME=PATTERN. A name may have any character but = in it, and is never a path.
func ParseClaim(s string) (Claim, error) {
	name, pattern, ok := strings.Cut(s, "=")
	c := Claim{Name: name, Pattern: pattern}
	if !ok {
		return c, fmt.Errorf("claim %.80q: want NAME=PATTERN, such as sub=repo:team/app:*", s)
	}
	return c, c.validate()
}

func (c Claim) validate() error {
	switch {
	case c.Name == "" || len(c.Name) > maxName:
		return fmt.Errorf("claim %.80q: a name of 1 to %d bytes", c.Name, maxName)
	case slices.Contains([]string{"iss", "aud", "exp", "nbf", "iat"}, c.Name):
		return fmt.Errorf("claim %s is checked anyhow; the issuer and the audience have places of their own", c.Name)
	case c.Pattern == "" || len(c.Pattern) > maxPattern:
		return fmt.Errorf("claim %s: a pattern of 1 to %d bytes", c.Name, maxPattern)
	case strings.Contains(c.Pattern, "**"):
		return fmt.Errorf("claim %s: one * is enough; at the end of a pattern it stands for whatever follows", c.Name)
	}
	return nil
}

// says tells whether the claim keeps anybody out: * takes all that there is.
func (c Claim) says() bool { return strings.Trim(c.Pattern, "*") != "" }

// matches tells whether a claim's value is what was asked for: a string, a truth value or a number as it is written, or a
// list that has one of those in it.
func (c Claim) matches(value any) bool {
	switch v := value.(type) {
	case string:
		return c.matchesText(v)
	case bool:
		return c.matchesText(strconv.FormatBool(v))
	case json.Number:
		return c.matchesText(v.String())
	case []any:
		return slices.ContainsFunc(v, func(x any) bool {
			_, list := x.([]any)
			return !list && c.matches(x)
		})
	}
	return false
}

func (c Claim) matchesText(s string) bool {
	parts := strings.Split(c.Pattern, "*")
	if len(parts) == 1 {
		return s == c.Pattern
	}
	last := len(parts) - 1
	var b strings.Builder
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
	// Compiled each time: a few microseconds beside the check of a signature, and nothing to keep.
	re, err := regexp.Compile(`\A` + b.String() + `\z`)
	return err == nil && re.MatchString(s)
}

// Validate reports every fault at once, but whether the robot's name is one.
func (r TrustRule) Validate() error {
	faults := []error{r.Issuer.Validate()}
	if r.Audience == "" || len(r.Audience) > maxURL {
		faults = append(faults, fmt.Errorf("an audience of 1 to %d bytes is needed: what the job asks its token for, such as the registry's name", maxURL))
	}
	if len(r.Claims) > maxClaims {
		faults = append(faults, fmt.Errorf("more than %d claims", maxClaims))
	}
	for _, c := range r.Claims {
		faults = append(faults, c.validate())
	}
	if !r.AnyJob && !slices.ContainsFunc(r.Claims, Claim.says) {
		faults = append(faults, errors.New("without a claim every job of the issuer would come in, of other people too; name one, such as --claim sub=repo:team/app:*, or say --any-job"))
	}
	return errors.Join(faults...)
}

// Admits tells whether a verified token is of a job that the rule is for, and else why not.
func (r TrustRule) Admits(c Claims) error {
	if c.Issuer != r.URL {
		return rejected("it is of another issuer")
	}
	if !c.For(r.Audience) {
		return rejected("it is for another audience; ask for one for %s", r.Audience)
	}
	for _, want := range r.Claims {
		value, ok := c.values[want.Name]
		if !ok {
			return rejected("it has no claim %s", want.Name)
		}
		if !want.matches(value) {
			return rejected("its claim %s does not match %s", want.Name, want.Pattern)
		}
	}
	return nil
}
