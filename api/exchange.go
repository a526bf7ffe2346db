package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"pier/api/auth"
)

// exchange is one request and what is known of its answer. It is the ResponseWriter that handlers get, and keeps what the
// connection can do: ReadFrom (sendfile), Flush, and the rest through Unwrap.
type exchange struct {
	http.ResponseWriter
	id      string
	route   string // for metrics: an endpoint's name, never a path
	caller  auth.Caller
	proof   *proof          // of a password, from before the request took its place
	by      *auth.Directory // what let it in, since it may do
	may     func(d *auth.Directory, c auth.Caller) bool
	version uint64 // of the state that let it in, here or at the node that relays it
	decided bool   // there is such a version: it is not the operator
	rt      route  // of the registry's endpoints, once it is known
	named   bool   // it is known
	tooSoon bool   // a login is answered that has to wait
	claimed string // the name that came with a password, right or wrong
	target  string // of a control call: whom or what it changes
	relayed bool   // another node passed it on, and writes it down
	body    *steadyBody
	head    bool // a HEAD, whose body net/http swallows
	status  int
	sent    int64
	fault   error // what a 5xx answer hides from the client
}

func (x *exchange) WriteHeader(status int) {
	if x.status == 0 && status >= 200 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(p []byte) (int, error) {
	x.implicit()
	n, err := x.ResponseWriter.Write(p)
	if !x.head {
		x.sent += int64(n)
	}
	return n, err
}

// ReadFrom hands the source to the connection, which sends a file without copying it through this process.
func (x *exchange) ReadFrom(src io.Reader) (int64, error) {
	x.implicit()
	n, err := io.Copy(x.ResponseWriter, src)
	x.sent += n
	return n, err
}

// Flush sends what is buffered.
func (x *exchange) Flush() { _ = http.NewResponseController(x.ResponseWriter).Flush() }

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

func (x *exchange) implicit() {
	if x.status == 0 {
		x.status = http.StatusOK
	}
}

// letIn keeps by what a request was let in, for when it has to be decided again.
func (x *exchange) letIn(d *auth.Directory, version uint64, may func(d *auth.Directory, c auth.Caller) bool) {
	x.by, x.version, x.decided, x.may = d, version, true, may
}

type exchangeKey struct{}

// exchangeOf finds the request's exchange; every handler of the package runs inside one.
func exchangeOf(ctx context.Context) *exchange {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		return x
	}
	return &exchange{}
}

const (
	headerRequestID = "X-Request-Id"
	maxRequestID    = 64
)

// requestID keeps the ID that a client or a relaying node gave, when it is fit for a log, and makes one otherwise.
func requestID(r *http.Request) string {
	if id := r.Header.Get(headerRequestID); isToken(id, maxRequestID) {
		return id
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// observe is the outermost layer: it gives the request its ID, keeps a panic from ending the process, and writes down what
// happened.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		x := &exchange{ResponseWriter: w, id: requestID(r), route: "other", head: r.Method == http.MethodHead}
		w.Header().Set(headerRequestID, x.id)
		r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)) // a copy: the server must find its own body
		x.body = steady(w, r, a.cfg.BodyIdle)
		a.metrics.started()
		defer func() {
			v := recover()
			broken := v == http.ErrAbortHandler || v != nil && x.status != 0
			if v != nil && v != http.ErrAbortHandler {
				a.recovered(x, r, v)
			}
			a.finished(x, r, time.Since(started))
			if broken {
				panic(http.ErrAbortHandler) // only a broken connection tells the client now
			}
		}()
		next.ServeHTTP(x, r)
	})
}

// recovered answers a request whose handler panicked, unless an answer is on its way already.
func (a *API) recovered(x *exchange, r *http.Request, v any) {
	a.logger.Error("a handler panicked", "request", x.id, "method", r.Method, "path", r.URL.Path,
		"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if x.status == 0 {
		explain(errPanicked).write(x)
	}
}

var errPanicked = errors.New("a handler panicked")

// finished counts and logs.
func (a *API) finished(x *exchange, r *http.Request, took time.Duration) {
	x.implicit()
	var received int64
	if x.body != nil {
		received = x.body.count.Load()
	}
	a.metrics.finished(x, r.Method, received, took)
	if x.fault != nil {
		a.logger.Warn("request failed", "request", x.id, "method", r.Method, "path", r.URL.Path, "status", x.status, "err", x.fault)
	}
	a.hintProxy(x, r)
	a.audited(x, r)
	if a.cfg.AccessLog == nil {
		return
	}
	a.cfg.AccessLog.LogAttrs(r.Context(), slog.LevelInfo, "request",
		slog.String("request", x.id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Int("status", x.status), slog.Int64("received", received), slog.Int64("sent", x.sent),
		slog.Duration("took", took), slog.String("remote", r.RemoteAddr), slog.String("user", x.caller.Name),
		slog.String("agent", r.UserAgent()))
}

// limit lets a bounded number of requests through at once.
func (a *API) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isCrowded(r.Context()) {
			w.Header().Set("Connection", "close")
			a.fail(w, r, flood("connections"))
			return
		}
		a.prove(r)
		has, err := a.gate.enter(r.Context(), a.access.sourceKey(r))
		if err != nil {
			a.fail(w, r, err)
			return
		}
		defer a.gate.leave(has)
		next.ServeHTTP(w, r)
	})
}

// fail answers with an error, or breaks the connection when an answer is under way already and only that tells the client.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	p := explain(err)
	if p.status >= 500 && r.Context().Err() != nil {
		p = explain(errClientGone)
	}
	if p.status >= 500 {
		x.fault = err
	}
	if x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	p.write(w)
}
