//go:build docker

package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"pier/test/process"
)

// repository is the top of this repository.
func repository(t *testing.T) string {
	t.Helper()
	return run(t, nil, "go", "list", "-m", "-f", "{{.Dir}}")
}

// program is a client that .ci/clients installed.
func program(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(repository(t), ".build", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("run .ci/clients first: %v", err)
	}
	return path
}

// run runs a program, fails the test when that fails, and returns what it printed.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), stderr.String())
	}
	return strings.TrimSpace(out.String())
}

// registries starts three nodes and returns their addresses.
func registries(t *testing.T) []string {
	t.Helper()
	if given := os.Getenv("PIER_TEST_REGISTRIES"); given != "" {
		list := strings.Split(given, ",")
		return []string{list[0], list[1%len(list)], list[2%len(list)]}
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "pier")
	run(t, []string{"CGO_ENABLED=0"}, "go", "build", "-o", binary, "pier/cmd/pier")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := process.Start(ctx, process.Config{Binary: binary, Dir: filepath.Join(dir, "cluster"), Nodes: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	var addresses []string
	for _, u := range c.URLs() {
		addresses = append(addresses, strings.TrimPrefix(u, "http://"))
	}
	return addresses
}

// sample writes an image of five layers as an OCI layout with the tag 1 and returns its directory and digest.
func sample(t *testing.T) (string, string) {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for range 5 {
		layer, err := random.Layer(200<<10, types.OCILayer)
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pier-layout-") // podman reads the path as a name, which has no capitals
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return dir, digest.String()
}

// wantLayout checks that a directory has the one image, whole.
func wantLayout(t *testing.T, dir, digest string) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	h, err := v1.NewHash(digest)
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(h)
	if err != nil {
		t.Fatalf("%s has no %s: %v", dir, digest, err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		want, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		blob, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := v1.SHA256(blob)
		_ = blob.Close()
		if err != nil || got != want {
			t.Errorf("a layer has %v, want %v (%v)", got, want, err)
		}
	}
}

func TestClients(t *testing.T) {
	nodes := registries(t)
	t.Run("skopeo", func(t *testing.T) { skopeo(t, nodes) })
	t.Run("podman", func(t *testing.T) { podman(t, nodes) })
	t.Run("crane", func(t *testing.T) { crane(t, nodes) })
	t.Run("oras", func(t *testing.T) { oras(t, nodes) })
	t.Run("regctl", func(t *testing.T) { regctl(t, nodes) })
}

func skopeo(t *testing.T, nodes []string) {
	dir, digest := sample(t)
	back := t.TempDir()
	run(t, nil, "skopeo", "copy", "--dest-tls-verify=false", "oci:"+dir+":1", "docker://"+nodes[0]+"/clients/skopeo:1")
	run(t, nil, "skopeo", "copy", "--src-tls-verify=false", "docker://"+nodes[1]+"/clients/skopeo:1", "oci:"+back+":1")
	wantLayout(t, back, digest)
	got := run(t, nil, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+nodes[2]+"/clients/skopeo:1")
	if got != digest {
		t.Errorf("the third node says %s, pushed was %s", got, digest)
	}
	run(t, nil, "skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
		"docker://"+nodes[2]+"/clients/skopeo:1", "docker://"+nodes[0]+"/clients/skopeo-copy:2")
	list := run(t, nil, "skopeo", "list-tags", "--tls-verify=false", "docker://"+nodes[1]+"/clients/skopeo-copy")
	if !strings.Contains(list, `"2"`) {
		t.Errorf("the copy's tags: %s", list)
	}
	run(t, nil, "skopeo", "delete", "--tls-verify=false", "docker://"+nodes[1]+"/clients/skopeo-copy:2")
}

func podman(t *testing.T, nodes []string) {
	dir, _ := sample(t)
	store := t.TempDir()
	pod := func(args ...string) string {
		t.Helper()
		base := []string{"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--storage-driver", "vfs"}
		return run(t, nil, "podman", append(base, args...)...)
	}
	id := lastLine(pod("pull", "oci:"+dir+":1"))
	pod("push", "--tls-verify=false", id, nodes[0]+"/clients/podman:1")
	pod("rmi", "-f", id)
	for _, node := range nodes[1:] {
		if got := lastLine(pod("pull", "--tls-verify=false", node+"/clients/podman:1")); got != id {
			t.Errorf("%s gave image %s, pushed was %s", node, got, id)
		}
		pod("rmi", "-f", id)
	}
}

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }

func crane(t *testing.T, nodes []string) {
	dir, digest := sample(t)
	bin := program(t, "crane")
	run(t, nil, bin, "push", "--insecure", dir, nodes[0]+"/clients/crane:1")
	back := t.TempDir()
	run(t, nil, bin, "pull", "--insecure", "--format=oci", nodes[1]+"/clients/crane:1", back)
	wantLayout(t, back, digest)
	run(t, nil, bin, "validate", "--insecure", "--remote", nodes[2]+"/clients/crane:1")
	run(t, nil, bin, "copy", "--insecure", nodes[1]+"/clients/crane:1", nodes[2]+"/clients/crane-copy:1")
	if got := run(t, nil, bin, "digest", "--insecure", nodes[0]+"/clients/crane-copy:1"); got != digest {
		t.Errorf("the copy is %s, want %s", got, digest)
	}
	if got := run(t, nil, bin, "ls", "--insecure", nodes[1]+"/clients/crane-copy"); got != "1" {
		t.Errorf("crane ls says %q", got)
	}
}

func oras(t *testing.T, nodes []string) {
	bin, dir := program(t, "oras"), t.TempDir()
	for name, content := range map[string]string{"hello.txt": "hello\n", "sbom.json": "{}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	in := func(args ...string) string {
		t.Helper()
		script := `cd "$1" && shift && exec "$@"`
		return run(t, nil, "sh", append([]string{"-c", script, "sh", dir, bin}, args...)...)
	}
	in("push", "--plain-http", "--artifact-type", "application/vnd.example.greeting", nodes[0]+"/clients/oras:1", "hello.txt:text/plain")
	in("attach", "--plain-http", "--artifact-type", "application/vnd.example.sbom", nodes[1]+"/clients/oras:1", "sbom.json:application/json")
	var found struct {
		Referrers []struct{ ArtifactType string }
	}
	out := in("discover", "--plain-http", "--format", "json", nodes[2]+"/clients/oras:1")
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(found.Referrers) != 1 || found.Referrers[0].ArtifactType != "application/vnd.example.sbom" {
		t.Errorf("discover says %s", out)
	}
	back := t.TempDir()
	in("pull", "--plain-http", "-o", back, nodes[1]+"/clients/oras:1")
	if got, err := os.ReadFile(filepath.Join(back, "hello.txt")); err != nil || string(got) != "hello\n" {
		t.Errorf("pulled %q, %v", got, err)
	}
}

func regctl(t *testing.T, nodes []string) {
	dir, digest := sample(t)
	bin := program(t, "regctl")
	env := []string{"REGCTL_CONFIG=" + filepath.Join(t.TempDir(), "config.json")}
	for _, n := range nodes {
		run(t, env, bin, "registry", "set", "--skip-check", "--tls", "disabled", n)
	}
	run(t, env, bin, "image", "copy", "ocidir://"+dir+":1", nodes[0]+"/clients/regctl:1")
	back := t.TempDir()
	run(t, env, bin, "image", "copy", nodes[1]+"/clients/regctl:1", "ocidir://"+back+":1")
	wantLayout(t, back, digest)
	run(t, env, bin, "image", "copy", nodes[2]+"/clients/regctl:1", nodes[0]+"/clients/regctl-copy:1")
	if got := run(t, env, bin, "image", "digest", nodes[1]+"/clients/regctl-copy:1"); got != digest {
		t.Errorf("the copy is %s, want %s", got, digest)
	}
	put := exec.Command(bin, "artifact", "put", "--artifact-type", "application/vnd.example.note", nodes[1]+"/clients/regctl-artifact:1")
	put.Env, put.Stdin = append(os.Environ(), env...), strings.NewReader("a note")
	if out, err := put.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("artifact put: %w\n%s", err, out))
	}
	if got := run(t, env, bin, "artifact", "get", nodes[2]+"/clients/regctl-artifact:1"); got != "a note" {
		t.Errorf("artifact get says %q", got)
	}
}
