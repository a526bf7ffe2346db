package api

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// span is a stretch of content that has size bytes in all.
type span struct{ start, length, size int64 }

func (s span) contentRange() string {
	return fmt.Sprintf("bytes %d-%d/%d", s.start, s.start+s.length-1, s.size)
}

// parseRange reads a Range header for content of size bytes. partial is false when the whole is to be sent: no header,
// another unit, or several ranges, which nobody needs here and the HTTP spec lets a server pass over. A range that has no
// byte of the content, or ends before it starts, is a 416.
func parseRange(header string, size int64) (s span, partial bool, err error) {
	whole := span{length: size, size: size}
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return whole, false, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return whole, false, nil
	}
	if first == "" {
		return suffixRange(last, whole)
	}
	start, okStart := parseOffset(first)
	end, okEnd := size-1, true
	if last != "" {
		end, okEnd = parseOffset(last)
	}
	if !okStart || !okEnd {
		return whole, false, nil
	}
	if start == 0 && size == 0 {
		return whole, false, nil
	}
	if start >= size || end < start {
		return whole, false, unsatisfiable(size)
	}
	end = min(end, size-1)
	return span{start: start, length: end - start + 1, size: size}, true, nil
}

func suffixRange(last string, whole span) (span, bool, error) {
	n, ok := parseOffset(last)
	if !ok || whole.size == 0 {
		return whole, false, nil
	}
	if n == 0 {
		return whole, false, unsatisfiable(whole.size)
	}
	n = min(n, whole.size)
	return span{start: whole.size - n, length: n, size: whole.size}, true, nil
}

func unsatisfiable(size int64) error {
	return refuse(http.StatusRequestedRangeNotSatisfiable, codeRangeInvalid, "the range has no byte of this content, which is %d bytes long", size)
}

// parseOffset takes digits only. What is too large for a number is as large as a number can be.
func parseOffset(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<62 - 1, true
	}
	return n, true
}

func etag(d digest.Digest) string { return `"` + d.String() + `"` }

// matches reports whether a list of entity tags, as in If-Match, names d. W/ is passed over: equal digests are equal bytes.
func matches(header string, d digest.Digest) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimPrefix(strings.TrimSpace(part), "W/")
		if part == "*" || part == etag(d) {
			return true
		}
	}
	return false
}

// preconditions answers a read's If-Match and If-None-Match. done is true when the answer is 304 and has been sent.
func preconditions(w http.ResponseWriter, r *http.Request, d digest.Digest) (done bool, err error) {
	if h := r.Header.Get("If-Match"); h != "" && !matches(h, d) {
		return false, refuse(http.StatusPreconditionFailed, codePrecondition, "the content is %s, which If-Match does not name", d)
	}
	if h := r.Header.Get("If-None-Match"); h != "" && matches(h, d) {
		w.WriteHeader(http.StatusNotModified)
		return true, nil
	}
	return false, nil
}

// wantedRange is the request's Range header, unless If-Range says that the client's part is of something else.
func wantedRange(r *http.Request, d digest.Digest) string {
	if h := r.Header.Get("If-Range"); h != "" && strings.TrimSpace(h) != etag(d) {
		return ""
	}
	return r.Header.Get("Range")
}
