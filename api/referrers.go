package api

import (
	"net/http"
	"net/url"

	"pier/fsm"
)

// maxReferrers is how many descriptors one page of referrers has.
const maxReferrers = 1000

type referrerIndex struct {
	SchemaVersion int              `json:"schemaVersion"`
	MediaType     string           `json:"mediaType"`
	Manifests     []fsm.Descriptor `json:"manifests"`
}

// getReferrers lists the manifests that name a digest as their subject: an image index, empty when there are none.
func (a *API) getReferrers(w http.ResponseWriter, r *http.Request, rt route) error {
	query := r.URL.Query()
	p, err := parsePage(query, maxReferrers)
	if err != nil {
		return err
	}
	if _, err := a.current(w, r); err != nil {
		return err
	}
	kind := query.Get("artifactType")
	found, more, err := a.state.Referrers(rt.repo, rt.digest, kind, p.after, max(p.n, 1))
	if err != nil {
		return err
	}
	if p.n == 0 {
		found, more = nil, false
	}
	filter := url.Values{}
	if kind != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		filter.Set("artifactType", kind)
	}
	if more {
		linkNext(w, rt.path(), found[len(found)-1].Digest.String(), p.n, filter)
	}
	w.Header().Set("Cache-Control", cacheNot)
	return writeJSON(w, fsm.TypeOCIIndex, referrerIndex{
		SchemaVersion: 2, MediaType: fsm.TypeOCIIndex, Manifests: append([]fsm.Descriptor{}, found...),
	})
}
