package fsm

import (
	"fmt"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// Principal is a user or a robot.
type Principal struct {
	_msgpack struct{} `msgpack:",as_array"`
	Name     string
	Robot    bool
	Password []byte // a user's bcrypt hash
	Secrets  []RobotSecret
	Groups   []string
	Disabled bool
	Expires  int64 // ms since 1970; 0: never
	// Generation is the index of the last change. It is what ends tokens from before.
	Generation uint64
	Provider   string // where a user's password is checked, instead of here; empty for local ones
}

// RobotSecret is one of a robot's secrets, by its hash.
type RobotSecret struct {
	_msgpack struct{} `msgpack:",as_array"`
	ID       string
	Hash     []byte
	Expires  int64 // ms since 1970; 0: never
}

// Subjects of grants that are no principal: everybody, and what the name of a group follows.
const (
	SubjectAnonymous = "anonymous"
	SubjectGroup     = "group:"
)

// Grant gives a subject a right on the repositories of a pattern.
type Grant struct {
	_msgpack struct{} `msgpack:",as_array"`
	Subject  string
	Right    string
	Pattern  string
}

// Access is everything that decides who may do what, at one version.
type Access struct {
	Version    uint64
	On         bool
	Decided    bool // somebody has turned it on or off: it isn't just that nobody has made a user yet
	Principals []Principal
	Grants     []Grant
	Providers  []Document
	Trusts     []Document
}

// The values of SettingAccess. Until it is set there was never a principal; the first one sets it.
const (
	SettingAccess = "access"
	AccessOn      = "on"
	AccessOpen    = "open"
)

// firstGrant is what the first principal gets, so that somebody can go on from there.
func firstGrant(name string) Grant { return Grant{Subject: name, Right: "admin", Pattern: "**"} }

// keyAccess is the index of the last change of Access.
var keyAccess = []byte("access")

func (c *change) touchAccess() { c.put(bucketMeta, keyAccess, number(c.index)) }

// checkPrincipal refuses a name that is none, or that of a subject which is no principal: who had it would have its grants.
func checkPrincipal(name string) error {
	if name == SubjectAnonymous || strings.HasPrefix(name, SubjectGroup) {
		return fmt.Errorf("%w: %.80q", ErrIDInvalid, name)
	}
	return checkID(name)
}

func (p PutPrincipal) apply(c *change) (Answer, error) {
	if err := checkPrincipal(p.Principal.Name); err != nil {
		return nil, err
	}
	var known Principal
	exists := c.record(bucketPrincipals, []byte(p.Principal.Name), &known)
	switch {
	case !exists && p.Was != 0:
		return nil, ErrPrincipalUnknown
	case exists && p.Was == 0:
		return nil, ErrPrincipalExists
	case exists && p.Was != known.Generation:
		return nil, ErrPrincipalChanged
	}
	next := p.Principal
	next.Generation = c.index
	c.putRecord(bucketPrincipals, []byte(next.Name), &next)
	first := !next.Robot && c.get(bucketSettings, []byte(SettingAccess)) == nil
	if first {
		c.putGrant(firstGrant(next.Name))
		c.put(bucketSettings, []byte(SettingAccess), []byte(AccessOn))
	}
	c.touchAccess()
	return PrincipalAnswer{Generation: next.Generation, First: first}, nil
}

func (a AddPrincipal) apply(c *change) (Answer, error) {
	for _, g := range a.Grants {
		if err := checkGrant(g); err != nil {
			return nil, err
		}
		if g.Subject != a.Principal.Name {
			return nil, ErrPrincipalUnknown
		}
	}
	answer, err := PutPrincipal{Principal: a.Principal}.apply(c)
	if err != nil {
		return nil, err
	}
	for _, g := range a.Grants {
		c.putGrant(g)
	}
	return answer, nil
}

func (d DeletePrincipal) apply(c *change) (Answer, error) {
	if !c.has(bucketPrincipals, []byte(d.Name)) {
		return nil, ErrPrincipalUnknown
	}
	c.del(bucketPrincipals, []byte(d.Name))
	p := prefix(d.Name)
	for _, rest := range keysBelow(c.tx, bucketGrants, p, 0) {
		c.del(bucketGrants, append(p[:len(p):len(p)], rest...))
	}
	c.touchAccess()
	return PrincipalAnswer{}, nil
}

func grantKey(g Grant) []byte { return key(g.Subject, g.Right, g.Pattern) }

func (c *change) putGrant(g Grant) { c.putRecord(bucketGrants, grantKey(g), &g) }

func checkGrant(g Grant) error {
	for _, part := range []string{g.Subject, g.Right, g.Pattern} {
		if err := checkID(part); err != nil {
			return err
		}
	}
	return nil
}

func (p PutGrant) apply(c *change) (Answer, error) {
	if err := checkGrant(p.Grant); err != nil {
		return nil, err
	}
	// Who is to come under a name must not find rights there that were meant for somebody else.
	if s := p.Grant.Subject; s != SubjectAnonymous && !strings.HasPrefix(s, SubjectGroup) && !c.has(bucketPrincipals, []byte(s)) {
		return nil, ErrPrincipalUnknown
	}
	c.putGrant(p.Grant)
	c.touchAccess()
	return GrantAnswer{}, nil
}

func (d DeleteGrant) apply(c *change) (Answer, error) {
	if !c.has(bucketGrants, grantKey(d.Grant)) {
		return nil, ErrGrantUnknown
	}
	c.del(bucketGrants, grantKey(d.Grant))
	c.touchAccess()
	return GrantAnswer{}, nil
}

// AccessVersion tells one answer of Access from another, without a look into the file. It moves before the change that it stands
// for can be read: while it is what an answer had, nobody has read anything that came after that answer.
func (s *State) AccessVersion() uint64 { return s.access.Load() }

// Access gives all principals and grants.
func (s *State) Access() (Access, error) {
	var out Access
	err := s.view(func(tx *bolt.Tx) error {
		out.Version = readNumber(tx, keyAccess)
		set := string(tx.Bucket(bucketSettings).Get([]byte(SettingAccess)))
		out.On, out.Decided = set == AccessOn, set != ""
		err := tx.Bucket(bucketPrincipals).ForEach(func(_, v []byte) error {
			var p Principal
			if err := decode(v, &p); err != nil {
				return err
			}
			out.Principals = append(out.Principals, p)
			return nil
		})
		if err != nil {
			return err
		}
		if out.Providers, err = documents(tx, KindProvider); err != nil {
			return err
		}
		if out.Trusts, err = documents(tx, KindTrust); err != nil {
			return err
		}
		return tx.Bucket(bucketGrants).ForEach(func(_, v []byte) error {
			var g Grant
			if err := decode(v, &g); err != nil {
				return err
			}
			out.Grants = append(out.Grants, g)
			return nil
		})
	})
	return out, err
}
