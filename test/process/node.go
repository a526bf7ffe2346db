package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Node is one process that can be ended and started again.
type Node struct {
	Name    string
	DataDir string
	URL     string

	binary  string
	args    []string
	logPath string
	client  *http.Client
	cmd     *exec.Cmd
	ended   chan error // gets what Wait returned, once
	asked   bool       // SIGTERM was sent; a second one may mean more
}

// Start runs the node; its log goes on in the same file. It does not wait until the node is ready.
func (n *Node) Start() error {
	if n.cmd != nil {
		return fmt.Errorf("%s runs already", n.Name)
	}
	log, err := os.OpenFile(n.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open %s's log: %w", n.Name, err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(n.binary, n.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = deathSignal()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	n.cmd, n.ended, n.asked = cmd, ended, false
	return nil
}

// Kill ends the node as a power cut would, as far as a process can tell: SIGKILL.
func (n *Node) Kill() error {
	if n.cmd == nil {
		return fmt.Errorf("%s does not run", n.Name)
	}
	if err := n.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", n.Name, err)
	}
	<-n.ended
	n.cmd = nil
	return nil
}

// Stop ends the node as an operator does and waits up to 20 s. A node that does not run is no error; one that had to be
// killed, or that ended with a failure, is.
func (n *Node) Stop() error {
	if n.cmd == nil {
		return nil
	}
	n.terminate()
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	select {
	case err := <-n.ended:
		n.cmd = nil
		if err != nil {
			return fmt.Errorf("%s ended badly: %w", n.Name, err)
		}
		return nil
	case <-timer.C:
		return errors.Join(fmt.Errorf("%s did not end within 20 s of SIGTERM", n.Name), n.Kill())
	}
}

// Pier runs a command of the same program on this node's data directory and returns what it printed. The error has what it
// complained of, and is an *exec.ExitError underneath when the command ran.
func (n *Node) Pier(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, n.binary, append(args, "--data-dir", n.DataDir)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("pier %s on %s: %w: %s", strings.Join(args, " "), n.Name, err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// WaitEnd returns when the process has ended by itself; the error is why it ended badly, or ctx's.
func (n *Node) WaitEnd(ctx context.Context) error {
	select {
	case err := <-n.ended:
		n.cmd = nil
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s goes on: %w", n.Name, ctx.Err())
	}
}

func (n *Node) terminate() {
	if n.cmd != nil && !n.asked {
		n.asked = true
		_ = n.cmd.Process.Signal(syscall.SIGTERM) // a process that has ended already shows in Stop
	}
}

// WaitReady returns when the node takes pushes, or with the reason why it doesn't when ctx or the process ends.
func (n *Node) WaitReady(ctx context.Context) error { return n.waitFor(ctx, "/readyz?for=push") }

// WaitUp returns when the node answers requests, ready for them or not.
func (n *Node) WaitUp(ctx context.Context) error { return n.waitFor(ctx, "/healthz") }

func (n *Node) waitFor(ctx context.Context, path string) error {
	err := poll(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.URL+path, nil)
		if err != nil {
			return err
		}
		resp, err := n.client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s says %s", path, resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s is not ready (log: %s): %w", n.Name, n.logPath, err)
	}
	return nil
}

// poll calls f until it returns nil. When ctx ends first the error has f's last reason.
func poll(ctx context.Context, f func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}
