package api

import (
	"net/http"
	"path/filepath"
	"testing"
)

// FuzzRanges wants Range and Content-Range to be a stretch that exists, the whole, or a refusal that a client understands.
func FuzzRanges(f *testing.F) {
	corpus, err := filepath.Glob("testdata/fuzz/FuzzRanges/*")
	if err != nil || len(corpus) == 0 {
		f.Fatalf("the corpus is empty (%v)", err)
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		size = max(size, 0)
		s, partial, err := parseRange(header, size)
		switch {
		case err != nil:
			if explain(err).status != http.StatusRequestedRangeNotSatisfiable {
				t.Fatalf("%q: %v", header, err)
			}
		case !partial && s != span{length: size, size: size}:
			t.Fatalf("%q of %d is %+v, which is not the whole", header, size, s)
		case partial && (s.start < 0 || s.length < 1 || s.size != size || s.start > size-s.length):
			t.Fatalf("%q of %d is %+v", header, size, s)
		}
		r := &http.Request{Header: http.Header{"Content-Range": {header}}, ContentLength: -1}
		c, err := parseChunk(r)
		switch {
		case err != nil:
			if explain(err).status != http.StatusBadRequest {
				t.Fatalf("%q: %v", header, err)
			}
		case header != "" && (c.at < 0 || c.length < 1 || c.at+c.length < c.at):
			t.Fatalf("%q is %+v", header, c)
		}
	})
}
