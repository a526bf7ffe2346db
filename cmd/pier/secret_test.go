package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pier/api/client"
)

// A person is told for whom a rotation waits and what can be done, and then what ends when.
func TestSecretRotateSaysWhatHappens(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	until := time.Date(2026, 12, 26, 12, 0, 0, 0, time.UTC)
	begun := until.AddDate(0, -1, 0)
	nodes := []client.SecretNode{
		{ID: "1", Name: "a", Done: true, Secrets: []string{"oldsecretprint", "newsecretprint"}},
		{ID: "2", Name: "b", Fault: "it doesn't answer: connection refused"},
	}
	waiting := client.SecretStatus{
		Step: "add", Begun: &begun, By: "a", Waiting: []string{"b"}, Nodes: nodes,
		Secrets: []client.ClusterSecret{{Fingerprint: "oldsecretprint"}, {Fingerprint: "newsecretprint"}},
	}
	rolled := client.SecretStatus{
		Step: "keep", Begun: &begun, By: "a", Nodes: nodes[:1], Authority: "cafe",
		Secrets: []client.ClusterSecret{{Fingerprint: "newsecretprint"}, {Fingerprint: "oldsecretprint", Until: &until}},
	}
	asked := time.Time{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := waiting
		if asked.IsZero() {
			asked = time.Now()
		}
		if r.URL.Path == "/api/v1/cluster/secret/status" && time.Since(asked) > 3*time.Second {
			s = rolled
		}
		_ = json.NewEncoder(w).Encode(s)
	}))
	defer server.Close()
	pier := func(args ...string) (int, string) {
		var out strings.Builder
		code := run(t.Context(), append(args, "--server", server.URL), &out, &out)
		return code, out.String()
	}
	says := func(out string, lines ...string) {
		t.Helper()
		for _, line := range lines {
			if !strings.Contains(out, line) {
				t.Errorf("%q isn't in\n%s", line, out)
			}
		}
	}
	code, out := pier("cluster", "secret", "status")
	if code != exitDegraded {
		t.Errorf("exit code %d while it waits", code)
	}
	says(out, "a new secret is on its way to every node", "waiting for b: it doesn't answer: connection refused", "pier cluster remove NODE", "oldsecre  newsecre  done")
	code, out = pier("cluster", "secret", "rotate")
	if code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
	says(out, "bringing the new secret to every node\n", "waiting for b: it", "every node uses the new secret; invites from before are void",
		"the old secret oldsecre is accepted until 2026-12-26", "logins from before", "SHA-256 cafe")
	if strings.Contains(out, "waiting for a") || strings.Count(out, "waiting for b") != 1 {
		t.Errorf("it says too much:\n%s", out)
	}
	if code, out = pier("cluster", "secret", "status"); code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
}
