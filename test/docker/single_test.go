//go:build docker

package docker

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"pier/test/wait"
)

// TestClassicSteps is what every tutorial on private registries does.
func TestClassicSteps(t *testing.T) {
	name := prefix() + "-single-" + unique(t)
	docker(t, "volume", "create", name)
	t.Cleanup(func() { docker(t, "volume", "rm", name) })
	docker(t, "run", "-d", "--name", name, "-p", "127.0.0.1::5000", "-v", name+":/data", "--restart=always", "--read-only", "pier")
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := try("", nil, "sh", "-c", "docker logs --tail 60 "+name+" 2>&1")
			t.Logf("logs (%v):\n%s", err, logs)
		}
		docker(t, "rm", "-f", name)
	})
	wait.Until(t, 60*time.Second, name+" healthy", func() error { return healthy(name) })
	registry := docker(t, "port", name, "5000/tcp")

	i := layered(t, 3, 100<<10)
	i.push(t, registry, "mydocker:0.1")
	for path, want := range map[string]string{
		"/v2/_catalog":           `{"repositories":["mydocker"]}`,
		"/v2/mydocker/tags/list": `{"name":"mydocker","tags":["0.1"]}`,
	} {
		got, err := get("http://" + registry + path)
		if err != nil || got != want {
			t.Errorf("%s says %q, %v; want %q", path, got, err, want)
		}
	}
	i.forget(t)
	i.pull(t, registry, "mydocker:0.1")

	crash(t, name)
	wait.Until(t, 60*time.Second, name+" healthy again", func() error {
		if n := docker(t, "inspect", "--format", "{{.RestartCount}}", name); n != "1" {
			return errors.New(n + " restarts")
		}
		return healthy(name)
	})
	i.pull(t, docker(t, "port", name, "5000/tcp"), "mydocker:0.1")
	if out := docker(t, "exec", name, "pier", "cluster", "status"); !strings.Contains(out, "leader") {
		t.Errorf("cluster status prints %q", out)
	}
	// In an image without a shell nobody could mend who may look into the data.
	out, err := try("", nil, "docker", "exec", name, "pier", "doctor", "--all") // which exits with 3: the registry is open
	if !strings.Contains(out, "the data directory is for its user alone") {
		t.Errorf("the doctor says %s (%v)", out, err)
	}
}

func get(url string) (string, error) {
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, body)
	}
	return strings.TrimSpace(string(body)), nil
}
