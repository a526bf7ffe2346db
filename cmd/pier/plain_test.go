package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whatever answers in a node's place, it gives no orders to the terminal of who asks.
func TestAnswersArePlainText(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	const evil = `x\u001b[2J\u001b]0;title\u0007\u009b31m\r\u202e\u007fünd`
	answers := map[string]string{
		"/api/v1/cluster/status": `{"cluster_id":"` + evil + `","quorum":true,"nodes":[{"name":"` + evil + `"}]}`,
		"/api/v1/audit":          `{"lines":[{"node":"` + evil + `","action":"` + evil + `"}]}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusForbidden)
			said = `{"errors":[{"code":"DENIED","message":"` + evil + `"}]}`
		}
		_, _ = io.WriteString(w, said)
	}))
	defer server.Close()
	for _, args := range [][]string{{"cluster", "status"}, {"cluster", "status", "-o", "json"}, {"audit"}, {"access", "ls"}, {"doctor"}} {
		var out bytes.Buffer
		run(t.Context(), append(args, "--server", server.URL), &out, &out)
		if !strings.Contains(out.String(), "ünd") || strings.ContainsAny(out.String(), "\x1b\a\r\u009b\u202e\x7f") {
			t.Errorf("%v shows %q", args, out.String())
		}
	}
}
