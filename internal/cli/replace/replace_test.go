package replace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// before fills a folder: files of several owners and modes, a link, two names of one file, a broken link.
func before(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	old := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	for i, name := range []string{"bridge", "portmap", "other"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("old "+name), 0o700); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(path, 10+i, 20+i); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.Chmod(path, []fs.FileMode{0o755, 0o511 | fs.ModeSetuid, 0o644}[i]), os.Chtimes(path, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("bridge", filepath.Join(dir, "loopback")), os.Symlink("nowhere", filepath.Join(dir, "vlan")),
		os.Link(filepath.Join(dir, "bridge"), filepath.Join(dir, "ptp"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func files(content string) []File {
	out := []File{{Name: "program", Data: []byte(content), Mode: 0o755}}
	for _, n := range []string{"bridge", "portmap", "loopback", "vlan", "ptp", "tap"} {
		out = append(out, File{Name: n, Link: "program"})
	}
	return out
}

// shot is all of a folder that can be seen, without the store.
func shot(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == store {
			continue
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		s := fmt.Sprintf("%s %s inode %d links %d owner %d:%d %s", e.Name(), info.Mode(), st.Ino, st.Nlink, st.Uid, st.Gid, info.ModTime())
		if data, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
			s += fmt.Sprintf(" %q", data)
		}
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			s += " -> " + to
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}

func put(t *testing.T, dir, content string) []Action {
	t.Helper()
	a, err := Put(dir, files(content), Options{})
	if err != nil {
		t.Fatal(err)
	}
	placed(t, dir, content)
	return a
}

func placed(t *testing.T, dir, content string) {
	t.Helper()
	for _, f := range files(content) {
		if data, err := os.ReadFile(filepath.Join(dir, f.Name)); err != nil || string(data) != content {
			t.Errorf("%s is %q (%v), want %q", f.Name, data, err, content)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "program")); err != nil || st.Mode() != 0o755 {
		t.Errorf("program: %v %v", st, err)
	}
}

func back(t *testing.T, dir, want string) {
	t.Helper()
	for range 2 {
		if _, err := Back(dir, Options{}); err != nil {
			t.Fatal(err)
		}
		if got := shot(t, dir); got != want {
			t.Fatalf("it is\n%s\nit was\n%s", got, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, store)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the store is left: %v", err)
	}
}

func ops(actions []Action) string {
	var out []string
	for _, a := range actions {
		out = append(out, fmt.Sprintf("%s %s", a.Op, filepath.Base(a.Path)))
	}
	return strings.Join(out, ", ")
}

func TestPutAndBack(t *testing.T) {
	dir := before(t)
	was := shot(t, dir)
	dry, err := Put(dir, files("one"), Options{DryRun: true})
	if err != nil || shot(t, dir) != was {
		t.Fatalf("a dry run changes something: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, store)); err == nil {
		t.Error("a dry run makes a store")
	}
	did := put(t, dir, "one")
	const want = "create program, replace bridge, replace portmap, replace loopback, replace vlan, replace ptp, create tap"
	if ops(dry) != want || !slices.Equal(did, dry) {
		t.Errorf("did %v, said %v, want %s", did, dry, want)
	}
	if got := ops(put(t, dir, "one")); strings.Count(got, "same") != 7 {
		t.Errorf("again: %s", got)
	}
	if got := ops(put(t, dir, "two")); !strings.HasPrefix(got, "update program, same bridge") {
		t.Errorf("a new version: %s", got)
	}
	if names, _, err := Kept(dir); err != nil || fmt.Sprint(names) != "[bridge loopback portmap ptp vlan]" {
		t.Errorf("kept %v %v", names, err)
	}
	if a, err := Back(dir, Options{DryRun: true}); err != nil || ops(a) != "remove tap, restore ptp, restore vlan, restore loopback, restore portmap, restore bridge, remove program" {
		t.Errorf("back would %s %v", ops(a), err)
	}
	placed(t, dir, "two")
	back(t, dir, was)
}

// What is put in place is a file that was there before, to the byte: that one comes back all the same.
func TestSameAsBefore(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "program"), []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("program", filepath.Join(dir, "bridge")); err != nil {
		t.Fatal(err)
	}
	was := shot(t, dir)
	put(t, dir, "one")
	put(t, dir, "two")
	back(t, dir, was)
}

func TestFolderThatIsMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cni", "bin")
	put(t, dir, "one")
	if _, err := Back(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
	if _, err := Back(dir, Options{}); err != nil {
		t.Error(err)
	}
}

// A crash at any step of the first call, of an update, or of going back: the same again, or the way back, come to their
// end, and at no time is a name missing that was there, or a file half.
func TestCrashes(t *testing.T) {
	crash := errors.New("crash")
	for _, c := range []struct {
		what string
		call func(dir string, o Options) error
		from string // what is in place when it begins, "" for nothing of ours
		to   string // "" for the way back
	}{
		{"put", func(dir string, o Options) error { _, err := Put(dir, files("one"), o); return err }, "", "one"},
		{"update", func(dir string, o Options) error { _, err := Put(dir, files("two"), o); return err }, "one", "two"},
		{"back", func(dir string, o Options) error { _, err := Back(dir, o); return err }, "one", ""},
	} {
		for _, then := range []string{"again", "back", "other"} {
			for k := 1; ; k++ {
				dir := before(t)
				was := shot(t, dir)
				if c.from != "" {
					put(t, dir, c.from)
				}
				step := 0
				err := c.call(dir, Options{Step: func(string) error {
					there(t, dir)
					if step++; step == k {
						return crash
					}
					return nil
				}})
				if err == nil {
					if k <= 5 {
						t.Errorf("%s: only %d steps", c.what, k-1)
					}
					break
				}
				if !errors.Is(err, crash) {
					t.Fatalf("%s: step %d: %v", c.what, k, err)
				}
				switch {
				case then == "other":
					put(t, dir, "three")
				case then == "back" || c.to == "":
				default:
					put(t, dir, c.to)
				}
				back(t, dir, was)
				if t.Failed() {
					t.Fatalf("%s: crash at step %d, then %s", c.what, k, then)
				}
			}
		}
	}
}

// there holds all names that were there to being there, whole.
func there(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"bridge", "portmap", "loopback", "ptp"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !slices.Contains([]string{"old bridge", "old portmap", "one", "two", "three"}, string(data)) {
			t.Errorf("%s is %q (%v)", name, data, err)
		}
	}
}

// Programs that are started meanwhile.
func TestSeenMeanwhile(t *testing.T) {
	dir := before(t)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				there(t, dir)
			}
		}
	})
	for range 30 {
		put(t, dir, "one")
		put(t, dir, "two")
		if _, err := Back(dir, Options{}); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
}

func TestChangedMeanwhile(t *testing.T) {
	dir := before(t)
	was := shot(t, dir)
	put(t, dir, "one")
	newer := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	newer("bridge", "a newer bridge")
	newer("tap", "a tap of others")
	if err := os.Remove(filepath.Join(dir, "vlan")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := Back(dir, Options{})
		if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), filepath.Join(dir, "bridge")) || !strings.Contains(err.Error(), filepath.Join(dir, store, "bridge")) {
			t.Errorf("got %v", err)
		}
	}
	for name, want := range map[string]string{"bridge": "a newer bridge", "tap": "a tap of others", "portmap": "old portmap", "ptp": "old bridge"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != want {
			t.Errorf("%s is %q (%v), want %q", name, data, err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "program")); err == nil {
		t.Error("the program is left")
	}
	// As the error says.
	if err := errors.Join(os.Remove(filepath.Join(dir, "bridge")), os.Remove(filepath.Join(dir, "tap"))); err != nil {
		t.Fatal(err)
	}
	back(t, dir, was)

	// What somebody put in place of ours is replaced, and what comes back, when it is put again.
	put(t, dir, "one")
	newer("bridge", "a newer bridge")
	put(t, dir, "one")
	if _, err := Back(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "bridge")); string(data) != "a newer bridge" {
		t.Errorf("bridge is %q", data)
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bridge"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Put(dir, files("one"), Options{}); err == nil || !strings.Contains(err.Error(), "bridge: is neither a file") {
		t.Errorf("a folder in the way: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "program")); err == nil {
		t.Error("something was put")
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Put(file, files("one"), Options{}); err == nil {
		t.Error("a file is no folder")
	}
	dir = before(t)
	put(t, dir, "one")
	held, err := open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Back(dir, Options{}); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("two at once: %v", err)
	}
	held.close()
	if err := os.WriteFile(filepath.Join(dir, store, manifestName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Back(dir, Options{}); err == nil || !strings.Contains(err.Error(), manifestName) {
		t.Errorf("a manifest that is none: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, store, manifestName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Back(dir, Options{}); err == nil || !strings.Contains(err.Error(), "no manifest") {
		t.Errorf("no manifest: %v", err)
	}
}
