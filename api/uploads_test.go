package api

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/blobsync"
	"pier/blobsync/store"
)

func (f *fixture) begin(n *testNode, repo, query string) string {
	f.Helper()
	got := f.want(f.doOn(n, "POST", "/v2/"+repo+"/blobs/uploads/"+query, nil), 202, "")
	f.wantHeader(got, "Range: 0-0", "Content-Length: 0")
	loc := got.Header.Get("Location")
	if !strings.HasPrefix(loc, "/v2/"+repo+"/blobs/uploads/"+string(n.id)+".") || strings.Contains(loc, "?") {
		f.Fatalf("Location is %q", loc)
	}
	return loc
}

func (f *fixture) wantBlob(n *testNode, repo string, content []byte, d digest.Digest) {
	f.Helper()
	got := f.want(f.doOn(n, "GET", "/v2/"+repo+"/blobs/"+d.String(), nil), 200, "")
	if !bytes.Equal(got.body, content) {
		f.Fatalf("blob %s has other bytes", d)
	}
}

func TestUploadWays(t *testing.T) {
	f := newFixture(t, 1, nil)
	n := f.nodes[0]
	content := randomBytes(100000)
	for name, push := range map[string]func(repo string, d digest.Digest) answer{
		"one post": func(repo string, d digest.Digest) answer {
			return f.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), content)
		},
		"post and put": func(repo string, d digest.Digest) answer {
			return f.do("PUT", f.begin(n, repo, "")+"?digest="+d.String(), content)
		},
		"stream": func(repo string, d digest.Digest) answer {
			loc := f.begin(n, repo, "")
			got := f.want(f.do("PATCH", loc, io.MultiReader(bytes.NewReader(content))), 202, "")
			f.wantHeader(got, "Range: 0-99999", "Location: "+loc)
			return f.do("PUT", loc+"?digest="+d.String(), nil)
		},
		"chunks": func(repo string, d digest.Digest) answer {
			loc := f.begin(n, repo, "?digest-algorithm="+d.Algorithm().String())
			f.want(f.do("PATCH", loc, content[:40000], "Content-Range: 0-39999"), 202, "")
			got := f.want(f.do("PATCH", loc, content[40000:60000], "Content-Range: bytes 40000-59999/100000"), 202, "")
			f.wantHeader(got, "Range: 0-59999")
			got = f.want(f.do("GET", loc, nil), 204, "")
			f.wantHeader(got, "Range: 0-59999", "Location: "+loc)
			return f.do("PUT", loc+"?digest="+d.String(), content[60000:], "Content-Range: 60000-99999")
		},
	} {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			d := alg.FromBytes(content)
			repo := strings.ReplaceAll(name, " ", "-") + "/" + alg.String()
			got := f.want(push(repo, d), 201, "")
			f.wantHeader(got, "Location: /v2/"+repo+"/blobs/"+d.String(), "Docker-Content-Digest: "+d.String())
			f.wantBlob(n, repo, content, d)
		}
	}
	empty := digest.FromBytes(nil)
	f.want(f.do("PUT", f.begin(n, "e", "")+"?digest="+empty.String(), nil), 201, "")
	f.wantBlob(n, "e", nil, empty)
}

// A final PUT whose answer was lost is sent again, with whatever it carried.
func TestUploadPutRepeated(t *testing.T) {
	f := newFixture(t, 1, nil)
	content := randomBytes(70000)
	d := digest.FromBytes(content)
	loc := f.begin(f.nodes[0], "a", "")
	for range 3 {
		got := f.want(f.do("PUT", loc+"?digest="+d.String(), content), 201, "")
		f.wantHeader(got, "Location: /v2/a/blobs/"+d.String())
	}
	f.want(f.do("PUT", loc+"?digest="+d.String(), nil), 201, "")
	f.want(f.do("PUT", loc+"?digest="+someDigest, nil), 404, codeUploadUnknown)

	loc = f.begin(f.nodes[0], "a", "")
	f.want(f.do("PATCH", loc, content[:30000]), 202, "")
	for range 2 {
		f.want(f.do("PUT", loc+"?digest="+d.String(), content[30000:], "Content-Range: 30000-69999"), 201, "")
	}
	f.wantBlob(f.nodes[0], "a", content, d)
}

// When the log can't take the link the blob is safe on the disk, and the client's next PUT succeeds.
func TestUploadWithoutQuorum(t *testing.T) {
	f := newFixture(t, 1, nil)
	content := []byte("patience")
	d := digest.FromBytes(content)
	loc := f.begin(f.nodes[0], "a", "")
	f.nodes[0].log.set(func(l *nodeLog) { l.alone = true })
	got := f.want(f.do("PUT", loc+"?digest="+d.String(), content), 503, codeUnavailable)
	f.wantHeader(got, "Retry-After: 2")
	f.nodes[0].log.set(func(l *nodeLog) { l.alone = false })
	f.want(f.do("PUT", loc+"?digest="+d.String(), content), 201, "")
	f.wantBlob(f.nodes[0], "a", content, d)
}

func TestUploadRefusals(t *testing.T) {
	f := newFixture(t, 1, nil)
	n := f.nodes[0]
	content := randomBytes(1000)
	d := digest.FromBytes(content).String()
	wrong := digest.FromString("other").String()

	f.want(f.do("POST", "/v2/a/blobs/uploads/?digest="+wrong, content), 400, codeDigestInvalid)
	f.want(f.do("POST", "/v2/a/blobs/uploads/?digest=sha256:1", content), 400, codeDigestInvalid)
	f.want(f.do("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", nil), 400, codeDigestInvalid)
	if left := n.uploads(t); len(left) != 0 {
		t.Errorf("refused uploads leave %v", left)
	}

	loc := f.begin(n, "a", "")
	f.want(f.do("PATCH", loc, content[:500], "Content-Range: 0-499"), 202, "")
	for header, code := range map[string]string{
		"0-499": codeUploadInvalid, "400-899": codeUploadInvalid, "600-1099": codeUploadInvalid, "99999999999999999999-99999999999999999999": "",
	} {
		if code == "" {
			f.want(f.do("PATCH", loc, content[:1], "Content-Range: "+header), 416, codeUploadInvalid)
			continue
		}
		got := f.want(f.do("PATCH", loc, content[:500], "Content-Range: "+header), 416, code)
		f.wantHeader(got, "Range: 0-499", "Location: "+loc)
	}
	got := f.want(f.do("PUT", loc+"?digest="+d, content[600:], "Content-Range: 600-999"), 416, codeUploadInvalid)
	f.wantHeader(got, "Range: 0-499", "Location: "+loc)
	for _, header := range []string{"abc", "5-2", "-5", "5-", "1-2-3", "0x1-0x2", "bytes */10"} {
		f.want(f.do("PATCH", loc, content[:500], "Content-Range: "+header), 400, codeUploadInvalid)
	}
	f.want(f.do("PATCH", loc, content[:100], "Content-Range: 500-999"), 400, codeSizeInvalid)
	f.want(f.do("PATCH", loc, io.MultiReader(bytes.NewReader(content[500:])), "Content-Range: 500-599"), 400, codeSizeInvalid)
	f.wantHeader(f.do("GET", loc, nil), "Range: 0-599")
	f.want(f.do("PATCH", loc, io.MultiReader(bytes.NewReader(content[600:700])), "Content-Range: 600-899"), 400, codeSizeInvalid)
	f.wantHeader(f.do("GET", loc, nil), "Range: 0-699")
	f.want(f.do("PUT", loc, content), 400, codeDigestInvalid)
	f.want(f.do("PUT", loc+"?digest="+wrong, nil), 400, codeDigestInvalid)
	f.want(f.do("PUT", loc+"?digest="+d, content[700:]), 201, "")
}

// A client that sends all and doesn't stay for the answer has pushed its blob.
func TestUploadGoesOnWithoutClient(t *testing.T) {
	f := newFixture(t, 2, nil)
	for i := range 40 {
		content := randomBytes(5000 + i)
		d := digest.FromBytes(content)
		request := "PUT " + f.begin(f.nodes[i%2], "a", "") + "?digest="
		if i%3 == 0 {
			request = "POST /v2/a/blobs/uploads/?digest="
		}
		conn := f.dial(f.nodes[0], request+d.String()+fmt.Sprintf(" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(content), content))
		f.must(nil, conn.Close())
		eventually(t, func() error {
			if got := f.do("HEAD", "/v2/a/blobs/"+d.String(), nil); got.StatusCode != 200 {
				return fmt.Errorf("blob %d, %.20s: %s", i, request, got.Status)
			}
			return nil
		})
	}
}

// An upload has one writer. The next waits for it a little: mostly it is one that has just hung up.
func TestUploadBusy(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) { c.BusyWait = 100 * time.Millisecond })
	loc := f.begin(f.nodes[0], "a", "")
	conn := f.dial(f.nodes[0], "PATCH "+loc+" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhello")
	eventually(t, func() error {
		if got := f.do("GET", loc, nil).Header.Get("Range"); got != "0-4" {
			return fmt.Errorf("Range is %s", got)
		}
		return nil
	})
	d := digest.FromString("hello world")
	for _, c := range []struct{ method, path string }{{"PATCH", loc}, {"PUT", loc + "?digest=" + d.String()}, {"DELETE", loc}} {
		got := f.want(f.do(c.method, c.path, nil), 503, codeUnavailable)
		f.wantHeader(got, "Retry-After: 3")
	}
	f.nodes[0].api.cfg.BusyWait = time.Minute
	var work sync.WaitGroup
	work.Go(func() { f.want(f.do("PATCH", loc, []byte(" world")), 202, "") })
	f.must(nil, conn.Close())
	work.Wait()
	f.want(f.do("PUT", loc+"?digest="+d.String(), nil), 201, "")
}

func TestUploadUnknown(t *testing.T) {
	f := newFixture(t, 1, nil)
	loc := f.begin(f.nodes[0], "a", "")
	_, id, _ := strings.Cut(loc, "/uploads/")
	for _, path := range []string{
		"/v2/b/blobs/uploads/" + id,
		"/v2/a/blobs/uploads/node-0.nobody",
		"/v2/a/blobs/uploads/stranger.abc",
		"/v2/a/blobs/uploads/nonsense",
	} {
		for _, method := range []string{"GET", "PATCH", "PUT", "DELETE"} {
			f.want(f.do(method, path+"?digest="+someDigest, nil), 404, codeUploadUnknown)
		}
	}
	f.want(f.do("DELETE", loc, nil), 204, "")
	for _, method := range []string{"GET", "PATCH", "DELETE"} {
		f.want(f.do(method, loc, nil), 404, codeUploadUnknown)
	}
	if left := f.nodes[0].uploads(t); len(left) != 0 {
		t.Errorf("a cancelled upload leaves %v", left)
	}
}

func TestMount(t *testing.T) {
	f := newFixture(t, 1, nil)
	content := []byte("shared")
	d := f.pushBlob(f.nodes[0], "from", content)
	for i, c := range []struct {
		query  string
		status int
		code   string
	}{
		{"mount=" + d.String() + "&from=from", 201, ""},
		{"mount=" + d.String(), 201, ""},
		{"mount=" + d.String() + "&from=elsewhere", 202, ""},
		{"mount=" + d.String() + "&from=UPPER", 202, ""},
		{"mount=" + someDigest + "&from=from", 202, ""},
		{"mount=nonsense&from=from", 400, codeDigestInvalid},
	} {
		repo := fmt.Sprintf("to/%d", i)
		got := f.want(f.do("POST", "/v2/"+repo+"/blobs/uploads/?"+c.query, nil), c.status, c.code)
		switch c.status {
		case 201:
			f.wantHeader(got, "Location: /v2/"+repo+"/blobs/"+d.String(), "Docker-Content-Digest: "+d.String())
			f.wantBlob(f.nodes[0], repo, content, d)
		case 202:
			if !strings.HasPrefix(got.Header.Get("Location"), "/v2/"+repo+"/blobs/uploads/") {
				t.Errorf("%s: Location %q", c.query, got.Header.Get("Location"))
			}
		}
	}
	f.nodes[0].log.set(func(l *nodeLog) { l.alone = true })
	f.want(f.do("POST", "/v2/t/blobs/uploads/?mount="+someDigest, nil), 202, "")
}

// A full disk refuses what would fill it, says so, and goes on serving what is there.
func TestUploadOnFullDisk(t *testing.T) {
	f := newFixture(t, 1, nil)
	n := f.nodes[0]
	content := []byte("before")
	d := f.pushBlob(n, "a", content)
	loc := f.begin(n, "a", "")
	full, err := store.Open(store.Config{Dir: n.dir, ReserveBytes: 1 << 60})
	f.must(full, err)
	roomy := n.api.blobs
	n.api.blobs, err = blobsync.New(blobsync.Config{}, full, stateIndex{n.state}, &statePeers{node: n, fixture: f})
	f.must(n.api.blobs, err)
	for _, c := range []struct{ method, path string }{
		{"POST", "/v2/a/blobs/uploads/"}, {"POST", "/v2/a/blobs/uploads/?digest=" + someDigest},
		{"PATCH", loc}, {"PUT", loc + "?digest=" + digest.FromString("more").String()},
	} {
		got := f.want(f.do(c.method, c.path, []byte("more")), 503, codeUnavailable)
		if !bytes.Contains(got.body, []byte("full")) || got.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: %s", c.method, c.path, got.body)
		}
	}
	f.wantBlob(n, "a", content, d)
	n.api.blobs = roomy
	f.want(f.do("PUT", loc+"?digest="+digest.FromString("more").String(), []byte("more")), 201, "")
}
