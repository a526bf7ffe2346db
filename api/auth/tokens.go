package auth

import (
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Token errors. Both mean 401; ErrTokenExpired tells the client that asking for another helps.
var (
	ErrTokenInvalid = errors.New("the token is not one of this cluster")
	ErrTokenExpired = errors.New("the token has expired")
)

const (
	issuer     = "pier"
	maxToken   = 32 << 10         // what the most scopes of the longest names come to
	clockSlack = 30 * time.Second // nodes' clocks may differ by this much: no token is too new by less

	useAccess  = "access"
	useRefresh = "refresh"
)

// Keys are the cluster's token keys: the first signs, all verify, so that one can follow the other without a stop. Safe for
// concurrent use.
type Keys struct {
	sign     ed25519.PrivateKey
	signID   string
	verifies map[string]ed25519.PublicKey
	seals    []cipher.AEAD

	mu   sync.Mutex
	seen map[uint64]shown // a client shows the same token with each request
	hash maphash.Seed
}

// shown is a token that was looked at before.
type shown struct {
	text, service string
	claims        *claims
}

// is compares in the same time whatever the two share.
func (v shown) is(text, service string) bool {
	return v.claims != nil && v.service == service && subtle.ConstantTimeCompare([]byte(v.text), []byte(text)) == 1
}

// maxSeen bounds the verified tokens that are kept, and maxKept the size of each: usual ones have less than a kilobyte.
const (
	maxSeen = 4096
	maxKept = 2 << 10
)

// NewKeys takes one 32-byte seed for each secret of the cluster, the newest first.
func NewKeys(seeds [][]byte) (*Keys, error) {
	if len(seeds) == 0 {
		return nil, errors.New("there is no key to sign tokens with")
	}
	k := &Keys{verifies: make(map[string]ed25519.PublicKey, len(seeds)), seen: make(map[uint64]shown), hash: maphash.MakeSeed()}
	for _, seed := range seeds {
		if len(seed) != ed25519.SeedSize {
			return nil, fmt.Errorf("a token key's seed has %d bytes, not %d", len(seed), ed25519.SeedSize)
		}
		key := ed25519.NewKeyFromSeed(seed)
		public := key.Public().(ed25519.PublicKey)
		sum := sha256.Sum256(public)
		id := base64.RawURLEncoding.EncodeToString(sum[:12])
		if k.sign == nil {
			k.sign, k.signID = key, id
		}
		k.verifies[id] = public
		seal, err := sealer(seed)
		if err != nil {
			return nil, err
		}
		k.seals = append(k.seals, seal)
	}
	return k, nil
}

// claims are a token's content. Sub is empty for anybody.
type claims struct {
	jwt.RegisteredClaims
	Use        string  `json:"use"`
	Kind       Kind    `json:"kind"`
	Generation uint64  `json:"gen,omitempty"`
	Access     []Scope `json:"access,omitempty"`
	// Of who comes from outside: the state doesn't have them.
	Provider           string   `json:"provider,omitempty"`
	ProviderGeneration uint64   `json:"pgen,omitempty"`
	Groups             []string `json:"groups,omitempty"`
	limit              *Limit
}

// Token is a signed token and its end.
type Token struct {
	Text           string
	Issued, Expiry time.Time
}

// Lasts is what clients are told of a token's life: they ask for the next one before a node whose clock is ahead ends this.
func (t Token) Lasts() time.Duration {
	life := t.Expiry.Sub(t.Issued)
	return life - min(clockSlack, life/2)
}

// Issue signs an access token for what was granted.
func (k *Keys) Issue(c Caller, service string, access []Scope, now time.Time, life time.Duration) (Token, error) {
	return k.issue(c, service, claims{Use: useAccess, Access: access}, now, life)
}

// IssueRefresh signs a token that stands for a password when access tokens are asked for.
func (k *Keys) IssueRefresh(c Caller, service string, now time.Time, life time.Duration) (Token, error) {
	return k.issue(c, service, claims{Use: useRefresh}, now, life)
}

func (k *Keys) issue(c Caller, service string, cl claims, now time.Time, life time.Duration) (Token, error) {
	now = now.Truncate(time.Second)
	t := Token{Issued: now, Expiry: now.Add(life)}
	cl.Kind, cl.Generation = c.Kind, c.Generation
	if c.Provider != "" {
		cl.Provider, cl.ProviderGeneration, cl.Groups = c.Provider, c.ProviderGeneration, boundGroups(c.Groups)
	}
	cl.RegisteredClaims = jwt.RegisteredClaims{
		Issuer: issuer, Subject: c.Name, Audience: jwt.ClaimStrings{service},
		NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(t.Expiry),
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, &cl)
	// Clients send it with every request: nothing is in it that nobody looks at.
	token.Header["kid"] = k.signID
	delete(token.Header, "typ")
	var err error
	t.Text, err = token.SignedString(k.sign)
	return t, err
}

// Verify gives the caller of an access token: who it was when the token was made, limited to what it was made for.
func (k *Keys) Verify(text, service string, now time.Time) (Caller, error) {
	cl, err := k.verify(text, service, useAccess, now)
	if err != nil {
		return Caller{}, err
	}
	c := cl.caller()
	c.Limit = cl.limit
	return c, nil
}

// VerifyRefresh gives the caller of a refresh token.
func (k *Keys) VerifyRefresh(text, service string, now time.Time) (Caller, error) {
	cl, err := k.verify(text, service, useRefresh, now)
	if err != nil {
		return Caller{}, err
	}
	c := cl.caller()
	c.Until = cl.ExpiresAt.Time
	return c, nil
}

func (cl *claims) caller() Caller {
	return Caller{
		Kind: cl.Kind, Name: cl.Subject, Generation: cl.Generation, Groups: cl.Groups, Provider: cl.Provider, ProviderGeneration: cl.ProviderGeneration,
	}
}

// verify checks use and time each time, and all else once.
func (k *Keys) verify(text, service, use string, now time.Time) (*claims, error) {
	if len(text) > maxToken {
		return nil, ErrTokenInvalid
	}
	at := maphash.String(k.hash, text)
	k.mu.Lock()
	known := k.seen[at]
	k.mu.Unlock()
	cl := known.claims
	if !known.is(text, service) {
		var err error
		if cl, err = k.parse(text, service, now); err != nil {
			return nil, err
		}
		if len(text) <= maxKept {
			k.keep(at, shown{strings.Clone(text), service, cl})
		}
	}
	switch {
	case cl.Use != use || now.Add(clockSlack).Before(cl.NotBefore.Time):
		return nil, ErrTokenInvalid
	case !now.Before(cl.ExpiresAt.Time): // and none is good for longer than it says; see Lasts
		return nil, ErrTokenExpired
	}
	return cl, nil
}

func (k *Keys) parse(text, service string, now time.Time) (*claims, error) {
	var cl claims
	_, err := jwt.ParseWithClaims(text, &cl, k.find,
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithIssuer(issuer), jwt.WithAudience(service),
		jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(), jwt.WithLeeway(clockSlack), jwt.WithStrictDecoding(),
		jwt.WithTimeFunc(func() time.Time { return now }))
	if errors.Is(err, jwt.ErrTokenExpired) {
		return nil, ErrTokenExpired
	}
	if err != nil {
		return nil, ErrTokenInvalid // why is nobody's business who can't sign
	}
	cl.limit, cl.Access = limitOf(cl.Access), nil
	return &cl, nil
}

func (k *Keys) keep(at uint64, v shown) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.seen) >= maxSeen {
		clear(k.seen) // all are verified again within one request each; nothing cleverer is needed
	}
	k.seen[at] = v
}

func (k *Keys) find(t *jwt.Token) (any, error) {
	id, _ := t.Header["kid"].(string)
	key, ok := k.verifies[id]
	if !ok {
		return nil, ErrTokenInvalid
	}
	return key, nil
}

// Renew gives the caller as it is now, for one that a token names: nothing where the principal is gone, disabled or has
// changed since, or its provider has. Grants are today's, and so are the groups that the state knows.
func (d *Directory) Renew(c Caller, now time.Time) (Caller, bool) {
	if c.Kind == KindAnonymous {
		return c, true
	}
	if c.IsJob() {
		today, ok := d.job(c, now)
		return today, ok && today.Generation == c.Generation
	}
	if c.Provider != "" {
		today, ok := d.Vouched(c, now)
		return today, ok && today.Generation == c.Generation
	}
	today, ok := d.Active(c.Name, now)
	if !ok || today.Kind != c.Kind || today.Generation != c.Generation || today.Provider != "" {
		return Caller{}, false
	}
	today.Limit, today.Until = c.Limit, c.Until
	return today, true
}
