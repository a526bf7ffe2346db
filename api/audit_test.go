package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pier/api/client"
	"pier/fsm"
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
	f.want(f.do("HEAD", "/v2/a/manifests/1", nil, "Authorization: "+basic(f, "alice")), 404, "")
	f.want(f.do("GET", "/v2/b/tags/list", nil, "Authorization: "+basic(f, "alice")), 403, codeDenied)
	root := f.token(f.nodes[0], "root", "cluster:pier:admin")
	var page client.AuditPage
	var lines []client.AuditLine
	read := func(query string) answer {
		got := f.want(f.do("GET", "/api/v1/audit"+query, nil, "Authorization: Bearer "+root), 200, "")
		page = client.AuditPage{}
		f.must(nil, json.Unmarshal(got.body, &page))
		lines = page.Lines
		return got
	}
	want := []string{"root POST uploads 202", "alice PUT manifest 403", " GET root 401", "alice GET tags 403"}
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
	for query, want := range map[string]int{
		"principal=alice": 2, "principal=alic": 0, "repository=a": 2, "repository=b": 1, "principal=alice&repository=a": 1, "principal=root&repository=b": 0,
		"since=" + lines[1].Time.Format(time.RFC3339Nano): 2, "since=" + lines[3].Time.Format(time.RFC3339Nano): 0,
	} {
		if read("?" + query); len(lines) != want {
			t.Errorf("%s: %+v", query, lines)
		}
	}
	if read("?limit=1"); len(lines) != 1 || lines[0].Status != 403 {
		t.Errorf("the newest: %+v", lines)
	}
	read("") // a wrong login is known by the name that it gave, if somebody has it
	after := page.Next
	f.want(f.doOn(f.nodes[1], "GET", "/v2/", nil, "Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte("alice:wrong"))), 401, codeUnauthorized)
	f.want(f.do("POST", "/token", []byte("grant_type=password&username=alice&password=wrong"), "Content-Type: application/x-www-form-urlencoded"), 401, codeUnauthorized)
	f.want(f.do("GET", "/v2/", nil, "Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte("my-password:"))), 401, codeUnauthorized)
	eventually(t, func() error {
		read("?after=" + url.QueryEscape(after))
		said := ""
		for _, l := range lines {
			said += l.Claimed + l.Principal + " "
		}
		if said != "alice alice  " {
			return fmt.Errorf("wrong logins of %q, of %+v", said, lines)
		}
		return nil
	})
	if read("?after=" + url.QueryEscape(page.Next)); len(lines) != 0 {
		t.Errorf("nothing came since, and %+v did", lines)
	}
	if read("?principal=alice"); len(lines) != 4 {
		t.Errorf("alice, and who would be: %+v", lines)
	}
	f.want(f.do("GET", "/api/v1/audit?after=x", nil, "Authorization: Bearer "+root), 400, codeInvalid)
	f.want(f.do("GET", "/api/v1/audit?limit=x", nil, "Authorization: Bearer "+root), 400, codeInvalid)
	f.want(f.do("GET", "/api/v1/audit", nil, "Authorization: "+basic(f, "alice")), 403, codeDenied)
	f.want(f.do("GET", "/api/v1/audit", nil), 401, codeUnauthorized)
}

// A node that doesn't answer is named: that nothing was done there is another thing.
func TestAuditNamesTheSilent(t *testing.T) {
	f := withAccess(t, 2, audits(t, false))
	f.user("root")
	silent := func() []string {
		t.Helper()
		var page client.AuditPage
		f.must(nil, json.Unmarshal(f.want(f.do("GET", "/api/v1/audit", nil, "Authorization: "+basic(f, "root")), 200, "").body, &page))
		return page.Silent
	}
	if got := silent(); len(got) != 0 {
		t.Errorf("all answer, and silent are %q", got)
	}
	f.nodes[1].down()
	if got := silent(); !slices.Equal(got, []string{"node-1"}) {
		t.Errorf("a node is down, and silent are %q", got)
	}
}

// Pulls are written down where that is wanted, and what another node relays only there.
func TestAuditOfPulls(t *testing.T) {
	for _, pulls := range []bool{true, false} {
		f := withAccess(t, 2, audits(t, pulls))
		f.user("root")
		f.user("alice", "push:**")
		alice := "Authorization: " + basic(f, "alice")
		content := randomBytes(100)
		upload := f.want(f.doOn(f.nodes[0], "POST", "/v2/a/blobs/uploads/", nil, alice), 202, "").Header.Get("Location")
		f.want(f.doOn(f.nodes[1], "PUT", upload+"?digest="+digestOf(content), content, alice), 201, "")
		f.want(f.do("PUT", "/v2/a/manifests/1", emptyIndex(), alice, "Content-Type: "+fsm.TypeOCIIndex), 201, "")
		f.want(f.do("GET", "/v2/a/manifests/1", nil, alice), 200, "")
		f.want(f.do("HEAD", "/v2/a/blobs/"+digestOf(content), nil, alice), 200, "")
		f.want(f.do("GET", "/v2/a/tags/list", nil, alice), 200, "")
		f.want(f.do("DELETE", "/v2/a/manifests/1", nil, alice), 403, codeDenied) // the last line
		want := "0 POST uploads 202, 0 PUT manifest 201, 0 GET manifest 200, 0 HEAD blob 200, 0 DELETE manifest 403, 1 PUT upload 201"
		if !pulls {
			want = strings.ReplaceAll(want, "0 GET manifest 200, 0 HEAD blob 200, ", "")
		}
		eventually(t, func() error {
			var said []string
			for i, n := range f.nodes {
				for _, l := range everything(t, n.api.cfg.Audit) {
					said = append(said, fmt.Sprint(i, " ", l.Action, " ", l.Status))
				}
			}
			if got := strings.Join(said, ", "); got != want {
				return fmt.Errorf("with pulls %v the logs say %s", pulls, got)
			}
			return nil
		})
	}
}

// Of many callers that are refused the later ones share a pace.
func TestPacesAreBounded(t *testing.T) {
	a := NewAudit(t.TempDir(), false, slog.New(slog.DiscardHandler))
	a.rate, a.burst = 0, 2
	for i := range 2 * maxPaced {
		a.paced(fmt.Sprint("u", i))
	}
	if n := len(a.paces); n > maxPaced+1 {
		t.Errorf("%d callers are remembered", n)
	}
	if a.paced("u0") != true || a.paced("u0") != false || a.paced("late") != false {
		t.Error("the pace of one who was refused before, or of those who came too late")
	}
}

// Whatever strangers send, their lines are short, are their own, and leave room for those of others.
func TestAuditOfStrangers(t *testing.T) {
	f := withAccess(t, 1, audits(t, false))
	f.user("root")
	f.user("alice", "pull:a")
	log := f.nodes[0].api.cfg.Audit
	log.rate, log.burst = 0, 3
	root := "Authorization: " + basic(f, "root")
	form := []byte("grant_type=password&username=root&password=guess")
	f.want(f.do("POST", "/token", form, "Content-Type: application/x-www-form-urlencoded"), 401, codeUnauthorized)
	f.want(f.do("POST", "/api/v1/"+strings.Repeat("x", 10_000)+"%0a%1b[2Jforged", nil), 404, codeUnsupported)
	f.want(f.do(strings.Repeat("X", 10_000), "/v2/a/manifests/1", nil), 405, codeUnsupported)
	f.want(f.do("POST", "/nowhere", nil), 404, codeUnsupported)
	for range 5 {
		f.want(f.do("PUT", "/v2/a/manifests/1", nil), 401, codeUnauthorized)
	}
	for range 5 { // who is known has a pace of her own
		f.want(f.do("PUT", "/v2/a/manifests/1", nil, "Authorization: "+basic(f, "alice")), 403, codeDenied)
	}
	f.want(f.do("POST", "/api/v1/access/grant", []byte(`{"subject":"alice","right":"push","pattern":"b/**"}`), root), 200, "")
	f.want(f.do("POST", "/api/v1/access/change", []byte(`{"name":"alice","password":"another one","groups":["x","y\n"],"disabled":false}`), root), 400, codeInvalid)
	want := []string{
		" POST token  401", " POST /api/v1/*  404", "anonymous PUT manifest  401", "alice PUT manifest  403", "alice PUT manifest  403", "alice PUT manifest  403",
		"root POST /api/v1/access/grant alice push b/** 200", "root POST /api/v1/access/change alice password groups=x,y  disabled=false 400",
	}
	eventually(t, func() error {
		lines, _, err := log.Read(auditQuery{limit: 100})
		var said []string
		for _, l := range lines {
			said = append(said, fmt.Sprintf("%s %s %s %d", cmp.Or(l.Principal, l.Kind), l.Action, l.Target, l.Status))
		}
		if err != nil || strings.Join(said, "\n") != strings.Join(want, "\n") || log.Dropped() != 6 {
			return fmt.Errorf("the log says %q, and nothing of %d more; %v", said, log.Dropped(), err)
		}
		return nil
	})
}

// everything gives all lines of a log.
func everything(t *testing.T, a *Audit) []client.AuditLine {
	t.Helper()
	lines, _, err := a.Read(auditQuery{limit: maxAudit})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// A full file makes room for the next; the newest lines are found across both, and a torn one does no harm.
func TestAuditRotates(t *testing.T) {
	dir := t.TempDir()
	a := NewAudit(dir, false, slog.New(slog.DiscardHandler))
	for i := range 10 {
		if i == 5 {
			a.changed.size = auditSize
		}
		a.write(client.AuditLine{Time: time.Unix(int64(i), 0), Action: "PUT", Status: i})
	}
	if err := a.changed.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(a.changed.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"status":99`); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	lines, next, err := a.Read(auditQuery{limit: 7})
	if err != nil || len(lines) != 7 || lines[0].Status != 3 || lines[6].Status != 9 || next != 10 {
		t.Errorf("%+v, %d, %v", lines, next, err)
	}
	if info, err := os.Stat(a.changed.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the log's mode: %v, %v", info, err)
	}
	again := NewAudit(dir, false, slog.New(slog.DiscardHandler))
	again.resume()
	again.write(client.AuditLine{Time: time.Unix(10, 0), Action: "PUT", Status: 10}) // behind the torn one
	again.write(client.AuditLine{Time: time.Unix(11, 0), Action: "PUT", Status: 11})
	if lines := everything(t, again); len(lines) != 12 || lines[10].Status != 10 || lines[11].Seq != 12 || lines[11].Status != 11 {
		t.Errorf("after a restart: %+v", lines)
	}
}

// A flood of refusals, and of pulls, pushes no change out of the log.
func TestChangesHaveTheirOwnLog(t *testing.T) {
	a := NewAudit(t.TempDir(), true, slog.New(slog.DiscardHandler))
	a.write(client.AuditLine{Time: time.Unix(1, 0), Action: "DELETE manifest", Status: 202})
	for i := range 3 * (auditBehind + 1) {
		a.refused.size, a.pulled.size = auditSize, auditSize
		a.write(client.AuditLine{Time: time.Unix(2, 0), Action: "PUT manifest", Status: 403, Principal: "eve"})
		a.write(client.AuditLine{Time: time.Unix(2, int64(i)), Action: "GET blob", Status: 200})
	}
	lines := everything(t, a)
	if lines[0].Status != 202 || len(lines) != 1+2*(auditBehind+1) {
		t.Errorf("of one change and a flood there are %+v", lines)
	}
	if lines, _, err := a.Read(auditQuery{principal: "eve", limit: 3}); err != nil || len(lines) != 3 || lines[2].Status != 403 {
		t.Errorf("eve: %+v, %v", lines, err)
	}
}

// Who asks for what came since gets each line once, whatever it is of and however often the files begin anew, and begins at
// the start when the log does.
func TestAuditGoesOn(t *testing.T) {
	dir := t.TempDir()
	a := NewAudit(dir, true, slog.New(slog.DiscardHandler))
	a.write(client.AuditLine{Time: time.Now().Add(-101 * time.Hour), Action: "PUT", Status: 0})
	_, after, err := a.Read(auditQuery{limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	var seen []int
	for i := 1; i <= 100; i++ {
		status := []int{200, 400}[i%2] + i
		a.write(client.AuditLine{Time: time.Now().Add(time.Duration(i-100) * time.Hour), Action: []string{"PUT", "GET"}[i%3%2], Status: status, Repository: strings.Repeat("x", 3000)})
		if i%30 == 0 {
			a.changed.size, a.refused.size = auditSize, auditSize
		}
		for i%10 == 0 {
			lines, next, err := a.Read(auditQuery{follow: true, after: after, limit: 3})
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range lines {
				seen = append(seen, l.Status%100)
			}
			if after = next; len(lines) < 3 {
				break
			}
		}
	}
	for i, n := range seen {
		if len(seen) != 100 || n != (i+1)%100 {
			t.Fatalf("of 100 lines came %v", seen)
		}
	}
	if lines, next, err := a.Read(auditQuery{follow: true, after: 10_000, limit: 200}); err != nil || len(lines) != 101 || next != 101 {
		t.Errorf("of a log that began anew: %d lines, %d, %v", len(lines), next, err)
	}
	if lines, _, err := a.Read(auditQuery{since: time.Now().Add(-90 * time.Minute), limit: 200}); err != nil || len(lines) != 2 {
		t.Errorf("of the last hour and a half: %d lines, %v", len(lines), err)
	}
}

// Only the end of a long log is read for what is at its end.
func BenchmarkAuditEnd(b *testing.B) {
	a := NewAudit(b.TempDir(), false, slog.New(slog.DiscardHandler))
	for a.changed.size < auditSize-1000 {
		a.write(client.AuditLine{Time: time.Now(), Action: "PUT manifest", Status: 201, Principal: "alice", Repository: "team/app"})
	}
	for name, q := range map[string]auditQuery{"newest": {limit: 100}, "nobody": {principal: "bob", limit: 100}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := a.Read(q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A log that can't be written holds nobody up, and counts what is lost.
func TestAuditDropsAndCounts(t *testing.T) {
	var log bytes.Buffer
	a := NewAudit(filepath.Join(t.TempDir(), "gone"), false, slog.New(slog.NewTextHandler(&log, nil)))
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
	if n := strings.Count(log.String(), "can't be written"); n != 1 {
		t.Errorf("it is said %d times that the disk takes none: %s", n, log.String())
	}
}
