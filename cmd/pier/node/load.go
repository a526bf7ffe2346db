package node

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// configFlag names the file; it has no key in the file itself.
const configFlag = "config"

// AddFlags gives each setting its flag.
func AddFlags(flags *pflag.FlagSet) {
	defaults := Default()
	flags.String(configFlag, "", "YAML file with settings (PIER_CONFIG)")
	for _, s := range Settings() {
		flags.String(s.Name, s.Value(defaults), fmt.Sprintf("%s (%s)", s.Help, s.Variable()))
	}
}

// Load takes flags before variables before the file before the defaults, and gives every problem at once, each under the
// name that the user wrote.
func Load(flags *pflag.FlagSet, environment []string) (Config, error) {
	cfg := Default()
	env := variables(environment)
	problems := applyFile(&cfg, configPath(flags, env))
	known := map[string]bool{"PIER_CONFIG": true, "PIER_SERVER": true}
	for _, s := range Settings() {
		known[s.Variable()] = true
		if v, ok := env[s.Variable()]; ok {
			problems = append(problems, named(s.Variable(), s.Set(&cfg, v)))
		}
		if f := flags.Lookup(s.Name); f != nil && f.Changed {
			problems = append(problems, named("--"+s.Name, s.Set(&cfg, f.Value.String())))
		}
	}
	for name := range env {
		if !known[name] && !strings.HasPrefix(name, "PIER_TEST_") {
			problems = append(problems, fmt.Errorf("%s: there is no such setting", name))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return cfg, err
	}
	return cfg, cfg.Validate()
}

func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

func variables(environment []string) map[string]string {
	out := make(map[string]string)
	for _, e := range environment {
		if name, value, ok := strings.Cut(e, "="); ok && strings.HasPrefix(name, "PIER_") {
			out[name] = value
		}
	}
	return out
}

func configPath(flags *pflag.FlagSet, env map[string]string) string {
	if f := flags.Lookup(configFlag); f != nil && f.Changed {
		return f.Value.String()
	}
	return env["PIER_CONFIG"]
}

func applyFile(cfg *Config, path string) []error {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return []error{fmt.Errorf("read the configuration: %w", err)}
	}
	var keys map[string]yaml.Node
	if err := yaml.Unmarshal(data, &keys); err != nil {
		return []error{fmt.Errorf("%s: %w", path, err)}
	}
	var problems []error
	settings := Settings()
	for key, value := range keys {
		at := fmt.Sprintf("%s:%d: %s", path, value.Line, key)
		i := slices.IndexFunc(settings, func(s Setting) bool { return s.Name == key })
		if i < 0 {
			problems = append(problems, fmt.Errorf("%s: there is no such setting", at))
			continue
		}
		text := value.Value
		if value.Kind == yaml.SequenceNode {
			var list []string
			if err := value.Decode(&list); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", at, err))
				continue
			}
			text = strings.Join(list, ",")
		}
		problems = append(problems, named(at, settings[i].Set(cfg, text)))
	}
	return problems
}
