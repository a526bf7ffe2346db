package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/blobsync"
	"pier/fsm"
)

// ErrUnavailable is what every answer that the cluster can't give at the moment is.
var ErrUnavailable = errors.New("not available at the moment")

// ErrStarting is what Config.Ready returns while it is worth a wait: this node is on its way into the cluster.
var ErrStarting = errors.New("this node has not joined its cluster yet")

// Unavailable says why the cluster can't answer, and when it is worth asking again. It is an ErrUnavailable.
type Unavailable struct {
	Reason     string
	RetryAfter time.Duration // 0 means that nobody knows; clients are told a few seconds
	Err        error         // the cause; may be nil
}

func (e *Unavailable) Error() string {
	if e.Reason == "" {
		return ErrUnavailable.Error()
	}
	return e.Reason
}

// Unwrap makes it an ErrUnavailable and whatever caused it.
func (e *Unavailable) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrUnavailable}
	}
	return []error{ErrUnavailable, e.Err}
}

// The codes of the distribution spec, and the few that it leaves to registries.
const (
	codeBlobUnknown       = "BLOB_UNKNOWN"
	codeUploadInvalid     = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown     = "BLOB_UPLOAD_UNKNOWN"
	codeConflict          = "CONFLICT"
	codeDigestInvalid     = "DIGEST_INVALID"
	codeMissing           = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid   = "MANIFEST_INVALID"
	codeManifestUnknown   = "MANIFEST_UNKNOWN"
	codeNameInvalid       = "NAME_INVALID"
	codeNameUnknown       = "NAME_UNKNOWN"
	codePageInvalid       = "PAGINATION_NUMBER_INVALID"
	codePrecondition      = "PRECONDITION_FAILED"
	codeRangeInvalid      = "RANGE_INVALID"
	codeSizeInvalid       = "SIZE_INVALID"
	codeTagInvalid        = "TAG_INVALID"
	codeTooManyRequests   = "TOOMANYREQUESTS"
	codeUnavailable       = "UNAVAILABLE"
	codeUnknown           = "UNKNOWN"
	codeUnsupported       = "UNSUPPORTED"
	statusClientGone      = 499 // for the log and the metrics; nobody is left to read it
	defaultRetry          = 3 * time.Second
	maxDetails            = 100 // digests that an answer lists
	adviceUploadUnknown   = "this upload is not known: it was finished, cancelled, has expired, or its node is gone; start the blob again with a POST"
	adviceDisk            = "the disk of this node fails; its log says how; use another node"
	adviceManifestUnknown = "no such manifest in this repository; tags/list shows its tags"
)

// problem is an error that already knows how it is answered.
type problem struct {
	status  int
	code    string
	message string
	detail  any
	retry   time.Duration // > 0 sends Retry-After
	// challenge tells the client of a 401 how to come in.
	challenge string
}

func (p *problem) Error() string { return fmt.Sprintf("%d %s: %s", p.status, p.code, p.message) }

func refuse(status int, code, format string, args ...any) *problem {
	return &problem{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

// bodyError is the client's half of a broken upload: the bytes that were promised didn't come.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read the request's body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// sentinels is the table for errors that carry nothing but themselves.
//
// A full disk is 503 and not 507: docker, containerd and crane try a 503 again, perhaps on a node that has room, and none
// of them knows 507.
var sentinels = []struct {
	err    error
	answer problem
}{
	{fsm.ErrNameInvalid, problem{status: 400, code: codeNameInvalid, message: "not a repository name: lower-case letters, digits and single . _ - between them, parts separated by /, at most 255 characters"}},
	{fsm.ErrTagInvalid, problem{status: 400, code: codeTagInvalid, message: "not a tag: a letter, digit or _ first, then letters, digits and . _ -, at most 128 characters"}},
	{fsm.ErrDigestInvalid, problem{status: 400, code: codeDigestInvalid, message: "not a digest: sha256 with 64 or sha512 with 128 lower-case hex digits are accepted"}},
	{fsm.ErrNameUnknown, problem{status: 404, code: codeNameUnknown, message: "no such repository; _catalog shows those that exist"}},
	{fsm.ErrManifestUnknown, problem{status: 404, code: codeManifestUnknown, message: adviceManifestUnknown}},
	{fsm.ErrManifestTooBig, problem{status: 413, code: codeManifestInvalid, message: "the manifest is larger than 4 MiB, which is the limit; move data into blobs"}},
	{fsm.ErrBlobUnknown, problem{status: 404, code: codeBlobUnknown, message: "no such blob in this repository; push it or mount it"}},
	{fsm.ErrConditionFailed, problem{status: 412, code: codePrecondition, message: "the tag is not what If-Match or If-None-Match asks for; read it and decide again"}},
	{fsm.ErrSizeMismatch, problem{status: 400, code: codeSizeInvalid, message: "this digest is known with another size"}},
	{fsm.ErrPrincipalUnknown, problem{status: 404, code: codeNameUnknown, message: "no such user or robot; `pier user ls` and `pier robot ls` show them"}},
	{fsm.ErrPrincipalExists, problem{status: 409, code: codeConflict, message: "the name is taken by a user or a robot"}},
	{fsm.ErrPrincipalChanged, problem{status: 409, code: codeConflict, message: "somebody else has changed this user or robot at the same time; look at it and try again"}},
	{fsm.ErrGrantUnknown, problem{status: 404, code: codeNameUnknown, message: "there is no such grant; `pier access ls` shows them"}},
	{fsm.ErrDocumentUnknown, problem{status: 404, code: codeNameUnknown, message: "there is nothing of that name; ls shows what there is"}},
	{fsm.ErrDocumentExists, problem{status: 409, code: codeConflict, message: "the name is taken"}},
	{fsm.ErrDocumentChanged, problem{status: 409, code: codeConflict, message: "somebody else has changed this at the same time; look at it and try again"}},
	{fsm.ErrDocumentTooBig, problem{status: 413, code: codeUnsupported, message: "this has more than 256 KiB, which is the limit"}},
	{fsm.ErrAccessChanged, problem{status: 503, code: codeUnavailable, message: "who may do what changes all the time; try again", retry: defaultRetry}},
	{fsm.ErrLevel, problem{status: 503, code: codeUnavailable, message: "a node of the cluster is too old for this; upgrade all nodes", retry: 30 * time.Second}},
	{fsm.ErrHalted, problem{status: 503, code: codeUnavailable, message: "this node has stopped taking changes; its log says why; use another node", retry: 30 * time.Second}},
	{fsm.ErrStale, problem{status: 503, code: codeUnavailable, message: "the change took too long and was given up; try again", retry: defaultRetry}},
	{blobsync.ErrUploadUnknown, problem{status: 404, code: codeUploadUnknown, message: adviceUploadUnknown}},
	{blobsync.ErrUploadBusy, problem{status: 503, code: codeUnavailable, message: "another request is writing to this upload; wait for it and ask for the range", retry: defaultRetry}},
	{blobsync.ErrDigestMismatch, problem{status: 400, code: codeDigestInvalid, message: "the bytes received do not have this digest; the upload is kept, so the right digest may follow"}},
	{blobsync.ErrNoSpace, problem{status: 503, code: codeUnavailable, message: "the disk of this node is full: no uploads until space is made or another node is used; pulls go on", retry: 30 * time.Second}},
	{blobsync.ErrLost, problem{status: 503, code: codeUnavailable, message: "the disk of this node did not keep the upload; start it again, best at another node", retry: defaultRetry}},
	{blobsync.ErrNoHolder, problem{status: 503, code: codeUnavailable, message: "no node that holds this blob can be reached now", retry: defaultRetry}},
	{ErrUnavailable, problem{status: 503, code: codeUnavailable, message: "the cluster can't answer this now", retry: defaultRetry}},
	{syscall.EIO, problem{status: 503, code: codeUnavailable, message: adviceDisk, retry: 30 * time.Second}},
	{syscall.EROFS, problem{status: 503, code: codeUnavailable, message: adviceDisk, retry: 30 * time.Second}},
	{syscall.EMFILE, problem{status: 503, code: codeUnavailable, message: "this node has as many files and connections open as it may; try again or use another node", retry: defaultRetry}},
	{context.DeadlineExceeded, problem{status: 503, code: codeUnavailable, message: "the answer took too long; try again", retry: defaultRetry}},
	// A client that went away cancels too, but fail sees to that.
	{context.Canceled, problem{status: 503, code: codeUnavailable, message: "this node broke off, since it is stopping; try again or use another node", retry: defaultRetry}},
}

// explain turns what a handler returned into an answer. An error that the table doesn't know is a fault of ours: 500, with
// the request ID as the only way to the log.
func explain(err error) *problem {
	var known *problem
	if errors.As(err, &known) {
		return known
	}
	if p := explainTyped(err); p != nil {
		return p
	}
	for i := range sentinels {
		if errors.Is(err, sentinels[i].err) {
			p := sentinels[i].answer
			return &p
		}
	}
	return refuse(500, codeUnknown, "a fault inside the registry; its log has the details under this X-Request-Id")
}

// explainTyped answers the errors that carry facts.
func explainTyped(err error) *problem {
	var body *bodyError
	var manifest *fsm.ManifestError
	var missing *fsm.MissingError
	var needed *fsm.ReferencedError
	var short *blobsync.ShortError
	var unavailable *Unavailable
	switch {
	case errors.As(err, &body):
		return explainBody(body)
	case errors.As(err, &manifest):
		return refuse(400, codeManifestInvalid, "the manifest is refused: %s", manifest.Reason)
	case errors.As(err, &missing):
		p := refuse(400, codeMissing, "the manifest references content that this repository does not have; push it first")
		p.detail = digestDetail("digests", missing.Digests)
		return p
	case errors.As(err, &needed):
		p := refuse(405, codeUnsupported, "manifests of this repository still need the blob; delete those first")
		p.detail = digestDetail("manifests", needed.Manifests)
		return p
	case errors.As(err, &short):
		p := refuse(503, codeUnavailable, "too few nodes have copies of all blobs yet; the copying goes on, push the manifest again")
		p.detail = digestDetail("digests", short.Digests)
		p.retry = defaultRetry
		return p
	case errors.As(err, &unavailable):
		p := refuse(503, codeUnavailable, "%s", unavailable.Error())
		p.retry = max(unavailable.RetryAfter, time.Second)
		if unavailable.RetryAfter == 0 {
			p.retry = defaultRetry
		}
		return p
	}
	return nil
}

func explainBody(e *bodyError) *problem {
	if errors.Is(e, io.ErrUnexpectedEOF) || errors.Is(e, io.EOF) {
		return refuse(400, codeSizeInvalid, "the body ended before its Content-Length; what came is kept when the upload is, ask for its range")
	}
	var timeout interface{ Timeout() bool }
	if errors.As(e, &timeout) && timeout.Timeout() {
		return refuse(408, codeUploadInvalid, "the body came too slowly; what came is kept when the upload is, ask for its range")
	}
	return refuse(400, codeUploadInvalid, "the body could not be read; what came is kept when the upload is, ask for its range")
}

func digestDetail(key string, digests []digest.Digest) map[string]any {
	out := map[string]any{key: digests}
	if len(digests) > maxDetails {
		out[key] = digests[:maxDetails]
		out["more"] = len(digests) - maxDetails
	}
	return out
}

// errorBody is the spec's error format.
type errorBody struct {
	Errors []errorEntry `json:"errors"`
}

type errorEntry struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// write sends the problem. Headers that describe content go, since no content comes.
func (p *problem) write(w http.ResponseWriter) {
	h := w.Header()
	for _, name := range []string{"ETag", "Cache-Control", "Content-Range", "Accept-Ranges", headerDigest} {
		if name != "Content-Range" || p.status != http.StatusRequestedRangeNotSatisfiable {
			h.Del(name)
		}
	}
	body, err := json.Marshal(errorBody{Errors: []errorEntry{{Code: p.code, Message: p.message, Detail: p.detail}}})
	if err != nil {
		body = []byte(`{"errors":[{"code":"UNKNOWN","message":"a fault inside the registry"}]}`)
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if p.challenge != "" {
		h.Set("WWW-Authenticate", p.challenge)
	}
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int(max((p.retry+time.Second-1)/time.Second, 1))))
	}
	w.WriteHeader(p.status)
	_, _ = w.Write(body)
}
