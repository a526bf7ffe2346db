package node

import (
	"slices"
	"testing"
)

// Settings of access that can't be meant are refused, each under its name; and what can be is not.
func TestAccessSettings(t *testing.T) {
	acme := AccessConfig{TLS: tlsACME, PublicNames: []string{"registry.example"}, ACMEDirectory: defaultDirectory, ACMEEmail: "ops@example.org", HTTPListen: ":80"}
	with := func(a AccessConfig, change func(a *AccessConfig)) AccessConfig {
		change(&a)
		return a
	}
	for name, x := range map[string]struct {
		access AccessConfig
		bad    string // the setting; none is fine
	}{
		"nothing":               {AccessConfig{}, ""},
		"auto":                  {AccessConfig{TLS: "auto", TLSClientCA: "ca", HTTPListen: "127.0.0.1:80"}, ""},
		"files":                 {AccessConfig{TLSCert: "cert", TLSKey: "key", TLSClientCA: "ca", HTTPListen: ":80"}, ""},
		"acme":                  {acme, ""},
		"behind a proxy":        {AccessConfig{PublicURL: "https://registry.lan", TrustedProxies: []string{"10.0.0.0/8", "2001:db8::/32"}}, ""},
		"by HTTP":               {AccessConfig{PublicURL: "http://registry.lan:5000/"}, ""},
		"a first user":          {AccessConfig{AdminUser: "root", AdminPasswordFile: "file"}, ""},
		"another TLS":           {AccessConfig{TLS: "on"}, "tls"},
		"two certificates":      {AccessConfig{TLS: "auto", TLSCert: "cert", TLSKey: "key"}, "tls"},
		"no key":                {AccessConfig{TLSCert: "cert"}, "tls-key"},
		"no certificate":        {AccessConfig{TLSKey: "key"}, "tls-key"},
		"client CAs alone":      {AccessConfig{TLSClientCA: "ca"}, "tls-client-ca"},
		"a proxy's address":     {AccessConfig{TrustedProxies: []string{"10.0.0.1"}}, "trusted-proxies"},
		"no URL":                {AccessConfig{PublicURL: "registry.lan"}, "public-url"},
		"a broken URL":          {AccessConfig{PublicURL: "https://[registry"}, "public-url"},
		"another scheme":        {AccessConfig{PublicURL: "ftp://registry.lan"}, "public-url"},
		"no host":               {AccessConfig{PublicURL: "https:///v2"}, "public-url"},
		"HTTP without HTTPS":    {AccessConfig{HTTPListen: ":80"}, "http-listen"},
		"HTTP nowhere":          {AccessConfig{TLS: "auto", HTTPListen: "80"}, "http-listen"},
		"no password":           {AccessConfig{AdminUser: "root"}, "admin-password-file"},
		"nobody's password":     {AccessConfig{AdminPasswordFile: "file"}, "admin-password-file"},
		"acme, without a name":  {with(acme, func(a *AccessConfig) { a.PublicNames = nil }), "public-name"},
		"acme, for an address":  {with(acme, func(a *AccessConfig) { a.PublicNames = []string{"10.0.0.1"} }), "public-name"},
		"acme, by HTTP":         {with(acme, func(a *AccessConfig) { a.ACMEDirectory = "http://acme.example/directory" }), "acme-directory"},
		"acme, nowhere":         {with(acme, func(a *AccessConfig) { a.ACMEDirectory = "https:///directory" }), "acme-directory"},
		"acme, a broken URL":    {with(acme, func(a *AccessConfig) { a.ACMEDirectory = "https://[acme" }), "acme-directory"},
		"acme, with a password": {with(acme, func(a *AccessConfig) { a.ACMEDirectory = "https://me:secret@acme.example/directory" }), "acme-directory"},
		"acme, without e-mail":  {with(acme, func(a *AccessConfig) { a.ACMEEmail = "" }), ""},
		"acme, no address":      {with(acme, func(a *AccessConfig) { a.ACMEEmail = "ops" }), "acme-email"},
		"acme, a whole name":    {with(acme, func(a *AccessConfig) { a.ACMEEmail = "Ops <ops@example.org>" }), "acme-email"},
	} {
		var got []string
		for _, p := range x.access.problems() {
			got = append(got, p.setting)
		}
		want := []string{x.bad}
		if x.bad == "" {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: problems of %q, want %q", name, got, want)
		}
	}
	if got := (AccessConfig{TrustedProxies: []string{"10.0.0.0/8", "bad", "192.0.2.0/24"}}).proxies(); len(got) != 2 || got[1].String() != "192.0.2.0/24" {
		t.Errorf("proxies %v", got)
	}
	if (AccessConfig{}).secure() || !(AccessConfig{TLS: "auto"}).secure() || !(AccessConfig{TLSCert: "cert"}).secure() {
		t.Error("HTTPS is another")
	}
}
