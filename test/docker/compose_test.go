//go:build docker

package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pier/test/proxy"
)

const healthLimit = 90 * time.Second

// deployment is one compose project of docker-compose.yml in a copy of the last commit's tree.
type deployment struct {
	program []string
	env     []string
	dir     string
}

// ports are what docker-compose.yml publishes.
func ports() []string { return []string{"127.0.0.1:5001", "127.0.0.1:5002", "127.0.0.1:5003"} }

// cleanTree copies the tracked files as they are now: a fresh clone of what is being tested.
func cleanTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := `cd "$1" && git ls-files -z | tar -c --null -T - | tar -C "$2" -x`
	if _, err := try("", nil, "sh", "-ec", script, "sh", repository(t), dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (d deployment) compose(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(d.dir, d.env, d.program[0], append(d.program[1:], args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (d deployment) container(t *testing.T, node string) string {
	t.Helper()
	id := d.compose(t, "ps", "-q", node)
	if id == "" {
		t.Fatalf("there is no container of %s", node)
	}
	return id
}

func (d deployment) waitHealthy(t *testing.T) {
	t.Helper()
	for _, node := range []string{"node1", "node2", "node3"} {
		id := d.container(t, node)
		eventually(t, healthLimit, node+" healthy", func() error { return healthy(id) })
	}
	eventually(t, 30*time.Second, "three nodes in cluster status", func() error { return d.status(t) })
}

// status asks the cluster through a container's own pier.
func (d deployment) status(t *testing.T) error {
	out, err := try(d.dir, nil, "docker", "exec", d.container(t, "node1"), "pier", "cluster", "status", "-o", "json")
	if err != nil {
		return err
	}
	var status struct {
		Quorum, Healthy bool
		Nodes           []struct{ Name, State string }
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return fmt.Errorf("%w in %q", err, out)
	}
	alive := 0
	for _, n := range status.Nodes {
		if n.State == "alive" {
			alive++
		}
	}
	if !status.Quorum || !status.Healthy || alive != 3 || len(status.Nodes) != 3 {
		return errors.New(out)
	}
	return nil
}

// crash kills the process of a node behind the engine's back, so that the restart policy has to act.
func (d deployment) crash(t *testing.T, node string) {
	t.Helper()
	pid, err := strconv.Atoi(docker(t, "inspect", "--format", "{{.State.Pid}}", d.container(t, node)))
	if err != nil || pid <= 1 {
		t.Fatalf("%s has process %d: %v", node, pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// pluginConfig is a Docker client configuration in which Compose v5 is a plugin, as people have it.
func pluginConfig(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "cli-plugins"), 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(repository(t), ".build", "bin", "compose-v5")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("run .ci/clients first: %v", err)
	}
	if err := os.Symlink(program, filepath.Join(dir, "cli-plugins", "docker-compose")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// oldCompose is the stand-alone program of generation 1.
func oldCompose(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-compose")
	if err != nil {
		t.Fatal(err)
	}
	out, err := try("", nil, program, "version", "--short")
	if err != nil || !strings.HasPrefix(out, "1.") {
		t.Fatalf("%s is version %q (%v), want 1.x", program, out, err)
	}
	return program
}

func TestCompose(t *testing.T) {
	for _, c := range []struct {
		name    string
		program func(*testing.T) ([]string, []string)
	}{
		{"v1", func(t *testing.T) ([]string, []string) { return []string{oldCompose(t)}, nil }},
		{"v5", func(t *testing.T) ([]string, []string) {
			return []string{"docker", "compose"}, []string{"DOCKER_CONFIG=" + pluginConfig(t)}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			program, env := c.program(t)
			d := deployment{program: program, dir: cleanTree(t), env: append(env, "COMPOSE_PROJECT_NAME="+prefix()+c.name)}
			t.Cleanup(func() {
				if t.Failed() {
					logs, err := try(d.dir, d.env, program[0], append(program[1:], "logs", "--no-color", "--tail=60")...)
					t.Logf("logs (%v):\n%s", err, logs)
				}
				d.compose(t, "down", "--volumes", "--timeout", "20")
			})
			d.compose(t, "up", "-d", "--no-build")
			d.waitHealthy(t)
			story(t, d)
		})
	}
}

// story is what happens to one deployment, in order; each part leaves three healthy nodes to the next.
func story(t *testing.T, d deployment) {
	small := layered(t, 10, 300<<10)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"push to one, pull from the others", func(t *testing.T) {
			big := debian(t)
			for _, i := range []image{big, layered(t, 10, 300<<10)} {
				i.push(t, ports()[0], "team/first:1")
				i.forget(t)
				i.pull(t, ports()[1], "team/first:1")
				i.pull(t, ports()[2], "team/first:1")
			}
		}},
		{"every request to a random node", func(t *testing.T) { throughProxy(t) }},
		{"the node that took the push dies at once", func(t *testing.T) {
			i := layered(t, 10, 300<<10)
			i.push(t, ports()[0], "team/crash:1")
			d.crash(t, "node1")
			i.forget(t)
			i.pull(t, ports()[1], "team/crash:1")
			i.pull(t, ports()[2], "team/crash:1")
			next := layered(t, 10, 300<<10)
			next.push(t, ports()[1], "team/crash:2")
			d.waitHealthy(t)
			next.forget(t)
			next.pull(t, ports()[0], "team/crash:2")
		}},
		{"a container is killed and a push follows", func(t *testing.T) {
			docker(t, "kill", d.container(t, "node2"))
			small.push(t, ports()[2], "team/kept:1")
			d.compose(t, "start", "node2")
			d.waitHealthy(t)
			small.forget(t)
			small.pull(t, ports()[1], "team/kept:1")
		}},
		{"restart of all", func(t *testing.T) {
			d.compose(t, "restart", "--timeout", "20")
			d.waitHealthy(t)
			small.pull(t, ports()[0], "team/kept:1")
		}},
		{"down and up", func(t *testing.T) {
			d.compose(t, "down", "--timeout", "20")
			d.compose(t, "up", "-d", "--no-build")
			d.waitHealthy(t)
			for _, p := range ports() {
				small.pull(t, p, "team/kept:1")
			}
		}},
	} {
		if !t.Run(part.name, part.run) {
			return
		}
	}
}

func throughProxy(t *testing.T) {
	var urls []string
	for _, p := range ports() {
		urls = append(urls, "http://"+p)
	}
	p, err := proxy.New(proxy.Config{Backends: urls})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(p)
	defer srv.Close()
	registry := strings.TrimPrefix(srv.URL, "http://")
	for _, i := range []image{debian(t), layered(t, 10, 300<<10)} {
		i.push(t, registry, "team/random:1")
		i.forget(t)
		i.pull(t, registry, "team/random:1")
	}
	if s := p.Stats(); s.Backend[0] == 0 || s.Backend[1] == 0 || s.Backend[2] == 0 || s.Failed > 0 {
		t.Errorf("the proxy saw %+v", s)
	}
}
