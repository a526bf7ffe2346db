package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	suiteModule  = "github.com/opencontainers/distribution-spec/conformance"
	suiteVersion = "v0.0.0-20260831232431-97274622c111"
)

// suite is the built official program and the directory of this run, which has data and reports and is nobody else's.
type suite struct {
	program string
	run     string
}

// buildSuite builds the official suite once for each version of it.
func buildSuite(ctx context.Context, work string) (suite, error) {
	dir := filepath.Join(work, "conformance", suiteVersion)
	s := suite{program: filepath.Join(dir, "conformance")}
	if _, err := os.Stat(s.program); err == nil {
		return s, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s, fmt.Errorf("make the suite's directory: %w", err)
	}
	return s, command(ctx, []string{"GOBIN=" + dir, "GOFLAGS="}, "go", "install", suiteModule+"@"+suiteVersion)
}

// buildPier builds the program of this module.
func buildPier(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "pier")
	return program, command(ctx, []string{"CGO_ENABLED=0"}, "go", "build", "-o", program, "./cmd/pier")
}

func command(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}

// runConfig is one run of the suite.
type runConfig struct {
	name     string // of the scenario, for reports
	version  string // of the spec
	registry string // host:port
	round    int    // makes the repositories of repeated runs different
	env      []string
	closed   bool // access control is on
}

// once runs the suite and judges its report.
func (s suite) once(ctx context.Context, r runConfig) error {
	results := filepath.Join(s.run, r.name+"-"+r.version)
	if err := os.MkdirAll(results, 0o755); err != nil {
		return fmt.Errorf("make the report's directory: %w", err)
	}
	repo := fmt.Sprintf("conformance/%s-%s-%d", r.name, strings.ReplaceAll(r.version, ".", "-"), r.round)
	cmd := exec.CommandContext(ctx, s.program)
	cmd.Dir = results
	cmd.Env = append(plainEnvironment(),
		"OCI_REGISTRY="+r.registry, "OCI_TLS=disabled", "OCI_VERSION="+r.version, "OCI_RESULTS_DIR="+results,
		"OCI_REPO1="+repo+"/one", "OCI_REPO2="+repo+"/two",
		// These two are off in version 1.1 and on in dev; nothing is off here.
		"OCI_API_BLOBS_UPLOAD_CANCEL=true", "OCI_API_MANIFESTS_TAG_PARAM=true",
		"OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true")
	cmd.Env = append(cmd.Env, r.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	runErr := cmd.Run()
	if err := os.WriteFile(filepath.Join(results, "output.txt"), out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("keep the suite's output: %w", err)
	}
	v, err := judge(filepath.Join(results, "junit.xml"), r.closed)
	err = errors.Join(err, judgeSummary(filepath.Join(results, "results.yaml"), r.closed))
	skipped := v.skipped + v.narrowed
	fmt.Printf("%-6s %-4s round %-3d %4d passed, %d failed, %d skipped, %d disabled  %.1f s\n",
		r.name, r.version, r.round, v.passed, v.failed, skipped, v.disabled, time.Since(began).Seconds())
	for i, f := range v.faults {
		if i == maxShown {
			fmt.Printf("    and %d more\n", len(v.faults)-maxShown)
			break
		}
		fmt.Println("   ", strings.ReplaceAll(f, "\n", " | "))
	}
	if err := errors.Join(runErr, err); err != nil {
		return fmt.Errorf("%s, version %s (report: %s): %w", r.name, r.version, results, err)
	}
	return nil
}

// plainEnvironment is the environment without settings of the suite, so that nothing is disabled from outside.
func plainEnvironment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "OCI_") {
			env = append(env, v)
		}
	}
	return env
}

// verdict is what a report says.
type verdict struct {
	passed, failed, skipped, disabled int
	narrowed                          int // skipped because a token is for one repository
	faults                            []string
}

type junitReport struct {
	Tests    int `xml:"tests,attr"`
	Failures int `xml:"failures,attr"`
	Errors   int `xml:"errors,attr"`
	Skipped  int `xml:"skipped,attr"`
	Disabled int `xml:"disabled,attr"`
	Cases    []struct {
		Name   string `xml:"name,attr"`
		Status string `xml:"status,attr"`
		Out    string `xml:"system-out"`
	} `xml:"testsuite>testcase"`
}

// maxShown bounds the faults that are printed; the report has all.
const maxShown = 20

// minimumTests is far below what the suite has and far above what a broken run reports.
const minimumTests = 300

// narrow marks the tests of a mount that names no source. A token is for what a client asked for, and the suite's for the one
// repository: what such a mount could take stays with the rest of its user's rights. The spec lets a registry answer 202.
const narrow = "mount anonymous"

// judge reads the report; its error is nil only when everything ran and passed.
func judge(path string, closed bool) (verdict, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return verdict{}, fmt.Errorf("the suite left no report: %w", err)
	}
	var report junitReport
	if err := xml.Unmarshal(data, &report); err != nil {
		return verdict{}, fmt.Errorf("read the suite's report: %w", err)
	}
	v := verdict{failed: report.Failures + report.Errors, skipped: report.Skipped, disabled: report.Disabled}
	v.passed = report.Tests - v.failed - v.skipped - v.disabled
	for _, c := range report.Cases {
		if closed && c.Status == "skipped" && strings.Contains(c.Name, narrow) {
			v.skipped--
			v.narrowed++
		} else if c.Status != "passed" {
			v.faults = append(v.faults, fmt.Sprintf("%s: %s: %s", c.Status, c.Name, strings.TrimSpace(c.Out)))
		}
	}
	switch {
	case v.failed+v.skipped+v.disabled > 0 || len(v.faults) > 0:
		return v, fmt.Errorf("%d failed, %d skipped, %d disabled", v.failed, v.skipped, v.disabled)
	case v.passed < minimumTests:
		return v, fmt.Errorf("only %d tests ran", v.passed)
	case closed && v.narrowed == 0:
		return v, errors.New("a token for one repository took a blob from another")
	}
	return v, nil
}

const (
	// summaryAPIs and summaryData are how many lines the suite's summary has when everything was tried.
	summaryAPIs = 28
	summaryData = 24
	// sparse are manifests whose parts were not pushed. The spec lets a registry refuse them, Pier does (api's tests show how),
	// and the suite leaves them out unless asked, in every version.
	sparse = "Sparse Manifests"
	// narrowLine is what the summary says of the mounts that a token is too narrow for.
	narrowLine = "Blob anonymous mount"
)

// judgeSummary reads what the suite says about each API and each kind of data. What is switched off shows nowhere else: the
// report of the tests has no line for what was never tried.
func judgeSummary(path string, closed bool) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("the suite left no summary: %w", err)
	}
	var summary struct{ APIs, Data map[string]string }
	if err := yaml.Unmarshal(data, &summary); err != nil {
		return fmt.Errorf("read the suite's summary: %w", err)
	}
	var faults []string
	for _, part := range []map[string]string{summary.APIs, summary.Data} {
		for name, status := range part {
			if status != "Pass" && name != sparse && !(closed && name == narrowLine && status == "Skip") {
				faults = append(faults, name+": "+status)
			}
		}
	}
	slices.Sort(faults)
	switch {
	case len(faults) > 0:
		return errors.New(strings.Join(faults, ", "))
	case len(summary.APIs) < summaryAPIs || len(summary.Data) < summaryData:
		return fmt.Errorf("only %d APIs and %d kinds of data were tried", len(summary.APIs), len(summary.Data))
	}
	return nil
}
