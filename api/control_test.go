package api

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/api/client"
	"pier/fsm"
)

// spokenTo is a cluster that remembers what it was asked, and answers with err.
type spokenTo struct {
	heard any
	takes time.Duration
	err   error
}

func (c *spokenTo) Status(context.Context) (client.Status, error) {
	return client.Status{ClusterID: "c", Quorum: true, Nodes: []client.NodeStatus{{ID: "i", Blobs: 7}}}, c.err
}

func (c *spokenTo) Invite(_ context.Context, r client.InviteRequest) (client.Invite, error) {
	c.heard = r
	return client.Invite{Token: "token", Expires: time.Unix(1, 0).UTC()}, c.err
}

func (c *spokenTo) Join(_ context.Context, r client.JoinRequest) (client.Joined, error) {
	c.heard = r
	return client.Joined{ID: "i", ClusterID: "c"}, c.err
}

func (c *spokenTo) Leave(ctx context.Context) error {
	c.heard = "leave"
	if c.takes > 0 {
		return errors.Join(pause(ctx, c.takes), c.err)
	}
	return c.err
}

func (c *spokenTo) Remove(_ context.Context, r client.RemoveRequest) error {
	c.heard = r
	return c.err
}

func (c *spokenTo) Transfer(_ context.Context, r client.TransferRequest) error {
	c.heard = r
	return c.err
}

func (c *spokenTo) SecretStatus(context.Context) (client.SecretStatus, error) {
	return client.SecretStatus{Step: "keep"}, c.err
}

func (c *spokenTo) RotateSecret(_ context.Context, r client.RotateSecretRequest) (client.SecretStatus, error) {
	c.heard = r
	return client.SecretStatus{Step: "add"}, c.err
}

func (c *spokenTo) RenewCertificates(_ context.Context, r client.RenewRequest) (client.Renewed, error) {
	c.heard = strings.Join(r.Names, " ")
	return client.Renewed{}, c.err
}

func (c *spokenTo) DropSecret(context.Context) (client.SecretStatus, error) {
	c.heard = "drop"
	return client.SecretStatus{Step: "keep"}, c.err
}

// control serves the first node's control socket until the test ends, and gives a client of it.
func (f *fixture) control(cluster Cluster) *client.Client {
	f.Helper()
	api := f.nodes[0].api
	api.cluster = cluster
	path := filepath.Join(f.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	f.must(lis, err)
	server := NewServer(api.Control(), nil)
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(lis) })
	f.Cleanup(func() {
		_ = server.Close()
		work.Wait()
	})
	return client.New(client.Options{Socket: path})
}

func TestControl(t *testing.T) {
	f := newFixture(t, 1, nil)
	cluster := &spokenTo{}
	c := f.control(cluster)
	if s, err := c.Status(t.Context()); err != nil || s.ClusterID != "c" || !s.Quorum || len(s.Nodes) != 1 || s.Nodes[0].Blobs != 7 {
		t.Errorf("status: %+v, %v", s, err)
	}
	if i, err := c.Invite(t.Context(), client.InviteRequest{TTL: "2h"}); err != nil || i.Token != "token" || i.Expires.Unix() != 1 {
		t.Errorf("invite: %+v, %v", i, err)
	}
	if j, err := c.Join(t.Context(), client.JoinRequest{Token: "x", Discard: true}); err != nil || j.ID != "i" || j.ClusterID != "c" {
		t.Errorf("join: %+v, %v", j, err)
	}
	for _, call := range []struct {
		do   func() error
		want any
	}{
		{func() error { _, err := c.Invite(t.Context(), client.InviteRequest{TTL: "2h"}); return err }, client.InviteRequest{TTL: "2h"}},
		{func() error { _, err := c.Join(t.Context(), client.JoinRequest{Token: "x", Discard: true}); return err }, client.JoinRequest{Token: "x", Discard: true}},
		{func() error { return c.Leave(t.Context()) }, "leave"},
		{func() error { return c.Remove(t.Context(), client.RemoveRequest{Node: "n", Force: true}) }, client.RemoveRequest{Node: "n", Force: true}},
		{func() error { return c.Transfer(t.Context(), client.TransferRequest{Node: "n"}) }, client.TransferRequest{Node: "n"}},
		{func() error {
			_, err := c.RotateSecret(t.Context(), client.RotateSecretRequest{KeepOld: "7d"})
			return err
		}, client.RotateSecretRequest{KeepOld: "7d"}},
		{func() error { _, err := c.DropSecret(t.Context()); return err }, "drop"},
		{func() error {
			_, err := c.RenewCertificates(t.Context(), client.RenewRequest{Names: []string{"a", "b"}})
			return err
		}, "a b"},
	} {
		cluster.heard, cluster.err = nil, nil
		if err := call.do(); err != nil || cluster.heard != call.want {
			t.Errorf("the cluster heard %+v (%v), want %+v", cluster.heard, err, call.want)
		}
		var got *client.Error
		cluster.err = &client.Error{Status: 409, Code: "LAST_COPY", Message: "no: it has the last copy"}
		if err := call.do(); !errors.As(err, &got) || *got != *cluster.err.(*client.Error) {
			t.Errorf("%+v: a refusal arrives as %v", call.want, err)
		}
		cluster.err = &Unavailable{Reason: "no quorum"}
		if err := call.do(); !errors.As(err, &got) || got.Status != 503 || got.Message != "no quorum" {
			t.Errorf("%+v: no quorum arrives as %v", call.want, err)
		}
	}
	if err := c.Health(t.Context(), true); err != nil {
		t.Error(err)
	}
}

// Over the public port anybody may look, and nobody may change anything.
func TestControlOverPublicPort(t *testing.T) {
	f := newFixture(t, 1, nil)
	cluster := &spokenTo{}
	f.nodes[0].api.cluster = cluster
	f.want(f.do("GET", "/api/v1/cluster/status", nil), 200, "")
	for _, call := range []string{"invite", "join", "leave", "remove", "transfer", "secret/rotate", "secret/drop"} {
		f.want(f.do("POST", "/api/v1/cluster/"+call, "{}"), 403, codeDenied)
	}
	f.want(f.do("POST", "/api/v1/acme/renew", "{}"), 403, codeDenied)
	if cluster.heard != nil {
		t.Errorf("the cluster heard %v", cluster.heard)
	}
}

// What the cluster is told rests on what it has heard: an administrator whose rights were taken tells it nothing more at a node
// that has yet to hear of that.
func TestClusterOrdersRestOnWhatHoldsNow(t *testing.T) {
	calls := []string{"secret/drop", "remove", "leave"}
	f := withAccess(t, 1+len(calls), nil)
	f.user("root")
	f.user("chief", "admin:**")
	chief, cluster := "Authorization: "+basic(f, "chief"), &spokenTo{}
	for i, call := range calls {
		n := f.nodes[i+1]
		n.api.cluster = cluster
		if f.want(f.doOn(n, "POST", "/api/v1/cluster/"+call, "{}", chief), 200, ""); cluster.heard == nil {
			t.Errorf("%s comes to nobody", call)
		}
		cluster.heard = nil
		n.log.set(func(l *nodeLog) { l.lagging = true })
	}
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.DeleteGrant{Grant: fsm.Grant{Subject: "chief", Right: "admin", Pattern: "**"}}))
	for i, call := range calls {
		if got := f.doOn(f.nodes[i+1], "POST", "/api/v1/cluster/"+call, "{}", chief); got.StatusCode != 401 || cluster.heard != nil {
			t.Errorf("%s: %d %s, and the cluster heard %v", call, got.StatusCode, got.body, cluster.heard)
		}
	}
}

// A stranger who sends no body is not waited for longer than elsewhere.
func TestControlDoesNotWaitForStrangers(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) { c.BodyIdle = 20 * time.Millisecond })
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.nodes[0].url, "http://"))
	f.must(conn, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.Write([]byte("POST /api/v1/access/open HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"))
	f.must(nil, err)
	f.must(nil, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("the connection doesn't end: %v", err)
	}
}

func TestControlBadRequests(t *testing.T) {
	f := newFixture(t, 1, nil)
	cluster := &spokenTo{}
	f.nodes[0].api.cluster = cluster
	lis := f.listen()
	server := NewServer(f.nodes[0].api.Control(), nil)
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(lis) })
	socket := &testNode{url: "http://" + lis.Addr().String()}
	for _, body := range []string{"", "hello", "[]", `{"tokn":"x"}`, `{"token":5}`} {
		f.want(f.doOn(socket, "POST", "/api/v1/cluster/join", body), 400, "INVALID")
	}
	f.want(f.doOn(socket, "POST", "/api/v1/cluster/join", `{"token":"`+strings.Repeat("x", maxControl)+`"}`), 413, codeUnsupported)
	f.must(nil, server.Close())
	work.Wait()
	if cluster.heard != nil {
		t.Errorf("the cluster heard %v", cluster.heard)
	}
}

// A call may take far longer than a body may be silent: a drain copies blobs.
func TestControlMayTakeLong(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) { c.BodyIdle = 50 * time.Millisecond })
	c := f.control(&spokenTo{takes: 300 * time.Millisecond})
	if err := c.Leave(t.Context()); err != nil {
		t.Errorf("a long call: %v", err)
	}
}

// What the operator does one after the other, as an import does, waits for no picture of all that there is; the next decision
// has it all.
func TestOperatorNeedsNoPicture(t *testing.T) {
	f := withAccess(t, 1, nil)
	c, access := f.control(&spokenTo{}), f.nodes[0].api.access
	f.user("root")
	d, err := access.directory()
	f.must(d, err)
	before := access.current.Load()
	for _, name := range []string{"ci1", "ci2", "ci3"} {
		f.must(c.AddRobot(t.Context(), client.RobotRequest{Name: name}))
	}
	if access.current.Load() != before {
		t.Error("each call of the operator makes the picture anew")
	}
	if d, err = access.directory(); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Find("ci3"); !ok {
		t.Error("the next decision is by the old picture")
	}
}
