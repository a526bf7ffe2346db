package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"

	"pier/blobsync"
	"pier/fsm"
)

// maxTags is how many tags one push by digest may set.
const maxTags = 100

// findManifest gives the digest that a route means. A tag is read from the current state, or from this node's own with a
// Warning; a digest from the local state, and from the current one when it isn't there.
func (a *API) findManifest(w http.ResponseWriter, r *http.Request, rt route) (fsm.ManifestInfo, error) {
	if rt.tag == "" {
		info, err := a.state.StatManifest(rt.repo, rt.digest)
		if errors.Is(err, fsm.ErrManifestUnknown) {
			if err := a.catchUp(r.Context()); err != nil {
				return info, err
			}
			info, err = a.state.StatManifest(rt.repo, rt.digest)
		}
		return info, err
	}
	if _, err := a.current(w, r); err != nil {
		return fsm.ManifestInfo{}, err
	}
	d, err := a.state.ResolveTag(rt.repo, rt.tag)
	if err != nil {
		return fsm.ManifestInfo{}, err
	}
	return a.state.StatManifest(rt.repo, d)
}

// getManifest sends a manifest, its bytes as they were pushed, or what HEAD wants to know of it.
func (a *API) getManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	info, err := a.findManifest(w, r, rt)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", info.MediaType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(headerDigest, info.Digest.String())
	h.Set("ETag", etag(info.Digest))
	h.Set("Cache-Control", cacheForever)
	if rt.tag != "" {
		h.Set("Cache-Control", cacheNot)
	}
	if done, err := preconditions(w, r, info.Digest); done || err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		h.Set("Content-Length", strconv.FormatInt(info.Size, 10))
		w.WriteHeader(http.StatusOK)
		return nil
	}
	m, err := a.state.Manifest(rt.repo, info.Digest)
	if err != nil {
		return err
	}
	h.Set("Content-Length", strconv.Itoa(len(m.Body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(m.Body)
	return nil
}

// putManifest stores a manifest once enough nodes hold what it references.
func (a *API) putManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	cmd, parsed, err := readManifest(r, rt)
	if err != nil {
		return err
	}
	if err := a.haveParts(r.Context(), rt.repo, parsed); err != nil {
		return err
	}
	got, err := a.log.Propose(context.WithoutCancel(r.Context()), cmd)
	if err != nil {
		return fmt.Errorf("store the manifest: %w", err)
	}
	answer, ok := got.(fsm.PutManifestAnswer)
	if !ok {
		return fmt.Errorf("the state answered a manifest with %T", got)
	}
	h := w.Header()
	h.Set("Location", route{kind: kindManifest, repo: rt.repo, tag: rt.tag, digest: answer.Digest}.path())
	h.Set(headerDigest, answer.Digest.String())
	h.Set("ETag", etag(answer.Digest))
	if answer.Subject != "" {
		h.Set(headerSubject, answer.Subject.String())
	}
	if rt.tag == "" {
		for _, t := range cmd.Tags {
			h.Add("OCI-Tag", string(t))
		}
	}
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

// readManifest makes the command of a request.
func readManifest(r *http.Request, rt route) (fsm.PutManifest, fsm.Parsed, error) {
	cmd := fsm.PutManifest{Repo: rt.repo, Digest: rt.digest}
	body, err := io.ReadAll(io.LimitReader(r.Body, fsm.MaxManifest+1))
	if err != nil {
		return cmd, fsm.Parsed{}, err
	}
	if r.ContentLength > int64(len(body)) && len(body) <= fsm.MaxManifest {
		return cmd, fsm.Parsed{}, &bodyError{err: io.ErrUnexpectedEOF}
	}
	mediaType := r.Header.Get("Content-Type")
	if plain, _, err := mime.ParseMediaType(mediaType); err == nil {
		mediaType = plain
	}
	parsed, err := fsm.ParseManifest(mediaType, body)
	if err != nil {
		return cmd, parsed, err
	}
	if rt.tag != "" {
		cmd.Tags = []fsm.Tag{rt.tag}
		cmd.Digest = digest.FromBytes(body)
	} else if cmd.Tags, err = tagParameters(r.URL.Query()); err != nil {
		return cmd, parsed, err
	}
	if got := cmd.Digest.Algorithm().FromBytes(body); got != cmd.Digest {
		return cmd, parsed, refuse(http.StatusBadRequest, codeDigestInvalid, "the manifest's bytes have the digest %s, not that of the path", got)
	}
	cmd.MediaType, cmd.Body = parsed.MediaType, body
	cmd.If, err = condition(r)
	return cmd, parsed, err
}

func tagParameters(query url.Values) ([]fsm.Tag, error) {
	var out []fsm.Tag
	for _, s := range query["tag"] {
		t, err := fsm.ParseTag(s)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	if len(out) > maxTags {
		return nil, refuse(http.StatusRequestURITooLong, codeTagInvalid, "at most %d tags can be set at once", maxTags)
	}
	return out, nil
}

// condition reads If-Match and If-None-Match of a push.
func condition(r *http.Request) (fsm.Condition, error) {
	var c fsm.Condition
	if r.Header.Get("If-None-Match") == "*" {
		c.Absent = true
	}
	if h := r.Header.Get("If-Match"); h != "" && h != "*" {
		d, err := fsm.ParseDigest(trimETag(h))
		if err != nil {
			return c, err
		}
		c.Digest = d
	}
	return c, nil
}

func trimETag(s string) string {
	if len(s) > 1 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// haveParts refuses early what the state would refuse, and waits until what the manifest references has its copies.
func (a *API) haveParts(ctx context.Context, repo fsm.Repo, p fsm.Parsed) error {
	missing, err := a.state.Missing(repo, p)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		if err := a.catchUp(ctx); err != nil {
			return err
		}
		if missing, err = a.state.Missing(repo, p); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return &fsm.MissingError{Digests: missing}
	}
	blobs := make([]blobsync.Blob, 0, len(p.Blobs))
	for _, d := range p.Blobs {
		b, err := a.state.Blob(repo, d.Digest)
		if errors.Is(err, fsm.ErrBlobUnknown) {
			return &fsm.MissingError{Digests: []digest.Digest{d.Digest}}
		}
		if err != nil {
			return err
		}
		blobs = append(blobs, syncBlob(b))
	}
	return a.blobs.Ensure(ctx, blobs)
}

// deleteManifest removes a tag, or a manifest with all its tags.
func (a *API) deleteManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	var cmd fsm.Command = fsm.DeleteManifest{Repo: rt.repo, Digest: rt.digest}
	if rt.tag != "" {
		cmd = fsm.DeleteTag{Repo: rt.repo, Tag: rt.tag}
	}
	if _, err := a.log.Propose(context.WithoutCancel(r.Context()), cmd); err != nil {
		return err
	}
	return accepted(w)
}
