package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// labRig is `seine lab` with a lab of its own.
type labRig struct {
	*testing.T
	seine, name string
}

// labHost is what `seine lab ls -o json` tells of a host.
type labHost struct {
	Name, Netns, Socket, Log string
	PID                      int
	Cut                      []string
}

// newLabRig builds the programs, once. What is on the machine now has to be there at the end, and nothing else.
func newLabRig(t *testing.T) *labRig {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6", "program:ip", "program:nft", "program:ping")
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	l := &labRig{T: t, seine: filepath.Join(dir, "seine"), name: fmt.Sprintf("test-%d", os.Getpid())}
	before := l.left()
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range l.hosts() {
				text, _ := os.ReadFile(h.Log)
				t.Logf("log of %s:\n%s", h.Name, text)
			}
		}
		_, _ = l.try("down") // it is not there where the story ended well
		if after := l.left(); after != before {
			t.Errorf("before the lab there was\n%s\nafter it\n%s", before, after)
		}
	})
	return l
}

// left is what a lab may leave: links and addresses of the machine, namespaces with a name, folders, daemons.
func (l *labRig) left() string {
	links, err := exec.Command("ip", "-br", "link").CombinedOutput()
	if err != nil {
		l.Fatalf("%v: %s", err, links)
	}
	names, _ := filepath.Glob("/run/netns/seine-lab-" + l.name + "-*")
	folders, _ := filepath.Glob("/run/seine-lab/" + l.name)
	var daemons []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if line, err := os.ReadFile(p); err == nil && bytes.Contains(line, []byte("/run/seine-lab/"+l.name+"/")) || bytes.Contains(line, []byte(filepath.Dir(l.seine))) {
			daemons = append(daemons, string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	return fmt.Sprintf("links:\n%snamespaces: %q\nfolders: %q\nprocesses: %q", links, names, folders, daemons)
}

// try runs `seine lab WORDS`; the word after "exec" is a host.
func (l *labRig) try(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.seine, append([]string{"lab", "--name", l.name}, words...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (l *labRig) must(words ...string) string {
	l.Helper()
	out, err := l.try(words...)
	if err != nil {
		l.Fatalf("seine lab %s: %v: %s", strings.Join(words, " "), err, out)
	}
	return out
}

func (l *labRig) hosts() []labHost {
	var all []labHost
	if out, err := l.try("ls", "-o", "json"); err == nil {
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			l.Errorf("seine lab ls: %v: %s", err, out)
		}
	}
	return all
}

// reach waits until a program on a host reaches an address, or, where that is asked, until it does not.
func (l *labRig) reach(from, to string, want bool) {
	l.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		out, err := l.try("exec", from, "--", "ping", "-c", "1", "-W", "1", to)
		if (err == nil) == want {
			return
		}
		if time.Now().After(end) {
			l.Fatalf("%s reaches %s: %v, want %v: %s", from, to, err == nil, want, out)
		}
	}
}

// TestLab: hosts come up and reach each other, are cut and healed, lose a daemon and get it back, and leave nothing.
func TestLab(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
		h2    []string // addresses of h2
	}{
		{"ethernet", nil, []string{"198.18.0.2", "2001:db8::2"}},
		{"routed", []string{"--routed"}, []string{"198.18.2.2", "2001:db8:0:2::2"}},
		{"ipv6", []string{"--ipv6"}, []string{"2001:db8::2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLabRig(t)
			up := append([]string{"up", "--no-cluster", "--hosts", "3"}, tt.flags...)
			began := time.Now()
			l.must(up...)
			t.Logf("3 hosts in %s", time.Since(began).Round(time.Millisecond))
			first := l.hosts()
			l.must(up...)
			if again := l.hosts(); len(again) != 3 || again[0].PID != first[0].PID {
				t.Errorf("up a second time: %+v, before %+v", again, first)
			}
			for _, a := range tt.h2 {
				l.reach("h1", a, true)
			}
			l.must("cut", "h1", "h2")
			for _, a := range tt.h2 {
				l.reach("h1", a, false)
				l.reach("h3", a, true)
			}
			if h := l.hosts(); !slices.Equal(h[0].Cut, []string{"h2"}) || len(h[2].Cut) != 0 {
				t.Errorf("with h1 and h2 cut off from each other: %+v", h)
			}
			l.must("cut", "h2")
			for _, a := range tt.h2 {
				l.reach("h3", a, false)
			}
			l.must("heal")
			for _, a := range tt.h2 {
				l.reach("h1", a, true)
				l.reach("h3", a, true)
			}
			if out := l.must("exec", "h3", "--", "seine", "status"); !strings.Contains(out, "Machine:  h3") {
				t.Errorf("seine on h3 asks another daemon: %s", out)
			}
			if out, err := l.try(append([]string{"up", "--ipv4"}, tt.flags...)...); err == nil {
				t.Errorf("the lab became another: %s", out)
			}
			l.must("down")
		})
	}
}

// TestLabBroken: a daemon that is killed is started again, up and down mend what was broken off, and what a user started in
// a host is left alone.
func TestLabBroken(t *testing.T) {
	l := newLabRig(t)
	l.must("up", "--no-cluster", "--hosts", "2")
	before := l.hosts()
	sleeper := exec.Command(l.seine, "lab", "--name", l.name, "exec", "h2", "--", "sleep", "300")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }()
	if err := syscall.Kill(before[1].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); l.hosts()[1].PID != 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if out, err := l.try("exec", "h2", "--", "seine", "network", "ls"); err == nil {
		t.Errorf("a daemon that was killed answers: %s", out)
	}
	l.must("restart", "h2")
	if now := l.hosts(); now[1].PID == 0 || now[1].PID == before[1].PID || now[0].PID != before[0].PID {
		t.Errorf("after a restart: %+v, before %+v", now, before)
	}
	l.must("exec", "h2", "--", "seine", "network", "ls")
	// As a crash leaves them: no namespace, a link without a note that it is whole, a file in the namespace's place.
	for _, broken := range []string{"underlay", "h1"} {
		if out, err := exec.Command("ip", "netns", "del", "seine-lab-"+l.name+"-"+broken).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		l.must("up", "--no-cluster", "--hosts", "2")
		l.reach("h1", "198.18.0.2", true)
	}
	if err := os.Remove("/run/seine-lab/" + l.name + "/h2/wired"); err != nil {
		t.Fatal(err)
	}
	l.must("up", "--no-cluster", "--hosts", "3")
	l.reach("h2", "198.18.0.1", true)
	l.reach("h3", "2001:db8::2", true)
	if out := l.must("down"); sleeper.Process.Signal(syscall.Signal(0)) != nil {
		t.Errorf("down ended what it did not start: %s", out)
	}
	if out, err := l.try("down"); err == nil {
		t.Errorf("down of nothing: %s", out)
	}
}

// TestLabKilledUp: `up` is killed at any moment; `down` removes all that it had made.
func TestLabKilledUp(t *testing.T) {
	l := newLabRig(t)
	for after := time.Duration(0); after < 240*time.Millisecond; after += 12 * time.Millisecond {
		cmd := exec.Command(l.seine, "lab", "--name", l.name, "up", "--hosts", "3")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := os.Stat("/run/seine-lab/" + l.name); err == nil {
			l.must("down")
		}
		if out := l.left(); strings.Contains(out, "seined --node") || strings.Contains(out, l.name) {
			t.Fatalf("killed after %s, then down: left is\n%s", after, out)
		}
	}
}

// TestLabCluster: containers on each host of a cluster reach each other by name and by address, over IPv4 and IPv6; a cut
// separates them, and healing joins them again.
func TestLabCluster(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
	}{{"ethernet", nil}, {"routed", []string{"--routed"}}} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLabRig(t)
			began := time.Now()
			l.must(append([]string{"up", "--hosts", "3"}, tt.flags...)...)
			t.Logf("a cluster of 3 hosts in %s", time.Since(began).Round(time.Millisecond))
			addrs := map[string][]string{}
			for _, h := range l.hosts() {
				c := "c" + h.Name[1:]
				cmd := exec.Command(l.seine, "lab", "--name", l.name, "exec", h.Name, "--", "seine", "run", "-q", "--name", c, "--", "sleep", "300")
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
				addrs[c] = l.addresses(h.Name, c)
			}
			for _, h := range l.hosts() {
				for c, own := range addrs {
					l.ping(h.Name, true, append(own, c)...)
				}
			}
			l.must("cut", "h1", "h2")
			l.ping("h1", false, addrs["c2"]...)
			l.ping("h3", true, addrs["c2"]...)
			l.must("heal")
			l.ping("h1", true, addrs["c2"]...)
			l.must(append([]string{"up", "--hosts", "4"}, tt.flags...)...)
			l.ping("h4", true, append(addrs["c3"], "c3")...)
		})
	}
}

// addresses waits until a container is attached, and gives its addresses, one of each family.
func (l *labRig) addresses(host, container string) []string {
	l.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		out, err := l.try("exec", host, "--", "seine", "endpoint", "inspect", "default/"+container, "-o", "json")
		var ep struct{ Addresses []string }
		if err == nil && json.Unmarshal([]byte(out), &ep) == nil && len(ep.Addresses) == 2 {
			return ep.Addresses
		}
	}
	l.Fatalf("%s on %s does not get its addresses", container, host)
	return nil
}

// ping has a new container on a host try addresses and names, over both families each name, until all are reached or, where
// that is asked, none is.
func (l *labRig) ping(host string, want bool, to ...string) {
	l.Helper()
	for _, x := range to {
		families := []string{"-4", "-6"}
		if strings.Contains(x, ".") {
			families = families[:1]
		} else if strings.Contains(x, ":") {
			families = families[1:]
		}
		for _, f := range families {
			for end := time.Now().Add(10 * time.Second); ; {
				out, err := l.try("exec", host, "--", "seine", "run", "-q", "--", "ping", f, "-c", "1", "-W", "1", x)
				if (err == nil) == want {
					break
				}
				if time.Now().After(end) {
					l.Fatalf("a container on %s reaches %s (%s): %v, want %v: %s", host, x, f, err == nil, want, out)
				}
			}
		}
	}
}
