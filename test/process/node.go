package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
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

func (n *Node) terminate() {
	if n.cmd != nil && !n.asked {
		n.asked = true
		_ = n.cmd.Process.Signal(syscall.SIGTERM) // a process that has ended already shows in Stop
	}
}

// WaitReady returns when the node takes pushes, or with the reason why it doesn't when ctx or the process ends.
func (n *Node) WaitReady(ctx context.Context) error {
	err := poll(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.URL+"/readyz?for=push", nil)
		if err != nil {
			return err
		}
		resp, err := n.client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz says %s", resp.Status)
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
