package identity

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"pier/api/auth"
	"pier/api/client"
)

const defaultGroups = "memberOf"

// groupMap says which groups of a directory count, and what they are here.
type groupMap struct {
	cfg  client.LDAPGroups
	base *ldap.DN // nil: anywhere
	by   []mappedGroup
}

type mappedGroup struct {
	dn   *ldap.DN
	here string
}

func newGroupMap(cfg client.LDAPGroups) groupMap {
	cfg.Attribute = orElse(cfg.Attribute, defaultGroups)
	m := groupMap{cfg: cfg}
	if cfg.Base != "" {
		m.base, _ = ldap.ParseDN(cfg.Base) // checked when it was set
	}
	for there, here := range cfg.Map {
		if dn, err := ldap.ParseDN(there); err == nil {
			m.by = append(m.by, mappedGroup{dn, here})
		}
	}
	return m
}

// any tells whether groups count at all.
func (m groupMap) any() bool { return m.cfg.All || len(m.by) > 0 }

// search tells whether groups are searched, and not told by somebody's own entry.
func (m groupMap) search() bool { return m.any() && m.cfg.Filter != "" }

func (m groupMap) attributes() []string {
	if !m.any() || m.search() {
		return nil
	}
	return []string{m.cfg.Attribute}
}

// of gives the DNs of somebody's groups.
func (m groupMap) of(conn *ldap.Conn, entry *ldap.Entry, name string) ([]string, error) {
	if !m.search() {
		if !m.any() {
			return nil, nil
		}
		return entry.GetEqualFoldAttributeValues(m.cfg.Attribute), nil
	}
	filter := strings.NewReplacer("{dn}", ldap.EscapeFilter(entry.DN), "{user}", ldap.EscapeFilter(name)).Replace(m.cfg.Filter)
	found, err := conn.Search(&ldap.SearchRequest{
		BaseDN: m.cfg.Base, Scope: ldap.ScopeWholeSubtree, Filter: filter, SizeLimit: maxLDAPGroups, EnforceSizeLimit: true,
		TimeLimit: int(serverTime.Seconds()), Attributes: []string{"1.1"}, // no attribute at all
	})
	if err != nil {
		return nil, fmt.Errorf("search the groups below %s: %w", m.cfg.Base, err)
	}
	dns := make([]string, 0, len(found.Entries))
	for _, e := range found.Entries {
		dns = append(dns, e.DN)
	}
	return dns, nil
}

// mapped gives the groups here, each once and in order.
func (m groupMap) mapped(theirs []string, note func(format string, args ...any)) []string {
	var out []string
	for _, text := range theirs {
		here := m.here(text)
		switch {
		case here == nil:
			note("group %s: not mapped, so it counts for nothing", text)
		default:
			note("group %s: %s", text, strings.Join(here, ", "))
		}
		out = append(out, here...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (m groupMap) here(text string) []string {
	dn, err := ldap.ParseDN(text)
	if err != nil || m.base != nil && !m.base.AncestorOfFold(dn) {
		return nil
	}
	var out []string
	for _, g := range m.by {
		if g.dn.EqualFold(dn) {
			out = append(out, g.here)
		}
	}
	if m.cfg.All && len(dn.RDNs) > 0 && len(dn.RDNs[0].Attributes) == 1 {
		// Checked before it is in lower case: some letters of other alphabets are plain ones there.
		if value := dn.RDNs[0].Attributes[0].Value; auth.CheckName(m.cfg.Prefix+value) == nil {
			out = append(out, m.cfg.Prefix+strings.ToLower(value))
		}
	}
	return out
}
