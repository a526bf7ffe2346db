package api

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
)

// follow reads a listing to its end by its links and gives what items finds on each page.
func (f *fixture) follow(path string, items func(body []byte) []string) (all []string, pages int) {
	f.Helper()
	for path != "" {
		got := f.want(f.do("GET", path, nil), 200, "")
		all = append(all, items(got.body)...)
		pages++
		link := got.Header.Get("Link")
		if link == "" {
			return all, pages
		}
		rest, ok := strings.CutSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
		if !ok || !strings.HasPrefix(rest, "/v2/") {
			f.Fatalf("Link is %q", link)
		}
		path = rest
	}
	return all, pages
}

func tagsOf(body []byte) []string {
	var l struct{ Tags []string }
	_ = json.Unmarshal(body, &l)
	return l.Tags
}

func reposOf(body []byte) []string {
	var l struct{ Repositories []string }
	_ = json.Unmarshal(body, &l)
	return l.Repositories
}

func TestTags(t *testing.T) {
	f := newFixture(t, 1, nil)
	_, body := f.pushImage(f.nodes[0], "a", "t00", "")
	want := []string{"t00"}
	for i := 1; i < 25; i++ {
		tag := fmt.Sprintf("t%02d", i)
		want = append(want, tag)
		f.want(f.do("PUT", "/v2/a/manifests/"+tag, body, typeManifest), 201, "")
	}
	all, pages := f.follow("/v2/a/tags/list", tagsOf)
	if !slices.Equal(all, want) || pages != 1 {
		t.Errorf("in one: %v on %d pages", all, pages)
	}
	all, pages = f.follow("/v2/a/tags/list?n=10", tagsOf)
	if !slices.Equal(all, want) || pages != 3 {
		t.Errorf("in tens: %v on %d pages", all, pages)
	}
	f.want(f.do("DELETE", "/v2/a/manifests/t10", nil), 202, "")
	for query, expect := range map[string]string{
		"?n=0":                             `{"name":"a","tags":[]}`,
		"?n=1e9":                           "",
		"?n=-1":                            "",
		"?n=x":                             "",
		"?n=":                              "",
		"?n=2&last=t10":                    `{"name":"a","tags":["t11","t12"]}`,
		"?n=2&last=t09zz":                  `{"name":"a","tags":["t11","t12"]}`,
		"?last=t23":                        `{"name":"a","tags":["t24"]}`,
		"?last=zzz":                        `{"name":"a","tags":[]}`,
		"?last=%ff%00":                     `{"name":"a","tags":[]}`,
		"?n=99999999999999999999&last=t23": `{"name":"a","tags":["t24"]}`,
	} {
		got := f.do("GET", "/v2/a/tags/list"+query, nil)
		if expect == "" {
			f.want(got, 400, codePageInvalid)
			continue
		}
		if f.want(got, 200, ""); string(got.body) != expect {
			t.Errorf("%s: %s, want %s", query, got.body, expect)
		}
		f.wantHeader(got, "Content-Type: application/json")
		if (got.Header.Get("Link") != "") != (strings.HasPrefix(query, "?n=2")) {
			t.Errorf("%s: Link %q", query, got.Header.Get("Link"))
		}
	}
	f.want(f.do("GET", "/v2/none/tags/list", nil), 404, codeNameUnknown)
	f.want(f.do("GET", "/v2/none/tags/list?n=0", nil), 404, codeNameUnknown)
	f.want(f.do("POST", "/v2/a/tags/list", nil), 405, codeUnsupported)
}

// A listing longer than a page may be goes on at its Link, whatever n the client asked for.
func TestTagsAreCapped(t *testing.T) {
	f := newFixture(t, 1, nil)
	d, body := f.pushImage(f.nodes[0], "a", "latest", "")
	tags := make([]fsm.Tag, 0, maxPage+5)
	for i := range maxPage + 5 {
		tags = append(tags, fsm.Tag(fmt.Sprintf("t%05d", i)))
	}
	f.must(f.nodes[0].log.Propose(t.Context(), fsm.PutManifest{Repo: "a", Digest: d, MediaType: fsm.TypeOCIManifest, Body: body, Tags: tags}))
	for _, path := range []string{"/v2/a/tags/list?n=1000000000", "/v2/a/tags/list"} {
		all, pages := f.follow(path, tagsOf)
		if len(all) != maxPage+6 || pages != 2 {
			t.Errorf("%s: %d tags on %d pages", path, len(all), pages)
		}
	}
}

// Without a quorum a repository that this node hasn't heard of is not denied: another may have it.
func TestTagsOfUnheardRepository(t *testing.T) {
	f := newFixture(t, 1, nil)
	f.nodes[0].log.set(func(l *nodeLog) { l.alone = true })
	got := f.want(f.do("GET", "/v2/unheard/tags/list", nil), 503, codeUnavailable)
	f.wantHeader(got, "Retry-After: 2", "Warning: ")
}

func TestCatalog(t *testing.T) {
	f := newFixture(t, 1, nil)
	if got := f.do("GET", "/v2/_catalog", nil); string(got.body) != `{"repositories":[]}` {
		t.Errorf("empty: %s", got.body)
	}
	var want []string
	for i := range 7 {
		repo := fmt.Sprintf("team/app%d", i)
		want = append(want, repo)
		f.pushBlob(f.nodes[0], repo, []byte("x"))
	}
	all, pages := f.follow("/v2/_catalog?n=3", reposOf)
	if !slices.Equal(all, want) || pages != 3 {
		t.Errorf("%v on %d pages", all, pages)
	}
	if got := f.do("GET", "/v2/_catalog?n=0", nil); string(got.body) != `{"repositories":[]}` || got.Header.Get("Link") != "" {
		t.Errorf("n=0: %s", got.body)
	}
	// The page after something that is gone begins behind where it was.
	f.want(f.do("DELETE", "/v2/team/app3/blobs/"+digest.FromString("x").String(), nil), 202, "")
	for _, path := range []string{"/v2/_catalog?n=2&last=team/app3", "/v2/_catalog?n=2&last=team%2Fapp3"} {
		got := f.want(f.do("GET", path, nil), 200, "")
		if string(got.body) != `{"repositories":["team/app4","team/app5"]}` || got.Header.Get("Link") == "" {
			t.Errorf("%s: %s, Link %q", path, got.body, got.Header.Get("Link"))
		}
	}
	got := f.want(f.do("GET", "/v2/_catalog?n=1000000000&last=team/app5", nil), 200, "")
	if string(got.body) != `{"repositories":["team/app6"]}` || got.Header.Get("Link") != "" {
		t.Errorf("a huge n: %s, Link %q", got.body, got.Header.Get("Link"))
	}
	f.want(f.do("GET", "/v2/_catalog?n=-1", nil), 400, codePageInvalid)
	f.want(f.do("GET", "/v2/_catalog?n=1e9", nil), 400, codePageInvalid)
}

func TestReferrers(t *testing.T) {
	f := newFixture(t, 1, nil)
	subject, _ := f.pushImage(f.nodes[0], "a", "t", "")
	path := "/v2/a/referrers/" + subject.String()
	const none = `{"schemaVersion":2,"mediaType":"` + fsm.TypeOCIIndex + `","manifests":[]}`
	for _, p := range []string{path, "/v2/none/referrers/" + someDigest} {
		got := f.want(f.do("GET", p, nil), 200, "")
		f.wantHeader(got, "Content-Type: "+fsm.TypeOCIIndex, "OCI-Filters-Applied: ")
		if string(got.body) != none {
			t.Errorf("none: %s", got.body)
		}
	}
	f.want(f.do("GET", "/v2/a/referrers/nonsense", nil), 400, codeDigestInvalid)

	config := []byte("{}")
	attach := func(i int, kind, note string) {
		f.Helper()
		extra := fmt.Sprintf(`,"artifactType":%q,"annotations":{"i":"%d","note":%q},"subject":{"mediaType":%q,"digest":%q,"size":1}`,
			kind, i, note, fsm.TypeOCIManifest, subject)
		got := f.want(f.do("PUT", fmt.Sprintf("/v2/a/manifests/ref-%d", i), image(extra, config), typeManifest), 201, "")
		f.wantHeader(got, "OCI-Subject: "+subject.String())
	}
	for i := range 9 {
		attach(i, []string{"example/sbom", "example/sig"}[i%2], "")
	}
	digests := func(body []byte) []string {
		var l struct {
			Manifests []fsm.Descriptor
		}
		_ = json.Unmarshal(body, &l)
		var out []string
		for _, m := range l.Manifests {
			if m.Annotations["i"] == "" || m.ArtifactType == "" || m.MediaType != fsm.TypeOCIManifest {
				t.Errorf("descriptor %+v", m)
			}
			out = append(out, m.Digest.String())
		}
		return out
	}
	all, _ := f.follow(path, digests)
	paged, pages := f.follow(path+"?n=4", digests)
	if len(all) != 9 || pages != 3 || !slices.Equal(all, paged) {
		t.Errorf("%d in one, %d on %d pages", len(all), len(paged), pages)
	}
	sbom := path + "?artifactType=" + url.QueryEscape("example/sbom")
	f.wantHeader(f.do("GET", sbom, nil), "OCI-Filters-Applied: artifactType")
	if found, pages := f.follow(sbom+"&n=2", digests); len(found) != 5 || pages != 3 {
		t.Errorf("filtered: %d on %d pages", len(found), pages)
	}
	for query, status := range map[string]int{"?n=-1": 400, "?n=x": 400, "?n=1000000000": 200, "?last=gone": 200, "?last=%00%ff": 200} {
		if got := f.do("GET", path+query, nil); got.StatusCode != status {
			t.Errorf("%s: %s", query, got.Status)
		}
	}
	if got := f.do("GET", path+"?n=0", nil); string(got.body) != none || got.Header.Get("Link") != "" {
		t.Errorf("n=0: %s", got.body)
	}
	// One that is gone is listed no more, and still says where the next page begins.
	f.want(f.do("DELETE", "/v2/a/manifests/"+all[3], nil), 202, "")
	rest, _ := f.follow(path+"?last="+all[3], digests)
	if left, _ := f.follow(path, digests); len(left) != 8 || slices.Contains(left, all[3]) || !slices.Equal(rest, all[4:]) {
		t.Errorf("after a delete: %d, behind it %d", len(left), len(rest))
	}
	// Large annotations make small pages: each stays below what clients read.
	for i := 10; i < 14; i++ {
		attach(i, "example/large", strings.Repeat("z", 1<<20))
	}
	found, pages := f.follow(path+"?artifactType=example/large", func(body []byte) []string {
		if len(body) > fsm.MaxManifest {
			t.Errorf("a page of %d bytes", len(body))
		}
		return digests(body)
	})
	if len(found) != 4 || pages != 2 {
		t.Errorf("large: %d on %d pages", len(found), pages)
	}
}
