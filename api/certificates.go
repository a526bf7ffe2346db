package api

import (
	"net/http"

	"pier/api/auth"
)

// certified tells whether the client has shown a certificate that this node asks for.
func (x *access) certified(r *http.Request) bool {
	return x.cfg.Clients != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0
}

// byCertificate finds the user or robot that the client's certificate names. One that is refused isn't passed over, as a wrong
// password isn't.
func (x *access) byCertificate(r *http.Request, d *auth.Directory) (auth.Caller, error) {
	name, until, err := x.cfg.Clients.Verify(r.TLS.PeerCertificates, x.cfg.Now())
	if err != nil {
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "%s", oneLine(err.Error()))
	}
	c, ok := d.Active(name, x.cfg.Now())
	if !ok {
		return auth.Caller{}, refuse(http.StatusUnauthorized, codeUnauthorized, "the client certificate names %s, who is no active user or robot here", name)
	}
	if err := ofOwnAccord(r); err != nil {
		return auth.Caller{}, err
	}
	c.Until = until
	return c, nil
}

// ofOwnAccord refuses what the page of another site has a browser do. It shows its certificate, and a password that was typed once at
// /token, wherever such a page sends it; a token it has to be given. Programs say nothing of where a request comes from.
func ofOwnAccord(r *http.Request) error {
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return refuse(http.StatusForbidden, codeDenied, "another site's page sent this, and what a browser has kept of a login doesn't speak for it")
	}
	return nil
}
