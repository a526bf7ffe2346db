//go:build slapd

package ldap

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"pier/api/auth"
	"pier/api/client"
	"pier/api/identity"
)

// provider is the server as a cluster would have it, with groups mapped as THEIRS=GROUP.
func (s *Server) provider(groups ...string) client.LDAP {
	l := client.LDAP{URLs: []string{s.URL()}, CA: s.CA, BindDN: Service, BindPassword: Secret, Base: People}
	for _, g := range groups {
		i := strings.LastIndexByte(g, '=')
		if l.Groups.Map == nil {
			l.Groups.Map = map[string]string{}
		}
		l.Groups.Map[g[:i]] = g[i+1:]
	}
	return l
}

// people are those of one provider.
func people(t *testing.T, l client.LDAP) *identity.People {
	t.Helper()
	p := client.Provider{Name: "corp", LDAP: &l}
	if err := identity.Check(p); err != nil {
		t.Fatal(err)
	}
	out := identity.NewPeople()
	out.Set([]identity.Provider{{Provider: p, Generation: 7}})
	return out
}

func TestLogin(t *testing.T) {
	s := Start(t)
	alice := s.Person("Alice", "alice's password", "mail=alice@example.org")
	bob := s.Person("bob", "bob's password", "employeeType=disabled")
	locked := s.Person("locked", "locked's password")
	s.Person("twin", "twin's password")
	s.Add("uid=twin,"+Groups, "account", "simpleSecurityObject", "userPassword=twin's password")
	for _, ou := range []string{"a", "b", "c"} {
		s.Add("ou="+ou+","+People, "organizationalUnit")
		s.Add("uid=triplet,ou="+ou+","+People, "account", "simpleSecurityObject", "userPassword=triplet's password")
	}
	s.Person("many", "many's password", "uid=more")
	s.Person("odd", "odd's password", "uid=odd one")
	s.Set(locked, "pwdAccountLockedTime", "000001010000Z")
	s.Group("devs", alice, bob)
	s.Group("Ops Team", alice)
	l := s.provider("CN=Devs,"+Groups+"=developers", "cn=ops team,"+Groups+"=ops", "cn=none,"+Groups+"=none")
	l.Base, l.Filter = Base, "(&(|(uid={user})(mail={user}))(!(employeeType=disabled)))"
	p := people(t, l)
	for _, x := range []struct {
		name, password string
		who            string
		groups         []string
	}{
		{"alice", "alice's password", "alice", []string{"developers", "ops"}},
		{"ALICE", "alice's password", "alice", []string{"developers", "ops"}},
		{"alice@example.org", "alice's password", "alice", []string{"developers", "ops"}},
		{"alice", "alice's passworD", "", nil}, {"alice", "", "", nil}, {"alice", "bob's password", "", nil},
		{"alice", strings.Repeat("x", 10_000), "", nil}, {"nobody", "alice's password", "", nil}, {"", "", "", nil},
		{"bob", "bob's password", "", nil}, {"locked", "locked's password", "", nil}, {"twin", "twin's password", "", nil}, {"triplet", "triplet's password", "", nil},
		{"many", "many's password", "", nil}, {"odd", "odd's password", "", nil},
		{"*", "alice's password", "", nil}, {"*)(uid=*", "alice's password", "", nil}, {"alice)(&", "alice's password", "", nil},
		{"alice)(|(uid=*", "alice's password", "", nil}, {`\2a`, "alice's password", "", nil}, {"al*", "alice's password", "", nil},
		{"alice\x00", "alice's password", "", nil}, {"Алиса", "alice's password", "", nil},
	} {
		c, err := p.Check(t.Context(), "corp", x.name, x.password)
		switch {
		case x.who == "" && (!errors.Is(err, auth.ErrWrongLogin) || c.Name != ""):
			t.Errorf("%.20q with %.20q: %+v, %v", x.name, x.password, c, err)
		case x.who != "" && (err != nil || c.Name != x.who || !slices.Equal(c.Groups, x.groups) || c.Provider != "corp" || c.ProviderGeneration != 7):
			t.Errorf("%.20q: %+v, %v; want %v", x.name, c, err, x.groups)
		}
	}
	// The server itself takes a name without a password for a success.
	s.Do(func(*ldap.Conn) error {
		conn, err := ldap.DialURL(s.Plain())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		return conn.UnauthenticatedBind(alice)
	})
}

// Who came in is still there until the directory says otherwise, with the groups of the day.
func TestAgain(t *testing.T) {
	s := Start(t)
	alice, carol := s.Person("alice", "alice's password"), s.Person("carol", "carol's password")
	devs := s.Group("devs", alice, carol)
	l := s.provider(devs + "=developers")
	l.Filter = "(&(uid={user})(!(employeeType=disabled)))"
	p := people(t, l)
	c, err := p.Check(t.Context(), "", "alice", "alice's password")
	if err != nil || !slices.Equal(c.Groups, []string{"developers"}) {
		t.Fatalf("%+v, %v", c, err)
	}
	again := func() (auth.Caller, error) { return p.Again(t.Context(), c) }
	if c, err := again(); err != nil || !slices.Equal(c.Groups, []string{"developers"}) {
		t.Errorf("%+v, %v", c, err)
	}
	s.Set(devs, "member", carol)
	if c, err := again(); err != nil || len(c.Groups) != 0 {
		t.Errorf("out of the group: %+v, %v", c, err)
	}
	s.Set(alice, "employeeType", "disabled")
	if c, err := again(); !errors.Is(err, auth.ErrWrongLogin) {
		t.Errorf("disabled there: %+v, %v", c, err)
	}
	s.Set(alice, "employeeType")
	if _, err := again(); err != nil {
		t.Errorf("enabled again: %v", err)
	}
	s.Remove(alice)
	if c, err := again(); !errors.Is(err, auth.ErrWrongLogin) {
		t.Errorf("gone: %+v, %v", c, err)
	}
}

// A name is whose of the first directory that has it.
func TestTwoDirectories(t *testing.T) {
	first, second := Start(t), Start(t)
	first.Person("alice", "alice's password")
	second.Person("alice", "another's password")
	second.Person("bob", "bob's password")
	a, b := first.provider(), second.provider()
	p := identity.NewPeople()
	p.Set([]identity.Provider{{Provider: client.Provider{Name: "a", LDAP: &a}}, {Provider: client.Provider{Name: "b", LDAP: &b}}})
	for _, x := range []struct{ provider, name, password, from string }{
		{"", "alice", "alice's password", "a"}, {"", "alice", "another's password", ""}, {"b", "alice", "another's password", "b"},
		{"", "bob", "bob's password", "b"}, {"a", "bob", "bob's password", ""}, {"", "carol", "x", ""},
	} {
		c, err := p.Check(t.Context(), x.provider, x.name, x.password)
		if c.Provider != x.from || (err == nil) != (x.from != "") || err != nil && !errors.Is(err, auth.ErrWrongLogin) {
			t.Errorf("%s at %q: %+v, %v", x.name, x.provider, c, err)
		}
	}
}

// The ways to find groups.
func TestGroups(t *testing.T) {
	s := Start(t)
	alice := s.Person("alice", "alice's password")
	s.Group("Devs", alice)
	s.Group("under_score", alice)
	s.Group("two words", alice)
	s.Add("ou=elsewhere,"+Base, "organizationalUnit")
	s.Add("cn=admins,ou=elsewhere,"+Base, "groupOfNames", "member="+alice)
	s.Add("cn=posix,"+Groups, "posixGroup", "gidNumber=1", "memberUid=alice")
	for name, x := range map[string]struct {
		groups client.LDAPGroups
		want   string
	}{
		"none":              {client.LDAPGroups{}, ""},
		"all, by attribute": {client.LDAPGroups{All: true, Base: Groups}, "devs under_score"},
		"with a prefix":     {client.LDAPGroups{All: true, Base: Groups, Prefix: "corp-"}, "corp-devs corp-under_score"},
		"searched":          {client.LDAPGroups{All: true, Base: Groups, Filter: "(member={dn})"}, "devs under_score"},
		"searched by name":  {client.LDAPGroups{All: true, Base: Groups, Filter: "(memberUid={user})"}, "posix"},
		"mapped elsewhere":  {client.LDAPGroups{Map: map[string]string{"cn=admins,ou=elsewhere," + Base: "admins"}}, "admins"},
		"below the base":    {client.LDAPGroups{Base: Groups, Map: map[string]string{"cn=admins,ou=elsewhere," + Base: "admins", "cn=devs," + Groups: "d"}}, "d"},
		"both":              {client.LDAPGroups{All: true, Base: Groups, Filter: "(member={dn})", Map: map[string]string{"cn=two words," + Groups: "two"}}, "devs two under_score"},
	} {
		l := s.provider()
		l.Groups = x.groups
		p := people(t, l)
		c, err := p.Check(t.Context(), "corp", "alice", "alice's password")
		if got := strings.Join(c.Groups, " "); err != nil || got != x.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, x.want)
		}
		if c, err := p.Again(t.Context(), c); err != nil || strings.Join(c.Groups, " ") != x.want {
			t.Errorf("%s, again: %q, %v", name, c.Groups, err)
		}
	}
}

// What of the settings keeps a login from being decided, and what doesn't.
func TestConnections(t *testing.T) {
	s, other := Start(t), Start(t)
	s.Person("alice", "alice's password")
	dead := "ldaps://" + freeAddress(t)
	for name, x := range map[string]struct {
		change func(l *client.LDAP)
		ok     bool
	}{
		"ldaps":                {func(*client.LDAP) {}, true},
		"StartTLS":             {func(l *client.LDAP) { l.URLs = []string{s.Plain()} }, true},
		"in the open":          {func(l *client.LDAP) { l.URLs, l.Insecure, l.CA = []string{s.Plain()}, true, "" }, true},
		"the second answers":   {func(l *client.LDAP) { l.URLs = []string{dead, s.URL()} }, true},
		"none answers":         {func(l *client.LDAP) { l.URLs = []string{dead} }, false},
		"another CA":           {func(l *client.LDAP) { l.CA = other.CA }, false},
		"another CA, StartTLS": {func(l *client.LDAP) { l.CA, l.URLs = other.CA, []string{s.Plain()} }, false},
		"the system's CAs":     {func(l *client.LDAP) { l.CA = "" }, false},
		"another name":         {func(l *client.LDAP) { l.URLs = []string{strings.Replace(s.URL(), "127.0.0.1", "127.0.0.2", 1)} }, false},
		"no TLS at that port":  {func(l *client.LDAP) { l.URLs = []string{strings.Replace(s.Plain(), "ldap:", "ldaps:", 1)} }, false},
		"bind password wrong":  {func(l *client.LDAP) { l.BindPassword = "wrong" }, false},
		"nobody may look":      {func(l *client.LDAP) { l.BindDN, l.BindPassword = "", "" }, false},
		"a base that isn't":    {func(l *client.LDAP) { l.Base = "ou=none," + Base }, false},
		"a group base that isn't": {func(l *client.LDAP) {
			l.Groups = client.LDAPGroups{All: true, Base: "ou=none," + Base, Filter: "(member={dn})"}
		}, false},
	} {
		l := s.provider()
		x.change(&l)
		p := people(t, l)
		_, err := p.Check(t.Context(), "corp", "alice", "alice's password")
		if x.ok && err != nil || !x.ok && !errors.Is(err, auth.ErrNoAnswer) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "alice's password") || strings.Contains(err.Error(), Secret)) {
			t.Errorf("%s: a secret is in %v", name, err)
		}
		report, ok := p.Try(t.Context(), client.ProviderTest{Name: "corp", User: "alice", Password: "alice's password"})
		if !ok || report.OK != x.ok || len(report.Steps) == 0 {
			t.Errorf("%s: %+v", name, report)
		}
	}
}

// Who gives up waiting is no sign of a fault of the server.
func TestWhoGivesUp(t *testing.T) {
	s := Start(t)
	s.Person("alice", "alice's password")
	proxy := s.Proxy()
	l := s.provider()
	l.URLs = []string{proxy.URL}
	p := people(t, l)
	proxy.Stick(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := p.Check(ctx, "corp", "alice", "alice's password")
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	proxy.Stick(false)
	if _, err := p.Check(t.Context(), "corp", "alice", "alice's password"); err != nil {
		t.Errorf("after it: %v", err)
	}
}
