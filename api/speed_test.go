package api

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"pier/fsm"
)

// void takes an answer as a connection does, and keeps nothing of it.
type void struct {
	header http.Header
	status int
	body   int64
}

func (v *void) Header() http.Header              { return v.header }
func (v *void) WriteHeader(status int)           { v.status = status }
func (v *void) SetWriteDeadline(time.Time) error { return nil }

func (v *void) Write(p []byte) (int, error) {
	v.body += int64(len(p))
	return len(p), nil
}

// ReadFrom takes a file's bytes as sendfile does, without a look at them.
func (v *void) ReadFrom(src io.Reader) (int64, error) {
	l, ok := src.(*io.LimitedReader)
	if !ok {
		return 0, fmt.Errorf("a %T", src)
	}
	n := l.N
	l.N = 0
	v.body += n
	return n, nil
}

// BenchmarkPull is what this package and those below do for a pull of 4 KiB, without the connection: from an open registry, and
// with a token from one with 10,000 grants.
func BenchmarkPull(b *testing.B) {
	const path = "team5/a/b/app-7"
	content := randomBytes(4 << 10)
	for _, closed := range []bool{false, true} {
		b.Run(map[bool]string{false: "open", true: "closed"}[closed], func(b *testing.B) {
			f := withAccess(b, 1, nil)
			n := f.nodes[0]
			r, err := http.NewRequestWithContext(b.Context(), "GET", "/v2/"+path+"/blobs/"+f.pushBlob(n, path, content).String(), nil)
			f.must(r, err)
			r.Host, r.RemoteAddr = "registry.lan", "192.0.2.1:40000"
			if closed {
				f.user("root")
				f.crowd(100, 100)
				f.user("puller", "pull:team5/**/app-*")
				r.Header.Set("Authorization", "Bearer "+f.token(n, "puller", "repository:"+path+":pull"))
			}
			h := n.api.Handler()
			b.ReportAllocs()
			for b.Loop() {
				w := &void{header: http.Header{}}
				h.ServeHTTP(w, r)
				if w.status != http.StatusOK || w.body != int64(len(content)) {
					b.Fatal(w.status, w.body)
				}
			}
		})
	}
}

// crowd makes robots with grants on repositories of their own.
func (f *fixture) crowd(robots, grants int) {
	f.Helper()
	for i := range robots {
		a := fsm.AddPrincipal{Principal: fsm.Principal{Name: fmt.Sprintf("robot%d", i), Robot: true}}
		for j := range grants {
			a.Grants = append(a.Grants, fsm.Grant{Subject: a.Principal.Name, Right: "push", Pattern: fmt.Sprintf("group%d/**/app-%d*", i, j)})
		}
		f.must(f.nodes[0].log.Propose(f.Context(), a))
	}
}
