package api

import "net/http"

// healthz says that the process lives.
func (a *API) healthz(w http.ResponseWriter, r *http.Request) {
	exchangeOf(r.Context()).route = "healthz"
	_ = writeJSON(w, "application/json", map[string]string{"status": "ok"})
}

// readyz says whether this node can serve pulls, or with ?for=push pushes too.
func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	exchangeOf(r.Context()).route = "readyz"
	if err := a.cfg.Ready(r.URL.Query().Get("for") == "push"); err != nil {
		p := refuse(http.StatusServiceUnavailable, codeUnavailable, "not ready: %v", err)
		p.retry = defaultRetry
		p.write(w)
		return
	}
	_ = writeJSON(w, "application/json", map[string]string{"status": "ready"})
}
