package pebble

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/api/client"
	"pier/cmd/pier/node"
	"pier/fsm"
	"pier/test/harness"
)

const (
	host   = "registry.example.org"
	mirror = "mirror.example.org"
)

// TestMain lets more tests run at a time than there are processors, since they wait for certificates to end more than they compute.
func TestMain(m *testing.M) {
	testing.Init()
	if err := flag.Set("test.parallel", "4"); err != nil { // what the command line says comes later and counts
		panic(err)
	}
	_ = os.Setenv("PEBBLE_VA_NOSLEEP", "1") // else it waits up to 5 s before each question
	os.Exit(m.Run())
}

// start runs n nodes that get certificates of the server for the names. What the server asks by TLS comes to each in turn.
func start(t *testing.T, server *Server, n int, names ...string) *harness.Cluster {
	t.Helper()
	web := map[string]string{}
	return harness.StartConfigured(t, n, node.Tuning{}, func(x *harness.Node, cfg *node.Config) {
		if web[x.Name] == "" {
			web[x.Name] = free(t)
			server.TLS.Add(cfg.Listen)
			server.Web.Add(web[x.Name])
		}
		cfg.Access.TLS, cfg.Access.PublicNames, cfg.Access.HTTPListen = "acme", names, web[x.Name]
		cfg.Access.ACMEDirectory, cfg.Access.ACMECAFile, cfg.Access.ACMEEmail = server.Directory, server.CAFile, "ops@example.org"
	})
}

// free is an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	return lis.Addr().String()
}

// shown is the certificate that a node shows to a client that trusts the server's, or why the client takes it for none.
func shown(server *Server, x *harness.Node, name string) (*x509.Certificate, error) {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{ServerName: name, RootCAs: server.Roots}}
	c, err := dialer.Dial("tcp", x.Address())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// issued waits until the nodes show the same good certificate for the name.
func issued(t *testing.T, c *harness.Cluster, server *Server, name string, nodes ...*harness.Node) *x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	c.Eventually("all nodes show the certificate of "+name, func() bool {
		all = nil
		for _, x := range nodes {
			leaf, err := shown(server, x, name)
			if err != nil {
				return false
			}
			all = append(all, leaf)
		}
		return !slices.ContainsFunc(all, func(leaf *x509.Certificate) bool { return !leaf.Equal(all[0]) })
	})
	return all[0]
}

// noKeys sees to it that no node has written a key into its log, or tells one, even to its operator.
func noKeys(t *testing.T, c *harness.Cluster) {
	t.Helper()
	docs, err := c.Nodes[0].State().Documents(fsm.KindACME)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{"PRIVATE KEY"}
	for _, d := range docs {
		var doc struct{ Key string }
		if err := json.Unmarshal(d.Body, &doc); err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(doc.Key, "\n"); len(lines) > 2 {
			secrets = append(secrets, lines[1])
		}
	}
	if len(secrets) < 3 {
		t.Errorf("no keys in %d documents", len(docs))
	}
	for _, x := range c.Nodes {
		socket := &http.Transport{DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(x.Dir, node.SocketName))
		}}
		operator := x.Over(&http.Client{Transport: socket})
		told := ""
		for _, path := range []string{
			"/metrics", "/api/v1/cluster/status", "/api/v1/cluster/secret/status", "/api/v1/access", "/api/v1/audit", "/api/v1/doctor",
			"/api/v1/access/providers", "/api/v1/access/trust", "/v2/_catalog",
		} {
			body, _, err := operator.Want(http.StatusOK, http.MethodGet, path, nil)
			if err != nil {
				t.Error(err)
			}
			told += string(body)
		}
		socket.CloseIdleConnections()
		for _, secret := range secrets {
			if x.Logged(secret) > 0 || strings.Contains(told, secret) {
				t.Errorf("%s logs or tells a key", x.Name)
			}
		}
	}
}

// One order for each name serves all nodes. The server asks each of them, so that two of three answer for an order that
// another has made.
func TestOneOrderForAllNodes(t *testing.T) {
	t.Parallel()
	server := Start(t, time.Hour)
	c := start(t, server, 3, host, mirror)
	for _, name := range []string{host, mirror} {
		issued(t, c, server, name, c.Nodes...)
	}
	if n := server.Orders(); n != 2 {
		t.Errorf("%d orders for two names", n)
	}
	asked := server.TLS.Used()
	for _, x := range c.Nodes {
		if !slices.Contains(asked, x.Address()) {
			t.Errorf("%s was not asked: %v", x.Name, asked)
		}
		if err := x.CertificateFault(); err != nil {
			t.Errorf("%s: %v", x.Name, err)
		}
	}
	if len(server.Web.Used()) != 0 {
		t.Error("the server had to ask by HTTP")
	}
	// Another name gets nothing, and nobody is asked for a certificate for it.
	for _, name := range []string{"evil.example.org", "org", "registry.example.org.evil.net"} {
		if _, err := shown(server, c.Nodes[0], name); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := shown(server, c.Nodes[0], "REGISTRY.example.org"); err != nil {
		t.Errorf("in capitals: %v", err)
	}
	if n := server.Orders(); n != 2 {
		t.Errorf("%d orders after other names", n)
	}
	// By an address a client sees the certificate of the first name.
	conn, err := tls.Dial("tcp", c.Nodes[1].Address(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.ConnectionState().PeerCertificates[0].VerifyHostname(host); err != nil {
		t.Error(err)
	}
	noKeys(t, c)
}

// Where port 443 leads elsewhere the server asks by HTTP, and again any node answers. The next time it asks nothing else.
func TestServerAsksByHTTP(t *testing.T) {
	t.Parallel()
	server := Start(t, 30*time.Second)
	elsewhere := free(t)
	server.TLS.Add(elsewhere)
	c := start(t, server, 3, host)
	server.TLS.To(elsewhere)
	first := issued(t, c, server, host, c.Nodes...)
	for _, x := range c.Nodes {
		if !slices.Contains(server.Web.Used(), x.HTTPAddress()) {
			t.Errorf("%s was not asked: %v", x.Name, server.Web.Used())
		}
	}
	resp, err := http.Get("http://" + c.Nodes[0].HTTPAddress() + "/.well-known/acme-challenge/x")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("a question that nobody has: %s", resp.Status)
	}
	orders, asked := server.Orders(), len(server.TLS.Used())
	c.Eventually("the certificate is renewed", func() bool {
		next, err := shown(server, c.Nodes[0], host)
		return err == nil && !next.Equal(first)
	})
	if server.Orders() != orders+1 || len(server.TLS.Used()) != asked {
		t.Errorf("the renewal took %d orders, and %d questions by TLS", server.Orders()-orders, len(server.TLS.Used())-asked)
	}
}

// Certificates are replaced when somebody says so, with other keys and one order for all nodes; who says it hears when that
// doesn't work, and may say it again at once.
func TestRenewedBySomebody(t *testing.T) {
	t.Parallel()
	server := Start(t, time.Hour)
	c := start(t, server, 3, host, mirror)
	before := issued(t, c, server, host, c.Nodes...)
	kept := issued(t, c, server, mirror, c.Nodes...)
	server.Away(true)
	var refused *client.Error
	if _, err := c.Nodes[1].Control().RenewCertificates(t.Context(), client.RenewRequest{Names: []string{host}}); !errors.As(err, &refused) || !strings.Contains(refused.Message, "reach the server") {
		t.Errorf("without the server: %v", err)
	}
	if now := issued(t, c, server, host, c.Nodes...); !now.Equal(before) {
		t.Error("the old certificate isn't in use meanwhile")
	}
	server.Away(false)
	said, err := c.Nodes[1].Control().RenewCertificates(t.Context(), client.RenewRequest{Names: []string{host}})
	if err != nil {
		t.Fatal(err)
	}
	var after *x509.Certificate
	c.Eventually("every node shows the new one", func() bool {
		after = issued(t, c, server, host, c.Nodes...)
		return !after.Equal(before)
	})
	if !said.Ends[host].Equal(after.NotAfter) || after.PublicKey.(*ecdsa.PublicKey).Equal(before.PublicKey) {
		t.Errorf("%v was said of a certificate until %v, or the key is the old one", said.Ends, after.NotAfter)
	}
	if now := issued(t, c, server, mirror, c.Nodes...); !now.Equal(kept) || server.Orders() != 3 {
		t.Errorf("another name's is replaced, too, or there were %d orders", server.Orders())
	}
	noKeys(t, c)
}

// openOrder leaves an order as a node does that ends while the server asks, and waits until all nodes have it.
func openOrder(t *testing.T, c *harness.Cluster) {
	t.Helper()
	docs, err := c.Nodes[0].State().Documents(fsm.KindACME)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(docs, func(d fsm.Document) bool { return strings.HasPrefix(d.Name, "certificate:") })
	name := strings.Replace(docs[i].Name, "certificate:", "order:", 1)
	body := fmt.Sprintf(`{"by":"gone","until":%q,"token":"question","answer":"answer","proof":%s}`, time.Now().Add(time.Hour).Format(time.RFC3339), docs[i].Body)
	command, err := fsm.Encode(fsm.Identity{}, fsm.PutDocument{Document: fsm.Document{Kind: fsm.KindACME, Name: name, Body: []byte(body)}, Over: true})
	if err == nil {
		_, _, err = c.Nodes[0].Cluster().Propose(t.Context(), command)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Eventually("all nodes have the order", func() bool {
		return !slices.ContainsFunc(c.Nodes, func(x *harness.Node) bool {
			_, found, err := x.State().Document(fsm.KindACME, name)
			return !found || err != nil
		})
	})
}

// A node needs neither the server nor a quorum to serve with the certificate that there is.
func TestServesWithoutServerAndQuorum(t *testing.T) {
	t.Parallel()
	server := Start(t, time.Hour)
	c := start(t, server, 3, host)
	before := issued(t, c, server, host, c.Nodes...)
	server.Away(true)
	openOrder(t, c)
	for _, x := range c.Nodes {
		x.Stop()
	}
	alone := c.Nodes[2]
	alone.Start()
	after := issued(t, c, server, host, alone)
	if !after.Equal(before) || server.Orders() != 1 {
		t.Errorf("another certificate, after %d orders", server.Orders())
	}
	// What the server would have asked before is still answered, after the wait for a quorum.
	ask, err := tls.Dial("tcp", alone.Address(), &tls.Config{ServerName: host, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = ask.Close()
	for token, want := range map[string]int{"question": http.StatusOK, "other": http.StatusNotFound} {
		r, err := http.NewRequest(http.MethodGet, "http://"+alone.HTTPAddress()+"/.well-known/acme-challenge/"+token, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("the question %s: %s", token, resp.Status)
		}
	}
	for _, x := range c.Nodes[:2] {
		x.Start()
	}
	c.WaitReady()
}

// A node that dies over an order isn't waited for.
func TestOrderOutlivesItsNode(t *testing.T) {
	t.Parallel()
	server := Start(t, time.Hour)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes questions and doesn't answer
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	server.TLS.Add(silent.Addr().String())
	c := start(t, server, 3, host)
	server.TLS.To(silent.Addr().String())
	c.Eventually("the server asks", func() bool { return len(server.TLS.Used()) > 0 })
	var left []*harness.Node
	for _, x := range c.Nodes {
		if x.Logged("asking for a certificate") > 0 {
			x.Kill()
		} else {
			left = append(left, x)
		}
	}
	if len(left) != 2 {
		t.Fatalf("%d nodes are left", len(left))
	}
	server.TLS.To(left[0].Address(), left[1].Address())
	issued(t, c, server, host, left...)
	for _, x := range c.Nodes {
		if !x.Running() {
			x.Start()
		}
	}
	issued(t, c, server, host, c.Nodes...)
	if n := server.Orders(); n != 2 {
		t.Errorf("%d orders", n)
	}
}

// A node without a certificate runs, and says what is wrong to whoever asks it; when it starts again it tries at once.
func TestWithoutACertificate(t *testing.T) {
	t.Parallel()
	server := Start(t, time.Hour)
	server.Away(true)
	c := start(t, server, 1, host)
	x := c.Nodes[0]
	c.Eventually("the failure shows", func() bool {
		fault := x.CertificateFault()
		return fault != nil && strings.Contains(fault.Error(), "reach the server")
	})
	if x.Logged("got none from the ACME server") == 0 {
		t.Error("the log doesn't say it")
	}
	_, err := shown(server, x, host)
	var wrong x509.HostnameError
	if !errors.As(err, &wrong) || !strings.Contains(err.Error(), "no-certificate-yet.see-the-log-of-pier.invalid") {
		t.Errorf("a client hears: %v", err)
	}
	resp, err := http.Get("http://" + x.HTTPAddress() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	x.Stop()
	server.Away(false)
	x.Start()
	issued(t, c, server, host, x)
	c.Eventually("the fault is gone", func() bool { return x.CertificateFault() == nil })
}

// Certificates are renewed under pushes and pulls, each over a connection of its own, and nobody notices.
func TestRenewalUnderLoad(t *testing.T) {
	t.Parallel()
	server := Start(t, 30*time.Second)
	c := start(t, server, 3, host)
	var mu sync.Mutex
	seen := map[string]bool{}
	note := func(leaf *x509.Certificate) {
		mu.Lock()
		defer mu.Unlock()
		seen[leaf.SerialNumber.String()] = true
	}
	met := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(seen)
	}
	note(issued(t, c, server, host, c.Nodes...))
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		ServerName: host, RootCAs: server.Roots, VerifyConnection: func(s tls.ConnectionState) error {
			note(s.PeerCertificates[0])
			return nil
		},
	}}}
	requests := 0
	for end := time.Now().Add(time.Minute); met() < 2; {
		if time.Now().After(end) {
			t.Fatalf("%d certificates within a minute", met())
		}
		x, y := c.Nodes[requests%3], c.Nodes[(requests+1)%3]
		img := harness.NewImage("team/app", fmt.Sprintf("t%d", requests), 1000)
		if err := x.Over(fresh).Push(img); err != nil {
			t.Fatalf("push %d, after %d certificates: %v", requests, met(), err)
		}
		if err := y.Over(fresh).Pull(img); err != nil {
			t.Fatalf("pull %d, after %d certificates: %v", requests, met(), err)
		}
		requests++
	}
	t.Logf("%d pushes and pulls met %d certificates; %d orders", requests, met(), server.Orders())
	if server.Orders() > met()+1 {
		t.Errorf("%d orders for %d certificates", server.Orders(), met())
	}
	noKeys(t, c)
}
