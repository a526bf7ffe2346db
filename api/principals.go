package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"pier/api/auth"
	"pier/api/client"
	"pier/fsm"
)

const codeInvalid = "INVALID"

func invalid(err error) error { return refuse(http.StatusBadRequest, codeInvalid, "%v", err) }

// getAccess lists users, robots and grants. No hash of a secret is in it.
func (a *API) getAccess(r *http.Request) (any, error) {
	if err := a.catchUp(r.Context()); err != nil && !errors.Is(err, ErrUnavailable) {
		return nil, err
	}
	access, err := a.state.Access()
	if err != nil {
		return nil, err
	}
	out := client.Access{On: access.On, Principals: []client.Principal{}, Grants: []client.Grant{}}
	for _, p := range access.Principals {
		to := client.Principal{Name: p.Name, Kind: kindOf(p), Groups: append([]string{}, p.Groups...), Disabled: p.Disabled, Expires: wireTime(p.Expires), Provider: p.Provider}
		for _, s := range p.Secrets {
			to.Secrets = append(to.Secrets, client.Secret{ID: s.ID, Expires: wireTime(s.Expires)})
		}
		out.Principals = append(out.Principals, to)
	}
	for _, g := range access.Grants {
		out.Grants = append(out.Grants, client.Grant{Subject: g.Subject, Right: g.Right, Pattern: g.Pattern})
	}
	return out, nil
}

func kindOf(p fsm.Principal) string {
	if p.Robot {
		return "robot"
	}
	return "user"
}

func wireTime(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

func (a *API) addUser(r *http.Request, in client.UserRequest) (any, error) {
	if in.Provider != "" {
		return a.addOutsider(r, in)
	}
	hash := []byte(in.Hash)
	var err error
	switch {
	case in.Hash != "" && in.Password != "":
		err = errors.New("a password or a hash, not both")
	case in.Hash != "":
		err = auth.CheckHash(hash)
	default:
		hash, err = auth.HashPassword(in.Password)
	}
	err = errors.Join(auth.CheckName(in.Name), checkNames(in.Groups), err)
	if err != nil {
		return nil, invalid(err)
	}
	return a.putUser(r, fsm.Principal{Name: in.Name, Password: hash, Groups: in.Groups})
}

func (a *API) putUser(r *http.Request, p fsm.Principal) (any, error) {
	answer, err := a.propose(r.Context(), fsm.PutPrincipal{Principal: p})
	if err != nil {
		return nil, err
	}
	added, _ := answer.(fsm.PrincipalAnswer)
	out := client.UserAdded{First: added.First}
	if added.First && a.cfg.Exposure != nil {
		out.Warning = a.cfg.Exposure()
	}
	return out, nil
}

func checkNames(names []string) error {
	var faults []error
	for _, n := range names {
		faults = append(faults, auth.CheckName(n))
	}
	return errors.Join(faults...)
}

// change edits a principal as it is now. Whoever edits it at the same time makes one of the two try again.
func (a *API) change(ctx context.Context, name string, edit func(*fsm.Principal) error) error {
	if err := a.catchUp(ctx); err != nil {
		return err
	}
	access, err := a.state.Access()
	if err != nil {
		return err
	}
	for _, p := range access.Principals {
		if p.Name != name {
			continue
		}
		was := p.Generation
		if err := edit(&p); err != nil {
			return invalid(err)
		}
		_, err := a.propose(ctx, fsm.PutPrincipal{Principal: p, Was: was})
		return err
	}
	return a.nobodyCalled(name)
}

// nobodyCalled says that the state has nobody of the name, and what to do where a provider may.
func (a *API) nobodyCalled(name string) error {
	providers, err := a.state.Documents(fsm.KindProvider)
	if err != nil {
		return err
	}
	if len(providers) == 0 {
		return fsm.ErrPrincipalUnknown
	}
	return refuse(http.StatusNotFound, codeNameUnknown, "no user or robot %.80q; whom a provider knows gets a record first: pier user add %.80s --provider NAME", name, name)
}

func (a *API) changePrincipal(r *http.Request, in client.PrincipalChange) (any, error) {
	return struct{}{}, a.change(r.Context(), in.Name, func(p *fsm.Principal) error {
		if in.Disabled != nil {
			p.Disabled = *in.Disabled
		}
		if in.Groups != nil {
			p.Groups = *in.Groups
			if err := checkNames(p.Groups); err != nil {
				return err
			}
		}
		if in.Password == nil {
			return nil
		}
		if p.Robot {
			return errors.New("a robot has secrets, not a password: rotate it")
		}
		if p.Provider != "" {
			return fmt.Errorf("the password of %s is at the provider %s", p.Name, p.Provider)
		}
		hash, err := auth.HashPassword(*in.Password)
		p.Password = hash
		return err
	})
}

func (a *API) removePrincipal(r *http.Request, in client.RemovalRequest) (any, error) {
	if err := a.catchUp(r.Context()); err != nil {
		return nil, err
	}
	access, err := a.state.Access()
	if err != nil {
		return nil, err
	}
	for _, p := range access.Principals {
		if is := kindOf(p); p.Name == in.Name && in.Kind != "" && in.Kind != is {
			return nil, refuse(http.StatusConflict, codeConflict, "%s is a %s: `pier %s rm %s` removes it", p.Name, is, is, p.Name)
		}
	}
	if err := a.dropTrusts(r.Context(), in.Name); err != nil {
		return nil, err
	}
	_, err = a.propose(r.Context(), fsm.DeletePrincipal{Name: in.Name})
	return struct{}{}, err
}

func (a *API) addRobot(r *http.Request, in client.RobotRequest) (any, error) {
	life, err := lifetime("expires", in.TTL)
	var grants []fsm.Grant
	for _, g := range in.Grants {
		g.Subject = in.Name
		kept, bad := grantOf(g)
		grants, err = append(grants, kept), errors.Join(err, bad)
	}
	if err = errors.Join(auth.CheckName(in.Name), err); err != nil {
		return nil, invalid(err)
	}
	robot, text := fsm.Principal{Name: in.Name, Robot: true}, ""
	if !in.NoSecret {
		var kept auth.Secret
		text, kept = auth.NewSecret()
		robot.Secrets = []fsm.RobotSecret{{ID: kept.ID, Hash: kept.Hash}}
	}
	if life > 0 {
		robot.Expires = millis(a.access.cfg.Now().Add(life))
	}
	var cmd fsm.Command = fsm.PutPrincipal{Principal: robot}
	if len(grants) > 0 {
		cmd = fsm.AddPrincipal{Principal: robot, Grants: grants}
	}
	if _, err := a.propose(r.Context(), cmd); err != nil {
		return nil, err
	}
	return client.RobotSecret{Name: in.Name, Secret: text, Expires: wireTime(robot.Expires)}, nil
}

// maxSecrets is how many secrets a robot has at once: one in use, one to come, and one that somebody forgot.
const maxSecrets = 3

func (a *API) rotateRobot(r *http.Request, in client.RotateRequest) (any, error) {
	keep, err := lifetime("keep", in.Keep)
	if err != nil {
		return nil, invalid(err)
	}
	text, fresh := auth.NewSecret()
	now := a.access.cfg.Now()
	out := client.RobotSecret{Name: in.Name, Secret: text}
	return out, a.change(r.Context(), in.Name, func(p *fsm.Principal) error {
		if !p.Robot {
			return errors.New("that is a user, who has a password")
		}
		secrets := []fsm.RobotSecret{{ID: fresh.ID, Hash: fresh.Hash}}
		for _, s := range p.Secrets {
			if end := millis(now.Add(keep)); s.Expires == 0 || s.Expires > end {
				s.Expires = end
			}
			if s.Expires > millis(now) && len(secrets) < maxSecrets {
				secrets = append(secrets, s)
			}
		}
		p.Secrets = secrets
		return nil
	})
}

// lifetime parses what is called name, a time such as 12h or 90d; empty is none.
func lifetime(name, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := client.ParseLifetime(s)
	if err != nil {
		err = fmt.Errorf("%s %w", name, err)
	}
	return d, err
}

func grantOf(g client.Grant) (fsm.Grant, error) {
	right, err := auth.ParseRight(g.Right)
	if err == nil {
		err = auth.Grant{Subject: g.Subject, Right: right, Pattern: g.Pattern}.Validate()
	}
	return fsm.Grant{Subject: g.Subject, Right: g.Right, Pattern: g.Pattern}, err
}

func (a *API) addGrant(r *http.Request, in client.Grant) (any, error) {
	g, err := grantOf(in)
	if err != nil {
		return nil, invalid(err)
	}
	_, err = a.propose(r.Context(), fsm.PutGrant{Grant: g})
	if errors.Is(err, fsm.ErrPrincipalUnknown) {
		err = a.nobodyCalled(g.Subject)
	}
	return struct{}{}, err
}

func (a *API) revokeGrant(r *http.Request, in client.Grant) (any, error) {
	_, err := a.propose(r.Context(), fsm.DeleteGrant{Grant: fsm.Grant{Subject: in.Subject, Right: in.Right, Pattern: in.Pattern}})
	return struct{}{}, err
}

func (a *API) explainAccess(r *http.Request, in client.ExplainRequest) (any, error) {
	right, err := auth.ParseRight(in.Right)
	if err != nil {
		return nil, invalid(err)
	}
	repo, err := fsm.ParseRepo(in.Repository)
	if err != nil {
		return nil, err
	}
	d, err := a.access.directory()
	if err != nil {
		return nil, err
	}
	c, whose := auth.Anybody(), "anonymous"
	if group, is := strings.CutPrefix(in.Subject, fsm.SubjectGroup); is {
		c, whose = auth.Caller{Kind: auth.KindUser, Groups: []string{group}}, in.Subject+" or of anonymous"
	} else if in.Subject != auth.Anonymous {
		var ok bool
		if c, ok, err = a.subject(r.Context(), d, in.Subject); err != nil {
			return nil, err
		} else if !ok {
			return client.Explanation{Reason: a.absent(d, in.Subject)}, nil
		}
		whose = in.Subject + ", of its groups or of anonymous"
	}
	g, ok := d.Decide(c, right, string(repo))
	switch {
	case !ok && d.MayNotLook(c, right, string(repo)):
		return client.Explanation{Reason: in.Subject + " may not pull it, and what may not be pulled may not be deleted"}, nil
	case !ok:
		return client.Explanation{Reason: "no grant of " + whose + " gives it"}, nil
	case g == auth.Grant{}:
		return client.Explanation{Allowed: true, Reason: "access control is off"}, nil
	}
	return client.Explanation{
		Allowed: true, Grant: &client.Grant{Subject: g.Subject, Right: g.Right.String(), Pattern: g.Pattern}, Reason: g.String(),
	}, nil
}

// absent says why a name stands for nobody now.
func (a *API) absent(d *auth.Directory, name string) string {
	p, known := d.Find(name)
	switch {
	case !known:
		return "there is no user or robot " + name
	case p.Disabled:
		return name + " is disabled"
	case !p.Expires.IsZero() && !a.access.cfg.Now().Before(p.Expires):
		return name + " has expired"
	}
	return "the provider " + p.Provider + " of " + name + " is gone"
}

// errNobody keeps a registry open where closing it would take from the first user to be its administrator.
var errNobody error = refuse(http.StatusConflict, codeConflict,
	"there is no user yet; `pier user add NAME` makes the first one, who is administrator, and turns access control on")

// setAccess opens the registry to everybody, or closes it again.
func (a *API) setAccess(value string) func(r *http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		if value == fsm.AccessOn {
			if err := a.catchUp(r.Context()); err != nil {
				return nil, err
			}
			access, err := a.state.Access()
			if err != nil {
				return nil, err
			}
			if !access.Decided {
				return nil, errNobody
			}
		}
		_, err := a.propose(r.Context(), fsm.SetSetting{Key: fsm.SettingAccess, Value: value})
		return struct{}{}, err
	}
}
