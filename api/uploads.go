package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/blobsync"
	"pier/fsm"
)

// postUpload begins an upload, mounts a blob that the cluster has already, or takes a whole blob at once.
func (a *API) postUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	query := r.URL.Query()
	if query.Has("mount") {
		mounted, err := a.mount(w, r, rt, query)
		if mounted || err != nil {
			return err
		}
	}
	alg, err := uploadAlgorithm(query)
	if err != nil {
		return err
	}
	if s := query.Get("digest"); s != "" {
		return a.postWhole(w, r, rt, s)
	}
	up, err := a.blobs.NewUpload(string(rt.repo), alg)
	if err != nil {
		return fmt.Errorf("begin an upload: %w", err)
	}
	a.describeUpload(w, rt.repo, up)
	return accepted(w)
}

// uploadAlgorithm is what the session hashes with. A digest of another algorithm at the end is legal and costs a second
// reading.
func uploadAlgorithm(query url.Values) (digest.Algorithm, error) {
	switch s := query.Get("digest-algorithm"); s {
	case "", digest.SHA256.String():
		return digest.SHA256, nil
	case digest.SHA512.String():
		return digest.SHA512, nil
	default:
		return "", refuse(http.StatusBadRequest, codeDigestInvalid, "the digest-algorithm is not known here: sha256 and sha512 are")
	}
}

// postWhole takes a blob in the one POST. The session ends with the request, however that ends.
func (a *API) postWhole(w http.ResponseWriter, r *http.Request, rt route, s string) error {
	d, err := fsm.ParseDigest(s)
	if err != nil {
		return err
	}
	up, err := a.blobs.NewUpload(string(rt.repo), d.Algorithm())
	if err != nil {
		return fmt.Errorf("begin an upload: %w", err)
	}
	committed := false
	defer func() {
		if !committed {
			a.cancelUpload(r, up)
		}
	}()
	if _, err := up.Append(context.WithoutCancel(r.Context()), -1, r.Body); err != nil {
		return fmt.Errorf("take a whole blob: %w", err)
	}
	size, err := up.Commit(context.WithoutCancel(r.Context()), d)
	if err != nil {
		return fmt.Errorf("commit %s: %w", d, err)
	}
	committed = true
	if err := a.linkBlob(r.Context(), rt.repo, d, size); err != nil {
		return err
	}
	return createdBlob(w, rt.repo, d)
}

func (a *API) cancelUpload(r *http.Request, up *blobsync.Upload) {
	if err := up.Cancel(); err != nil && !errors.Is(err, blobsync.ErrUploadUnknown) {
		a.logger.Warn("an upload could not be cancelled; it will expire", "request", exchangeOf(r.Context()).id, "err", err)
	}
}

// findUpload is the session of the route, when it is of that repository.
func (a *API) findUpload(rt route) (*blobsync.Upload, error) {
	up, err := a.blobs.FindUpload(rt.upload)
	if err != nil {
		return nil, err
	}
	if up.Label() != string(rt.repo) {
		return nil, blobsync.ErrUploadUnknown
	}
	return up, nil
}

// describeUpload tells where the session is and how far. A session without a byte has no last one: 0-0, as every registry
// says.
func (a *API) describeUpload(w http.ResponseWriter, repo fsm.Repo, up *blobsync.Upload) {
	rt := route{kind: kindUpload, repo: repo, owner: a.cfg.Node, upload: up.ID()}
	h := w.Header()
	h.Set("Location", rt.path())
	h.Set("Range", "0-"+strconv.FormatInt(max(up.Size()-1, 0), 10))
	h.Set("Docker-Upload-UUID", string(rt.owner)+"."+rt.upload)
}

func (a *API) getUpload(w http.ResponseWriter, _ *http.Request, rt route) error {
	up, err := a.findUpload(rt)
	if err != nil {
		return err
	}
	a.describeUpload(w, rt.repo, up)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) deleteUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	up, err := a.findUpload(rt)
	if err != nil {
		return err
	}
	if err := a.whenFree(r.Context(), up.Cancel); err != nil {
		return fmt.Errorf("cancel an upload: %w", err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// patchUpload appends a chunk. What came of a broken body stays and counts.
func (a *API) patchUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	up, err := a.findUpload(rt)
	if err != nil {
		return err
	}
	c, err := parseChunk(r)
	if err != nil {
		return err
	}
	var order *blobsync.OffsetError
	if err := a.appendChunk(r, up, c); errors.As(err, &order) {
		return a.outOfOrder(w, rt, up, c)
	} else if err != nil {
		return err
	}
	a.describeUpload(w, rt.repo, up)
	return accepted(w)
}

// putUpload takes the last chunk, if the request has one, makes the blob final and links it. It may be repeated: a client
// or a proxy that lost the answer gets the same one. So that this holds whenever the connection broke, a request whose bytes
// are all there goes on without its client: else they would come again behind themselves.
func (a *API) putUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	d, err := fsm.ParseDigest(r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	up, err := a.findUpload(rt)
	if err != nil {
		return err
	}
	c, err := parseChunk(r)
	if err != nil {
		return err
	}
	var order *blobsync.OffsetError
	if r.ContentLength != 0 {
		err = a.appendChunk(r, up, c)
		if err != nil && !errors.As(err, &order) {
			return err
		}
	}
	// A chunk that doesn't fit may be one that came already: then what is there has the digest.
	var size int64
	err = a.whenFree(r.Context(), func() (err error) {
		size, err = up.Commit(context.WithoutCancel(r.Context()), d)
		return err
	})
	if order != nil && errors.Is(err, blobsync.ErrDigestMismatch) {
		return a.outOfOrder(w, rt, up, c)
	}
	if err != nil {
		return fmt.Errorf("commit %s: %w", d, err)
	}
	if order != nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	if err := a.linkBlob(r.Context(), rt.repo, d, size); err != nil {
		return err
	}
	return createdBlob(w, rt.repo, d)
}

// linkBlob tells the cluster about a blob that is durable here. It goes on when the client hangs up: the client will come
// back and expect the blob.
func (a *API) linkBlob(ctx context.Context, repo fsm.Repo, d digest.Digest, size int64) error {
	_, err := a.propose(context.WithoutCancel(ctx), fsm.LinkBlob{Repo: repo, Digest: d, Size: size, Origin: a.cfg.Node})
	if err != nil {
		return fmt.Errorf("link %s: %w", d, err)
	}
	return nil
}

// createdBlob answers 201 for a blob that the repository has now.
func createdBlob(w http.ResponseWriter, repo fsm.Repo, d digest.Digest) error {
	h := w.Header()
	h.Set("Location", route{kind: kindBlob, repo: repo, digest: d}.path())
	h.Set(headerDigest, d.String())
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

// chunk is where a request's body goes.
type chunk struct {
	at     int64 // -1: the end
	length int64 // -1: as long as the body
}

// parseChunk reads Content-Range as the spec has it, START-END, and as HTTP does, bytes START-END/SIZE.
func parseChunk(r *http.Request) (chunk, error) {
	header := r.Header.Get("Content-Range")
	if header == "" {
		return chunk{at: -1, length: -1}, nil
	}
	s := strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(header), "bytes "), "bytes=")
	s, _, _ = strings.Cut(s, "/")
	first, last, _ := strings.Cut(s, "-")
	start, okStart := parseOffset(first)
	end, okEnd := parseOffset(last)
	if !okStart || !okEnd || end < start {
		return chunk{}, refuse(http.StatusBadRequest, codeUploadInvalid, "Content-Range is not START-END with START <= END")
	}
	c := chunk{at: start, length: end - start + 1}
	if r.ContentLength >= 0 && r.ContentLength != c.length {
		return chunk{}, refuse(http.StatusBadRequest, codeSizeInvalid,
			"Content-Range names %d bytes, Content-Length %d", c.length, r.ContentLength)
	}
	return c, nil
}

// whenFree gives another request a little time to finish with the upload. Mostly that is one whose client has hung up and is
// back already, and clients such as regctl don't try a 503 again. A busy upload has read nothing of a body.
func (a *API) whenFree(ctx context.Context, do func() error) error {
	deadline := time.Now().Add(a.cfg.BusyWait)
	for {
		err := do()
		if !errors.Is(err, blobsync.ErrUploadBusy) || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, busyPause); err != nil {
			return err
		}
	}
}

const busyPause = 20 * time.Millisecond

// appendChunk writes the body to the session, which answers a chunk out of order with an OffsetError.
func (a *API) appendChunk(r *http.Request, up *blobsync.Upload, c chunk) error {
	body := io.Reader(r.Body)
	if c.length >= 0 {
		body = io.LimitReader(body, c.length)
	}
	var n int64
	err := a.whenFree(r.Context(), func() (err error) {
		n, err = up.Append(context.WithoutCancel(r.Context()), c.at, body)
		return err
	})
	if err != nil {
		return fmt.Errorf("append to an upload: %w", err)
	}
	if c.length < 0 {
		return nil
	}
	if n != c.length {
		return refuse(http.StatusBadRequest, codeSizeInvalid, "Content-Range names %d bytes, the body had %d", c.length, n)
	}
	return noMore(r.Body)
}

// outOfOrder tells a client where the upload really goes on.
func (a *API) outOfOrder(w http.ResponseWriter, rt route, up *blobsync.Upload, c chunk) error {
	a.describeUpload(w, rt.repo, up)
	return refuse(http.StatusRequestedRangeNotSatisfiable, codeUploadInvalid,
		"the chunk starts at %d, but the upload has %d bytes and goes on behind them", c.at, up.Size())
}

// noMore wants the body to be at its end.
func noMore(body io.Reader) error {
	var one [1]byte
	switch n, err := io.ReadFull(body, one[:]); {
	case n > 0:
		return refuse(http.StatusBadRequest, codeSizeInvalid, "the body is longer than Content-Range says; the bytes beyond were dropped")
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}
