package node

import (
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"strings"

	"pier/api/acme"
)

const (
	// tlsACME is the value of the setting tls for certificates of an ACME server.
	tlsACME          = "acme"
	defaultDirectory = "https://acme-v02.api.letsencrypt.org/directory"
)

// AccessConfig is how clients come in and how they are told apart.
type AccessConfig struct {
	TLS               string // auto, acme, or nothing
	TLSCert, TLSKey   string
	ACMEDirectory     string
	ACMEEmail         string
	ACMECAFile        string
	TLSClientCA       string
	HTTPListen        string
	PublicNames       []string
	PublicURL         string
	TrustedProxies    []string
	InsecureHTTP      bool
	AdminUser         string
	AdminPasswordFile string
	MetricsOpen       bool
}

func accessSettings() []Setting {
	list := func(name, help string, field func(*Config) *[]string) Setting {
		return Setting{
			Name: name, Kind: "strings", Help: help, List: true,
			Set:   func(c *Config, v string) error { *field(c) = splitList(v); return nil },
			Value: func(c Config) string { return strings.Join(*field(&c), ",") },
		}
	}
	return []Setting{
		text("tls", "auto: HTTPS with a certificate of the cluster's own authority (pier ca prints it); acme: of an ACME server such as Let's Encrypt; empty: HTTP, or tls-cert", func(c *Config) *string { return &c.Access.TLS }),
		text("tls-cert", "HTTPS with this certificate, PEM; read again when it changes", func(c *Config) *string { return &c.Access.TLSCert }),
		text("tls-key", "its key", func(c *Config) *string { return &c.Access.TLSKey }),
		text("tls-client-ca", "CA certificates, PEM: a client that shows a certificate of theirs is the user or robot that its common name says; read again when it changes", func(c *Config) *string { return &c.Access.TLSClientCA }),
		list("public-name", "names and addresses that clients use, for the certificate of tls auto; with tls acme, the names to get certificates for", func(c *Config) *[]string { return &c.Access.PublicNames }),
		text("acme-directory", "directory of the ACME server; by tls acme you agree to its terms of service", func(c *Config) *string { return &c.Access.ACMEDirectory }),
		text("acme-email", "where the ACME server may write to about the certificates", func(c *Config) *string { return &c.Access.ACMEEmail }),
		text("acme-ca-file", "certificates to trust about the ACME server, PEM, beside the system's", func(c *Config) *string { return &c.Access.ACMECAFile }),
		text("http-listen", "address where HTTP is spoken, to send browsers to HTTPS, refuse registry clients and answer ACME servers; empty: none", func(c *Config) *string { return &c.Access.HTTPListen }),
		text("public-url", "where clients reach the registry, when it isn't what they ask for", func(c *Config) *string { return &c.Access.PublicURL }),
		list("trusted-proxies", "networks whose X-Forwarded-* headers are believed, such as 10.0.0.0/8", func(c *Config) *[]string { return &c.Access.TrustedProxies }),
		truth("insecure-http", "start with access control and without TLS even where others can listen in on passwords", func(c *Config) *bool { return &c.Access.InsecureHTTP }),
		truth("metrics-open", "show /metrics to everybody, also while access control is on", func(c *Config) *bool { return &c.Access.MetricsOpen }),
		text("admin-user", "make this user, once, as the first one and so as administrator", func(c *Config) *string { return &c.Access.AdminUser }),
		text("admin-password-file", "file with the password of admin-user", func(c *Config) *string { return &c.Access.AdminPasswordFile }),
	}
}

func (a AccessConfig) problems() []problem {
	var out []problem
	check := func(fine bool, setting, format string, args ...any) {
		if !fine {
			out = append(out, problem{setting, fmt.Errorf(format, args...)})
		}
	}
	check(a.TLS == "" || a.TLS == "auto" || a.TLS == tlsACME, "tls", "%q: want auto, acme, or nothing", a.TLS)
	check(a.TLS == "" || a.TLSCert == "", "tls", "either %s or tls-cert", a.TLS)
	check((a.TLSCert == "") == (a.TLSKey == ""), "tls-key", "tls-cert and tls-key belong together")
	check(a.TLSClientCA == "" || a.TLS != "" || a.TLSCert != "", "tls-client-ca", "clients show certificates over TLS only: it needs tls auto, or tls-cert")
	for _, p := range a.TrustedProxies {
		_, err := netip.ParsePrefix(p)
		check(err == nil, "trusted-proxies", "%q is no network such as 10.0.0.0/8", p)
	}
	u, err := url.Parse(a.PublicURL)
	check(a.PublicURL == "" || err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", "public-url", "%q is no URL such as https://registry.lan", a.PublicURL)
	check(a.HTTPListen == "" || isAddress(a.HTTPListen, true), "http-listen", "%q is no host:port", a.HTTPListen)
	check(a.HTTPListen == "" || a.secure(), "http-listen", "it only says where HTTPS is, and there is none: it needs tls or tls-cert")
	if a.TLS == tlsACME {
		out = append(out, a.acmeProblems()...)
	}
	check((a.AdminUser == "") == (a.AdminPasswordFile == ""), "admin-password-file", "admin-user and admin-password-file belong together")
	return out
}

// secure tells whether clients come by HTTPS.
func (a AccessConfig) secure() bool { return a.TLS != "" || a.TLSCert != "" }

func (a AccessConfig) acmeProblems() []problem {
	var out []problem
	if len(a.PublicNames) == 0 {
		out = append(out, problem{"public-name", errors.New("tls acme needs at least one name to get a certificate for")})
	}
	for _, name := range a.PublicNames {
		if !acme.IsName(name) {
			out = append(out, problem{"public-name", fmt.Errorf("%q: an ACME server gives certificates for plain host names in lower case (no addresses, no *; other letters as xn--…)", name)})
		}
	}
	u, err := url.Parse(a.ACMEDirectory)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		out = append(out, problem{"acme-directory", fmt.Errorf("%q is no URL such as %s", a.ACMEDirectory, defaultDirectory)})
	}
	if a.ACMEEmail != "" {
		if at, err := mail.ParseAddress(a.ACMEEmail); err != nil || at.Address != a.ACMEEmail {
			out = append(out, problem{"acme-email", fmt.Errorf("%q is no address such as ops@example.org", a.ACMEEmail)})
		}
	}
	return out
}

func (a AccessConfig) proxies() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range a.TrustedProxies {
		if p, err := netip.ParsePrefix(s); err == nil { // validated with the settings
			out = append(out, p)
		}
	}
	return out
}
