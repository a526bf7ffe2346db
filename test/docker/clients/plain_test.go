//go:build docker

package clients

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/api"
)

// overheard keeps what came to a server in the open.
type overheard struct {
	mu    sync.Mutex
	lines []string
}

func (o *overheard) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)) // what is cut off is no password
		o.mu.Lock()
		o.lines = append(o.lines, fmt.Sprint(r.Method, " ", r.URL, " ", r.Header, " ", string(body)))
		o.mu.Unlock()
		next.ServeHTTP(w, r)
	})
}

// TestPasswordsStayAwayFromHTTP has clients that know a password try the port where HTTP is spoken. Each fails, says why as well as
// it can, and keeps the password to itself.
func TestPasswordsStayAwayFromHTTP(t *testing.T) {
	const name, password = "alice", "correct-horse-battery"
	var heard overheard
	server := httptest.NewServer(heard.before(api.Signpost{Port: "5000", Covers: func(string) bool { return true }}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	home := t.TempDir()
	known := base64.StdEncoding.EncodeToString([]byte(name + ":" + password))
	config := filepath.Join(home, "config.json")
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, address, known), 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "HOME="+home, "DOCKER_CONFIG="+home, "REGISTRY_AUTH_FILE="+config)
	image, place := address+"/team/app:1", "use https://127.0.0.1:5000"
	login := []string{"login", "-u", name, "-p", password}
	for _, c := range []struct {
		says string
		args []string
	}{
		{place, []string{"docker", "pull", image}},
		{"426 Upgrade Required", append([]string{"docker"}, append(login, address)...)},
		{"426 (Upgrade Required)", []string{"podman", "pull", "--tls-verify=false", image}},
		{"426 (Upgrade Required)", append([]string{"podman"}, append(login, "--tls-verify=false", address)...)},
		{"426 (Upgrade Required)", []string{"skopeo", "inspect", "--tls-verify=false", "docker://" + image}},
		{place, []string{program(t, "crane"), "manifest", "--insecure", image}},
		{place, []string{program(t, "oras"), "manifest", "fetch", "--plain-http", image}},
		{place, append([]string{program(t, "oras")}, append(login, "--plain-http", address)...)},
		{place, []string{program(t, "regctl"), "--host", "reg=" + address + ",tls=disabled,user=" + name + ",pass=" + password, "manifest", "get", image}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), c.says) {
			t.Errorf("%s %s: %v\n%s", filepath.Base(c.args[0]), c.args[1], err, out)
		}
	}
	heard.mu.Lock()
	defer heard.mu.Unlock()
	if len(heard.lines) < 9 {
		t.Errorf("only %d requests came", len(heard.lines))
	}
	for _, line := range heard.lines {
		if strings.Contains(line, password) || strings.Contains(line, known) || strings.Contains(line, "Authorization") {
			t.Errorf("in the open: %s", line)
		}
	}
}
