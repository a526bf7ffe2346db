package identity

import (
	"slices"
	"strings"

	"pier/api/auth"
)

const (
	defaultNameClaim   = "preferred_username"
	defaultGroupsClaim = "groups"
	emailClaim         = "email"
)

// From is who makes the tokens of an OpenID provider.
func (p Provider) From() Issuer {
	return Issuer{URL: p.OIDC.Issuer, CA: p.OIDC.CA, Insecure: p.OIDC.Insecure}
}

// Scopes are what a login asks the provider for.
func (p Provider) Scopes() []string {
	out := []string{"openid"}
	asked := p.OIDC.Scopes
	if len(asked) == 0 {
		asked = []string{"profile"}
	}
	if p.OIDC.NameClaim == emailClaim {
		asked = append(slices.Clone(asked), emailClaim)
	}
	for _, s := range asked {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Person gives whom a verified token of the provider is of, as a caller that the provider vouches for.
func (p Provider) Person(c Claims) (auth.Caller, error) {
	party, several := c.values["azp"], len(c.Texts("aud")) > 1
	if !c.For(p.OIDC.ClientID) || party != nil && party != p.OIDC.ClientID || party == nil && several {
		return auth.Caller{}, rejected("it was made for another program than Pier")
	}
	claim := orElse(p.OIDC.NameClaim, defaultNameClaim)
	name := c.Text(claim)
	if name == "" {
		return auth.Caller{}, rejected("it has no claim %s, which is to be the name here; does the provider's scope give it?", claim)
	}
	if err := auth.CheckName(name); err != nil { // before it is in lower case: some letters of other alphabets are plain ones there
		return auth.Caller{}, rejected("its claim %s can't be a name here: %v", claim, err)
	}
	if claim == emailClaim && !c.True("email_verified") {
		return auth.Caller{}, rejected("the provider has not verified the e-mail address, which anybody could have written")
	}
	return auth.Caller{Kind: auth.KindUser, Name: strings.ToLower(name), Groups: p.groups(c), Provider: p.Name, ProviderGeneration: p.Generation}, nil
}

// groups are somebody's here, each once and in order.
func (p Provider) groups(c Claims) []string {
	var out []string
	for _, theirs := range c.Texts(orElse(p.OIDC.GroupsClaim, defaultGroupsClaim)) {
		if here, ok := p.OIDC.Map[theirs]; ok {
			out = append(out, here)
		}
		if own := p.OIDC.Prefix + theirs; p.OIDC.All && auth.CheckName(own) == nil {
			out = append(out, own)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
