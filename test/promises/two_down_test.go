package promises

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pier/api/client"
	"pier/cmd/pier/node"
	"pier/test/harness"
)

// Two of three nodes are down. The third knows by itself who may do what: it lets in by token, password and secret, gives
// tokens, and refuses who was refused before; also when it was started anew, alone.
func TestLastNodeLetsIn(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, node.Tuning{})
	alice, ci := g.user("alice", "pull:team/*"), g.robot("ci", "pull:team/app")
	gone := g.user("gone", "pull:team/*")
	other := harness.NewImage("secret/plans", "1", 10)
	g.Must(g.Nodes[0].As(g.root.basic()).Push(other))
	for _, s := range []*someone{alice, ci, gone} {
		g.logIn(g.Nodes[0], s)
	}
	yes := true
	g.Must(g.Nodes[0].Control().ChangePrincipal(t.Context(), client.PrincipalChange{Name: gone.name, Disabled: &yes}))
	last := g.Nodes[2]
	g.Eventually("the last node has all of it", func() bool {
		return last.As(alice.basic()).Pull(g.img) == nil && last.As(g.root.basic()).Pull(other) == nil && g.refuses(last.Client, gone)
	})
	for _, x := range others(g.Cluster, last) {
		x.Kill()
	}
	g.alone(last, alice, ci, gone, other)
	last.Kill()
	last.Start()
	g.Eventually("it answers", func() bool { _, _, err := last.Do("GET", "/healthz", nil); return err == nil })
	g.alone(last, alice, ci, gone, other)
	g.changesNothing(last.As(g.root.basic()))
	g.saysWhoIsMissing(last.Control())
	for _, x := range others(g.Cluster, last) {
		x.Start()
	}
	g.WaitReady()
	g.Must(last.As(g.root.basic()).PushPatiently(harness.NewImage("team/app", "2", 10)))
}

// refuses tells whether nothing that somebody has lets it in.
func (g *guarded) refuses(x *harness.Client, s *someone) bool {
	g.T.Helper()
	for _, try := range g.ways(s) {
		if try(x) == nil {
			return false
		}
	}
	return true
}

// alone holds the last node to what it promises without the others.
func (g *guarded) alone(last *harness.Node, alice, ci, gone *someone, other harness.Image) {
	t := g.T
	t.Helper()
	for _, s := range []*someone{alice, ci} {
		for way, try := range g.ways(s) {
			if err := try(last.Client); err != nil {
				t.Errorf("%s by %s: %v", s.name, way, err)
			}
		}
		fresh, _, err := tokens(last.Client, "pull", url.Values{"grant_type": {"password"}, "username": {s.name}, "password": {s.secret}})
		g.Must(err)
		for _, credentials := range []string{s.basic(), s.bearer(), "Bearer " + fresh} {
			g.Must(last.As(credentials).PullDigests(g.img))
		}
		wrong := *s
		wrong.secret += "x"
		if _, _, err := last.As(wrong.basic()).Want(http.StatusUnauthorized, "GET", "/v2/", nil); err != nil {
			t.Errorf("a wrong password or secret of %s: %v", s.name, err)
		}
		elsewhere := "/v2/secret/plans/blobs/" + other.AnyBlob().String()
		if _, _, err := last.As(s.basic()).Want(http.StatusForbidden, "GET", elsewhere, nil); err != nil {
			t.Errorf("%s where it has no right: %v", s.name, err)
		}
		if _, _, err := last.As(s.bearer()).Want(http.StatusForbidden, "GET", elsewhere, nil); err != nil {
			t.Errorf("%s with a token where it has no right: %v", s.name, err)
		}
	}
	if !g.refuses(last.Client, gone) {
		t.Error("who was disabled before is let in")
	}
	for _, credentials := range []string{"", "Bearer x.y.z", "Bearer " + alice.refresh, harness.Basic("nobody", "password")} {
		if _, _, err := last.As(credentials).Want(http.StatusUnauthorized, "GET", "/v2/team/app/manifests/"+g.img.Digest.String(), nil); err != nil {
			t.Errorf("with %.12q: %v", credentials, err)
		}
	}
	g.lists(last.As(alice.basic()))
}

// lists checks what may be old: it says so, and shows only what the caller may pull.
func (g *guarded) lists(x *harness.Client) {
	t := g.T
	t.Helper()
	for path, want := range map[string][]string{"/v2/team/app/tags/list": {"1"}, "/v2/_catalog": {"team/app"}, "/v2/team/app/manifests/1": nil} {
		body, resp, err := x.Want(http.StatusOK, "GET", path, nil)
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.HasPrefix(resp.Header.Get("Warning"), "299 ") {
			t.Errorf("%s: the Warning is %q", path, resp.Header.Get("Warning"))
		}
		var list struct{ Tags, Repositories []string }
		if want == nil && !bytes.Equal(body, g.img.Manifest) {
			t.Errorf("%s is %s", path, body)
		}
		if want != nil && (json.Unmarshal(body, &list) != nil || !slices.Equal(append(list.Tags, list.Repositories...), want)) {
			t.Errorf("%s is %s", path, body)
		}
	}
}

// saysWhoIsMissing checks that who wants to change the members hears what to do first.
func (g *guarded) saysWhoIsMissing(c *client.Client) {
	g.T.Helper()
	ctx := g.T.Context()
	_, invited := c.Invite(ctx, client.InviteRequest{})
	for what, err := range map[string]error{
		"invite": invited, "leave": c.Leave(ctx), "remove": c.Remove(ctx, client.RemoveRequest{Node: g.Nodes[0].Name, Force: true}),
	} {
		if err == nil || !strings.Contains(err.Error(), "no majority") || !strings.Contains(err.Error(), "`pier cluster status`") {
			g.T.Errorf("%s without a majority: %v", what, err)
		}
	}
}

// changesNothing checks that not even an administrator's change is taken, but for later.
func (g *guarded) changesNothing(x *harness.Client) {
	g.T.Helper()
	_, resp, err := x.Want(http.StatusServiceUnavailable, "PUT", "/v2/team/app/manifests/2", g.img.Manifest, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
	if err != nil || resp.Header.Get("Retry-After") == "" {
		g.T.Errorf("a push without a majority: %v", err)
	}
	_, _, err = x.Want(http.StatusServiceUnavailable, "POST", "/api/v1/access/grant", []byte(`{"subject":"anonymous","right":"pull","pattern":"team/**"}`))
	if err != nil {
		g.T.Errorf("a grant without a majority: %v", err)
	}
}
