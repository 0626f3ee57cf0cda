package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// cniRig is a folder of plugins on a machine, with the programs beside each other elsewhere.
type cniRig struct {
	*testing.T
	programs, bin, conf string
}

func newCNIRig(t *testing.T) *cniRig {
	r := &cniRig{t, t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "net.d")}
	cmd := exec.Command("go", "build", "-o", r.programs+"/", "./cmd/seine", "./cmd/seine-cni")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r.write("bridge", "#!/bin/sh\ntouch "+r.bin+"/ran\n")
	r.write("calico", "#!/bin/sh\ntouch "+r.bin+"/ran\n")
	if err := os.Symlink("nowhere", filepath.Join(r.bin, "lost")); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *cniRig) write(name, text string) {
	r.Helper()
	if err := os.WriteFile(filepath.Join(r.bin, name), []byte(text), 0o755); err != nil {
		r.Fatal(err)
	}
}

// cni runs `seine cni`, without a daemon.
func (r *cniRig) cni(stdin string, args ...string) (stdout, stderr string, code int) {
	r.Helper()
	out, errs := newWatched(), newWatched()
	args = append([]string{"--socket", "/nonexistent", "cni"}, args...)
	args = append(args, "--bin-dir", r.bin)
	code = Main(r.Context(), "v0.0.0-test", args, Streams{In: strings.NewReader(stdin), Out: out, Err: errs})
	return out.String(), errs.String(), code
}

func (r *cniRig) install(stdin string, args ...string) (stdout, stderr string, code int) {
	r.Helper()
	return r.cni(stdin, append([]string{"install", "--from", filepath.Join(r.programs, "seine-cni"), "--conf-dir", r.conf}, args...)...)
}

// plugins gives what `ls` says, by name.
func (r *cniRig) plugins() map[string]cniPlugin {
	r.Helper()
	out, errs, code := r.cni("", "ls", "-o", "json")
	var all struct{ Items []cniPlugin }
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != 0 {
		r.Fatalf("ls: %d %v %s %s", code, err, out, errs)
	}
	by := map[string]cniPlugin{}
	for _, p := range all.Items {
		by[p.Name] = p
	}
	return by
}

const conflist1 = `{"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "bridge"}]}`

func TestCNIInstall(t *testing.T) {
	r := newCNIRig(t)
	before := r.plugins()
	if before["bridge"].Of != "other" || before["calico"].Of != "other" || before["lost"].Of != "broken" || len(before) != 3 {
		t.Errorf("before: %+v", before)
	}
	out, _, code := r.install(conflist1, "--conflist", "-", "--dry-run", "-o", "json")
	if code != 0 || !strings.Contains(out, `"op": "replace"`) || !strings.Contains(out, r.conf+"/10-pods.conflist") || len(r.plugins()) != 3 {
		t.Errorf("dry run: %d %s", code, out)
	}
	out, errs, code := r.install(conflist1, "--conflist", "-")
	if code != 0 || !strings.Contains(out, "replace  "+r.bin+"/bridge") || !strings.Contains(out, "create   "+r.bin+"/portmap") {
		t.Fatalf("install: %d %s %s", code, out, errs)
	}
	now := r.plugins()
	want := cniPlugin{Name: "bridge", Of: "seine", Version: now["portmap"].Version, Link: "seine-cni", Kept: r.bin + "/.seine/bridge"}
	if now["bridge"] != want || !strings.HasPrefix(want.Version, "v") || now["calico"].Of != "other" || now["seine-cni"].Of != "seine" {
		t.Errorf("now: %+v", now)
	}
	if data, err := os.ReadFile(filepath.Join(r.conf, "10-pods.conflist")); err != nil || string(data) != conflist1 {
		t.Errorf("conflist %q %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(r.bin, "ran")); err == nil {
		t.Error("somebody else's plugin was run")
	}
	if out, errs, code := r.install(""); code != 0 || !strings.Contains(out, "same  "+r.bin+"/bridge") {
		t.Errorf("again: %d %s %s", code, out, errs)
	}
	if out, _, _ := r.cni("", "uninstall", "--conf-dir", r.conf, "--dry-run", "-o", "name"); !slices.Contains(strings.Fields(out), r.bin+"/bridge") || len(r.plugins()) != len(now) {
		t.Errorf("uninstall --dry-run: %s", out)
	}
	// A package replaced one meanwhile.
	if err := os.Remove(filepath.Join(r.bin, "bridge")); err != nil {
		t.Fatal(err)
	}
	r.write("bridge", "newer")
	for range 2 {
		if _, errs, code := r.cni("", "uninstall", "--conf-dir", r.conf); code != 4 || !strings.Contains(errs, r.bin+"/bridge: changed since") {
			t.Errorf("uninstall with a change: %d %s", code, errs)
		}
	}
	if err := os.Remove(filepath.Join(r.bin, "bridge")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if out, errs, code := r.cni("", "uninstall", "--conf-dir", r.conf); code != 0 {
			t.Errorf("uninstall: %d %s %s", code, out, errs)
		}
	}
	if after := r.plugins(); len(after) != 3 || after["bridge"] != before["bridge"] {
		t.Errorf("after: %+v", after)
	}
	if _, err := os.Stat(r.conf); err == nil {
		t.Error("the folder of configurations, which install made, is left")
	}
}

func TestCNIInstallRefuses(t *testing.T) {
	r := newCNIRig(t)
	for _, c := range []struct {
		stdin string
		args  []string
		names []string
	}{
		{"", []string{"--plugins", "bridge,weave"}, []string{"weave", "bridge,dhcp"}},
		{"", []string{"--from", filepath.Join(r.bin, "calico")}, []string{"--from", "calico", "another program"}},
		{"", []string{"--from", filepath.Join(r.programs, "seine")}, []string{"--from", "another program"}},
		{"", []string{"--from", "/nonexistent"}, []string{"--from", "no such file"}},
		{"{", []string{"--conflist", "-"}, []string{"--conflist", "no configuration list"}},
		{strings.Replace(conflist1, "pods", "a/b", 1), []string{"--conflist", "-"}, []string{"a/b"}},
		{strings.Replace(conflist1, "1.1.0", "", 1), []string{"--conflist", "-"}, []string{"cniVersion"}},
		{strings.Replace(conflist1, "bridge", "", 1), []string{"--conflist", "-"}, []string{"plugins[0].type"}},
		{"", []string{"--conflist", "/nonexistent"}, []string{"no such file"}},
	} {
		_, errs, code := r.install(c.stdin, c.args...)
		for _, n := range c.names {
			if !strings.Contains(errs, n) || code == 0 {
				t.Errorf("%q: %d %s does not name %q", c.args, code, errs, n)
			}
		}
		if got := r.plugins(); len(got) != 3 {
			t.Errorf("%q: changed: %v", c.args, got)
		}
	}
	r.bin = r.programs
	_, errs, code := r.install("")
	if code != 2 || !strings.Contains(errs, `the command line "seine"`) {
		t.Errorf("the folder of the command line: %d %s", code, errs)
	}
	if _, errs, code := r.install("", "--plugins", "bridge,portmap"); code != 0 {
		t.Errorf("some plugins: %d %s", code, errs)
	}
	if got := r.plugins(); got["bridge"].Of != "seine" || got["loopback"].Name != "" || got["seine"].Link != "" {
		t.Errorf("some plugins: %+v", got)
	}
}
