package acme

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/acme"
)

const (
	byTLS = "tls-alpn-01"
	byWeb = "http-01"

	firstWait = time.Minute
	longWait  = time.Hour
	// turnWait lets another node go first after a failure, in case it was this one's own.
	turnWait = 15 * time.Second
	maxError = 500
	// maxLater is as long as a server that is asked too much is left alone without asking.
	maxLater = 24 * time.Hour
)

// attempt is one try to get a certificate, by the node that the order's document names.
type attempt struct {
	k          *Keeper
	host       string
	order      order
	generation uint64
}

// renew gets a certificate for the host, unless another node is at it or it is too early after a failure.
func (k *Keeper) renew(ctx context.Context, host string) {
	a, err := k.claim(ctx, host)
	k.block(host, err)
	if a == nil {
		return
	}
	k.cfg.Logger.Info("asking for a certificate", "host", host, "server", k.cfg.Directory)
	bounded, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	err = a.obtain(bounded)
	stopping, left := ctx.Err() != nil, noteTime
	if stopping {
		left = lastNoteTime
	}
	note, cancel := context.WithTimeout(context.WithoutCancel(ctx), left)
	defer cancel()
	if err == nil {
		err = k.cfg.Store.Delete(note, k.docs.order(host), a.generation)
	} else {
		err = a.fail(note, err, stopping)
	}
	if err != nil {
		k.cfg.Logger.Debug("how the order went could not be noted", "host", host, "err", err)
	}
}

// block notes why this node can't try, or that it can.
func (k *Keeper) block(host string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.known[host]
	now.blocked = ""
	if err != nil && !errors.Is(err, ErrChanged) && !errors.Is(err, context.Canceled) {
		now.blocked = err.Error()
	}
	k.known[host] = now
}

// claim makes this node the one that orders. It returns nil when that is not for it to do now.
func (k *Keeper) claim(ctx context.Context, host string) (*attempt, error) {
	a := &attempt{k: k, host: host}
	body, generation, err := k.cfg.Store.Local(k.docs.order(host))
	if a.generation, err = read(&a.order, body, generation, err); err != nil && a.generation == 0 {
		return nil, err
	}
	self, now := k.cfg.Node(), time.Now()
	next := a.order.Next
	if a.order.By == self {
		next = next.Add(turnWait) // its own claim from before a restart is no claim
	} else if now.Before(a.order.Until) && !k.cfg.Gone(a.order.By) {
		return nil, nil
	}
	// Who has just been started may have been told something better, and tries at once.
	if failed := a.order.Next.Add(-wait(a.order.Fails)); now.Before(next) && (a.order.Fails == 0 || failed.After(k.started)) {
		return nil, nil
	}
	a.order = order{By: self, Until: now.Add(leaseTime), Fails: a.order.Fails, Error: a.order.Error}
	if err := a.save(ctx); err != nil {
		return nil, err
	}
	// Everything that was decided before the claim is here now: perhaps somebody was faster.
	k.look()
	if !k.due(host) {
		return nil, k.cfg.Store.Delete(ctx, k.docs.order(host), a.generation)
	}
	return a, nil
}

// wait is how long all nodes leave the server alone after so many failures in a row.
func wait(fails int) time.Duration {
	w := firstWait
	for range min(fails-1, 4) {
		w *= 4
	}
	return min(w, longWait)
}

func (a *attempt) save(ctx context.Context) error {
	next, err := put(ctx, a.k.cfg.Store, a.k.docs.order(a.host), a.order, a.generation)
	if err == nil {
		a.generation = next
	}
	return err
}

// fail writes down what went wrong and when to try again. A node that is stopping gives the order back without blame.
func (a *attempt) fail(ctx context.Context, cause error, stopping bool) error {
	o := order{By: a.order.By, Fails: a.order.Fails, Error: a.order.Error}
	if !stopping {
		o.Fails++
		o.Error = strings.Join(strings.Fields(cause.Error()), " ")
		o.Error = strings.ToValidUTF8(o.Error[:min(len(o.Error), maxError)], "")
		o.Next = time.Now().Add(wait(o.Fails))
		var refused *acme.Error
		if errors.As(cause, &refused) {
			if later, limited := acme.RateLimit(refused); limited {
				o.Next = time.Now().Add(max(min(later, maxLater), wait(o.Fails)))
			}
		}
	}
	a.order = o
	return a.save(ctx)
}

// obtain goes through an order, asking to be tried by one way after the other, and keeps what comes out.
func (a *attempt) obtain(ctx context.Context) error {
	client, err := a.k.client(ctx)
	if err != nil {
		return err
	}
	var faults []error
	for _, way := range a.ways() {
		o, err := client.AuthorizeOrder(ctx, acme.DomainIDs(a.host))
		if err != nil {
			return errors.Join(append(faults, fmt.Errorf("order: %w", err))...)
		}
		err = a.authorize(ctx, client, o, way)
		if err == nil {
			return a.finish(ctx, client, o, way)
		}
		faults = append(faults, err)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(faults...)
}

// ways are how the server may be convinced, first the one that did it the last time: a way that leads elsewhere would fail
// with each renewal, and servers count that.
func (a *attempt) ways() []string {
	if !a.k.cfg.Web {
		return []string{byTLS}
	}
	var had certificate
	body, generation, err := a.k.cfg.Store.Local(a.k.docs.certificate(a.host))
	if _, err = read(&had, body, generation, err); err == nil && had.Way == byWeb {
		return []string{byWeb, byTLS}
	}
	return []string{byTLS, byWeb}
}

// authorize proves to the server that the host's clients come here.
func (a *attempt) authorize(ctx context.Context, client *acme.Client, o *acme.Order, way string) error {
	for _, url := range o.AuthzURLs {
		z, err := client.GetAuthorization(ctx, url)
		if err != nil {
			return err
		}
		if z.Status != acme.StatusPending {
			continue // it remembers an earlier proof
		}
		i := slices.IndexFunc(z.Challenges, func(c *acme.Challenge) bool { return c.Type == way })
		if i < 0 {
			_ = client.RevokeAuthorization(ctx, url) // which would count against the account
			return fmt.Errorf("the server doesn't offer %s", way)
		}
		if err := a.answer(ctx, client, z.Challenges[i]); err != nil {
			return err
		}
		if _, err := client.Accept(ctx, z.Challenges[i]); err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
		if _, err := client.WaitAuthorization(ctx, url); err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
	}
	return nil
}

// answer puts what the server will ask for where all nodes have it.
func (a *attempt) answer(ctx context.Context, client *acme.Client, c *acme.Challenge) error {
	a.order.Token, a.order.Answer, a.order.Proof = "", "", nil
	if c.Type == byWeb {
		text, err := client.HTTP01ChallengeResponse(c.Token)
		if err != nil {
			return err
		}
		a.order.Token, a.order.Answer = c.Token, text
		return a.save(ctx)
	}
	proof, err := client.TLSALPN01ChallengeCert(c.Token, a.host)
	if err != nil {
		return err
	}
	if a.order.Proof, err = encode(proof.Certificate, proof.PrivateKey); err != nil {
		return err
	}
	return a.save(ctx)
}

// finish fetches the certificate and keeps it.
func (a *attempt) finish(ctx context.Context, client *acme.Client, o *acme.Order, way string) error {
	ready, err := client.WaitOrder(ctx, o.URI)
	if err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{a.host}}, key)
	if err != nil {
		return err
	}
	chain, _, err := client.CreateCertFromOrder(ctx, ready, request, true)
	if err != nil {
		return err
	}
	doc, err := encode(chain, key)
	if err != nil {
		return err
	}
	doc.Way = way
	fresh, err := doc.parse(a.host)
	if err != nil {
		return fmt.Errorf("the server gave a certificate that doesn't fit: %w", err)
	}
	return a.keep(ctx, doc, fresh)
}

// keep puts the certificate into the replicated state. Until that can be written it serves at least here, since the server
// gives only so many.
func (a *attempt) keep(ctx context.Context, doc *certificate, fresh *tls.Certificate) error {
	k := a.k
	for {
		_, generation, err := k.cfg.Store.Current(ctx, k.docs.certificate(a.host))
		if err == nil {
			_, err = put(ctx, k.cfg.Store, k.docs.certificate(a.host), doc, generation)
		}
		if err == nil {
			k.look()
			return nil
		}
		k.mu.Lock()
		was := k.known[a.host]
		k.known[a.host] = held{certificate: fresh, generation: was.generation, fault: was.fault}
		k.mu.Unlock()
		select {
		case <-ctx.Done():
			return fmt.Errorf("the certificate is here, and could not be given to the other nodes: %w", err)
		case <-time.After(pause):
		}
	}
}

// client speaks for the cluster's account, which it makes where there is none.
func (k *Keeper) client(ctx context.Context) (*acme.Client, error) {
	key, err := k.accountKey(ctx)
	if err != nil {
		return nil, err
	}
	client := &acme.Client{
		Key: key, DirectoryURL: k.cfg.Directory, HTTPClient: k.http, UserAgent: k.cfg.UserAgent, RetryBackoff: backoff,
	}
	if _, err := client.Discover(ctx); err != nil {
		return nil, fmt.Errorf("reach the server: %w", err)
	}
	who := &acme.Account{}
	if k.cfg.Email != "" {
		who.Contact = []string{"mailto:" + k.cfg.Email}
	}
	if _, err := client.Register(ctx, who, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, fmt.Errorf("make an account: %w", err)
	}
	return client, nil
}

// accountKey reads the account's key. It is written before the server hears of it, so that nodes which begin together end
// up with one account.
func (k *Keeper) accountKey(ctx context.Context) (crypto.Signer, error) {
	for {
		var doc account
		body, generation, err := k.cfg.Store.Current(ctx, k.docs.account())
		if generation, err = read(&doc, body, generation, err); err != nil {
			return nil, err
		}
		if generation != 0 {
			return decodeKey(doc.Key)
		}
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		doc.Directory = k.cfg.Directory
		if doc.Key, err = encodeKey(key); err != nil {
			return nil, err
		}
		_, err = put(ctx, k.cfg.Store, k.docs.account(), doc, 0)
		if !errors.Is(err, ErrChanged) {
			return key, err
		}
	}
}

// backoff tries again, a few times, what a moment may mend. What is too much for the server is for the next attempt.
func backoff(n int, _ *http.Request, res *http.Response) time.Duration {
	if n > 4 || res.StatusCode == http.StatusTooManyRequests {
		return 0
	}
	return time.Second << (n - 1)
}
