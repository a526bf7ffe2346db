package api

import (
	"net/http"

	"pier/fsm"
)

type catalog struct {
	Repositories []fsm.Repo `json:"repositories"`
}

// getCatalog lists the repositories in byte order.
func (a *API) getCatalog(w http.ResponseWriter, r *http.Request, rt route) error {
	p, err := parsePage(r.URL.Query(), maxPage)
	if err != nil {
		return err
	}
	if _, err := a.current(w, r); err != nil {
		return err
	}
	repos := []fsm.Repo{}
	if p.n > 0 {
		found, more, err := a.state.Repositories(p.after, p.n)
		if err != nil {
			return err
		}
		repos = append(repos, found...)
		if more {
			linkNext(w, rt.path(), string(repos[len(repos)-1]), p.n, nil)
		}
	}
	return writeJSON(w, "application/json", catalog{Repositories: repos})
}
