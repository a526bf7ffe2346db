package node

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// AccessConfig is how clients come in and how they are told apart.
type AccessConfig struct {
	TLS               string // auto, or nothing
	TLSCert, TLSKey   string
	PublicNames       []string
	PublicURL         string
	TrustedProxies    []string
	InsecureHTTP      bool
	AdminUser         string
	AdminPasswordFile string
}

func accessSettings() []Setting {
	list := func(name, help string, field func(*Config) *[]string) Setting {
		return Setting{
			Name: name, Help: help, List: true,
			Set:   func(c *Config, v string) error { *field(c) = splitList(v); return nil },
			Value: func(c Config) string { return strings.Join(*field(&c), ",") },
		}
	}
	return []Setting{
		text("tls", "auto: HTTPS with a certificate of the cluster's own authority (pier ca prints it); empty: HTTP, or tls-cert", func(c *Config) *string { return &c.Access.TLS }),
		text("tls-cert", "HTTPS with this certificate, PEM; read again when it changes", func(c *Config) *string { return &c.Access.TLSCert }),
		text("tls-key", "its key", func(c *Config) *string { return &c.Access.TLSKey }),
		list("public-name", "names and addresses that clients use, for the certificate of tls auto", func(c *Config) *[]string { return &c.Access.PublicNames }),
		text("public-url", "where clients reach the registry, when it isn't what they ask for", func(c *Config) *string { return &c.Access.PublicURL }),
		list("trusted-proxies", "networks whose X-Forwarded-* headers are believed, such as 10.0.0.0/8", func(c *Config) *[]string { return &c.Access.TrustedProxies }),
		truth("insecure-http", "start with access control and without TLS even where others can listen in on passwords", func(c *Config) *bool { return &c.Access.InsecureHTTP }),
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
	check(a.TLS == "" || a.TLS == "auto", "tls", "%q: want auto, or nothing", a.TLS)
	check(a.TLS == "" || a.TLSCert == "", "tls", "either auto or tls-cert")
	check((a.TLSCert == "") == (a.TLSKey == ""), "tls-key", "tls-cert and tls-key belong together")
	for _, p := range a.TrustedProxies {
		_, err := netip.ParsePrefix(p)
		check(err == nil, "trusted-proxies", "%q is no network such as 10.0.0.0/8", p)
	}
	u, err := url.Parse(a.PublicURL)
	check(a.PublicURL == "" || err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", "public-url", "%q is no URL such as https://registry.lan", a.PublicURL)
	check((a.AdminUser == "") == (a.AdminPasswordFile == ""), "admin-password-file", "admin-user and admin-password-file belong together")
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
