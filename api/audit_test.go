package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"pier/api/client"
)

// audits gives each node of a fixture a log that runs as long as the test.
func audits(t *testing.T, pulls bool) func(*Config) {
	return func(c *Config) {
		a := NewAudit(t.TempDir(), pulls, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		c.Audit = a
	}
}

// Who changed what and who was refused is in the log, of all nodes, and no secret is.
func TestAudit(t *testing.T) {
	f := withAccess(t, 2, audits(t, false))
	f.user("root")
	f.user("alice", "pull:a")
	f.want(f.do("POST", "/v2/a/blobs/uploads/", nil, "Authorization: "+basic(f, "root")), 202, "")
	f.want(f.doOn(f.nodes[1], "PUT", "/v2/a/manifests/1", emptyIndex(), "Authorization: "+basic(f, "alice"), "Content-Type: "+"application/vnd.oci.image.index.v1+json"), 403, codeDenied)
	f.want(f.do("GET", "/v2/", nil, "Authorization: "+basic(f, "nobody")), 401, codeUnauthorized)
	f.want(f.do("GET", "/v2/", nil), 401, codeUnauthorized)
	f.want(f.do("GET", "/v2/a/tags/list", nil, "Authorization: "+basic(f, "alice")), 404, codeNameUnknown)
	root := f.token(f.nodes[0], "root", "cluster:pier:admin")
	var lines []client.AuditLine
	read := func(query string) answer {
		got := f.want(f.do("GET", "/api/v1/audit"+query, nil, "Authorization: Bearer "+root), 200, "")
		f.must(nil, json.Unmarshal(got.body, &lines))
		return got
	}
	want := []string{"root POST uploads 202", "alice PUT manifest 403", " GET root 401"}
	eventually(t, func() error {
		got := read("")
		var said []string
		for _, l := range lines {
			said = append(said, fmt.Sprintf("%s %s %d", l.Principal, l.Action, l.Status))
		}
		if strings.Join(said, "\n") != strings.Join(want, "\n") {
			return fmt.Errorf("the log says %q", said)
		}
		if strings.Contains(string(got.body), "password") || strings.Contains(string(got.body), root) {
			t.Errorf("a secret is in the log: %s", got.body)
		}
		return nil
	})
	if l := lines[1]; l.Repository != "a" || l.Reference != "1" || l.Address != "127.0.0.1" || l.Request == "" || l.Node != "node-1" {
		t.Errorf("a refusal: %+v", l)
	}
	if read("?principal=alice"); len(lines) != 1 {
		t.Errorf("alice: %+v", lines)
	}
	if read("?limit=1"); len(lines) != 1 || lines[0].Status != 401 {
		t.Errorf("the newest: %+v", lines)
	}
	f.want(f.do("GET", "/api/v1/audit?limit=x", nil, "Authorization: Bearer "+root), 400, codeInvalid)
	f.want(f.do("GET", "/api/v1/audit", nil, "Authorization: "+basic(f, "alice")), 403, codeDenied)
	f.want(f.do("GET", "/api/v1/audit", nil), 401, codeUnauthorized)
}

// Whatever strangers send, their lines are short, are their own, and leave room for those of others.
func TestAuditOfStrangers(t *testing.T) {
	f := withAccess(t, 1, audits(t, false))
	f.user("root")
	f.user("alice", "pull:a")
	log := f.nodes[0].api.cfg.Audit
	log.strangers = rate.NewLimiter(0, 3)
	root := "Authorization: " + basic(f, "root")
	form := []byte("grant_type=password&username=root&password=guess")
	f.want(f.do("POST", "/token", form, "Content-Type: application/x-www-form-urlencoded"), 401, codeUnauthorized)
	f.want(f.do("POST", "/api/v1/"+strings.Repeat("x", 10_000)+"%0a%1b[2Jforged", nil), 404, codeUnsupported)
	f.want(f.do(strings.Repeat("X", 10_000), "/v2/a/manifests/1", nil), 405, codeUnsupported)
	f.want(f.do("POST", "/nowhere", nil), 404, codeUnsupported)
	for range 5 {
		f.want(f.do("PUT", "/v2/a/manifests/1", nil), 401, codeUnauthorized)
	}
	f.want(f.do("PUT", "/v2/a/manifests/1", nil, "Authorization: "+basic(f, "alice")), 403, codeDenied)
	f.want(f.do("POST", "/api/v1/access/grant", []byte(`{"subject":"alice","right":"push","pattern":"b/**"}`), root), 200, "")
	f.want(f.do("POST", "/api/v1/access/change", []byte(`{"name":"alice","password":"another one","groups":["x","y\n"],"disabled":false}`), root), 400, codeInvalid)
	want := []string{
		" POST token  401", " POST /api/v1/*  404", "anonymous PUT manifest  401", "alice PUT manifest  403",
		"root POST /api/v1/access/grant alice push b/** 200", "root POST /api/v1/access/change alice password groups=x,y  disabled=false 400",
	}
	eventually(t, func() error {
		lines, err := log.Read(func(client.AuditLine) bool { return true }, 100)
		var said []string
		for _, l := range lines {
			said = append(said, fmt.Sprintf("%s %s %s %d", cmp.Or(l.Principal, l.Kind), l.Action, l.Target, l.Status))
		}
		if err != nil || strings.Join(said, "\n") != strings.Join(want, "\n") || log.Dropped() != 4 {
			return fmt.Errorf("the log says %q, and nothing of %d more; %v", said, log.Dropped(), err)
		}
		return nil
	})
}

// A full file makes room for the next; the newest lines are found across both, and a torn one does no harm.
func TestAuditRotates(t *testing.T) {
	dir := t.TempDir()
	a := NewAudit(dir, false, slog.New(slog.DiscardHandler))
	w := &auditWriter{path: filepath.Join(dir, auditFile)}
	for i := range 10 {
		if i == 5 {
			w.size = auditSize
		}
		a.write(w, client.AuditLine{Time: time.Unix(int64(i), 0), Status: i})
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(w.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"status":99`); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	lines, err := a.Read(func(client.AuditLine) bool { return true }, 7)
	if err != nil || len(lines) != 7 || lines[0].Status != 3 || lines[6].Status != 9 {
		t.Errorf("%+v, %v", lines, err)
	}
	if info, err := os.Stat(w.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the log's mode: %v, %v", info, err)
	}
}

// A log that can't be written holds nobody up, and counts what is lost.
func TestAuditDropsAndCounts(t *testing.T) {
	a := NewAudit(filepath.Join(t.TempDir(), "gone"), false, slog.New(slog.DiscardHandler))
	for range auditQueue + 7 {
		a.note(client.AuditLine{Action: http.MethodPut})
	}
	if a.Dropped() != 7 {
		t.Errorf("%d lines dropped, not 7", a.Dropped())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err != nil || a.Dropped() != auditQueue+7 {
		t.Errorf("%d lines dropped, %v", a.Dropped(), err)
	}
}
