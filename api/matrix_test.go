package api

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/opencontainers/go-digest"

	"pier/api/auth"
	"pier/fsm"
)

// actor is somebody with credentials.
type actor struct {
	name string
	// header gives the Authorization header for a request about a repository; empty sends none.
	header func(repo string) string
	// rights are of r(ead) w(rite) d(elete), by repository.
	rights map[string]string
	// refused is the status where there is no right; 0: any refusal, for those who are slowed down.
	refused int
	// out tells that the credentials are no good at all, so that nothing is allowed, whatever it needs.
	out bool
}

// stage is a cluster of three nodes with somebody of each kind, and repositories that are there, open to all, not there, and
// called like routes.
type stage struct {
	*fixture
	now   time.Time
	repos []string
}

const (
	oddRepo  = "token/blobs"
	oddRepo2 = "v2/manifests"
)

func newStage(t *testing.T) *stage {
	s := &stage{now: time.Now(), repos: []string{"team/app", "team/none", "public/x", "other", "none", oddRepo, oddRepo2}}
	s.fixture = withAccess(t, 3, func(c *Config) { c.Access.Now = func() time.Time { return s.now } })
	for _, repo := range s.repos {
		if strings.Contains(repo, "none") {
			continue
		}
		s.must(s.nodes[0].log.Propose(s.Context(), fsm.PutManifest{Repo: fsm.Repo(repo), Digest: digest.FromBytes(emptyIndex()), MediaType: fsm.TypeOCIIndex, Body: emptyIndex(), Tags: []fsm.Tag{"1"}}))
	}
	s.user("root")
	for name, grants := range map[string][]string{
		"puller": {"pull:team/**"}, "pusher": {"push:team/**"}, "deleter": {"pull:team/**", "delete:team/**"}, "broom": {"delete:team/**"},
		"chief": {"admin:team/**"}, "member": nil, "nothing": nil, "off": {"admin:**"}, "odd": {"push:" + oddRepo, "pull:" + oddRepo2}, "wrong": {"admin:**"},
	} {
		s.user(name, grants...)
	}
	s.grant("anonymous", "pull:public/**")
	s.grant("group:dev", "push:team/*")
	s.change("member", func(p *fsm.Principal) { p.Groups = []string{"dev"} })
	return s
}

// change edits a principal.
func (f *fixture) change(name string, edit func(p *fsm.Principal)) {
	f.Helper()
	a, err := f.nodes[0].state.Access()
	f.must(a, err)
	i := slices.IndexFunc(a.Principals, func(p fsm.Principal) bool { return p.Name == name })
	p := a.Principals[i]
	edit(&p)
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutPrincipal{Principal: p, Was: p.Generation}))
}

// robot makes one whose secret is good for a time.
func (s *stage) robot(name string, life time.Duration, grants ...string) string {
	s.Helper()
	text, kept := auth.NewSecret()
	s.must(s.nodes[0].log.Propose(s.Context(), fsm.PutPrincipal{Principal: fsm.Principal{
		Name: name, Robot: true, Expires: millis(s.now.Add(life)), Secrets: []fsm.RobotSecret{{ID: kept.ID, Hash: kept.Hash}},
	}}))
	s.grant(name, grants...)
	return text
}

func always(header string) func(string) string { return func(string) string { return header } }

func login(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

// actors come in two ways each, with a password and with a token of another node; those who may not come in are last, since
// their wrong logins slow others down.
func (s *stage) actors() []actor {
	on := func(repos ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(repos); i += 2 {
			out[repos[i]] = repos[i+1]
		}
		return out
	}
	team := func(letters string) map[string]string {
		return on("team/app", letters, "team/none", letters, "public/x", "r")
	}
	all := map[string]string{}
	for _, repo := range s.repos {
		all[repo] = "rwd"
	}
	out := []actor{{"nobody", always(""), on("public/x", "r"), 401, false}}
	for name, rights := range map[string]map[string]string{
		"root": all, "puller": team("r"), "pusher": team("rw"), "deleter": team("rd"), "broom": on("public/x", "r"), "chief": team("rwd"),
		"member": team("rw"), "nothing": on("public/x", "r"), "odd": on(oddRepo, "rw", oddRepo2, "r", "public/x", "r"), "": on("public/x", "r"),
	} {
		refused := 403
		if name == "" {
			refused = 401
		} else {
			out = append(out, actor{name + " with a password", always(basic(s.fixture, name)), rights, refused, false})
		}
		tokens := map[string]string{}
		for _, repo := range s.repos {
			tokens[repo] = "Bearer " + s.token(s.nodes[0], name, "repository:"+repo+":*", "registry:catalog:*")
		}
		out = append(out, actor{cmp.Or(name, "nobody") + " with a token", func(repo string) string { return tokens[repo] }, rights, refused, false})
	}
	secret := s.robot("ci", time.Hour, "push:team/app")
	out = append(out, actor{"a robot", always(login("ci", secret)), on("team/app", "rw", "public/x", "r"), 403, false})
	pull := "Bearer " + s.token(s.nodes[1], "root", "repository:team/app:pull", "registry:catalog:*")
	out = append(out,
		actor{"root with a token to pull one", always(pull), on("team/app", "r"), 401, false},
		actor{"root with a token for nothing", always("Bearer " + s.token(s.nodes[2], "root")), on(), 401, false})
	old := s.robot("old", time.Minute, "admin:**")
	oldToken := "Bearer " + s.robotToken("old", old)
	offToken := "Bearer " + s.token(s.nodes[0], "off", "repository:team/app:*")
	s.change("off", func(p *fsm.Principal) { p.Disabled = true })
	s.now = s.now.Add(2 * time.Minute)
	return append(out,
		actor{"a disabled user's token", always(offToken), on(), 401, true}, actor{"an expired robot's token", always(oldToken), on(), 401, true},
		actor{"a wrong password", always(login("wrong", "guess")), on(), 0, true}, actor{"a disabled user", always(basic(s.fixture, "off")), on(), 0, true},
		actor{"an expired robot", always(login("old", old)), on(), 0, true}, actor{"a name that nobody has", always(login("who", "guess")), on(), 0, true})
}

func (s *stage) robotToken(name, secret string) string {
	s.Helper()
	d, err := s.nodes[0].api.access.directory()
	s.must(d, err)
	c, _ := d.Active(name, s.now)
	token, err := s.nodes[0].api.access.cfg.Keys().Issue(c, tokenService, []auth.Scope{{Type: "repository", Name: "team/app", Actions: []string{"pull"}}}, s.now, time.Hour)
	s.must(secret, err)
	return token.Text
}

// Actor × endpoint × repository, spread over three nodes. What is refused is refused in the same words whether there is such a
// repository or not.
func TestWhoMayDoWhat(t *testing.T) {
	s := newStage(t)
	letters := map[need]string{needsPull: "r", needsPush: "w", needsDelete: "d"}
	tried := 0
	for _, a := range s.actors() {
		said := map[string]string{} // by kind, method and whether it is there
		for r, repo := range s.repos {
			for i, e := range endpoints(repo) {
				n := s.nodes[(i+r)%len(s.nodes)]
				needs := n.api.table[e.kind][e.method].needs
				var headers []string
				if h := a.header(repo); h != "" {
					headers = []string{"Authorization: " + h}
				}
				may := !a.out && (letters[needs] == "" && len(headers) > 0 || letters[needs] != "" && strings.Contains(a.rights[repo], letters[needs]))
				if needs == needsCatalog && a.name == "root with a token for nothing" {
					may = false
				}
				got := s.doOn(n, e.method, e.path, nil, headers...)
				tried++
				if refused := got.StatusCode == 401 || got.StatusCode == 403 || got.StatusCode == 429; refused == may || refused && a.refused != 0 && letters[needs] != "" && got.StatusCode != a.refused {
					t.Errorf("%s: %s %s: %d %s", a.name, e.method, e.path, got.StatusCode, got.body)
				}
				if got.StatusCode >= 500 {
					t.Errorf("%s: %s %s: %d %s", a.name, e.method, e.path, got.StatusCode, got.body)
				}
				if got.StatusCode != 401 && got.StatusCode != 403 || repo != "other" && repo != "none" {
					continue
				}
				key := e.kind.String() + " " + e.method
				words := strings.ReplaceAll(fmt.Sprint(got.StatusCode, got.Header.Get("WWW-Authenticate"), string(got.body)), n.url, "")
				words = strings.ReplaceAll(words, repo, "REPO")
				if other, ok := said[key]; ok && other != words {
					t.Errorf("%s: %s of what is there is refused with %s, of what isn't with %s", a.name, key, other, words)
				}
				said[key] = words
			}
		}
	}
	t.Logf("%d requests", tried)
}

// The operator on the socket may do all, whatever is sent along.
func TestOperatorMayDoAll(t *testing.T) {
	s := newStage(t)
	for _, header := range []string{"", login("wrong", "guess"), "Bearer x"} {
		for _, repo := range s.repos {
			for i, e := range endpoints(repo) {
				r := httptest.NewRequest(e.method, "http://pier"+e.path, nil)
				if header != "" {
					r.Header.Set("Authorization", header)
				}
				w := &brief{httptest.NewRecorder()}
				s.nodes[i%3].api.Control().ServeHTTP(w, r)
				if w.Code == 401 || w.Code == 403 || w.Code >= 500 {
					t.Errorf("%s %s with %.20q: %d %s", e.method, e.path, header, w.Code, w.Body)
				}
			}
		}
	}
}

// Every route beside the registry's, found in the router itself: who may use it.
func TestWhoMayUseTheControlAPI(t *testing.T) {
	s := newStage(t)
	open := []string{"/healthz", "/readyz", "/token", "/api/v1/ca", "/api/v1/login", "/v2", "/v2/*"}
	routes := map[string][]string{}
	err := chi.Walk(s.nodes[0].api.Handler().(chi.Routes), func(method, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routes[path] = append(routes[path], method)
		return nil
	})
	s.must(routes, err)
	if len(routes) < 20 {
		t.Fatalf("only %v", routes)
	}
	before := s.nodes[0].state.AccessVersion()
	admin := s.token(s.nodes[0], "root", "cluster:pier:admin")
	for path, methods := range routes {
		if slices.Contains(open, path) {
			continue
		}
		for _, method := range methods {
			for who, header := range map[string]string{
				"nobody": "", "alice": basic(s.fixture, "chief"), "everywhere but here": "Bearer " + s.token(s.nodes[0], "root", "repository:**:*", "registry:catalog:*"),
				"half an admin": "Bearer " + s.token(s.nodes[1], "chief", "cluster:pier:admin"), "a guess": "Bearer " + admin[:len(admin)-2] + "xx",
			} {
				headers := []string{"X-Forwarded-For: 192.0.2.1"}
				if header != "" {
					headers = append(headers, "Authorization: "+header)
				}
				got := s.doOn(s.nodes[len(who)%3], method, path, []byte(`{"name":"eve","subject":"eve","right":"admin","pattern":"**","password":"long enough"}`), headers...)
				if got.StatusCode != 401 && got.StatusCode != 403 {
					t.Errorf("%s: %s %s: %d %s", who, method, path, got.StatusCode, got.body)
				}
			}
		}
	}
	if after := s.nodes[0].state.AccessVersion(); after != before {
		t.Errorf("somebody without a right has changed something: %d, %d", before, after)
	}
	// A token that was made for something else: another one would do.
	got := s.want(s.do("GET", "/api/v1/access", nil, "Authorization: Bearer "+s.token(s.nodes[0], "root", "repository:a:pull")), 401, codeUnauthorized)
	if said := got.Header.Get("WWW-Authenticate"); !strings.HasSuffix(said, `,scope="cluster:pier:admin",error="insufficient_scope"`) {
		t.Errorf("an administrator's other token is asked for by %q", said)
	}
	s.want(s.do("GET", "/api/v1/access", nil, "Authorization: Bearer "+s.token(s.nodes[0], "chief", "repository:a:pull")), 403, codeDenied)
	got = s.want(s.do("GET", "/api/v1/access", nil, "Authorization: Bearer "+admin), 200, "")
	if strings.Contains(string(got.body), "eve") {
		t.Errorf("%s", got.body)
	}
}
