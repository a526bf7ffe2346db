package api

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/opencontainers/go-digest"

	"pier/api/client"
	"pier/fsm"
	"pier/test/oidc"
)

// robot makes a robot without a secret.
func (f *fixture) robot(name string, grants ...string) {
	f.Helper()
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutPrincipal{Principal: fsm.Principal{Name: name, Robot: true}}))
	f.grant(name, grants...)
}

// order makes a control call as root.
func (f *fixture) order(path string, in any) answer {
	f.Helper()
	body, err := json.Marshal(in)
	f.must(body, err)
	return f.do("POST", "/api/v1"+path, body, "Authorization: "+basic(f, "root"))
}

func (f *fixture) trust(rule client.TrustRule) {
	f.Helper()
	f.want(f.order("/access/trust/add", client.TrustRequest{Rule: rule}), 200, "")
}

// withJobs is a cluster of n in which jobs of team/app come in as ci, which may push there.
func withJobs(t *testing.T, n int, change func(*Config)) (*fixture, *oidc.Server) {
	t.Helper()
	i := oidc.New(t, nil)
	f := withAccess(t, n, change)
	f.user("root")
	f.robot("ci", "push:team/app")
	f.trust(client.TrustRule{Name: "ci", Robot: "ci", Issuer: i.Issuer(), Audience: "registry", Claims: []string{"sub=repo:team/app:*", "ref=refs/heads/main"}})
	return f, i
}

func (f *fixture) postToken(n *testNode, form url.Values) answer {
	f.Helper()
	return f.doOn(n, "POST", "/token", []byte(form.Encode()), "Content-Type: application/x-www-form-urlencoded")
}

func exchangeForm(token string, more ...string) url.Values {
	form := url.Values{"grant_type": {grantExchange}, "subject_token": {token}, "subject_token_type": {typeIDToken}, "scope": {"repository:team/app:pull,push"}}
	for i := 0; i+1 < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

// given reads a token's answer.
func (f *fixture) given(a answer) tokenAnswer {
	f.Helper()
	var out tokenAnswer
	f.must(nil, json.Unmarshal(f.want(a, 200, "").body, &out))
	return out
}

func basicOf(name, password string) string {
	r, _ := http.NewRequest("GET", "http://x", nil)
	r.SetBasicAuth(name, password)
	return "Authorization: " + r.Header.Get("Authorization")
}

// A job comes in by its own ID token, in each of the ways that clients have, and what it gets is good at every node.
func TestJobs(t *testing.T) {
	f, i := withJobs(t, 3, nil)
	token := i.Token(time.Now(), nil)
	got := f.given(f.postToken(f.nodes[0], exchangeForm(token, "access_type", "offline")))
	if got.IssuedType != typeAccess || got.Type != "Bearer" || got.AccessToken == "" || got.RefreshToken != "" || got.ExpiresIn != 270 {
		t.Errorf("%+v", got)
	}
	bearer := "Authorization: Bearer " + got.AccessToken
	blob := randomBytes(1000)
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", blob, bearer), 202, "")
	f.want(f.doOn(f.nodes[2], "POST", "/v2/team/app/blobs/uploads/?digest="+digestOf(blob), blob, bearer), 201, "")
	if pulled := f.want(f.doOn(f.nodes[1], "GET", "/v2/team/app/blobs/"+digestOf(blob), nil, bearer), 200, ""); string(pulled.body) != string(blob) {
		t.Error("other bytes")
	}
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/other/blobs/uploads/", nil, bearer), 403, codeDenied)
	// docker login: a GET with the ID token for a password, and later the same for each push.
	login := basicOf("ci", token)
	docker := f.given(f.doOn(f.nodes[2], "GET", "/token?service=pier&offline_token=true&scope=repository:team/app:push,pull", nil, login))
	if docker.RefreshToken != "" || docker.Type != "" {
		t.Errorf("%+v", docker)
	}
	f.want(f.doOn(f.nodes[0], "POST", "/v2/team/app/blobs/uploads/", nil, "Authorization: Bearer "+docker.Token), 202, "")
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", nil, login), 202, "")
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/other/blobs/uploads/", nil, login), 403, codeDenied)
	password := url.Values{"grant_type": {"password"}, "username": {"ci"}, "password": {token}, "scope": {"repository:team/app:push,pull"}}
	f.given(f.postToken(f.nodes[0], password))
	f.want(f.do("GET", "/v2/", nil, basicOf("root", token)), 401, codeUnauthorized)
	f.want(f.do("GET", "/v2/", nil, basicOf("nobody", token)), 401, codeUnauthorized)
	f.want(f.do("GET", "/v2/", nil, "Authorization: Bearer "+token), 401, codeUnauthorized)
}

// What is wrong with a token is wrong in each of its places.
func TestWrongJobs(t *testing.T) {
	f, i := withJobs(t, 2, nil)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	f.must(stranger, err)
	forge := func(method jwt.SigningMethod, key any) string {
		token := jwt.NewWithClaims(method, i.Claims(time.Now(), nil))
		token.Header["kid"] = i.Keypair.Kid
		text, err := token.SignedString(key)
		f.must(text, err)
		return text
	}
	good := i.Token(time.Now(), nil)
	f.given(f.postToken(f.nodes[0], exchangeForm(good)))
	for name, token := range map[string]string{
		"another audience":    i.Token(time.Now(), jwt.MapClaims{"aud": "elsewhere"}),
		"no audience":         i.Token(time.Now(), jwt.MapClaims{"aud": nil}),
		"another issuer":      i.Token(time.Now(), jwt.MapClaims{"iss": "https://issuer.example"}),
		"expired":             i.Token(time.Now(), jwt.MapClaims{"exp": time.Now().Add(-time.Second).Unix()}),
		"not yet valid":       i.Token(time.Now(), jwt.MapClaims{"nbf": time.Now().Add(time.Hour).Unix()}),
		"alg none":            forge(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType),
		"HS256":               forge(jwt.SigningMethodHS256, i.Keypair.PublicKey.N.Bytes()),
		"another key":         forge(jwt.SigningMethodRS256, stranger),
		"a missing claim":     i.Token(time.Now(), jwt.MapClaims{"ref": nil}),
		"a claim of a number": i.Token(time.Now(), jwt.MapClaims{"ref": 7}),
		"another repository":  i.Token(time.Now(), jwt.MapClaims{"sub": "repo:team/app-evil:ref:refs/heads/main"}),
		"a pattern trick":     i.Token(time.Now(), jwt.MapClaims{"sub": "repo:evil/x:environment:repo:team/app:"}),
		"a megabyte":          good + strings.Repeat("A", 1<<20),
		"cut off":             good[:len(good)-10],
		"garbage":             "a.b.c",
		"empty":               "",
	} {
		got := f.postToken(f.nodes[1], exchangeForm(token))
		if len(token) > maxForm {
			f.want(got, 400, codeUnsupported)
		} else {
			f.want(got, 401, codeUnauthorized)
		}
		for _, hidden := range []string{"team/app", "refs/heads/main", "for another audience"} {
			if strings.Contains(string(got.body), hidden) {
				t.Errorf("%s: the answer tells of the rule: %s", name, got.body)
			}
		}
		if got := f.doOn(f.nodes[1], "GET", "/token?scope=repository:team/app:push", nil, basicOf("ci", token)); got.StatusCode != 401 && got.StatusCode != 429 && got.StatusCode != 431 {
			t.Errorf("%s as a password: %d %s", name, got.StatusCode, got.body)
		}
	}
	for name, form := range map[string]url.Values{
		"no type": exchangeForm(good, "subject_token_type", ""), "an access token": exchangeForm(good, "subject_token_type", typeAccess),
		"a wish": exchangeForm(good, "requested_token_type", typeIDToken), "an actor": exchangeForm(good, "actor_token", good),
	} {
		if got := f.postToken(f.nodes[0], form); got.StatusCode != 400 {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
		}
	}
}

// Each thing that a job rests on ends it: its tokens too, at once, on the node that has heard of it.
func TestJobsEnd(t *testing.T) {
	f, i := withJobs(t, 2, nil)
	rule := client.TrustRule{Name: "ci", Robot: "ci", Issuer: i.Issuer(), Audience: "registry", Claims: []string{"sub=repo:team/app:*"}}
	token := i.Token(time.Now(), nil)
	disabled := func(v bool) func() {
		return func() { f.want(f.order("/access/change", client.PrincipalChange{Name: "ci", Disabled: &v}), 200, "") }
	}
	for name, x := range map[string]struct{ end, begin func() }{
		"the rule goes": {
			func() { f.want(f.order("/access/trust/remove", client.NameRequest{Name: "ci"}), 200, "") }, func() { f.trust(rule) },
		},
		"the rule changes": {
			func() {
				other := rule
				other.Claims = []string{"sub=repo:team/other:*"}
				f.want(f.order("/access/trust/add", client.TrustRequest{Rule: other, Replace: true}), 200, "")
			},
			func() { f.want(f.order("/access/trust/add", client.TrustRequest{Rule: rule, Replace: true}), 200, "") },
		},
		"the robot is disabled": {disabled(true), disabled(false)},
		"the robot goes": {
			func() { f.want(f.order("/access/remove", client.RemovalRequest{Name: "ci"}), 200, "") },
			func() { f.robot("ci", "push:team/app"); f.trust(rule) },
		},
	} {
		bearer := "Authorization: Bearer " + f.given(f.postToken(f.nodes[0], exchangeForm(token))).Token
		for _, header := range []string{bearer, basicOf("ci", token)} {
			f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", nil, header), 202, "")
		}
		x.end()
		for _, header := range []string{bearer, basicOf("ci", token)} {
			if got := f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", nil, header); got.StatusCode != 401 {
				t.Errorf("%s: %.30s…: %d %s", name, header, got.StatusCode, got.body)
			}
		}
		if got := f.postToken(f.nodes[1], exchangeForm(token)); got.StatusCode != 401 {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
		}
		x.begin()
	}
	// What changes a robot ends the tokens from before, as it does a user's; its jobs ask for others.
	before := "Authorization: Bearer " + f.given(f.postToken(f.nodes[0], exchangeForm(token))).Token
	f.want(f.order("/access/change", client.PrincipalChange{Name: "ci", Groups: &[]string{"bots"}}), 200, "")
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", nil, before), 401, codeUnauthorized)
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", nil, basicOf("ci", token)), 202, "")
	// Whoever gets the name of a robot that is gone gets none of its jobs.
	f.want(f.order("/access/remove", client.RemovalRequest{Name: "ci"}), 200, "")
	f.robot("ci", "push:team/app")
	f.want(f.postToken(f.nodes[1], exchangeForm(token)), 401, codeUnauthorized)
}

// What a job gets ends with its ID token.
func TestJobsEndWithTheirToken(t *testing.T) {
	var ahead atomic.Int64
	f, i := withJobs(t, 1, func(c *Config) {
		c.Access.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	token := i.Token(time.Now(), jwt.MapClaims{"exp": time.Now().Add(2 * time.Minute).Unix()})
	got := f.given(f.postToken(f.nodes[0], exchangeForm(token)))
	if got.ExpiresIn < 80 || got.ExpiresIn > 90 {
		t.Errorf("%d seconds", got.ExpiresIn)
	}
	ahead.Store(int64(2*time.Minute + time.Second))
	f.want(f.do("GET", "/v2/team/app/tags/list", nil, "Authorization: Bearer "+got.Token), 401, codeUnauthorized)
	f.want(f.do("GET", "/v2/team/app/tags/list", nil, basicOf("ci", token)), 401, codeUnauthorized)
	f.want(f.postToken(f.nodes[0], exchangeForm(token)), 401, codeUnauthorized)
}

// Without its issuer a node says that it can't tell; with the keys of before it goes on; and nobody else has to wait.
func TestIssuerDown(t *testing.T) {
	f, i := withJobs(t, 2, nil)
	token := i.Token(time.Now(), nil)
	i.Down(true)
	got := f.want(f.postToken(f.nodes[0], exchangeForm(token)), 503, codeUnavailable)
	if got.Header.Get("Retry-After") == "" {
		t.Error("nobody says when to try again")
	}
	f.want(f.do("GET", "/token?scope=repository:team/app:push", nil, basicOf("ci", token)), 503, codeUnavailable)
	f.want(f.do("GET", "/v2/team/app/tags/list", nil, "Authorization: "+basic(f, "root")), 404, codeNameUnknown)
	i.Down(false)
	f.given(f.postToken(f.nodes[1], exchangeForm(token)))
	i.Down(true)
	f.given(f.postToken(f.nodes[1], exchangeForm(i.Token(time.Now(), nil))))
}

// A token that no rule is for makes nobody ask anywhere, and those of strangers make a node ask once.
func TestStrangersTokensAskNobody(t *testing.T) {
	f, i := withJobs(t, 1, nil)
	other := oidc.New(t, nil)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	f.must(stranger, err)
	f.want(f.postToken(f.nodes[0], exchangeForm(other.Token(time.Now(), nil))), 401, codeUnauthorized)
	f.want(f.do("GET", "/v2/", nil, basicOf("dave", i.Token(time.Now(), nil))), 401, codeUnauthorized)
	if i.Asked("") > 0 {
		t.Fatal("a token for another name made the node ask")
	}
	for range 50 {
		token := jwt.NewWithClaims(jwt.SigningMethodRS256, i.Claims(time.Now(), nil))
		token.Header["kid"] = rand.Text()
		text, err := token.SignedString(stranger)
		f.must(text, err)
		f.want(f.postToken(f.nodes[0], exchangeForm(text)), 401, codeUnauthorized)
	}
	if n := i.Asked(""); n != 2 || other.Asked("") != 0 {
		t.Errorf("the issuer was asked %d times, and one that nobody named %d times", n, other.Asked(""))
	}
}

// A token that stands for two robots says nothing without a name.
func TestTwoRobots(t *testing.T) {
	f, i := withJobs(t, 1, nil)
	f.robot("deploy", "pull:team/app")
	f.trust(client.TrustRule{Name: "deploy", Robot: "deploy", Issuer: i.Issuer(), Audience: "registry", Claims: []string{"ref=refs/heads/main"}})
	f.trust(client.TrustRule{Name: "ci-too", Robot: "ci", Issuer: i.Issuer(), Audience: "registry", Claims: []string{"ref=refs/heads/main"}})
	token := i.Token(time.Now(), nil)
	f.want(f.postToken(f.nodes[0], exchangeForm(token)), 400, codeUnsupported)
	for name, status := range map[string]int{"ci": 202, "deploy": 403} {
		got := f.given(f.postToken(f.nodes[0], exchangeForm(token, "username", name)))
		if a := f.do("POST", "/v2/team/app/blobs/uploads/", nil, "Authorization: Bearer "+got.Token); a.StatusCode != status {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
		}
	}
}

// Rules that would let in more than was meant are refused, and only an administrator sees or changes any.
func TestTrustRules(t *testing.T) {
	f, i := withJobs(t, 1, nil)
	good := client.TrustRule{Name: "x", Robot: "ci", Issuer: i.Issuer(), Audience: "registry", Claims: []string{"sub=x"}}
	for name, change := range map[string]func(r *client.TrustRule){
		"no claim":     func(r *client.TrustRule) { r.Claims = nil },
		"plain http":   func(r *client.TrustRule) { r.Issuer = "http://issuer.example" },
		"no robot":     func(r *client.TrustRule) { r.Robot = "nobody" },
		"a user":       func(r *client.TrustRule) { r.Robot = "root" },
		"a bad name":   func(r *client.TrustRule) { r.Name = "a:b" },
		"no audience":  func(r *client.TrustRule) { r.Audience = "" },
		"a broken CA":  func(r *client.TrustRule) { r.CA = "x" },
		"a wide claim": func(r *client.TrustRule) { r.Claims = []string{"sub=*"} },
	} {
		r := good
		change(&r)
		if got := f.order("/access/trust/add", client.TrustRequest{Rule: r}); got.StatusCode != 400 {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
		}
	}
	taken := good
	taken.Name = "ci"
	f.want(f.order("/access/trust/add", client.TrustRequest{Rule: taken}), 409, codeConflict)
	f.want(f.order("/access/trust/remove", client.NameRequest{Name: "none"}), 404, codeNameUnknown)
	list := f.want(f.do("GET", "/api/v1/access/trust", nil, "Authorization: "+basic(f, "root")), 200, "")
	var rules []client.TrustRule
	f.must(nil, json.Unmarshal(list.body, &rules))
	if len(rules) != 1 || rules[0].Robot != "ci" || len(rules[0].Claims) != 2 {
		t.Errorf("%+v", rules)
	}
	f.user("alice", "push:**")
	for _, path := range []string{"/access/trust/add", "/access/trust/remove", "/access/trust/test"} {
		f.want(f.do("POST", "/api/v1"+path, []byte("{}"), "Authorization: "+basic(f, "alice")), 403, codeDenied)
	}
	f.want(f.do("GET", "/api/v1/access/trust", nil, "Authorization: "+basic(f, "alice")), 403, codeDenied)
	var verdicts []client.TrustVerdict
	f.must(nil, json.Unmarshal(f.want(f.order("/access/trust/test", client.TrustTest{Token: i.Token(time.Now(), jwt.MapClaims{"ref": "x"})}), 200, "").body, &verdicts))
	if len(verdicts) != 1 || verdicts[0].Admits || !strings.Contains(verdicts[0].Reason, "ref does not match refs/heads/main") {
		t.Errorf("%+v", verdicts)
	}
	f.must(nil, json.Unmarshal(f.want(f.order("/access/trust/test", client.TrustTest{Token: i.Token(time.Now(), nil)}), 200, "").body, &verdicts))
	if len(verdicts) != 1 || !verdicts[0].Admits {
		t.Errorf("%+v", verdicts)
	}
	f.want(f.order("/access/trust/test", client.TrustTest{Token: "x"}), 400, codeInvalid)
	f.want(f.order("/access/trust/test", client.TrustTest{Token: oidc.New(t, nil).Token(time.Now(), nil)}), 400, codeInvalid)
}

// All rules may have to be compared with a token, so there are no more than so many; one may still take another's place.
func TestTrustRulesAreBounded(t *testing.T) {
	f, i := withJobs(t, 1, nil)
	rule := client.TrustRule{Name: "one-more", Robot: "ci", Issuer: i.Issuer(), Audience: "registry", Claims: []string{"sub=x"}}
	body, err := json.Marshal(rule)
	f.must(body, err)
	for n := range maxRules - 1 {
		f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutDocument{Document: fsm.Document{Kind: fsm.KindTrust, Name: fmt.Sprint("r", n), Body: body}}))
	}
	f.want(f.order("/access/trust/add", client.TrustRequest{Rule: rule}), 400, codeInvalid)
	rule.Name = "r0"
	f.want(f.order("/access/trust/add", client.TrustRequest{Rule: rule, Replace: true}), 200, "")
	f.want(f.order("/access/trust/remove", client.NameRequest{Name: "r0"}), 200, "")
	f.trust(rule)
}

// The rules of a robot go with it, and no others.
func TestRulesGoWithTheirRobot(t *testing.T) {
	f, i := withJobs(t, 1, nil)
	f.robot("deploy")
	f.trust(client.TrustRule{Name: "deploy", Robot: "deploy", Issuer: i.Issuer(), Audience: "registry", Claims: []string{"sub=x"}})
	f.want(f.order("/access/remove", client.RemovalRequest{Name: "deploy"}), 200, "")
	f.given(f.postToken(f.nodes[0], exchangeForm(i.Token(time.Now(), nil))))
	f.want(f.order("/access/trust/remove", client.NameRequest{Name: "deploy"}), 404, codeNameUnknown)
}

// A rule of a later version lets nobody in here: what is not understood of it may be what keeps somebody out.
func TestRuleOfALaterVersion(t *testing.T) {
	f, i := withJobs(t, 1, nil)
	f.given(f.postToken(f.nodes[0], exchangeForm(i.Token(time.Now(), nil))))
	body := `{"name":"ci","robot":"ci","issuer":"` + i.Issuer() + `","audience":"registry","claims":["sub=repo:team/app:*"],"only_on":"monday"}`
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutDocument{Document: fsm.Document{Kind: fsm.KindTrust, Name: "ci", Body: []byte(body)}, Over: true}))
	f.want(f.postToken(f.nodes[0], exchangeForm(i.Token(time.Now(), nil))), 401, codeUnauthorized)
}

// A key of the issuer's that nobody has seen yet is found, on each node.
func TestIssuerRotates(t *testing.T) {
	var ahead atomic.Int64
	f, i := withJobs(t, 2, func(c *Config) {
		c.Access.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	old := i.Token(time.Now(), nil)
	for _, n := range f.nodes {
		f.given(f.postToken(n, exchangeForm(old)))
	}
	i.Rotate()
	ahead.Store(int64(30 * time.Second))
	for _, n := range f.nodes {
		f.given(f.postToken(n, exchangeForm(i.Token(time.Now(), nil))))
		f.want(f.postToken(n, exchangeForm(old)), 401, codeUnauthorized)
	}
}

// A refresh token is a password for its own user: what pier token prints, and docker login takes.
func TestRefreshTokenAsPassword(t *testing.T) {
	var ahead atomic.Int64
	f := withAccess(t, 2, func(c *Config) {
		c.Access.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	f.user("root")
	f.user("alice", "push:a")
	login := url.Values{"grant_type": {"password"}, "username": {"alice"}, "password": {"alice's-password"}, "access_type": {"offline"}}
	first := f.given(f.postToken(f.nodes[0], login))
	own := basicOf("alice", first.RefreshToken)
	f.want(f.doOn(f.nodes[1], "POST", "/v2/a/blobs/uploads/", nil, own), 202, "")
	docker := f.given(f.doOn(f.nodes[1], "GET", "/token?offline_token=true&scope=repository:a:push,pull", nil, own))
	f.want(f.doOn(f.nodes[1], "POST", "/v2/a/blobs/uploads/", nil, "Authorization: Bearer "+docker.Token), 202, "")
	said := func(a answer, what string) {
		t.Helper()
		if f.want(a, 401, codeUnauthorized); !strings.Contains(string(a.body), what) {
			t.Errorf("it is told %s", a.body)
		}
	}
	said(f.do("GET", "/v2/", nil, basicOf("root", first.RefreshToken)), "another user's")
	f.want(f.do("GET", "/v2/", nil, basicOf("alice", first.Token)), 401, codeUnauthorized)
	// One that comes of it ends when it does, however often it is renewed.
	ahead.Store(int64(29 * 24 * time.Hour))
	again := f.given(f.doOn(f.nodes[1], "GET", "/token?offline_token=true", nil, basicOf("alice", docker.RefreshToken)))
	ahead.Store(int64(30*24*time.Hour + time.Second))
	for _, text := range []string{first.RefreshToken, docker.RefreshToken, again.RefreshToken} {
		said(f.do("GET", "/v2/", nil, basicOf("alice", text)), "has expired")
	}
	ahead.Store(0)
	f.want(f.do("GET", "/v2/", nil, own), 200, "")
	disabled := true
	f.want(f.order("/access/change", client.PrincipalChange{Name: "alice", Disabled: &disabled}), 200, "")
	f.want(f.doOn(f.nodes[1], "GET", "/v2/", nil, own), 401, codeUnauthorized)
}

func digestOf(b []byte) string { return digest.FromBytes(b).String() }
