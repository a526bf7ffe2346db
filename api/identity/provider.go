package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"pier/api/auth"
	"pier/api/client"
)

// Provider is one that the state has, at a generation of its settings.
type Provider struct {
	client.Provider
	Generation uint64
}

const (
	maxURLs   = 8
	maxMapped = 1000
)

// Decode reads a provider as the state keeps it. One with a field that a later version has added is refused: it may be what
// keeps somebody out.
func Decode(name string, body []byte, generation uint64) (Provider, error) {
	p := Provider{Generation: generation}
	strict := json.NewDecoder(bytes.NewReader(body))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&p.Provider); err != nil {
		return p, fmt.Errorf("provider %s: %w", name, err)
	}
	p.Name = name
	return p, Check(p.Provider)
}

// Check reports every fault of a provider's settings at once.
func Check(p client.Provider) error {
	faults := []error{auth.CheckName(p.Name)}
	switch p.Kind() {
	case "ldap":
		faults = append(faults, checkLDAP(*p.LDAP)...)
	case "oidc":
		faults = append(faults, checkOIDC(*p.OIDC)...)
	default:
		faults = append(faults, errors.New("a provider is either ldap or oidc"))
	}
	return errors.Join(faults...)
}

func checkLDAP(l client.LDAP) []error {
	var faults []error
	if len(l.URLs) == 0 || len(l.URLs) > maxURLs {
		faults = append(faults, fmt.Errorf("1 to %d URLs are needed, such as ldaps://ldap.example.org", maxURLs))
	}
	for _, s := range l.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "ldaps" && u.Scheme != "ldap" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			faults = append(faults, fmt.Errorf("URL %.200q: want ldaps://HOST, ldaps://HOST:PORT, or ldap:// for StartTLS", s))
		}
	}
	faults = append(faults, checkCA(l.CA), checkDN("the base of users", l.Base, true), checkDN("the bind DN", l.BindDN, false), checkDN("the base of groups", l.Groups.Base, false))
	if (l.BindDN == "") != (l.BindPassword == "") {
		faults = append(faults, errors.New("a bind DN and its password belong together; a bind without a password proves nothing"))
	}
	// Who came in is looked up again by the name that the entry gives.
	faults = append(faults, checkFilter("the filter of users", orElse(l.Filter, defaultFilter), "("+orElse(l.NameAttribute, defaultName)+"={user})"))
	if l.Groups.Filter != "" {
		faults = append(faults, checkFilter("the filter of groups", l.Groups.Filter, "{dn}", "{user}"))
		if l.Groups.Base == "" {
			faults = append(faults, errors.New("a filter of groups needs the base where they are"))
		}
	}
	if l.Groups.All && l.Groups.Base == "" {
		faults = append(faults, errors.New("to take all groups, say the base that they are below: else a group of that name anywhere would do"))
	}
	for dn := range l.Groups.Map {
		faults = append(faults, checkDN("a group that is mapped", dn, true))
	}
	return append(faults, checkMapping(l.Groups.Map, l.Groups.Prefix)...)
}

func checkOIDC(o client.OIDC) []error {
	faults := []error{Issuer{URL: o.Issuer, CA: o.CA, Insecure: o.Insecure}.Validate()}
	if o.ClientID == "" {
		faults = append(faults, errors.New("a client ID is needed: what the provider knows Pier as"))
	}
	return append(faults, checkMapping(o.Map, o.Prefix)...)
}

// checkMapping wants names of groups, as grants have them.
func checkMapping(mapped map[string]string, prefix string) []error {
	var faults []error
	if len(mapped) > maxMapped {
		faults = append(faults, fmt.Errorf("%d groups are mapped; %d are the limit", len(mapped), maxMapped))
	}
	for _, to := range mapped {
		faults = append(faults, auth.CheckName(to))
	}
	if prefix != "" {
		faults = append(faults, auth.CheckName(prefix))
	}
	return faults
}

func checkCA(pem string) error {
	if pem != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(pem)) {
		return errors.New("the CA has no certificate in it, PEM")
	}
	return nil
}

func checkDN(what, dn string, needed bool) error {
	if dn == "" && !needed {
		return nil
	}
	if parsed, err := ldap.ParseDN(dn); err != nil || len(parsed.RDNs) == 0 {
		return fmt.Errorf("%s %.200q: want a DN such as ou=people,dc=example,dc=org", what, dn)
	}
	return nil
}

func checkFilter(what, filter string, marks ...string) error {
	known := strings.NewReplacer("{user}", "x", "{dn}", "x").Replace(filter)
	if _, err := ldap.CompileFilter(known); err != nil {
		return fmt.Errorf("%s %.200q: want a filter such as (uid={user})", what, filter)
	}
	for _, m := range marks {
		if strings.Contains(strings.ToLower(filter), strings.ToLower(m)) {
			return nil
		}
	}
	return fmt.Errorf("%s %.200q: %s must be in it", what, filter, strings.Join(marks, " or "))
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
