//go:build docker

package docker

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pier/test/proxy"
	"pier/test/wait"
)

const healthLimit = 90 * time.Second

// deployment is one compose project of docker-compose.yml in a copy of the last commit's tree.
type deployment struct {
	program []string
	env     []string
	dir     string
}

// nodes are the services of docker-compose.yml, and ports what they publish.
func nodes() []string { return []string{"node1", "node2", "node3"} }
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

// waitHealthy waits until the engine calls every node healthy too, which it finds out every five seconds.
func (d deployment) waitHealthy(t *testing.T) {
	t.Helper()
	for _, node := range nodes() {
		id := d.container(t, node)
		wait.Until(t, healthLimit, node+" healthy", func() error { return healthy(id) })
	}
	d.waitWhole(t)
}

// waitWhole waits until every node takes pushes, and knows three that are alive.
func (d deployment) waitWhole(t *testing.T) {
	t.Helper()
	for _, node := range nodes() {
		id := d.container(t, node)
		wait.Until(t, healthLimit, node+" ready", func() error {
			_, err := try(d.dir, nil, "docker", "exec", id, "pier", "health", "--push")
			return err
		})
	}
	for _, node := range nodes() {
		wait.Until(t, 30*time.Second, "three nodes in "+node+"'s cluster status", func() error {
			s, err := d.status(t, node)
			if err != nil {
				return err
			}
			return s.check()
		})
	}
}

// status is what pier cluster status -o json prints.
type status struct {
	Leader          string
	Quorum, Healthy bool
	Nodes           []struct{ ID, Name, State, Role string }
}

// check says how the status isn't that of three healthy nodes.
func (s status) check() error {
	names, leads := []string{}, 0
	for _, n := range s.Nodes {
		names = append(names, n.Name)
		if n.State != "alive" {
			return fmt.Errorf("%s is %s", n.Name, n.State)
		}
		if n.Role == "leader" && n.ID == s.Leader {
			leads++
		}
	}
	slices.Sort(names)
	if !s.Quorum || !s.Healthy || leads != 1 || !slices.Equal(names, nodes()) {
		return fmt.Errorf("%+v", s)
	}
	return nil
}

// status asks the cluster through a container's own pier; any exit code but that of a healthy cluster is an error.
func (d deployment) status(t *testing.T, node string) (status, error) {
	t.Helper()
	var s status
	out, err := try(d.dir, nil, "docker", "exec", d.container(t, node), "pier", "cluster", "status", "-o", "json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("%w in %q", err, out)
	}
	return s, nil
}

// leader is the index of the node that leads.
func (d deployment) leader(t *testing.T) int {
	t.Helper()
	s, err := d.status(t, "node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Nodes {
		if n.ID == s.Leader {
			return slices.Index(nodes(), n.Name)
		}
	}
	t.Fatalf("nobody leads: %+v", s)
	return -1
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
	forgetStages(t)
	// Debian's one big layer takes most of a minute each time. It goes once through each part that moves images, with one of the
	// two generations: what happens to it depends on Docker and on Pier, not on Compose.
	for _, c := range []struct {
		name    string
		program func(*testing.T) ([]string, []string)
		big     map[string]bool
	}{
		{"v1", func(t *testing.T) ([]string, []string) { return []string{oldCompose(t)}, nil }, map[string]bool{pushAndPull: true, pushAndDie: true}},
		{"v5", func(t *testing.T) ([]string, []string) {
			return []string{"docker", "compose"}, []string{"DOCKER_CONFIG=" + pluginConfig(t)}
		}, map[string]bool{anyNode: true}},
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
			if t.Run("the image is absent", func(t *testing.T) { builds(t, d) }) {
				story(t, d, c.big)
			}
		})
	}
}

// builds starts a deployment without an image, which has to build one, and takes it away again, image and all.
func builds(t *testing.T, d deployment) {
	kept := putAside(t)
	t.Cleanup(func() {
		d.compose(t, "down", "--volumes", "--timeout", "20")
		_, _ = try("", nil, "docker", "rmi", "-f", "pier") // there is none if the build failed
		docker(t, "tag", kept, "pier")
	})
	d.compose(t, "up", "-d")
	d.waitHealthy(t)
	built := docker(t, "inspect", "--format", "{{.Id}}", "pier")
	if old := docker(t, "inspect", "--format", "{{.Id}}", kept); built == old {
		t.Errorf("it runs the old image %s", old)
	}
	for _, node := range nodes() {
		d.wantHardened(t, node, built)
	}
}

// putAside takes the name pier from the image that has it, and gives it another.
func putAside(t *testing.T) string {
	t.Helper()
	kept := prefix() + "-kept:" + unique(t)
	docker(t, "tag", "pier", kept)
	t.Cleanup(func() { docker(t, "rmi", kept) })
	docker(t, "rmi", "pier")
	return kept
}

// forgetStages removes at the end of the test what building leaves without a name: the stages before the last one. Until then
// the second build finds them.
func forgetStages(t *testing.T) {
	dangling := func() []string {
		return strings.Fields(docker(t, "images", "-q", "--no-trunc", "--filter", "dangling=true"))
	}
	before := dangling()
	t.Cleanup(func() {
		for _, id := range dangling() {
			if !slices.Contains(before, id) {
				docker(t, "rmi", "-f", id)
			}
		}
	})
}

// wantHardened checks what the engine knows of a container, and what the kernel knows of its process.
func (d deployment) wantHardened(t *testing.T, node, image string) {
	t.Helper()
	id := d.container(t, node)
	got := docker(t, "inspect", "--format", "{{.Image}} {{.HostConfig.ReadonlyRootfs}} {{.Config.User}} {{.Config.Healthcheck.Test}}", id)
	if want := image + " true 65532:65532 [CMD /pier health]"; got != want {
		t.Errorf("%s is %q, want %q", node, got, want)
	}
	status, err := os.ReadFile(filepath.Join("/proc", docker(t, "inspect", "--format", "{{.State.Pid}}", id), "status"))
	if err != nil || !strings.Contains(string(status), "\nUid:\t65532\t65532\t65532\t65532\n") {
		t.Errorf("%s runs as (%v):\n%s", node, err, status)
	}
}

// The parts of the story that move images of every shape.
const (
	pushAndPull = "push to one, pull from the others"
	anyNode     = "every request to a random node"
	pushAndDie  = "the node that took the push dies at once"
)

// story is what happens to one deployment, in order; each part leaves three healthy nodes to the next. Those in big get Debian too.
func story(t *testing.T, d deployment, big map[string]bool) {
	small := layered(t, 10, 300<<10)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"the nodes start from last to first, with the image there", func(t *testing.T) { d.startBackwards(t) }},
		{pushAndPull, func(t *testing.T) {
			for _, i := range images(t, big[pushAndPull]) {
				i.push(t, ports()[0], repo("first:1"))
				i.forget(t)
				i.pull(t, ports()[1], repo("first:1"))
				i.pull(t, ports()[2], repo("first:1"))
			}
		}},
		{anyNode, func(t *testing.T) { throughProxy(t, images(t, big[anyNode])) }},
		{pushAndDie, func(t *testing.T) { d.dieAfterPush(t, images(t, big[pushAndDie])) }},
		{"the leader crashes and pushes follow", func(t *testing.T) {
			leader := d.leader(t)
			crash(t, d.container(t, nodes()[leader]))
			a, b := (leader+1)%3, (leader+2)%3
			small.push(t, ports()[a], repo("kept:1"))
			next := layered(t, 10, 300<<10)
			next.push(t, ports()[b], repo("kept:2"))
			d.waitWhole(t)
			small.forget(t)
			next.forget(t)
			small.pull(t, ports()[leader], repo("kept:1"))
			next.pull(t, ports()[leader], repo("kept:2"))
		}},
		{"a container is killed and a push follows", func(t *testing.T) {
			killed := d.container(t, "node2")
			docker(t, "kill", killed)
			i := layered(t, 10, 300<<10)
			i.push(t, ports()[2], repo("kept:3"))
			d.compose(t, "start", "node2")
			d.waitWhole(t)
			i.forget(t)
			i.pull(t, ports()[1], repo("kept:3"))
		}},
		{"the secret that they share is replaced", func(t *testing.T) {
			out := docker(t, "exec", d.container(t, "node2"), "pier", "cluster", "secret", "rotate")
			if !strings.Contains(out, "every node uses the new secret") {
				t.Error(out)
			}
			d.waitHealthy(t)
		}},
		{"restart of all", func(t *testing.T) {
			d.compose(t, "restart", "--timeout", "20")
			d.waitWhole(t)
			for _, p := range ports() {
				small.pull(t, p, repo("kept:1"))
			}
		}},
		{"down and up with other addresses", func(t *testing.T) {
			d.moveHouse(t)
			for _, p := range ports() {
				small.pull(t, p, repo("kept:1"))
			}
			i := layered(t, 10, 300<<10)
			i.push(t, ports()[1], repo("kept:4"))
			i.forget(t)
			i.pull(t, ports()[2], repo("kept:4"))
		}},
	} {
		if !t.Run(part.name, part.run) {
			return
		}
	}
}

// images are ten small layers and, if asked for, Debian's one big one.
func images(t *testing.T, big bool) []image {
	t.Helper()
	out := []image{layered(t, 10, 300<<10)}
	if big {
		out = append(out, debian(t))
	}
	return out
}

// repo names what the tests push so that .ci/run finds what an interrupted one left in the engine.
func repo(ref string) string { return prefix() + "/" + ref }

// startBackwards starts the nodes from the last to the first, with Compose's dependencies put aside.
func (d deployment) startBackwards(t *testing.T) {
	image := docker(t, "inspect", "--format", "{{.Id}}", "pier")
	for _, node := range []string{"node3", "node2"} {
		d.compose(t, "up", "-d", "--no-deps", node)
		if _, err := try("", nil, "docker", "exec", d.container(t, node), "pier", "cluster", "status"); err == nil {
			t.Errorf("%s calls itself healthy before the first node is there", node)
		}
	}
	d.compose(t, "up", "-d")
	d.waitHealthy(t)
	for _, node := range nodes() {
		d.wantHardened(t, node, image)
	}
	if now := docker(t, "inspect", "--format", "{{.Id}}", "pier"); now != image {
		t.Errorf("an image was built: %s, there was %s", now, image)
	}
}

// dieAfterPush kills the node that took a push the moment that it has returned, and lets it stay dead while the others serve.
func (d deployment) dieAfterPush(t *testing.T, all []image) {
	for _, i := range all {
		id := d.container(t, "node1")
		docker(t, "update", "--restart=no", id)
		pid := processOf(t, id)
		i.push(t, ports()[0], repo("orphan:1"), func() { kill(t, pid) })
		i.forget(t)
		i.pull(t, ports()[1], repo("orphan:1"))
		i.pull(t, ports()[2], repo("orphan:1"))
		docker(t, "update", "--restart=unless-stopped", id)
		d.compose(t, "start", "node1")
		d.waitWhole(t)
		i.pull(t, ports()[0], repo("orphan:1"))
	}
}

// moveHouse takes everything down but the volumes, and starts it again where all addresses are others.
func (d deployment) moveHouse(t *testing.T) {
	before := d.addresses(t)
	d.compose(t, "down", "--timeout", "20")
	docker(t, "network", "create", prefix()+"-taken") // gets the addresses that are free now
	t.Cleanup(func() { docker(t, "network", "rm", prefix()+"-taken") })
	d.compose(t, "up", "-d")
	d.waitHealthy(t)
	for i, address := range d.addresses(t) {
		if slices.Contains(before, address) {
			t.Errorf("%s still has one of the addresses %v", nodes()[i], before)
		}
	}
}

func (d deployment) addresses(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, node := range nodes() {
		all = append(all, docker(t, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", d.container(t, node)))
	}
	return all
}

func throughProxy(t *testing.T, all []image) {
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
	for _, i := range all {
		i.push(t, registry, repo("random:1"))
		i.forget(t)
		i.pull(t, registry, repo("random:1"))
	}
	if s := p.Stats(); s.Backend[0] == 0 || s.Backend[1] == 0 || s.Backend[2] == 0 || s.Failed > 0 || s.Retries > 0 {
		t.Errorf("the proxy saw %+v", s)
	}
}
