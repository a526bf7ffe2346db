package client

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Programs read this, so neither a name nor the order changes.
func TestStatusShape(t *testing.T) {
	started := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got, err := json.Marshal(Status{
		ClusterID: "c", Name: "n", Leader: "l", Term: 1, Quorum: true, Healthy: true,
		Nodes: []NodeStatus{{
			ID: "i", Name: "n", API: "a", Cluster: "c", Role: "leader", State: "alive", AppliedIndex: 2, Blobs: 3,
			BlobsMissing: 4, Bytes: 5, DiskFree: 6, Version: "v", Started: started,
		}},
	})
	const want = `{"cluster_id":"c","name":"n","leader":"l","term":1,"quorum":true,"healthy":true,"nodes":[` +
		`{"id":"i","name":"n","api":"a","cluster":"c","role":"leader","state":"alive","applied_index":2,"blobs":3,` +
		`"blobs_missing":4,"bytes":5,"disk_free":6,"version":"v","started":"2026-01-02T03:04:05Z"}]}`
	if err != nil || string(got) != want {
		t.Errorf("%s (%v), want %s", got, err, want)
	}
}

func TestInviteLifetime(t *testing.T) {
	for ttl, want := range map[string]time.Duration{"": time.Hour, "30m": 30 * time.Minute, "720h": 720 * time.Hour, "7d": 168 * time.Hour} {
		if got, err := (InviteRequest{TTL: ttl}).Lifetime(); got != want || err != nil {
			t.Errorf("%q: %v, %v", ttl, got, err)
		}
	}
	for _, ttl := range []string{"0s", "-1h", "721h", "31d", "soon", "7"} {
		if got, err := (InviteRequest{TTL: ttl}).Lifetime(); err == nil {
			t.Errorf("%q is taken for %v", ttl, got)
		}
	}
}

// Whatever a server answers, a person gets a sentence, and for a fault of the server's own what to look for in its log.
func TestRefusals(t *testing.T) {
	answer, status := "", http.StatusConflict
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Request-Id", "0123")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(answer))
	}))
	defer server.Close()
	// A server may be given without its scheme, and with a slash too many.
	c := New(Options{Server: strings.TrimPrefix(server.URL, "http://") + "/"})
	for body, want := range map[string]Error{
		`{"errors":[{"code":"C","message":"why"}]}`: {409, "C", "why"},
		`{"errors":[]}`: {409, "UNKNOWN", `409: {"errors":[]}`},
		" proxy page\n": {409, "UNKNOWN", "409: proxy page"},
		"":              {409, "UNKNOWN", "409: "},
	} {
		answer = body
		var got *Error
		if err := c.Leave(t.Context()); !errors.As(err, &got) || *got != want {
			t.Errorf("%q: %v, want %v", body, err, want)
		}
	}
	status = http.StatusInternalServerError
	if err := c.Leave(t.Context()); err == nil || !strings.HasSuffix(err.Error(), ": 0123") {
		t.Errorf("a fault of the server's own: %v", err)
	}
}

// A login is called over only by a server that says so: another fault is told as it is.
func TestLoginIsOver(t *testing.T) {
	status := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	c := New(Options{Server: server.URL, Login: Login{Token: "x"}})
	for code, want := range map[int]bool{http.StatusUnauthorized: true, http.StatusServiceUnavailable: false, http.StatusInternalServerError: false} {
		status = code
		if _, err := c.Status(t.Context()); err == nil || strings.Contains(err.Error(), "pier login") != want {
			t.Errorf("%d: %v", code, err)
		}
	}
	server.Close()
	if _, err := c.Status(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "no answer from the node") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	_, err := New(Options{Socket: socket}).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("no node: %v", err)
	}
}

// Who may not use the socket hears whose it is, and isn't sent to look for a node that runs.
func TestSocketOfAnother(t *testing.T) {
	c := New(Options{Socket: "pier.sock"})
	refused := &url.Error{Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}}
	if err := c.noAnswer(refused); !strings.Contains(err.Error(), "pier.sock is for the user that runs the node") {
		t.Error(err)
	}
}

func TestAnswersThatAreNoJSON(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }))
	defer server.Close()
	if _, err := New(Options{Server: server.URL}).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "understand") {
		t.Errorf("a page: %v", err)
	}
}

// What only the server that was named is to see goes nowhere else, whatever that says.
func TestNobodyIsFollowed(t *testing.T) {
	var seen atomic.Int64
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		seen.Add(1)
		_, _ = io.WriteString(w, `{"refresh_token":"x","access_token":"x"}`)
	}))
	defer thief.Close()
	server := httptest.NewServer(http.RedirectHandler(thief.URL+"/token", http.StatusPermanentRedirect))
	defer server.Close()
	c := New(Options{Server: server.URL})
	_, err := c.LogIn(t.Context(), "alice", "a password")
	_, status := c.Status(t.Context())
	for _, err := range []error{err, status} {
		if err == nil || !strings.Contains(err.Error(), "it redirects to "+thief.URL) {
			t.Errorf("%v", err)
		}
	}
	if n := seen.Load(); n != 0 {
		t.Errorf("%d requests were sent on", n)
	}
}
