package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
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
		f := flags.VarPF(&written{text: s.Value(defaults), kind: s.Kind}, s.Name, "", fmt.Sprintf("%s (%s)", s.Help, s.Variable()))
		if s.Kind == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// written is a flag as it stands on the command line. Load reads it, with what else there is of the setting.
type written struct {
	text, kind string
	again      bool
}

func (w *written) String() string { return w.text }
func (w *written) Type() string   { return w.kind }
func (w *written) Set(text string) error {
	if w.again && w.kind == "strings" {
		text = w.text + "," + text
	}
	w.text, w.again = text, true
	return nil
}

// Load takes flags before variables before the file before the defaults, and gives every problem at once, each under the
// name that the user wrote.
func Load(flags *pflag.FlagSet, environment []string) (Config, error) {
	l := &loader{cfg: Default(), written: make(map[string]string), broken: make(map[string]bool)}
	env := variables(environment)
	l.file(configPath(flags, env))
	known := map[string]bool{"PIER_CONFIG": true, "PIER_SERVER": true}
	for _, s := range Settings() {
		known[s.Variable()] = true
		if v, ok := env[s.Variable()]; ok {
			l.set(s, s.Variable(), v)
		}
		if f := flags.Lookup(s.Name); f != nil && f.Changed {
			l.set(s, "--"+s.Name, f.Value.String())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if !known[name] && !strings.HasPrefix(name, "PIER_TEST_") {
			l.bad(name, errUnknown)
		}
	}
	for _, p := range l.cfg.problems() {
		if !l.broken[p.setting] {
			l.bad(cmp.Or(l.written[p.setting], p.setting), p.err)
		}
	}
	return l.cfg, errors.Join(l.problems...)
}

var errUnknown = errors.New("there is no such setting")

// loader gathers the settings, and what is wrong with them.
type loader struct {
	cfg      Config
	written  map[string]string // what the user called a setting, where its value comes from
	broken   map[string]bool   // settings whose last value could not be read
	problems []error
}

func (l *loader) bad(name string, err error) {
	l.problems = append(l.problems, fmt.Errorf("%s: %w", name, err))
}

func (l *loader) set(s Setting, name, value string) {
	err := s.Set(&l.cfg, value)
	l.written[s.Name], l.broken[s.Name] = name, err != nil
	if err != nil {
		l.bad(name, err)
	}
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

func (l *loader) file(path string) {
	if path == "" {
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		l.bad("read the configuration", err)
		return
	}
	var keys map[string]yaml.Node
	if err := yaml.Unmarshal(data, &keys); err != nil {
		l.bad(path, err)
		return
	}
	settings := Settings()
	inOrder := slices.SortedFunc(maps.Keys(keys), func(a, b string) int { return cmp.Compare(keys[a].Line, keys[b].Line) })
	for _, key := range inOrder {
		value := keys[key]
		at := fmt.Sprintf("%s:%d: %s", path, value.Line, key)
		i := slices.IndexFunc(settings, func(s Setting) bool { return s.Name == key })
		if i < 0 {
			l.bad(at, errUnknown)
			continue
		}
		text, err := plainText(value, settings[i].List)
		if err != nil {
			l.broken[key] = true
			l.bad(at, err)
			continue
		}
		l.set(settings[i], at, text)
	}
}

// plainText is a value of the file as a flag would have it.
func plainText(value yaml.Node, list bool) (string, error) {
	switch {
	case value.Kind == yaml.SequenceNode && list:
		var items []string
		err := value.Decode(&items)
		return strings.Join(items, ","), err
	case value.Kind != yaml.ScalarNode:
		return "", errors.New("want one plain value")
	case value.Tag == "!!null":
		return "", errors.New("want a value")
	}
	return value.Value, nil
}
