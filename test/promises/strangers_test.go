package promises

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"pier/api/client"
	"pier/test/harness"
)

const refusal = "refused a connection to the cluster port"

// A node with another secret, a stranger with TLS and a certificate of its own, one without, and one that speaks no TLS knock
// at every node again and again: none gets in, each node says so once, and the cluster goes on.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	img := harness.NewImage("team/app", "1", 10)
	c.Must(c.Nodes[0].Push(img))
	stranger := c.AddStranger()
	stranger.Start()
	c.Eventually("the stranger waits outside", func() bool { return stranger.Logged("waiting for the other nodes") > 0 })
	for _, x := range c.Nodes[:3] {
		for range 5 {
			for _, proto := range []string{"raft", "peer", "gossip", "none", ""} {
				knockTLS(t, x, proto, nil)
				knockTLS(t, x, proto, []tls.Certificate{ownCertificate(t, x.ID())})
			}
			conn, err := net.Dial("tcp", x.ClusterAddress())
			c.Must(err)
			_, _ = io.WriteString(conn, "GET /cluster/status HTTP/1.1\r\nHost: x\r\n\r\n")
			if got, _ := io.ReadAll(conn); strings.Contains(string(got), "Applied") {
				t.Errorf("%s answers a stranger: %q", x.Name, got)
			}
			_ = conn.Close()
		}
	}
	select {
	case <-stranger.Ready():
		t.Error("a node with another secret is ready")
	default:
	}
	for _, x := range c.Nodes[:3] {
		c.Eventually(x.Name+" logs the refusals", func() bool { return x.Logged(refusal) > 0 })
		if n := x.Logged(refusal); n != 1 {
			t.Errorf("%s says %d times that it refused somebody", x.Name, n)
		}
		if n := members(t, x); n != 3 {
			t.Errorf("%s counts %d members", x.Name, n)
		}
	}
	after := harness.NewImage("team/app", "2", 10)
	c.Must(c.Nodes[1].PushPatiently(after))
	stranger.Kill()
	c.Whole(img, after)
}

// knockTLS tries to get a byte out of the cluster port. With TLS 1.3 a client hears only then that it was refused.
func knockTLS(t *testing.T, x *harness.Node, proto string, certs []tls.Certificate) {
	t.Helper()
	raw, err := net.Dial("tcp", x.ClusterAddress())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	conf := &tls.Config{InsecureSkipVerify: true, Certificates: certs}
	if proto != "" {
		conf.NextProtos = []string{proto}
	}
	conn := tls.Client(raw, conf)
	if err := conn.Handshake(); err != nil {
		return
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err = conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stranger got in as %q: %v", proto, err)
	}
}

// ownCertificate is a certificate for a member's name that the cluster's key hasn't signed.
func ownCertificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// A member that was removed while it was away comes back with its disk: it is refused, says once what happened, takes no
// writes, and the cluster goes on without it, also through a change of leader.
func TestRemovedMemberIsRefused(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 4)
	img := harness.NewImage("team/app", "1", 10)
	c.Must(c.Nodes[0].Push(img))
	c.Whole(img)
	removed := c.Follower()
	rest := others(c, removed)
	removed.Stop()
	c.Eventually("the member can be removed", func() bool {
		return rest[0].Control().Remove(t.Context(), client.RemoveRequest{Node: removed.Name}) == nil
	})
	for range 2 { // it stays out over its restarts
		removed.Start()
		c.Eventually("the removed member says so", func() bool { return removed.Logged("was removed from its cluster") > 0 })
		resp, body, err := removed.Do("PUT", "/v2/team/app/manifests/x", img.Manifest, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
		c.Must(err)
		if resp.StatusCode != 503 {
			t.Errorf("a removed member answers a push with %s %s", resp.Status, body)
		}
		if removed.Cluster().Role() == "leader" {
			t.Error("a removed member leads")
		}
		leader := c.Leader()
		leader.Kill()
		leader.Start()
		after := harness.NewImage("team/app", "2", 10)
		c.Must(others(c, removed)[0].PushPatiently(after))
		removed.Kill()
		c.WaitReady()
		c.Whole(img, after)
	}
	if n := removed.Logged("was removed from its cluster"); n != 2 {
		t.Errorf("in two lives the removed member said %d times that it was removed", n)
	}
	for _, x := range rest {
		if n, lives := x.Logged(refusal), x.Logged("msg=ready"); n > lives {
			t.Errorf("%s says %d times in %d lives that it refused somebody", x.Name, n, lives)
		}
		c.Eventually("status shows three", func() bool { return members(t, x) == 3 })
	}
}
