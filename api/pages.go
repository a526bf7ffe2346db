package api

import (
	"net/http"
	"net/url"
	"strconv"
)

// maxPage is how many entries a listing has at most; a longer one goes on at its Link. It is large because many clients
// take the first page for all.
const maxPage = 10000

// page is what a listing's query asks for.
type page struct {
	after string
	n     int
}

// parsePage reads n and last. Any number is a number, however large; the page is cut to the limit.
func parsePage(query url.Values, limit int) (page, error) {
	p := page{after: query.Get("last"), n: limit}
	if !query.Has("n") {
		return p, nil
	}
	n, ok := parseOffset(query.Get("n"))
	if !ok {
		return page{}, refuse(http.StatusBadRequest, codePageInvalid, "n must be a whole number, 0 or more")
	}
	p.n = int(min(n, int64(limit)))
	return p, nil
}

// linkNext points to the page that follows the one that ended with last.
func linkNext(w http.ResponseWriter, path, last string, n int, more url.Values) {
	query := url.Values{"last": {last}, "n": {strconv.Itoa(n)}}
	for k, v := range more {
		query[k] = v
	}
	w.Header().Set("Link", "<"+path+"?"+query.Encode()+`>; rel="next"`)
}
