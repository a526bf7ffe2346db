package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"golang.org/x/sync/semaphore"

	"pier/api/auth"
	"pier/api/client"
	"pier/blobsync"
	"pier/fsm"
)

// Log is the way to the replicated log.
type Log interface {
	// Propose returns once the command is applied here. Refusals of the state come as fsm's typed errors; no way to decide
	// in time is an ErrUnavailable.
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Answer, error)
	// Current returns nil when the local state holds everything acknowledged before the call, else an ErrUnavailable.
	Current(ctx context.Context) error
}

// Config is what the node tells its API. Zero limits mean the defaults.
type Config struct {
	Node    fsm.NodeID // this node's ID, which is in the upload IDs it hands out
	Name    string
	Version string
	// Relay reaches other nodes at http://NODE-ID/; nil means that there are none.
	Relay http.RoundTripper
	// Alive is a hint whether a node can be reached; nil means always.
	Alive func(id fsm.NodeID) bool
	// Figures are shown by /metrics; nil shows none.
	Figures func() Figures
	// Exposure says what strangers can do to this node; empty is nothing. Nil doesn't say.
	Exposure func() string
	// MetricsOpen shows /metrics to everybody, also while access control is on.
	MetricsOpen bool
	// Doctor is what this node finds wrong, or right, with itself; nil finds nothing.
	Doctor func(ctx context.Context) []client.Finding
	// Ready returns why this node can't serve pulls, or pushes; nil means always ready.
	Ready func(push bool) error
	// MaxInFlight requests are served at once (default 1024; no source gets much more than half), MaxQueue more wait (default
	// 8192), each for at most QueueWait (default 30 s). A manifest that is pushed waits as long for memory.
	MaxInFlight, MaxQueue int
	QueueWait             time.Duration
	// BodyIdle is how long a client may send or take nothing (default 60 s; answers in JSON keep that).
	BodyIdle time.Duration
	// ReadWait bounds the wait for a quorum before a tag is answered from this node's own state (default 5 s).
	ReadWait time.Duration
	// RelayWait is how long an upload's node may be unreachable before the upload counts as gone (default 10 s).
	RelayWait time.Duration
	// BusyWait is how long a request waits for another that is at the same upload (default 5 s).
	BusyWait time.Duration
	// HolderWait is how long HEAD waits for a node that has the blob before it tells the client to push it again
	// (default 3 s).
	HolderWait time.Duration
	Access     Access
	Audit      *Audit // nil writes none
	Logger     *slog.Logger
	AccessLog  *slog.Logger // nil writes none
}

// Validate reports every fault at once.
func (c Config) Validate() error {
	var faults []error
	if !isToken(string(c.Node), maxOwner) {
		faults = append(faults, fmt.Errorf("node ID %q: 1 to %d letters, digits, - or _ are needed", c.Node, maxOwner))
	}
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"MaxInFlight", int64(c.MaxInFlight)}, {"MaxQueue", int64(c.MaxQueue)}, {"QueueWait", int64(c.QueueWait)},
		{"BodyIdle", int64(c.BodyIdle)}, {"ReadWait", int64(c.ReadWait)}, {"RelayWait", int64(c.RelayWait)},
		{"BusyWait", int64(c.BusyWait)}, {"HolderWait", int64(c.HolderWait)},
	} {
		if n.value < 0 {
			faults = append(faults, fmt.Errorf("%s is negative", n.name))
		}
	}
	return errors.Join(faults...)
}

func orDefault[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (c *Config) fill() {
	orDefault(&c.MaxInFlight, 1024)
	orDefault(&c.MaxQueue, 8192)
	orDefault(&c.QueueWait, 30*time.Second)
	orDefault(&c.BodyIdle, defaultBodyIdle)
	orDefault(&c.ReadWait, 5*time.Second)
	orDefault(&c.RelayWait, 10*time.Second)
	orDefault(&c.BusyWait, 5*time.Second)
	orDefault(&c.HolderWait, 3*time.Second)
	if c.Alive == nil {
		c.Alive = func(fsm.NodeID) bool { return true }
	}
	if c.Ready == nil {
		c.Ready = func(bool) error { return nil }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// API answers HTTP for one node. It owns no goroutine beyond a request's life.
type API struct {
	cfg     Config
	state   *fsm.State
	blobs   *blobsync.Sync
	log     Log
	cluster Cluster
	logger  *slog.Logger
	gate    *gate
	desk    *desk
	memory  *shares             // bytes of manifests that are being pushed
	parsing *semaphore.Weighted // of those, bytes that are being parsed
	metrics *metrics
	access  *access
	// maxLooked is how many names one page of the catalog looks at.
	maxLooked int
	table     map[kind]map[string]endpoint
}

// endpoint answers one method on one kind of route, for callers who have what it needs.
type endpoint struct {
	needs need
	serve func(w http.ResponseWriter, r *http.Request, rt route) error
}

// New checks cfg and builds the API. Nothing runs until a server calls a handler.
func New(cfg Config, state *fsm.State, blobs *blobsync.Sync, log Log, cluster Cluster) (*API, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.fill()
	a := &API{
		cfg: cfg, state: state, blobs: blobs, log: log, cluster: cluster, logger: cfg.Logger,
		gate:    newGate(cfg.MaxInFlight, cfg.MaxQueue, cfg.QueueWait),
		desk:    newDesk(),
		memory:  newShares(manifestMemory, manifestPart),
		parsing: semaphore.NewWeighted(parsedAtOnce),
		metrics: newMetrics(cfg),
	}
	a.access, a.maxLooked = newAccess(cfg.Access, state, cfg.Logger), maxLooked
	a.table = map[kind]map[string]endpoint{
		kindRoot:      {"GET": {needsCaller, a.getRoot}},
		kindCatalog:   {"GET": {needsCatalog, a.getCatalog}},
		kindTags:      {"GET": {needsPull, a.getTags}},
		kindReferrers: {"GET": {needsPull, a.getReferrers}},
		kindManifest: {
			"GET": {needsPull, a.getManifest}, "HEAD": {needsPull, a.getManifest}, "PUT": {needsPush, a.putManifest},
			"DELETE": {needsDelete, a.deleteManifest},
		},
		kindBlob:    {"GET": {needsPull, a.getBlob}, "HEAD": {needsPull, a.headBlob}, "DELETE": {needsDelete, a.deleteBlob}},
		kindUploads: {"POST": {needsPush, a.postUpload}},
		kindUpload: {
			"GET": {needsPush, a.getUpload}, "PATCH": {needsPush, a.patchUpload}, "PUT": {needsPush, a.putUpload},
			"DELETE": {needsPush, a.deleteUpload},
		},
	}
	for _, k := range []kind{kindRoot, kindCatalog, kindTags, kindReferrers} {
		a.table[k]["HEAD"] = a.table[k]["GET"]
	}
	return a, nil
}

// Handler is the public port: the registry, health, metrics, and of the control API what is open to all.
func (a *API) Handler() http.Handler { return a.router(false) }

// Control is the control socket: the same, and the whole control API.
func (a *API) Control() http.Handler { return a.router(true) }

// Relay answers what other nodes relay to this one. It relays nothing on, and doesn't queue: the request has a place at the
// node that it came to.
func (a *API) Relay() http.Handler {
	return a.observe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.serveRegistry(w, r, r.URL.EscapedPath(), true)
	}))
}

func (a *API) router(full bool) http.Handler {
	r := chi.NewRouter()
	r.Use(a.observe)
	if full {
		r.Use(asOperator)
	}
	registry := a.limit(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.serveRegistry(w, r, r.URL.EscapedPath(), false)
	}))
	r.Handle("/v2", registry)
	r.Handle("/v2/*", registry)
	r.Get(tokenPath, a.atDesk(a.getToken))
	r.Post(tokenPath, a.atDesk(a.postToken))
	r.Get("/healthz", a.healthz)
	r.Head("/healthz", a.healthz)
	r.Get("/readyz", a.readyz)
	r.Head("/readyz", a.readyz)
	r.Get("/metrics", a.plain("metrics", asksPassword(a.getMetrics)))
	r.Head("/metrics", a.plain("metrics", asksPassword(a.getMetrics)))
	r.Route("/api/v1", func(r chi.Router) {
		r.Use(routeNamed("control"))
		a.controlRoutes(r)
	})
	r.NotFound(func(w http.ResponseWriter, r *http.Request) { a.fail(w, r, errNoEndpoint) })
	r.MethodNotAllowed(a.otherMethod(r, registry))
	return r
}

// otherMethod answers what the router has no method for. A method that HTTP doesn't define ends here on every path, so the
// registry's own table has to be asked, and so has whether there is anything at the path.
func (a *API) otherMethod(routes chi.Routes, registry http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == prefix || strings.HasPrefix(r.URL.Path, prefix+"/") {
			registry.ServeHTTP(w, r)
			return
		}
		var known []string
		for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
			if routes.Match(chi.NewRouteContext(), m, r.URL.Path) {
				known = append(known, m)
			}
		}
		if known == nil {
			a.fail(w, r, errNoEndpoint)
			return
		}
		w.Header().Set("Allow", strings.Join(known, ", "))
		a.fail(w, r, errMethod)
	}
}

// asOperator marks what comes through the node's own socket: whoever may open it may do all.
func asOperator(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		exchangeOf(r.Context()).caller = auth.Operator()
		next.ServeHTTP(w, r)
	})
}

// plain serves an endpoint that has no route of the registry.
func (a *API) plain(name string, serve func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		exchangeOf(r.Context()).route = name
		if err := serve(w, r); err != nil {
			a.keepBack(r)
			a.fail(w, r, err)
		}
	}
}

// routeNamed labels what passes for the metrics.
func routeNamed(name string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			exchangeOf(r.Context()).route = name
			next.ServeHTTP(w, r)
		})
	}
}

var errMethod error = refuse(http.StatusMethodNotAllowed, codeUnsupported, "this endpoint does not know the method; the Allow header names those it knows")

// serveRegistry answers a request below /v2.
func (a *API) serveRegistry(w http.ResponseWriter, r *http.Request, path string, relayed bool) {
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	rt, err := parseRoute(path)
	x := exchangeOf(r.Context())
	switch {
	case err != nil:
		x.route = "invalid"
	case relayed:
		x.route = "relay"
	default:
		x.route = rt.kind.String()
	}
	if x.relayed = relayed; relayed {
		x.letInElsewhere(r)
	}
	if err == nil {
		x.rt, x.named = rt, true
		err = a.dispatch(w, r, rt, relayed)
	} else if errors.Is(err, fsm.ErrTagInvalid) && r.Method != http.MethodPut {
		err = fsm.ErrManifestUnknown // a tag that can't be isn't there
	}
	if relayed && errors.Is(err, fsm.ErrAccessChanged) {
		w.Header().Set(headerAccess, "changed")
	}
	if err != nil {
		a.fail(w, r, err)
	}
}

func (a *API) dispatch(w http.ResponseWriter, r *http.Request, rt route, relayed bool) error {
	methods := a.table[rt.kind]
	e, ok := methods[r.Method]
	if !ok {
		w.Header().Set("Allow", allowed(methods))
		return errMethod
	}
	if !relayed { // it was decided where it came in
		if err := a.admit(r, e.needs, rt); err != nil {
			return a.challenged(r, err, e.needs, rt)
		}
	}
	serve := e.serve
	if rt.kind == kindUpload && rt.owner != a.cfg.Node {
		if relayed {
			return blobsync.ErrUploadUnknown
		}
		serve = a.relay
	}
	return a.challenged(r, serve(w, r, rt), e.needs, rt)
}

func allowed(methods map[string]endpoint) string {
	names := make([]string, 0, len(methods))
	for m := range methods {
		names = append(names, m)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// getRoot tells clients that this is a registry.
func (a *API) getRoot(w http.ResponseWriter, _ *http.Request, _ route) error {
	return writeJSON(w, "application/json", struct{}{})
}

// writeJSON answers 200 with v.
func writeJSON(w http.ResponseWriter, mediaType string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	return sendBytes(w, body, defaultBodyIdle)
}

// current waits until the local state is current. Without a quorum it marks the answer, which then comes from this node's
// own state, and returns why; err is what ends the request.
func (a *API) current(w http.ResponseWriter, r *http.Request) (stale, err error) {
	err = a.catchUp(r.Context())
	if err == nil || !errors.Is(err, ErrUnavailable) {
		return nil, err
	}
	w.Header().Set("Warning", `299 - "answered from this node's own state, which may be old: `+oneLine(err.Error())+`"`)
	return err, nil
}

// catchUp makes the local state current, within the configured time. Running out of that time is an ErrUnavailable; the
// client's own end isn't.
func (a *API) catchUp(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, a.cfg.ReadWait)
	defer cancel()
	err := a.log.Current(bounded)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && bounded.Err() != nil && !errors.Is(err, ErrUnavailable) {
		return &Unavailable{Reason: "no quorum answered in time", Err: err}
	}
	if err == nil {
		err = a.stillMay(ctx)
	}
	return err
}

// afterStart makes the first reads of a node that comes back wait until it has heard what was deleted meanwhile. Where no
// quorum can tell, its own state has to do.
func (a *API) afterStart(ctx context.Context) error {
	if a.cfg.Ready(false) == nil {
		return nil
	}
	if err := a.catchUp(ctx); errors.Is(err, errLogin) {
		return err
	}
	return nil
}

// oneLine is short and plain, whatever s is: it may stand in a quoted header.
func oneLine(s string) string {
	const limit = 200
	s = strings.Map(func(c rune) rune {
		switch {
		case c == '"':
			return '\''
		case c < ' ' || c > '~' || c == '\\':
			return ' '
		}
		return c
	}, s)
	return s[:min(len(s), limit)]
}
