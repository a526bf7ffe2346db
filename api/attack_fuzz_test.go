package api

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"pier/api/auth"
	"pier/blobsync"
	"pier/blobsync/store"
	"pier/fsm"
)

const (
	fuzzPassword = "alice's-password"
	fuzzMarker   = "what-only-root-may-see"
)

// alone is one node without sockets: root, alice who may push to team/** and pull public/**, and an image in each of
// team/app, public/x and secret/app.
func alone(f *testing.F) (*testNode, *auth.Keys) {
	f.Helper()
	must := func(_ any, err error) {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
	}
	n := &testNode{id: "node-0", dir: f.TempDir()}
	var err error
	n.state, err = fsm.Open(fsm.Config{Path: filepath.Join(n.dir, "state.db")})
	must(n.state, err)
	f.Cleanup(func() { _ = n.state.Close() })
	n.store, err = store.Open(store.Config{Dir: n.dir, ReserveBytes: 1})
	must(n.store, err)
	log := &testLog{nodes: []*testNode{n}}
	n.log = &nodeLog{log: log, node: n}
	n.blobs, err = blobsync.New(blobsync.Config{}, n.store, stateIndex{n.state}, &statePeers{node: n})
	must(n.blobs, err)
	keys, err := auth.NewKeys([][]byte{make([]byte, 32)})
	must(keys, err)
	n.api, err = New(Config{Node: n.id, HolderWait: time.Millisecond, Access: Access{Keys: func() *auth.Keys { return keys }}}, n.state, n.blobs, n.log, noCluster{})
	must(n.api, err)
	hash, err := bcrypt.GenerateFromPassword([]byte(fuzzPassword), bcrypt.MinCost)
	must(hash, err)
	index := []byte(`{"schemaVersion":2,"manifests":[],"annotations":{"x":"` + fuzzMarker + `"}}`)
	for _, c := range []fsm.Command{
		fsm.PutPrincipal{Principal: fsm.Principal{Name: "root"}}, fsm.PutPrincipal{Principal: fsm.Principal{Name: "alice", Password: hash}},
		fsm.PutGrant{Grant: fsm.Grant{Subject: "alice", Right: "push", Pattern: "team/**"}},
		fsm.PutGrant{Grant: fsm.Grant{Subject: "alice", Right: "delete", Pattern: "team/**"}},
		fsm.PutGrant{Grant: fsm.Grant{Subject: "anonymous", Right: "pull", Pattern: "public/**"}},
		fsm.PutManifest{Repo: "secret/app", Digest: digest.FromBytes(index), MediaType: fsm.TypeOCIIndex, Body: index, Tags: []fsm.Tag{"1", fuzzMarker}},
		fsm.PutManifest{Repo: "team/app", Digest: digest.FromBytes(emptyIndex()), MediaType: fsm.TypeOCIIndex, Body: emptyIndex(), Tags: []fsm.Tag{"1"}},
		fsm.PutManifest{Repo: "public/x", Digest: digest.FromBytes(emptyIndex()), MediaType: fsm.TypeOCIIndex, Body: emptyIndex(), Tags: []fsm.Tag{"1"}},
	} {
		must(n.log.Propose(f.Context(), c))
	}
	return n, keys
}

// FuzzAuthorization: an Authorization header lets nobody in but who has a password or a token, and no answer repeats what
// was in it.
func FuzzAuthorization(f *testing.F) {
	n, keys := alone(f)
	d, err := n.api.access.directory()
	if err != nil {
		f.Fatal(err)
	}
	alice, _ := d.Active("alice", time.Now())
	token, err := keys.Issue(alice, tokenService, nil, time.Now(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	right := "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:"+fuzzPassword))
	f.Add(right)
	f.Add("Bearer " + token.Text)
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest("GET", "http://x/v2/", nil)
		r.Header["Authorization"] = []string{header}
		c, err := n.api.access.identify(r, d)
		scheme, value, _ := strings.Cut(header, " ")
		switch {
		case err != nil:
			p := explain(err)
			if p.status >= 500 || len(value) > 12 && strings.Contains(p.message, value) {
				t.Errorf("%q: %v", header, err)
			}
		case strings.EqualFold(scheme, "bearer"):
			if was, err := keys.Verify(strings.TrimSpace(value), tokenService, time.Now()); err != nil || was.Name != "alice" || c.Name != "alice" {
				t.Errorf("%q lets %+v in", header, c)
			}
		default:
			said, _ := base64.StdEncoding.DecodeString(value)
			if name, password, _ := strings.Cut(string(said), ":"); c.Name != "alice" || name != "alice" || password != fuzzPassword {
				t.Errorf("%q lets %+v in", header, c)
			}
		}
	})
}

// FuzzRequest: whatever is asked for, with whatever credentials, shows nothing of what its caller may not see, and changes
// nothing that it may not change.
func FuzzRequest(f *testing.F) {
	n, keys := alone(f)
	d, err := n.api.access.directory()
	if err != nil {
		f.Fatal(err)
	}
	alice, _ := d.Active("alice", time.Now())
	token, err := keys.Issue(alice, tokenService, []auth.Scope{{Type: "repository", Name: "team/app", Actions: []string{"pull", "push", "delete"}}}, time.Now(), 24*time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	credentials := []string{
		"", "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("alice:"+fuzzPassword)) + "\r\n",
		"Authorization: Bearer " + token.Text + "\r\n", "Authorization: Bearer x\r\n",
	}
	handler := n.api.Handler()
	f.Fuzz(func(t *testing.T, method, target, host, headers string, who uint8) {
		raw := method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\n" + credentials[int(who)%len(credentials)] + headers + "\r\n\r\n{}"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		r.RemoteAddr = "192.0.2.1:5"
		w := &brief{ResponseRecorder: httptest.NewRecorder()}
		serveAborting(handler, w, r)
		got := w.Result()
		if got.StatusCode >= 500 && got.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%q: %d %s", raw, got.StatusCode, w.Body)
		}
		var said bytes.Buffer
		_ = got.Header.Write(&said)
		said.Write(w.Body.Bytes())
		if strings.Contains(said.String(), fuzzMarker) && !strings.Contains(raw, fuzzMarker) {
			t.Errorf("%q shows %s", raw, said.String())
		}
		if challenge := got.Header.Get("WWW-Authenticate"); strings.ContainsAny(challenge, "\r\n") {
			t.Errorf("%q: the challenge is %q", raw, challenge)
		}
		repos, _, err := n.state.Repositories("", 100)
		if err != nil {
			t.Fatal(err)
		}
		tags, _, err := n.state.Tags("secret/app", "", 10)
		if err != nil || !slices.Equal(tags, []fsm.Tag{"1", fuzzMarker}) {
			t.Errorf("%q: the tags of secret/app are %v, %v", raw, tags, err)
		}
		for _, repo := range repos {
			if repo != "secret/app" && repo != "public/x" && !strings.HasPrefix(string(repo), "team/") {
				t.Errorf("%q makes %s", raw, repo)
			}
		}
		if who%4 == 0 || who%4 == 3 {
			if tags, _, err := n.state.Tags("public/x", "", 10); err != nil || len(tags) != 1 {
				t.Errorf("%q: the tags of public/x are %v, %v", raw, tags, err)
			}
		}
	})
}

// brief is a connection without deadlines.
type brief struct{ *httptest.ResponseRecorder }

func (*brief) SetReadDeadline(time.Time) error  { return nil }
func (*brief) SetWriteDeadline(time.Time) error { return nil }

// serveAborting is a server's side of an answer that is broken off.
func serveAborting(h http.Handler, w http.ResponseWriter, r *http.Request) {
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler {
			panic(v)
		}
	}()
	h.ServeHTTP(w, r)
	_, _ = io.Copy(io.Discard, r.Body)
}
