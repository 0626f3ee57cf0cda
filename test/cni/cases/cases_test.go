// Package cases_test compares seine-cni with the reference plugins on a collection of real configurations: those that
// runtimes and distributions ship, that manuals show, and that stand for a key, a version or an error. Each is run in
// three ways (see modes) on a machine of its own under the real libcni; what is compared is how each verb ends, the
// results, links, addresses, routes, rules, queueing disciplines, sysctls and files, who answers whom with what source
// address, and what is left in the end.
//
// What the reference plugins do is recorded in testdata/NAME.golden, whose first lines say by which versions;
// record.sh makes these files anew. Every difference that is right is in testdata/differences.txt, with the reason.
package cases_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/seine-net/seine/internal/frontdoor/cni"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/testkit"
)

var reference = flag.String("reference", "", "folder with the reference plugins: record what they do, and compare nothing")

// inLab says that this is the VM lab, for the configurations that need an ability which many a machine's kernel lacks.
var inLab = os.Getenv("SEINE_VM") == "1"

func TestMain(m *testing.M) {
	if slices.Contains(cni.Names(), filepath.Base(os.Args[0])) {
		host := cni.SystemHost(func() kernel.Kernel { return linux.New(linux.Options{}) })
		os.Exit(cni.Main(context.Background(), host))
	}
	flag.Parse()
	// Most of the time goes by in the kernel, waiting.
	_ = flag.Set("test.parallel", "6")
	code := m.Run()
	if dir, _ := bin(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// bin gives a folder with our plugins. In the VM lab there is no compiler: there they are this very program.
var bin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "seine-cni-")
	if err != nil {
		return "", err
	}
	if !inLab {
		return dir, testkit.BuildCNI(dir, cni.Names()...)
	}
	self, err := os.Executable()
	for _, name := range cni.Names() {
		if err == nil {
			err = os.Symlink(self, filepath.Join(dir, name))
		}
	}
	return dir, err
})

func TestConfigurations(t *testing.T) {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6", "program:nft")
	all := configurations(t)
	list, err := readDifferences()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	ran := map[string]bool{}
	t.Run("all", func(t *testing.T) {
		for _, c := range all {
			if inLab && !c.rare() {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				compare(t, c, list)
				mu.Lock()
				defer mu.Unlock()
				ran[c.name] = true
			})
		}
	})
	// Where only some ran, a difference that none of them has may still be one of the others'.
	if !t.Failed() && *reference == "" && flag.Lookup("test.run").Value.String() == "" {
		stale(t, all, list, ran)
	}
}

// stale tells of differences that are none any more.
func stale(t *testing.T, all []*configuration, list []*difference, ran map[string]bool) {
	t.Helper()
	for _, d := range list {
		about, here := 0, 0
		for _, c := range all {
			if d.cases.MatchString(c.name) {
				about++
				if ran[c.name] {
					here++
				}
			}
		}
		// The lab runs a few only: it can't speak for rows that are about others too.
		if !d.used.Load() && (about == 0 || here == about || here > 0 && !inLab) {
			t.Errorf("%s: nothing differs so (any more): remove the row", d.where)
		}
	}
}

// compare runs a configuration in all modes and compares with what the reference did.
func compare(t *testing.T, c *configuration, list []*difference) {
	if err := c.lacks(); err != nil && inLab {
		t.Fatal(err)
	} else if err != nil {
		t.Skipf("skip: %v%s", err, map[bool]string{true: "; the VM lab has it: make vm"}[c.rare()])
	}
	if *reference != "" {
		record(t, c)
		return
	}
	g, err := readGolden(c)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := bin()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			want := expect(c, mode, g[mode], list)
			lines, err := perform(t, c, mode, dir, want)
			if err != nil {
				t.Fatal(err)
			}
			if wrong := want.wrong("", lines, true); len(wrong) > 0 {
				t.Errorf("%s: differs from the reference (- is the reference's, + is ours):\n\t%s", c.Source, strings.Join(wrong, "\n\t"))
			}
		})
	}
}

// record makes a configuration's golden anew.
func record(t *testing.T, c *configuration) {
	t.Helper()
	g := golden{}
	for _, mode := range modes {
		lines, err := perform(t, c, mode, *reference, nil)
		if err != nil {
			t.Fatal(err)
		}
		g[mode] = lines
	}
	text := g.text(c, *reference)
	if inLab { // whose files end with it: record.sh takes them from what is printed
		fmt.Printf("=== %s\n%s=== end\n", goldenPath(c), text)
	}
	if err := os.WriteFile(goldenPath(c), text, 0o644); err != nil {
		t.Fatal(err)
	}
}
