package promises

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/test/harness"
)

// traffic is clients that push at one node and pull at the next, over TLS and without a pause, until they are told to stop.
// They try nothing twice: each request must be answered as it should at once. Only an election, which a busy machine may make,
// is waited for: it has nothing to do with what these tests change.
type traffic struct {
	t       *testing.T
	nodes   []*harness.Node
	who     *someone
	now     func() time.Time
	stop    context.CancelFunc
	clients sync.WaitGroup
	rounds  [trafficClients]atomic.Int64

	elections atomic.Int64 // that were waited for

	mu    sync.Mutex
	roots *x509.CertPool // what clients trust when they connect
}

// The clients: whether each makes a new connection for every request, speaks HTTP/2, and shows its password with every request
// in place of a token.
var tableOfClients = [trafficClients]struct{ fresh, two, password bool }{
	{two: true}, {}, {fresh: true, two: true}, {fresh: true}, {two: true, password: true}, {fresh: true, password: true},
}

const trafficClients = 6

// startTraffic begins, with clients that trust the CA, PEM, and whose time is now's.
func startTraffic(t *testing.T, nodes []*harness.Node, who *someone, ca []byte, now func() time.Time) *traffic {
	t.Helper()
	tr := &traffic{t: t, nodes: nodes, who: who, now: now}
	tr.trust(ca)
	var ctx context.Context
	ctx, tr.stop = context.WithCancel(context.WithoutCancel(t.Context()))
	for i := range tableOfClients {
		tr.clients.Go(func() { tr.run(ctx, i) })
	}
	t.Cleanup(tr.end)
	return tr
}

// trust makes the clients trust these CAs, PEM, and no others, with the connections that they make from now on.
func (tr *traffic) trust(cas ...[]byte) {
	roots := x509.NewCertPool()
	for _, ca := range cas {
		if !roots.AppendCertsFromPEM(ca) {
			tr.t.Error("a CA's PEM is no certificate")
		}
	}
	tr.mu.Lock()
	tr.roots = roots
	tr.mu.Unlock()
}

// settings are those of one client's TLS. The roots are looked up with each handshake.
func (tr *traffic) settings() *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does it, with the roots of the moment
		VerifyConnection: func(s tls.ConnectionState) error {
			tr.mu.Lock()
			roots := tr.roots
			tr.mu.Unlock()
			others := x509.NewCertPool()
			for _, c := range s.PeerCertificates[1:] {
				others.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, DNSName: s.ServerName, CurrentTime: tr.now()})
			return err
		},
	}
}

// run is one client's life.
func (tr *traffic) run(ctx context.Context, i int) {
	kind := tableOfClients[i]
	transport := &http.Transport{TLSClientConfig: tr.settings(), DisableKeepAlives: kind.fresh, ForceAttemptHTTP2: kind.two}
	defer transport.CloseIdleConnections()
	h := &http.Client{Transport: transport, Timeout: time.Minute}
	repo := fmt.Sprintf("team/client%d", i)
	var token string
	var until time.Time
	for n := i; ctx.Err() == nil; n++ {
		at, then := tr.nodes[n%len(tr.nodes)].Over(h), tr.nodes[(n+1)%len(tr.nodes)].Over(h)
		credentials := tr.who.basic()
		if !kind.password {
			if !tr.now().Before(until) || n%5 == 0 {
				fresh, life, err := pushToken(at, tr.who, repo)
				if err != nil {
					tr.t.Errorf("client %d: %v", i, err)
					return
				}
				token, until = fresh, tr.now().Add(life/2)
			}
			credentials = "Bearer " + token
		}
		img := harness.NewImage(repo, fmt.Sprint(n), 2000)
		if err := tr.steadily(func() error { return at.As(credentials).Push(img) }); err != nil {
			tr.t.Errorf("client %d: %v", i, err)
			return
		}
		if err := tr.steadily(func() error { return then.As(credentials).Pull(img) }); err != nil {
			tr.t.Errorf("client %d: %v", i, err)
			return
		}
		tr.rounds[i].Add(1)
	}
}

// steadily does something again as long as nobody leads.
func (tr *traffic) steadily(do func() error) error {
	deadline := time.Now().Add(time.Minute)
	for {
		err := do()
		if err == nil || time.Now().After(deadline) || !strings.Contains(err.Error(), "no majority") && !strings.Contains(err.Error(), "no quorum") {
			return err
		}
		tr.elections.Add(1)
	}
}

func pushToken(x *harness.Client, who *someone, repo string) (string, time.Duration, error) {
	form := url.Values{"grant_type": {"password"}, "username": {who.name}, "password": {who.secret}, "service": {"pier"}, "scope": {"repository:" + repo + ":pull,push"}}
	body, _, err := x.Want(http.StatusOK, "POST", "/token", []byte(form.Encode()), "Content-Type", "application/x-www-form-urlencoded")
	var out struct {
		Access  string `json:"access_token"`
		Expires int    `json:"expires_in"`
	}
	if err == nil {
		err = json.Unmarshal(body, &out)
	}
	return out.Access, time.Duration(out.Expires) * time.Second, err
}

// goesOn waits until each client has pushed and pulled once more since the call, or has failed.
func (tr *traffic) goesOn(c *harness.Cluster) {
	c.T.Helper()
	var before [trafficClients]int64
	for i := range before {
		before[i] = tr.rounds[i].Load()
	}
	c.Eventually("every client pushes and pulls", func() bool {
		for i := range before {
			if tr.rounds[i].Load() < before[i]+2 && !tr.t.Failed() { // the first may have begun before
				return false
			}
		}
		return true
	})
}

// end stops the clients and waits for them.
func (tr *traffic) end() {
	tr.stop()
	tr.clients.Wait()
}

// done says what was done.
func (tr *traffic) done() string {
	n := int64(0)
	for i := range tr.rounds {
		n += tr.rounds[i].Load()
	}
	return fmt.Sprintf("%d images pushed and pulled; an election was waited for %d times", n, tr.elections.Load())
}
