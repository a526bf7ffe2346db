package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"pier/fsm"
)

const (
	maxReferrers      = 1000    // descriptors on a page
	maxReferrersBytes = 3 << 20 // of a page; clients read an index of 4 MiB
	referrersStep     = 100     // descriptors read at once
)

type referrerIndex struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []json.RawMessage `json:"manifests"`
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
	filter := url.Values{}
	if kind := query.Get("artifactType"); kind != "" {
		filter.Set("artifactType", kind)
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	found, next, err := a.collectReferrers(rt, filter.Get("artifactType"), p)
	if err != nil {
		return err
	}
	if next != "" {
		linkNext(w, rt.path(), next, p.n, filter)
	}
	w.Header().Set("Cache-Control", cacheNot)
	return writeJSON(w, fsm.TypeOCIIndex, referrerIndex{SchemaVersion: 2, MediaType: fsm.TypeOCIIndex, Manifests: found})
}

// collectReferrers fills a page: at most p.n descriptors and, from the second on, at most maxReferrersBytes, since
// annotations can be large. next is the last digest of the page when another follows.
func (a *API) collectReferrers(rt route, artifactType string, p page) (list []json.RawMessage, next string, err error) {
	list = []json.RawMessage{}
	size := 0
	for len(list) < p.n {
		step, more, err := a.state.Referrers(rt.repo, rt.digest, artifactType, p.after, min(p.n-len(list), referrersStep))
		if err != nil {
			return nil, "", err
		}
		for _, d := range step {
			entry, err := json.Marshal(d)
			if err != nil {
				return nil, "", fmt.Errorf("encode a referrer: %w", err)
			}
			if size += len(entry); size > maxReferrersBytes && len(list) > 0 {
				return list, p.after, nil
			}
			list = append(list, entry)
			p.after = d.Digest.String()
		}
		if !more {
			return list, "", nil
		}
		next = p.after
	}
	return list, next, nil
}
