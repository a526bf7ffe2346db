package api

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"sync"

	"golang.org/x/sync/errgroup"

	"pier/api/auth"
	"pier/api/identity"
)

// The names of RFC 8693 and RFC 6749.
const (
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantCode     = "authorization_code"
	typeAccess    = "urn:ietf:params:oauth:token-type:access_token"
	typeIDToken   = "urn:ietf:params:oauth:token-type:id_token"
	typeJWT       = "urn:ietf:params:oauth:token-type:jwt"
)

// exchanged gives the caller that an ID token stands for: a job's robot, or a person.
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
	token := form.Get("subject_token")
	c, isJob, err := x.job(ctx, d, form.Get("username"), token)
	if isJob && err == nil {
		return c, nil
	}
	p, isPerson, personErr := x.person(ctx, d, form.Get("provider"), token)
	switch {
	case isPerson && (personErr == nil || !isJob):
		return p, x.explainToken(personErr)
	case isJob:
		return auth.Caller{}, err
	}
	return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "nobody here takes ID tokens of this issuer; people log in with `pier login --oidc`, and `pier robot trust ls` shows an administrator whose jobs come in")
}

// reachIssuers asks every issuer that a provider or a rule names, at most some at a time.
func (x *access) reachIssuers(ctx context.Context) map[identity.Issuer]error {
	rules, err := x.trusted()
	if err != nil {
		return nil
	}
	out := map[identity.Issuer]error{}
	for _, p := range x.people.Providers() {
		if p.OIDC != nil {
			out[p.From()] = nil
		}
	}
	for _, r := range rules {
		out[r.From()] = nil
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(16)
	for i := range maps.Clone(out) {
		group.Go(func() error {
			err := x.issuers.Reach(ctx, i)
			mu.Lock()
			defer mu.Unlock()
			out[i] = err
			return nil
		})
	}
	_ = group.Wait()
	return out
}
