package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/oauth2-proxy/mockoidc"

	"pier/api/client"
	"pier/fsm"
	"pier/test/oidc"
)

const loginVerifier = "a-verifier-that-only-the-program-knows-0123456789"

// withPeople is a cluster of n to which people of the issuer come, with its groups under their own names.
func withPeople(t *testing.T, n int, change func(*Config)) (*fixture, *oidc.Server) {
	t.Helper()
	i := oidc.New(t, nil)
	f := withAccess(t, n, change)
	f.user("root")
	f.provide(i, nil)
	f.grant("group:engineering", "push:team/**")
	return f, i
}

func (f *fixture) provide(i *oidc.Server, change func(o *client.OIDC)) {
	f.Helper()
	o := client.OIDC{Issuer: i.Issuer(), ClientID: i.ClientID, ClientSecret: i.ClientSecret, Scopes: []string{"profile", "groups"}, All: true}
	if change != nil {
		change(&o)
	}
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: client.Provider{Name: "corp", OIDC: &o}, Replace: true}), 200, "")
}

// browser logs in at the issuer as a person would, and gives the form that the program then has.
func (f *fixture) browser(n *testNode) url.Values {
	f.Helper()
	var start client.LoginStart
	f.must(nil, json.Unmarshal(f.want(f.doOn(n, "GET", "/api/v1/login", nil), 200, "").body, &start))
	sum := sha256.Sum256([]byte(loginVerifier))
	redirect := "http://127.0.0.1:1/callback"
	query := url.Values{
		"response_type": {"code"}, "client_id": {start.ClientID}, "redirect_uri": {redirect}, "scope": {strings.Join(start.Scopes, " ")}, "state": {"s"},
		"nonce": {"n"}, "code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
	resp, err := f.client.Get(start.Authorization + "?" + query.Encode())
	f.must(resp, err)
	_ = resp.Body.Close()
	back, err := url.Parse(resp.Header.Get("Location"))
	f.must(back, err)
	if back.Query().Get("code") == "" {
		f.Fatalf("the issuer sends the browser to %q: %s", back, resp.Status)
	}
	return url.Values{
		"grant_type": {grantCode}, "provider": {"corp"}, "code": {back.Query().Get("code")}, "redirect_uri": {redirect}, "code_verifier": {loginVerifier},
		"nonce": {"n"}, "access_type": {"offline"}, "scope": {"repository:team/app:pull,push"},
	}
}

func with(form url.Values, name, value string) url.Values {
	form.Set(name, value)
	return form
}

// Somebody whom only the provider knows comes in by a browser, and with what that gave at every node.
func TestPeople(t *testing.T) {
	var ahead atomic.Int64
	f, _ := withPeople(t, 3, func(c *Config) {
		c.Access.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	got := f.given(f.postToken(f.nodes[0], f.browser(f.nodes[0])))
	bearer := "Authorization: Bearer " + got.Token
	blob := randomBytes(100)
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/?digest="+digestOf(blob), blob, bearer), 201, "")
	f.want(f.doOn(f.nodes[2], "GET", "/v2/team/app/blobs/"+digestOf(blob), nil, bearer), 200, "")
	f.want(f.doOn(f.nodes[1], "POST", "/v2/other/blobs/uploads/", nil, bearer), 403, codeDenied)
	refresh := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {got.RefreshToken}, "scope": {"repository:team/app:pull"}}
	f.given(f.postToken(f.nodes[1], refresh))
	// docker login with what pier token prints.
	docker := f.given(f.doOn(f.nodes[2], "GET", "/token?offline_token=true&scope=repository:team/app:push,pull", nil, basicOf("jane.doe", got.RefreshToken)))
	f.want(f.doOn(f.nodes[0], "POST", "/v2/team/app/blobs/uploads/", nil, "Authorization: Bearer "+docker.Token), 202, "")
	f.want(f.do("GET", "/v2/", nil, basicOf("root", got.RefreshToken)), 401, codeUnauthorized)
	ahead.Store(int64(personLife - time.Minute))
	f.given(f.postToken(f.nodes[1], refresh))
	ahead.Store(int64(personLife + time.Second))
	f.want(f.postToken(f.nodes[1], refresh), 401, codeUnauthorized)
	f.want(f.do("GET", "/v2/", nil, basicOf("jane.doe", docker.RefreshToken)), 401, codeUnauthorized)
}

// A login that isn't the one that was begun.
func TestWrongLogins(t *testing.T) {
	f, i := withPeople(t, 2, nil)
	form := f.browser(f.nodes[0])
	f.given(f.postToken(f.nodes[0], form))
	f.want(f.postToken(f.nodes[0], form), 401, codeUnauthorized) // the code was used
	f.want(f.postToken(f.nodes[1], form), 401, codeUnauthorized)
	f.want(f.postToken(f.nodes[0], with(f.browser(f.nodes[0]), "nonce", "another")), 401, codeUnauthorized)
	f.want(f.postToken(f.nodes[0], with(f.browser(f.nodes[0]), "code_verifier", "another-verifier-0123456789-0123456789-0123456789")), 401, codeUnauthorized)
	f.want(f.postToken(f.nodes[0], with(f.browser(f.nodes[0]), "code", "x")), 401, codeUnauthorized)
	for _, missing := range []string{"code", "redirect_uri", "code_verifier", "nonce"} {
		f.want(f.postToken(f.nodes[0], with(f.browser(f.nodes[0]), missing, "")), 400, codeUnsupported)
	}
	f.want(f.postToken(f.nodes[0], with(f.browser(f.nodes[0]), "provider", "none")), 404, codeNameUnknown)
	slowed := false
	for range 40 {
		got := f.postToken(f.nodes[0], with(form, "code", "guess"))
		slowed = slowed || got.StatusCode == 429
		if strings.Contains(string(got.body), i.ClientSecret) {
			t.Fatal("the client's secret is told")
		}
	}
	if !slowed {
		t.Error("forty wrong codes, and none had to wait")
	}
	f.want(f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "root")), 200, "")
}

// What a login rests on ends it: the provider, its settings, and who is kept out here.
func TestPeopleEnd(t *testing.T) {
	f, i := withPeople(t, 2, nil)
	login := func() (bearer string, refresh url.Values) {
		got := f.given(f.postToken(f.nodes[0], f.browser(f.nodes[0])))
		return "Authorization: Bearer " + got.Token, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {got.RefreshToken}}
	}
	linked := func(p fsm.Principal) { f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutPrincipal{Principal: p})) }
	yes := true
	for name, end := range map[string]func(){
		"the provider goes":      func() { f.want(f.order("/access/provider/remove", client.NameRequest{Name: "corp"}), 200, "") },
		"the provider changes":   func() { f.provide(i, func(o *client.OIDC) { o.GroupsClaim = "roles" }) },
		"the name is taken here": func() { f.user("jane.doe") },
		"she is kept out": func() {
			linked(fsm.Principal{Name: "jane.doe", Provider: "corp"})
			f.want(f.order("/access/change", client.PrincipalChange{Name: "jane.doe", Disabled: &yes}), 200, "")
		},
	} {
		f.provide(i, nil)
		bearer, refresh := login()
		f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", nil, bearer), 202, "")
		end()
		if got := f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", nil, bearer); got.StatusCode != 401 {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
		}
		if got := f.postToken(f.nodes[1], refresh); got.StatusCode != 401 {
			t.Errorf("%s, again: %d %s", name, got.StatusCode, got.body)
		}
		if strings.Contains(name, "provider") {
			continue
		}
		if got := f.postToken(f.nodes[1], f.browser(f.nodes[1])); got.StatusCode != 401 {
			t.Errorf("%s, another login: %d %s", name, got.StatusCode, got.body)
		}
		f.want(f.order("/access/remove", client.RemovalRequest{Name: "jane.doe"}), 200, "")
	}
	// Who is linked has grants of her own beside those of her groups.
	f.provide(i, nil)
	linked(fsm.Principal{Name: "jane.doe", Provider: "corp"})
	f.grant("jane.doe", "push:own/**")
	bearer := "Authorization: Bearer " + f.given(f.postToken(f.nodes[0], with(f.browser(f.nodes[0]), "scope", "repository:own/x:push,pull repository:team/app:push,pull"))).Token
	for _, repo := range []string{"own/x", "team/app"} {
		f.want(f.doOn(f.nodes[1], "POST", "/v2/"+repo+"/blobs/uploads/", nil, bearer), 202, "")
	}
}

// An ID token of a person is exchanged as a job's is; who it may be is for the provider's settings to say.
func TestIDTokensOfPeople(t *testing.T) {
	f, i := withPeople(t, 1, nil)
	token := func(changes jwt.MapClaims) string {
		c := jwt.MapClaims{"aud": i.ClientID, "preferred_username": "Jane.Doe", "groups": []string{"engineering", "not a name"}, "email": "jane@example.org"}
		for k, v := range changes {
			c[k] = v
		}
		return i.Token(time.Now(), c)
	}
	f.want(f.postToken(f.nodes[0], exchangeForm(token(nil))), 401, codeUnauthorized) // nobody has said that they are taken
	takes := func(o *client.OIDC) { o.IDTokens = true }
	f.provide(i, takes)
	got := f.given(f.postToken(f.nodes[0], exchangeForm(token(nil), "access_type", "offline")))
	if got.RefreshToken == "" || got.IssuedType != typeAccess {
		t.Errorf("%+v", got)
	}
	if user, ends := (client.Login{Token: got.RefreshToken}).Whose(); user != "jane.doe" || time.Until(ends) > personLife || time.Until(ends) < personLife-time.Minute {
		t.Errorf("%s until %s", user, ends)
	}
	f.want(f.do("POST", "/v2/team/app/blobs/uploads/", nil, "Authorization: Bearer "+got.Token), 202, "")
	f.want(f.do("GET", "/v2/", nil, basicOf("jane.doe", token(nil))), 401, codeUnauthorized) // a password it is not
	for name, changes := range map[string]jwt.MapClaims{
		"another program's":            {"aud": "other"},
		"another program's, and ours":  {"aud": []string{i.ClientID, "other"}},
		"asked for by another":         {"aud": []string{i.ClientID, "other"}, "azp": "other"},
		"asked for by another, single": {"azp": "other"},
		"an azp that is a number":      {"azp": 7},
		"no name":                      {"preferred_username": nil},
		"a list of names":              {"preferred_username": []string{"root"}},
		"a bad name":                   {"preferred_username": "a:b"},
		"a long name":                  {"preferred_username": strings.Repeat("a", 65)},
		"anonymous":                    {"preferred_username": "Anonymous"},
		"plain in lower case alone":    {"preferred_username": "\u212aim"}, // the sign for kelvin
		"a local user's":               {"preferred_username": "root"},
		"a local user's, in capitals":  {"preferred_username": "ROOT"},
		"expired":                      {"exp": time.Now().Add(-time.Minute).Unix()},
	} {
		if got := f.postToken(f.nodes[0], exchangeForm(token(changes))); got.StatusCode != 401 {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
		}
	}
	f.given(f.postToken(f.nodes[0], exchangeForm(token(jwt.MapClaims{"aud": []string{i.ClientID, "other"}, "azp": i.ClientID}))))
	f.provide(i, func(o *client.OIDC) { o.NameClaim, o.IDTokens = "email", true })
	for _, verified := range []any{nil, false, "no", 1} {
		if got := f.postToken(f.nodes[0], exchangeForm(token(jwt.MapClaims{"email_verified": verified}))); got.StatusCode != 401 {
			t.Errorf("an e-mail address that is verified %v: %d", verified, got.StatusCode)
		}
	}
	got = f.given(f.postToken(f.nodes[0], exchangeForm(token(jwt.MapClaims{"email_verified": true}), "access_type", "offline")))
	if user, _ := (client.Login{Token: got.RefreshToken}).Whose(); user != "jane@example.org" {
		t.Error(user)
	}
}

// Who says which provider a token or a code is of is asked about that one; a directory is none for either.
func TestProviderThatIsMeant(t *testing.T) {
	f, i := withPeople(t, 1, nil)
	f.provide(i, func(o *client.OIDC) { o.IDTokens = true })
	directory := deadProvider(t)
	directory.Name = "directory"
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: directory}), 200, "")
	token := i.Token(time.Now(), jwt.MapClaims{"aud": i.ClientID, "preferred_username": "jane"})
	for name, status := range map[string]int{"": 200, "corp": 200, "directory": 401, "other": 401} {
		form := exchangeForm(token, "provider", name, "subject_token_type", typeJWT, "requested_token_type", typeAccess)
		if got := f.postToken(f.nodes[0], form); got.StatusCode != status {
			t.Errorf("a token at %q: %d %s", name, got.StatusCode, got.body)
		}
	}
	f.want(f.do("GET", "/api/v1/login", nil), 200, "") // there is one at which a browser can log in
	f.want(f.postToken(f.nodes[0], with(f.browser(f.nodes[0]), "provider", "directory")), 404, codeNameUnknown)
}

// The provider's answer to a code is believed as far as its ID token is good.
func TestCodeForABadToken(t *testing.T) {
	f, i := withPeople(t, 1, nil)
	other := oidc.New(t, nil)
	other.Rotate() // the library gives all servers the same key
	claims := jwt.MapClaims{"iss": i.Issuer(), "aud": i.ClientID, "preferred_username": "jane", "nonce": "n"}
	for _, x := range []struct {
		name   string
		by     *oidc.Server
		change jwt.MapClaims
		status int
	}{
		{"good", i, nil, 200}, {"another's key", other, nil, 401}, {"expired", i, jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()}, 401},
		{"another program's", i, jwt.MapClaims{"aud": "other"}, 401}, {"another login's", i, jwt.MapClaims{"nonce": "m"}, 401}, {"no login's", i, jwt.MapClaims{"nonce": nil}, 401},
	} { // one more wrong one would have to wait
		form, all := f.browser(f.nodes[0]), maps.Clone(claims)
		maps.Copy(all, x.change)
		i.Answer(mockoidc.TokenEndpoint, `{"access_token":"x","token_type":"Bearer","id_token":"`+x.by.Token(time.Now(), all)+`"}`)
		if got := f.postToken(f.nodes[0], form); got.StatusCode != x.status {
			t.Errorf("%s: %d %s", x.name, got.StatusCode, got.body)
		}
	}
}

// Groups count as they are mapped.
func TestGroupsOfPeople(t *testing.T) {
	f, i := withPeople(t, 1, nil)
	may := func(repo string) bool {
		got := f.given(f.postToken(f.nodes[0], with(f.browser(f.nodes[0]), "scope", "repository:"+repo+":pull,push")))
		return f.do("POST", "/v2/"+repo+"/blobs/uploads/", nil, "Authorization: Bearer "+got.Token).StatusCode == 202
	}
	f.grant("group:corp-design", "push:design/**")
	for name, x := range map[string]struct {
		change       func(o *client.OIDC)
		team, design bool
	}{
		"all":       {nil, true, false},
		"none":      {func(o *client.OIDC) { o.All = false }, false, false},
		"mapped":    {func(o *client.OIDC) { o.All, o.Map = false, map[string]string{"design": "engineering"} }, true, false},
		"prefixed":  {func(o *client.OIDC) { o.Prefix = "corp-" }, false, true},
		"elsewhere": {func(o *client.OIDC) { o.GroupsClaim = "sub" }, false, false},
	} {
		f.provide(i, x.change)
		if team, design := may("team/app"), may("design/app"); team != x.team || design != x.design {
			t.Errorf("%s: team %v, design %v", name, team, design)
		}
	}
}

// A provider that can't be reached keeps out only who would log in there.
func TestProviderDown(t *testing.T) {
	f, i := withPeople(t, 2, nil)
	form := f.browser(f.nodes[0])
	got := f.given(f.postToken(f.nodes[0], f.browser(f.nodes[0])))
	// A client's secret that isn't the provider's is no fault of who logs in, and no wrong login.
	f.provide(i, func(o *client.OIDC) { o.ClientSecret = "that of last year" })
	for range 25 {
		f.want(f.postToken(f.nodes[0], form), 503, codeUnavailable)
	}
	f.provide(i, nil)
	got = f.given(f.postToken(f.nodes[0], f.browser(f.nodes[0])))
	i.Down(true)
	f.want(f.doOn(f.nodes[1], "GET", "/api/v1/login", nil), 503, codeUnavailable)
	f.want(f.postToken(f.nodes[1], form), 503, codeUnavailable)
	f.want(f.postToken(f.nodes[0], form), 503, codeUnavailable)
	if level := f.doctor()["node-1 issuer "+i.Issuer()]; level != client.LevelWarning {
		t.Errorf("the doctor says %q of a node that never had an answer", level)
	}
	for _, n := range f.nodes {
		f.want(f.doOn(n, "POST", "/v2/team/app/blobs/uploads/", nil, "Authorization: Bearer "+got.Token), 202, "")
		f.given(f.postToken(n, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {got.RefreshToken}}))
		f.want(f.doOn(n, "GET", "/v2/", nil, "Authorization: "+basic(f, "root")), 200, "")
	}
}

// How a login begins is for everybody to know; the client's secret is for nobody.
func TestHowToLogIn(t *testing.T) {
	f, i := withPeople(t, 1, nil)
	got := f.want(f.do("GET", "/api/v1/login?provider=corp", nil), 200, "")
	var start client.LoginStart
	f.must(nil, json.Unmarshal(got.body, &start))
	if start.Authorization != i.AuthorizationEndpoint() || start.ClientID != i.ClientID || start.Issuer != i.Issuer() || strings.Join(start.Scopes, " ") != "openid profile groups" {
		t.Errorf("%+v", start)
	}
	list := f.want(f.do("GET", "/api/v1/access/providers", nil, "Authorization: "+basic(f, "root")), 200, "")
	for _, a := range []answer{got, list} {
		if strings.Contains(string(a.body), i.ClientSecret) {
			t.Errorf("the client's secret is told: %s", a.body)
		}
	}
	f.want(f.do("GET", "/api/v1/login?provider=none", nil), 404, codeNameUnknown)
	o := client.OIDC{Issuer: i.Issuer(), ClientID: "x"}
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: client.Provider{Name: "two", OIDC: &o}}), 200, "")
	f.want(f.do("GET", "/api/v1/login", nil), 409, codeConflict)
	for _, name := range []string{"corp", "two"} {
		f.want(f.order("/access/provider/remove", client.NameRequest{Name: name}), 200, "")
	}
	f.want(f.do("GET", "/api/v1/login", nil), 404, codeNameUnknown)
	if f.postToken(f.nodes[0], exchangeForm(i.Token(time.Now(), jwt.MapClaims{"aud": i.ClientID, "preferred_username": "x"}))).StatusCode != http.StatusUnauthorized {
		t.Error("a provider that is gone lets somebody in")
	}
}
