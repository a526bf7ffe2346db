package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"pier/api/auth"
	"pier/fsm"
)

// withAccess starts n nodes with the same token keys, as one cluster's are.
func withAccess(t testing.TB, n int, change func(*Config)) *fixture {
	t.Helper()
	seed := make([]byte, 32)
	return newFixture(t, n, func(c *Config) {
		keys, err := auth.NewKeys([][]byte{seed})
		if err != nil {
			t.Fatal(err)
		}
		c.Access.Keys = func() *auth.Keys { return keys }
		c.Access.Hold = time.Millisecond
		if change != nil {
			change(c)
		}
	})
}

// user makes a user with the password NAME's-password and grants as RIGHT:PATTERN.
func (f *fixture) user(name string, grants ...string) {
	f.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(name+"'s-password"), bcrypt.MinCost) // the real cost would be most of the test's time
	f.must(hash, err)
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutPrincipal{Principal: fsm.Principal{Name: name, Password: hash}}))
	f.grant(name, grants...)
}

func (f *fixture) grant(subject string, grants ...string) {
	f.Helper()
	for _, g := range grants {
		right, pattern, _ := strings.Cut(g, ":")
		f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutGrant{Grant: fsm.Grant{Subject: subject, Right: right, Pattern: pattern}}))
	}
}

func mustPrefixes(t *testing.T, all ...string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, s := range all {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func basic(f *fixture, name string) string {
	r, err := http.NewRequestWithContext(f.Context(), "GET", "http://x", nil)
	f.must(r, err)
	r.SetBasicAuth(name, name+"'s-password")
	return r.Header.Get("Authorization")
}

// token asks a node for one, as docker does; an empty name asks for an anonymous one.
func (f *fixture) token(n *testNode, name string, scopes ...string) string {
	f.Helper()
	var headers []string
	if name != "" {
		headers = []string{"Authorization: " + basic(f, name)}
	}
	query := url.Values{"service": {tokenService}, "scope": scopes}
	got := f.want(f.doOn(n, "GET", "/token?"+query.Encode(), nil, headers...), 200, "")
	var out tokenAnswer
	f.must(nil, json.Unmarshal(got.body, &out))
	if out.Token == "" || out.Token != out.AccessToken || out.ExpiresIn < 60 {
		f.Fatalf("the token's answer: %s", got.body)
	}
	return out.Token
}

// endpoints lists a request for every entry of the route table.
func endpoints(repo string) []struct {
	kind         kind
	method, path string
} {
	d := "sha256:" + strings.Repeat("0", 64)
	upload := "/v2/" + repo + "/blobs/uploads/node-1.none"
	return []struct {
		kind         kind
		method, path string
	}{
		{kindRoot, "GET", "/v2/"}, {kindRoot, "HEAD", "/v2/"}, {kindCatalog, "GET", "/v2/_catalog"}, {kindCatalog, "HEAD", "/v2/_catalog"},
		{kindTags, "GET", "/v2/" + repo + "/tags/list"}, {kindTags, "HEAD", "/v2/" + repo + "/tags/list"},
		{kindReferrers, "GET", "/v2/" + repo + "/referrers/" + d}, {kindReferrers, "HEAD", "/v2/" + repo + "/referrers/" + d},
		{kindManifest, "GET", "/v2/" + repo + "/manifests/1"}, {kindManifest, "HEAD", "/v2/" + repo + "/manifests/1"},
		{kindManifest, "PUT", "/v2/" + repo + "/manifests/2"}, {kindManifest, "DELETE", "/v2/" + repo + "/manifests/none"},
		{kindBlob, "GET", "/v2/" + repo + "/blobs/" + d}, {kindBlob, "HEAD", "/v2/" + repo + "/blobs/" + d}, {kindBlob, "DELETE", "/v2/" + repo + "/blobs/" + d},
		{kindUploads, "POST", "/v2/" + repo + "/blobs/uploads/?digest=wrong"}, {kindUpload, "GET", upload}, {kindUpload, "PATCH", upload},
		{kindUpload, "PUT", upload + "?digest=" + d}, {kindUpload, "DELETE", upload},
	}
}

func emptyIndex() []byte { return []byte(`{"schemaVersion":2,"manifests":[]}`) }

// No entry of the table can be without a need, nor without a request in the matrix below.
func TestEveryEndpointSaysWhatItNeeds(t *testing.T) {
	f := withAccess(t, 1, nil)
	tried := map[string]bool{}
	for _, e := range endpoints("a") {
		tried[e.kind.String()+" "+e.method] = true
	}
	for k, methods := range f.nodes[0].api.table {
		for m, e := range methods {
			if e.needs < needsCaller || e.needs > needsDelete {
				t.Errorf("%s %s needs nothing", m, k)
			}
			if !tried[k.String()+" "+m] {
				t.Errorf("%s %s is not in the matrix", m, k)
			}
			if changes := m != "GET" && m != "HEAD"; changes && e.needs <= needsPull {
				t.Errorf("%s %s changes something for who may only pull", m, k)
			}
		}
	}
}

// Who was granted delete and not pull learns nothing of what there is: the answer is the same for what isn't there.
func TestDeletingNeedsPulling(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	f.user("broom", "delete:**")
	index := digest.FromBytes(emptyIndex())
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutManifest{Repo: "secret/app", Digest: index, MediaType: fsm.TypeOCIIndex, Body: emptyIndex(), Tags: []fsm.Tag{"1"}}))
	broom := basic(f, "broom")
	bearer := "Bearer " + f.token(f.nodes[0], "broom", "repository:secret/app:delete", "repository:other/app:delete")
	for _, authorization := range []string{broom, bearer} {
		for _, path := range []string{"manifests/1", "manifests/2", "manifests/" + index.String(), "blobs/" + index.String()} {
			there := f.want(f.do("DELETE", "/v2/secret/app/"+path, nil, "Authorization: "+authorization), 403, codeDenied)
			none := f.want(f.do("DELETE", "/v2/other/app/"+path, nil, "Authorization: "+authorization), 403, codeDenied)
			if want := strings.ReplaceAll(string(none.body), "other", "secret"); string(there.body) != want {
				t.Errorf("%s: %s, and of what isn't there %s", path, there.body, none.body)
			}
		}
	}
	if got := f.do("DELETE", "/v2/secret/app/manifests/1", nil, "Authorization: "+broom); !strings.Contains(string(got.body), "only what it may pull") {
		t.Errorf("who lacks the right to pull is told %s", got.body)
	}
	if got := f.do("PUT", "/v2/secret/app/manifests/1", nil, "Authorization: "+broom); !strings.Contains(string(got.body), "has no right to push") {
		t.Errorf("who lacks the right to push is told %s", got.body)
	}
	f.grant("broom", "pull:secret/**")
	f.want(f.do("DELETE", "/v2/secret/app/manifests/1", nil, "Authorization: "+broom), 202, "")
}

// Nobody is called as those are who have no name.
func TestNobodyIsCalledOperator(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	for _, name := range []string{"operator", "Operator", "anonymous", "ANONYMOUS"} {
		for _, path := range []string{"user/add", "robot/add"} {
			body := fmt.Sprintf(`{"name":%q}`, name)
			if path == "user/add" {
				body = fmt.Sprintf(`{"name":%q,"password":"long enough"}`, name)
			}
			f.want(f.do("POST", "/api/v1/access/"+path, []byte(body), "Authorization: "+basic(f, "root")), 400, codeInvalid)
		}
	}
}

// The metrics are for who may pull everything, and for who has the machine.
func TestWhoSeesTheMetrics(t *testing.T) {
	open := false
	f := withAccess(t, 1, func(c *Config) { c.MetricsOpen = open })
	f.want(f.do("GET", "/metrics", nil, "X-Forwarded-For: 192.0.2.1"), 200, "")
	f.user("root")
	f.user("prometheus", "pull:**")
	f.user("alice", "pull:team/**")
	const proxied = "X-Forwarded-For: 192.0.2.1" // else it is this machine
	f.want(f.do("GET", "/metrics", nil), 200, "")
	f.wantHeader(f.want(f.do("GET", "/metrics", nil, proxied), 401, codeUnauthorized), `WWW-Authenticate: Basic realm="pier"`)
	f.want(f.do("HEAD", "/metrics", nil, proxied), 401, codeUnauthorized)
	f.want(f.do("GET", "/metrics", nil, "Via: 1.1 proxy"), 401, codeUnauthorized)
	f.want(f.do("GET", "/metrics", nil, proxied, "Authorization: "+basic(f, "alice")), 403, codeDenied)
	f.want(f.do("GET", "/metrics", nil, proxied, "Authorization: "+basic(f, "nobody")), 401, codeUnauthorized)
	for _, name := range []string{"root", "prometheus"} {
		f.want(f.do("GET", "/metrics", nil, proxied, "Authorization: "+basic(f, name)), 200, "")
	}
	open = true
	f = withAccess(t, 1, func(c *Config) { c.MetricsOpen = open })
	f.user("root")
	f.want(f.do("GET", "/metrics", nil, proxied), 200, "")
}

// The state and the decision mean the same by a grant's subject.
func TestSubjectsAgree(t *testing.T) {
	if fsm.SubjectAnonymous != auth.Anonymous || fsm.SubjectGroup+"x" != auth.GroupSubject("x") {
		t.Error("a grant to everybody or to a group is not what the state takes it for")
	}
}

// Nobody in particular is told where to log in, whatever there is behind the name.
func TestChallenge(t *testing.T) {
	f := withAccess(t, 2, nil)
	f.want(f.do("GET", "/v2/", nil), 200, "") // open until somebody is there
	f.user("root")
	host := strings.TrimPrefix(f.nodes[0].url, "http://")
	realm := `Bearer realm="http://` + host + `/token",service="pier"`
	for path, scope := range map[string]string{
		"/v2/": "", "/v2/_catalog": `,scope="registry:catalog:*"`, "/v2/a/b/tags/list": `,scope="repository:a/b:pull"`,
	} {
		got := f.want(f.do("GET", path, nil), 401, codeUnauthorized)
		f.wantHeader(got, "WWW-Authenticate: "+realm+scope)
	}
	got := f.want(f.do("POST", "/v2/a/blobs/uploads/", nil), 401, codeUnauthorized)
	f.wantHeader(got, "WWW-Authenticate: "+realm+`,scope="repository:a:pull,push"`)
	pull := f.token(f.nodes[1], "root", "repository:a:pull")
	got = f.want(f.do("POST", "/v2/a/blobs/uploads/", nil, "Authorization: "+"Bearer "+pull), 401, codeUnauthorized)
	f.wantHeader(got, "WWW-Authenticate: "+realm+`,scope="repository:a:pull,push",error="insufficient_scope"`)
	got = f.want(f.do("POST", "/v2/a/blobs/uploads/", nil, "Authorization: "+"bearer "+pull), 401, codeUnauthorized)
	f.wantHeader(got, "WWW-Authenticate: "+realm+`,scope="repository:a:pull,push",error="insufficient_scope"`)
	got = f.want(f.do("GET", "/v2/", nil, "Authorization: Bearer x.y.z"), 401, codeUnauthorized)
	f.wantHeader(got, "WWW-Authenticate: "+realm+`,error="invalid_token"`)
	for _, bad := range []string{"Basic !!!", "Basic", "Digest x", "", "Bearer", basic(f, "nobody")} {
		f.want(f.do("GET", "/v2/", nil, "Authorization: "+bad), 401, codeUnauthorized)
	}
	f.want(f.do("GET", "/v2/", nil, "X-Forwarded-Host: evil.example"), 401, codeUnauthorized)
	f.wantHeader(f.do("GET", "/v2/", nil, "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https"), "WWW-Authenticate: "+realm)
	two, err := http.NewRequestWithContext(t.Context(), "GET", f.nodes[0].url+"/v2/", nil)
	f.must(two, err)
	two.Header["Authorization"] = []string{"Bearer " + pull, basic(f, "root")}
	resp, err := f.client.Do(two)
	f.must(resp, err)
	_ = resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("two Authorization headers: %d", resp.StatusCode)
	}
}

// A token ends with what it rests on, on every node that has heard of the change.
func TestTokensEnd(t *testing.T) {
	now := time.Now()
	f := withAccess(t, 2, func(c *Config) { c.Access.Now = func() time.Time { return now } })
	f.user("root")
	f.user("alice", "pull:a")
	token := f.token(f.nodes[0], "alice", "repository:a:pull")
	get := func() int {
		return f.doOn(f.nodes[1], "GET", "/v2/a/tags/list", nil, "Authorization: "+"Bearer "+token).StatusCode
	}
	if got := get(); got != 404 {
		t.Fatalf("a good token: %d", got)
	}
	now = now.Add(6 * time.Minute)
	if got := get(); got != 401 {
		t.Errorf("an old token: %d", got)
	}
	token = f.token(f.nodes[0], "alice", "repository:a:pull")
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.DeleteGrant{Grant: fsm.Grant{Subject: "alice", Right: "pull", Pattern: "a"}}))
	if got := get(); got != 403 {
		t.Errorf("a token whose grant is gone: %d", got)
	}
	f.grant("alice", "pull:a")
	access, err := f.nodes[0].state.Access()
	f.must(access, err)
	for _, p := range access.Principals {
		if p.Name == "alice" {
			was := p.Generation
			p.Disabled = true
			f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutPrincipal{Principal: p, Was: was}))
		}
	}
	if got := get(); got != 401 {
		t.Errorf("a disabled user's token: %d", got)
	}
	f.want(f.do("GET", "/v2/a/tags/list", nil, "Authorization: "+basic(f, "alice")), 401, codeUnauthorized)
}

// The OAuth2 form, with a refresh token in place of the password.
func TestTokenForms(t *testing.T) {
	f := withAccess(t, 2, nil)
	f.user("root")
	post := func(form url.Values) answer {
		return f.do("POST", "/token", []byte(form.Encode()), "Content-Type: application/x-www-form-urlencoded")
	}
	form := url.Values{"grant_type": {"password"}, "username": {"root"}, "password": {"root's-password"}, "service": {"pier"}, "access_type": {"offline"}, "scope": {"repository:a:pull"}}
	var first, second tokenAnswer
	f.must(nil, json.Unmarshal(f.want(post(form), 200, "").body, &first))
	if first.RefreshToken == "" {
		t.Fatal("no refresh token")
	}
	form = url.Values{"grant_type": {"refresh_token"}, "refresh_token": {first.RefreshToken}, "service": {"pier"}, "scope": {"repository:a:push,pull"}}
	f.must(nil, json.Unmarshal(f.want(post(form), 200, "").body, &second))
	f.want(f.doOn(f.nodes[1], "POST", "/v2/a/blobs/uploads/", nil, "Authorization: "+"Bearer "+second.Token), 202, "")
	f.want(f.do("GET", "/v2/", nil, "Authorization: "+"Bearer "+first.RefreshToken), 401, codeUnauthorized)
	for name, bad := range map[string]url.Values{
		"wrong password": {"grant_type": {"password"}, "username": {"root"}, "password": {"x"}},
		"unknown user":   {"grant_type": {"password"}, "username": {"who"}, "password": {"x"}},
		"access token":   {"grant_type": {"refresh_token"}, "refresh_token": {first.Token}},
	} {
		if got := post(bad); got.StatusCode != 401 {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
		}
	}
	f.want(post(url.Values{"grant_type": {"magic"}}), 400, codeUnsupported)
	f.want(post(url.Values{"grant_type": {strings.Repeat("x", maxForm)}}), 400, codeUnsupported)
	f.want(f.do("GET", "/token?scope=nonsense", nil), 400, codeUnsupported)
	f.want(f.do("GET", "/token", nil, "Authorization: "+"Bearer "+first.Token), 401, codeUnauthorized)
}

// What comes of a robot's secret ends with it: else a secret that ends in a day would be good for a month.
func TestTokensDontOutliveTheirSecret(t *testing.T) {
	now := time.Now()
	f := withAccess(t, 1, func(c *Config) { c.Access.Now = func() time.Time { return now } })
	f.user("root")
	text, kept := auth.NewSecret()
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutPrincipal{Principal: fsm.Principal{
		Name: "ci", Robot: true, Secrets: []fsm.RobotSecret{{ID: kept.ID, Hash: kept.Hash, Expires: millis(now.Add(time.Hour))}},
	}}))
	secret := url.Values{"grant_type": {"password"}, "username": {"ci"}, "password": {text}, "access_type": {"offline"}}
	if first := f.given(f.postToken(f.nodes[0], secret)); first.ExpiresIn != 270 || first.RefreshToken != "" {
		t.Errorf("%+v", first)
	}
	now = now.Add(58 * time.Minute)
	if second := f.given(f.postToken(f.nodes[0], secret)); second.ExpiresIn > 90 || second.ExpiresIn < 80 {
		t.Errorf("two minutes before the end: %+v", second)
	}
	now = now.Add(3 * time.Minute)
	f.want(f.postToken(f.nodes[0], secret), 401, codeUnauthorized)
}

// A node that has yet to hear that the registry was closed, or a user shut out, lets nobody at what it hears with that.
func TestAdmittedByAnOldState(t *testing.T) {
	requests := []struct{ method, path string }{
		{"GET", "/manifests/1"}, {"GET", "/manifests/" + digest.FromBytes(emptyIndex()).String()}, {"HEAD", "/blobs/BLOB"}, {"GET", "/tags/list"},
		{"DELETE", "/manifests/1"}, {"PUT", "/blobs/uploads/node-0.u?digest=BLOB"}, {"POST", "/blobs/uploads/?mount=BLOB&from=team/app"},
		{"POST", "/blobs/uploads/?digest=" + digest.FromString("").String()},
	}
	for how, was := range map[string]bool{"open": false, "closed": true} {
		f := withAccess(t, len(requests)+1, func(c *Config) { c.Ready = func(bool) error { return errors.New("it has yet to hear of the others") } })
		blob := f.pushBlob(f.nodes[0], "team/app", randomBytes(100))
		f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutManifest{Repo: "team/app", Digest: digest.FromBytes(emptyIndex()), MediaType: fsm.TypeOCIIndex, Body: emptyIndex(), Tags: []fsm.Tag{"1"}}))
		var headers []string
		if was {
			f.user("root")
			f.user("alice", "push:**", "delete:**")
			headers = []string{"Authorization: " + basic(f, "alice")}
		}
		for _, n := range f.nodes[1:] {
			n.log.set(func(l *nodeLog) { l.lagging = true })
		}
		if was {
			f.must(f.nodes[0].log.Propose(f.Context(), fsm.DeletePrincipal{Name: "alice"}))
		} else {
			f.user("root")
			f.grant("anonymous", "pull:public/**")
		}
		for i, x := range requests {
			path := "/v2/team/app" + strings.Replace(x.path, "BLOB", blob.String(), 1)
			got := f.doOn(f.nodes[i+1], x.method, path, nil, headers...)
			if got.StatusCode != 401 || got.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: %s %s: %d %s", how, x.method, x.path, got.StatusCode, got.body)
			}
		}
		f.want(f.do("GET", "/v2/team/app/manifests/1", nil, "Authorization: "+basic(f, "root")), 200, "")
	}
}

// Where a first user is to be made, nobody is quicker.
func TestClosedUntilTheFirstUser(t *testing.T) {
	f := withAccess(t, 1, func(c *Config) { c.Access.Closed = true })
	f.want(f.do("POST", "/v2/a/blobs/uploads/", nil), 401, codeUnauthorized)
	f.user("root")
	f.want(f.do("POST", "/v2/a/blobs/uploads/", nil), 401, codeUnauthorized)
	f.want(f.do("POST", "/v2/a/blobs/uploads/", nil, "Authorization: "+basic(f, "root")), 202, "")
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.SetSetting{Key: fsm.SettingAccess, Value: fsm.AccessOpen}))
	f.want(f.do("POST", "/v2/a/blobs/uploads/", nil), 202, "")
}

// A change waits for a node that starts, and not for one that was removed.
func TestChangesWaitForTheStart(t *testing.T) {
	f := withAccess(t, 1, nil)
	for _, x := range []struct {
		ready  error
		status int
	}{{ErrStarting, 404}, {errors.New("it was removed"), 503}} {
		tries := 0
		f.nodes[0].api.cfg.Ready = func(bool) error {
			if tries++; tries == 3 {
				f.nodes[0].log.set(func(l *nodeLog) { l.alone = false })
			}
			return x.ready
		}
		f.nodes[0].log.set(func(l *nodeLog) { l.alone = true })
		if got := f.do("DELETE", "/v2/a/manifests/1", nil); got.StatusCode != x.status {
			t.Errorf("%v: %d %s", x.ready, got.StatusCode, got.body)
		}
	}
}

// A mount from where the caller may not look is a mount of what isn't there; and the catalog shows what may be pulled.
func TestOthersRepositoriesStayHidden(t *testing.T) {
	f := withAccess(t, 1, nil)
	secret := f.pushBlob(f.nodes[0], "secret/app", randomBytes(100))
	f.user("root")
	f.user("alice", "push:team/**")
	f.user("bob", "push:team/**", "pull:*")
	alice, root := basic(f, "alice"), basic(f, "root")
	f.wantHeader(f.want(f.do("GET", "/v2/secret/app/blobs/"+secret.String(), nil, "Authorization: "+root), 200, ""), "Cache-Control: "+cacheOwn)
	for _, query := range []string{"mount=" + secret.String() + "&from=secret/app", "mount=" + secret.String(), "mount=" + secret.String() + "&from=secret/none"} {
		f.want(f.do("POST", "/v2/team/app/blobs/uploads/?"+query, nil, "Authorization: "+alice), 202, "")
	}
	for _, authorization := range []string{basic(f, "bob"), "Bearer " + f.token(f.nodes[0], "root", "repository:team/app:push")} {
		f.want(f.do("POST", "/v2/team/app/blobs/uploads/?mount="+secret.String(), nil, "Authorization: "+authorization), 202, "")
	}
	f.want(f.do("POST", "/v2/team/app/blobs/uploads/?mount="+secret.String(), nil, "Authorization: "+root), 201, "")
	for i := range 5 {
		f.must(f.nodes[0].log.Propose(f.Context(), fsm.MountBlob{Repo: fsm.Repo(fmt.Sprintf("team/m%d", i)), Digest: secret}))
		f.must(f.nodes[0].log.Propose(f.Context(), fsm.MountBlob{Repo: fsm.Repo(fmt.Sprintf("secret/m%d", i)), Digest: secret}))
	}
	// A full page doesn't tell that something hidden comes behind it.
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.MountBlob{Repo: "zoo", Digest: secret}))
	f.wantHeader(f.want(f.do("GET", "/v2/_catalog?n=6", nil, "Authorization: "+alice), 200, ""), "Link: ")
	f.wantHeader(f.want(f.do("GET", "/v2/_catalog?n=5", nil, "Authorization: "+alice), 200, ""), "Link: "+`</v2/_catalog?last=team%2Fm3&n=5>; rel="next"`)
	var seen []string
	f.nodes[0].api.maxLooked = 1
	for path := "/v2/_catalog?n=2"; path != ""; {
		got := f.want(f.do("GET", path, nil, "Authorization: "+alice), 200, "")
		var page struct{ Repositories []string }
		f.must(nil, json.Unmarshal(got.body, &page))
		seen = append(seen, page.Repositories...)
		path, _, _ = strings.Cut(strings.TrimPrefix(got.Header.Get("Link"), "<"), ">")
		if strings.Contains(path, "secret") {
			t.Fatalf("the next page names what alice may not see: %s", path)
		}
	}
	if want := "team/app team/m0 team/m1 team/m2 team/m3 team/m4"; strings.Join(seen, " ") != want {
		t.Errorf("alice sees %v", seen)
	}
}

// A client that didn't ask for a mount's source is told to, if it would get it; who may not pull there learns nothing.
func TestMountAsksForItsSource(t *testing.T) {
	f := withAccess(t, 1, nil)
	ours, secret := f.pushBlob(f.nodes[0], "team/base", randomBytes(100)), f.pushBlob(f.nodes[0], "secret/app", randomBytes(100))
	f.user("root")
	f.user("alice", "push:team/**")
	mount := "/v2/team/app/blobs/uploads/?mount=" + ours.String() + "&from=team/base"
	both := `scope="repository:team/base:pull repository:team/app:pull,push"`
	for _, headers := range [][]string{nil, {"Authorization: Bearer " + f.token(f.nodes[0], "alice", "repository:team/app:pull,push")}} {
		got := f.want(f.do("POST", mount, nil, headers...), 401, codeUnauthorized)
		if challenge := got.Header.Get("WWW-Authenticate"); !strings.Contains(challenge, both) {
			t.Errorf("the challenge: %s", challenge)
		}
	}
	for _, alone := range []string{"", "&from=team/app", "&from=UPPER"} {
		got := f.want(f.do("POST", "/v2/team/app/blobs/uploads/?mount="+ours.String()+alone, nil), 401, codeUnauthorized)
		if challenge := got.Header.Get("WWW-Authenticate"); !strings.Contains(challenge, `scope="repository:team/app:pull,push"`) {
			t.Errorf("the challenge of a mount%s: %s", alone, challenge)
		}
	}
	token := "Authorization: Bearer " + f.token(f.nodes[0], "alice", "repository:team/base:pull repository:team/app:pull,push", "repository:secret/app:pull")
	f.want(f.do("POST", mount, nil, token), 201, "")
	for _, from := range []string{"secret/app", "secret/none", "UPPER"} {
		f.want(f.do("POST", "/v2/team/app/blobs/uploads/?mount="+secret.String()+"&from="+from, nil, token), 202, "")
	}
}

// Wrong passwords are refused alike, and slow down only who sends them: each counts once.
func TestGuessingOverHTTP(t *testing.T) {
	now := time.Now()
	f := withAccess(t, 1, func(c *Config) { c.Access.Now = func() time.Time { return now } })
	f.user("root")
	token := f.token(f.nodes[0], "root", "repository:a:pull")
	guess := func() answer { return f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "nobody")) }
	for range 5 {
		f.want(guess(), 401, codeUnauthorized)
	}
	if got := f.want(guess(), 429, codeTooManyRequests); got.Header.Get("Retry-After") == "" || got.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("who has to wait is told %v", got.Header)
	}
	f.want(f.do("GET", "/v2/a/tags/list", nil, "Authorization: "+"Bearer "+token), 404, codeNameUnknown)
}

// What was proven on one state is not what another one says.
func TestProvenOnAnOldState(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	f.user("alice", "pull:a")
	a, x := f.nodes[0].api, &exchange{}
	r := httptest.NewRequest("GET", "/v2/a/tags/list", nil)
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	r.Header.Set("Authorization", basic(f, "alice"))
	a.prove(r)
	if err := a.admit(r, needsPull, route{repo: "a"}); err != nil || x.proof == nil {
		t.Fatalf("a right password: %v, %+v", err, x.proof)
	}
	known, err := f.nodes[0].state.Access()
	f.must(known, err)
	for _, p := range known.Principals {
		if p.Name == "alice" {
			p.Disabled = true
			f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutPrincipal{Principal: p, Was: p.Generation}))
		}
	}
	var refusal *problem
	if err := a.admit(r, needsPull, route{repo: "a"}); !errors.As(err, &refusal) || refusal.status != 401 {
		t.Errorf("a right password of who is disabled since: %v", err)
	}
}

// The directory is made anew when something changed, and then only.
func TestDirectoryFollowsTheState(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	x := f.nodes[0].api.access
	first, err := x.directory()
	f.must(first, err)
	if again, err := x.directory(); again != first || err != nil {
		t.Errorf("nothing has changed, and it is made anew: %v", err)
	}
	f.grant("root", "pull:a")
	if next, err := x.directory(); next == first || err != nil {
		t.Errorf("a grant more, and it is the same: %v", err)
	}
}

// A node that has no keys yet takes passwords, and neither takes tokens nor gives any.
func TestWithoutKeys(t *testing.T) {
	f := withAccess(t, 1, func(c *Config) { c.Access.Keys = nil })
	f.user("root")
	root := "Authorization: " + basic(f, "root")
	f.want(f.do("GET", "/v2/", nil, root), 200, "")
	f.want(f.do("GET", "/v2/", nil, "Authorization: Bearer x.y.z"), 401, codeUnauthorized)
	f.want(f.do("GET", "/token", nil, root), 404, codeUnsupported)
	f.want(f.do("POST", "/token", []byte("grant_type=refresh_token&refresh_token=x.y.z"), "Content-Type: application/x-www-form-urlencoded"), 401, codeUnauthorized)
}
