package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	mostLines     = 800 // of a Go file; 500 are wanted
	mostMainLines = 60  // of a main: flags, one call
)

// source is a parsed Go file.
type source struct {
	name  string // path below the module
	test  bool
	lines int
	file  *ast.File
	fset  *token.FileSet
}

// sources parses every Go file of the module, whatever its build constraints say.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, name := range files(t) {
		if path.Ext(name) != ".go" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		all = append(all, source{name, strings.HasSuffix(name, "_test.go"), bytes.Count(text, []byte("\n")), f, fset})
	}
	if len(all) < 20 {
		t.Fatalf("found only %d Go files", len(all))
	}
	return all
}

// files lists the module's files: those that git knows or would take, or all where this is no git repository.
func files(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
	cmd.Dir = root
	var all []string
	if out, err := cmd.Output(); err == nil {
		for _, name := range strings.Split(string(out), "\x00") {
			if st, err := os.Stat(filepath.Join(root, name)); name != "" && err == nil && st.Mode().IsRegular() {
				all = append(all, name)
			}
		}
		return all
	}
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && name != "." && (name == "bin" || strings.HasPrefix(name, ".")) {
			return fs.SkipDir
		}
		if err == nil && d.Type().IsRegular() {
			all = append(all, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPackageComments(t *testing.T) {
	docs := map[string][]string{}
	for _, s := range sources(t) {
		dir := path.Dir(s.name)
		if s.test || strings.Contains(dir, "testdata") {
			continue
		}
		docs[dir] = append(docs[dir], "")
		if s.file.Doc != nil && !generated(s.file) {
			docs[dir][0] += " " + s.name
			name, text := s.file.Name.Name, s.file.Doc.Text()
			if name != "main" && !strings.HasPrefix(text, "Package "+name+" ") {
				t.Errorf("%s: the package comment begins %.40q; want %q", s.name, text, "Package "+name+" …")
			}
		}
	}
	for dir, d := range docs {
		if n := len(strings.Fields(d[0])); n != 1 {
			t.Errorf("package %q has %d package comments (%s); want one", dir, n, d[0])
		}
	}
}

func generated(f *ast.File) bool { return ast.IsGenerated(f) }

func TestFileSizes(t *testing.T) {
	for _, s := range sources(t) {
		if s.lines > mostLines {
			t.Errorf("%s has %d lines, more than %d: does it hold two things?", s.name, s.lines, mostLines)
		}
		if ok, _ := path.Match("cmd/*/main.go", s.name); ok && s.lines > mostMainLines {
			t.Errorf("%s has %d lines, more than %d: a main is flags and one call", s.name, s.lines, mostMainLines)
		}
	}
}

func TestExportedHaveComments(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || generated(s.file) || s.file.Name.Name == "main" {
			continue
		}
		for _, decl := range s.file.Decls {
			for _, name := range undocumented(decl) {
				t.Errorf("%s: exported %s has no comment", s.fset.Position(name.Pos()), name.Name)
			}
		}
	}
}

// undocumented gives the exported names that a declaration makes without a word about them. In a group one comment over
// the group does for constants and variables.
func undocumented(decl ast.Decl) []*ast.Ident {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || receiver(d.Recv.List[0].Type).IsExported()) {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		var bare []*ast.Ident
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					bare = append(bare, s.Name)
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
						bare = append(bare, n)
					}
				}
			}
		}
		return bare
	}
	return nil
}

func receiver(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x
		default:
			return ast.NewIdent("_")
		}
	}
}

// forbidden lists what certain code must not call. A package is told by its import path, not by its local name.
var forbidden = []struct {
	pkg   string
	names []string
	in    func(name string) bool
	why   string
}{
	{"time", []string{"Sleep"}, func(name string) bool { return !within(name, "internal/testkit", "bench", "test") && !suite(name) },
		"wait for what you wait for, with a timer and a context"},
	{"net", []string{"IP", "IPNet", "IPMask", "ParseIP", "ParseCIDR"}, func(name string) bool {
		return !within(name, "internal/kernel/linux", "internal/frontdoor/cni", "internal/cluster/gossip", "internal/testkit", "bench", "test")
	}, "own code speaks netip; net.IP stops where a library wants it"},
	{"os", []string{"Exit"}, func(name string) bool {
		return !within(name, "cmd", "hack", "bench", "test", "internal/cli/sandbox", "internal/testkit")
	},
		"only a main ends the program, and the first process of a sandbox or of a node"},
	{"log", []string{"Fatal", "Fatalf", "Fatalln", "Print", "Printf", "Println"}, func(name string) bool { return !within(name, "bench", "hack", "test") },
		"log with log/slog, and return errors"},
}

// suite reports whether a file belongs to a package of tests for others: drivertest, kerneltest …
func suite(name string) bool { return strings.HasSuffix(path.Dir(name), "test") }

func within(name string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(name, d+"/") })
}

func TestForbiddenCalls(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, f := range forbidden {
			if !f.in(s.name) {
				continue
			}
			for _, sel := range uses(s.file, f.pkg) {
				if slices.Contains(f.names, sel.Sel.Name) {
					t.Errorf("%s: %s.%s: %s", s.fset.Position(sel.Pos()), f.pkg, sel.Sel.Name, f.why)
				}
			}
		}
	}
}

// uses finds all that a file takes from a package.
func uses(f *ast.File, pkg string) []*ast.SelectorExpr {
	local := ""
	for _, imp := range f.Imports {
		if imp.Path.Value == fmt.Sprintf("%q", pkg) {
			local = path.Base(pkg)
			if imp.Name != nil {
				local = imp.Name.Name
			}
		}
	}
	if local == "" {
		return nil
	}
	var found []*ast.SelectorExpr
	ast.Inspect(f, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == local {
				found = append(found, sel)
			}
		}
		return true
	})
	return found
}

func TestPackageNames(t *testing.T) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "base", "types", "misc", "manager", "shared", "lib", "pkg"}
	for _, p := range ours(t) {
		for _, part := range strings.Split(p.rel, "/") {
			if slices.Contains(vague, part) {
				t.Errorf("package %q: %q says nothing; want a noun of the domain", p.rel, part)
			}
		}
	}
}

// A path of somebody's machine is no use to anybody else. (Written apart, or this file would be a finding.)
var machinePath = regexp.MustCompile(`(?:^|[\s"'=(\x60:])/(?:home|Users|root|wor` + `k|mnt)/[A-Za-z0-9._-]+`)

func TestNoMachinePaths(t *testing.T) {
	for _, name := range files(t) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(text, 0) >= 0 {
			continue // no text
		}
		for i, line := range strings.Split(string(text), "\n") {
			if found := machinePath.FindString(line); found != "" {
				t.Errorf("%s:%d names a path of one machine: %q", name, i+1, found)
			}
		}
	}
}

func TestNoEmptyReadme(t *testing.T) {
	for _, name := range files(t) {
		if path.Ext(name) != ".md" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(strings.Fields(string(text))) < 20 {
			t.Errorf("%s has fewer than 20 words: fill it or remove it", name)
		}
	}
}

// TestChecksFindSomething shows that the checks above see what they look for.
func TestChecksFindSomething(t *testing.T) {
	const text = `package x
import ("time"; n "net")
type T struct{}
func (T) M() { time.Sleep(1) }
const C = 1
var _ n.IP
// F is documented.
func F() {}
func (t) M() {}
`
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var bare []string
	for _, d := range f.Decls {
		for _, n := range undocumented(d) {
			bare = append(bare, n.Name)
		}
	}
	if want := []string{"T", "M", "C"}; !slices.Equal(bare, want) {
		t.Errorf("undocumented: %q, want %q", bare, want)
	}
	if u := uses(f, "time"); len(u) != 1 || u[0].Sel.Name != "Sleep" {
		t.Errorf("uses of time: %v, want one of Sleep", u)
	}
	if u := uses(f, "net"); len(u) != 1 || u[0].Sel.Name != "IP" {
		t.Errorf("uses of net: %v, want one of IP", u)
	}
	if !machinePath.MatchString(`path := "/ho` + `me/me/x"`) {
		t.Error("a home folder is not seen as a path of one machine")
	}
}
