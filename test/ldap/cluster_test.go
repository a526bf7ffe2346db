//go:build slapd

package ldap

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io/fs"
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

	"pier/api/client"
	"pier/cmd/pier/node"
	"pier/test/harness"
)

// registry is a cluster of three whose people are in a directory, with an image that developers may pull.
type registry struct {
	*harness.Cluster
	dir   *Server
	proxy *Proxy
	img   harness.Image
	ahead atomic.Int64 // of the nodes' time for what is remembered and tokens
	devs  string
}

func secretOf(name string) string { return name + "'s own secret" }

func basic(name string) string { return harness.Basic(name, secretOf(name)) }

func startRegistry(t testing.TB) *registry {
	t.Helper()
	g := &registry{dir: Start(t), img: harness.NewImage("team/app", "1", 100<<10)}
	g.proxy = g.dir.Proxy()
	alice, dora := g.dir.Person("alice", secretOf("alice")), g.dir.Person("dora", secretOf("dora"))
	g.dir.Person("carol", secretOf("carol"))
	g.devs = g.dir.Group("devs", alice, dora)
	g.Cluster = harness.StartTuned(t, 3, node.Tuning{Clock: func() time.Time { return time.Now().Add(time.Duration(g.ahead.Load())) }})
	ctl := g.Nodes[0].Control()
	_, err := ctl.AddUser(t.Context(), client.UserRequest{Name: "root", Password: secretOf("root")})
	g.Must(err)
	l := g.dir.provider(g.devs+"=developers", g.dir.Group("staff", alice)+"=staff")
	l.URLs, l.Filter = []string{g.proxy.URL}, "(&(uid={user})(!(employeeType=disabled)))"
	g.Must(ctl.AddProvider(t.Context(), client.ProviderRequest{Provider: client.Provider{Name: "corp", LDAP: &l}}))
	g.Must(ctl.Grant(t.Context(), client.Grant{Subject: "group:developers", Right: "pull", Pattern: "team/**"}))
	g.Must(g.Nodes[0].As(basic("root")).Push(g.img))
	g.everywhere("alice comes in", func(x *harness.Node) bool { return g.pull(x, basic("alice")) == 200 })
	t.Cleanup(g.noSecrets)
	return g
}

// pull asks for the image by its digest and gives the status.
func (g *registry) pull(x *harness.Node, credentials string) int {
	resp, _, err := x.As(credentials).Do("GET", "/v2/team/app/manifests/"+g.img.Digest.String(), nil)
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

func (g *registry) everywhere(what string, ok func(x *harness.Node) bool) {
	g.T.Helper()
	for _, x := range g.Nodes {
		if x.Running() {
			g.Eventually(x.Name+": "+what, func() bool { return ok(x) })
		}
	}
}

// tokens asks for an access token to pull with, and one that stands for the password.
func (g *registry) tokens(x *harness.Node, form url.Values) (status int, access, refresh string) {
	g.T.Helper()
	form.Set("service", "pier")
	form.Set("scope", "repository:team/app:pull")
	resp, body, err := x.Do("POST", "/token", []byte(form.Encode()), "Content-Type", "application/x-www-form-urlencoded")
	g.Must(err)
	var out struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if resp.StatusCode == http.StatusOK {
		g.Must(json.Unmarshal(body, &out))
	}
	return resp.StatusCode, out.Access, out.Refresh
}

func (g *registry) logIn(x *harness.Node, name string) (access, refresh string) {
	g.T.Helper()
	status, access, refresh := g.tokens(x, url.Values{"grant_type": {"password"}, "username": {name}, "password": {secretOf(name)}, "access_type": {"offline"}})
	if status != http.StatusOK || refresh == "" {
		g.T.Fatalf("%s gets no tokens: %d", name, status)
	}
	return access, refresh
}

func (g *registry) refresh(x *harness.Node, token string) (status int, access string) {
	status, access, _ = g.tokens(x, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
	return status, access
}

// noSecrets looks for what nobody must write down in all that the nodes have written.
func (g *registry) noSecrets() {
	for _, x := range g.Nodes {
		secrets := []string{secretOf("alice"), secretOf("carol"), secretOf("dora"), Secret}
		for _, s := range secrets {
			if n := x.Logged(s); n > 0 {
				g.T.Errorf("%s has %q in %d lines of its log", x.Name, s, n)
			}
		}
		_ = filepath.WalkDir(x.Dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil
			}
			data, _ := os.ReadFile(path)
			for _, s := range secrets {
				// The bind user's password is in the state and its log, as the documents say.
				if bytes.Contains(data, []byte(s)) && (s != Secret || strings.Contains(d.Name(), "audit")) {
					g.T.Errorf("%s has %q on its disk, in %s", x.Name, s, path)
				}
			}
			return nil
		})
	}
}

// People of the directory come in at every node, do what their groups may, and no more.
func TestPeopleOfTheDirectory(t *testing.T) {
	t.Parallel()
	g := startRegistry(t)
	token, _ := g.logIn(g.Nodes[0], "alice")
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	g.Must(err)
	if !strings.Contains(string(payload), `"groups":["developers"]`) {
		t.Errorf("the token says more of her groups than what grants need: %s", payload)
	}
	var work sync.WaitGroup // wrong logins take half a second each
	for _, x := range g.Nodes {
		for what, c := range map[string]struct {
			credentials string
			status      int
		}{
			"password": {basic("alice"), 200}, "written otherwise": {harness.Basic("ALICE", secretOf("alice")), 200}, "another's token": {"Bearer " + token, 200},
			"no group": {basic("carol"), 403}, "wrong": {harness.Basic("alice", "wrong"), 401}, "unknown": {basic("nobody"), 401}, "empty": {harness.Basic("dora", ""), 401},
			"injection": {harness.Basic("*)(uid=*", secretOf("alice")), 401}, "injection more": {harness.Basic("alice)(|(cn=*", secretOf("alice")), 401},
			"star": {harness.Basic("*", secretOf("alice")), 401}, "local": {basic("root"), 200},
		} {
			work.Go(func() {
				if got := g.pull(x, c.credentials); got != c.status {
					t.Errorf("%s: %s: %d, want %d", x.Name, what, got, c.status)
				}
			})
		}
		if resp, body, err := x.As(basic("alice")).Do("POST", "/v2/team/app/blobs/uploads/", nil); err != nil || resp.StatusCode != 403 {
			t.Errorf("%s: alice pushes: %s, %v", x.Name, body, err)
		}
	}
	work.Wait()
	// What is said to who is wrong doesn't tell why.
	var answers []string
	for _, credentials := range []string{harness.Basic("alice", "wrong"), basic("nobody"), harness.Basic("root", "wrong"), harness.Basic("*", "x")} {
		_, body, err := g.Nodes[1].As(credentials).Do("GET", "/v2/", nil)
		g.Must(err)
		answers = append(answers, string(body))
	}
	if len(slices.Compact(answers)) != 1 {
		t.Errorf("wrong logins are answered with %q", answers)
	}
	ctl := g.Nodes[1].Control()
	report, err := ctl.TestProvider(t.Context(), client.ProviderTest{Name: "corp", User: "alice", Password: secretOf("alice")})
	if err != nil || !report.OK || !slices.Equal(report.Groups, []string{"developers", "staff"}) {
		t.Errorf("%+v, %v", report, err)
	}
	findings, err := ctl.Doctor(t.Context())
	g.Must(err)
	found := 0
	for _, f := range findings {
		if f.Check == "provider corp" && f.Level == client.LevelOK {
			found++
		}
	}
	if found != len(g.Nodes) {
		t.Errorf("%d nodes say that they reach the directory: %+v", found, findings)
	}
	e, err := ctl.Explain(t.Context(), client.ExplainRequest{Subject: "alice", Right: "pull", Repository: "team/app"})
	if err != nil || !e.Allowed || e.Reason != "group:developers pull team/**" {
		t.Errorf("%+v, %v", e, err)
	}
}

// What changes in the directory counts with the next token, and what changes here at once.
func TestPeopleThatGo(t *testing.T) {
	t.Parallel()
	g := startRegistry(t)
	_, alice := g.logIn(g.Nodes[0], "alice")
	status, access := g.refresh(g.Nodes[1], alice)
	if status != 200 || g.pull(g.Nodes[2], "Bearer "+access) != 200 {
		t.Fatalf("a refresh token at another node: %d", status)
	}
	dora := "uid=dora," + People
	g.dir.Set(g.devs, "member", dora)
	if status, access := g.refresh(g.Nodes[1], alice); status != 200 || g.pull(g.Nodes[1], "Bearer "+access) != 403 {
		t.Errorf("out of the group: %d", status)
	}
	g.ahead.Add(int64(time.Minute))
	if got := g.pull(g.Nodes[0], basic("alice")); got != 403 {
		t.Errorf("out of the group, with the password: %d", got)
	}
	token, refresh := g.logIn(g.Nodes[0], "dora")
	g.dir.Set(dora, "employeeType", "disabled")
	if status, _ := g.refresh(g.Nodes[2], refresh); status != 401 {
		t.Errorf("disabled there: %d", status)
	}
	g.ahead.Add(int64(time.Minute))
	if got := g.pull(g.Nodes[0], basic("dora")); got != 401 {
		t.Errorf("disabled there, with the password: %d", got)
	}
	if got := g.pull(g.Nodes[0], "Bearer "+token); got != 200 {
		t.Errorf("disabled there, with a token that has not ended: %d", got)
	}
	g.dir.Set(dora, "employeeType")
	ctl, yes := g.Nodes[0].Control(), true
	_, err := ctl.AddUser(t.Context(), client.UserRequest{Name: "dora", Provider: "corp"})
	g.Must(err)
	g.everywhere("dora's token from before her record ends", func(x *harness.Node) bool { return g.pull(x, "Bearer "+token) == 401 })
	g.everywhere("dora comes in with a record", func(x *harness.Node) bool { return g.pull(x, basic("dora")) == 200 })
	token, refresh = g.logIn(g.Nodes[0], "dora")
	g.Must(ctl.ChangePrincipal(t.Context(), client.PrincipalChange{Name: "dora", Disabled: &yes}))
	g.everywhere("dora is out", func(x *harness.Node) bool {
		status, _ := g.refresh(x, refresh)
		return g.pull(x, basic("dora")) == 401 && g.pull(x, harness.Basic("Dora", secretOf("dora"))) == 401 && g.pull(x, "Bearer "+token) == 401 && status == 401
	})
}

// Without the directory, dead or stuck, tokens and local users go on as quickly as before; who needs it is told to come later.
func TestWithoutTheDirectory(t *testing.T) {
	g := startRegistry(t)
	// others are who needs no directory, and how long the slowest of them took.
	others := func(what, token string) (slowest time.Duration) {
		for range 20 {
			for _, x := range g.Nodes {
				for who, credentials := range map[string]string{"a token": "Bearer " + token, "a local user": basic("root")} {
					began := time.Now()
					if got := g.pull(x, credentials); got != 200 {
						t.Errorf("%s, the directory %s: %s: %d", x.Name, what, who, got)
					}
					slowest = max(slowest, time.Since(began))
				}
			}
		}
		return slowest
	}
	for what, fault := range map[string]struct{ begin, end func() }{
		"dead":  {func() { g.dir.Stop() }, func() { g.dir.Run() }},
		"stuck": {func() { g.proxy.Stick(true) }, func() { g.proxy.Stick(false) }},
	} {
		token, refresh := g.logIn(g.Nodes[0], "alice")
		g.ahead.Add(int64(2 * time.Minute)) // no password is remembered, and the token has three minutes more
		usual := others("there", token)
		fault.begin()
		waiting := make(chan int, 3*len(g.Nodes))
		for _, x := range g.Nodes {
			for range 3 {
				go func() { waiting <- g.pull(x, basic("alice")) }()
			}
		}
		slowest := others(what, token)
		t.Logf("the directory %s: a token and a local user within %s, at most; %s with it", what, slowest, usual)
		if slowest > 3*time.Second+4*usual {
			t.Errorf("they wait for it")
		}
		for range cap(waiting) {
			if got := <-waiting; got != 503 {
				t.Errorf("the directory %s: alice's password: %d", what, got)
			}
		}
		for _, x := range g.Nodes {
			if status, _ := g.refresh(x, refresh); status != 503 {
				t.Errorf("the directory %s: a refresh token: %d", what, status)
			}
			if x.Logged("provider corp") == 0 {
				t.Errorf("%s doesn't say which provider it is", x.Name)
			}
		}
		fault.end()
		g.everywhere("alice comes in again", func(x *harness.Node) bool { return g.pull(x, basic("alice")) == 200 })
		if status, _ := g.refresh(g.Nodes[1], refresh); status != 200 {
			t.Errorf("a refresh token again: %d", status)
		}
	}
}

// The last node, without a majority, still asks the directory.
func TestLastNodeAsksTheDirectory(t *testing.T) {
	t.Parallel()
	g := startRegistry(t)
	g.Nodes[0].Kill()
	g.Nodes[1].Kill()
	for name, want := range map[string]int{"dora": 200, "carol": 403, "nobody": 401} {
		if got := g.pull(g.Nodes[2], basic(name)); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
	g.Nodes[0].Start()
	g.Nodes[1].Start()
	g.WaitReady()
}

// How long a login takes that nobody remembers, and one that is wrong.
func BenchmarkLogin(b *testing.B) {
	g := startRegistry(b)
	for _, x := range []struct {
		name        string
		credentials string
		want        int
	}{
		{"right, of the directory", basic("alice"), 200}, {"right, of the cluster", basic("root"), 200}, {"wrong password there", harness.Basic("alice", "wrong"), 401},
		{"unknown everywhere", basic("nobody"), 401}, {"wrong password here", harness.Basic("root", "wrong"), 401},
	} {
		b.Run(x.name, func(b *testing.B) {
			for b.Loop() {
				g.ahead.Add(int64(20 * time.Minute)) // neither remembered nor counted
				if got := g.pull(g.Nodes[0], x.credentials); got != x.want {
					b.Fatalf("%d, want %d", got, x.want)
				}
			}
		})
	}
}
