package api

import (
	"errors"
	"net/http"
	"strings"

	"pier/api/auth"
)

// identify finds out who asks: a token, a name with a password, a certificate, or nobody in particular. Its errors are
// refusals. An Authorization header decides alone, right or wrong: it is what the client says with this request, while the
// certificate is the connection's, and often the machine's.
func (x *access) identify(r *http.Request, d *auth.Directory) (auth.Caller, error) {
	given := r.Header.Values("Authorization")
	switch {
	case len(given) == 0 && x.certified(r):
		return x.byCertificate(r, d)
	case len(given) == 0:
		return auth.Anybody(), nil
	}
	if len(given) > 1 {
		return auth.Caller{}, refuse(http.StatusBadRequest, codeUnauthorized, "the request has %d Authorization headers; one is needed", len(given))
	}
	switch {
	case hasScheme(r, "Bearer"):
		_, value, _ := strings.Cut(given[0], " ")
		return x.bearer(strings.TrimSpace(value), d)
	case hasScheme(r, "Basic"):
		name, password, ok := r.BasicAuth()
		if !ok {
			return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the Authorization header is not NAME:PASSWORD in base64")
		}
		if err := ofOwnAccord(r); err != nil {
			return auth.Caller{}, err
		}
		return x.login(r, d, name, password)
	}
	return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the Authorization scheme is not known here; Bearer and Basic are")
}

// hasScheme tells whether a request's credentials are of the scheme, whose name may be in any case.
func hasScheme(r *http.Request, scheme string) bool {
	said, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(said, scheme)
}

// login takes a password, or what a person or a job has in its place: one of Pier's own refresh tokens, or an ID token.
func (x *access) login(r *http.Request, d *auth.Directory, name, password string) (auth.Caller, error) {
	exchangeOf(r.Context()).claimed = name
	if c, err := x.ownToken(r, d, name, password); !errors.Is(err, auth.ErrTokenInvalid) {
		return c, err
	}
	if c, ours, err := x.job(r.Context(), d, name, password); ours {
		return c, err
	}
	c, err := x.logins.Login(r.Context(), d, name, password, x.source(r))
	var many *auth.TooManyLoginsError
	if errors.As(err, &many) {
		exchangeOf(r.Context()).tooSoon = true // see keepBack
	}
	return c, x.explain(err)
}

// ownToken takes a refresh token as the password of its own user. An ErrTokenInvalid says that it is none.
func (x *access) ownToken(r *http.Request, d *auth.Directory, name, text string) (auth.Caller, error) {
	keys := x.cfg.Keys()
	if keys == nil {
		return auth.Caller{}, auth.ErrTokenInvalid
	}
	c, err := keys.VerifyRefresh(text, tokenService, x.cfg.Now())
	switch {
	case errors.Is(err, auth.ErrTokenExpired):
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the token has expired; log in again and take another")
	case err != nil:
		return auth.Caller{}, err
	case c.Name != name:
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the token is another user's")
	}
	return x.refreshed(r, text, d)
}

func (x *access) bearer(text string, d *auth.Directory) (auth.Caller, error) {
	keys := x.cfg.Keys()
	if keys == nil {
		return auth.Caller{}, errBadToken
	}
	c, err := keys.Verify(text, tokenService, x.cfg.Now())
	if errors.Is(err, auth.ErrTokenExpired) {
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the token has expired; ask for another")
	}
	if err != nil {
		return auth.Caller{}, errBadToken
	}
	now, ok := d.Renew(c, x.cfg.Now())
	if !ok {
		return auth.Caller{}, errBadToken
	}
	return now, nil
}

const codeUnauthorized = "UNAUTHORIZED"

var errBadToken error = refuse(http.StatusUnauthorized, codeUnauthorized, "the token is not valid here, or its user has changed since; log in again")

// explain gives a failed login its answer; the same for a name that doesn't exist. Which provider doesn't answer is said in the log.
func (x *access) explain(err error) error {
	var many *auth.TooManyLoginsError
	switch {
	case errors.As(err, &many):
		p := refuse(http.StatusTooManyRequests, codeTooManyRequests, "%s", many.Error())
		p.retry = many.RetryAfter
		return p
	case errors.Is(err, auth.ErrWrongLogin):
		return refuse(http.StatusUnauthorized, codeUnauthorized, "%s", auth.ErrWrongLogin.Error()) // and nothing of why
	case errors.Is(err, auth.ErrNoAnswer):
		x.logger.Warn("a login can't be checked", "err", err)
		return &Unavailable{Reason: "the login can't be checked at the moment; tokens and other users go on working", Err: err}
	}
	return err
}
