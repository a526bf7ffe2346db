package api

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Whatever comes in a header stays within its quotes.
func TestQuote(t *testing.T) {
	for s, want := range map[string]string{"": `""`, "a b~!": `"a b~!"`, "a\"b": `"ab"`, `a\b`: `"ab"`, "a\r\nb\x00\x1f\x7f": `"ab"`, "über": `"ber"`} {
		if got := quote(s); got != want {
			t.Errorf("%q is quoted as %s", s, got)
		}
	}
}

// Only proxies are believed when they say where the client is, and what it came to.
func TestOrigin(t *testing.T) {
	proxied := &access{cfg: Access{Proxies: mustPrefixes(t, "10.0.0.0/8", "2001:db8::/32")}}
	public := &access{cfg: Access{PublicURL: "https://registry.example/"}}
	for _, x := range []struct {
		access         *access
		remote         string
		tls            bool
		headers        [3]string // proto, host, for
		origin, source string
	}{
		{proxied, "192.0.2.1:5", false, [3]string{}, "http://here:5000", "192.0.2.1"}, {proxied, "192.0.2.1:5", true, [3]string{}, "https://here:5000", "192.0.2.1"},
		{proxied, "192.0.2.1:5", false, [3]string{"https", "evil", "192.0.2.7"}, "http://here:5000", "192.0.2.1"},
		{proxied, "10.0.0.1:5", false, [3]string{"https", "there", "192.0.2.7"}, "https://there", "192.0.2.7"},
		{proxied, "10.0.0.1:5", true, [3]string{"http", "", ""}, "http://here:5000", "10.0.0.1"}, {proxied, "10.0.0.1:5", true, [3]string{"gopher", "", "x"}, "https://here:5000", "10.0.0.1"},
		{proxied, "[2001:db8::1]:5", false, [3]string{"", "", "192.0.2.66, junk, 10.0.0.2"}, "http://here:5000", "10.0.0.2"},
		{proxied, "[::ffff:10.0.0.1]:5", false, [3]string{"", "", "192.0.2.66, 192.0.2.7, 10.0.0.2"}, "http://here:5000", "192.0.2.7"},
		{proxied, "@", false, [3]string{"https", "evil", "192.0.2.7"}, "http://here:5000", "@"}, {&access{}, "10.0.0.1:5", false, [3]string{"https", "evil", "192.0.2.7"}, "http://here:5000", "10.0.0.1"},
		{public, "10.0.0.1:5", false, [3]string{"http", "evil", ""}, "https://registry.example", "10.0.0.1"},
	} {
		r := httptest.NewRequest("GET", "http://here:5000/v2/", nil)
		r.RemoteAddr, r.TLS = x.remote, nil
		if x.tls {
			r.TLS = &tls.ConnectionState{}
		}
		for i, name := range []string{"X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-For"} {
			if x.headers[i] != "" {
				r.Header.Set(name, x.headers[i])
			}
		}
		if origin, source := x.access.origin(r), x.access.source(r); origin != x.origin || source != x.source {
			t.Errorf("%s, TLS %v, %q: %s from %s, want %s from %s", x.remote, x.tls, x.headers, origin, source, x.origin, x.source)
		}
	}
}

func TestTrustedProxy(t *testing.T) {
	f := withAccess(t, 1, func(c *Config) { c.Access.Proxies = mustPrefixes(t, "127.0.0.0/8", "10.0.0.0/8") })
	f.user("root")
	got := f.do("GET", "/v2/", nil, "X-Forwarded-Host: registry.example", "X-Forwarded-Proto: https")
	f.wantHeader(got, "WWW-Authenticate: "+`Bearer realm="https://registry.example/token",service="pier"`)
	// Where proxies stand behind each other, each adds the name by which it was asked: the client's is the first.
	got = f.do("GET", "/v2/", nil, "X-Forwarded-Host: registry.example, inner.example:5000", "X-Forwarded-Proto: https,http")
	f.wantHeader(got, "WWW-Authenticate: "+`Bearer realm="https://registry.example/token",service="pier"`)
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://x", nil)
	f.must(r, err)
	r.RemoteAddr = "127.0.0.1:5"
	for chain, want := range map[string]string{
		"192.0.2.66, 192.0.2.7, 10.1.2.3": "192.0.2.7", "192.0.2.66:1, 192.0.2.7:5678, 10.1.2.3:80": "192.0.2.7",
		"2001:db8::66,2001:db8::7": "2001:db8::7", "[2001:db8::7]:5678, 10.1.2.3": "2001:db8::7", "192.0.2.66, nonsense": "127.0.0.1",
	} {
		r.Header.Set("X-Forwarded-For", chain)
		if got := f.nodes[0].api.access.source(r); got != want {
			t.Errorf("the source of %s is %s, want %s", chain, got, want)
		}
	}
	r.RemoteAddr = "192.0.2.9:5"
	if got := f.nodes[0].api.access.source(r); got != "192.0.2.9" {
		t.Errorf("the source is %s: a stranger is believed", got)
	}
}
