package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"
)

const (
	askTimeout = 5 * time.Second
	askPause   = 10 * time.Second // between two questions, whatever strangers send
	askWaiting = 128              // tokens that wait for an answer; more have to come again
	askBrief   = time.Second      // that somebody waits for newer keys than those that are good enough
	askLater   = time.Minute      // between two such questions
	askAgain   = time.Hour        // keys that an issuer has withdrawn end by then
	keepFor    = 24 * time.Hour   // keys go on working where the issuer can't be reached
	maxAnswer  = 1 << 20
	maxKeys    = 100
)

// asymmetric are the algorithms whose keys can be published. Without them a public key would be taken for a shared secret.
var asymmetric = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
}

// document is what matters of the issuer's own description.
type document struct {
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	Keys          string   `json:"jwks_uri"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	AuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
}

// published is what one issuer has said of itself, its keys included. It is asked when that is needed, and seldom.
type published struct {
	issuer Issuer
	now    func() time.Time
	client *http.Client
	asking singleflight.Group
	// waiting is how many are. They hold places that others need, and an issuer that hangs must not get all of them.
	waiting atomic.Int64

	mu    sync.Mutex
	doc   document
	keys  []jose.JSONWebKey
	got   time.Time // when doc and keys came; zero: never
	tried time.Time
	fault error // of the last try
}

func newPublished(i Issuer, now func() time.Time) *published {
	return &published{issuer: i, now: now, client: i.client()}
}

// client reaches the issuer and nobody else: it follows no redirect. It keeps no connection, since questions are seldom.
func (i Issuer) client() *http.Client {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if i.CA != "" {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		t.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(i.CA)) // checked by Validate
	}
	return &http.Client{Transport: bounded{issuer: i, next: t}, Timeout: askTimeout, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		return fmt.Errorf("it redirects to %s; name the address that it redirects to", r.URL.Host)
	}}
}

// bounded keeps an issuer from filling memory, and from sending a node where it must not go.
type bounded struct {
	issuer Issuer
	next   http.RoundTripper
}

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if !b.issuer.mayReach(r.URL.String()) {
		return nil, fmt.Errorf("it wants to be asked at %s, without TLS", r.URL.Host)
	}
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

// ready asks the issuer where nothing is known of it, or nothing new enough. It gives the algorithms that it signs with.
func (p *published) ready(ctx context.Context) ([]string, error) {
	switch known, asked := p.ages(); {
	case known >= keepFor:
		if err := p.ask(ctx); err != nil {
			return nil, err
		}
	case known >= askAgain && asked >= askLater:
		brief, cancel := context.WithTimeout(ctx, askBrief)
		_ = p.ask(brief) // what is known is good enough, and the question goes on
		cancel()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doc.Algorithms, nil
}

// ages are how old what is known is, and how long ago the last question was.
func (p *published) ages() (known, asked time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.got.IsZero() {
		return keepFor, askLater
	}
	return p.now().Sub(p.got), p.now().Sub(p.tried)
}

// ask brings what is known up to date. All who want that at the same time share one question, and who wants it too soon gets
// the outcome of the last.
func (p *published) ask(ctx context.Context) error {
	if fault, soon := p.lately(); soon {
		return fault
	}
	defer p.waiting.Add(-1)
	if p.waiting.Add(1) > askWaiting {
		return &UnreachableError{Issuer: p.issuer.URL, Err: fmt.Errorf("%d tokens wait for its answer", askWaiting)}
	}
	done := p.asking.DoChan("", func() (any, error) {
		if fault, soon := p.lately(); soon { // by whoever came just before
			return nil, fault
		}
		// It goes on without whoever asked first: the others wait for it too.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		doc, keys, err := p.fetch(oidc.ClientContext(ctx, p.client))
		if err != nil {
			err = &UnreachableError{Issuer: p.issuer.URL, Err: err}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.tried, p.fault = p.now(), err
		if err == nil {
			p.doc, p.keys, p.got = doc, keys, p.tried
		}
		return nil, err
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lately gives the outcome of the last question, if that was a moment ago.
func (p *published) lately() (fault error, soon bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault, !p.tried.IsZero() && p.now().Sub(p.tried) < askPause
}

func (p *published) fetch(ctx context.Context) (document, []jose.JSONWebKey, error) {
	var doc document
	provider, err := oidc.NewProvider(ctx, p.issuer.URL)
	if err == nil {
		err = provider.Claims(&doc)
	}
	if err != nil {
		return doc, nil, err
	}
	doc.Algorithms = slices.DeleteFunc(doc.Algorithms, func(a string) bool { return !slices.Contains(asymmetric, a) })
	if len(doc.Algorithms) == 0 {
		doc.Algorithms = []string{oidc.RS256} // which all must know
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, doc.Keys, nil)
	if err != nil {
		return doc, nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return doc, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return doc, nil, fmt.Errorf("its keys: %s", resp.Status)
	}
	keys, err := parseKeys(resp.Body)
	return doc, keys, err
}

// parseKeys reads a key set, without the keys that no ID token can be signed with.
func parseKeys(r io.Reader) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.NewDecoder(r).Decode(&set); err != nil {
		return nil, fmt.Errorf("its keys: %w", err)
	}
	var out []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) == nil && k.Valid() && k.IsPublic() && (k.Use == "" || k.Use == "sig") && len(out) < maxKeys {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("its keys: none that a token could be signed with")
	}
	return out, nil
}

// find gives the keys that a signature may be of.
func (p *published) find(h jose.Header) []jose.JSONWebKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []jose.JSONWebKey
	for _, k := range p.keys {
		if (h.KeyID == "" || h.KeyID == k.KeyID) && (k.Algorithm == "" || k.Algorithm == h.Algorithm) {
			out = append(out, k)
		}
	}
	return out
}

// keySet verifies one token's signature for the library, and keeps what came of it: the library makes texts of errors. The
// library's own set would ask the issuer for each token with a wrong signature, and never again for keys that it knows.
type keySet struct {
	from       *published
	algorithms []string
	payload    []byte
	fault      error
}

// VerifySignature asks the issuer for new keys only where none of those that are known has the token's key ID.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	s.payload, s.fault = s.verify(ctx, token)
	return s.payload, s.fault
}

func (s *keySet) verify(ctx context.Context, token string) ([]byte, error) {
	var algorithms []jose.SignatureAlgorithm
	for _, a := range s.algorithms {
		algorithms = append(algorithms, jose.SignatureAlgorithm(a))
	}
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, rejected("it is malformed")
	}
	header := signed.Signatures[0].Header
	for first := true; ; first = false {
		candidates := s.from.find(header)
		for _, k := range candidates {
			if payload, err := signed.Verify(&k); err == nil {
				return payload, nil
			}
		}
		if !first || len(candidates) > 0 && header.KeyID != "" {
			return nil, rejected("its signature is by none of the keys of %s", s.from.issuer.URL)
		}
		if err := s.from.ask(ctx); err != nil {
			return nil, err
		}
	}
}

// Endpoint is where people log in: their browser at one address, and the node at the other.
type Endpoint struct {
	Authorization string
	token         string
	style         oauth2.AuthStyle // how the node proves there who it is
}

// Endpoint gives the addresses of the issuer.
func (s *Issuers) Endpoint(ctx context.Context, i Issuer) (Endpoint, error) {
	p := s.of(i)
	if _, err := p.ready(ctx); err != nil {
		return Endpoint{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at := Endpoint{Authorization: p.doc.Authorization, token: p.doc.Token, style: oauth2.AuthStyleInHeader}
	if !i.mayReach(at.Authorization) || !i.mayReach(at.token) {
		return Endpoint{}, &UnreachableError{Issuer: i.URL, Err: errors.New("it names no addresses to log in at")}
	}
	if slices.Contains(p.doc.AuthMethods, "client_secret_post") {
		at.style = oauth2.AuthStyleInParams
	}
	return at, nil
}

// Code is what a browser brings back from a login, and what only who began it knows.
type Code struct{ Code, Redirect, Verifier string }

// Redeem exchanges a code for the ID token that it stands for, as the client that the issuer knows. The secret may be empty.
func (s *Issuers) Redeem(ctx context.Context, i Issuer, clientID, secret string, c Code) (string, error) {
	at, err := s.Endpoint(ctx, i)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if secret == "" {
		at.style = oauth2.AuthStyleInParams
	}
	cfg := oauth2.Config{
		ClientID: clientID, ClientSecret: secret, RedirectURL: c.Redirect,
		Endpoint: oauth2.Endpoint{TokenURL: at.token, AuthStyle: at.style},
	}
	token, err := cfg.Exchange(oidc.ClientContext(ctx, s.of(i).client), c.Code, oauth2.VerifierOption(c.Verifier))
	var refused *oauth2.RetrieveError
	switch {
	case errors.As(err, &refused) && refused.ErrorCode == "invalid_client":
		return "", &UnreachableError{Issuer: i.URL, Err: errors.New("it does not take the client's ID or secret; `pier provider add oidc … --replace` sets them")}
	case errors.As(err, &refused) && refused.Response.StatusCode/100 == 4:
		return "", rejected("its issuer refuses the code of this login (%.80q); begin again", refused.ErrorCode)
	case errors.As(err, &refused):
		return "", &UnreachableError{Issuer: i.URL, Err: errors.New("it answers a code with " + refused.Response.Status)}
	case err != nil:
		return "", &UnreachableError{Issuer: i.URL, Err: err}
	}
	text, _ := token.Extra("id_token").(string)
	if text == "" {
		return "", rejected("its issuer gave none; are the scopes right?")
	}
	return text, nil
}
