package api

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
)

func TestBlobReads(t *testing.T) {
	f := newFixture(t, 1, nil)
	content := randomBytes(2000)
	d := f.pushBlob(f.nodes[0], "a/b", content)
	path := "/v2/a/b/blobs/" + d.String()

	got := f.want(f.do("GET", path, nil), 200, "")
	if !bytes.Equal(got.body, content) {
		t.Error("GET sends other bytes")
	}
	f.wantHeader(got, "Content-Type: application/octet-stream", "Content-Length: 2000", "Accept-Ranges: bytes",
		"Docker-Content-Digest: "+d.String(), `ETag: "`+d.String()+`"`, "Cache-Control: "+cacheForever,
		"Content-Encoding: ", "Docker-Distribution-API-Version: registry/2.0")
	head := f.want(f.do("HEAD", path, nil), 200, "")
	f.wantHeader(head, "Content-Length: 2000", "Accept-Ranges: bytes", "Docker-Content-Digest: "+d.String())

	f.want(f.do("GET", path, nil, `If-None-Match: "`+d.String()+`"`), 304, "")
	f.want(f.do("HEAD", path, nil, `If-None-Match: W/"x", "`+d.String()+`"`), 304, "")
	f.want(f.do("GET", path, nil, `If-Match: "x"`), 412, codePrecondition)
	f.want(f.do("GET", path, nil, "Accept-Encoding: gzip, zstd"), 200, "")
	f.want(f.do("GET", "/v2/other/blobs/"+d.String(), nil), 404, codeBlobUnknown)
	f.want(f.do("HEAD", "/v2/other/blobs/"+d.String(), nil), 404, "")
	f.want(f.do("GET", "/v2/a/b/blobs/sha256:x", nil), 400, codeDigestInvalid)
	f.want(f.do("PUT", path, content), 405, codeUnsupported)
}

func TestBlobRanges(t *testing.T) {
	f := newFixture(t, 1, nil)
	content := randomBytes(2000)
	d := f.pushBlob(f.nodes[0], "a", content)
	empty := f.pushBlob(f.nodes[0], "a", nil)
	for _, c := range []struct {
		header     string
		status     int
		start, end int
	}{
		{"bytes=0-0", 206, 0, 0},
		{"bytes=500-1499", 206, 500, 1499},
		{"bytes=500-", 206, 500, 1999},
		{"bytes=-500", 206, 1500, 1999},
		{"bytes=-5000", 206, 0, 1999},
		{"bytes=1999-99999999999999999999", 206, 1999, 1999},
		{"bytes=2000-", 416, 0, 0},
		{"bytes=500-0", 416, 0, 0},
		{"bytes=-0", 416, 0, 0},
		{"bytes=1-2,5-6", 200, 0, 1999},
		{"bytes=x-y", 200, 0, 1999},
		{"lines=1-2", 200, 0, 1999},
		{"bytes=5", 200, 0, 1999},
	} {
		got := f.do("GET", "/v2/a/blobs/"+d.String(), nil, "Range: "+c.header)
		switch c.status {
		case 416:
			f.want(got, 416, codeRangeInvalid)
			f.wantHeader(got, "Content-Range: bytes */2000", "Cache-Control: ")
			continue
		case 206:
			f.wantHeader(got, fmt.Sprintf("Content-Range: bytes %d-%d/2000", c.start, c.end))
		}
		f.want(got, c.status, "")
		if !bytes.Equal(got.body, content[c.start:c.end+1]) {
			t.Errorf("%s sends %d other bytes", c.header, len(got.body))
		}
	}
	got := f.do("GET", "/v2/a/blobs/"+d.String(), nil, "Range: bytes=5-9", `If-Range: "`+d.String()+`"`)
	f.want(got, 206, "")
	got = f.do("GET", "/v2/a/blobs/"+d.String(), nil, "Range: bytes=5-9", `If-Range: "other"`)
	f.want(got, 200, "")
	for _, header := range []string{"bytes=0-", "bytes=-5", "bytes=0-10"} {
		if got := f.want(f.do("GET", "/v2/a/blobs/"+empty.String(), nil, "Range: "+header), 200, ""); len(got.body) != 0 {
			t.Errorf("the empty blob has %d bytes", len(got.body))
		}
	}
}

func TestBlobDelete(t *testing.T) {
	f := newFixture(t, 1, nil)
	m, _ := f.pushImage(f.nodes[0], "a", "latest", "")
	config := "/v2/a/blobs/" + digest.FromString("{}").String()
	got := f.want(f.do("DELETE", config, nil), 405, codeUnsupported)
	if !bytes.Contains(got.body, []byte(m)) {
		t.Errorf("the refusal does not name the manifest: %s", got.body)
	}
	f.wantHeader(got, "Allow: GET, HEAD")
	f.want(f.do("DELETE", "/v2/a/manifests/"+m.String(), nil), 202, "")
	f.want(f.do("DELETE", config, nil), 202, "")
	f.want(f.do("DELETE", config, nil), 404, codeBlobUnknown)
	f.want(f.do("GET", config, nil), 404, codeBlobUnknown)
	f.want(f.do("DELETE", "/v2/none/blobs/"+someDigest, nil), 404, codeBlobUnknown)
}

// A blob that another node holds comes through this one; one that nobody holds is unknown to HEAD, so that clients push it
// again, and unavailable to GET.
func TestBlobElsewhere(t *testing.T) {
	f := newFixture(t, 2, nil)
	content := randomBytes(300 << 10)
	d := f.pushBlob(f.nodes[0], "a", content)
	path := "/v2/a/blobs/" + d.String()
	f.want(f.doOn(f.nodes[1], "HEAD", path, nil), 200, "")
	if got := f.want(f.doOn(f.nodes[1], "GET", path, nil), 200, ""); !bytes.Equal(got.body, content) {
		t.Error("the other node sends other bytes")
	}
	for _, n := range f.nodes {
		_ = n.store.Quarantine(d)
	}
	f.want(f.do("HEAD", path, nil), 404, "")
	got := f.want(f.do("GET", path, nil), 503, codeUnavailable)
	if got.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	f.wantHeader(got, "Cache-Control: ", "ETag: ", "Docker-Content-Digest: ", "Accept-Ranges: ")
	// A mount must not count on it either.
	f.want(f.do("POST", "/v2/b/blobs/uploads/?mount="+d.String()+"&from=a", nil), 202, "")
}

// A holder that is back in time is waited for.
func TestHeadWaitsForHolder(t *testing.T) {
	f := newFixture(t, 2, func(c *Config) { c.HolderWait = time.Minute })
	f.setPeer("node-1", "127.0.0.1:1")
	f.setPeer("node-0", "127.0.0.1:1")
	d := f.pushBlob(f.nodes[1], "a", []byte("away"))
	var work sync.WaitGroup
	work.Go(func() { f.want(f.do("HEAD", "/v2/a/blobs/"+d.String(), nil), 200, "") })
	f.setPeer("node-1", f.nodes[1].peer)
	work.Wait()
}

// What a handler writes to keeps the connection's ReadFrom, by which a file goes out with sendfile.
func TestExchangeKeepsReadFrom(t *testing.T) {
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, randomBytes(3*steadyPiece/2), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	under := &readerFrom{ResponseWriter: httptest.NewRecorder()}
	x := &exchange{ResponseWriter: under}
	n, err := copySteady(x, file, 3*steadyPiece/2, defaultBodyIdle)
	if err != nil || n != 3*steadyPiece/2 || x.sent != n {
		t.Fatalf("sent %d, counted %d: %v", n, x.sent, err)
	}
	if under.files != 2 {
		t.Errorf("the connection was given a file %d times, want 2", under.files)
	}
}

type readerFrom struct {
	http.ResponseWriter
	files int
}

func (r *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	if l, ok := src.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			r.files++
		}
	}
	return io.Copy(struct{ io.Writer }{r.ResponseWriter}, src)
}

func BenchmarkBlobGet(b *testing.B) {
	for _, size := range []int{4 << 10, 16 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			dir := b.TempDir()
			name := filepath.Join(dir, "blob")
			if err := os.WriteFile(name, randomBytes(size), 0o600); err != nil {
				b.Fatal(err)
			}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				file, err := os.Open(name)
				if err != nil {
					return
				}
				defer func() { _ = file.Close() }()
				describeBlob(w, r, someDigest)
				a := &API{cfg: Config{BodyIdle: defaultBodyIdle}}
				_ = a.sendBlob(&exchange{ResponseWriter: w}, file, span{length: int64(size), size: int64(size)}, false)
			}))
			defer server.Close()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				resp, err := http.Get(server.URL)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
}

// A node that lags behind asks before it denies a blob.
func TestBlobOnLaggingNode(t *testing.T) {
	f := newFixture(t, 2, nil)
	late := f.nodes[1]
	late.log.set(func(l *nodeLog) { l.lagging = true })
	content := []byte("fresh")
	d := f.pushBlob(f.nodes[0], "a", content)
	if _, err := late.state.Blob("a", d); err == nil {
		t.Fatal("the node does not lag")
	}
	f.want(f.doOn(late, "HEAD", "/v2/a/blobs/"+d.String(), nil), 200, "")

	late.log.set(func(l *nodeLog) { l.alone = true })
	other := f.pushBlob(f.nodes[0], "a", []byte("fresher"))
	got := f.want(f.doOn(late, "GET", "/v2/a/blobs/"+other.String(), nil), 503, codeUnavailable)
	f.wantHeader(got, "Retry-After: 2")
	f.want(f.doOn(late, "HEAD", "/v2/a/blobs/"+d.String(), nil), 200, "")
	var repos []fsm.Repo
	if repos, _, _ = late.state.Repositories("", 10); len(repos) != 1 {
		t.Errorf("repositories: %v", repos)
	}
}
