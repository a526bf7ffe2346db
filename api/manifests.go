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

const (
	// maxTags is how many tags one push by digest may set.
	maxTags = 100
	// manifestMemory bounds what all manifests that are being pushed may take, in bytes; manifestPart what those of one source may.
	manifestMemory = 256 << 20
	manifestPart   = 32 << 20
	// parsedAtOnce is how many bytes of manifests are parsed at a time: each takes up to forty while it is.
	parsedAtOnce = 8 << 20
	// manifestTime is how long a manifest may take to come: it holds memory meanwhile, and is small.
	manifestTime = time.Minute
	// quorumEvery is how often a push that waits for copies makes sure that it can still end well.
	quorumEvery = 2 * time.Second
)

// findManifest gives the manifest that a route means. A tag is read from the current state, or from this node's own with a
// Warning; a digest from the local state, and from the current one when it isn't there. What this node doesn't have and
// nobody can be asked about is an ErrUnavailable, never a 404.
func (a *API) findManifest(w http.ResponseWriter, r *http.Request, rt route) (fsm.ManifestInfo, error) {
	if rt.tag == "" {
		if err := a.afterStart(r.Context()); err != nil {
			return fsm.ManifestInfo{}, err
		}
		info, err := a.state.StatManifest(rt.repo, rt.digest)
		if unknown(err) {
			if err := a.catchUp(r.Context()); err != nil {
				return info, err
			}
			info, err = a.state.StatManifest(rt.repo, rt.digest)
		}
		return info, err
	}
	stale, err := a.current(w, r)
	if err != nil {
		return fsm.ManifestInfo{}, err
	}
	info, err := a.statTag(rt.repo, rt.tag)
	if unknown(err) && stale != nil {
		w.Header().Del("Warning")
		return info, stale
	}
	return info, err
}

func unknown(err error) bool {
	return errors.Is(err, fsm.ErrManifestUnknown) || errors.Is(err, fsm.ErrNameUnknown)
}

// statTag resolves a tag. Between the two looks the tag may move and its old manifest go, hence the second try.
func (a *API) statTag(repo fsm.Repo, tag fsm.Tag) (fsm.ManifestInfo, error) {
	for try := 0; ; try++ {
		d, err := a.state.ResolveTag(repo, tag)
		if err != nil {
			return fsm.ManifestInfo{}, err
		}
		info, err := a.state.StatManifest(repo, d)
		if try > 0 || !unknown(err) {
			return info, err
		}
	}
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
	h.Set("Content-Security-Policy", "sandbox") // it may call itself a page, which would be one of the registry's own
	h.Set(headerDigest, info.Digest.String())
	h.Set("ETag", etag(info.Digest))
	h.Set("Cache-Control", keepable(r))
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
	return sendBytes(w, m.Body, a.cfg.BodyIdle)
}

// putManifest stores a manifest once enough nodes hold what it references.
func (a *API) putManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	weight := int64(fsm.MaxManifest)
	if r.ContentLength > weight {
		return fsm.ErrManifestTooBig
	}
	if r.ContentLength >= 0 {
		weight = r.ContentLength
	}
	wait, cancel := context.WithTimeout(r.Context(), a.cfg.QueueWait)
	release, err := a.memory.acquire(wait, a.access.sourceKey(r), weight)
	cancel()
	if err != nil {
		return err
	}
	defer release()
	exchangeOf(r.Context()).body.within(manifestTime)
	cmd, parsed, err := a.readManifest(r, rt)
	if err != nil {
		return err
	}
	if cmd.If, err = a.condition(r, rt, cmd); err != nil {
		return err
	}
	if err := a.haveParts(r.Context(), rt.repo, parsed); err != nil {
		return err
	}
	// From here on the push goes on without its client, as its bytes are all there.
	got, err := a.propose(context.WithoutCancel(r.Context()), cmd)
	if err != nil {
		return fmt.Errorf("store the manifest: %w", err)
	}
	answer, ok := got.(fsm.PutManifestAnswer)
	if !ok {
		return fmt.Errorf("the state answered a manifest with %T", got)
	}
	return createdManifest(w, rt, cmd.Tags, answer)
}

func createdManifest(w http.ResponseWriter, rt route, tags []fsm.Tag, answer fsm.PutManifestAnswer) error {
	h := w.Header()
	h.Set("Location", route{kind: kindManifest, repo: rt.repo, digest: answer.Digest}.path())
	h.Set(headerDigest, answer.Digest.String())
	h.Set("ETag", etag(answer.Digest))
	if answer.Subject != "" {
		h.Set(headerSubject, answer.Subject.String())
	}
	if rt.tag == "" {
		for _, t := range tags {
			h.Add("OCI-Tag", string(t))
		}
	}
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

// readManifest makes the command of a request.
func (a *API) readManifest(r *http.Request, rt route) (fsm.PutManifest, fsm.Parsed, error) {
	cmd := fsm.PutManifest{Repo: rt.repo, Digest: rt.digest}
	var err error
	if rt.tag != "" {
		cmd.Tags = []fsm.Tag{rt.tag}
	} else if cmd.Tags, err = tagParameters(r.URL.Query()); err != nil {
		return cmd, fsm.Parsed{}, err
	}
	if cmd.Body, err = readBounded(r); err != nil {
		return cmd, fsm.Parsed{}, err
	}
	if rt.tag != "" {
		cmd.Digest = digest.FromBytes(cmd.Body)
	} else if got := cmd.Digest.Algorithm().FromBytes(cmd.Body); got != cmd.Digest {
		return cmd, fsm.Parsed{}, refuse(http.StatusBadRequest, codeDigestInvalid,
			"the manifest's bytes have the digest %s, not that of the path", got)
	}
	if err := a.parsing.Acquire(r.Context(), int64(len(cmd.Body))); err != nil {
		return cmd, fsm.Parsed{}, err
	}
	defer a.parsing.Release(int64(len(cmd.Body)))
	mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	parsed, err := fsm.ParseManifest(strings.TrimSpace(mediaType), cmd.Body)
	cmd.MediaType, parsed.Annotations = parsed.MediaType, nil // which may be large, and nobody asks for here
	return cmd, parsed, err
}

// readBounded reads a body of at most the size of a manifest.
func readBounded(r *http.Request) ([]byte, error) {
	if r.ContentLength >= 0 {
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil && r.ContentLength > 0 {
			return nil, &bodyError{err: err}
		}
		return body, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, fsm.MaxManifest+1))
	if err == nil && len(body) > fsm.MaxManifest {
		err = fsm.ErrManifestTooBig
	}
	return body, err
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

// condition reads If-Match and If-None-Match of a push, decides them on what the reference is now, and has the state make
// sure that it still is that when the push is applied.
func (a *API) condition(r *http.Request, rt route, cmd fsm.PutManifest) (fsm.Condition, error) {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	if match == "" && none == "" {
		return fsm.Condition{}, nil
	}
	if err := a.catchUp(r.Context()); err != nil {
		return fsm.Condition{}, err
	}
	var now digest.Digest
	var err error
	if rt.tag != "" {
		now, err = a.state.ResolveTag(rt.repo, rt.tag)
	} else if _, err = a.state.StatManifest(rt.repo, cmd.Digest); err == nil {
		now = cmd.Digest
	}
	if err != nil && !unknown(err) {
		return fsm.Condition{}, err
	}
	if match != "" && (now == "" || !matches(match, now)) || none != "" && now != "" && matches(none, now) {
		return fsm.Condition{}, fsm.ErrConditionFailed
	}
	if rt.tag == "" {
		return fsm.Condition{}, nil // content under a digest doesn't change
	}
	return fsm.Condition{Absent: now == "", Digest: now}, nil
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
		if d.Size != b.Size {
			return refuse(http.StatusBadRequest, codeSizeInvalid, "the manifest says that %s has %d bytes, but it has %d", d.Digest, d.Size, b.Size)
		}
		blobs = append(blobs, syncBlob(b))
	}
	return a.ensure(ctx, blobs)
}

// ensure waits for the copies. Without a quorum the push can't end well however many copies there are, and the client
// should hear that soon.
func (a *API) ensure(ctx context.Context, blobs []blobsync.Blob) error {
	if len(blobs) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.blobs.Ensure(ctx, blobs) }()
	tick := time.NewTicker(quorumEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if err := a.catchUp(ctx); err != nil {
				cancel()
				<-done
				return err
			}
		}
	}
}

// deleteManifest removes a tag, or a manifest with all its tags.
func (a *API) deleteManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	var cmd fsm.Command = fsm.DeleteManifest{Repo: rt.repo, Digest: rt.digest}
	if rt.tag != "" {
		cmd = fsm.DeleteTag{Repo: rt.repo, Tag: rt.tag}
	}
	if _, err := a.propose(context.WithoutCancel(r.Context()), cmd); err != nil {
		return err
	}
	return accepted(w)
}
