package node

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// What a node shows in its metrics is so.
func TestMetricsAreTrue(t *testing.T) {
	cfg, err := load(t, "", nil, "--name", "one", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(cfg, Options{Version: "v1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	select {
	case <-n.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	do := func(method, path, body string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, method, n.URL()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode >= 300 {
			t.Fatalf("%s %s: %s %s (%v)", method, path, resp.Status, data, err)
		}
		return string(data)
	}
	check := func(want ...string) {
		t.Helper()
		got := do("GET", "/metrics", "")
		for _, line := range want {
			if !strings.Contains(got, "\n"+line+"\n") {
				t.Errorf("no line %q", line)
			}
		}
		for _, name := range []string{"pier_raft_term", "pier_raft_applied_index", "pier_disk_free_bytes"} {
			if strings.Contains(got, fmt.Sprintf("\n%s 0\n", name)) || !strings.Contains(got, "\n"+name+" ") {
				t.Errorf("%s is missing or 0", name)
			}
		}
	}
	check(`pier_raft_role{role="leader"} 1`, "pier_uploads_open 0", "pier_blobs_wanted 0", "pier_blobs 0")
	do("POST", "/v2/a/blobs/uploads/", "")
	for _, content := range []string{"one", "three"} {
		do("POST", "/v2/a/blobs/uploads/?digest="+digest.FromString(content).String(), content)
	}
	check("pier_uploads_open 1", "pier_blobs_wanted 2", "pier_blobs_missing 0", "pier_blobs 2", "pier_blobs_bytes 8", "pier_replication_lag_seconds 0")
	do("DELETE", "/v2/a/blobs/"+digest.FromString("one").String(), "")
	check("pier_blobs_wanted 1", "pier_blobs_missing 0")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
