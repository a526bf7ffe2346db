package test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func parse(t *testing.T, name, text string) source {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return source{path: name, test: strings.HasSuffix(name, "_test.go"), file: file, fset: fset, text: []byte(text)}
}

// TestRulesBite breaks every rule of the house once, and keeps it once, with a file of its own.
func TestRulesBite(t *testing.T) {
	long := "package a\nfunc f() {\n" + strings.Repeat("\tg()\n", maxFunction) + "}\n"
	huge := "package a\n" + strings.Repeat("// line\n", maxFile)
	comment := "// Package a does one job and keeps it in mind: this sentence is here because a comment of three words is none,\n// and it should also say what the package is not.\n"
	for _, c := range []struct {
		name, file, text string
		rule             func([]source) []string
		faults           int
	}{
		{"arrow turned round", "fsm/a.go", "package fsm\nimport _ \"pier/api\"\n", importFaults, 1},
		{"arrow past a neighbour", "blobsync/a.go", "package blobsync\nimport _ \"pier/cluster\"\n", importFaults, 1},
		{"arrow to test", "cmd/pier/node/a.go", "package node\nimport _ \"pier/test/harness\"\n", importFaults, 1},
		{"arrow from a new package", "extra/a.go", "package extra\nimport _ \"pier/fsm\"\n", importFaults, 1},
		{"arrow of a test file", "fsm/a_test.go", "package fsm_test\nimport _ \"pier/cluster\"\n", importFaults, 1},
		{"fixture of a test file", "api/a_test.go", "package api\nimport _ \"pier/blobsync/store\"\n", importFaults, 0},
		{"fixture outside a test", "api/a.go", "package api\nimport _ \"pier/blobsync/store\"\n", importFaults, 1},
		{"tool of a test file", "cmd/pier/a_test.go", "package main\nimport _ \"pier/test/ports\"\n", importFaults, 0},
		{"tool outside a test", "cmd/pier/a.go", "package main\nimport _ \"pier/test/ports\"\n", importFaults, 1},
		{"harness in a test file", "cmd/pier/a_test.go", "package main\nimport _ \"pier/test/harness\"\n", importFaults, 1},
		{"arrow as drawn", "api/a.go", "package api\nimport _ \"pier/fsm\"\n", importFaults, 0},
		{"no package comment", "fsm/doc.go", "package fsm\n", docFaults, 1},
		{"no doc.go", "fsm/fsm.go", comment + "package fsm\n", docFaults, 1},
		{"package comment", "fsm/doc.go", comment + "package fsm\n", docFaults, 0},
		{"init", "a/a.go", "package a\nfunc init() {}\n", initFaults, 1},
		{"method called init", "a/a.go", "package a\ntype t int\nfunc (t) init() {}\n", initFaults, 0},
		{"plain global", "a/a.go", "package a\nvar count int\n", variableFaults, 1},
		{"made global", "a/a.go", "package a\nvar cache = make(map[string]int)\n", variableFaults, 1},
		{"global from a call", "a/a.go", "package a\nimport \"os\"\nvar host, _ = os.Hostname()\n", variableFaults, 1},
		{"table that is written", "a/a.go", "package a\nvar m = map[string]int{}\nfunc f() { m[\"x\"] = 1 }\n", variableFaults, 1},
		{"table whose address is taken", "a/a.go", "package a\nvar m = [2]int{}\nfunc f() *[2]int { return &m }\n", variableFaults, 1},
		{"pool", "a/a.go", "package a\nimport \"sync\"\nvar once sync.Once\n", variableFaults, 1},
		{"error that is no sentinel", "a/a.go", "package a\nimport \"errors\"\nvar bad = errors.New(\"bad\")\n", variableFaults, 1},
		{"sentinel and table", "a/a.go", "package a\nimport \"errors\"\nvar ErrBad = errors.New(\"bad\")\nvar m = map[string]int{\"a\": 1}\nfunc f(m []int) { m[0] = 1 }\n", variableFaults, 0},
		{"long function", "a/a.go", long, lengthFaults, 1},
		{"long file", "a/a.go", huge, lengthFaults, 1},
		// The sleeps and the skip below are sources for the rule to find: nothing here sleeps or is skipped.
		{"sleep in a test", "a/a_test.go", "package a\nimport zzz \"time\"\nfunc f() { zzz.Sleep(1) }\n", testFaults, 1},              // text for the rule: never run
		{"sleep in a helper of test", "test/harness/a.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", testFaults, 1}, // text for the rule: never run
		{"skip", "a/a_test.go", "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Skip() }\n", testFaults, 1},              // text for the rule: never run
		{"exit", "a/a.go", "package a\nimport \"os\"\nfunc f() { os.Exit(1) }\n", exitFaults, 1},
		{"exit in another file of main", "cmd/pier/serve.go", "package main\nimport \"os\"\nfunc f() { os.Exit(1) }\n", exitFaults, 1},
		{"exit in main.go", "cmd/pier/main.go", "package main\nimport \"os\"\nfunc main() { os.Exit(1) }\n", exitFaults, 0},
		{"log", "a/a.go", "package a\nimport \"log\"\nfunc f() { log.Print(1) }\n", loggerFaults, 1},
		{"global slog", "a/a.go", "package a\nimport \"log/slog\"\nfunc f() { slog.Info(\"x\") }\n", loggerFaults, 1},
		{"slog passed in", "a/a.go", "package a\nimport \"log/slog\"\nfunc f(l *slog.Logger) { l.Info(\"x\") }\n", loggerFaults, 0},
		{"promise", "a/a.go", "package a\n// TO" + "DO: later\n", wordFaults, 1},
		{"machine path", "a/a.go", "package a\nconst p = \"/wo" + "rk/x\"\n", wordFaults, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.rule([]source{parse(t, c.file, c.text)}); len(got) != c.faults {
				t.Errorf("%d faults, want %d: %q", len(got), c.faults, got)
			}
		})
	}
}

func TestCorpusRuleBites(t *testing.T) {
	root := t.TempDir()
	s := parse(t, "a/a_test.go", "package a\nimport \"testing\"\nfunc FuzzA(f *testing.F) {}\n")
	if got := corpusFaults(root, []source{s}); len(got) != 1 {
		t.Errorf("no corpus: %q", got)
	}
	dir := filepath.Join(root, "a", "testdata", "fuzz", "FuzzA")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := corpusFaults(root, []source{s}); len(got) != 1 {
		t.Errorf("empty corpus: %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "seed"), []byte("go test fuzz v1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := corpusFaults(root, []source{s}); len(got) != 0 {
		t.Errorf("with a corpus: %q", got)
	}
}
