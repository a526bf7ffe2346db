package api

import (
	"net/http"

	"pier/fsm"
)

type tagList struct {
	Name fsm.Repo  `json:"name"`
	Tags []fsm.Tag `json:"tags"`
}

// getTags lists a repository's tags in byte order.
func (a *API) getTags(w http.ResponseWriter, r *http.Request, rt route) error {
	p, err := parsePage(r.URL.Query(), maxPage)
	if err != nil {
		return err
	}
	stale, err := a.current(w, r)
	if err != nil {
		return err
	}
	// An empty page still tells whether there is such a repository.
	tags, more, err := a.state.Tags(rt.repo, p.after, max(p.n, 1))
	if unknown(err) && stale != nil {
		w.Header().Del("Warning")
		return stale
	}
	if err != nil {
		return err
	}
	if p.n == 0 {
		tags, more = nil, false
	}
	if more {
		linkNext(w, rt.path(), string(tags[len(tags)-1]), p.n, nil)
	}
	return writeJSON(w, "application/json", tagList{Name: rt.repo, Tags: append([]fsm.Tag{}, tags...)})
}
