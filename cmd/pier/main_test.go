package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pier/test/ports"
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
			e.Setenv("GORACE", "atexit_sleep_ms=0") // else the detector gives each command another second
			return setPorts(e)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": exitCode, "await": await, "url": setURL, "await-file": awaitFile, "certificates": certificates},
	})
}

// setPorts tells a script ports for dev clusters: FREE of three nodes that can start; TAKEN, of one whose API port is taken, and
// TAKEN_UDP, of one whose gossip port is.
func setPorts(e *testscript.Env) error {
	var claim ports.Claim
	e.Defer(claim.Release)
	free, err := claim.Take(1, 2, devClusterStep, devClusterStep+1, devClusterStep+2)
	if err != nil {
		return err
	}
	taken, err := claim.Take(devClusterStep)
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", taken))
	if err != nil {
		return err
	}
	e.Defer(func() { _ = lis.Close() })
	takenUDP, err := claim.Take(devClusterStep)
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", takenUDP+devClusterStep))
	if err != nil {
		return err
	}
	e.Defer(func() { _ = packets.Close() })
	for name, p := range map[string]int{"FREE": free, "TAKEN": taken, "TAKEN_UDP": takenUDP} {
		e.Setenv(name, strconv.Itoa(p))
	}
	return nil
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

// awaitFile waits until a file is there, or gone.
func awaitFile(ts *testscript.TestScript, gone bool, args []string) {
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ts.MkAbs(args[0])); (err != nil) == gone {
			return
		}
		select {
		case <-deadline:
			ts.Fatalf("%s does not come", args[0])
		case <-tick.C:
		}
	}
}

// setURL sets $URL to where clients reach the node of a data directory: url DIR SCHEME.
func setURL(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("pier", "cluster", "status", "-o", "json", "--data-dir", args[0]))
	found := regexp.MustCompile(`"api": "([^"]+)"`).FindStringSubmatch(ts.ReadFile("stdout"))
	if found == nil {
		ts.Fatalf("status names no address")
	}
	ts.Setenv("URL", args[1]+"://"+found[1])
	ts.Setenv("ADDRESS", found[1])
}

// Who gives several requests the same ID hides none of them, and nodes that are silent aren't passed over in silence.
func TestAuditShowsAll(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"silent":["b","c"],"lines":[{"time":"2026-01-02T03:04:05Z","request":"x","action":"PUT manifest","reference":"1"},`+
			`{"time":"2026-01-02T03:04:06Z","request":"x","action":"PUT manifest","reference":"2"}]}`)
	}))
	defer server.Close()
	var out, warned strings.Builder
	if code := run(t.Context(), []string{"audit", "--server", server.URL, "-o", "json"}, &out, &warned); code != 0 || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("%d: %s", code, out.String())
	}
	if !strings.Contains(warned.String(), "no answer from b, c,") {
		t.Errorf("who is silent isn't named: %s", warned.String())
	}
}
