package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"pier/api/auth"
	"pier/api/client"
	"pier/fsm"
)

// Cluster carries out what people ask of the cluster. Its refusals are *client.Error or ErrUnavailable.
type Cluster interface {
	Status(ctx context.Context) (client.Status, error)
	Invite(ctx context.Context, r client.InviteRequest) (client.Invite, error)
	Join(ctx context.Context, r client.JoinRequest) (client.Joined, error)
	Leave(ctx context.Context) error
	Remove(ctx context.Context, r client.RemoveRequest) error
	Transfer(ctx context.Context, r client.TransferRequest) error
	SecretStatus(ctx context.Context) (client.SecretStatus, error)
	RotateSecret(ctx context.Context, r client.RotateSecretRequest) (client.SecretStatus, error)
	DropSecret(ctx context.Context) (client.SecretStatus, error)
	RenewCertificates(ctx context.Context, r client.RenewRequest) (client.Renewed, error)
}

const codeDenied = "DENIED"

// errSocketOnly keeps what is an administrator's off the public port while nobody can log in.
var errSocketOnly error = refuse(http.StatusForbidden, codeDenied,
	"without access control nobody can be an administrator over the network: run this command on the node itself, with its --data-dir")

var errNotAdmin error = refuse(http.StatusForbidden, codeDenied, "this needs the right admin on **")

// controlRoutes serves /api/v1. What changes nothing and tells nothing of users is open as long as the registry is.
func (a *API) controlRoutes(r chi.Router) {
	r.Get("/cluster/status", a.control(false, func(r *http.Request) (any, error) { return a.cluster.Status(r.Context()) }))
	r.Get("/cluster/secret/status", a.control(true, func(r *http.Request) (any, error) { return a.cluster.SecretStatus(r.Context()) }))
	r.Get("/login", a.atDesk(a.getLogin))
	r.Get("/ca", a.plain("control", a.getAuthority))
	r.Get("/access", a.control(true, a.getAccess))
	r.Get("/audit", a.control(true, a.getAudit))
	r.Get("/doctor", a.control(true, a.getDoctor))
	r.Get("/access/providers", a.control(true, a.getProviders))
	r.Get("/access/trust", a.control(true, a.getTrusts))
	for path, serve := range map[string]http.HandlerFunc{
		"/cluster/invite": clusterOrder(a, func(ctx context.Context, in client.InviteRequest) (any, error) { return a.cluster.Invite(ctx, in) }),
		"/cluster/join":   clusterOrder(a, func(ctx context.Context, in client.JoinRequest) (any, error) { return a.cluster.Join(ctx, in) }),
		"/cluster/leave": a.control(true, func(r *http.Request) (any, error) {
			if err := a.fresh(r.Context()); err != nil {
				return nil, err
			}
			return struct{}{}, a.cluster.Leave(r.Context())
		}),
		"/cluster/remove": clusterOrder(a, func(ctx context.Context, in client.RemoveRequest) (any, error) {
			return struct{}{}, a.cluster.Remove(ctx, in)
		}),
		"/cluster/transfer": clusterOrder(a, func(ctx context.Context, in client.TransferRequest) (any, error) {
			return struct{}{}, a.cluster.Transfer(ctx, in)
		}),
		"/cluster/secret/rotate": clusterOrder(a, func(ctx context.Context, in client.RotateSecretRequest) (any, error) {
			return a.cluster.RotateSecret(ctx, in)
		}),
		"/cluster/secret/drop": clusterOrder(a, func(ctx context.Context, _ struct{}) (any, error) { return a.cluster.DropSecret(ctx) }),
		"/acme/renew": clusterOrder(a, func(ctx context.Context, in client.RenewRequest) (any, error) {
			return a.cluster.RenewCertificates(ctx, in)
		}),
		"/access/user/add": order(a, a.addUser), "/access/change": order(a, a.changePrincipal), "/access/remove": order(a, a.removePrincipal),
		"/access/robot/add": order(a, a.addRobot), "/access/robot/rotate": order(a, a.rotateRobot),
		"/access/provider/add": order(a, a.addProvider), "/access/provider/remove": order(a, a.removeProvider), "/access/provider/test": order(a, a.testProvider),
		"/access/trust/add": order(a, a.addTrust), "/access/trust/remove": order(a, a.removeTrust), "/access/trust/test": order(a, a.testTrust),
		"/access/grant": order(a, a.addGrant), "/access/revoke": order(a, a.revokeGrant), "/access/explain": order(a, a.explainAccess),
		"/access/open": a.control(true, a.setAccess(fsm.AccessOpen)), "/access/close": a.control(true, a.setAccess(fsm.AccessOn)),
	} {
		r.Post(path, serve)
	}
}

// getAuthority gives the CA of the certificates that clients see. It is public: it is what strangers are to trust.
func (a *API) getAuthority(w http.ResponseWriter, _ *http.Request) error {
	if a.cfg.Access.Authority == nil {
		return refuse(http.StatusNotFound, codeUnsupported, "this node has no certificate authority")
	}
	authority, err := a.cfg.Access.Authority()
	if err != nil {
		return err
	}
	return writeJSON(w, "application/json", client.Authority{PEM: string(authority.PEM()), Fingerprint: authority.Fingerprint()})
}

// order is a control call whose request has a body.
func order[T any](a *API, do func(r *http.Request, in T) (any, error)) http.HandlerFunc {
	return a.control(true, func(r *http.Request) (any, error) {
		var in T
		if err := readControl(r, &in); err != nil {
			return nil, err
		}
		exchangeOf(r.Context()).target = targetOf(in)
		return do(r, in)
	})
}

// clusterOrder is an order to the cluster itself.
func clusterOrder[T any](a *API, do func(ctx context.Context, in T) (any, error)) http.HandlerFunc {
	return order(a, func(r *http.Request, in T) (any, error) {
		if err := a.fresh(r.Context()); err != nil {
			return nil, err
		}
		return do(r.Context(), in)
	})
}

// admitControl lets the operator do all, and over the network whoever administers the cluster. While the registry is open
// nobody can log in, so only what needs no administrator works there.
func (a *API) admitControl(r *http.Request, admin bool) error {
	x := exchangeOf(r.Context())
	if x.caller.Kind == auth.KindOperator {
		return nil
	}
	d, version, err := a.access.versioned()
	if err != nil {
		return err
	}
	if !d.On() {
		if admin {
			return errSocketOnly
		}
		return a.access.atHome(r)
	}
	if x.caller, err = a.access.identify(r, d); err != nil {
		return err
	}
	switch {
	case d.Administers(x.caller):
		x.letIn(d, version, (*auth.Directory).Administers)
		return nil
	case x.caller.Kind == auth.KindAnonymous || d.Administers(x.caller.Unlimited()):
		return errLogin
	}
	return errNotAdmin
}

// control answers with what do gives. These calls may take long: a drain copies blobs.
func (a *API) control(admin bool, do func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := a.admitControl(r, admin)
		if err == nil && r.Method == http.MethodPost {
			err = a.settled(r.Context())
		}
		var v any
		if err == nil {
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
			v, err = do(r)
		}
		if err == nil {
			err = writeJSON(w, "application/json", v)
		}
		var refused *client.Error
		if errors.As(err, &refused) {
			err = refuse(refused.Status, refused.Code, "%s", refused.Message)
		}
		if err != nil {
			a.keepBack(r)
			a.fail(w, r, a.askToken(r, err, auth.ClusterScope().String()))
		}
	}
}

// maxControl is more than any document of the state has.
const maxControl = 512 << 10

func readControl(r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxControl))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return fsm.ErrDocumentTooBig
	case err != nil:
		return refuse(http.StatusBadRequest, codeInvalid, "the request's JSON: %v", err)
	}
	return nil
}
