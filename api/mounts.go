package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"

	"pier/api/auth"
	"pier/blobsync"
	"pier/fsm"
)

// mount links a blob that another repository has. Anything in the way short of an ill-formed digest ends in an ordinary
// session, exactly as if the blob did not exist.
func (a *API) mount(w http.ResponseWriter, r *http.Request, rt route, query url.Values) (bool, error) {
	d, err := fsm.ParseDigest(query.Get("mount"))
	if err != nil {
		return false, err
	}
	from, ok := mountSource(r, rt)
	if !ok {
		return false, nil
	}
	if ok, err := a.mayMount(r, from); !ok {
		return false, errors.Join(err, a.askMore(r, rt, from))
	}
	restore := a.alsoMount(r.Context(), from)
	defer restore()
	mounted, err := a.mountFrom(w, r, rt, from, d)
	if errors.Is(err, errLogin) { // a right is gone meanwhile, maybe only the one on the source
		restore()
		err = a.stillMay(r.Context())
	}
	return mounted, err
}

// mountSource is where a request wants to mount from: any repository, if it names none. It is false where there can be no such.
func mountSource(r *http.Request, rt route) (fsm.Repo, bool) {
	query := r.URL.Query()
	if rt.kind != kindUploads || !query.Has("mount") {
		return "", false
	}
	if query.Get("from") == "" {
		return "", true
	}
	from, err := fsm.ParseRepo(query.Get("from"))
	return from, err == nil
}

func (a *API) mountFrom(w http.ResponseWriter, r *http.Request, rt route, from fsm.Repo, d digest.Digest) (bool, error) {
	b, err := a.findMount(r.Context(), from, d)
	if errors.Is(err, fsm.ErrBlobUnknown) || errors.Is(err, ErrUnavailable) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if a.awaitHolder(r.Context(), b) != nil {
		return false, r.Context().Err()
	}
	_, err = a.propose(r.Context(), fsm.MountBlob{Repo: rt.repo, From: from, Digest: d})
	if errors.Is(err, fsm.ErrBlobUnknown) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("mount %s: %w", d, err)
	}
	return true, createdBlob(w, rt.repo, d)
}

func (a *API) findMount(ctx context.Context, from fsm.Repo, d digest.Digest) (blobsync.Blob, error) {
	if from != "" {
		return a.findBlob(ctx, from, d)
	}
	b, err := a.state.BlobRecord(d)
	if errors.Is(err, fsm.ErrBlobUnknown) {
		if err := a.catchUp(ctx); err != nil {
			return blobsync.Blob{}, err
		}
		b, err = a.state.BlobRecord(d)
	}
	return syncBlob(b), err
}

// mayMount tells whether the caller may have blobs of a repository; of any, where none is named.
func (a *API) mayMount(r *http.Request, from fsm.Repo) (bool, error) {
	d, err := a.access.directory()
	if err != nil {
		return false, err
	}
	return mayMount(d, exchangeOf(r.Context()).caller, from), nil
}

func mayMount(d *auth.Directory, c auth.Caller, from fsm.Repo) bool {
	if from == "" {
		return d.Everywhere(c, auth.Pull)
	}
	_, ok := d.Decide(c, auth.Pull, string(from))
	return ok
}

// askMore has a client come back with a token for a mount's source too, where it didn't ask for that and would get it.
func (a *API) askMore(r *http.Request, rt route, from fsm.Repo) error {
	c := exchangeOf(r.Context()).caller
	if c.Limit == nil || from == "" {
		return nil
	}
	d, err := a.access.directory()
	if err != nil {
		return err
	}
	if !mayMount(d, c.Unlimited(), from) {
		return nil
	}
	return a.challenge(r, errLogin, needsPush, rt)
}

// alsoMount makes the right on a mount's source a part of what is decided again, until restore.
func (a *API) alsoMount(ctx context.Context, from fsm.Repo) (restore func()) {
	x := exchangeOf(ctx)
	may := x.may
	if may == nil {
		return func() {}
	}
	x.may = func(d *auth.Directory, c auth.Caller) bool { return may(d, c) && mayMount(d, c, from) }
	return func() { x.may = may }
}
