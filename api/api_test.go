package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRoot(t *testing.T) {
	f := newFixture(t, 1, nil)
	for _, path := range []string{"/v2", "/v2/"} {
		got := f.want(f.do("GET", path, nil), 200, "")
		f.wantHeader(got, "Docker-Distribution-API-Version: registry/2.0", "Content-Type: application/json")
		f.want(f.do("HEAD", path, nil), 200, "")
	}
	f.want(f.do("POST", "/v2/", nil), 405, codeUnsupported)
	f.want(f.do("GET", "/", nil), 404, codeUnsupported)
	f.want(f.do("GET", "/v1/", nil), 404, codeUnsupported)
	f.want(f.do("GET", "/v2/a", nil), 404, codeUnsupported)
	f.want(f.do("DELETE", "/healthz", nil), 405, codeUnsupported)
}

// Names that nobody may have, in every place that takes a name.
func TestBadNames(t *testing.T) {
	f := newFixture(t, 1, nil)
	for _, name := range []string{"UPPER", "a//b", "a/../b", "..", "%61", "a%2Fb", "-a", "a-", "a..b", "a___b", "ä", strings.Repeat("x", 300)} {
		for _, c := range []struct{ method, rest string }{
			{"GET", "/tags/list"}, {"GET", "/manifests/t"}, {"PUT", "/manifests/t"}, {"DELETE", "/manifests/t"},
			{"GET", "/blobs/" + someDigest}, {"HEAD", "/blobs/" + someDigest}, {"POST", "/blobs/uploads/"}, {"PATCH", "/blobs/uploads/node-0.x"},
			{"GET", "/referrers/" + someDigest},
		} {
			f.want(f.do(c.method, "/v2/"+name+c.rest, nil), 400, codeNameInvalid)
		}
	}
}

func TestRequestID(t *testing.T) {
	f := newFixture(t, 1, nil)
	f.wantHeader(f.do("GET", "/v2/", nil, "X-Request-Id: mine-1"), "X-Request-Id: mine-1")
	for _, bad := range []string{"two words", "a\"b", strings.Repeat("x", 65)} {
		got := f.do("GET", "/v2/", nil, "X-Request-Id: "+bad).Header.Get("X-Request-Id")
		if got == bad || len(got) != 16 {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

func TestAccessLog(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	f := newFixture(t, 1, func(c *Config) { c.AccessLog = slog.New(slog.NewJSONHandler(lockedWriter{&mu, &log}, nil)) })
	f.do("POST", "/v2/a/blobs/uploads/?digest="+someDigest, []byte("four"), "X-Request-Id: one")
	var line struct {
		Request, Method, Path string
		Status, Received      int
	}
	eventually(t, func() error {
		mu.Lock()
		defer mu.Unlock()
		return json.Unmarshal(log.Bytes(), &line)
	})
	if line.Request != "one" || line.Method != "POST" || line.Path != "/v2/a/blobs/uploads/" || line.Status != 400 || line.Received != 4 {
		t.Errorf("access log: %s", log.Bytes())
	}
}

// Who asks for a token is in the access log, by whatever way.
func TestAccessLogOfTokens(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	f := withAccess(t, 1, func(c *Config) { c.AccessLog = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil)) })
	f.user("root")
	f.want(f.do("GET", "/token", nil, "Authorization: "+basic(f, "root"), "X-Request-Id: one"), 200, "")
	f.want(f.do("POST", "/token", "grant_type=password&username=root&password=root%27s-password", "Content-Type: application/x-www-form-urlencoded", "X-Request-Id: two"), 200, "")
	eventually(t, func() error {
		mu.Lock()
		defer mu.Unlock()
		if got := strings.Count(log.String(), "path=/token status=200"); got != 2 || strings.Count(log.String(), "user=root") != 2 {
			return errors.New(log.String())
		}
		return nil
	})
}

// A fault in a handler ends the request and not the process.
func TestPanic(t *testing.T) {
	f := newFixture(t, 1, nil)
	api := f.nodes[0].api
	api.table[kindCatalog]["GET"] = endpoint{needsCatalog, func(http.ResponseWriter, *http.Request, route) error { panic("oh no") }}
	got := f.want(f.do("GET", "/v2/_catalog", nil), 500, codeUnknown)
	if bytes.Contains(got.body, []byte("oh no")) {
		t.Errorf("the client sees the inside: %s", got.body)
	}
	api.table[kindCatalog]["GET"] = endpoint{needsCatalog, func(w http.ResponseWriter, _ *http.Request, _ route) error {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("half"))
		panic("oh no")
	}}
	r, err := http.NewRequestWithContext(t.Context(), "GET", f.nodes[0].url+"/v2/_catalog", nil)
	f.must(r, err)
	resp, err := f.client.Do(r)
	if err == nil {
		_, err = bytes.NewBuffer(nil).ReadFrom(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		t.Error("a broken answer looks whole")
	}
	f.want(f.do("GET", "/v2/", nil), 200, "")
}

func TestHealth(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) {
		c.Ready = func(push bool) error {
			if push {
				return errors.New("no leader")
			}
			return nil
		}
	})
	f.want(f.do("GET", "/healthz", nil), 200, "")
	f.want(f.do("GET", "/readyz", nil), 200, "")
	got := f.want(f.do("GET", "/readyz?for=push", nil), 503, codeUnavailable)
	f.wantHeader(got, "Retry-After: 3")
	if !bytes.Contains(got.body, []byte("no leader")) {
		t.Errorf("the reason is missing: %s", got.body)
	}
}

func TestMetrics(t *testing.T) {
	f := newFixture(t, 1, func(c *Config) {
		c.Figures = func() Figures {
			return Figures{
				UploadsOpen: 3, BlobsMissing: 4, RaftTerm: 5, RaftRole: "leader", RaftApplied: 6, ReplicationLag: 7 * time.Second, DiskFree: 8,
				BlobsWanted: 9, Blobs: 10, Bytes: 11, FetchedBytes: 12, ServedBytes: 13, StateInstalls: 14,
			}
		}
	})
	f.pushImage(f.nodes[0], "secret-name", "t", "")
	f.do("BREW", "/v2/", nil)
	f.do("GET", "/v2/UPPER/tags/list", nil)
	f.do("GET", "/secret-path", nil)
	got := string(f.want(f.do("GET", "/metrics", nil), 200, "").body)
	for _, line := range []string{
		`pier_http_requests_total{method="PUT",route="manifest",status="201"} 1`,
		`pier_http_requests_total{method="POST",route="uploads",status="201"} 2`,
		`pier_http_requests_total{method="GET",route="invalid",status="400"} 1`,
		`pier_http_requests_total{method="other",route="root",status="405"} 1`,
		`pier_http_requests_total{method="GET",route="other",status="404"} 1`,
		`pier_http_request_seconds_count{method="PUT",route="manifest"} 1`,
		"pier_http_requests_open 1", // the scrape itself
		"pier_uploads_open 3", "pier_blobs_missing 4", "pier_raft_term 5", `pier_raft_role{role="leader"} 1`,
		"pier_raft_applied_index 6", "pier_replication_lag_seconds 7", "pier_disk_free_bytes 8", "pier_blobs_wanted 9", "pier_blobs 10",
		"pier_blobs_bytes 11", "pier_replication_fetched_bytes_total 12", "pier_replication_served_bytes_total 13",
		"pier_state_installs_total 14",
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("no %s", line)
		}
	}
	for _, name := range []string{"go_goroutines", "process_open_fds", `pier_http_request_seconds_bucket{method="PUT",route="manifest",le="0.5"}`} {
		if !strings.Contains(got, "\n"+name+" ") {
			t.Errorf("no %s", name)
		}
	}
	for _, word := range []string{"secret-name", "secret-path", "BREW", "UPPER"} {
		if strings.Contains(got, word) {
			t.Errorf("a client's word %s is a label", word)
		}
	}
}

// The bytes that are counted are those that went over the wire.
func TestMetricsCountBytes(t *testing.T) {
	f := newFixture(t, 1, nil)
	counted := func(direction string) (n float64) {
		for line := range strings.Lines(string(f.do("GET", "/metrics", nil).body)) {
			if rest, ok := strings.CutPrefix(line, `pier_http_body_bytes_total{direction="`+direction+`"} `); ok {
				f.must(fmt.Sscan(rest, &n))
			}
		}
		return n
	}
	d := f.pushBlob(f.nodes[0], "a", randomBytes(300000))
	eventually(t, func() error {
		if n := counted("in"); n != 300000 {
			return fmt.Errorf("%v of 300000 bytes in", n)
		}
		return nil
	})
	before := counted("out")
	// Each scrape counts itself with the next, hence the bounds.
	f.do("GET", "/v2/a/blobs/"+d.String(), nil)
	eventually(t, func() error {
		if n := counted("out") - before; n < 300000 {
			return fmt.Errorf("%v of 300000 bytes out", n)
		}
		return nil
	})
	x := &exchange{ResponseWriter: httptest.NewRecorder(), head: true}
	if _, err := x.Write([]byte("unsent")); err != nil || x.sent != 0 {
		t.Errorf("an answer to HEAD counts %d bytes (%v)", x.sent, err)
	}
}

func TestConfigValidate(t *testing.T) {
	err := Config{MaxInFlight: -1, BodyIdle: -1}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, word := range []string{"node ID", "MaxInFlight", "BodyIdle"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q doesn't name %s", err, word)
		}
	}
}
