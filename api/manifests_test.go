package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"pier/blobsync"
	"pier/fsm"
)

const typeManifest = "Content-Type: " + fsm.TypeOCIManifest

func TestManifestPushAndPull(t *testing.T) {
	f := newFixture(t, 1, nil)
	d, body := f.pushImage(f.nodes[0], "a/b", "latest", `,"unknown":{"x":[1, 2]}`)
	for _, ref := range []string{"latest", d.String()} {
		path := "/v2/a/b/manifests/" + ref
		got := f.want(f.do("GET", path, nil), 200, "")
		if !bytes.Equal(got.body, body) {
			t.Errorf("%s has other bytes", ref)
		}
		cache := cacheForever
		if ref == "latest" {
			cache = cacheNot
		}
		f.wantHeader(got, typeManifest, "Docker-Content-Digest: "+d.String(), `ETag: "`+d.String()+`"`,
			fmt.Sprintf("Content-Length: %d", len(body)), "Cache-Control: "+cache, "Warning: ", "Content-Encoding: ")
		head := f.want(f.do("HEAD", path, nil), 200, "")
		f.wantHeader(head, typeManifest, fmt.Sprintf("Content-Length: %d", len(body)), "Docker-Content-Digest: "+d.String())
		f.want(f.do("GET", path, nil, `If-None-Match: "`+d.String()+`"`), 304, "")
	}
	put := f.do("PUT", "/v2/a/b/manifests/again", body, typeManifest+"; charset=utf-8")
	f.wantHeader(f.want(put, 201, ""), "Location: /v2/a/b/manifests/"+d.String(), "Docker-Content-Digest: "+d.String(), "OCI-Subject: ", "OCI-Tag: ")
	f.wantHeader(f.do("HEAD", "/v2/a/b/manifests/again", nil), typeManifest)

	for _, ref := range []string{"none", someDigest, ".INVALID"} {
		for _, repo := range []string{"a/b", "none"} {
			f.want(f.do("GET", "/v2/"+repo+"/manifests/"+ref, nil), 404, codeManifestUnknown)
			f.want(f.do("HEAD", "/v2/"+repo+"/manifests/"+ref, nil), 404, "")
			f.want(f.do("DELETE", "/v2/"+repo+"/manifests/"+ref, nil), 404, codeManifestUnknown)
		}
	}
}

func TestManifestByDigestWithTags(t *testing.T) {
	f := newFixture(t, 1, nil)
	_, body := f.pushImage(f.nodes[0], "a", "first", "")
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := alg.FromBytes(body)
		query := url.Values{}
		var tags []string
		for i := range 12 {
			tag := fmt.Sprintf("%s-%02d", alg, i)
			tags = append(tags, tag)
			query.Add("tag", tag)
		}
		got := f.want(f.do("PUT", "/v2/a/manifests/"+d.String()+"?"+query.Encode(), body, typeManifest), 201, "")
		f.wantHeader(got, "OCI-Tag: "+strings.Join(tags, "|"), "Docker-Content-Digest: "+d.String())
		f.wantHeader(f.do("HEAD", "/v2/a/manifests/"+tags[11], nil), "Docker-Content-Digest: "+d.String())
		f.want(f.do("PUT", "/v2/a/manifests/"+d.String()+"?tag=ok&tag=.bad", body, typeManifest), 400, codeTagInvalid)
		f.want(f.do("PUT", "/v2/a/manifests/"+d.String()+"?tag=t"+strings.Repeat("&tag=t", maxTags), body, typeManifest), 414, codeTagInvalid)
	}
	f.want(f.do("HEAD", "/v2/a/manifests/ok", nil), 404, "")
}

func TestManifestRefusals(t *testing.T) {
	f := newFixture(t, 1, nil)
	f.pushImage(f.nodes[0], "a", "ok", "")
	config, layer, absent := []byte("{}"), []byte("layer of a"), []byte("never pushed")
	good := string(image("", config, layer))
	wrongSize := strings.Replace(good, `"size":10`, `"size":11`, 1)
	index := func(d string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":2}]}`, fsm.TypeOCIManifest, d)
	}
	for name, c := range map[string]struct {
		ref, body, mediaType string
		status               int
		code                 string
	}{
		"not JSON":         {"t", "hello", fsm.TypeOCIManifest, 400, codeManifestInvalid},
		"nothing":          {"t", "", fsm.TypeOCIManifest, 400, codeManifestInvalid},
		"not an object":    {"t", "[]", fsm.TypeOCIManifest, 400, codeManifestInvalid},
		"lies":             {"t", good, fsm.TypeOCIIndex, 400, codeManifestInvalid},
		"twice a key":      {"t", good[:len(good)-1] + `,"schemaVersion":2}`, fsm.TypeOCIManifest, 400, codeManifestInvalid},
		"deep":             {"t", good[:len(good)-1] + `,"x":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + "}", fsm.TypeOCIManifest, 400, codeManifestInvalid},
		"deep, cut short":  {"t", `{"x":` + strings.Repeat(`{"a":`, 100000), fsm.TypeOCIManifest, 400, codeManifestInvalid},
		"no media type":    {"t", `{"schemaVersion":2}`, "", 400, codeManifestInvalid},
		"broken, no type":  {"t", `{"config":5}`, "", 400, codeManifestInvalid},
		"broken, own type": {"t", `{"mediaType":"` + fsm.TypeOCIManifest + `","config":5}`, "", 400, codeManifestInvalid},
		"broken, lies":     {"t", `{"mediaType":"` + fsm.TypeOCIManifest + `","config":5}`, "application/x", 400, codeManifestInvalid},
		"missing layer":    {"t", string(image("", config, absent)), fsm.TypeOCIManifest, 400, codeMissing},
		"missing child":    {"t", index(someDigest), fsm.TypeOCIIndex, 400, codeMissing},
		"another size":     {"t", wrongSize, fsm.TypeOCIManifest, 400, codeSizeInvalid},
		"another digest":   {someDigest, good, fsm.TypeOCIManifest, 400, codeDigestInvalid},
		"short digest":     {"sha256:baddigeststring", good, fsm.TypeOCIManifest, 400, codeDigestInvalid},
		"bad tag":          {"-t", good, fsm.TypeOCIManifest, 400, codeTagInvalid},
		"long tag":         {strings.Repeat("t", 129), good, fsm.TypeOCIManifest, 400, codeTagInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			f.TB = t
			f.want(f.do("PUT", "/v2/a/manifests/"+c.ref, c.body, "Content-Type: "+c.mediaType), c.status, c.code)
		})
	}
	f.TB = t
	got := f.do("PUT", "/v2/a/manifests/t", image("", config, absent), typeManifest)
	if !bytes.Contains(got.body, []byte(digest.FromBytes(absent))) {
		t.Errorf("the refusal doesn't name what is missing: %s", got.body)
	}
	f.want(f.do("GET", "/v2/a/manifests/t", nil), 404, codeManifestUnknown)
}

func TestManifestSizes(t *testing.T) {
	f := newFixture(t, 1, nil)
	config := []byte("{}")
	f.pushBlob(f.nodes[0], "a", config)
	sized := func(n int) []byte {
		bare := image(`,"annotations":{"x":""}`, config)
		return image(`,"annotations":{"x":"`+strings.Repeat("y", n-len(bare))+`"}`, config)
	}
	f.want(f.do("PUT", "/v2/a/manifests/max", sized(fsm.MaxManifest), typeManifest), 201, "")
	f.want(f.do("PUT", "/v2/a/manifests/over", sized(fsm.MaxManifest+1), typeManifest), 413, codeManifestInvalid)
	f.want(f.do("PUT", "/v2/a/manifests/over", io.MultiReader(bytes.NewReader(sized(5<<20))), typeManifest), 413, codeManifestInvalid)
	f.want(f.do("PUT", "/v2/a/manifests/stream", io.MultiReader(bytes.NewReader(sized(5<<10))), typeManifest), 201, "")
	if got := f.do("GET", "/v2/a/manifests/max", nil); len(got.body) != fsm.MaxManifest {
		t.Errorf("the largest manifest comes back with %d bytes", len(got.body))
	}
}

func TestManifestConditions(t *testing.T) {
	f := newFixture(t, 1, nil)
	old, body := f.pushImage(f.nodes[0], "a", "t", "")
	next := image(`,"annotations":{"n":"2"}`, []byte("{}"), []byte("layer of a"))
	put := func(ref string, body []byte, header string) answer {
		return f.do("PUT", "/v2/a/manifests/"+ref, body, typeManifest, header)
	}
	f.want(put("t", next, "If-None-Match: *"), 412, codePrecondition)
	f.want(put("t", next, `If-None-Match: "`+old.String()+`"`), 412, codePrecondition)
	f.want(put("t", next, `If-Match: "`+someDigest+`"`), 412, codePrecondition)
	f.want(put("u", next, "If-Match: *"), 412, codePrecondition)
	f.wantHeader(f.do("HEAD", "/v2/a/manifests/t", nil), "Docker-Content-Digest: "+old.String())
	f.want(put("t", next, `If-Match: "x", "`+old.String()+`"`), 201, "")
	f.want(put("t", body, "If-Match: *"), 201, "")
	f.want(put("u", body, "If-None-Match: *"), 201, "")
	f.want(put("u", body, "If-None-Match: *"), 412, codePrecondition)
	f.want(put(old.String(), body, "If-None-Match: *"), 412, codePrecondition)
	f.want(put("t", next, `If-None-Match: "other"`), 201, "")
}

func TestManifestDelete(t *testing.T) {
	f := newFixture(t, 1, nil)
	d, body := f.pushImage(f.nodes[0], "a", "x", "")
	for _, tag := range []string{"y", "z"} {
		f.want(f.do("PUT", "/v2/a/manifests/"+tag, body, typeManifest), 201, "")
	}
	f.want(f.do("DELETE", "/v2/a/manifests/x", nil), 202, "")
	f.want(f.do("DELETE", "/v2/a/manifests/x", nil), 404, codeManifestUnknown)
	f.want(f.do("GET", "/v2/a/manifests/"+d.String(), nil), 200, "")
	f.want(f.do("DELETE", "/v2/a/manifests/"+d.String(), nil), 202, "")
	for _, ref := range []string{"y", "z", d.String()} {
		f.want(f.do("GET", "/v2/a/manifests/"+ref, nil), 404, codeManifestUnknown)
	}
}

// A push through a node that lags: what its own state lacks it asks for before it says that something is missing.
func TestManifestOnLaggingNode(t *testing.T) {
	f := newFixture(t, 2, nil)
	late := f.nodes[1]
	late.log.set(func(l *nodeLog) { l.lagging = true })
	d, body := f.pushImage(f.nodes[0], "a", "t", "")
	f.want(f.doOn(late, "GET", "/v2/a/manifests/"+d.String(), nil), 200, "")
	config, layer := []byte("{}"), []byte("another")
	f.pushBlob(f.nodes[0], "b", config)
	f.pushBlob(f.nodes[0], "b", layer)
	f.want(f.doOn(late, "PUT", "/v2/b/manifests/t", image("", config, layer), typeManifest), 201, "")

	// Without a quorum: the tag from its own state, marked; nothing that it can't know; no writes.
	late.log.set(func(l *nodeLog) { l.alone = true })
	f.want(f.do("DELETE", "/v2/a/manifests/t", nil), 202, "")
	got := f.want(f.doOn(late, "GET", "/v2/a/manifests/t", nil), 200, "")
	if w := got.Header.Get("Warning"); !strings.HasPrefix(w, `299 - "`) || !bytes.Equal(got.body, body) {
		t.Errorf("own state: Warning %q, body %s", w, got.body)
	}
	f.wantHeader(f.want(f.doOn(late, "GET", "/v2/a/manifests/"+d.String(), nil), 200, ""), "Warning: ")
	for _, ref := range []string{"unheard", someDigest} {
		got := f.want(f.doOn(late, "GET", "/v2/a/manifests/"+ref, nil), 503, codeUnavailable)
		f.wantHeader(got, "Retry-After: 2", "Warning: ")
		f.want(f.doOn(late, "HEAD", "/v2/a/manifests/"+ref, nil), 503, "")
	}
	f.want(f.doOn(late, "PUT", "/v2/a/manifests/n", body, typeManifest), 503, codeUnavailable)
	f.want(f.doOn(late, "DELETE", "/v2/a/manifests/t", nil), 503, codeUnavailable)
	for _, path := range []string{"/v2/_catalog", "/v2/a/tags/list", "/v2/a/referrers/" + someDigest} {
		got := f.want(f.doOn(late, "GET", path, nil), 200, "")
		if !strings.HasPrefix(got.Header.Get("Warning"), `299 - "`) {
			t.Errorf("%s has no Warning", path)
		}
	}
}

// A push that waits for copies hears of a lost quorum while it waits.
func TestManifestPushLosesQuorum(t *testing.T) {
	f := newFixture(t, 3, nil)
	config := []byte("{}")
	f.nodes[1].down()
	f.nodes[2].down()
	f.pushBlob(f.nodes[0], "a", config)
	f.nodes[0].log.set(func(l *nodeLog) { l.alone = true })
	got := f.want(f.do("PUT", "/v2/a/manifests/t", image("", config), typeManifest), 503, codeUnavailable)
	f.wantHeader(got, "Retry-After: 2")
}

// failingLog is a log whose node is in trouble.
type failingLog struct{ err error }

func (l failingLog) Propose(context.Context, fsm.Command) (fsm.Answer, error) { return nil, l.err }
func (l failingLog) Current(context.Context) error                            { return l.err }

// What ends inside the node while the client is still there is no fault of the client's: docker tries a 503 again, and gives
// up at a 4xx.
func TestTroubleInsideIsUnavailable(t *testing.T) {
	f := newFixture(t, 1, nil)
	for _, err := range []error{context.Canceled, context.DeadlineExceeded, fsm.ErrHalted, &os.PathError{Op: "write", Err: syscall.EIO}} {
		f.nodes[0].api.log = failingLog{fmt.Errorf("wrapped: %w", err)}
		for _, c := range []struct{ method, path string }{
			{"GET", "/v2/_catalog"}, {"GET", "/v2/a/tags/list"}, {"GET", "/v2/a/manifests/t"}, {"HEAD", "/v2/a/manifests/" + someDigest},
			{"HEAD", "/v2/a/blobs/" + someDigest}, {"GET", "/v2/a/blobs/" + someDigest}, {"DELETE", "/v2/a/manifests/t"},
			{"DELETE", "/v2/a/blobs/" + someDigest}, {"POST", "/v2/a/blobs/uploads/?digest=" + someDigest}, {"GET", "/v2/a/referrers/" + someDigest},
		} {
			got := f.want(f.do(c.method, c.path, nil), 503, codeUnavailable)
			if got.Header.Get("Retry-After") == "" || got.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%v: %s %s: %v", err, c.method, c.path, got.Header)
			}
		}
	}
}

// A request that outlives the node's grace finds the state closed, and may be sent to another node.
func TestStateClosed(t *testing.T) {
	f := newFixture(t, 1, nil)
	f.must(nil, f.nodes[0].state.Close())
	for _, path := range []string{"/v2/_catalog", "/v2/a/manifests/t", "/v2/a/blobs/" + someDigest} {
		f.want(f.do("GET", path, nil), 503, codeUnavailable)
	}
}

func TestExplainKnowsEveryError(t *testing.T) {
	for _, err := range []error{
		fsm.ErrNameInvalid, fsm.ErrTagInvalid, fsm.ErrDigestInvalid, fsm.ErrNameUnknown, fsm.ErrManifestUnknown, fsm.ErrManifestTooBig,
		fsm.ErrBlobUnknown, fsm.ErrConditionFailed, fsm.ErrSizeMismatch, fsm.ErrStale, fsm.ErrLevel, fsm.ErrHalted,
		&fsm.ManifestError{Reason: "x"}, &fsm.MissingError{}, &fsm.ReferencedError{}, ErrUnavailable, &Unavailable{},
		blobsync.ErrUploadUnknown, blobsync.ErrUploadBusy, blobsync.ErrDigestMismatch, blobsync.ErrNoSpace, blobsync.ErrNoHolder, &blobsync.ShortError{},
		&os.PathError{Err: syscall.EIO}, &os.PathError{Err: syscall.EROFS}, &os.PathError{Err: syscall.EMFILE}, context.DeadlineExceeded,
	} {
		p := explain(fmt.Errorf("wrapped: %w", err))
		if p.status == 500 || p.message == "" || strings.Contains(p.message, "wrapped") {
			t.Errorf("%v is answered by %v", err, p)
		}
		if p.status == 503 && p.retry == 0 {
			t.Errorf("%v: a 503 without Retry-After", err)
		}
	}
	if p := explain(errors.New("secret path")); p.status != 500 || strings.Contains(p.message, "secret") {
		t.Errorf("an unknown error is answered by %v", p)
	}
}
