package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"pier/api/client"
)

// Cluster carries out what people ask of the cluster. Its refusals are *client.Error or ErrUnavailable.
type Cluster interface {
	Status(ctx context.Context) (client.Status, error)
	Invite(ctx context.Context, r client.InviteRequest) (client.Invite, error)
	Join(ctx context.Context, r client.JoinRequest) (client.Joined, error)
	Leave(ctx context.Context) error
	Remove(ctx context.Context, r client.RemoveRequest) error
	Transfer(ctx context.Context, r client.TransferRequest) error
}

const codeDenied = "DENIED"

// errSocketOnly keeps changes of the cluster off the public port until there is a login.
var errSocketOnly error = refuse(http.StatusForbidden, codeDenied,
	"the cluster is changed through the control socket: run this command on the node itself, with its --data-dir")

// controlRoutes serves /api/v1: all of it on the control socket, on the public port only what changes nothing.
func (a *API) controlRoutes(r chi.Router, full bool) {
	r.Get("/cluster/status", a.control(func(r *http.Request) (any, error) { return a.cluster.Status(r.Context()) }))
	if !full {
		r.Post("/*", func(w http.ResponseWriter, r *http.Request) { a.fail(w, r, errSocketOnly) })
		return
	}
	r.Post("/cluster/invite", a.control(func(r *http.Request) (any, error) {
		var in client.InviteRequest
		if err := readControl(r, &in); err != nil {
			return nil, err
		}
		return a.cluster.Invite(r.Context(), in)
	}))
	r.Post("/cluster/join", a.control(func(r *http.Request) (any, error) {
		var in client.JoinRequest
		if err := readControl(r, &in); err != nil {
			return nil, err
		}
		return a.cluster.Join(r.Context(), in)
	}))
	r.Post("/cluster/leave", a.control(func(r *http.Request) (any, error) {
		return struct{}{}, a.cluster.Leave(r.Context())
	}))
	r.Post("/cluster/remove", a.control(func(r *http.Request) (any, error) {
		var in client.RemoveRequest
		if err := readControl(r, &in); err != nil {
			return nil, err
		}
		return struct{}{}, a.cluster.Remove(r.Context(), in)
	}))
	r.Post("/cluster/transfer", a.control(func(r *http.Request) (any, error) {
		var in client.TransferRequest
		if err := readControl(r, &in); err != nil {
			return nil, err
		}
		return struct{}{}, a.cluster.Transfer(r.Context(), in)
	}))
}

// control answers with what do gives. These calls may take long: a drain copies blobs.
func (a *API) control(do func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		v, err := do(r)
		if err == nil {
			err = writeJSON(w, "application/json", v)
		}
		var refused *client.Error
		if errors.As(err, &refused) {
			err = refuse(refused.Status, refused.Code, "%s", refused.Message)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	}
}

func readControl(r *http.Request, v any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return refuse(http.StatusBadRequest, "INVALID", "the request's JSON: %v", err)
	}
	return nil
}
