//go:build docker

package docker

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// interruptChildren sends what Ctrl-C sends to the children of a process. go run itself would end with 1 after it, whatever
// its program said.
func interruptChildren(t *testing.T, pid int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		children, _ := os.ReadFile(list) // a thread may have ended
		for _, child := range strings.Fields(string(children)) {
			if _, err := try("", nil, "kill", "-INT", child); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestDev is the first thing that the README shows: go run in a fresh clone, the line that it prints, and Ctrl-C.
func TestDev(t *testing.T) {
	cmd := exec.Command("go", "run", "./cmd/pier", "dev")
	cmd.Dir = cleanTree(t)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	group := -cmd.Process.Pid
	limit := time.AfterFunc(3*time.Minute, func() { _ = syscall.Kill(group, syscall.SIGKILL) })
	defer limit.Stop()
	defer func() { _ = syscall.Kill(group, syscall.SIGKILL) }()

	var printed []string
	line := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		printed = append(printed, lines.Text())
		if strings.Contains(lines.Text(), "docker push") {
			line = strings.TrimSpace(lines.Text())
		}
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			if line == "" {
				break
			}
			if _, err := try("", nil, "sh", "-ec", line); err != nil {
				t.Error(err)
			}
			docker(t, "rmi", ports()[0]+"/hello:1", ports()[2]+"/hello:1")
			interruptChildren(t, cmd.Process.Pid)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if line == "" || printed[len(printed)-1] != "stopped" {
		t.Errorf("it printed:\n%s", strings.Join(printed, "\n"))
	}
}
