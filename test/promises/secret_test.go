package promises

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/api/auth"
	"pier/api/client"
	"pier/cluster/port"
	"pier/cmd/pier/node"
	"pier/fsm"
	"pier/test/harness"
)

// rotating is a cluster with HTTPS of its own CA, access control, and a secret file for each node.
type rotating struct {
	*guarded
	before port.Secrets
	roots  atomic.Pointer[x509.CertPool] // what its clients trust at the moment
	ops    atomic.Int64
}

func startRotating(t *testing.T, tune node.Tuning) *rotating {
	t.Helper()
	r := &rotating{}
	var once sync.Once
	c := harness.StartConfigured(t, 3, tune, func(x *harness.Node, cfg *node.Config) {
		shared, err := port.LoadSecrets(cfg.ClusterSecretFile)
		if err != nil {
			return // it is a cluster of its own
		}
		once.Do(func() { r.before = shared })
		cfg.Access.TLS, cfg.Access.PublicNames = "auto", []string{"registry.lan"}
		cfg.ClusterSecretFile = filepath.Join(x.Dir, "its.secret")
		if _, err := os.Stat(cfg.ClusterSecretFile); err != nil {
			if err := errors.Join(os.MkdirAll(x.Dir, 0o700), port.SaveSecrets(cfg.ClusterSecretFile, r.before)); err != nil {
				t.Error(err)
			}
		}
	})
	r.guarded = &guarded{Cluster: c, img: harness.NewImage("team/app", "1", 100<<10)}
	r.roots.Store(r.ca(c.Nodes[0]))
	r.root = r.user("root")
	for _, x := range c.Nodes {
		c.Eventually(x.Name+" knows root", func() bool { return r.over(x, r.client(true)).As(r.root.basic()).Push(r.img) == nil })
	}
	return r
}

// ca is the CA that a node tells clients to trust.
func (r *rotating) ca(x *harness.Node) *x509.CertPool {
	r.T.Helper()
	a, err := x.Control().Authority(context.WithoutCancel(r.T.Context()))
	r.Must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(a.PEM))
	return pool
}

// client trusts what the roots are at each handshake; one that is fickle shakes hands for each request.
func (r *rotating) client(fickle bool) *http.Client {
	transport := &http.Transport{DisableKeepAlives: fickle, ForceAttemptHTTP2: !fickle, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does it, with the roots of the moment
		VerifyConnection:   func(s tls.ConnectionState) error { return trusts(r.roots.Load(), s) },
	}}
	r.T.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func trusts(roots *x509.CertPool, s tls.ConnectionState) error {
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "registry.lan"})
	return err
}

func (r *rotating) over(x *harness.Node, h *http.Client) *harness.Client { return x.Client.Over(h) }

// token asks a node for a token to push and pull with.
func (r *rotating) token(x *harness.Client, form url.Values) (access, refresh string, err error) {
	return tokens(x, "pull,push", form)
}

func (r *rotating) password() url.Values {
	return url.Values{"grant_type": {"password"}, "username": {r.root.name}, "password": {r.root.secret}, "access_type": {"offline"}}
}

// work pushes and pulls until it is stopped, each time with a token of some node, through another and from a third. Nothing
// is tried twice.
func (r *rotating) work(workers int) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.T.Context()))
	var group sync.WaitGroup
	for w := range workers {
		h := r.client(w%2 == 0)
		group.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				nodes := slices.Clone(r.Nodes[:3])
				rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
				token, _, err := r.token(r.over(nodes[0], h), r.password())
				img := harness.NewImage("team/app", fmt.Sprintf("%d-%d", w, i), 1000+rand.IntN(200_000))
				if err == nil {
					err = r.over(nodes[1], h).As("Bearer " + token).Push(img)
				}
				if err == nil {
					err = r.over(nodes[2], h).As("Bearer " + token).Pull(img)
				}
				if err != nil {
					r.T.Errorf("worker %d: %v", w, err)
					return
				}
				r.ops.Add(1)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		group.Wait()
	})
	r.T.Cleanup(stop)
	return stop
}

func (r *rotating) status(x *harness.Node) client.SecretStatus {
	s, err := x.Control().SecretStatus(context.WithoutCancel(r.T.Context()))
	if err != nil {
		r.T.Log(err)
	}
	return s
}

// reached waits until every node has done a step.
func (r *rotating) reached(step string) {
	r.T.Helper()
	r.Eventually("the rotation comes to "+step, func() bool {
		for _, x := range r.Nodes[:3] {
			s := r.status(x)
			if s.Step != step || slices.ContainsFunc(s.Nodes, func(n client.SecretNode) bool { return !n.Done }) {
				return false
			}
		}
		return true
	})
}

// forged is an access token that whoever has the secrets can make.
func (r *rotating) forged(secrets port.Secrets) string {
	keys, err := auth.NewKeys(secrets.TokenSeeds())
	r.Must(err)
	access, err := r.Nodes[0].State().Access()
	r.Must(err)
	i := slices.IndexFunc(access.Principals, func(p fsm.Principal) bool { return p.Name == r.root.name })
	c := auth.Caller{Kind: auth.KindUser, Name: r.root.name, Generation: access.Principals[i].Generation}
	t, err := keys.Issue(c, "pier", []auth.Scope{auth.RepositoryScope("team/app", auth.Pull)}, time.Now(), time.Hour)
	r.Must(err)
	return t.Text
}

// The secret is replaced to the end while people push and pull by HTTPS with tokens: no request fails. Before the old one ends
// a client that trusts only the old CA comes in, and one that trusts only the new one; a login from before goes on. After it
// nothing that was made with the old secret opens anything: token, login, certificate, invite, node.
func TestSecretRotatesUnderPushesAndPulls(t *testing.T) {
	t.Parallel()
	r := startRotating(t, node.Tuning{TokenLife: 10 * time.Second, SecretGrace: 12 * time.Second})
	ctx := t.Context()
	old := r.roots.Load()
	fickle := r.client(true)
	_, refresh, err := r.token(r.over(r.Nodes[0], fickle), r.password())
	r.Must(err)
	again := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}
	invite, err := r.Nodes[1].Control().Invite(ctx, client.InviteRequest{})
	r.Must(err)
	forged := r.forged(r.before)
	pull := "/v2/team/app/manifests/" + r.img.Digest.String()

	stop := r.work(4)
	begun := time.Now()
	_, err = r.Nodes[2].Control().RotateSecret(ctx, client.RotateSecretRequest{KeepOld: "0"})
	r.Must(err)
	r.reached("keep")
	t.Logf("all use the new secret after %s", time.Since(begun))
	for _, x := range r.Nodes[:3] {
		if _, _, err := r.token(r.over(x, fickle), again); err != nil {
			t.Errorf("%s: a login from before: %v", x.Name, err)
		}
		if _, _, err := r.over(x, fickle).As("Bearer "+forged).Want(200, "GET", pull, nil); err != nil {
			t.Error(err)
		}
	}
	fresh := r.ca(r.Nodes[0])
	if fresh.Equal(old) {
		t.Error("the CA is still the old one")
	}
	r.roots.Store(fresh) // from one handshake to the next, clients trust the new CA alone
	r.reached("done")
	t.Logf("the old secret is gone after %s", time.Since(begun))
	during := r.ops.Load()
	r.Eventually("work goes on after it", func() bool { return r.ops.Load() > during+20 || t.Failed() })
	stop()
	t.Logf("%d times an image was pushed and pulled, and no request failed", r.ops.Load())

	for _, x := range r.Nodes[:3] {
		if _, _, err := r.token(r.over(x, fickle), again); !errors.Is(err, errRefused) {
			t.Errorf("%s: a login under the old secret: %v", x.Name, err)
		}
		if _, _, err := r.over(x, fickle).As("Bearer "+forged).Want(401, "GET", pull, nil); err != nil {
			t.Error(err)
		}
		conn, err := tls.Dial("tcp", strings.TrimPrefix(x.URL(), "https://"), &tls.Config{RootCAs: old, ServerName: "registry.lan"})
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s: who trusts the old CA alone still does", x.Name)
		}
	}
	r.keptToItself()
	alone := r.StartAlone()
	if _, err := alone.Control().Join(ctx, client.JoinRequest{Token: invite.Token}); err == nil {
		t.Error("an invite from before the rotation was taken")
	}
	alone.Kill()
	for _, x := range r.Nodes[:3] {
		x.Kill()
	}
	for _, x := range r.Nodes[:3] {
		x.Start()
	}
	r.WaitReady()
	for _, x := range r.Nodes[:3] {
		r.Must(r.Patiently(func() error { return r.over(x, r.client(true)).As(r.root.basic()).Pull(r.img) }))
	}
}

// keptToItself looks for the secrets where they must not be: in the log, the state, the audit log and what nodes say.
func (r *rotating) keptToItself() {
	r.T.Helper()
	now, err := port.LoadSecrets(filepath.Join(r.Nodes[0].Dir, "its.secret"))
	r.Must(err)
	for _, x := range r.Nodes[:3] {
		for _, secret := range append(slices.Clone(now), r.before...) {
			text := base64.StdEncoding.EncodeToString(secret)
			for _, name := range []string{"raft.db", "state.db", "audit.log"} {
				data, err := os.ReadFile(filepath.Join(x.Dir, name))
				if err != nil && name != "audit.log" {
					r.T.Error(err)
				}
				if bytes.Contains(data, secret) || bytes.Contains(data, []byte(text)) {
					r.T.Errorf("%s: a secret of the cluster is in %s", x.Name, name)
				}
			}
			if x.Logged(text) > 0 {
				r.T.Errorf("%s says a secret of the cluster in its log", x.Name)
			}
		}
	}
}
