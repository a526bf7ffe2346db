package test

import (
	"go/ast"
	"go/token"
	"path"
	"strings"
)

// variableFaults holds package-level variables to two kinds: Err… sentinels, and tables that are written once where they are
// declared and never assigned, changed or handed out by address afterwards.
func variableFaults(all []source) []string {
	var faults []string
	written := writtenNames(all)
	for _, s := range all {
		for _, d := range s.file.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.VAR {
				continue
			}
			for _, spec := range decl.Specs {
				for i, name := range spec.(*ast.ValueSpec).Names {
					if fault := variableFault(s, spec.(*ast.ValueSpec), i, written); fault != "" {
						faults = append(faults, s.line(name.Pos())+": "+name.Name+" "+fault)
					}
				}
			}
		}
	}
	return faults
}

func variableFault(s source, spec *ast.ValueSpec, i int, written map[string]bool) string {
	name := spec.Names[i].Name
	if name == "_" || hasEmbed(s, spec) {
		return ""
	}
	if written[path.Dir(s.path)+"\x00"+name] {
		return "is a package variable that is changed; put it in a struct"
	}
	if stamped(s, spec, name) {
		return ""
	}
	if s.test && i < len(spec.Values) && strings.HasPrefix(string(s.text[s.offset(spec.Values[i].Pos()):]), "flag.") {
		return "" // go test offers no other way to add a flag such as -update
	}
	if i >= len(spec.Values) {
		return "is a package variable without a value; put it in a struct"
	}
	if !constantLike(spec.Values[i], strings.HasPrefix(strings.ToLower(name), "err")) {
		return "is a package variable that is neither an Err… sentinel nor a read-only table"
	}
	return ""
}

// stamped is the one string that the linker may set: main.version of a program.
func stamped(s source, spec *ast.ValueSpec, name string) bool {
	return s.file.Name.Name == "main" && name == "version" && len(spec.Values) == 1
}

func hasEmbed(s source, spec *ast.ValueSpec) bool {
	for _, group := range s.file.Comments {
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, "//go:embed") && c.End() < spec.Pos() && s.fset.Position(c.End()).Line+1 == s.fset.Position(spec.Pos()).Line {
				return true
			}
		}
	}
	return false
}

// constantLike accepts literals, compiled expressions, conversions of literals and, for sentinels, any error constructor.
func constantLike(e ast.Expr, sentinel bool) bool {
	switch v := e.(type) {
	case *ast.CompositeLit, *ast.BasicLit, *ast.FuncLit:
		return true
	case *ast.UnaryExpr:
		return constantLike(v.X, sentinel)
	case *ast.BinaryExpr:
		return constantLike(v.X, sentinel) && constantLike(v.Y, sentinel)
	case *ast.ParenExpr:
		return constantLike(v.X, sentinel)
	case *ast.Ident, *ast.SelectorExpr:
		return true // another table or sentinel, which is judged where it stands
	case *ast.CallExpr:
		if _, ok := v.Fun.(*ast.ArrayType); ok {
			return len(v.Args) == 1 && constantLike(v.Args[0], sentinel)
		}
		sel, ok := v.Fun.(*ast.SelectorExpr)
		if !ok {
			return sentinel
		}
		switch sel.Sel.Name {
		case "MustCompile", "NewReplacer", "Date":
			return true
		}
		return sentinel && (sel.Sel.Name == "New" || sel.Sel.Name == "Errorf")
	}
	return false
}

// writtenNames finds, per package, every name of a package variable that is assigned, counted up, indexed for writing, or
// whose address is taken. Locals that shadow a name are told apart by the parser's own resolution.
func writtenNames(all []source) map[string]bool {
	top, specs := map[string]bool{}, map[any]bool{}
	for _, s := range all {
		for _, d := range s.file.Decls {
			if decl, ok := d.(*ast.GenDecl); ok && decl.Tok == token.VAR {
				for _, spec := range decl.Specs {
					specs[spec] = true
					for _, name := range spec.(*ast.ValueSpec).Names {
						top[path.Dir(s.path)+"\x00"+name.Name] = true
					}
				}
			}
		}
	}
	written := map[string]bool{}
	for _, s := range all {
		mark := func(e ast.Expr) {
			id := rootIdent(e)
			if id == nil || localTo(id, specs) {
				return
			}
			if key := path.Dir(s.path) + "\x00" + id.Name; top[key] {
				written[key] = true
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch v := n.(type) {
			case *ast.AssignStmt:
				if v.Tok != token.DEFINE {
					for _, l := range v.Lhs {
						mark(l)
					}
				}
			case *ast.IncDecStmt:
				mark(v.X)
			case *ast.UnaryExpr:
				if v.Op == token.AND {
					if _, lit := v.X.(*ast.CompositeLit); !lit {
						mark(v.X)
					}
				}
			case *ast.CallExpr:
				if f, ok := v.Fun.(*ast.Ident); ok && (f.Name == "delete" || f.Name == "clear") && len(v.Args) > 0 {
					mark(v.Args[0])
				}
			}
			return true
		})
	}
	return written
}

func rootIdent(e ast.Expr) *ast.Ident {
	for {
		switch v := e.(type) {
		case *ast.Ident:
			return v
		case *ast.IndexExpr:
			e = v.X
		case *ast.SelectorExpr:
			e = v.X
		case *ast.StarExpr:
			e = v.X
		case *ast.ParenExpr:
			e = v.X
		default:
			return nil
		}
	}
}

// localTo says whether the identifier was declared inside a function of its file.
func localTo(id *ast.Ident, topLevel map[any]bool) bool {
	return id.Obj != nil && !topLevel[id.Obj.Decl]
}
