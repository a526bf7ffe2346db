package api

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"pier/api/auth"
	"pier/api/client"
	"pier/fsm"
)

const bindSecret = "the secret of the bind user"

// deadProvider is an LDAP provider at which nobody answers.
func deadProvider(t *testing.T) client.Provider {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = lis.Close()
	return client.Provider{Name: "corp", LDAP: &client.LDAP{
		URLs: []string{"ldaps://" + lis.Addr().String()}, Base: "ou=people,dc=example,dc=org", BindDN: "cn=pier", BindPassword: bindSecret,
		Groups: client.LDAPGroups{Map: map[string]string{"cn=devs,dc=x": "dev"}},
	}}
}

// What is said of providers is for administrators, and no answer has a secret in it.
func TestProvidersAreSetByAdministrators(t *testing.T) {
	f := withAccess(t, 2, audits(t, false))
	corp := deadProvider(t)
	calls := map[string]any{
		"/access/provider/add": client.ProviderRequest{Provider: corp}, "/access/provider/remove": client.NameRequest{Name: "corp"},
		"/access/provider/test": client.ProviderTest{Name: "corp", User: "alice", Password: "alice's own"},
	}
	try := func(want int, code string, headers ...string) {
		t.Helper()
		f.want(f.do("GET", "/api/v1/access/providers", nil, headers...), want, code)
		for path, in := range calls {
			body, err := json.Marshal(in)
			f.must(body, err)
			f.want(f.do("POST", "/api/v1"+path, body, headers...), want, code)
		}
	}
	try(403, codeDenied) // open, and so closed to changes
	f.user("root")
	f.user("alice", "admin:team/**")
	try(401, codeUnauthorized)
	try(403, codeDenied, "Authorization: "+basic(f, "alice"))
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: corp}), 200, "")
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: corp}), 409, codeConflict)
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: corp, Replace: true}), 200, "")
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: client.Provider{Name: "x"}}), 400, codeInvalid)
	large := deadProvider(t)
	for i := range 1000 { // as many groups as may be mapped
		large.LDAP.Groups.Map[fmt.Sprintf("cn=team-%d,ou=%s,dc=example,dc=org", i, strings.Repeat("unit", 40))] = "dev"
	}
	delete(large.LDAP.Groups.Map, "cn=devs,dc=x")
	large.Name = "large"
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: large}), 200, "")
	f.want(f.order("/access/provider/remove", client.NameRequest{Name: "large"}), 200, "")
	large.LDAP.BindPassword = strings.Repeat("x", 100<<10)
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: large}), 413, codeUnsupported)
	large.LDAP.BindPassword = strings.Repeat("x", 1<<20)
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: large}), 413, codeUnsupported)
	var said []string
	for _, n := range f.nodes {
		got := f.want(f.doOn(n, "GET", "/api/v1/access/providers", nil, "Authorization: "+basic(f, "root")), 200, "")
		var all []client.Provider
		f.must(nil, json.Unmarshal(got.body, &all))
		if len(all) != 1 || all[0].LDAP == nil || all[0].LDAP.BindDN != "cn=pier" || all[0].LDAP.Groups.Map["cn=devs,dc=x"] != "dev" {
			t.Errorf("%s", got.body)
		}
		said = append(said, string(got.body))
	}
	report := f.want(f.order("/access/provider/test", calls["/access/provider/test"]), 200, "")
	f.want(f.order("/access/provider/test", client.ProviderTest{Name: "none", User: "x"}), 404, codeNameUnknown)
	f.want(f.order("/access/provider/remove", client.NameRequest{Name: "corp"}), 200, "")
	f.want(f.order("/access/provider/remove", client.NameRequest{Name: "corp"}), 404, codeNameUnknown)
	eventually(t, func() error { // the log is written a little later
		got := f.want(f.do("GET", "/api/v1/audit", nil, "Authorization: "+basic(f, "root")), 200, "")
		if !strings.Contains(string(got.body), `"target":"corp ldap"`) || !strings.Contains(string(got.body), `"target":"corp user=alice"`) {
			return net.ErrClosed
		}
		said = append(said, string(got.body), string(report.body))
		return nil
	})
	for _, text := range said {
		if strings.Contains(text, bindSecret) || strings.Contains(text, "alice's own") {
			t.Errorf("a secret is in %s", text)
		}
	}
}

// A record of somebody from outside has no password, and the name that a login there gives.
func TestRecordsOfOutsiders(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	f.want(f.order("/access/user/add", client.UserRequest{Name: "bob", Provider: "corp"}), 400, codeInvalid)
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: deadProvider(t)}), 200, "")
	for _, bad := range []client.UserRequest{
		{Name: "Bob", Provider: "corp"}, {Name: "bob", Provider: "corp", Password: "a password"}, {Name: "bob", Provider: "corp", Hash: "$2"},
		{Name: "b b", Provider: "corp"}, {Name: "bob", Provider: "corp", Groups: []string{"a b"}}, {Name: "bob", Provider: "none"},
	} {
		f.want(f.order("/access/user/add", bad), 400, codeInvalid)
	}
	for path, in := range map[string]any{"/access/change": client.PrincipalChange{Name: "bob"}, "/access/grant": client.Grant{Subject: "bob", Right: "pull", Pattern: "a"}} {
		if got := f.want(f.order(path, in), 404, codeNameUnknown); !strings.Contains(string(got.body), "pier user add bob --provider") {
			t.Errorf("%s: %s", path, got.body)
		}
	}
	f.want(f.order("/access/user/add", client.UserRequest{Name: "bob", Provider: "corp", Groups: []string{"dev"}}), 200, "")
	f.want(f.order("/access/grant", client.Grant{Subject: "bob", Right: "pull", Pattern: "a"}), 200, "")
	password := "a password"
	f.want(f.order("/access/change", client.PrincipalChange{Name: "bob", Password: &password}), 400, codeInvalid)
	got := f.want(f.do("GET", "/api/v1/access", nil, "Authorization: "+basic(f, "root")), 200, "")
	if !strings.Contains(string(got.body), `{"name":"bob","kind":"user","provider":"corp","groups":["dev"],"disabled":false}`) {
		t.Errorf("%s", got.body)
	}
}

// Nobody answers for those from outside: their logins are for later, and all else goes on.
func TestProviderThatIsDead(t *testing.T) {
	f := withAccess(t, 3, nil)
	f.user("root")
	f.user("alice", "pull:a")
	token := f.token(f.nodes[0], "alice", "repository:a:pull")
	f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: deadProvider(t)}), 200, "")
	for _, n := range f.nodes {
		for _, got := range []answer{
			f.doOn(n, "GET", "/v2/", nil, "Authorization: "+basic(f, "carol")), f.doOn(n, "GET", "/token", nil, "Authorization: "+basic(f, "carol")),
			f.postToken(n, url.Values{"grant_type": {"password"}, "username": {"carol"}, "password": {"x"}}),
		} {
			f.want(got, 503, codeUnavailable)
			if got.Header.Get("Retry-After") == "" || strings.Contains(string(got.body), "corp") || strings.Contains(string(got.body), "ldap") {
				t.Errorf("%s", got.body)
			}
		}
		f.want(f.doOn(n, "GET", "/v2/a/tags/list", nil, "Authorization: "+basic(f, "alice")), 404, codeNameUnknown)
		f.want(f.doOn(n, "GET", "/v2/a/tags/list", nil, "Authorization: Bearer "+token), 404, codeNameUnknown)
		f.want(f.doOn(n, "GET", "/v2/", nil, "Authorization: "+basicOf("alice", "wrong")), 401, codeUnauthorized)
		if got := f.doctor()[n.api.cfg.Name+" provider corp"]; got != client.LevelWarning {
			t.Errorf("the doctor says %q of %s", got, n.api.cfg.Name)
		}
	}
}

// What a provider has vouched for ends with the provider, with its settings, and with what is decided here about the name.
func TestOutsidersTokensEnd(t *testing.T) {
	for what, change := range map[string]func(f *fixture){
		"the provider goes": func(f *fixture) {
			f.want(f.order("/access/provider/remove", client.NameRequest{Name: "corp"}), 200, "")
		},
		"it changes": func(f *fixture) {
			f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: deadProvider(t), Replace: true}), 200, "")
		},
		"a record comes": func(f *fixture) {
			f.want(f.order("/access/user/add", client.UserRequest{Name: "carol", Provider: "corp"}), 200, "")
		},
		"a local user comes": func(f *fixture) { f.user("carol") },
	} {
		f := withAccess(t, 2, nil)
		f.user("root")
		f.want(f.order("/access/provider/add", client.ProviderRequest{Provider: deadProvider(t)}), 200, "")
		f.grant("group:dev", "pull:a")
		documents, err := f.nodes[0].state.Documents(fsm.KindProvider)
		f.must(documents, err)
		carol := auth.Caller{Kind: auth.KindUser, Name: "carol", Groups: []string{"dev"}, Provider: "corp", ProviderGeneration: documents[0].Generation}
		keys := f.nodes[0].api.access.cfg.Keys()
		token, err := keys.Issue(carol, tokenService, []auth.Scope{auth.RepositoryScope("a", auth.Pull)}, time.Now(), time.Minute)
		f.must(token, err)
		refresh, err := keys.IssueRefresh(carol, tokenService, time.Now(), time.Minute)
		f.must(refresh, err)
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh.Text}}
		f.want(f.doOn(f.nodes[1], "GET", "/v2/a/tags/list", nil, "Authorization: Bearer "+token.Text), 404, codeNameUnknown)
		f.want(f.doOn(f.nodes[1], "GET", "/v2/b/tags/list", nil, "Authorization: Bearer "+token.Text), 403, codeDenied)
		f.want(f.postToken(f.nodes[1], form), 503, codeUnavailable) // it would have to be asked whether she is still there
		change(f)
		f.want(f.doOn(f.nodes[1], "GET", "/v2/a/tags/list", nil, "Authorization: Bearer "+token.Text), 401, codeUnauthorized)
		f.want(f.postToken(f.nodes[1], form), 401, codeUnauthorized)
		if t.Failed() {
			t.Fatal(what)
		}
	}
}
