package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"pier/api/client"
	"pier/cmd/pier/node"
	"pier/test/oidc"
)

// withProvider runs a node with an administrator, and with an OpenID provider called corp, and gives the node's URL.
func withProvider(t *testing.T) (server string, provider *oidc.Server) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	provider = oidc.New(t, nil)
	cfg := node.Default()
	cfg.Name, cfg.DataDir, cfg.Listen, cfg.ClusterListen = "one", t.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
	n, err := node.New(cfg, node.Options{Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-n.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	socket := client.New(client.Options{Socket: filepath.Join(cfg.DataDir, node.SocketName)})
	if _, err := socket.AddUser(t.Context(), client.UserRequest{Name: "root", Password: "correct horse"}); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(provider.ClientSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if run(t.Context(), []string{
		"provider", "add", "oidc", "corp", "--data-dir", cfg.DataDir, "--issuer", provider.Issuer(), "--client-id", provider.ClientID, "--client-secret-file", secret,
		"--scope", "profile", "--scope", "groups", "--all-groups",
	}, &out, &out) != 0 {
		t.Fatal(out.String())
	}
	return n.URL(), provider
}

// loggingIn runs pier login and gives the address that it prints, and how it ends.
func loggingIn(t *testing.T, ctx context.Context, args ...string) (address string, end func() (code int, said string)) {
	t.Helper()
	said, says := io.Pipe()
	var out bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, append([]string{"login", "--oidc"}, args...), &out, says)
		_ = says.Close()
	}()
	var text strings.Builder
	found := regexp.MustCompile(`http\S+`)
	buf := make([]byte, 4096)
	for address == "" {
		n, err := said.Read(buf)
		text.Write(buf[:n])
		address = found.FindString(text.String())
		if err != nil && address == "" {
			t.Fatalf("no address to open: %s", text.String())
		}
	}
	rest := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(said)
		rest <- string(data)
	}()
	return address, func() (int, string) {
		more := <-rest
		return <-code, out.String() + more
	}
}

// visit opens an address as a browser does, redirects included.
func visit(t *testing.T, address string) (status int, page string) {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func query(t *testing.T, address, name string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get(name)
}

// From the command to the browser and back, and on to what docker login takes.
func TestLoginInABrowser(t *testing.T) {
	server, _ := withProvider(t)
	address, end := loggingIn(t, t.Context(), "--server", server)
	if query(t, address, "code_challenge_method") != "S256" || query(t, address, "state") == "" || query(t, address, "nonce") == "" {
		t.Errorf("the browser is sent to %s", address)
	}
	back := query(t, address, "redirect_uri")
	for name, stranger := range map[string]string{
		"another state": back + "?code=x&state=y", "no state": back + "?code=x", "another provider": back + "?code=x&iss=https://issuer.example&state=" + query(t, address, "state"),
		"no code": back + "?state=" + query(t, address, "state"), "another path": strings.TrimSuffix(back, callbackPath) + "/",
	} {
		if status, page := visit(t, stranger); status/100 != 4 {
			t.Errorf("%s: %d %s", name, status, page)
		}
	}
	if status, page := visit(t, address); status != 200 {
		t.Errorf("%d %s", status, page)
	}
	if code, said := end(); code != 0 || !strings.Contains(said, "logged in to "+server+" as jane.doe") {
		t.Fatalf("%d: %s", code, said)
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"token", "--server", server, "-o", "json"}, &out, &out); code != 0 {
		t.Fatal(out.String())
	}
	var token struct{ User, Token string }
	if err := json.Unmarshal(out.Bytes(), &token); err != nil || token.User != "jane.doe" {
		t.Fatalf("%s (%v)", out.String(), err)
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", server+"/token?service=pier", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(token.User, token.Token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("the token as a password: %s", resp.Status)
	}
}

// Nothing is opened but a web page, whatever a server says.
func TestLoginOpensWebPagesOnly(t *testing.T) {
	for _, page := range []string{"file:///etc/passwd", "javascript:alert(1)", "--help", "", "https://", "https://a\x1b[2J/"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(client.LoginStart{Provider: "corp", Authorization: page})
		}))
		t.Setenv("XDG_CONFIG_HOME", t.TempDir())
		var out bytes.Buffer
		if code := run(t.Context(), []string{"login", "--server", server.URL, "--oidc"}, &out, &out); code != 1 || !strings.Contains(out.String(), "no web page") {
			t.Errorf("%q: %d %s", page, code, out.String())
		}
		server.Close()
	}
}

// A provider that says no, a person who goes away, and a provider that there isn't.
func TestLoginInABrowserFails(t *testing.T) {
	server, _ := withProvider(t)
	address, end := loggingIn(t, t.Context(), "--server", server, "corp")
	if status, _ := visit(t, query(t, address, "redirect_uri")+"?error=access_denied&error_description=not+today&state="+query(t, address, "state")); status != 400 {
		t.Errorf("%d", status)
	}
	if code, said := end(); code != 1 || !strings.Contains(said, "not today") {
		t.Errorf("%d: %s", code, said)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, end = loggingIn(t, ctx, "--server", server, "corp")
	cancel()
	if code, said := end(); code != 1 {
		t.Errorf("%d: %s", code, said)
	}
	address, end = loggingIn(t, t.Context(), "--server", server, "corp")
	_, _ = visit(t, query(t, address, "redirect_uri")+"?code=stolen&state="+query(t, address, "state"))
	if code, said := end(); code != 1 || !strings.Contains(said, "begin again") {
		t.Errorf("%d: %s", code, said)
	}
	var out bytes.Buffer
	for want, args := range map[string][]string{
		"no OpenID provider": {"login", "--server", server, "--oidc", "none"},
		"for --oidc":         {"login", "--server", server, "corp"},
		"there is no login":  {"token", "--server", server},
		"in the open":        {"login", "--server", "http://registry.example", "--oidc"},
		"want pier login":    {"login", "--server", server, "--oidc", "a", "b"},
	} {
		out.Reset()
		if code := run(t.Context(), args, &out, &out); code == 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%v: %d %s", args, code, out.String())
		}
	}
}
