//go:build docker

package docker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// prefix begins the name of everything that the tests make in the engine.
func prefix() string {
	if p := os.Getenv("PIER_TEST_PROJECT"); p != "" {
		return p
	}
	return "piertest"
}

// unique makes names that no other test or run has.
func unique(t *testing.T) string {
	t.Helper()
	b := make([]byte, 4)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// try runs a program and returns what it printed; the error has its standard error.
func try(dir string, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), stderr.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// docker runs the docker program and fails the test when that fails.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try("", nil, "docker", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func healthy(container string) error {
	out, err := try("", nil, "docker", "inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", container)
	if err != nil {
		return err
	}
	if out != "running healthy" {
		return errors.New(out)
	}
	return nil
}

// processOf is the process of a container, as the machine numbers it.
func processOf(t *testing.T, container string) int {
	t.Helper()
	pid, err := strconv.Atoi(docker(t, "inspect", "--format", "{{.State.Pid}}", container))
	if err != nil || pid <= 1 {
		t.Fatalf("%s has process %d: %v", container, pid, err)
	}
	return pid
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// crash kills the process of a container behind the engine's back, so that the restart policy has to act.
func crash(t *testing.T, container string) {
	t.Helper()
	kill(t, processOf(t, container))
}

// image is an image in the engine under a name of its own; ID is the digest of its configuration, which has the digests
// of all its layers.
type image struct{ name, id string }

// layered makes an image of n layers of random bytes.
func layered(t *testing.T, n int64, size int64) image {
	t.Helper()
	img, err := random.Image(size, n)
	if err != nil {
		t.Fatal(err)
	}
	ref := prefix() + "-layers:" + unique(t)
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		t.Fatal(err)
	}
	docker(t, "load", "-q", "-i", file)
	return known(t, ref)
}

// debian makes a Debian image that shares no layer with any other, so that nothing of it can stay behind in the engine when
// its names are gone. It fails when there is no debian:bookworm-slim and none can be pulled.
func debian(t *testing.T) image {
	t.Helper()
	stamp := unique(t)
	ref := prefix() + "-debian:" + stamp
	container := prefix() + "-export-" + stamp
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "stamp"), []byte(stamp), 0o644); err != nil {
		t.Fatal(err)
	}
	docker(t, "create", "--name", container, "debian:bookworm-slim", "true")
	defer docker(t, "rm", container)
	docker(t, "cp", filepath.Join(dir, "stamp"), container+":/stamp")
	if _, err := try(dir, nil, "sh", "-ec", "docker export "+container+" | docker import - "+ref); err != nil {
		t.Fatal(err)
	}
	return known(t, ref)
}

func known(t *testing.T, name string) image {
	t.Helper()
	t.Cleanup(func() { _, _ = try("", nil, "docker", "rmi", "-f", name) })
	return image{name: name, id: docker(t, "inspect", "--format", "{{.Id}}", name)}
}

// push sends the image to a repository of the registry and, the moment that this has returned, does what else is asked.
func (i image) push(t *testing.T, registry, ref string, then ...func()) {
	t.Helper()
	full := registry + "/" + ref
	docker(t, "tag", i.name, full)
	defer docker(t, "rmi", full)
	docker(t, "push", "-q", full)
	for _, f := range then {
		f()
	}
}

// forget removes the image from the engine, so that the next pull has to bring every byte.
func (i image) forget(t *testing.T) {
	t.Helper()
	docker(t, "rmi", i.name)
}

// pull gets ref from the registry, compares it with the image and removes it again.
func (i image) pull(t *testing.T, registry, ref string) {
	t.Helper()
	full := registry + "/" + ref
	docker(t, "pull", "-q", full)
	defer docker(t, "rmi", full)
	if id := docker(t, "inspect", "--format", "{{.Id}}", full); id != i.id {
		t.Fatalf("%s is %s, pushed was %s", full, id, i.id)
	}
}

// repository is the top of this repository.
func repository(t *testing.T) string {
	t.Helper()
	out, err := try("", nil, "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		t.Fatal(err)
	}
	return out
}
