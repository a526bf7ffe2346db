package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// LoginStart is what a program needs to send a browser to an OpenID provider.
type LoginStart struct {
	Provider      string   `json:"provider"`
	Issuer        string   `json:"issuer"`
	Authorization string   `json:"authorization_endpoint"`
	ClientID      string   `json:"client_id"`
	Scopes        []string `json:"scopes"`
}

// LoginCode is what a browser brought back, and what only the program knows that sent it.
type LoginCode struct{ Provider, Code, Redirect, Verifier, Nonce string }

// StartLogin asks how to begin a login at a provider; an empty one is the only one that there is.
func (c *Client) StartLogin(ctx context.Context, provider string) (LoginStart, error) {
	var out LoginStart
	return out, c.call(ctx, http.MethodGet, "/api/v1/login?provider="+url.QueryEscape(provider), nil, &out)
}

// FinishLogin gives the login that a browser's code stands for.
func (c *Client) FinishLogin(ctx context.Context, l LoginCode) (Login, error) {
	return c.lasting(ctx, url.Values{
		"grant_type": {"authorization_code"}, "provider": {l.Provider}, "code": {l.Code}, "redirect_uri": {l.Redirect},
		"code_verifier": {l.Verifier}, "nonce": {l.Nonce}, "access_type": {"offline"},
	})
}

// Whose tells whose login it is and when it ends, by its own word. A robot's says no end.
func (l Login) Whose() (user string, ends time.Time) {
	if l.Robot != "" {
		return l.Robot, time.Time{}
	}
	var claims struct {
		Subject string `json:"sub"`
		Expires int64  `json:"exp"`
	}
	parts := strings.Split(l.Token, ".")
	if len(parts) != 3 {
		return "", time.Time{}
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(data, &claims) != nil {
		return "", time.Time{}
	}
	return claims.Subject, time.Unix(claims.Expires, 0)
}
