package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	maxFunction = 80
	maxFile     = 600
)

// arrows says what each package may import of this module; "*" is everything. A package that is not listed takes the rule of
// the nearest directory above it, and one without any may import nothing.
var arrows = map[string][]string{
	"fsm":             {},
	"cluster/port":    {},
	"cluster/raftlog": {},
	"blobsync/store":  {},
	"api/client":      {},
	"api/acme":        {},
	"api/auth":        {},
	"api/identity":    {"api/auth", "api/client"},
	"api/ui":          {},
	"cluster":         {"cluster/port", "cluster/raftlog"},
	"blobsync":        {"blobsync/store"},
	"api":             {"fsm", "blobsync", "api/auth", "api/identity", "api/ui", "api/client"},
	"cmd/pier/node":   {"fsm", "cluster", "cluster/port", "cluster/raftlog", "blobsync", "blobsync/store", "api", "api/acme", "api/auth", "api/identity", "api/ui", "api/client"},
	"cmd/pier":        {"cmd/pier/node", "api/client"},
	"test/oidc":       {},
	"test/ports":      {},
	"test/wait":       {},
	"test":            {"*"},
}

// tools are the packages of test that any test may use. They import nothing of this module.
var tools = []string{"test/oidc", "test/ports", "test/wait"}

// source is one parsed file.
type source struct {
	path string // from the module's root, with slashes
	test bool
	file *ast.File
	fset *token.FileSet
	text []byte
}

func (s source) line(p token.Pos) string { return s.path + ":" + strconv.Itoa(s.fset.Position(p).Line) }

func (s source) offset(p token.Pos) int { return s.fset.Position(p).Offset }

func moduleRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// sources parses every Go file of the module, files behind build tags included.
func sources(t *testing.T, root string) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "data") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		all = append(all, source{path: filepath.ToSlash(rel), test: strings.HasSuffix(name, "_test.go"), file: file, fset: fset, text: text})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d Go files found below %s", len(all), root)
	}
	return all
}

func TestHouse(t *testing.T) {
	root := moduleRoot(t)
	all := sources(t, root)
	check := func(name string, rule func([]source) []string) {
		t.Run(name, func(t *testing.T) {
			for _, fault := range rule(all) {
				t.Error(fault)
			}
		})
	}
	check("imports", importFaults)
	check("package comments", docFaults)
	check("no init", initFaults)
	check("no package variables", variableFaults)
	check("lengths", lengthFaults)
	check("tests", testFaults)
	check("exits only in main", exitFaults)
	check("no standard logger", loggerFaults)
	check("words", wordFaults)
	check("corpora", func(s []source) []string { return corpusFaults(root, s) })
}

// TestBinaryHasNoTests sees to it that nothing of test/ gets into the program.
func TestBinaryHasNoTests(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath", "./cmd/pier")
	cmd.Dir = moduleRoot(t)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ ImportPath string }
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(p.ImportPath, "pier/test") {
			t.Errorf("cmd/pier depends on %s", p.ImportPath)
		}
	}
}

func allowed(dir string) []string {
	for d := dir; d != "."; d = path.Dir(d) {
		if list, ok := arrows[d]; ok {
			return list
		}
	}
	return nil
}

// reachable adds what the listed packages may import in turn: a test may build its fixtures from those.
func reachable(list []string) []string {
	out := slices.Clone(list)
	for i := 0; i < len(out); i++ {
		for _, next := range arrows[out[i]] {
			if !slices.Contains(out, next) {
				out = append(out, next)
			}
		}
	}
	return out
}

func importFaults(all []source) []string {
	var faults []string
	for _, s := range all {
		dir := path.Dir(s.path)
		for _, spec := range s.file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				faults = append(faults, s.line(spec.Pos())+": "+err.Error())
				continue
			}
			target, ours := strings.CutPrefix(name, "pier/")
			list := allowed(dir)
			if s.test {
				list = append(reachable(list), tools...)
			}
			if !ours || target == dir || slices.Contains(list, "*") || slices.Contains(list, target) {
				continue
			}
			faults = append(faults, s.line(spec.Pos())+": "+dir+" may not import "+target)
		}
	}
	return faults
}

func docFaults(all []source) []string {
	packages, documented := map[string]bool{}, map[string]bool{}
	for _, s := range all {
		dir := path.Dir(s.path)
		packages[dir] = true
		if path.Base(s.path) == "doc.go" && s.file.Doc != nil && len(s.file.Doc.Text()) > 120 {
			documented[dir] = true
		}
	}
	var faults []string
	for dir := range packages {
		if !documented[dir] {
			faults = append(faults, dir+" has no doc.go that says what the package is for, its invariants and what it is not")
		}
	}
	return faults
}

func initFaults(all []source) []string {
	var faults []string
	for _, s := range all {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				faults = append(faults, s.line(f.Pos())+": an init function; let the caller call it")
			}
		}
	}
	return faults
}

func lengthFaults(all []source) []string {
	var faults []string
	for _, s := range all {
		if n := bytes.Count(s.text, []byte("\n")); n > maxFile {
			faults = append(faults, s.path+": "+strconv.Itoa(n)+" lines; at most "+strconv.Itoa(maxFile))
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			if n > maxFunction {
				faults = append(faults, s.line(f.Pos())+": "+f.Name.Name+" has "+strconv.Itoa(n)+" lines; at most "+strconv.Itoa(maxFunction))
			}
		}
	}
	return faults
}

// calls reports every call of package.function in s that is in the list; packages are matched by import path.
func calls(s source, list map[string][]string) []string {
	names := map[string][]string{}
	for _, spec := range s.file.Imports {
		full, err := strconv.Unquote(spec.Path.Value)
		if err != nil || list[full] == nil {
			continue
		}
		name := path.Base(full)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = list[full]
	}
	var found []string
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if ok && slices.Contains(names[x.Name], sel.Sel.Name) {
			found = append(found, s.line(n.Pos())+": "+x.Name+"."+sel.Sel.Name)
		}
		return true
	})
	return found
}

func testFaults(all []source) []string {
	var faults []string
	for _, s := range all {
		if !s.test && !strings.HasPrefix(s.path, "test/") {
			continue
		}
		for _, c := range calls(s, map[string][]string{"time": {"Sleep"}}) {
			faults = append(faults, c+": wait for what you wait for, not for time")
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && slices.Contains([]string{"t", "b", "f", "tb"}, x.Name) {
				faults = append(faults, s.line(n.Pos())+": a test that can skip itself; use a build tag or make it run")
			}
			return true
		})
	}
	return faults
}

func exitFaults(all []source) []string {
	var faults []string
	for _, s := range all {
		dir := path.Dir(s.path)
		if s.test || s.file.Name.Name == "main" && path.Base(s.path) == "main.go" {
			continue
		}
		found := calls(s, map[string][]string{"os": {"Exit"}, "syscall": {"Exit"}, "log": {"Fatal", "Fatalf", "Fatalln"}, "runtime": {"Goexit"}})
		for _, c := range found {
			faults = append(faults, c+" in "+dir+": return an error; only main.go exits")
		}
	}
	return faults
}

func loggerFaults(all []source) []string {
	var faults []string
	for _, s := range all {
		for _, spec := range s.file.Imports {
			if spec.Path.Value == `"log"` && !onlyUses(s, "log", "Logger", "New") {
				faults = append(faults, s.line(spec.Pos())+": the log package; take a *slog.Logger")
			}
		}
		global := map[string][]string{"log/slog": {"Default", "SetDefault", "Debug", "Info", "Warn", "Error", "Log", "With"}}
		for _, c := range calls(s, global) {
			faults = append(faults, c+": the global logger; take a *slog.Logger")
		}
	}
	return faults
}

// onlyUses is for libraries that want a *log.Logger: such an adapter may name the type and make one.
func onlyUses(s source, name string, allowed ...string) bool {
	only := true
	ast.Inspect(s.file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == name && !slices.Contains(allowed, sel.Sel.Name) {
				only = false
			}
		}
		return true
	})
	return only
}

// wordFaults finds what must not be left in source: promises to finish it later, and paths of somebody's machine.
func wordFaults(all []source) []string {
	banned := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b|not (yet )?implemen` + `ted|/wo` + `rk/|/home/[a-z]|/Us` + `ers/`)
	var faults []string
	for _, s := range all {
		for i, line := range strings.Split(string(s.text), "\n") {
			if m := banned.FindString(line); m != "" {
				faults = append(faults, s.path+":"+strconv.Itoa(i+1)+": "+strconv.Quote(m))
			}
		}
	}
	return faults
}

func corpusFaults(root string, all []source) []string {
	var faults []string
	for _, s := range all {
		if !s.test {
			continue
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Fuzz") || f.Recv != nil {
				continue
			}
			dir := filepath.Join(root, filepath.FromSlash(path.Dir(s.path)), "testdata", "fuzz", f.Name.Name)
			seeds, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				faults = append(faults, err.Error())
			} else if len(seeds) == 0 {
				faults = append(faults, s.line(f.Pos())+": "+f.Name.Name+" has no seeds in testdata/fuzz/"+f.Name.Name)
			}
		}
	}
	return faults
}
