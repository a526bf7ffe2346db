package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
)

// challengePath is where ACME servers ask by http-01.
const challengePath = "/.well-known/acme-challenge/"

// proof answers by tls-alpn-01. What this node has may be the answer to an older question, so it is read anew.
func (k *Keeper) proof(ctx context.Context, host string) (*tls.Certificate, error) {
	var o order
	body, generation, err := k.cfg.Store.Current(ctx, k.docs.order(host))
	if _, err := read(&o, body, generation, err); err != nil {
		return nil, err
	}
	if o.Proof == nil {
		return nil, errors.New("no ACME server has a question about " + host)
	}
	return o.Proof.parse(host)
}

// ServeHTTP answers by http-01 below challengePath.
func (k *Keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if bare, _, err := net.SplitHostPort(host); err == nil {
		host = bare
	}
	host = plainHost(host)
	token := strings.TrimPrefix(r.URL.Path, challengePath)
	if !k.Covers(host) || token == "" || len(token) > 256 {
		http.NotFound(w, r)
		return
	}
	for _, from := range []func() ([]byte, uint64, error){
		// A token is new for each question, so that a node which has it needn't ask.
		func() ([]byte, uint64, error) { return k.cfg.Store.Local(k.docs.order(host)) },
		func() ([]byte, uint64, error) { return k.cfg.Store.Current(r.Context(), k.docs.order(host)) },
	} {
		var o order
		body, generation, err := from()
		if _, err := read(&o, body, generation, err); err == nil && o.Token == token {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, _ = w.Write([]byte(o.Answer))
			return
		}
	}
	http.NotFound(w, r)
}
