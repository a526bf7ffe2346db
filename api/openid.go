package api

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"pier/api/auth"
	"pier/api/client"
	"pier/api/identity"
)

// personLife is how long a login at an OpenID provider lasts: nobody can ask there whether somebody may still come in, but by a
// login.
const personLife = 12 * time.Hour

// person gives the user whom an ID token of a provider is of; known is false where it is of no provider that takes any. An empty
// provider is any.
func (x *access) person(ctx context.Context, d *auth.Directory, provider, token string) (c auth.Caller, known bool, err error) {
	issuer, _ := identity.IssuerOf(token)
	for _, p := range x.people.Providers() {
		if p.OIDC == nil || !p.OIDC.IDTokens || p.OIDC.Issuer != issuer || provider != "" && p.Name != provider {
			continue
		}
		known = true
		var claims identity.Claims
		if claims, err = x.issuers.Verify(ctx, p.From(), token); err != nil {
			continue
		}
		if c, err = x.comesIn(d, p, claims); err == nil {
			return c, true, nil
		}
	}
	return auth.Caller{}, known, err
}

// comesIn is the caller that a provider vouches for, and whom nobody here has the name of.
func (x *access) comesIn(d *auth.Directory, p identity.Provider, claims identity.Claims) (auth.Caller, error) {
	c, err := p.Person(claims)
	if err != nil {
		return auth.Caller{}, err
	}
	c.Until = x.cfg.Now().Add(personLife)
	now, ok := d.Vouched(c, x.cfg.Now())
	if !ok {
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized,
			"the name %s is another user's here, or %s is kept out; an administrator can link it with `pier user add %s --provider %s`", c.Name, c.Name, c.Name, p.Name)
	}
	return now, nil
}

// redeemed gives whom a browser has logged in at a provider. The node exchanges the code, so that the client's secret, where
// the provider wants one, stays in the cluster.
func (x *access) redeemed(r *http.Request, d *auth.Directory, form url.Values) (auth.Caller, error) {
	p, err := x.provider(form.Get("provider"))
	if err != nil {
		return auth.Caller{}, err
	}
	code := identity.Code{Code: form.Get("code"), Redirect: form.Get("redirect_uri"), Verifier: form.Get("code_verifier")}
	nonce := form.Get("nonce")
	if code.Code == "" || code.Redirect == "" || code.Verifier == "" || nonce == "" {
		return auth.Caller{}, refuse(http.StatusBadRequest, codeUnsupported, "a code needs redirect_uri, code_verifier and nonce beside it")
	}
	c, err := x.logins.Elsewhere(r.Context(), x.source(r), func() (auth.Caller, error) {
		c, err := x.redeem(r.Context(), d, p, code, nonce)
		if isRejection(err) { // it counts as a wrong password does
			err = fmt.Errorf("%w: %w", auth.ErrWrongLogin, err)
		}
		return c, err
	})
	return c, x.explainToken(err)
}

func (x *access) redeem(ctx context.Context, d *auth.Directory, p identity.Provider, code identity.Code, nonce string) (auth.Caller, error) {
	token, err := x.issuers.Redeem(ctx, p.From(), p.OIDC.ClientID, p.OIDC.ClientSecret, code)
	if err != nil {
		return auth.Caller{}, err
	}
	claims, err := x.issuers.Verify(ctx, p.From(), token)
	if err != nil {
		return auth.Caller{}, err
	}
	if subtle.ConstantTimeCompare([]byte(claims.Text("nonce")), []byte(nonce)) != 1 {
		return auth.Caller{}, &identity.RejectedError{Reason: "it is of another login than the one that was begun"}
	}
	return x.comesIn(d, p, claims)
}

// provider finds an OpenID provider; the only one for an empty name.
func (x *access) provider(name string) (identity.Provider, error) {
	people, err := x.outsiders()
	if err != nil {
		return identity.Provider{}, err
	}
	var found []identity.Provider
	names := ""
	for _, p := range people.Providers() {
		if p.OIDC != nil && (name == "" || p.Name == name) {
			found, names = append(found, p), names+" "+p.Name
		}
	}
	switch {
	case len(found) == 0 && name == "":
		return identity.Provider{}, refuse(http.StatusNotFound, codeNameUnknown, "this registry knows no OpenID provider; `pier provider add oidc` adds one")
	case len(found) == 0:
		return identity.Provider{}, refuse(http.StatusNotFound, codeNameUnknown, "there is no OpenID provider %.80q", name)
	case len(found) > 1:
		return identity.Provider{}, refuse(http.StatusConflict, codeConflict, "there are several OpenID providers; name one of:%s", names)
	}
	return found[0], nil
}

// getLogin tells a program how to begin a login in a browser. It is for everybody: whoever logs in has nothing yet.
func (a *API) getLogin(w http.ResponseWriter, r *http.Request) error {
	p, err := a.access.provider(r.URL.Query().Get("provider"))
	if err != nil {
		return err
	}
	at, err := a.access.issuers.Endpoint(r.Context(), p.From())
	var down *identity.UnreachableError
	if errors.As(err, &down) {
		a.logger.Warn("a provider can't be asked", "provider", p.Name, "err", err)
		return &Unavailable{Reason: "the provider " + p.Name + " can't be asked at the moment; tokens and other users go on working", Err: err}
	}
	if err != nil {
		return err
	}
	return writeJSON(w, "application/json", client.LoginStart{
		Provider: p.Name, Issuer: p.OIDC.Issuer, Authorization: at.Authorization, ClientID: p.OIDC.ClientID, Scopes: p.Scopes(),
	})
}
