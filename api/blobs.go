package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/blobsync"
	"pier/fsm"
)

const (
	typeBytes     = "application/octet-stream"
	cacheForever  = "public, max-age=31536000, immutable"
	cacheOwn      = "private, max-age=31536000, immutable"
	cacheNot      = "no-cache"
	headerDigest  = "Docker-Content-Digest"
	headerSubject = "OCI-Subject"
)

// findBlob looks up a blob of a repository: in the local state, and when it isn't there, in the current one. Without a
// quorum nobody knows, and that is an ErrUnavailable and not a 404.
func (a *API) findBlob(ctx context.Context, repo fsm.Repo, d digest.Digest) (blobsync.Blob, error) {
	if err := a.afterStart(ctx); err != nil {
		return blobsync.Blob{}, err
	}
	b, err := a.state.Blob(repo, d)
	if errors.Is(err, fsm.ErrBlobUnknown) || errors.Is(err, fsm.ErrNameUnknown) {
		if err := a.catchUp(ctx); err != nil {
			return blobsync.Blob{}, err
		}
		b, err = a.state.Blob(repo, d)
	}
	if errors.Is(err, fsm.ErrNameUnknown) {
		err = fsm.ErrBlobUnknown
	}
	if err != nil {
		return blobsync.Blob{}, err
	}
	return syncBlob(b), nil
}

func syncBlob(b fsm.Blob) blobsync.Blob {
	return blobsync.Blob{Digest: b.Digest, Size: b.Size, Origin: blobsync.NodeID(b.Origin), Since: b.Since}
}

func describeBlob(w http.ResponseWriter, r *http.Request, d digest.Digest) {
	h := w.Header()
	h.Set("Content-Type", typeBytes)
	h.Set("Accept-Ranges", "bytes")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(headerDigest, d.String())
	h.Set("ETag", etag(d))
	h.Set("Cache-Control", keepable(r))
}

// headBlob says whether a client may count on the blob. One that nobody reachable holds is answered as unknown: the
// client then uploads it again, which mends it.
func (a *API) headBlob(w http.ResponseWriter, r *http.Request, rt route) error {
	b, err := a.findBlob(r.Context(), rt.repo, rt.digest)
	if err != nil {
		return err
	}
	if err := a.awaitHolder(r.Context(), b); err != nil {
		return err
	}
	describeBlob(w, r, b.Digest)
	if done, err := preconditions(w, r, b.Digest); done || err != nil {
		return err
	}
	w.Header().Set("Content-Length", strconv.FormatInt(b.Size, 10))
	w.WriteHeader(http.StatusOK)
	return nil
}

// awaitHolder gives the nodes that hold the blob a little time to come back, when there are others than this one.
func (a *API) awaitHolder(ctx context.Context, b blobsync.Blob) error {
	deadline := time.Now().Add(a.cfg.HolderWait)
	for {
		if a.blobs.Reachable(ctx, b) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) || !a.hasPeers() {
			return fsm.ErrBlobUnknown
		}
		if err := pause(ctx, relayPause); err != nil {
			return err
		}
	}
}

// hasPeers reports whether another node may come back with what this one lacks.
func (a *API) hasPeers() bool {
	nodes, err := a.state.Nodes()
	if err != nil {
		a.logger.Warn("can't read the nodes", "err", err)
	}
	return slices.ContainsFunc(nodes, func(n fsm.Node) bool { return n.ID != a.cfg.Node && !n.Away })
}

// keepable lets caches on the way keep what has a digest, unless it was given to somebody in particular.
func keepable(r *http.Request) string {
	if r.Header.Get("Authorization") != "" || exchangeOf(r.Context()).caller.Name != "" {
		return cacheOwn
	}
	return cacheForever
}

// getBlob sends a blob or a part of it, from the disk or through this node from one that holds it.
func (a *API) getBlob(w http.ResponseWriter, r *http.Request, rt route) error {
	b, err := a.findBlob(r.Context(), rt.repo, rt.digest)
	if err != nil {
		return err
	}
	describeBlob(w, r, b.Digest)
	if done, err := preconditions(w, r, b.Digest); done || err != nil {
		return err
	}
	part, partial, err := parseRange(wantedRange(r, b.Digest), b.Size)
	if err != nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", b.Size))
		return err
	}
	src, err := a.blobs.Open(r.Context(), b, part.start+part.length)
	if err != nil {
		return fmt.Errorf("open blob %s: %w", b.Digest, err)
	}
	defer func() { _ = src.Close() }()
	err = a.sendBlob(w, src, part, partial)
	if errors.Is(err, syscall.EIO) {
		a.logger.Error("the disk failed under a pull; the blob will be verified again", "digest", b.Digest,
			"request", exchangeOf(r.Context()).id, "err", err)
		a.blobs.Doubt(b.Digest)
	}
	return err
}

func (a *API) sendBlob(w http.ResponseWriter, src io.ReadSeeker, part span, partial bool) error {
	if part.start > 0 {
		if _, err := src.Seek(part.start, io.SeekStart); err != nil {
			return fmt.Errorf("seek in a blob: %w", err)
		}
	}
	status := http.StatusOK
	if partial {
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", part.contentRange())
	}
	w.Header().Set("Content-Length", strconv.FormatInt(part.length, 10))
	w.WriteHeader(status)
	sent, err := copySteady(w, src, part.length, a.cfg.BodyIdle)
	if err == nil && sent < part.length {
		err = io.ErrUnexpectedEOF
	}
	var network *net.OpError
	if errors.As(err, &network) && network.Op != "read" && network.Op != "dial" {
		return fmt.Errorf("%w: %w", errClientGone, err)
	}
	if err != nil {
		return fmt.Errorf("sent %d of %d bytes: %w", sent, part.length, err)
	}
	return nil
}

// errClientGone ends an answer that nobody takes any more.
var errClientGone error = refuse(statusClientGone, codeUnknown, "the client went away")

// deleteBlob takes the blob out of the repository. The state refuses while a manifest needs it.
func (a *API) deleteBlob(w http.ResponseWriter, r *http.Request, rt route) error {
	_, err := a.propose(r.Context(), fsm.DeleteBlob{Repo: rt.repo, Digest: rt.digest})
	var needed *fsm.ReferencedError
	if errors.As(err, &needed) {
		w.Header().Set("Allow", "GET, HEAD")
	}
	if errors.Is(err, fsm.ErrNameUnknown) {
		return fsm.ErrBlobUnknown
	}
	if err != nil {
		return err
	}
	return accepted(w)
}

// accepted answers 202 without a body.
func accepted(w http.ResponseWriter) error {
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusAccepted)
	return nil
}
