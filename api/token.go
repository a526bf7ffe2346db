package api

import (
	"errors"
	"net/http"
	"net/url"
	"time"

	"pier/api/auth"
)

const maxForm = 64 << 10

// tokenAnswer is the Docker token protocol's: token and access_token are the same, for clients of either habit.
type tokenAnswer struct {
	Token        string    `json:"token"`
	AccessToken  string    `json:"access_token"`
	ExpiresIn    int       `json:"expires_in"`
	IssuedAt     time.Time `json:"issued_at"`
	RefreshToken string    `json:"refresh_token,omitempty"`
	// Of an exchange (RFC 8693).
	IssuedType string `json:"issued_token_type,omitempty"`
	Type       string `json:"token_type,omitempty"`
}

// asksPassword says with a refusal what would be taken.
func asksPassword(serve func(w http.ResponseWriter, r *http.Request) error) func(w http.ResponseWriter, r *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		return challenging(serve(w, r), "Basic realm="+quote(tokenService))
	}
}

// getToken answers clients that send their password as Basic credentials, or nothing for an anonymous token.
func (a *API) getToken(w http.ResponseWriter, r *http.Request) error {
	d, err := a.access.directory()
	if err != nil {
		return err
	}
	if hasScheme(r, "Bearer") {
		return refuse(http.StatusUnauthorized, codeUnauthorized, "a token does not give another one; send a name and a password")
	}
	c, err := a.access.identify(r, d)
	if err != nil {
		return err
	}
	exchangeOf(r.Context()).caller = c
	query := r.URL.Query()
	// A refresh token stands for a password. Who came by certificate has that again, and would outlive its CA with another.
	byPassword := r.Header.Get("Authorization") != ""
	return a.sendToken(w, d, c, query, query.Get("offline_token") == "true" && byPassword)
}

// readForm reads the form of a POST, which comes in one piece.
func readForm(w http.ResponseWriter, r *http.Request) error {
	exchangeOf(r.Context()).body.within(formTime)
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return refuse(http.StatusBadRequest, codeUnsupported, "the form can't be read, came too slowly, or has more than 64 KiB")
	}
	return nil
}

// postToken is the OAuth2 form of the same.
func (a *API) postToken(w http.ResponseWriter, r *http.Request) error {
	d, err := a.access.directory()
	if err != nil {
		return err
	}
	var c auth.Caller
	switch form := r.PostForm; form.Get("grant_type") {
	case "password":
		c, err = a.access.login(r, d, form.Get("username"), form.Get("password"))
	case "refresh_token":
		c, err = a.access.refreshed(r, form.Get("refresh_token"), d)
	case grantExchange:
		c, err = a.access.exchanged(r.Context(), d, form)
	case grantCode:
		c, err = a.access.redeemed(r, d, form)
	default:
		err = refuse(http.StatusBadRequest, codeUnsupported, "grant_type is not known here; password, refresh_token, %s and %s are", grantCode, grantExchange)
	}
	if err != nil {
		return err
	}
	exchangeOf(r.Context()).caller = c
	return a.sendToken(w, d, c, r.PostForm, r.PostForm.Get("access_type") == "offline" && r.PostForm.Get("grant_type") != "refresh_token")
}

func (x *access) refreshed(r *http.Request, text string, d *auth.Directory) (auth.Caller, error) {
	keys := x.cfg.Keys()
	if keys == nil {
		return auth.Caller{}, errBadToken
	}
	c, err := keys.VerifyRefresh(text, tokenService, x.cfg.Now())
	if err != nil {
		return auth.Caller{}, errBadToken
	}
	now, err := x.logins.Again(r.Context(), d, c, x.source(r))
	if errors.Is(err, auth.ErrWrongLogin) {
		return auth.Caller{}, errBadToken
	}
	return now, x.explain(err)
}

// sendToken signs what the caller gets of what was asked. Less, or nothing, is no error here: the client learns of it
// where it wants to go.
func (a *API) sendToken(w http.ResponseWriter, d *auth.Directory, c auth.Caller, asked url.Values, offline bool) error {
	keys := a.access.cfg.Keys()
	if keys == nil {
		return refuse(http.StatusNotFound, codeUnsupported, "this node signs no tokens")
	}
	scopes, err := auth.ParseScopes(asked["scope"])
	if err != nil {
		return refuse(http.StatusBadRequest, codeUnsupported, "%v", err)
	}
	now := a.access.cfg.Now()
	scopes = d.Grantable(c, scopes)
	groups := c.Groups
	c.Groups = d.Granted(groups)
	token, err := keys.Issue(c, tokenService, scopes, now, shorter(a.access.cfg.TokenLife, c, now))
	if err != nil {
		return err
	}
	answer := tokenAnswer{
		Token: token.Text, AccessToken: token.Text, ExpiresIn: int(token.Lasts() / time.Second), IssuedAt: token.Issued.UTC(),
	}
	if asked.Get("grant_type") == grantExchange {
		answer.IssuedType, answer.Type = typeAccess, "Bearer"
	}
	if offline && c.Kind == auth.KindUser { // a robot's secret stands for itself, for as long as was said of it
		c.Groups = d.Foremost(groups)
		refresh, err := keys.IssueRefresh(c, tokenService, now, shorter(refreshLife, c, now))
		if err != nil {
			return err
		}
		answer.RefreshToken = refresh.Text
	}
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, "application/json", answer)
}

// shorter keeps a token from outliving what its caller came in with: a robot's secret that ends, or a refresh token.
func shorter(life time.Duration, c auth.Caller, now time.Time) time.Duration {
	if c.Until.IsZero() {
		return life
	}
	return min(life, c.Until.Sub(now))
}
