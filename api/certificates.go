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
	// A browser shows its certificate wherever a page of anybody sends it.
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return auth.Caller{}, refuse(http.StatusForbidden, codeDenied, "another site's page sent this, and a browser's certificate doesn't speak for it")
	}
	c.Until = until
	return c, nil
}
