package api

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func signpost(publicURL, port string) Signpost {
	return Signpost{
		PublicURL: publicURL, Port: port,
		Covers: func(host string) bool {
			return strings.HasSuffix(host, ".lan") || host == "192.0.2.7" || host == "2001:db8::1"
		},
		Challenge: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "answer to "+r.Host)
		}),
	}
}

// Browsers are sent to the same page by HTTPS, and nowhere else, whatever the request says of its host.
func TestSignpostSendsBrowsersHome(t *testing.T) {
	for _, c := range []struct{ public, port, target, host, want string }{
		{"", "5000", "/", "registry.lan", "https://registry.lan:5000/"},
		{"", "443", "/a/b?n=1&x=%2f", "Registry.LAN.:80", "https://registry.lan/a/b?n=1&x=%2f"},
		{"", "5000", "/a%2fb", "192.0.2.7:8080", "https://192.0.2.7:5000/a%2fb"},
		{"", "5000", "/", "[2001:DB8:0::1]:80", "https://[2001:db8::1]:5000/"},
		{"", "5000", "//evil.example/x", "registry.lan", "https://registry.lan:5000//evil.example/x"},
		{"https://hub.example:8443/x", "5000", "/a", "registry.lan", "https://hub.example:8443/a"},
		{"https://hub.example", "5000", "/a", "evil.example", "https://hub.example/a"},
		{"", "5000", "/", "evil.example", ""},
		{"", "5000", "http://evil.example/x", "registry.lan", ""},
		{"", "5000", "/", "registry.lan@evil.example", ""},
		{"", "5000", "/", "evil.example#registry.lan", ""},
		{"", "5000", "/", "registry.lan:80:80", ""},
		{"", "5000", "/", "evil.example/.lan", ""},
		{"", "5000", "/", "evil.example?.lan", ""},
		{"", "5000", "/", "[2001:db8::1%25eth0]", ""},
		{"", "5000", "/", "registry.lan\\@evil.example", ""},
		{"", "5000", "/", "", ""},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			r := httptest.NewRequest(method, c.target, nil)
			if !strings.HasPrefix(c.target, "http:") {
				r.Host = c.host
			}
			w := httptest.NewRecorder()
			signpost(c.public, c.port).ServeHTTP(w, r)
			want := http.StatusPermanentRedirect
			if c.want == "" {
				want = http.StatusUpgradeRequired
			}
			if w.Code != want || w.Header().Get("Location") != c.want {
				t.Errorf("%s %s of %q: %d %q, not %q", method, c.target, c.host, w.Code, w.Header().Get("Location"), c.want)
			}
		}
	}
}

// A client of the registry is told where to go and is neither sent there nor asked for anything.
func TestSignpostRefusesClients(t *testing.T) {
	for _, c := range [][2]string{
		{"GET", "/v2"}, {"GET", "/v2/"}, {"HEAD", "/v2/a/manifests/1"}, {"GET", "/v2/a/blobs/x"}, {"POST", "/v2/a/blobs/uploads/"}, {"GET", "/token?service=pier"},
		{"POST", "/token"}, {"GET", "/api/v1/cluster/status"}, {"PUT", "/"}, {"POST", "/healthz"}, {"OPTIONS", "/"}, {"BREW", "/pot"}, {"GET", "/%762/"},
		{"POST", challengePath + "x"},
	} {
		r := httptest.NewRequest(c[0], c[1], strings.NewReader("secret"))
		r.Host = "registry.lan"
		r.SetBasicAuth("alice", "password")
		w := httptest.NewRecorder()
		signpost("", "5000").ServeHTTP(w, r)
		var body errorBody
		err := json.Unmarshal(w.Body.Bytes(), &body)
		h := w.Header()
		if w.Code != http.StatusUpgradeRequired || err != nil || len(body.Errors) != 1 || !strings.Contains(body.Errors[0].Message, "https://registry.lan:5000") {
			t.Errorf("%v: %d %s", c, w.Code, w.Body)
		}
		if h.Get("WWW-Authenticate")+h.Get("Location") != "" || h.Get("Connection") != "close" || h.Get("Upgrade") == "" {
			t.Errorf("%v: %v", c, h)
		}
	}
}

func TestSignpostAnswersWhoLooks(t *testing.T) {
	s := signpost("", "5000")
	for target, want := range map[string]string{"/healthz": `{"status":"ok"}`, challengePath + "abc": "answer to any.name"} {
		r := httptest.NewRequest("GET", target, nil)
		r.Host = "any.name"
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
	s.Challenge = nil
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", challengePath+"abc", nil)
	r.Host = "registry.lan"
	if s.ServeHTTP(w, r); w.Code != http.StatusPermanentRedirect {
		t.Errorf("without ACME: %d", w.Code)
	}
}
