package api

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"pier/api/auth"
)

// origin is the scheme and host at which the client reached the registry.
func (x *access) origin(r *http.Request) string {
	if x.cfg.PublicURL != "" {
		return strings.TrimSuffix(x.cfg.PublicURL, "/")
	}
	scheme, host := "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if x.trusts(r.RemoteAddr) {
		if s := outermost(r, "X-Forwarded-Proto"); s == "http" || s == "https" {
			scheme = s
		}
		if h := outermost(r, "X-Forwarded-Host"); h != "" {
			host = h
		}
	}
	return scheme + "://" + host
}

// outermost is what the first of several proxies was asked: each adds to the list what it was asked itself.
func outermost(r *http.Request, header string) string {
	first, _, _ := strings.Cut(r.Header.Get(header), ",")
	return strings.TrimSpace(first)
}

// source is where a request comes from, without a port: the last address that no trusted proxy has.
func (x *access) source(r *http.Request) string {
	source := hostOf(r.RemoteAddr)
	if !x.trusts(r.RemoteAddr) {
		return source
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		ip, err := netip.ParseAddr(hostOf(strings.TrimSpace(hops[i]))) // some proxies say the port, too
		if err != nil {
			break
		}
		source = ip.String()
		if !x.trusts(source) {
			break
		}
	}
	return source
}

// errOtherSite is for browsers, in whose pages it is seen.
var errOtherSite error = refuse(http.StatusForbidden, codeDenied, "a page of another site asks this; an open registry answers browsers only at localhost or at an address")

// atHome refuses, of a registry that is open to its machine, what a page from elsewhere has a browser there do: from its own site,
// or by a name of its own that suddenly means this machine (DNS rebinding). Programs reach it by any name.
func (x *access) atHome(r *http.Request) error {
	if http.NewCrossOriginProtection().Check(r) != nil {
		return errOtherSite
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if local == nil || !local.IP.IsLoopback() || x.trusts(r.RemoteAddr) || !strings.HasPrefix(r.UserAgent(), "Mozilla/") {
		return nil
	}
	host := strings.ToLower(strings.Trim(hostOf(r.Host), "[]"))
	if _, err := netip.ParseAddr(host); err == nil || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return nil
	}
	return errOtherSite
}

// sourceKey is what is kept of a request's source.
func (x *access) sourceKey(r *http.Request) string { return auth.SourceKey(x.source(r)) }

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

func (x *access) trusts(address string) bool {
	ip, err := netip.ParseAddr(hostOf(address))
	if err != nil {
		return false
	}
	for _, p := range x.cfg.Proxies {
		if p.Contains(ip.Unmap()) {
			return true
		}
	}
	return false
}
