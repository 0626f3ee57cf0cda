package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// module is this module's path; root is its folder as seen from the tests.
const (
	module = "github.com/seine-net/seine"
	root   = "../.."
)

// pkg is what go list says about a package.
type pkg struct {
	rel                                string // path below the module, "" for the root
	Dir, ImportPath                    string
	Standard, DepOnly                  bool
	Module                             *struct{ Path string }
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
	Deps                               []string
	Error                              *struct{ Err string }
}

var load = sync.OnceValues(func() ([]pkg, error) {
	// -test adds the packages that only tests import, and test variants, which are named "p [q.test]" and left out.
	cmd := exec.Command("go", "list", "-e", "-deps", "-test", "-json=Dir,ImportPath,Standard,DepOnly,Module,GoFiles,"+
		"TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports,Deps,Error", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(stderr.String()))
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		if strings.HasSuffix(p.ImportPath, ".test") || strings.Contains(p.ImportPath, " [") {
			continue
		}
		p.rel = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		all = append(all, p)
	}
})

// ours gives this module's packages.
func ours(t *testing.T) []pkg {
	t.Helper()
	all, err := load()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var mine []pkg
	for _, p := range all {
		if p.Module != nil && p.Module.Path == module && !p.DepOnly {
			if p.Error != nil {
				t.Errorf("package %q: %s", p.rel, p.Error.Err)
			}
			mine = append(mine, p)
		}
	}
	if len(mine) < 10 {
		t.Fatalf("go list names only %d packages of %s", len(mine), module)
	}
	return mine
}

// moduleOf gives the third-party module of every package that is imported anywhere.
func moduleOf(t *testing.T) map[string]string {
	t.Helper()
	all, err := load()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	of := map[string]string{}
	for _, p := range all {
		if p.Module != nil && p.Module.Path != module {
			of[p.ImportPath] = p.Module.Path
		}
	}
	return of
}

// own keeps the imports that are packages of this module and makes them relative.
func (p pkg) own(imports []string) []string {
	var mine []string
	for _, imp := range imports {
		if rel, ok := strings.CutPrefix(imp, module+"/"); ok {
			mine = append(mine, rel)
		}
	}
	return mine
}

// match holds a package against a pattern: "..." at the end is everything at and below, "*" one segment.
func match(pkg, pattern string) bool {
	if pattern == "..." {
		return true
	}
	if above, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == above || strings.HasPrefix(pkg, above+"/")
	}
	ok, err := filepath.Match(pattern, pkg)
	return ok && err == nil
}

func matches(pkg string, patterns []string) bool {
	for _, p := range patterns {
		if match(pkg, p) {
			return true
		}
	}
	return false
}
