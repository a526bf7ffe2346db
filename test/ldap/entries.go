package ldap

import (
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// Add makes an entry: classes, and attributes as NAME=VALUE.
func (s *Server) Add(dn string, parts ...string) {
	s.t.Helper()
	r := ldap.NewAddRequest(dn, nil)
	values := map[string][]string{}
	for _, part := range parts {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			name, value = "objectClass", part
		}
		values[name] = append(values[name], value)
	}
	for name, all := range values {
		r.Attribute(name, all)
	}
	s.Do(func(conn *ldap.Conn) error { return conn.Add(r) })
}

// Person makes somebody with a password and more attributes as NAME=VALUE, and gives the DN.
func (s *Server) Person(uid, password string, more ...string) string {
	s.t.Helper()
	dn := "uid=" + uid + "," + People
	s.Add(dn, append([]string{"inetOrgPerson", "cn=" + uid, "sn=" + uid, "userPassword=" + password}, more...)...)
	return dn
}

// Group makes a group of people by their DNs, and gives its own.
func (s *Server) Group(cn string, members ...string) string {
	s.t.Helper()
	dn := "cn=" + cn + "," + Groups
	parts := []string{"groupOfNames"}
	for _, m := range members {
		parts = append(parts, "member="+m)
	}
	s.Add(dn, parts...)
	return dn
}

// Set replaces the values of an attribute; none removes it.
func (s *Server) Set(dn, name string, values ...string) {
	s.t.Helper()
	r := ldap.NewModifyRequest(dn, nil)
	r.Replace(name, values)
	s.Do(func(conn *ldap.Conn) error { return conn.Modify(r) })
}

// Remove deletes an entry.
func (s *Server) Remove(dn string) {
	s.t.Helper()
	s.Do(func(conn *ldap.Conn) error { return conn.Del(ldap.NewDelRequest(dn, nil)) })
}
