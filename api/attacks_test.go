package api

import (
	"bufio"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"pier/api/auth"
	"pier/fsm"
)

// resign gives a token other headers and claims, signed by a key of any method.
func resign(t *testing.T, token string, method jwt.SigningMethod, key any, edit func(head, claims map[string]any)) string {
	t.Helper()
	parsed, _, err := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
	if err != nil {
		t.Fatal(err)
	}
	claims := parsed.Claims.(jwt.MapClaims)
	out := jwt.NewWithClaims(method, claims)
	out.Header["kid"] = parsed.Header["kid"]
	edit(out.Header, claims)
	text, err := out.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// No token comes in that isn't this cluster's own, whole, of this use and of now, at any node.
func TestForgedTokensOverHTTP(t *testing.T) {
	now := time.Now()
	f := withAccess(t, 3, func(c *Config) { c.Access.Now = func() time.Time { return now } })
	f.user("root")
	good := f.token(f.nodes[0], "root", "repository:a:*")
	seed := make([]byte, 32) // the fixture's
	own := ed25519.NewKeyFromSeed(seed)
	other := ed25519.NewKeyFromSeed(append([]byte{1}, seed[1:]...))
	nothing := func(_, _ map[string]any) {}
	foreign, err := auth.NewKeys([][]byte{append([]byte{1}, seed[1:]...)})
	f.must(foreign, err)
	d, err := f.nodes[0].api.access.directory()
	f.must(d, err)
	root, _ := d.Active("root", now)
	elsewhere, err := foreign.Issue(root, tokenService, nil, now, time.Hour)
	f.must(elsewhere, err)
	refresh, err := f.nodes[0].api.access.cfg.Keys().IssueRefresh(root, tokenService, now, time.Hour)
	f.must(refresh, err)
	head, rest, _ := strings.Cut(good, ".")
	body, signature, _ := strings.Cut(rest, ".")
	claim := func(name string, value any) string {
		return resign(t, good, jwt.SigningMethodEdDSA, own, func(_, c map[string]any) { c[name] = value })
	}
	forged := map[string]string{
		"of another key":            resign(t, good, jwt.SigningMethodEdDSA, other, nothing),
		"of another cluster":        elsewhere.Text,
		"alg none":                  resign(t, good, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nothing),
		"alg none with a signature": base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + body + "." + signature,
		"HMAC by the public key":    resign(t, good, jwt.SigningMethodHS256, []byte(own.Public().(ed25519.PublicKey)), nothing),
		"another kid":               resign(t, good, jwt.SigningMethodEdDSA, own, func(h, _ map[string]any) { h["kid"] = "x" }),
		"no kid":                    resign(t, good, jwt.SigningMethodEdDSA, own, func(h, _ map[string]any) { delete(h, "kid") }),
		"a kid that is a list":      resign(t, good, jwt.SigningMethodEdDSA, own, func(h, _ map[string]any) { h["kid"] = []string{"x"} }),
		"another audience":          claim("aud", []string{"other"}),
		"no audience":               claim("aud", nil),
		"another issuer":            claim("iss", "other"),
		"expired":                   claim("exp", now.Add(-time.Hour).Unix()),
		"without an end":            claim("exp", nil),
		"not yet valid":             claim("nbf", now.Add(time.Hour).Unix()),
		"of another generation":     claim("gen", 999),
		"of a name that nobody has": claim("sub", "eve"),
		"of another kind":           claim("kind", "robot"),
		"the operator's":            claim("kind", "operator"),
		"of no kind":                claim("kind", ""),
		"of another use":            refresh.Text,
		"of no use":                 claim("use", ""),
		"without its end":           good[:len(good)-1],
		"without half of it":        good[:len(good)/2],
		"without a signature":       head + "." + body + ".",
		"without a dot":             head + body + signature,
		"with a part too much":      good + ".x",
		"with another body":         head + "." + strings.ToUpper(body) + "." + signature,
		"with a body of another":    head + "." + strings.Split(refresh.Text, ".")[1] + "." + signature,
		"with an end too much":      good + "A",
		"nothing":                   "",
		"dots":                      "..",
		"60 kB of nonsense":         strings.Repeat("eyJ.", 15_000),
		"60 kB that begin rightly":  good + strings.Repeat("A", 60_000),
	}
	for i, n := range f.nodes {
		for what, token := range forged {
			for _, path := range []string{"/v2/", "/v2/a/tags/list"} {
				if got := f.doOn(n, "GET", path, nil, "Authorization: Bearer "+token); got.StatusCode != 401 {
					t.Errorf("node %d: a token %s: GET %s: %d %s", i, what, path, got.StatusCode, got.body)
				}
			}
			form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}.Encode()
			if got := f.doOn(n, "POST", "/token", []byte(form), "Content-Type: application/x-www-form-urlencoded"); what != "of another use" && got.StatusCode != 401 && got.StatusCode != 400 {
				t.Errorf("node %d: a refresh token %s: %d %s", i, what, got.StatusCode, got.body)
			}
		}
		f.want(f.doOn(n, "GET", "/v2/a/tags/list", nil, "Authorization: Bearer "+good), 404, codeNameUnknown)
		f.tooLong(n)
	}
}

// tooLong sends a header of a megabyte, which ends the connection, and nothing else.
func (f *fixture) tooLong(n *testNode) {
	f.Helper()
	status, _ := f.asSent(n, "GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+strings.Repeat("A", 1<<20)+"\r\n\r\n")
	if status != 431 && status != 0 {
		f.Errorf("a header of a megabyte: %d", status)
	}
}

// asSent sends bytes as they are. Status 0 is a connection that ended.
func (f *fixture) asSent(n *testNode, request string) (int, string) {
	f.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(n.url, "http://"))
	f.must(c, err)
	defer func() { _ = c.Close() }()
	f.must(nil, c.SetDeadline(time.Now().Add(20*time.Second)))
	go func() { _, _ = io.WriteString(c, request) }()
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: strings.Fields(request + " x")[0]})
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var head strings.Builder
	_ = resp.Header.Write(&head)
	return resp.StatusCode, head.String() + string(body)
}

// Strange credentials are as good as plain ones when they are right, and no other ones are.
func TestStrangeCredentials(t *testing.T) {
	f := withAccess(t, 3, nil)
	f.user("root")
	right := map[string]string{"colons": ":a:b::c:", "spaces": " two words ", "unicode": "pässwörd-☃", "nul": "nul\x00in it", "long": strings.Repeat("x", 72), "quotes": `"'\"`}
	for name, password := range right {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		f.must(hash, err)
		f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutPrincipal{Principal: fsm.Principal{Name: name, Password: hash}}))
	}
	i := 0
	for name, password := range right {
		n := f.nodes[i%3]
		i++
		f.want(f.doOn(n, "GET", "/v2/", nil, "Authorization: "+login(name, password)), 200, "")
		f.want(f.doOn(n, "GET", "/token", nil, "Authorization: "+login(name, password)), 200, "")
		form := url.Values{"grant_type": {"password"}, "username": {name}, "password": {password}}.Encode()
		f.want(f.doOn(n, "POST", "/token", []byte(form), "Content-Type: application/x-www-form-urlencoded"), 200, "")
	}
	wrong := []struct{ name, password string }{
		{"colons", "a:b::c:"}, {"colons", ":a:b::c"}, {"spaces", "two words"}, {"unicode", "password-☃"}, {"nul", "nul"}, {"nul", "nulin it"},
		{"nul\x00", "nul\x00in it"}, {"long", strings.Repeat("x", 71)}, {"long", strings.Repeat("x", 73)}, {"long", strings.Repeat("x", 10_000)},
		{strings.Repeat("long", 2500), "x"}, {"", ""}, {"", "root's-password"}, {"root", ""}, {"ROOT", "root's-password"}, {"root ", "root's-password"},
		{"root\r\nX: y", "root's-password"}, {"\x00root", "root's-password"}, {"röot", "root's-password"}, {"anonymous", ""}, {"operator", ""}, {"group:dev", ""}, {"<token>", "x"},
	}
	for i, x := range wrong {
		got := f.doOn(f.nodes[i%3], "GET", "/v2/", nil, "Authorization: "+login(x.name, x.password))
		if got.StatusCode != 401 && got.StatusCode != 429 {
			t.Errorf("%.30q with %.30q: %d %s", x.name, x.password, got.StatusCode, got.body)
		}
		if len(x.password) > 4 && strings.Contains(string(got.body), x.password) {
			t.Errorf("the answer has the password in it: %s", got.body)
		}
	}
}

// However a path is written, it shows nothing of a repository that its caller may not see, and lets nothing be put there.
func TestPathTricks(t *testing.T) {
	f := withAccess(t, 3, nil)
	const marker = "what-only-root-may-see"
	index := []byte(`{"schemaVersion":2,"manifests":[],"annotations":{"x":"` + marker + `"}}`)
	f.user("root")
	f.user("alice", "push:team/**", "delete:team/**")
	root, alice := basic(f, "root"), basic(f, "alice")
	f.want(f.do("PUT", "/v2/secret/app/manifests/1", index, "Content-Type: "+fsm.TypeOCIIndex, "Authorization: "+root), 201, "")
	var targets []string
	for _, up := range []string{"..", "%2e%2e", ".%2e", "%2E.", "%252e%252e", "..;", "..%00", "%c0%ae%c0%ae"} {
		for _, slash := range []string{"/", "//", "%2f", "%2F", "%5c", "\\", "%252f", "/./"} {
			targets = append(targets, "/v2/team"+slash+up+slash+"secret/app/manifests/1", "/v2/team/x"+slash+up+slash+up+slash+"secret"+slash+"app/manifests/1")
		}
	}
	targets = append(targets,
		"//v2/secret/app/manifests/1", "/v2//secret/app/manifests/1", "/./v2/secret/app/manifests/1", "/v2/./secret/app/manifests/1", "/x/../v2/secret/app/manifests/1",
		"/api/v1/../../v2/secret/app/manifests/1", "/V2/secret/app/manifests/1", "/v2/SECRET/app/manifests/1", "/v2/secret%2Fapp/manifests/1", "/v2/secret/app%2Fmanifests/1",
		"/v2/secret/app/manifests/%31", "/v2/secret/app/manifests/1/", "/v2/secret/app/manifests/1?x=/v2/team/app", "/v2/secret/app/manifests/1;/v2/team/app/manifests/1",
		"/v2/team/app/manifests/1%00/../../secret/app/manifests/1", "/v2/team/app/blobs/uploads/../../../secret/app/manifests/1", "/relay/v2/secret/app/manifests/1", "/audit",
		"http://evil.example/v2/secret/app/manifests/1", "https://user:pass@"+strings.TrimPrefix(f.nodes[0].url, "http://")+"/v2/secret/app/manifests/1", "*", "secret/app/manifests/1",
	)
	for i, target := range targets {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			for _, credentials := range []string{"", "Authorization: " + alice + "\r\n"} {
				status, said := f.asSent(f.nodes[i%3], method+" "+target+" HTTP/1.1\r\nHost: x\r\n"+credentials+"Content-Type: "+fsm.TypeOCIIndex+"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
				if status >= 200 && status < 400 || status >= 500 || strings.Contains(said, marker) {
					t.Errorf("%s %s, %q: %d %s", method, target, credentials, status, said)
				}
			}
		}
	}
	got := f.want(f.do("GET", "/v2/secret/app/manifests/1", nil, "Authorization: "+root), 200, "")
	if string(got.body) != string(index) {
		t.Errorf("it is %s now", got.body)
	}
}

// A repository may be called like a part of a route, and is no less and no more than any other.
func TestRepositoriesNamedLikeRoutes(t *testing.T) {
	f := withAccess(t, 3, nil)
	f.user("root")
	odd := []string{"token/blobs", "v2/manifests", "v2", "token", "blobs/uploads", "tags/list", "a/manifests/b", "api/v1/access", "uploads", "referrers/x", "metrics", "healthz", "a/blobs/uploads/b"}
	for i, repo := range odd {
		name := fmt.Sprintf("u%d", i)
		f.user(name, "push:"+repo, "delete:"+repo)
		own, other := "Authorization: "+basic(f, name), odd[(i+1)%len(odd)]
		n := f.nodes[i%3]
		put := func(n *testNode, repo string) answer {
			return f.doOn(n, "PUT", "/v2/"+repo+"/manifests/1", emptyIndex(), "Content-Type: "+fsm.TypeOCIIndex, own)
		}
		f.want(put(n, repo), 201, "")
		f.want(f.doOn(f.nodes[(i+1)%3], "GET", "/v2/"+repo+"/manifests/1", nil, own), 200, "")
		f.want(f.doOn(n, "GET", "/v2/"+repo+"/tags/list", nil, own), 200, "")
		f.want(put(n, other), 403, codeDenied)
		f.want(f.doOn(n, "GET", "/v2/"+other+"/tags/list", nil, own), 403, codeDenied)
		var page struct{ Repositories []string }
		f.must(nil, json.Unmarshal(f.want(f.doOn(n, "GET", "/v2/_catalog", nil, own), 200, "").body, &page))
		if len(page.Repositories) != 1 || page.Repositories[0] != repo {
			t.Errorf("who may see %s sees %v", repo, page.Repositories)
		}
	}
}

// What a stranger says of himself, and of where he came, is worth nothing.
func TestHeaderTricks(t *testing.T) {
	f := withAccess(t, 3, nil)
	f.user("root")
	f.user("alice", "pull:team/**")
	alice := "Authorization: " + basic(f, "alice") + "\r\n"
	for i, headers := range []string{
		"X-Forwarded-User: root\r\n", "X-Remote-User: root\r\n", "X-Forwarded-For: 127.0.0.1\r\n", "X-Original-URL: /v2/team/app/tags/list\r\n", "X-Rewrite-URL: /v2/team/app/tags/list\r\n",
		"X-HTTP-Method-Override: DELETE\r\n", "Forwarded: for=127.0.0.1;host=x;proto=https\r\n", "X-Pier-Peer: node-1\r\n", headerAccess + ": 1\r\n", "Cookie: user=root\r\n",
		"Proxy-Authorization: " + basic(f, "root") + "\r\n", "Authorization : " + basic(f, "root") + "\r\n", "authorization: " + basic(f, "root") + "\r\n",
	} {
		status, said := f.asSent(f.nodes[i%3], "DELETE /v2/other/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+alice+headers+"\r\n")
		if status != 403 && status != 400 {
			t.Errorf("%q: %d %s", headers, status, said)
		}
	}
	for _, host := range []string{"evil.example", "a b", "x\"y", "x\\y", "x,y", "[::1", "x/y?z", "<script>", strings.Repeat("x", 5000), ""} {
		for _, target := range []string{"/v2/", "http://" + strings.NewReplacer(" ", "", "\"", "").Replace(host) + "/v2/"} {
			status, said := f.asSent(f.nodes[0], "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\nX-Forwarded-Host: forwarded.example\r\nX-Forwarded-Proto: gopher\r\nConnection: close\r\n\r\n")
			challenge, _, _ := strings.Cut(said[max(0, strings.Index(said, "Www-Authenticate")):], "\r\n")
			if status != 401 && status != 400 || status == 401 && (strings.Count(challenge, `"`) != 4 || strings.Contains(said, "forwarded.example") || strings.Contains(said, "gopher")) {
				t.Errorf("%s at %.40q: %d %s", target, host, status, said)
			}
		}
	}
}

// A browser sends a password that it has kept with whatever any page asks of it. What changes nothing can't be read there.
func TestPagesOfOtherSites(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	f.user("bob", "push:team/**")
	order := `{"name":"mallory","password":"a password of hers"}`
	for i, from := range []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Origin: https://evil.example", "Origin: null"} {
		for path, own := range map[string]string{"/api/v1/access/user/add": basic(f, "root"), "/v2/team/app/blobs/uploads/": basic(f, "bob")} {
			f.want(f.do("POST", path, order, "Authorization: "+own, from), 403, codeDenied)
		}
		if i < 2 {
			f.want(f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "bob"), from), 200, "")
		}
	}
	token := "Authorization: Bearer " + f.token(f.nodes[0], "bob", "repository:team/app:pull,push")
	f.want(f.do("POST", "/v2/team/app/blobs/uploads/", nil, token, "Sec-Fetch-Site: cross-site"), 202, "")
	f.want(f.do("POST", "/api/v1/access/user/add", order, "Authorization: "+basic(f, "root"), "Sec-Fetch-Site: same-origin"), 200, "")
}

// A manifest says itself what it is, and a browser believes it: one that calls itself a page must not act there as what the
// registry itself has sent, with the certificate or the kept password of who looks at it.
func TestManifestsAreNoPages(t *testing.T) {
	f := withAccess(t, 3, nil)
	f.user("root")
	f.user("eve", "push:eve/**")
	page := []byte(`{"x":"<script>fetch('/api/v1/access/grant',{method:'POST'})</script>"}`)
	pushed := f.want(f.do("PUT", "/v2/eve/app/manifests/1", page, "Content-Type: text/html", "Authorization: "+basic(f, "eve")), 201, "")
	for _, n := range f.nodes {
		for _, reference := range []string{"1", pushed.Header.Get(headerDigest)} {
			got := f.want(f.doOn(n, "GET", "/v2/eve/app/manifests/"+reference, nil, "Authorization: "+basic(f, "root")), 200, "")
			if policy := got.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "sandbox") || strings.Contains(policy, "allow") {
				t.Errorf("a browser may do with the manifest %s what %q says", reference, policy)
			}
		}
	}
}

// Whoever may pull can take an answer as slowly as a client on a bad line does. One machine that does so with as many
// connections as it gets keeps nobody else from pulling.
func TestSlowClientsLeaveRoom(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) {
		c.MaxInFlight, c.QueueWait = 64, 100*time.Millisecond
		c.Access.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	n := f.nodes[0]
	loc := f.begin(n, "a", "")
	var slow []net.Conn
	for range 64 {
		slow = append(slow, f.dial(n, "PUT "+loc+"?digest="+string(digest.FromString("x"))+" HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: 100000\r\n\r\nx"))
	}
	eventually(t, func() error {
		if got := f.do("GET", "/v2/", nil, "X-Forwarded-For: 192.0.2.1"); got.StatusCode != 503 {
			return fmt.Errorf("they have room left: %s", got.Status)
		}
		return nil
	})
	f.want(f.do("GET", "/v2/", nil, "X-Forwarded-For: 192.0.2.2"), 200, "")
	for _, c := range slow {
		f.must(nil, c.Close())
	}
}

// A registry that is open to its machine is not open to what a browser on it is shown: neither to a page that sends there, nor to
// one whose name was the page's server before and is this machine now.
func TestOpenRegistryAndPages(t *testing.T) {
	f := newFixture(t, 1, nil)
	const browser = "User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
	for _, x := range []struct {
		method, path, host, headers string
		want                        int
	}{
		{"POST", "/v2/a/blobs/uploads/", "127.0.0.1:5000", browser + "Sec-Fetch-Site: cross-site\r\n", 403},
		{"POST", "/v2/a/blobs/uploads/", "127.0.0.1:5000", browser + "Origin: https://evil.example\r\n", 403},
		{"POST", "/v2/a/blobs/uploads/", "evil.example:5000", browser + "Origin: http://evil.example:5000\r\n", 403},
		{"GET", "/v2/_catalog", "evil.example:5000", browser, 403},
		{"GET", "/v2/_catalog", "localhost.evil.example", browser, 403},
		{"GET", "/api/v1/cluster/status", "evil.example:5000", browser, 403},
		{"GET", "/v2/_catalog", "LocalHost:5000", browser, 200},
		{"GET", "/v2/_catalog", "pier.localhost", browser, 200},
		{"GET", "/v2/_catalog", "[::1]:5000", browser + "Sec-Fetch-Site: none\r\n", 200},
		{"GET", "/v2/_catalog", "127.0.0.1", browser, 200},
		{"GET", "/v2/_catalog", "registry.lan:5000", "User-Agent: docker/29.1\r\n", 200},
		{"POST", "/v2/a/blobs/uploads/", "registry.lan:5000", "", 202},
	} {
		status, said := f.asSent(f.nodes[0], x.method+" "+x.path+" HTTP/1.1\r\nHost: "+x.host+"\r\n"+x.headers+"Content-Length: 0\r\nConnection: close\r\n\r\n")
		if status != x.want {
			t.Errorf("%s %s at %s, %q: %d %s", x.method, x.path, x.host, x.headers, status, said)
		}
	}
}
