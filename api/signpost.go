package api

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Signpost is what a port says that speaks only HTTP, where the registry speaks HTTPS: a browser is sent there, a client of
// the registry gets an error that names the place, and nothing is ever asked for that shouldn't travel in the open.
type Signpost struct {
	// PublicURL is where clients reach the registry; if empty, at the host they ask for and at Port.
	PublicURL, Port string
	// Covers tells whether the registry's certificate is good for a host. Nobody is sent to another one.
	Covers func(host string) bool
	// Challenge answers ACME servers below challengePath; nil where nobody expects any.
	Challenge http.Handler
}

const challengePath = "/.well-known/acme-challenge/"

// ServeHTTP answers one request. It reads no body.
func (s Signpost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	place, known := s.place(r.Host)
	switch path := r.URL.Path; {
	case reads && path == "/healthz":
		_ = writeJSON(w, "application/json", map[string]string{"status": "ok"})
	case reads && s.Challenge != nil && strings.HasPrefix(path, challengePath):
		s.Challenge.ServeHTTP(w, r)
	case !known:
		s.refuse(w, "this port speaks HTTP only to say that the registry speaks HTTPS, and the registry has no certificate for the name that you asked for; use its own name, with https://")
	case !reads || isRegistry(path):
		s.refuse(w, "this port speaks HTTP only to say that the registry speaks HTTPS; use "+place)
	default:
		target := url.URL{Path: "/" + strings.TrimPrefix(path, "/"), RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
		w.Header().Set("Cache-Control", "no-store") // the port may be another one tomorrow
		w.Header().Set("Location", place+target.RequestURI())
		w.WriteHeader(http.StatusPermanentRedirect)
	}
}

// isRegistry tells what programs ask for from what people do.
func isRegistry(path string) bool {
	for _, of := range []string{prefix, tokenPath, "/api"} {
		if path == of || strings.HasPrefix(path, of+"/") {
			return true
		}
	}
	return false
}

// refuse answers what must not be sent on: a client that follows would do so with its next password too. Of the statuses that
// no client takes for a question after credentials, this one says most to people: docker login, podman and skopeo show
// nothing else. The connection ends, so that a body that follows isn't read.
func (s Signpost) refuse(w http.ResponseWriter, message string) {
	w.Header().Set("Upgrade", "TLS/1.2, HTTP/1.1")
	w.Header().Set("Connection", "close")
	refuse(http.StatusUpgradeRequired, codeUnsupported, "%s", message).write(w)
}

// place is where HTTPS is for who asked for the host; false for hosts that the registry has nothing to do with.
func (s Signpost) place(asked string) (string, bool) {
	if u, err := url.Parse(s.PublicURL); err == nil && u.Scheme == "https" {
		return "https://" + u.Host, true
	}
	host := asked
	if bare, _, err := net.SplitHostPort(asked); err == nil {
		host = bare
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	ip, err := netip.ParseAddr(host)
	if err == nil {
		host = ip.WithZone("").String()
	}
	if err != nil && !isHostname(host) || ip.Zone() != "" || !s.Covers(host) {
		return "", false
	}
	if ip.Is6() {
		host = "[" + host + "]"
	}
	if s.Port == "443" {
		return "https://" + host, true
	}
	return "https://" + host + ":" + s.Port, true
}

func isHostname(host string) bool {
	return host != "" && len(host) <= 253 && strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// PlainRefusal is the whole answer to a client that speaks HTTP where HTTPS is spoken.
func PlainRefusal() []byte {
	body := `{"errors":[{"code":"` + codeUnsupported + `","message":"this port speaks HTTPS, and the request came by HTTP; use https://"}]}` + "\n"
	return []byte("HTTP/1.0 426 Upgrade Required\r\nUpgrade: TLS/1.2, HTTP/1.1\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n" + body)
}
