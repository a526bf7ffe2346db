package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	refusedFile = "audit-refused.log"
	pullsFile   = "audit-pulls.log"
	auditQueue  = 4096

	// Lines of who is refused, strangers together: ten a second need days to fill all files.
	refusedRate  = 10
	refusedBurst = 1000
	maxPaced     = 1000 // callers whose pace is remembered
)

// Audit writes down who changed something and who was refused, one JSON object a line. Writing never holds a request up:
// what the disk can't take in time is dropped, and counted. Each line has a number, which grows from line to line.
type Audit struct {
	pulls   bool
	logger  *slog.Logger
	lines   chan client.AuditLine
	dropped atomic.Uint64
	faults  rate.Sometimes // that are logged

	mu    sync.Mutex
	paces map[string]*rate.Limiter // of who is refused, by name; of strangers under none
	rate  rate.Limit
	burst int

	changed, refused, pulled *auditLog
	begin                    sync.Once
	written                  atomic.Uint64 // the number of the last line; only Run moves it
}

// NewAudit writes below dir once it runs. With pulls it writes those down too.
func NewAudit(dir string, pulls bool, logger *slog.Logger) *Audit {
	log := func(name string) *auditLog { return &auditLog{path: filepath.Join(dir, name)} }
	return &Audit{
		pulls: pulls, logger: logger, lines: make(chan client.AuditLine, auditQueue), faults: rate.Sometimes{Interval: time.Minute}, paces: make(map[string]*rate.Limiter), rate: refusedRate, burst: refusedBurst,
		changed: log(auditFile), refused: log(refusedFile), pulled: log(pullsFile),
	}
}

func (a *Audit) logs() []*auditLog { return []*auditLog{a.changed, a.refused, a.pulled} }

// resume goes on with the numbers of the life before this one.
func (a *Audit) resume() {
	a.begin.Do(func() {
		for _, log := range a.logs() {
			last, err := log.newest()
			if err != nil {
				a.logger.Error("the audit log of this node's last life can't be read", "err", err)
			}
			a.written.Store(max(a.written.Load(), last))
		}
	})
}

// Dropped counts the lines that were not written.
func (a *Audit) Dropped() uint64 { return a.dropped.Load() }

// paced tells whether one more refusal of a caller may be written: nobody is to push out those of others.
func (a *Audit) paced(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	pace, ok := a.paces[name]
	if !ok {
		if len(a.paces) >= maxPaced {
			maps.DeleteFunc(a.paces, func(_ string, p *rate.Limiter) bool { return p.Tokens() >= float64(a.burst) })
		}
		if len(a.paces) >= maxPaced {
			name = "" // who comes now shares the strangers'
		}
		if pace, ok = a.paces[name]; !ok {
			pace = rate.NewLimiter(a.rate, a.burst)
			a.paces[name] = pace
		}
	}
	return pace.Allow()
}

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
	a.resume()
	defer func() {
		for _, log := range a.logs() {
			_ = log.close()
		}
	}()
	for {
		select {
		case l := <-a.lines:
			a.write(l)
		case <-ctx.Done():
			for {
				select {
				case l := <-a.lines:
					a.write(l)
				default:
					return nil
				}
			}
		}
	}
}

func (a *Audit) write(l client.AuditLine) {
	log := a.changed
	switch {
	case l.Status >= http.StatusBadRequest:
		log = a.refused
	case strings.HasPrefix(l.Action, http.MethodGet) || strings.HasPrefix(l.Action, http.MethodHead):
		log = a.pulled
	}
	l.Seq = a.written.Load() + 1
	data, err := json.Marshal(l)
	if err == nil {
		err = log.write(append(data, '\n'))
	}
	if err != nil {
		a.dropped.Add(1)
		a.faults.Do(func() {
			a.logger.Error("the audit log can't be written; lines are dropped and counted in pier_audit_dropped_total", "err", err)
		})
		return
	}
	a.written.Store(l.Seq)
}

// Read gives the lines of this node that the query chooses, oldest first, and the number behind which to go on.
func (a *Audit) Read(q auditQuery) (lines []client.AuditLine, next uint64, err error) {
	a.resume()
	end := a.written.Load() // before any file is read: a line that comes meanwhile is of the next time
	if q.after > end {
		q.after = 0 // the log began anew
	}
	for _, log := range a.logs() {
		found, err := log.find(q, end)
		if err != nil {
			return nil, 0, err
		}
		lines = append(lines, found...)
	}
	slices.SortFunc(lines, func(x, y client.AuditLine) int { return cmp.Compare(x.Seq, y.Seq) })
	switch {
	case len(lines) <= q.limit:
		return lines, end, nil
	case q.follow:
		return lines[:q.limit], lines[q.limit-1].Seq, nil
	}
	return lines[len(lines)-q.limit:], end, nil
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
	if x.status >= http.StatusBadRequest && !a.cfg.Audit.paced(x.caller.Name) {
		a.cfg.Audit.dropped.Add(1)
		return
	}
	l := client.AuditLine{
		Time: time.Now().UTC(), Node: a.cfg.Name, Principal: x.caller.Name, Kind: string(x.caller.Kind), Provider: x.caller.Provider, Address: a.access.source(r), Request: x.id,
		Action: method + " " + x.route, Repository: string(x.rt.repo), Reference: string(x.rt.tag), Target: x.target, Status: x.status,
	}
	if x.rt.digest != "" {
		l.Digest = x.rt.digest.String()
	}
	if d, err := digest.Parse(x.Header().Get(headerDigest)); err == nil {
		l.Digest = d.String()
	}
	l.Claimed = a.claimed(x)
	if control { // never a path as it came: it may be long, and have line ends in it
		l.Action = method + " " + chi.RouteContext(r.Context()).RoutePattern()
	}
	a.cfg.Audit.note(l)
}

// claimed is the name that a wrong login gave, if there is somebody of that name: people type passwords where the name goes,
// and what nobody is called stays out of the log.
func (a *API) claimed(x *exchange) string {
	if x.caller.Name != "" || x.claimed == "" {
		return ""
	}
	d, err := a.access.directory()
	if err != nil {
		return ""
	}
	p, _ := d.Find(x.claimed)
	return p.Name
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
	case client.RemovalRequest:
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
	case client.ExplainRequest:
		said = in.Subject + " " + in.Right + " " + in.Repository
	case client.Grant:
		said = in.Subject + " " + in.Right + " " + in.Pattern
	case client.RemoveRequest:
		said = in.Node
	case client.TransferRequest:
		said = in.Node
	case client.RenewRequest:
		said = strings.Join(in.Names, " ")
	case client.RotateSecretRequest:
		said = "keep_old=" + in.KeepOld
	}
	return oneLine(said)
}

const maxAudit = 10_000

// chosen reads what a request asks for of this node's log.
func (a *API) chosen(query url.Values) (q auditQuery, err error) {
	if s := query.Get("since"); s != "" {
		if q.since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return q, invalid(fmt.Errorf("since: want a time as in 2026-01-02T15:04:05Z"))
		}
	}
	q.limit = 100
	if s := query.Get("limit"); s != "" {
		if q.limit, err = strconv.Atoi(s); err != nil || q.limit < 1 || q.limit > maxAudit {
			return q, invalid(fmt.Errorf("limit: want 1 to %d", maxAudit))
		}
	}
	q.principal, q.repository, q.follow = query.Get("principal"), query.Get("repository"), query.Has("after")
	after, err := parseCursor(query.Get("after"))
	if err != nil {
		return q, invalid(err)
	}
	own, ok := after[a.cfg.Node]
	if q.after = own; q.follow && !ok && a.cfg.Audit != nil { // a node that nobody had asked before begins with what is to come
		a.cfg.Audit.resume()
		q.after = a.cfg.Audit.written.Load()
	}
	return q, nil
}

// parseCursor reads the numbers up to which lines are known, by node: ID:NUMBER,ID:NUMBER.
func parseCursor(s string) (map[fsm.NodeID]uint64, error) {
	out := make(map[fsm.NodeID]uint64)
	for part := range strings.SplitSeq(s, ",") {
		if part == "" {
			continue
		}
		id, number, _ := strings.Cut(part, ":")
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil || len(out) >= maxCursor {
			return nil, errors.New("after: want what the answer before this one gave as next")
		}
		out[fsm.NodeID(id)] = n
	}
	return out, nil
}

const maxCursor = 1000 // nodes

func cursorText(after map[fsm.NodeID]uint64) string {
	parts := make([]string, 0, len(after))
	for id, n := range after {
		parts = append(parts, string(id)+":"+strconv.FormatUint(n, 10))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// ownAudit gives this node's lines to a peer.
func (a *API) ownAudit(w http.ResponseWriter, r *http.Request) error {
	page, err := a.readAudit(r.URL.Query())
	if err != nil {
		return err
	}
	return writeJSON(w, "application/json", page)
}

func (a *API) readAudit(query url.Values) (client.AuditPage, error) {
	page := client.AuditPage{Lines: []client.AuditLine{}}
	q, err := a.chosen(query)
	if err != nil || a.cfg.Audit == nil {
		return page, err
	}
	lines, next, err := a.cfg.Audit.Read(q)
	page.Lines, page.Next = append(page.Lines, lines...), cursorText(map[fsm.NodeID]uint64{a.cfg.Node: next})
	return page, err
}

// getAudit gives the lines of all nodes that answer, in the order of their clocks. A node that doesn't answer now gives what
// is missing when it does, to who goes on.
func (a *API) getAudit(r *http.Request) (any, error) {
	query := r.URL.Query()
	own, err := a.readAudit(query)
	if err != nil || a.cfg.Relay == nil {
		return own, err
	}
	nodes, err := a.state.Nodes()
	if err != nil {
		return nil, err
	}
	pages := make([]client.AuditPage, len(nodes))
	var group errgroup.Group
	for i, n := range nodes {
		if n.ID == a.cfg.Node {
			continue
		}
		group.Go(func() error {
			var err error
			if pages[i], err = a.askAudit(r.Context(), n.ID, r.URL.RawQuery); err != nil {
				a.logger.Warn("a node's audit log can't be read now", "peer", n.ID, "request", exchangeOf(r.Context()).id, "err", err)
				pages[i] = client.AuditPage{Silent: []string{cmp.Or(n.Name, string(n.ID))}}
			}
			return nil
		})
	}
	_ = group.Wait()
	return a.mergeAudit(query, append(pages, own))
}

func (a *API) mergeAudit(query url.Values, pages []client.AuditPage) (client.AuditPage, error) {
	next, err := parseCursor(query.Get("after"))
	if err != nil {
		return client.AuditPage{}, invalid(err)
	}
	all := client.AuditPage{Lines: []client.AuditLine{}}
	for _, p := range pages {
		all.Lines = append(all.Lines, p.Lines...)
		all.Silent = append(all.Silent, p.Silent...)
		if known, err := parseCursor(p.Next); err == nil {
			maps.Copy(next, known)
		}
	}
	all.Next = cursorText(next)
	slices.SortStableFunc(all.Lines, func(x, y client.AuditLine) int { return x.Time.Compare(y.Time) })
	if q, err := a.chosen(query); err == nil && !q.follow {
		all.Lines = all.Lines[max(0, len(all.Lines)-q.limit):]
	}
	return all, nil
}

func (a *API) askAudit(ctx context.Context, id fsm.NodeID, query string) (page client.AuditPage, err error) {
	patience := relayConnect
	if !a.cfg.Alive(id) {
		patience = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = a.askPeer(ctx, id, "/audit?"+query, &page)
	return page, err
}
