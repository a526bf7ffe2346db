package main

import (
	"context"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"pier": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = taken.Close() })
			_, port, err := net.SplitHostPort(taken.Addr().String())
			e.Setenv("TAKEN", port)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": exitCode, "await": await},
	})
}

// await waits until the node of a data directory takes pushes.
func await(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ts.Exec("pier", "health", "--push", "--data-dir", args[0]) != nil {
		select {
		case <-deadline:
			ts.Fatalf("the node of %s does not get ready", args[0])
		case <-tick.C:
		}
	}
}

// exitCode runs pier and wants an exit code: code N args…
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	want := args[0]
	err := ts.Exec("pier", args[1:]...)
	got := "0"
	if err != nil {
		got = "failed"
		for _, code := range []string{"1", "2", "3", "4"} {
			if err.Error() == "exit status "+code {
				got = code
			}
		}
	}
	if got != want {
		ts.Fatalf("exit code %s (%v), not %s", got, err, want)
	}
}
