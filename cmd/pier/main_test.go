package main

import (
	"context"
	"errors"
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
			packets, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = packets.Close() })
			e.Setenv("TAKEN", strconv.Itoa(taken.Addr().(*net.TCPAddr).Port))
			e.Setenv("TAKEN_UDP_API", strconv.Itoa(packets.LocalAddr().(*net.UDPAddr).Port-devClusterStep))
			free, err := freePorts(3)
			e.Setenv("FREE", strconv.Itoa(free))
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": exitCode, "await": await, "url": setURL, "await-file": awaitFile, "certificates": certificates},
	})
}

// freePorts finds a port from which n in a row are free for a dev cluster.
func freePorts(n int) (int, error) {
	for port := 20000; port < 30000; port += n {
		if (&devOptions{nodes: n, port: port}).checkPorts() == nil {
			return port, nil
		}
	}
	return 0, errors.New("no ports are free")
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

// Who gives several requests the same ID hides none of them.
func TestAuditShowsAll(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"lines":[{"time":"2026-01-02T03:04:05Z","request":"x","action":"PUT manifest","reference":"1"},`+
			`{"time":"2026-01-02T03:04:06Z","request":"x","action":"PUT manifest","reference":"2"}]}`)
	}))
	defer server.Close()
	var out strings.Builder
	if code := run(t.Context(), []string{"audit", "--server", server.URL, "-o", "json"}, &out, &out); code != 0 || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("%d: %s", code, out.String())
	}
}
