package api

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pier/fsm"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseRoute(t *testing.T) {
	long := strings.Repeat("a", 255)
	for _, c := range []struct {
		path string
		kind kind
		repo string
		ref  string
	}{
		{"/v2", kindRoot, "", ""},
		{"/v2/", kindRoot, "", ""},
		{"/v2/_catalog", kindCatalog, "", ""},
		{"/v2/a/tags/list", kindTags, "a", ""},
		{"/v2/a/b/c/tags/list", kindTags, "a/b/c", ""},
		{"/v2/tags/list/tags/list", kindTags, "tags/list", ""},
		{"/v2/" + long + "/tags/list", kindTags, long, ""},
		{"/v2/a/manifests/latest", kindManifest, "a", "latest"},
		{"/v2/a/manifests/list", kindManifest, "a", "list"},
		{"/v2/a/tags/manifests/list", kindManifest, "a/tags", "list"},
		{"/v2/a/manifests/" + someDigest, kindManifest, "a", someDigest},
		{"/v2/a/manifests/sha256%3A" + someDigest[7:], kindManifest, "a", someDigest},
		{"/v2/a/blobs/" + someDigest, kindBlob, "a", someDigest},
		{"/v2/a/blobs/uploads/blobs/" + someDigest, kindBlob, "a/blobs/uploads", someDigest},
		{"/v2/a/blobs/uploads", kindUploads, "a", ""},
		{"/v2/a/blobs/uploads/", kindUploads, "a", ""},
		{"/v2/blobs/uploads/blobs/uploads/", kindUploads, "blobs/uploads", ""},
		{"/v2/a/blobs/uploads/n-1.x_2", kindUpload, "a", "n-1.x_2"},
		{"/v2/a/referrers/" + someDigest, kindReferrers, "a", someDigest},
	} {
		rt, err := parseRoute(c.path)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		ref := ""
		switch rt.kind {
		case kindManifest:
			ref = rt.reference()
		case kindBlob, kindReferrers:
			ref = rt.digest.String()
		case kindUpload:
			ref = string(rt.owner) + "." + rt.upload
		}
		if rt.kind != c.kind || string(rt.repo) != c.repo || ref != c.ref {
			t.Errorf("%s is %v of %q at %q, want %v of %q at %q", c.path, rt.kind, rt.repo, ref, c.kind, c.repo, c.ref)
		}
	}
}

func TestParseRouteRefuses(t *testing.T) {
	for path, want := range map[string]error{
		"/v1/":                 errNoEndpoint,
		"/v2x":                 errNoEndpoint,
		"/v2/a":                errNoEndpoint,
		"/v2/a/tags":           errNoEndpoint,
		"/v2/tags/list":        errNoEndpoint,
		"/v2//tags/list":       fsm.ErrNameInvalid,
		"/v2/a//b/tags/list":   fsm.ErrNameInvalid,
		"/v2/A/tags/list":      fsm.ErrNameInvalid,
		"/v2/a/../b/tags/list": fsm.ErrNameInvalid,
		"/v2/../tags/list":     fsm.ErrNameInvalid,
		"/v2/./a/tags/list":    fsm.ErrNameInvalid,
		"/v2/%61/tags/list":    fsm.ErrNameInvalid,
		"/v2/a%2Fb/tags/list":  fsm.ErrNameInvalid,
		"/v2/a/manifests/%zz":  fsm.ErrNameInvalid,
		"/v2/a.../manifests/x": fsm.ErrNameInvalid,
		"/v2/a b/manifests/x":  fsm.ErrNameInvalid,
		"/v2/" + strings.Repeat("a", 256) + "/manifests/x":   fsm.ErrNameInvalid,
		"/v2/" + strings.Repeat("a/", 600) + "a/manifests/x": fsm.ErrNameInvalid,
		"/v2/a/manifests/.hidden":                            fsm.ErrTagInvalid,
		"/v2/a/manifests/%2e%2e":                             fsm.ErrTagInvalid,
		"/v2/a/manifests/x%2Fy":                              fsm.ErrTagInvalid,
		"/v2/a/manifests/" + strings.Repeat("t", 129):        fsm.ErrTagInvalid,
		"/v2/a/manifests/":                                   fsm.ErrTagInvalid,
		"/v2/a/manifests/sha256:short":                       fsm.ErrDigestInvalid,
		"/v2/a/blobs/latest":                                 fsm.ErrDigestInvalid,
		"/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e":   fsm.ErrDigestInvalid,
		"/v2/a/blobs/" + strings.ToUpper(someDigest):         fsm.ErrDigestInvalid,
		"/v2/a/referrers/x":                                  fsm.ErrDigestInvalid,
	} {
		if rt, err := parseRoute(path); !errors.Is(err, want) {
			t.Errorf("%s: got %+v, %v, want %v", path, rt, err, want)
		}
	}
	for _, path := range []string{"/v2/a/blobs/uploads/x", "/v2/a/blobs/uploads/..", "/v2/a/blobs/uploads/n.", "/v2/a/blobs/uploads/n.x.y"} {
		if _, err := parseRoute(path); explain(err).code != codeUploadUnknown {
			t.Errorf("%s: got %v, want %s", path, err, codeUploadUnknown)
		}
	}
}

// FuzzParseRoute wants every path to be refused with a known error, or to be a route that is whole and comes out of its
// own path again.
func FuzzParseRoute(f *testing.F) {
	corpus, err := filepath.Glob("testdata/fuzz/FuzzParseRoute/*")
	if err != nil || len(corpus) == 0 {
		f.Fatalf("the corpus is empty (%v)", err)
	}
	for _, name := range corpus {
		if info, err := os.Stat(name); err != nil || info.Size() == 0 {
			f.Fatalf("%s is empty (%v)", name, err)
		}
	}
	f.Fuzz(func(t *testing.T, path string) {
		rt, err := parseRoute(path)
		if err != nil {
			if explain(err).status >= 500 {
				t.Fatalf("%q: %v is not an answer for a client", path, err)
			}
			return
		}
		if rt.kind != kindRoot && rt.kind != kindCatalog {
			if _, err := fsm.ParseRepo(string(rt.repo)); err != nil {
				t.Fatalf("%q has the repository %q", path, rt.repo)
			}
		}
		again, err := parseRoute(rt.path())
		if err != nil || again != rt {
			t.Fatalf("%q is %+v, but its path %q is %+v (%v)", path, rt, rt.path(), again, err)
		}
	})
}
