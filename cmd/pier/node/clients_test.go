package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"pier/api/client"
)

// testCA makes certificates for clients.
type testCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	ca := &testCA{t: t}
	ca.cert, ca.key = ca.make(&x509.Certificate{Subject: pkix.Name{CommonName: "clients " + t.Name()}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour)})
	return ca
}

// newEndingCA is one of an hour.
func newEndingCA(t *testing.T) *testCA {
	t.Helper()
	short := &testCA{t: t}
	short.cert, short.key = short.make(&x509.Certificate{Subject: pkix.Name{CommonName: "ending"}, IsCA: true, BasicConstraintsValid: true})
	return short
}

// make signs what the template says, by itself for the CA's own.
func (ca *testCA) make(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		ca.t.Fatal(err)
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key
}

// issue makes a client's certificate for a common name.
func (ca *testCA) issue(name string, change func(*x509.Certificate)) *tls.Certificate {
	ca.t.Helper()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(template)
	}
	cert, key := ca.make(template)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (ca *testCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// certified is a node that takes clients' certificates, with the users root, alice (push on team/**) and eve.
type certified struct {
	*testing.T
	node    *Node
	control *client.Client
	bundle  string
	ca      *testCA
	roots   *x509.CertPool
}

func startCertified(t *testing.T) *certified {
	t.Helper()
	c := &certified{T: t, ca: newTestCA(t), bundle: filepath.Join(t.TempDir(), "clients.crt")}
	c.write(c.bundle, c.ca.pem())
	var dir string
	c.node = run(t, func(cfg *Config) {
		dir = cfg.DataDir
		cfg.Access = AccessConfig{TLS: "auto", TLSClientCA: c.bundle}
	})
	c.control = client.New(client.Options{Socket: filepath.Join(dir, SocketName)})
	ca, err := c.control.Authority(t.Context())
	c.must(err)
	c.roots = x509.NewCertPool()
	c.roots.AppendCertsFromPEM([]byte(ca.PEM))
	for _, name := range []string{"root", "alice", "eve"} {
		hash, err := bcrypt.GenerateFromPassword([]byte(name+"'s-password"), bcrypt.MinCost)
		c.must(err)
		_, err = c.control.AddUser(t.Context(), client.UserRequest{Name: name, Hash: string(hash)})
		c.must(err)
	}
	c.must(c.control.Grant(t.Context(), client.Grant{Subject: "alice", Right: "push", Pattern: "team/**"}))
	c.must(c.control.Grant(t.Context(), client.Grant{Subject: "anonymous", Right: "pull", Pattern: "public/**"}))
	return c
}

func (c *certified) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *certified) write(path string, data []byte) {
	c.Helper()
	c.must(os.WriteFile(path, data, 0o600))
}

// as is a client that shows the certificate, whatever the server asks for, as curl does; nil shows none.
func (c *certified) as(cert *tls.Certificate) *http.Client {
	c.Helper()
	cfg := &tls.Config{RootCAs: c.roots, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	c.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

type said struct {
	*http.Response
	body string
}

// ask sends a request; headers come as "Name: value".
func (c *certified) ask(client *http.Client, method, path, body string, headers ...string) said {
	c.Helper()
	r, err := http.NewRequestWithContext(c.Context(), method, c.node.URL()+path, strings.NewReader(body))
	c.must(err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := client.Do(r)
	if err != nil {
		c.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	c.must(err)
	return said{resp, string(text)}
}

func (c *certified) want(got said, status int, texts ...string) {
	c.Helper()
	for _, text := range texts {
		if !strings.Contains(got.body, text) {
			c.Errorf("%s %s says %q, not %q", got.Request.Method, got.Request.URL.Path, got.body, text)
		}
	}
	if got.StatusCode != status {
		c.Errorf("%s %s: %s %s, want %d", got.Request.Method, got.Request.URL.Path, got.Status, got.body, status)
	}
	if status == http.StatusUnauthorized && got.Header.Get("WWW-Authenticate") == "" {
		c.Errorf("%s %s: a 401 without WWW-Authenticate", got.Request.Method, got.Request.URL.Path)
	}
}

func password(name string) string {
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(name, name+"'s-password")
	return "Authorization: " + r.Header.Get("Authorization")
}

// A certificate is its user, at each endpoint that takes callers, and with no more right than that user.
func TestCertificateIsItsUser(t *testing.T) {
	c := startCertified(t)
	nobody, alice, root := c.as(nil), c.as(c.ca.issue("alice", nil)), c.as(c.ca.issue("root", nil))
	c.want(c.ask(nobody, "GET", "/v2/", ""), 401, "none was shown")
	c.want(c.ask(nobody, "GET", "/v2/public/x/tags/list", ""), 404)
	c.want(c.ask(nobody, "GET", "/v2/", "", password("eve")), 200)
	c.want(c.ask(alice, "GET", "/v2/", ""), 200)
	c.want(c.ask(alice, "GET", "/v2/_catalog", ""), 200)
	c.want(c.ask(alice, "POST", "/v2/team/app/blobs/uploads/", ""), 202)
	c.want(c.ask(alice, "POST", "/v2/other/blobs/uploads/", ""), 403, "alice has no right to push on other")
	c.want(c.ask(alice, "GET", "/api/v1/access", ""), 403, "admin on **")
	c.want(c.ask(root, "GET", "/api/v1/access", ""), 200, `"alice"`)
	c.want(c.ask(root, "POST", "/api/v1/access/grant", `{"subject":"eve","right":"pull","pattern":"team/**"}`), 200)
	robot, err := c.control.AddRobot(t.Context(), client.RobotRequest{Name: "ci"})
	c.must(err)
	c.want(c.ask(c.as(c.ca.issue(robot.Name, nil)), "GET", "/v2/", ""), 200)

	// No cache on the way keeps for others what was given to alice.
	blob := digest.FromString("alice's own").String()
	c.want(c.ask(alice, "POST", "/v2/team/app/blobs/uploads/?digest="+blob, "alice's own"), 201)
	if got := c.ask(alice, "GET", "/v2/team/app/blobs/"+blob, ""); got.StatusCode != 200 || !strings.HasPrefix(got.Header.Get("Cache-Control"), "private") {
		t.Errorf("%s, Cache-Control %q", got.Status, got.Header.Get("Cache-Control"))
	}

	// What /token gives for it is that user's, and doesn't stand for a password.
	got := c.ask(alice, "GET", "/token?service=pier&offline_token=true&scope=repository:team/app:push", "")
	c.want(got, 200)
	var token struct {
		Token   string `json:"token"`
		Refresh string `json:"refresh_token"`
	}
	c.must(json.Unmarshal([]byte(got.body), &token))
	if token.Refresh != "" {
		t.Error("a certificate was changed for a refresh token")
	}
	c.want(c.ask(nobody, "POST", "/v2/team/app/blobs/uploads/", "", "Authorization: Bearer "+token.Token), 202)
}

// What is wrong with a certificate is said in the answer and not by a broken handshake, also where anybody may pull.
func TestCertificateIsRefused(t *testing.T) {
	c := startCertified(t)
	hour := func(from, to int) func(*x509.Certificate) {
		return func(x *x509.Certificate) {
			x.NotBefore, x.NotAfter = time.Now().Add(time.Duration(from)*time.Hour), time.Now().Add(time.Duration(to)*time.Hour)
		}
	}
	usage := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(x *x509.Certificate) { x.ExtKeyUsage = u }
	}
	c.must(c.control.ChangePrincipal(t.Context(), client.PrincipalChange{Name: "eve", Disabled: new(true)}))
	for text, cert := range map[string]*tls.Certificate{
		"not of a CA that this registry":                newTestCA(t).issue("alice", nil),
		"has expired":                                   c.ca.issue("alice", hour(-2, -1)),
		"is not valid before":                           c.ca.issue("alice", hour(1, 2)),
		"is not for clients":                            c.ca.issue("alice", usage(x509.ExtKeyUsageServerAuth)),
		"names mallory, who is no active user or robot": c.ca.issue("mallory", nil),
		"names eve, who is no active user or robot":     c.ca.issue("eve", nil),
		"0 common names":                                c.ca.issue("", func(x *x509.Certificate) { x.DNSNames, x.EmailAddresses = []string{"alice"}, []string{"alice"} }),
		"2 common names": c.ca.issue("", func(x *x509.Certificate) {
			x.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "alice"}, {Type: []int{2, 5, 4, 3}, Value: "root"}}
		}),
		"none of a user": c.ca.issue("anonymous", nil),
	} {
		who := c.as(cert)
		for _, path := range []string{"/v2/", "/v2/public/x/tags/list", "/token?service=pier", "/api/v1/cluster/status"} {
			c.want(c.ask(who, "GET", path, ""), 401, "UNAUTHORIZED", text)
		}
		c.want(c.ask(who, "GET", "/v2/", "", password("alice")), 200) // there is another way in
	}
	c.want(c.ask(c.as(c.ca.issue("alice", usage())), "GET", "/v2/", ""), 200) // it is for all uses
}

// An Authorization header decides alone, right or wrong.
func TestHeaderBeatsCertificate(t *testing.T) {
	c := startCertified(t)
	alice, root := c.as(c.ca.issue("alice", nil)), c.as(c.ca.issue("root", nil))
	c.want(c.ask(alice, "GET", "/api/v1/access", "", password("root")), 200)
	c.want(c.ask(root, "GET", "/api/v1/access", "", password("alice")), 403)
	for _, header := range []string{"Authorization: Basic cm9vdDp3cm9uZw==", "Authorization: Bearer x.y.z", "Authorization: Digest x", "Authorization: "} {
		c.want(c.ask(root, "GET", "/v2/", "", header), 401)
	}
}

// A user who is disabled or removed is out at once, on a connection that is open already.
func TestCertificateEndsWithItsUser(t *testing.T) {
	c := startCertified(t)
	alice := c.as(c.ca.issue("alice", nil))
	c.want(c.ask(alice, "GET", "/v2/", ""), 200)
	change := func(disabled bool) {
		t.Helper()
		c.must(c.control.ChangePrincipal(t.Context(), client.PrincipalChange{Name: "alice", Disabled: &disabled}))
	}
	change(true)
	c.want(c.ask(alice, "GET", "/v2/", ""), 401, "alice")
	change(false)
	c.want(c.ask(alice, "GET", "/v2/", ""), 200)
	c.must(c.control.RemovePrincipal(t.Context(), client.RemovalRequest{Name: "alice"}))
	c.want(c.ask(alice, "POST", "/v2/team/app/blobs/uploads/", ""), 401, "alice")
}

// The file of CAs is followed while connections are open, and a broken one changes nothing.
func TestClientCAsAreReloaded(t *testing.T) {
	c := startCertified(t)
	other := newTestCA(t)
	alice, root := c.as(c.ca.issue("alice", nil)), c.as(other.issue("root", nil))
	until := func(who *http.Client, status int) {
		t.Helper()
		c.eventually(func() bool { return c.ask(who, "GET", "/v2/", "").StatusCode == status })
	}
	c.want(c.ask(alice, "GET", "/v2/", ""), 200)
	c.want(c.ask(root, "GET", "/v2/", ""), 401)
	c.write(c.bundle, append(c.ca.pem(), other.pem()...))
	until(root, 200)
	c.want(c.ask(alice, "GET", "/v2/", ""), 200)
	for _, broken := range [][]byte{nil, []byte("broken"), append(c.ca.pem(), other.pem()[:200]...)} {
		c.write(c.bundle, broken)
		c.eventually(func() bool { return c.node.clients.Fault() != nil })
		c.want(c.ask(root, "GET", "/v2/", ""), 200)
		c.want(c.ask(alice, "GET", "/v2/", ""), 200)
	}
	c.write(c.bundle, other.pem())
	until(alice, 401)
	c.want(c.ask(root, "GET", "/v2/", ""), 200)
}

// eventually waits for ok, and not for ever.
func (c *certified) eventually(ok func() bool) {
	c.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			c.Fatal("it does not come true")
		}
	}
}

// A page of another site can make a browser send its certificate; that changes nothing here.
func TestOtherSitesCantUseACertificate(t *testing.T) {
	c := startCertified(t)
	root := c.as(c.ca.issue("root", nil))
	body := `{"subject":"eve","right":"admin","pattern":"**"}`
	for _, header := range []string{"Sec-Fetch-Site: cross-site", "Origin: https://evil.example"} {
		c.want(c.ask(root, "POST", "/api/v1/access/grant", body, header), 403, "another site")
		c.want(c.ask(root, "POST", "/v2/team/app/blobs/uploads/", "", header), 403, "another site")
	}
	c.want(c.ask(root, "POST", "/api/v1/access/grant", body, "Origin: "+c.node.URL()), 200)
}
