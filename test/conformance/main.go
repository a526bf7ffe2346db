package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// options are the command's flags.
type options struct {
	scenarios []string
	versions  []string
	registry  string
	work      string
	binary    string
	kills     int
	every     time.Duration
	dead      time.Duration
	timeout   time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	scenarios := flags.String("scenario", "one,three,secure,kill", "what to run, of: one, three, secure, kill")
	versions := flags.String("version", "1.1,dev", "versions of the spec")
	flags.StringVar(&o.registry, "registry", "", "host:port of a registry that runs already; no scenario is started then")
	flags.StringVar(&o.work, "work", ".build", "directory for programs, data and reports")
	flags.StringVar(&o.binary, "pier", "", "the pier program; built when empty")
	flags.IntVar(&o.kills, "kills", 3, "how many leaders the kill scenario kills at least, for each version")
	flags.DurationVar(&o.every, "every", 10*time.Second, "how often the kill scenario kills the leader")
	flags.DurationVar(&o.dead, "dead", 3*time.Second, "how long a killed leader stays dead")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Minute, "limit for everything")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.scenarios, o.versions = strings.Split(*scenarios, ","), strings.Split(*versions, ",")
	for _, s := range o.scenarios {
		if !slices.Contains([]string{"one", "three", "secure", "kill"}, s) {
			return o, fmt.Errorf("there is no scenario %q", s)
		}
	}
	work, err := filepath.Abs(o.work)
	if err != nil {
		return o, fmt.Errorf("find the work directory: %w", err)
	}
	o.work = work
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	s, err := buildSuite(ctx, o.work)
	if err != nil {
		return err
	}
	if s.run, err = os.MkdirTemp(filepath.Dir(filepath.Dir(s.program)), "run-"); err != nil {
		return fmt.Errorf("make a directory for this run: %w", err)
	}
	if err := runAll(ctx, s, o); err != nil {
		return fmt.Errorf("%w\nlogs and reports: %s", err, s.run)
	}
	return os.RemoveAll(s.run)
}

func runAll(ctx context.Context, s suite, o options) error {
	if o.registry != "" {
		return runVersions(ctx, s, o, "registry", o.registry)
	}
	if o.binary == "" {
		binary, err := buildPier(ctx, s.run)
		if err != nil {
			return err
		}
		o.binary = binary
	}
	faults := make([]error, len(o.scenarios)+1)
	var group sync.WaitGroup
	for i, name := range o.scenarios {
		if name == "kill" {
			continue
		}
		group.Go(func() { faults[i] = runScenario(ctx, s, o, name) })
	}
	group.Wait()
	// Alone: how soon somebody else leads is a matter of seconds, which others would take.
	if slices.Contains(o.scenarios, "kill") {
		faults[len(o.scenarios)] = runScenario(ctx, s, o, "kill")
	}
	return errors.Join(faults...)
}

// runVersions runs the suite once for each version against one address.
func runVersions(ctx context.Context, s suite, o options, name, registry string, env ...string) error {
	var faults []error
	for _, version := range o.versions {
		if err := s.once(ctx, runConfig{name: name, version: version, registry: registry, env: env, closed: name == "secure"}); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}
