package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"pier/api/auth"
	"pier/api/client"
	"pier/api/identity"
	"pier/fsm"
)

// maxRules bounds the trust rules, all of which a token may have to be compared with.
const maxRules = 256

// rulesOf reads the trust rules of the state. One that this build can't read lets nobody in.
func (x *access) rulesOf(documents []fsm.Document) []identity.Rule {
	out := make([]identity.Rule, 0, len(documents))
	for _, d := range documents {
		var r client.TrustRule
		dec := json.NewDecoder(bytes.NewReader(d.Body))
		dec.DisallowUnknownFields() // of a later version: it may keep somebody out
		err := dec.Decode(&r)
		if err == nil {
			r.Name = d.Name
			var rule identity.Rule
			if rule, err = identity.ParseRule(r, d.Generation); err == nil {
				out = append(out, rule)
				continue
			}
		}
		x.logger.Error("a trust rule can't be read by this version; no job comes in by it here", "rule", d.Name, "err", err)
	}
	return out
}

// trusted gives the rules of the moment.
func (x *access) trusted() ([]identity.Rule, error) {
	p, err := x.picture()
	if err != nil {
		return nil, err
	}
	return p.rules, nil
}

// verdict is what a rule makes of a token.
type verdict struct {
	rule   identity.Rule
	claims identity.Claims
	err    error
}

// judge asks the rules about a token that name its issuer, and of a robot where one is named. A token that no rule is for makes
// no node ask anybody.
func (x *access) judge(ctx context.Context, robot, token string) ([]verdict, error) {
	issuer, ok := identity.IssuerOf(token)
	if !ok {
		return nil, nil
	}
	rules, err := x.trusted()
	if err != nil {
		return nil, err
	}
	var out []verdict
	checked := map[identity.Issuer]verdict{} // what rules have in common is checked once
	for _, r := range rules {
		if r.Issuer != issuer || robot != "" && r.Robot != robot {
			continue
		}
		v, ok := checked[r.From()]
		if !ok {
			v.claims, v.err = x.issuers.Verify(ctx, r.From(), token)
			checked[r.From()] = v
		}
		v.rule = r
		if v.err == nil {
			v.err = r.Admits(v.claims)
		}
		out = append(out, v)
	}
	return out, nil
}

// job gives the robot whose job a token is of; ours is false where no rule could take such a token, whoever made it.
func (x *access) job(ctx context.Context, d *auth.Directory, robot, token string) (c auth.Caller, ours bool, err error) {
	verdicts, err := x.judge(ctx, robot, token)
	if err != nil || len(verdicts) == 0 {
		return auth.Caller{}, err != nil, err
	}
	for _, v := range verdicts {
		if v.err != nil {
			if err == nil || !isRejection(v.err) {
				err = v.err
			}
			continue
		}
		found, ok := d.Job(auth.Rule(v.rule.Name, v.rule.Robot, v.rule.Generation), v.claims.Expires, x.cfg.Now())
		switch {
		case !ok:
			err = refuse(http.StatusUnauthorized, codeUnauthorized, "the robot %s that the ID token stands for is disabled, has expired or is gone", v.rule.Robot)
		case c.Name != "" && c.Name != found.Name:
			return auth.Caller{}, true, refuse(http.StatusBadRequest, codeUnsupported, "the ID token stands for %s and for %s; say with username which is meant", c.Name, found.Name)
		case c.Name == "":
			c = found
		}
	}
	if c.Name != "" {
		return c, true, nil
	}
	return auth.Caller{}, true, x.explainToken(err)
}

func isRejection(err error) bool {
	var r *identity.RejectedError
	return errors.As(err, &r)
}

// explainToken gives an ID token that doesn't let in its answer. What a rule asks for stays with who administers the cluster:
// on an issuer that serves everybody, everybody has a token that is good so far.
func (x *access) explainToken(err error) error {
	var no *identity.RejectedError
	var down *identity.UnreachableError
	switch {
	case errors.As(err, &no) && no.Private:
		return refuse(http.StatusUnauthorized, codeUnauthorized, "the ID token is genuine, but not one that this registry takes; `pier robot trust test` tells an administrator why")
	case errors.As(err, &no):
		return refuse(http.StatusUnauthorized, codeUnauthorized, "%s", no.Error())
	case errors.As(err, &down):
		x.logger.Warn("an issuer of ID tokens can't be asked", "issuer", down.Issuer, "err", down.Err)
		return &Unavailable{Reason: "this node can't ask the issuer of the ID token, and what it knows of it is not enough; try again, or another node", Err: err}
	}
	return x.explain(err)
}

// getTrusts lists the trust rules.
func (a *API) getTrusts(r *http.Request) (any, error) {
	if err := a.catchUp(r.Context()); err != nil && !errors.Is(err, ErrUnavailable) {
		return nil, err
	}
	rules, err := a.access.trusted()
	if err != nil {
		return nil, err
	}
	out := []client.TrustRule{}
	for _, rule := range rules {
		out = append(out, rule.TrustRule)
	}
	return out, nil
}

func (a *API) addTrust(r *http.Request, in client.TrustRequest) (any, error) {
	_, err := identity.ParseRule(in.Rule, 0)
	if err = errors.Join(auth.CheckName(in.Rule.Name), auth.CheckName(in.Rule.Robot), err); err != nil {
		return nil, invalid(err)
	}
	if err := a.catchUp(r.Context()); err != nil {
		return nil, err
	}
	d, err := a.access.directory()
	if err != nil {
		return nil, err
	}
	if p, ok := d.Find(in.Rule.Robot); !ok || p.Kind != auth.KindRobot {
		return nil, invalid(fmt.Errorf("there is no robot %s; `pier robot add %s --no-secret` makes one", in.Rule.Robot, in.Rule.Robot))
	}
	rules, err := a.access.trusted()
	if err != nil {
		return nil, err
	}
	if known := slices.ContainsFunc(rules, func(r identity.Rule) bool { return r.Name == in.Rule.Name }); len(rules) >= maxRules && !known {
		return nil, invalid(fmt.Errorf("there are %d trust rules, which is the limit", len(rules)))
	}
	body, err := json.Marshal(in.Rule)
	if err != nil {
		return nil, err
	}
	_, err = a.propose(r.Context(), fsm.PutDocument{Document: fsm.Document{Kind: fsm.KindTrust, Name: in.Rule.Name, Body: body}, Over: in.Replace})
	return struct{}{}, err
}

func (a *API) removeTrust(r *http.Request, in client.NameRequest) (any, error) {
	_, err := a.propose(r.Context(), fsm.DeleteDocument{Kind: fsm.KindTrust, Name: in.Name})
	return struct{}{}, err
}

// dropTrusts removes the rules of a robot that is about to go: whoever is to come under its name must not find them.
func (a *API) dropTrusts(ctx context.Context, robot string) error {
	if err := a.catchUp(ctx); err != nil {
		return err
	}
	rules, err := a.access.trusted()
	if err != nil {
		return err
	}
	for _, rule := range rules {
		if rule.Robot != robot {
			continue
		}
		_, err := a.propose(ctx, fsm.DeleteDocument{Kind: fsm.KindTrust, Name: rule.Name})
		if err != nil && !errors.Is(err, fsm.ErrDocumentUnknown) {
			return err
		}
	}
	return nil
}

// testTrust tells what the rules make of a token, here and now. Who administers the cluster may know why.
func (a *API) testTrust(r *http.Request, in client.TrustTest) (any, error) {
	verdicts, err := a.access.judge(r.Context(), "", in.Token)
	if err != nil {
		return nil, err
	}
	out := []client.TrustVerdict{}
	for _, v := range verdicts {
		to := client.TrustVerdict{Rule: v.rule.Name, Robot: v.rule.Robot, Admits: v.err == nil}
		if v.err != nil {
			to.Reason = v.err.Error()
		}
		out = append(out, to)
	}
	if issuer, ok := identity.IssuerOf(in.Token); len(out) == 0 && ok {
		return nil, invalid(fmt.Errorf("no trust rule is for the issuer %s", issuer))
	} else if !ok {
		return nil, invalid(errors.New("this is no ID token: it has no issuer in it"))
	}
	return out, nil
}
