package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"pier/api/auth"
	"pier/api/client"
	"pier/api/identity"
	"pier/fsm"
)

// providersOf reads the providers of the state. One that this build can't read lets nobody in.
func (x *access) providersOf(documents []fsm.Document) []identity.Provider {
	out := make([]identity.Provider, 0, len(documents))
	for _, d := range documents {
		p, err := identity.Decode(d.Name, d.Body, d.Generation)
		if err != nil {
			x.logger.Error("a provider can't be read by this version; nobody comes in by it here", "provider", d.Name, "err", err)
			continue
		}
		out = append(out, p)
	}
	return out
}

// outsiders are the people of the providers of the moment.
func (x *access) outsiders() (*identity.People, error) {
	_, err := x.directory()
	return x.people, err
}

// getProviders lists the providers as they are set. No secret is in it.
func (a *API) getProviders(r *http.Request) (any, error) {
	if err := a.catchUp(r.Context()); err != nil && !errors.Is(err, ErrUnavailable) {
		return nil, err
	}
	people, err := a.access.outsiders()
	if err != nil {
		return nil, err
	}
	out := []client.Provider{}
	for _, p := range people.Providers() {
		out = append(out, p.Shown())
	}
	return out, nil
}

func (a *API) addProvider(r *http.Request, in client.ProviderRequest) (any, error) {
	if err := identity.Check(in.Provider); err != nil {
		return nil, invalid(err)
	}
	body, err := json.Marshal(in.Provider)
	if err != nil {
		return nil, err
	}
	_, err = a.propose(r.Context(), fsm.PutDocument{
		Document: fsm.Document{Kind: fsm.KindProvider, Name: in.Provider.Name, Body: body}, Over: in.Replace,
	})
	return struct{}{}, err
}

func (a *API) removeProvider(r *http.Request, in client.NameRequest) (any, error) {
	_, err := a.propose(r.Context(), fsm.DeleteDocument{Kind: fsm.KindProvider, Name: in.Name})
	return struct{}{}, err
}

// testProvider tries a login from this node. Who administers the cluster may know why it fails.
func (a *API) testProvider(r *http.Request, in client.ProviderTest) (any, error) {
	people, err := a.access.outsiders()
	if err != nil {
		return nil, err
	}
	report, ok := people.Try(r.Context(), in)
	if !ok {
		return nil, fsm.ErrDocumentUnknown
	}
	return report, nil
}

// addOutsider makes the record of somebody whom a provider knows, under the name that a login there gives.
func (a *API) addOutsider(r *http.Request, in client.UserRequest) (any, error) {
	err := errors.Join(auth.CheckName(in.Name), checkNames(in.Groups))
	if in.Hash != "" || in.Password != "" {
		err = errors.Join(err, errors.New("a user of a provider has the password there, and none here"))
	}
	if lower := strings.ToLower(in.Name); lower != in.Name {
		err = errors.Join(err, fmt.Errorf("people of a provider have lower-case names here: %.80s", lower))
	}
	if err != nil {
		return nil, invalid(err)
	}
	if err := a.catchUp(r.Context()); err != nil {
		return nil, err
	}
	if _, ok, err := a.state.Document(fsm.KindProvider, in.Provider); err != nil {
		return nil, err
	} else if !ok {
		return nil, invalid(fmt.Errorf("there is no provider %.80q; `pier provider ls` shows them", in.Provider))
	}
	return a.putUser(r, fsm.Principal{Name: in.Name, Groups: in.Groups, Provider: in.Provider})
}

// subject is the caller that a name would be: one of ours, or whom a directory knows.
func (a *API) subject(ctx context.Context, d *auth.Directory, name string) (auth.Caller, bool, error) {
	if _, ours := d.Find(name); ours || auth.CheckName(name) != nil {
		c, ok := d.Active(name, a.access.cfg.Now())
		return c, ok, nil
	}
	c, err := a.access.people.Find(ctx, name)
	switch {
	case errors.Is(err, auth.ErrWrongLogin):
		return c, false, nil
	case err != nil:
		return c, false, a.access.explain(err)
	}
	c, ok := d.Vouched(c, a.access.cfg.Now())
	return c, ok, nil
}
