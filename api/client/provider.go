package client

import (
	"context"
	"net/http"
)

// Provider knows people whom the cluster itself doesn't. One of LDAP and OIDC is set.
type Provider struct {
	Name string `json:"name"`
	LDAP *LDAP  `json:"ldap,omitempty"`
	OIDC *OIDC  `json:"oidc,omitempty"`
}

// LDAP is a directory server that checks passwords.
type LDAP struct {
	// URLs are tried in turn: ldaps://HOST, or ldap://HOST, which is secured by StartTLS unless Insecure says that it isn't.
	URLs     []string `json:"urls"`
	Insecure bool     `json:"insecure,omitempty"`
	CA       string   `json:"ca,omitempty"` // PEM, in place of the system's
	// BindDN looks people up, with BindPassword, which no answer has in it; without it nobody in particular does.
	BindDN       string `json:"bind_dn,omitempty"`
	BindPassword string `json:"bind_password,omitempty"`
	// Base is where people are below; Filter, with {user} in it, finds one, (uid={user}) when empty.
	Base   string `json:"base"`
	Filter string `json:"filter,omitempty"`
	// NameAttribute has the name that somebody gets here, uid when empty.
	NameAttribute string     `json:"name_attribute,omitempty"`
	Groups        LDAPGroups `json:"groups"`
}

// LDAPGroups says how somebody's groups are found, and what they are here. A group that is not mapped counts for nothing.
type LDAPGroups struct {
	// Attribute of somebody's entry has the DNs of the groups, memberOf when empty; with Filter they are searched instead.
	Attribute string `json:"attribute,omitempty"`
	// Base is where groups are below; others don't count. Filter has {dn} or {user} in it, such as (member={dn}).
	Base   string `json:"base,omitempty"`
	Filter string `json:"filter,omitempty"`
	// Map gives groups by their DN the names that they have here.
	Map map[string]string `json:"map,omitempty"`
	// All takes every group below Base under its own name, the first value of its DN, in lower case and with Prefix before it.
	All    bool   `json:"all,omitempty"`
	Prefix string `json:"prefix,omitempty"`
}

// OIDC is an OpenID provider at which people log in.
type OIDC struct {
	Issuer       string `json:"issuer"`
	Insecure     bool   `json:"insecure_http,omitempty"`
	CA           string `json:"ca,omitempty"` // PEM, in place of the system's
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret,omitempty"` // no answer has it in it
	// IDTokens takes ID tokens of people that other programs got, and not only those of a login that a node has seen through. On
	// an issuer that makes tokens for CI jobs too, for audiences of their choice, such a job could then come in as a person.
	IDTokens bool `json:"id_tokens,omitempty"`
	// Scopes are asked for beside openid.
	Scopes []string `json:"scopes,omitempty"`
	// NameClaim has the name that somebody gets here, preferred_username when empty; GroupsClaim the groups, groups when empty.
	NameClaim   string `json:"name_claim,omitempty"`
	GroupsClaim string `json:"groups_claim,omitempty"`
	// Map gives groups the names that they have here; All takes every one under its own name, with Prefix before it.
	Map    map[string]string `json:"map,omitempty"`
	All    bool              `json:"all,omitempty"`
	Prefix string            `json:"prefix,omitempty"`
}

// Kind is ldap or oidc; empty where neither is set, or both are.
func (p Provider) Kind() string {
	switch {
	case p.LDAP != nil && p.OIDC == nil:
		return "ldap"
	case p.OIDC != nil && p.LDAP == nil:
		return "oidc"
	}
	return ""
}

// Shown is the provider without its secrets.
func (p Provider) Shown() Provider {
	if p.LDAP != nil {
		l := *p.LDAP
		l.BindPassword, p.LDAP = "", &l
	}
	if p.OIDC != nil {
		o := *p.OIDC
		o.ClientSecret, p.OIDC = "", &o
	}
	return p
}

// ProviderRequest adds a provider, or replaces one, which ends what it has vouched for.
type ProviderRequest struct {
	Provider Provider `json:"provider"`
	Replace  bool     `json:"replace,omitempty"`
}

// ProviderTest tries a login; without a password it only looks the user up.
type ProviderTest struct {
	Name     string `json:"name"`
	User     string `json:"user"`
	Password string `json:"password,omitempty"`
	LookUp   bool   `json:"look_up,omitempty"`
}

// ProviderReport is how a login went at the provider, step by step, and as whom it would come in here.
type ProviderReport struct {
	OK     bool     `json:"ok"`
	Steps  []string `json:"steps"`
	Name   string   `json:"name,omitempty"`
	Groups []string `json:"groups,omitempty"` // as they are here
}

// Providers lists the providers, without their secrets.
func (c *Client) Providers(ctx context.Context) ([]Provider, error) {
	var out []Provider
	return out, c.call(ctx, http.MethodGet, "/api/v1/access/providers", nil, &out)
}

// AddProvider adds or replaces a provider.
func (c *Client) AddProvider(ctx context.Context, r ProviderRequest) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/provider/add", r, nil)
}

// RemoveProvider removes a provider: nobody whom it vouched for comes in any more.
func (c *Client) RemoveProvider(ctx context.Context, r NameRequest) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/provider/remove", r, nil)
}

// TestProvider tries a login at a provider, from the node that is asked.
func (c *Client) TestProvider(ctx context.Context, r ProviderTest) (ProviderReport, error) {
	var out ProviderReport
	return out, c.call(ctx, http.MethodPost, "/api/v1/access/provider/test", r, &out)
}
