package api

import (
	"errors"
	"net/http"
	"strings"

	"pier/api/auth"
)

var errLogin error = refuse(http.StatusUnauthorized, codeUnauthorized, "this needs a login (docker login, pier login), or a token for it")

var errNoCertificate error = refuse(http.StatusUnauthorized, codeUnauthorized,
	"this needs a login (docker login, pier login), a token for it, or a certificate of a CA that this registry takes clients' certificates from; none was shown")

// turnAway answers a caller who has no right. Who could get it with another token is told to ask for one; who is logged in
// and may not is told so; anybody else may try to log in. None of it depends on whether the repository exists.
func (a *API) turnAway(r *http.Request, d *auth.Directory, n need, rt route) error {
	c := exchangeOf(r.Context()).caller
	unlimited := c.Unlimited()
	if _, ok := d.Decide(unlimited, n.right(), string(rt.repo)); !ok && c.Kind != auth.KindAnonymous {
		if d.MayNotLook(unlimited, n.right(), string(rt.repo)) {
			return refuse(http.StatusForbidden, codeDenied, "%s may %s only what it may pull; `pier access grant %s pull %s` would give that", c.Name, n.right(), c.Name, rt.repo)
		}
		return refuse(http.StatusForbidden, codeDenied, "%s has no right to %s on %s; `pier access grant %s %s %s` would give it", c.Name, n.right(), rt.repo, c.Name, n.right(), rt.repo)
	}
	return a.challenge(r, errLogin, n, rt)
}

// challenge tells a client where it gets a token for what it asked.
func (a *API) challenge(r *http.Request, why error, n need, rt route) error {
	scope := ""
	if right := n.right(); right != 0 {
		scope = auth.RepositoryScope(string(rt.repo), right).String()
		if from, ok := mountSource(r, rt); ok && from != "" && from != rt.repo {
			scope = auth.RepositoryScope(string(from), auth.Pull).String() + " " + scope
		}
	} else if n == needsCatalog {
		scope = auth.CatalogScope().String()
	}
	return a.askToken(r, why, scope)
}

// askToken adds to a 401 where the client gets a token, and with which scope.
func (a *API) askToken(r *http.Request, why error, scope string) error {
	if errors.Is(why, errLogin) && a.access.cfg.Clients != nil && r.Header.Get("Authorization") == "" {
		why = errNoCertificate // Go's clients keep to themselves what isn't of the CAs that they are told
	}
	challenge := "Bearer realm=" + quote(a.access.origin(r)+tokenPath) + ",service=" + quote(tokenService)
	if scope != "" {
		challenge += ",scope=" + quote(scope)
	}
	if hasScheme(r, "Bearer") {
		if errors.Is(why, errLogin) {
			challenge += `,error="insufficient_scope"`
		} else {
			challenge += `,error="invalid_token"`
		}
	}
	return challenging(why, challenge)
}

// challenging gives a 401 its WWW-Authenticate, and leaves other errors as they are.
func challenging(why error, challenge string) error {
	var p *problem
	if !errors.As(why, &p) || p.status != http.StatusUnauthorized || p.challenge != "" {
		return why
	}
	said := *p
	said.challenge = challenge
	return &said
}

// challenged adds what stillMay couldn't tell.
func (a *API) challenged(r *http.Request, err error, n need, rt route) error {
	if errors.Is(err, errLogin) {
		return a.challenge(r, err, n, rt)
	}
	return err
}

// quote makes a quoted string of a header of what came from outside.
func quote(s string) string {
	return `"` + strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return -1
		}
		return c
	}, s) + `"`
}
