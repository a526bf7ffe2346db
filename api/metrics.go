package api

import (
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pier/api/auth"
)

// Figures are what the node knows and /metrics shows. Bytes and DiskFree are bytes.
type Figures struct {
	UploadsOpen, BlobsWanted, BlobsMissing, Blobs, Bytes int64
	FetchedBytes, ServedBytes                            int64
	ReplicationLag                                       time.Duration
	RaftTerm                                             uint64
	RaftRole                                             string
	RaftApplied                                          uint64
	StateInstalls                                        uint64
	DiskFree                                             int64
}

// metrics has a registry of its own, so that several nodes can live in one process.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	open     prometheus.Gauge
}

func newMetrics(cfg Config) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pier_http_requests_total", Help: "Requests answered.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pier_http_request_seconds", Help: "Time from a request's header to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120, 600},
		}, []string{"route", "method"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pier_http_body_bytes_total", Help: "Bytes of bodies.",
		}, []string{"direction"}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pier_http_requests_open", Help: "Requests under way."}),
	}
	m.registry.MustRegister(m.requests, m.seconds, m.bytes, m.open,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if cfg.Audit != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "pier_audit_dropped_total", Help: "Lines that the audit log could not take.",
		}, func() float64 { return float64(cfg.Audit.Dropped()) }))
	}
	if cfg.Figures != nil {
		m.registry.MustRegister(newFigureCollector(cfg.Figures))
	}
	return m
}

// knownMethod is a method that there is, or "other": a client can't make labels.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete:
		return method
	}
	return "other"
}

func (m *metrics) started() { m.open.Inc() }

func (m *metrics) finished(x *exchange, method string, received int64, took time.Duration) {
	m.open.Dec()
	method = knownMethod(method)
	m.requests.WithLabelValues(x.route, method, strconv.Itoa(x.status)).Inc()
	m.seconds.WithLabelValues(x.route, method).Observe(took.Seconds())
	m.bytes.WithLabelValues("in").Add(float64(received))
	m.bytes.WithLabelValues("out").Add(float64(x.sent))
}

// getMetrics shows the figures to whoever may pull everything, or has this machine anyway.
func (a *API) getMetrics(w http.ResponseWriter, r *http.Request) error {
	if err := a.admitMetrics(r); err != nil {
		return err
	}
	promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
	return nil
}

func (a *API) admitMetrics(r *http.Request) error {
	x := exchangeOf(r.Context())
	d, err := a.access.directory()
	if err != nil || a.cfg.MetricsOpen || !d.On() || x.caller.Kind == auth.KindOperator || a.access.isLocal(r) {
		return err
	}
	if x.caller, err = a.access.identify(r, d); err != nil {
		return err
	}
	if d.Administers(x.caller) || d.Everywhere(x.caller, auth.Pull) {
		return nil
	}
	if x.caller.Kind == auth.KindAnonymous {
		return errLogin
	}
	return refuse(http.StatusForbidden, codeDenied, "the metrics are for who may pull ** (or admin); the setting metrics-open shows them to everybody")
}

// isLocal tells whether a request comes from this machine and not through a proxy on it.
func (x *access) isLocal(r *http.Request) bool {
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "Via", "X-Real-Ip"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	ip, err := netip.ParseAddr(hostOf(r.RemoteAddr))
	return err == nil && ip.Unmap().IsLoopback()
}

// figureCollector asks the node when it is scraped.
type figureCollector struct {
	figures func() Figures
	values  []figure
	role    *prometheus.Desc
}

type figure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(Figures) float64
}

func newFigureCollector(figures func() Figures) *figureCollector {
	c := &figureCollector{figures: figures, role: prometheus.NewDesc("pier_raft_role", "1 for the node's role.", []string{"role"}, nil)}
	add := func(name, help string, kind prometheus.ValueType, of func(Figures) float64) {
		c.values = append(c.values, figure{prometheus.NewDesc(name, help, nil, nil), kind, of})
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	add("pier_uploads_open", "Upload sessions of this node.", gauge, func(f Figures) float64 { return float64(f.UploadsOpen) })
	add("pier_blobs", "Blobs on this node's disk.", gauge, func(f Figures) float64 { return float64(f.Blobs) })
	add("pier_blobs_bytes", "Bytes of the blobs on this node's disk.", gauge, func(f Figures) float64 { return float64(f.Bytes) })
	add("pier_blobs_wanted", "Blobs that this node should hold.", gauge, func(f Figures) float64 { return float64(f.BlobsWanted) })
	add("pier_blobs_missing", "Blobs that this node should hold and doesn't.", gauge, func(f Figures) float64 { return float64(f.BlobsMissing) })
	add("pier_replication_fetched_bytes_total", "Bytes fetched from other nodes.", counter, func(f Figures) float64 { return float64(f.FetchedBytes) })
	add("pier_replication_served_bytes_total", "Bytes sent to other nodes.", counter, func(f Figures) float64 { return float64(f.ServedBytes) })
	add("pier_replication_lag_seconds", "For how long the oldest missing blob has been missing.", gauge, func(f Figures) float64 { return f.ReplicationLag.Seconds() })
	add("pier_raft_term", "Raft's term.", gauge, func(f Figures) float64 { return float64(f.RaftTerm) })
	add("pier_raft_applied_index", "The last command that the state holds.", gauge, func(f Figures) float64 { return float64(f.RaftApplied) })
	add("pier_state_installs_total", "Snapshots of another node's state that were installed here.", counter, func(f Figures) float64 { return float64(f.StateInstalls) })
	add("pier_disk_free_bytes", "Free bytes of the data directory's disk.", gauge, func(f Figures) float64 { return float64(f.DiskFree) })
	return c
}

// Describe is part of prometheus.Collector.
func (c *figureCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range c.values {
		ch <- v.desc
	}
	ch <- c.role
}

// Collect is part of prometheus.Collector.
func (c *figureCollector) Collect(ch chan<- prometheus.Metric) {
	f := c.figures()
	for _, v := range c.values {
		ch <- prometheus.MustNewConstMetric(v.desc, v.kind, v.of(f))
	}
	ch <- prometheus.MustNewConstMetric(c.role, prometheus.GaugeValue, 1, f.RaftRole)
}
