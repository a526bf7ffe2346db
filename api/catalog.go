package api

import (
	"net/http"
	"strings"

	"pier/api/auth"
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
	p.after = a.shownCursor(p.after)
	repos, more, err := a.visible(r, p)
	if err != nil {
		return err
	}
	if more != "" {
		linkNext(w, rt.path(), more, p.n, nil)
	}
	return writeJSON(w, "application/json", catalog{Repositories: repos})
}

// maxLooked bounds how many names one request looks at for those that its caller may see. A page that ends early has a
// Link, as the spec allows.
const maxLooked = 20_000

// sealedMark begins a cursor that is no name, as no name begins.
const sealedMark = "."

// hiddenCursor is where the next page begins when that is behind a name that the caller may not see.
func (a *API) hiddenCursor(name string) string {
	keys := a.access.cfg.Keys()
	if keys == nil {
		return name
	}
	return sealedMark + keys.Seal(name)
}

// shownCursor is the name behind which a page begins.
func (a *API) shownCursor(after string) string {
	if sealed, ok := strings.CutPrefix(after, sealedMark); ok {
		if keys := a.access.cfg.Keys(); keys != nil {
			name, _ := keys.Unseal(sealed) // an old or a broken one begins at the beginning
			return name
		}
	}
	return after
}

// visible is a page of what the caller may pull, and the cursor after which the next one begins. That is empty where the caller
// may see no more, whatever there is.
func (a *API) visible(r *http.Request, p page) (repos []fsm.Repo, more string, err error) {
	repos = []fsm.Repo{}
	d, err := a.access.directory()
	if err != nil {
		return nil, "", err
	}
	caller := exchangeOf(r.Context()).caller.Unlimited() // a token for the catalog names no repositories
	after, looked := p.after, 0
	for p.n > 0 {
		found, further, err := a.state.Repositories(after, min(p.n+1, catalogStep))
		if err != nil {
			return nil, "", err
		}
		for _, repo := range found {
			after = string(repo)
			if _, ok := d.Decide(caller, auth.Pull, after); !ok {
				continue
			}
			if len(repos) == p.n {
				return repos, string(repos[p.n-1]), nil
			}
			repos = append(repos, repo)
		}
		if looked += len(found); !further {
			return repos, "", nil
		}
		if looked >= a.maxLooked {
			return repos, a.hiddenCursor(after), nil
		}
	}
	return repos, "", nil
}

const catalogStep = 1000
