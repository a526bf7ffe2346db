package api

import (
	"context"
	"net/http"
	"net/url"

	"pier/api/auth"
)

// The names of RFC 8693.
const (
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccess    = "urn:ietf:params:oauth:token-type:access_token"
	typeIDToken   = "urn:ietf:params:oauth:token-type:id_token"
	typeJWT       = "urn:ietf:params:oauth:token-type:jwt"
)

// exchanged gives the caller that an ID token stands for.
func (x *access) exchanged(ctx context.Context, d *auth.Directory, form url.Values) (auth.Caller, error) {
	if t := form.Get("subject_token_type"); t != typeIDToken && t != typeJWT {
		return auth.Caller{}, refuse(http.StatusBadRequest, codeUnsupported, "subject_token_type: want %s or %s", typeIDToken, typeJWT)
	}
	if t := form.Get("requested_token_type"); t != "" && t != typeAccess {
		return auth.Caller{}, refuse(http.StatusBadRequest, codeUnsupported, "requested_token_type: only %s is given", typeAccess)
	}
	if form.Get("actor_token") != "" {
		return auth.Caller{}, refuse(http.StatusBadRequest, codeUnsupported, "actor_token: nobody acts for another here")
	}
	c, ours, err := x.job(ctx, d, form.Get("username"), form.Get("subject_token"))
	if !ours {
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "no trust rule is for the issuer of this token; `pier robot trust ls` shows an administrator for which there are some")
	}
	return c, err
}
