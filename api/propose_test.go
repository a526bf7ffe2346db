package api

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
)

// A node that goes on serving and hasn't heard that a right was taken, or that the registry was closed, does nothing with it.
// What was let in by an older view and still may is done.
func TestChangesRestOnWhatHoldsNow(t *testing.T) {
	requests := []struct {
		method, path string
		status       int // of who still may
	}{
		{"PUT", "/manifests/2", 201}, {"DELETE", "/manifests/1", 202}, {"DELETE", "/manifests/INDEX", 202}, {"DELETE", "/blobs/BLOB", 202},
		{"PUT", "UPLOAD?digest=BLOB", 201}, {"PUT", "RELAYED?digest=BLOB", 201}, {"POST", "/blobs/uploads/?mount=BLOB&from=team/app", 201},
		{"POST", "/blobs/uploads/?digest=BLOB", 201},
	}
	for how, change := range map[string]func(f *fixture){
		"taken":  func(f *fixture) { f.must(f.nodes[0].log.Propose(f.Context(), fsm.DeletePrincipal{Name: "alice"})) },
		"closed": func(f *fixture) { f.user("root") },
		"given":  func(f *fixture) { f.user("bob", "pull:**") },
	} {
		for _, x := range requests {
			f := withAccess(t, 2, nil)
			content := randomBytes(100)
			blob := f.pushBlob(f.nodes[0], "team/app", content)
			index := digest.FromBytes(emptyIndex())
			f.must(f.nodes[0].log.Propose(f.Context(), fsm.PutManifest{Repo: "team/app", Digest: index, MediaType: fsm.TypeOCIIndex, Body: emptyIndex(), Tags: []fsm.Tag{"1"}}))
			upload := f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/", nil), 202, "").Header.Get("Location")
			relayed := f.want(f.doOn(f.nodes[0], "POST", "/v2/team/app/blobs/uploads/", nil), 202, "").Header.Get("Location")
			var headers []string
			if how != "closed" {
				f.user("root")
				f.user("alice", "push:**", "delete:**")
				headers = []string{"Authorization: " + basic(f, "alice")}
			}
			f.nodes[1].log.set(func(l *nodeLog) { l.lagging = true })
			change(f)
			path := strings.NewReplacer("UPLOAD", upload, "RELAYED", relayed).Replace(x.path)
			if path == x.path {
				path = "/v2/team/app" + path
			}
			path = strings.NewReplacer("BLOB", blob.String(), "INDEX", index.String()).Replace(path)
			var body []byte
			switch {
			case strings.Contains(path, "/manifests/2"):
				body, headers = emptyIndex(), append(headers, "Content-Type: "+fsm.TypeOCIIndex)
			case strings.Contains(path, "?digest="):
				body = content
			}
			got := f.doOn(f.nodes[1], x.method, path, body, headers...)
			want := 401
			if how == "given" {
				want = x.status
			}
			if got.StatusCode != want {
				t.Errorf("%s: %s %s: %d %s", how, x.method, x.path, got.StatusCode, got.body)
			}
			if want == 401 && !strings.Contains(got.Header.Get("WWW-Authenticate"), `scope="repository:team/app:`) {
				t.Errorf("%s: %s %s: who is refused isn't told how to come in: %q", how, x.method, x.path, got.Header.Get("WWW-Authenticate"))
			}
			f.unchanged(how, x.method+" "+x.path, how == "given", blob, index)
		}
	}
}

// unchanged checks that what was refused left all as it was.
func (f *fixture) unchanged(how, what string, may bool, blob, index digest.Digest) {
	f.Helper()
	if may {
		return
	}
	tags, _, err := f.nodes[0].state.Tags("team/app", "", 10)
	f.must(tags, err)
	if _, err := f.nodes[0].state.Manifest("team/app", index); len(tags) != 1 || tags[0] != "1" || err != nil {
		f.Errorf("%s: %s was refused, and the tags are %v, %v", how, what, tags, err)
	}
	if b, err := f.nodes[0].state.BlobRecord(blob); err != nil || b.Origin != f.nodes[0].id {
		f.Errorf("%s: %s was refused, and the blob is %+v, %v", how, what, b, err)
	}
}

// Where only the right on a mount's source is gone, the mount is one of what isn't there.
func TestMountOfWhatIsHiddenNow(t *testing.T) {
	f := withAccess(t, 2, nil)
	blob := f.pushBlob(f.nodes[0], "secret/app", randomBytes(100))
	f.user("root")
	f.user("alice", "push:team/**", "pull:secret/**")
	f.nodes[1].log.set(func(l *nodeLog) { l.lagging = true })
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.DeleteGrant{Grant: fsm.Grant{Subject: "alice", Right: "pull", Pattern: "secret/**"}}))
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/?mount="+blob.String()+"&from=secret/app", nil, "Authorization: "+basic(f, "alice")), 202, "")
}

// Where only the right to push is gone, the right on the source gives nothing.
func TestMountWithoutPushingNow(t *testing.T) {
	f := withAccess(t, 2, nil)
	blob := f.pushBlob(f.nodes[0], "base/app", randomBytes(100))
	f.user("root")
	f.user("alice", "push:team/**", "pull:base/**")
	f.nodes[1].log.set(func(l *nodeLog) { l.lagging = true })
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.DeleteGrant{Grant: fsm.Grant{Subject: "alice", Right: "push", Pattern: "team/**"}}))
	f.want(f.doOn(f.nodes[1], "POST", "/v2/team/app/blobs/uploads/?mount="+blob.String()+"&from=base/app", nil, "Authorization: "+basic(f, "alice")), 401, codeUnauthorized)
	f.want(f.do("HEAD", "/v2/team/app/blobs/"+blob.String(), nil, "Authorization: "+basic(f, "root")), 404, "")
}

// A list is of the state that it is read from: for who is there still, and not for who is gone.
func TestCatalogOfALaterState(t *testing.T) {
	f := withAccess(t, 3, nil)
	f.pushBlob(f.nodes[0], "public/app", randomBytes(100))
	f.user("root")
	f.user("alice")
	f.grant("anonymous", "pull:public/**")
	alice := "Authorization: " + basic(f, "alice")
	lag := func(n *testNode) { n.log.set(func(l *nodeLog) { l.lagging = true }) }
	lag(f.nodes[1])
	f.user("bob")
	f.want(f.doOn(f.nodes[1], "GET", "/v2/_catalog", nil, alice), 200, "")
	lag(f.nodes[2])
	f.must(f.nodes[0].log.Propose(f.Context(), fsm.DeletePrincipal{Name: "alice"}))
	f.want(f.doOn(f.nodes[2], "GET", "/v2/_catalog", nil, alice), 401, codeUnauthorized)
}

// A node may say by what it let somebody in; a client may not.
func TestClientsDontSayWhatLetThemIn(t *testing.T) {
	f := withAccess(t, 2, nil)
	f.user("root")
	f.user("alice", "push:**")
	content := randomBytes(100)
	d := digest.FromBytes(content)
	alice := "Authorization: " + basic(f, "alice")
	upload := f.want(f.doOn(f.nodes[0], "POST", "/v2/a/blobs/uploads/", nil, alice), 202, "").Header.Get("Location")
	f.want(f.doOn(f.nodes[1], "PUT", upload+"?digest="+d.String(), content, alice, headerAccess+": 1"), 201, "")
	f.want(f.doOn(f.nodes[0], "POST", "/v2/a/blobs/uploads/?digest="+d.String(), content, alice, headerAccess+": 1"), 201, "")
}

// As long as a member is of the release before, changes go as they did then, and what only this release can do is refused.
func TestChangesWhileNodesAreUpgraded(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	root := "Authorization: " + basic(f, "root")
	f.nodes[0].log.set(func(l *nodeLog) { l.old = true })
	f.want(f.do("PUT", "/v2/a/manifests/1", emptyIndex(), "Content-Type: "+fsm.TypeOCIIndex, root), 201, "")
	f.want(f.do("POST", "/api/v1/access/robot/add", []byte(`{"name":"plain"}`), root), 200, "")
	f.want(f.do("POST", "/api/v1/access/robot/add", []byte(`{"name":"ci","grants":[{"right":"pull","pattern":"a"}]}`), root), 503, codeUnavailable)
	f.nodes[0].log.set(func(l *nodeLog) { l.old = false })
	f.want(f.do("POST", "/api/v1/access/robot/add", []byte(`{"name":"ci","grants":[{"right":"pull","pattern":"a"}]}`), root), 200, "")
}

// A robot comes with its grants or not at all, and then its name is free.
func TestRobotsComeWhole(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	root := "Authorization: " + basic(f, "root")
	for _, bad := range []string{`{"right":"fly","pattern":"a"}`, `{"right":"pull","pattern":"A"}`, `{"right":"pull","pattern":""}`} {
		f.want(f.do("POST", "/api/v1/access/robot/add", []byte(`{"name":"ci","grants":[{"right":"pull","pattern":"a"},`+bad+`]}`), root), 400, codeInvalid)
	}
	f.want(f.do("POST", "/api/v1/access/robot/add", []byte(`{"name":"ci","grants":[{"right":"pull","pattern":"a"},{"right":"push","pattern":"b"}]}`), root), 200, "")
	a, err := f.nodes[0].state.Access()
	f.must(a, err)
	if len(a.Grants) != 3 || len(a.Principals) != 2 {
		t.Errorf("%+v", a)
	}
}

// Nothing gets into the log for a caller but by propose.
func TestOnlyProposeProposes(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if name != "propose.go" && !strings.HasSuffix(name, "_test.go") && strings.Contains(string(text), ".log.Propose(") {
			t.Errorf("%s proposes by itself: what it proposes would be done whoever may do what by then", name)
		}
	}
}
