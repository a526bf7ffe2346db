//go:build docker

package clients

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// client is a program that has something to push. Each method gets the node by the name that people use, and gives what the
// program printed.
type client interface {
	// login may keep the password without trying it; then the push shows what is wrong with it.
	login(node, user, password string) (string, error)
	logout(node string) error
	push(node, repo string) (string, error)
	// pull gets what push sent, and compares it.
	pull(node, repo string) (string, error)
}

func all() map[string]func(*testing.T, kit) client {
	return map[string]func(*testing.T, kit) client{
		"docker": newDocker, "podman": newPodman, "skopeo": newSkopeo, "ctr": newCtr,
		"crane": newCrane, "oras": newOras, "regctl": newRegctl, "helm": newHelm,
	}
}

func passwordOf(name string) string { return name + " pass:word" }

// programs are what people use, each with a user of its own in the group dev.
func programs(t *testing.T) {
	must := must(t)
	must(on("node1", "pier", "access", "grant", "group:dev", "push", "team/**"))
	for name, c := range all() {
		password := passwordOf(name)
		must(attempt(home("node2"), nil, password+"\n", "ip", "netns", "exec", "node2", "pier", "user", "add", name, "--group", "dev", "--password-stdin"))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			may(t, name, password, c(t, newKit(t)))
		})
	}
}

// may does with a client what is allowed and what isn't.
func may(t *testing.T, name, password string, c client) {
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return lastLine(out)
	}
	refused := func(what, pattern string) func(string, error) {
		return func(out string, err error) {
			t.Helper()
			if err == nil {
				t.Errorf("%s: it worked, and printed %q", what, out)
				return
			}
			want(t, out, pattern)
			t.Logf("message: %s, %s: %s", name, what, complaint(out))
		}
	}
	node := names()
	ours, public, private := "team/"+name, "public/"+name, "private/"+name

	must(c.login(node[2], "root", rootPassword))
	must(c.push(node[2], public))
	must(c.push(node[2], private))
	if err := c.logout(node[2]); err != nil {
		t.Fatal(err)
	}

	refused("push without a login", unauthorized)(c.push(node[0], ours))
	wrong := node[len(name)%3] // all of them come from one address, and each node counts
	refused("wrong password", unauthorized)(func() (string, error) {
		if out, err := c.login(wrong, name, "wrong"); err != nil {
			return out, err
		}
		return c.push(wrong, ours)
	}())
	t.Logf("message: %s, login: %s", name, must(c.login(node[0], name, password)))
	t.Logf("message: %s, push: %s", name, must(c.push(node[0], ours)))
	refused("push where it may not", denied)(c.push(node[0], private))
	must(c.login(node[1], name, password))
	t.Logf("message: %s, pull from another node: %s", name, must(c.pull(node[1], ours)))
	refused("pull where it may not", denied)(c.pull(node[1], private))
	if err := errors.Join(c.logout(node[0]), c.logout(node[1])); err != nil {
		t.Fatal(err)
	}
	refused("pull without a login", unauthorized)(c.pull(node[1], ours))
	t.Logf("message: %s, pull of public/** without a login: %s", name, must(c.pull(node[1], public)))
}

// What clients make of a refusal: their own words, or ours where they pass them on.
const (
	unauthorized = `(?i)unauthorized|invalid username/password|denied|insufficient_scope`
	denied       = `(?i)denied|forbidden`
)

// kit is what every client gets: a home of its own, and something to push, as an OCI layout with the tag 1.
type kit struct {
	t      *testing.T
	home   string
	env    []string
	layout string
	digest string
}

func newKit(t *testing.T) kit {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "auth.json"), []byte("{}"), 0o600); err != nil { // Podman wants the file
		t.Fatal(err)
	}
	dir, digest := sample(t)
	return kit{t: t, home: home, layout: dir, digest: digest, env: []string{
		"HOME=" + home, "DOCKER_CONFIG=" + filepath.Join(home, ".docker"), "REGISTRY_AUTH_FILE=" + filepath.Join(home, "auth.json"), "STORAGE_DRIVER=vfs",
	}}
}

// trusting adds the CA for a program that trusts what the system trusts.
func (k kit) trusting() kit {
	k.env = append(k.env, "SSL_CERT_FILE=/etc/pier/certs.d/"+names()[0]+"/ca.crt")
	return k
}

func (k kit) run(name string, args ...string) (string, error) {
	return attempt(k.home, k.env, "", name, args...)
}

// all runs one command after the other, up to the first that fails, and gives what that or the last one printed.
func (k kit) all(commands ...[]string) (out string, err error) {
	for _, c := range commands {
		if out, err = k.run(c[0], c[1:]...); err != nil {
			return out, err
		}
	}
	return out, nil
}

// enter logs in with the password on standard input.
func (k kit) enter(password, name string, args ...string) (string, error) {
	return attempt(k.home, k.env, password, name, args...)
}

func (k kit) leave(name string, args ...string) error {
	_, err := k.run(name, args...)
	return err
}

// back makes an empty directory for what comes back.
func (k kit) back() string {
	dir, err := os.MkdirTemp(k.home, "back")
	if err != nil {
		k.t.Fatal(err)
	}
	return dir
}

// returned checks a layout that came back.
func (k kit) returned(dir, out string, err error) (string, error) {
	if err == nil {
		wantLayout(k.t, dir, k.digest)
	}
	return out, err
}

// engine is Docker or Podman, which keep images.
type engine struct {
	kit
	program, image, id string
}

func newDocker(t *testing.T, k kit) client {
	e := &engine{kit: k, program: "docker", image: dockerImage(t, "clients")}
	e.id = must(t)(k.run("docker", "inspect", "--format", "{{.Id}}", e.image))
	return e
}

func newPodman(t *testing.T, k kit) client {
	e := &engine{kit: k, program: "podman", image: "local/clients:1"}
	e.id = lastLine(must(t)(k.run("podman", "pull", "-q", "oci:"+k.layout+":1")))
	must(t)(k.run("podman", "tag", e.id, e.image))
	return e
}

func (e *engine) login(node, user, password string) (string, error) {
	return e.enter(password, e.program, "login", "-u", user, "--password-stdin", node)
}

func (e *engine) logout(node string) error { return e.leave(e.program, "logout", node) }

func (e *engine) push(node, repo string) (string, error) {
	ref := node + "/" + repo + ":1"
	return e.all([]string{e.program, "tag", e.image, ref}, []string{e.program, "push", ref})
}

func (e *engine) pull(node, repo string) (string, error) {
	ref := node + "/" + repo + ":1"
	_, _ = e.run(e.program, "image", "rm", "-f", e.id) // with all its names, if it is there
	out, err := e.run(e.program, "pull", ref)
	if err != nil {
		return out, err
	}
	id, err := e.run(e.program, "inspect", "--format", "{{.Id}}", ref)
	if err == nil && id != e.id {
		err = fmt.Errorf("%s is %s, pushed was %s", ref, id, e.id)
	}
	return out, err
}

type skopeoClient struct{ kit }

func newSkopeo(_ *testing.T, k kit) client { return skopeoClient{k} }

func (s skopeoClient) login(node, user, password string) (string, error) {
	return s.enter(password, "skopeo", "login", "-u", user, "--password-stdin", node)
}

func (s skopeoClient) logout(node string) error { return s.leave("skopeo", "logout", node) }

func (s skopeoClient) push(node, repo string) (string, error) {
	return s.run("skopeo", "copy", "oci:"+s.layout+":1", "docker://"+node+"/"+repo+":1")
}

func (s skopeoClient) pull(node, repo string) (string, error) {
	back := s.back()
	out, err := s.run("skopeo", "copy", "docker://"+node+"/"+repo+":1", "oci:"+back+":1")
	return s.returned(back, out, err)
}

// ctr has no login: the password goes with each command.
type ctr struct {
	kit
	passwords map[string]string
}

func newCtr(_ *testing.T, k kit) client { return &ctr{kit: k, passwords: map[string]string{}} }

func (c *ctr) login(node, user, password string) (string, error) {
	c.passwords[node] = user + ":" + password
	return "(--user with each command)", nil
}

func (c *ctr) logout(node string) error {
	delete(c.passwords, node)
	return nil
}

func (c *ctr) images(verb, node, ref string) (string, error) {
	args := []string{"images", verb, "--hosts-dir", "/etc/containerd/certs.d"}
	if p := c.passwords[node]; p != "" {
		args = append(args, "--user", p)
	}
	out, err := c.run("ctr", append(args, ref)...)
	// containerd 1.6.20 (issue 5734) breaks off what it reads from its own store for ctr, once in a hundred pushes, before the registry
	// has answered. Only that is tried again; it can go with Debian 12.
	for range 3 {
		if err == nil || !strings.Contains(out, "rpc error: code = Internal desc = unexpected EOF") {
			break
		}
		out, err = c.run("ctr", append(args, ref)...)
	}
	return out, err
}

func (c *ctr) push(node, repo string) (string, error) {
	tar := filepath.Join(c.home, "image.tar")
	if out, err := c.all([]string{"tar", "-C", c.layout, "-cf", tar, "."},
		[]string{"ctr", "images", "import", "--no-unpack", "--base-name", node + "/" + repo, tar}); err != nil {
		return out, err
	}
	return c.images("push", node, node+"/"+repo+":1")
}

func (c *ctr) pull(node, repo string) (string, error) {
	ref, tar, back := node+"/"+repo+":1", filepath.Join(c.home, "back.tar"), c.back()
	for _, other := range names() {
		_, _ = c.run("ctr", "images", "rm", "--sync", other+"/"+repo+":1") // if it is there
	}
	out, err := c.images("pull", node, ref)
	if err != nil {
		return out, err
	}
	_, err = c.all([]string{"ctr", "images", "export", tar, ref}, []string{"tar", "-C", back, "-xf", tar})
	return c.returned(back, out, err)
}

type craneClient struct{ kit }

func newCrane(_ *testing.T, k kit) client { return craneClient{k.trusting()} }

func (c craneClient) login(node, user, password string) (string, error) {
	return c.enter(password, "crane", "auth", "login", node, "-u", user, "--password-stdin")
}

func (c craneClient) logout(node string) error { return c.leave("crane", "auth", "logout", node) }

func (c craneClient) push(node, repo string) (string, error) {
	return c.run("crane", "push", c.layout, node+"/"+repo+":1")
}

func (c craneClient) pull(node, repo string) (string, error) {
	back := c.back()
	out, err := c.run("crane", "pull", "--format=oci", node+"/"+repo+":1", back)
	return c.returned(back, out, err)
}

type orasClient struct{ kit }

func newOras(t *testing.T, k kit) client {
	if err := os.WriteFile(filepath.Join(k.home, "hello.txt"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return orasClient{k.trusting()}
}

func (o orasClient) login(node, user, password string) (string, error) {
	return o.enter(password, "oras", "login", node, "-u", user, "--password-stdin")
}

func (o orasClient) logout(node string) error { return o.leave("oras", "logout", node) }

func (o orasClient) push(node, repo string) (string, error) {
	return o.run("oras", "push", node+"/"+repo+":1", "hello.txt:text/plain")
}

func (o orasClient) pull(node, repo string) (string, error) {
	back := o.back()
	out, err := o.run("oras", "pull", "-o", back, node+"/"+repo+":1")
	if err == nil {
		err = same(filepath.Join(o.home, "hello.txt"), filepath.Join(back, "hello.txt"))
	}
	return out, err
}

type regctlClient struct{ kit }

func newRegctl(_ *testing.T, k kit) client { return regctlClient{k.trusting()} }

func (r regctlClient) login(node, user, password string) (string, error) {
	return r.enter(password, "regctl", "registry", "login", node, "-u", user, "--pass-stdin")
}

func (r regctlClient) logout(node string) error {
	return r.leave("regctl", "registry", "logout", node)
}

func (r regctlClient) push(node, repo string) (string, error) {
	return r.run("regctl", "image", "copy", "ocidir://"+r.layout+":1", node+"/"+repo+":1")
}

func (r regctlClient) pull(node, repo string) (string, error) {
	back := r.back()
	out, err := r.run("regctl", "image", "copy", node+"/"+repo+":1", "ocidir://"+back+":1")
	return r.returned(back, out, err)
}

type helmClient struct {
	kit
	chart string
}

func newHelm(t *testing.T, k kit) client {
	h := helmClient{kit: k.trusting(), chart: filepath.Join(k.home, "helm-0.1.0.tgz")}
	must(t)(h.all([]string{"helm", "create", "helm"}, []string{"helm", "package", "helm"}))
	return h
}

func (h helmClient) login(node, user, password string) (string, error) {
	return h.enter(password, "helm", "registry", "login", node, "-u", user, "--password-stdin")
}

func (h helmClient) logout(node string) error { return h.leave("helm", "registry", "logout", node) }

// push sends the chart, whose name is the repository's last part.
func (h helmClient) push(node, repo string) (string, error) {
	return h.run("helm", "push", h.chart, "oci://"+node+"/"+path.Dir(repo))
}

func (h helmClient) pull(node, repo string) (string, error) {
	back := h.back()
	out, err := h.run("helm", "pull", "oci://"+node+"/"+repo, "--version", "0.1.0", "-d", back)
	if err == nil {
		err = same(h.chart, filepath.Join(back, "helm-0.1.0.tgz"))
	}
	return out, err
}

func same(a, b string) error {
	x, err := os.ReadFile(a)
	y, errY := os.ReadFile(b)
	if err = errors.Join(err, errY); err == nil && !bytes.Equal(x, y) {
		err = fmt.Errorf("%s and %s differ", a, b)
	}
	return err
}
