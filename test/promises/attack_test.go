package promises

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pier/api/client"
	"pier/cluster/port"
	"pier/test/harness"
)

// Whoever has kept a removed member's certificate gets nothing with it, at no member and by no protocol.
func TestRemovedCertificateIsRefused(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 4)
	img := harness.NewImage("team/app", "1", 10)
	c.Must(c.Nodes[0].Push(img))
	c.Whole(img)
	removed := c.Follower()
	rest, id := others(c, removed), port.NodeID(removed.ID())
	secrets, err := port.LoadSecrets(removed.SecretFile())
	c.Must(err)
	thief, err := port.New(port.Config{ID: id, Listen: "127.0.0.1:0", Secrets: secrets, Network: port.System(), Logger: slog.New(slog.DiscardHandler)})
	c.Must(err)
	t.Cleanup(thief.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ask := func(x *harness.Node, path string) (int, string) {
		t.Helper()
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		transport := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return thief.Dial(ctx, port.ProtoPeer, "", x.ClusterAddress())
		}}
		defer transport.CloseIdleConnections()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer"+path, nil)
		c.Must(err)
		resp, err := transport.RoundTrip(r)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	if status, body := ask(rest[0], "/cluster/status"); status != http.StatusOK {
		t.Fatalf("while it is a member it is answered %d %s", status, body)
	}
	removed.Kill()
	c.Eventually("the member is removed", func() bool {
		return rest[0].Control().Remove(ctx, client.RemoveRequest{Node: removed.Name}) == nil
	})
	blob := "/blobs/" + img.AnyBlob().String()
	for _, x := range rest {
		c.Eventually(x.Name+" has heard of it", func() bool { status, _ := ask(x, "/cluster/status"); return status == http.StatusGone })
		for _, path := range []string{blob, "/audit", "/doctor", "/cluster/hello", "/cluster/secrets", "/cluster/secrets/x", "/relay/v2/", "/v2/", "/"} {
			if status, body := ask(x, path); status != http.StatusGone || strings.Contains(body, "{") {
				t.Errorf("%s answers a removed member's %s with %d %s", x.Name, path, status, body)
			}
		}
		for _, proto := range []string{port.ProtoRaft, port.ProtoGossip} {
			conn, err := thief.Dial(ctx, proto, "", x.ClusterAddress())
			if err == nil {
				_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			if err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("%s lets a removed member in by %s: %v", x.Name, proto, err)
			}
		}
		guest, err := thief.Dial(ctx, port.ProtoJoin, "", x.ClusterAddress())
		c.Must(err)
		_, err = io.WriteString(guest, `{"node":{"id":"`+string(id)+`","name":"thief"},"key":"AAAA"}`)
		c.Must(err)
		_ = guest.SetReadDeadline(time.Now().Add(20 * time.Second))
		if said, err := io.ReadAll(guest); strings.Contains(string(said), "secrets") || !strings.Contains(string(said), "error") {
			t.Errorf("%s answers who wants to join without an invite with %q %v", x.Name, said, err)
		}
		_ = guest.Close()
	}
	after := harness.NewImage("team/app", "2", 10)
	c.Must(rest[0].PushPatiently(after))
	c.Whole(img, after)
}

// Somebody on the way has kept every gossip packet of a member's death, its return and another's removal. Played back again and
// again, whole, cut short and with bits turned, they neither end a node nor keep anybody from pushing and pulling, and what
// they say of members doesn't stay.
func TestReplayedGossip(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 4)
	c.Net.Tape()
	back, removed := c.Nodes[1], c.Nodes[3]
	rest := c.Nodes[:3]
	back.Kill()
	c.Eventually("gossip calls it dead", func() bool { return stateOf(rest[0], back.Name) == "dead" })
	back.Start()
	c.WaitReady()
	removed.Stop()
	c.Eventually("the member is removed", func() bool {
		return rest[0].Control().Remove(t.Context(), client.RemoveRequest{Node: removed.Name}) == nil
	})
	c.Eventually("three are left", func() bool { return members(t, rest[0]) == 3 })
	c.Eventually("some packets have passed", func() bool { return len(c.Net.Taped()) >= 20 })
	tape := c.Net.Taped()
	stranger, err := net.ListenPacket("udp", "127.0.0.1:0")
	c.Must(err)
	defer func() { _ = stranger.Close() }()
	send := func(x *harness.Node, b []byte) {
		to, err := net.ResolveUDPAddr("udp", x.ClusterAddress())
		c.Must(err)
		_, _ = stranger.WriteTo(b, to)
	}
	noise := make([]byte, 1200)
	const rounds = 60
	for i := range rounds {
		for _, p := range tape {
			turned := slices.Clone(p.Data)
			turned[i%len(turned)] ^= 1
			_, _ = rand.Read(noise)
			for _, x := range rest {
				for _, b := range [][]byte{p.Data, turned, p.Data[:i%len(p.Data)], noise} {
					send(x, b)
				}
			}
		}
		if i%10 == 0 {
			img := harness.NewImage("team/app", fmt.Sprint(i), 10)
			c.Must(rest[i/10%3].PushPatiently(img))
			c.Whole(img)
		}
	}
	for _, x := range rest {
		c.Eventually(x.Name+" sees three members that are well", func() bool { return members(t, x) == 3 })
	}
	t.Logf("%d packets were played back %d times", len(tape), rounds)
}

// stateOf is what a node shows of another.
func stateOf(x *harness.Node, name string) string {
	s, err := x.Control().Status(context.Background())
	if err != nil {
		return ""
	}
	for _, n := range s.Nodes {
		if n.Name == name {
			return n.State
		}
	}
	return "none"
}

// Where UDP doesn't pass the cluster works, and doctor says so; it says which node is silent, too, and that all is well again.
func TestDoctorSeesTheNetwork(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	found := func(check, level string) []string {
		t.Helper()
		all, err := c.Nodes[0].Control().Doctor(t.Context())
		c.Must(err)
		var nodes []string
		for _, f := range all {
			if f.Check == check && f.Level == level {
				nodes = append(nodes, f.Node)
			}
		}
		return nodes
	}
	c.Eventually("doctor finds nothing", func() bool {
		return len(found("gossip", client.LevelOK)) == 3 && len(found("clock", client.LevelOK)) == 2 && len(found("versions", client.LevelOK)) == 1
	})
	c.Net.Mute(true)
	c.Eventually("doctor says that UDP is blocked", func() bool { return len(found("gossip", client.LevelWarning)) == 3 })
	img := harness.NewImage("team/app", "1", 10)
	c.Must(c.Nodes[1].PushPatiently(img))
	c.Whole(img)
	c.Net.Mute(false)
	c.Eventually("UDP passes again", func() bool { return len(found("gossip", client.LevelOK)) == 3 })
	c.Nodes[2].Kill()
	c.Eventually("doctor says who is silent, and that two of three are a quorum", func() bool {
		return len(found("reach", client.LevelProblem)) == 1 && len(found("quorum", client.LevelOK)) == 1
	})
	c.Nodes[1].Kill()
	c.Eventually("there is no quorum", func() bool {
		return len(found("quorum", client.LevelProblem)) == 1 && len(found("reach", client.LevelProblem)) == 2
	})
	if found("gossip", client.LevelWarning) != nil {
		t.Error("a node that is down counts as one behind a firewall")
	}
	c.Nodes[1].Start()
	c.Nodes[2].Start()
	c.WaitReady()
}
