package client

import (
	"context"
	"net/http"
)

// TrustRule lets the jobs of an issuer of ID tokens in as a robot, with no secret to keep.
type TrustRule struct {
	Name   string `json:"name"`
	Robot  string `json:"robot"`
	Issuer string `json:"issuer"` // as the tokens have it in iss, to the letter
	// CA is what the issuer's certificate is signed by, PEM; empty: what the nodes' systems trust.
	CA string `json:"ca,omitempty"`
	// Insecure lets the issuer be reached without TLS: whoever sits in between can then make tokens.
	Insecure bool   `json:"insecure,omitempty"`
	Audience string `json:"audience"` // what the token has to be made for
	// Claims are NAME=PATTERN, which all have to match. In a pattern a * stands for any part of a segment between / and :, and
	// at its end for whatever follows.
	Claims []string `json:"claims,omitempty"`
	// AnyJob says that whoever has a token of this issuer for this audience is meant.
	AnyJob bool `json:"any_job,omitempty"`
}

// TrustRequest adds a rule, or replaces one, which ends what came in by it.
type TrustRequest struct {
	Rule    TrustRule `json:"rule"`
	Replace bool      `json:"replace,omitempty"`
}

// TrustTest asks what the rules make of a token.
type TrustTest struct {
	Token string `json:"token"`
}

// TrustVerdict is what one rule makes of a token, and why.
type TrustVerdict struct {
	Rule   string `json:"rule"`
	Robot  string `json:"robot"`
	Admits bool   `json:"admits"`
	Reason string `json:"reason,omitempty"`
}

// TrustRules lists the rules.
func (c *Client) TrustRules(ctx context.Context) ([]TrustRule, error) {
	var out []TrustRule
	return out, c.call(ctx, http.MethodGet, "/api/v1/access/trust", nil, &out)
}

// AddTrust adds or replaces a rule.
func (c *Client) AddTrust(ctx context.Context, r TrustRequest) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/trust/add", r, nil)
}

// RemoveTrust removes a rule; what came in by it ends.
func (c *Client) RemoveTrust(ctx context.Context, r NameRequest) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/trust/remove", r, nil)
}

// TestTrust tells what each rule makes of a token, at the node that is asked.
func (c *Client) TestTrust(ctx context.Context, r TrustTest) ([]TrustVerdict, error) {
	var out []TrustVerdict
	return out, c.call(ctx, http.MethodPost, "/api/v1/access/trust/test", r, &out)
}
