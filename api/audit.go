package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"pier/api/client"
	"pier/fsm"
)

const (
	auditFile   = "audit.log"
	auditQueue  = 4096
	auditSize   = 64 << 20 // a file, before the next one begins
	auditBehind = 4        // older files that are kept

	// Lines of strangers: ten a second need more than a day to fill all files.
	strangersRate  = 10
	strangersBurst = 1000
)

// Audit writes down who changed something and who was refused, one JSON object a line. Writing never holds a request up:
// what the disk can't take in time is dropped, and counted.
type Audit struct {
	dir     string
	pulls   bool
	logger  *slog.Logger
	lines   chan client.AuditLine
	dropped atomic.Uint64
	// strangers paces the lines of who has no name and is refused, so that they can't push the others out of the files.
	strangers *rate.Limiter
}

// NewAudit writes below dir once it runs. With pulls it writes those down too.
func NewAudit(dir string, pulls bool, logger *slog.Logger) *Audit {
	return &Audit{
		dir: dir, pulls: pulls, logger: logger, lines: make(chan client.AuditLine, auditQueue), strangers: rate.NewLimiter(strangersRate, strangersBurst),
	}
}

// Dropped counts the lines that were not written.
func (a *Audit) Dropped() uint64 { return a.dropped.Load() }

// note takes a line if there is room.
func (a *Audit) note(l client.AuditLine) {
	select {
	case a.lines <- l:
	default:
		a.dropped.Add(1)
	}
}

// Run writes until ctx ends, and then what is left.
func (a *Audit) Run(ctx context.Context) error {
	w := &auditWriter{path: filepath.Join(a.dir, auditFile)}
	defer func() { _ = w.close() }()
	for {
		select {
		case l := <-a.lines:
			a.write(w, l)
		case <-ctx.Done():
			for {
				select {
				case l := <-a.lines:
					a.write(w, l)
				default:
					return nil
				}
			}
		}
	}
}

func (a *Audit) write(w *auditWriter, l client.AuditLine) {
	data, err := json.Marshal(l)
	if err == nil {
		err = w.write(append(data, '\n'))
	}
	if err != nil {
		if a.dropped.Add(1) == 1 {
			a.logger.Error("the audit log can't be written; lines are dropped and counted in pier_audit_dropped_total", "err", err)
		}
	}
}

// auditWriter appends to one file, and begins another when it is full.
type auditWriter struct {
	path string
	file *os.File
	size int64
}

func (w *auditWriter) write(line []byte) error {
	if w.file != nil && w.size+int64(len(line)) > auditSize {
		if err := w.close(); err != nil {
			return err
		}
		for i := auditBehind - 1; i >= 0; i-- {
			if err := os.Rename(w.numbered(i), w.numbered(i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if w.file == nil {
		f, err := os.OpenFile(w.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		w.file, w.size = f, info.Size()
	}
	n, err := w.file.Write(line)
	w.size += int64(n)
	return err
}

func (w *auditWriter) numbered(i int) string {
	if i == 0 {
		return w.path
	}
	return fmt.Sprintf("%s.%d", w.path, i)
}

func (w *auditWriter) close() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// Read gives this node's newest lines that keep wants, at most n, oldest first.
func (a *Audit) Read(keep func(client.AuditLine) bool, n int) ([]client.AuditLine, error) {
	var out []client.AuditLine
	w := &auditWriter{path: filepath.Join(a.dir, auditFile)}
	for i := 0; i <= auditBehind && len(out) < n; i++ {
		found, err := readAudit(w.numbered(i), keep, n-len(out))
		if err != nil {
			return nil, err
		}
		out = append(found, out...)
	}
	return out, nil
}

// readAudit gives the last n lines of one file; a line that a crash has cut off is left out.
func readAudit(path string, keep func(client.AuditLine) bool, n int) ([]client.AuditLine, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var out []client.AuditLine
	lines := bufio.NewReader(f)
	for {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		var l client.AuditLine
		if json.Unmarshal(text, &l) != nil || !keep(l) {
			continue
		}
		if out = append(out, l); len(out) > 2*n {
			out = append(out[:0], out[len(out)-n:]...)
		}
		if len(out) > n {
			out = out[len(out)-n:]
		}
	}
}

// audited writes a finished request down, if it is one to write down.
func (a *API) audited(x *exchange, r *http.Request) {
	if a.cfg.Audit == nil || x.relayed || x.route == "audit" {
		return
	}
	method := knownMethod(r.Method)
	control := x.route == "control"
	login := r.Header.Get("Authorization") != "" || x.route == "token" || a.access.certified(r)
	refused := x.status == http.StatusUnauthorized && login || x.status == http.StatusForbidden
	changes := (x.named || control) && method != http.MethodGet && method != http.MethodHead && x.status != http.StatusMethodNotAllowed
	pull := a.cfg.Audit.pulls && (x.rt.kind == kindManifest || x.rt.kind == kindBlob) && x.named
	if !refused && !changes && !pull {
		return
	}
	if x.caller.Name == "" && x.status >= http.StatusBadRequest && !a.cfg.Audit.strangers.Allow() {
		a.cfg.Audit.dropped.Add(1)
		return
	}
	l := client.AuditLine{
		Time: time.Now().UTC(), Node: a.cfg.Name, Principal: x.caller.Name, Kind: string(x.caller.Kind), Address: a.access.source(r), Request: x.id,
		Action: method + " " + x.route, Repository: string(x.rt.repo), Reference: string(x.rt.tag), Target: x.target, Status: x.status,
	}
	if x.rt.digest != "" {
		l.Digest = x.rt.digest.String()
	}
	if d, err := digest.Parse(x.Header().Get(headerDigest)); err == nil {
		l.Digest = d.String()
	}
	if control { // never a path as it came: it may be long, and have line ends in it
		l.Action = method + " " + chi.RouteContext(r.Context()).RoutePattern()
	}
	a.cfg.Audit.note(l)
}

// targetOf is whom or what a control call changes, as the log has it. No secret can be in it.
func targetOf(in any) string {
	said := ""
	switch in := in.(type) {
	case client.UserRequest:
		said = in.Name
		if in.Provider != "" {
			said += " provider=" + in.Provider
		}
	case client.ProviderRequest:
		said = in.Provider.Name + " " + in.Provider.Kind()
	case client.ProviderTest:
		said = in.Name + " user=" + in.User
	case client.PrincipalChange:
		said = in.Name
		if in.Password != nil {
			said += " password"
		}
		if in.Groups != nil {
			said += " groups=" + strings.Join(*in.Groups, ",")
		}
		if in.Disabled != nil {
			said += " disabled=" + strconv.FormatBool(*in.Disabled)
		}
	case client.NameRequest:
		said = in.Name
	case client.RobotRequest:
		said = in.Name
		for _, g := range in.Grants {
			said += " " + g.Right + ":" + g.Pattern
		}
	case client.RotateRequest:
		said = in.Name
	case client.TrustRequest:
		said = in.Rule.Name + " robot=" + in.Rule.Robot + " issuer=" + in.Rule.Issuer + " audience=" + in.Rule.Audience + " " + strings.Join(in.Rule.Claims, " ")
	case client.Grant:
		said = in.Subject + " " + in.Right + " " + in.Pattern
	case client.RemoveRequest:
		said = in.Node
	case client.TransferRequest:
		said = in.Node
	case client.RotateSecretRequest:
		said = "keep_old=" + in.KeepOld
	}
	return oneLine(said)
}

const maxAudit = 10_000

// chosen reads what a request asks for of the log.
func chosen(query url.Values) (keep func(client.AuditLine) bool, n int, err error) {
	var since time.Time
	if s := query.Get("since"); s != "" {
		if since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return nil, 0, invalid(fmt.Errorf("since: want a time as in 2026-01-02T15:04:05Z"))
		}
	}
	n = 100
	if s := query.Get("limit"); s != "" {
		if n, err = strconv.Atoi(s); err != nil || n < 1 || n > maxAudit {
			return nil, 0, invalid(fmt.Errorf("limit: want 1 to %d", maxAudit))
		}
	}
	principal, repo := query.Get("principal"), query.Get("repository")
	return func(l client.AuditLine) bool {
		return l.Time.After(since) && (principal == "" || l.Principal == principal) && (repo == "" || l.Repository == repo)
	}, n, nil
}

// ownAudit gives this node's lines to a peer.
func (a *API) ownAudit(w http.ResponseWriter, r *http.Request) error {
	lines, err := a.readAudit(r.URL.Query())
	if err != nil {
		return err
	}
	return writeJSON(w, "application/json", lines)
}

func (a *API) readAudit(query url.Values) ([]client.AuditLine, error) {
	if a.cfg.Audit == nil {
		return []client.AuditLine{}, nil
	}
	keep, n, err := chosen(query)
	if err != nil {
		return nil, err
	}
	lines, err := a.cfg.Audit.Read(keep, n)
	return append([]client.AuditLine{}, lines...), err
}

// getAudit gives the lines of all nodes that answer, in the order of their clocks.
func (a *API) getAudit(r *http.Request) (any, error) {
	lines, err := a.readAudit(r.URL.Query())
	if err != nil || a.cfg.Relay == nil {
		return lines, err
	}
	nodes, err := a.state.Nodes()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), relayConnect)
	defer cancel()
	answers := make([][]client.AuditLine, len(nodes))
	var group errgroup.Group
	for i, n := range nodes {
		if n.ID == a.cfg.Node {
			continue
		}
		group.Go(func() error {
			var err error
			if answers[i], err = a.askAudit(ctx, n.ID, r.URL.RawQuery); err != nil {
				a.logger.Warn("a node's audit log can't be read now", "peer", n.ID, "request", exchangeOf(ctx).id, "err", err)
			}
			return nil
		})
	}
	_ = group.Wait()
	for _, more := range answers {
		lines = append(lines, more...)
	}
	slices.SortStableFunc(lines, func(x, y client.AuditLine) int { return x.Time.Compare(y.Time) })
	_, n, _ := chosen(r.URL.Query())
	return lines[max(0, len(lines)-n):], nil
}

func (a *API) askAudit(ctx context.Context, id fsm.NodeID, query string) ([]client.AuditLine, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(id)+"/audit?"+query, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.cfg.Relay.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the node answers %s", resp.Status)
	}
	var lines []client.AuditLine
	return lines, json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(&lines)
}
