//go:build docker

package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/test/wait"
)

// insideLAN is set where a test runs on the client of the network that testdata/lan.sh makes.
const insideLAN = "PIER_TEST_LAN"

// inLAN runs the test that calls it once more, on the client of a network of its own, and tells which of the two this is.
func inLAN(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideLAN) != "" {
		return true
	}
	dir := t.TempDir()
	run(t, []string{"CGO_ENABLED=0"}, "go", "build", "-o", filepath.Join(dir, "pier"), "pier/cmd/pier")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "testdata/lan.sh", self, "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "4m")
	path := strings.Join([]string{dir, filepath.Join(repository(t), ".build", "bin"), os.Getenv("PATH")}, ":")
	cmd.Env = append(os.Environ(), insideLAN+"=1", "PATH="+path)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("on the client:\n%s", out)
	if err != nil {
		t.Errorf("on the client: %v", err)
	}
	return false
}

// machines are where the nodes run, and names what clients call them.
func machines() []string { return []string{"node1", "node2", "node3"} }
func names() []string {
	return []string{"registry1.lan:5000", "registry2.lan:5000", "registry3.lan:5000"}
}

// startNodes runs pier serve on the three machines, as the README says, and waits until they take pushes.
func startNodes(t *testing.T) {
	t.Helper()
	secret := filepath.Join("/etc/pier", "cluster.secret")
	run(t, nil, "sh", "-c", "umask 077 && head -c 32 /dev/urandom | base64 >"+secret)
	for i, m := range machines() {
		if err := os.MkdirAll(home(m), 0o700); err != nil {
			t.Fatal(err)
		}
		background(t, home(m), m, "ip", "netns", "exec", m, "pier", "serve", "--tls", "auto", "--public-name", strings.TrimSuffix(names()[i], ":5000"),
			"--listen", "0.0.0.0:5000", "--name", m, "--cluster-advertise", m+":7000", "--cluster-listen", "0.0.0.0:7000",
			"--join", "node1:7000,node2:7000,node3:7000", "--bootstrap-expect", "3", "--cluster-secret-file", secret)
	}
	for _, m := range machines() {
		wait.Until(t, 30*time.Second, m+" takes pushes", func() error {
			_, err := on(m, "pier", "health", "--push")
			return err
		})
	}
}

// startEngines runs containerd and the Docker engine on the client.
func startEngines(t *testing.T) {
	t.Helper()
	background(t, "/", "containerd", "containerd")
	background(t, "/", "dockerd", "dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs",
		"--containerd=/run/containerd/containerd.sock")
	wait.Until(t, 30*time.Second, "the Docker engine answers", func() error {
		_, err := attempt("/", nil, "", "docker", "info")
		return err
	})
}

// home is the working directory on a machine: pier serve keeps ./data there, and the other commands find it.
func home(machine string) string { return filepath.Join("/run", machine+".home") }

// on runs a command on a machine, where a person would sit to run it.
func on(machine string, args ...string) (string, error) {
	return attempt(home(machine), nil, "", "ip", append([]string{"netns", "exec", machine}, args...)...)
}

// must fails the test when what it is given failed, and passes on what was printed.
func must(t *testing.T) func(string, error) string {
	return func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// attempt runs a program and returns everything it printed; the error has that too.
func attempt(dir string, env []string, stdin string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), env...), strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, text)
	}
	return text, err
}

// typed runs a command line at a terminal, where a person gives the answers, one for each prompt.
func typed(dir string, line string, answers ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "script", "--quiet", "--flush", "--return", "--command", line, "/dev/null")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var all bytes.Buffer
	var faults []error
	for buf := make([]byte, 4096); ; {
		n, err := out.Read(buf)
		all.Write(buf[:n])
		if len(answers) > 0 && bytes.HasSuffix(bytes.TrimRight(all.Bytes(), " "), []byte(":")) {
			_, writeErr := io.WriteString(in, answers[0]+"\n")
			faults, answers = append(faults, writeErr), answers[1:]
		}
		if err != nil {
			break // the end, or what Wait says
		}
	}
	if err := cmd.Wait(); err != nil {
		faults = append(faults, fmt.Errorf("%s: %w\n%s", line, err, all.String()))
	}
	return strings.TrimSpace(all.String()), errors.Join(faults...)
}

// background runs a program until the end of the test; its output shows when that has failed.
func background(t *testing.T, dir, title, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 15 * time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was told to end
		if t.Failed() {
			t.Logf("%s said:\n%s", title, out.String()[max(0, out.Len()-8000):])
		}
	})
}
