package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain also is init, and the owner that TestKilledOwner kills.
func TestMain(m *testing.M) {
	if IsInit(os.Args) {
		os.Exit(Init())
	}
	if len(os.Args) == 3 && os.Args[0] == "owner" {
		s, err := Start(Config{Dir: os.Args[1], Name: os.Args[2], Stdout: os.Stdout, Stderr: os.Stderr})
		if err == nil {
			err = s.Go(Setup{Args: []string{"sh", "-c", "sleep 1000 & echo up; wait"}})
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(s.Wait())
	}
	goleak.VerifyTestMain(m)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skip: needs root: it makes network, mount and PID namespaces")
	}
}

// begin starts a sandbox whose output goes to out, and checks at the test's end that nothing of it is left.
func begin(t *testing.T, c Config) (s *Sandbox, out *bytes.Buffer) {
	t.Helper()
	needRoot(t)
	out = new(bytes.Buffer)
	c.Stdout, c.Stderr = out, out
	if c.Name == "" {
		c.Name = "box"
	}
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	s, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if !c.Host && c.Join == "" {
			checkClean(t, c.Dir)
		}
	})
	return s, out
}

func checkClean(t *testing.T, dir string) {
	t.Helper()
	left, _ := os.ReadDir(dir)
	if len(left) > 0 {
		t.Errorf("left in %s: %v", dir, left)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), dir) {
		t.Errorf("left mounted in %s:\n%s", dir, mounts)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestProgram(t *testing.T) {
	s, out := begin(t, Config{Stdin: strings.NewReader("from stdin\n")})
	if got, want := inode(t, s.Netns()), inode(t, fmt.Sprintf("/proc/%d/ns/net", s.PID())); got != want || got == inode(t, "/proc/thread-self/ns/net") {
		t.Errorf("%s is namespace %d, that of the program is %d", s.Netns(), got, want)
	}
	host, _ := os.Hostname()
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	err := s.Go(Setup{Hostname: "box-1", Files: map[string]string{"/etc/resolv.conf": "nameserver 192.0.2.1\n", "/etc/hosts": "192.0.2.2 box-1\n", "/no/such/file": ""},
		Args: []string{"sh", "-c", `cat; hostname; cat /etc/resolv.conf /etc/hosts; ls /sys/class/net; cat /sys/class/net/lo/flags; ls /sys/fs/cgroup | wc -l; set -- /proc/[0-9]*; echo pids $#; echo 'more' >>/etc/hosts; cat /proc/mounts | grep -c ' /proc proc'; exit 7`}})
	if err != nil {
		t.Fatal(err)
	}
	if status := s.Wait(); status != 7 {
		t.Errorf("status %d", status)
	}
	groups, _ := os.ReadDir("/sys/fs/cgroup")
	want := fmt.Sprintf("seine: note: the machine has no /no/such/file, so the program has none either\nfrom stdin\nbox-1\nnameserver 192.0.2.1\n192.0.2.2 box-1\nlo\n0x9\n%d\npids 2\n2\n", len(groups))
	if out.String() != want {
		t.Errorf("\n got %s\nwant %s", out, want)
	}
	if now, _ := os.Hostname(); now != host {
		t.Errorf("the machine's host name became %q", now)
	}
	if now, _ := os.ReadFile("/etc/resolv.conf"); !bytes.Equal(now, resolv) {
		t.Errorf("the machine's resolv.conf became %q", now)
	}
	if err := s.Signal(syscall.SIGTERM); err == nil {
		t.Error("a program that ended took a signal")
	}
}

// TestStatus: how a program ends is how the sandbox ends.
func TestStatus(t *testing.T) {
	needRoot(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("text"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		status int
		out    string
	}{
		{[]string{"true"}, 0, ""},
		{[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"no-such-program"}, NotFound, `seine: program "no-such-program": is not found`},
		{[]string{"/no/such"}, NotFound, `seine: program "/no/such": is not found`},
		{[]string{file}, CantRun, "can't be run: permission denied"},
		{[]string{script}, CantRun, "can't be run: fork/exec " + script + ": exec format error"},
		{[]string{"sh", "-c", "sleep 1000 & sleep 1000 & exit 3"}, 3, ""}, // does not wait for what it left running
	} {
		s, out := begin(t, Config{})
		if err := s.Go(Setup{Args: c.args}); err != nil {
			t.Fatal(err)
		}
		if got := s.Wait(); got != c.status || !strings.Contains(out.String(), c.out) {
			t.Errorf("%q: %d %s", c.args, got, out)
		}
	}
}

// lineReader gives what a program writes, line by line.
func lineReader(t *testing.T) (next func() string, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	lines := bufio.NewReader(r)
	return func() string {
		_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
		s, err := lines.ReadString('\n')
		if err != nil {
			t.Errorf("%v after %q", err, s)
		}
		return strings.TrimSuffix(s, "\n")
	}, w
}

func TestSignal(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	next, w := lineReader(t)
	s, err := Start(Config{Dir: dir, Name: "box", Stdout: w, Stderr: w})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Go(Setup{Args: []string{"sh", "-c", `trap 'echo int' INT; trap 'echo hup' HUP; trap 'echo term' TERM; echo up; while :; do sleep 0.01; done`}}); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "up" {
		t.Fatal(got)
	}
	for name, sig := range map[string]syscall.Signal{"int": syscall.SIGINT, "hup": syscall.SIGHUP, "term": syscall.SIGTERM} {
		if err := s.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if got := next(); got != name {
			t.Errorf("%v: %q", sig, got)
		}
	}
	// A signal to the process that the daemon shows is meant for the program; the terminal's are not init's to hand on.
	if err := syscall.Kill(s.PID(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "term" {
		t.Errorf("SIGTERM to init: %q", got)
	}
	if err := s.Close(); err != nil { // ends a program that goes on
		t.Error(err)
	}
	checkClean(t, dir)
}

func TestTaken(t *testing.T) {
	dir := t.TempDir()
	s, _ := begin(t, Config{Dir: dir, Name: "box"})
	if _, err := Start(Config{Dir: dir, Name: "box"}); !errors.Is(err, ErrTaken) {
		t.Errorf("a second one: %v", err)
	}
	if err := Sweep(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.Netns()); err != nil {
		t.Errorf("swept away: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	begin(t, Config{Dir: dir, Name: "box"})
}

func TestBadNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", ".", "..", ".x", "a/b", "../x"} {
		if s, err := Start(Config{Dir: dir, Name: name}); err == nil {
			s.Close()
			t.Errorf("%q was taken", name)
		}
	}
	checkClean(t, dir)
}

// TestNeverGone: a sandbox that is closed before Go never runs the program.
func TestNeverGone(t *testing.T) {
	s, out := begin(t, Config{})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if status := s.Wait(); status == 0 || out.Len() > 0 {
		t.Errorf("%d %s", status, out)
	}
	if err := s.Go(Setup{Args: []string{"true"}}); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Go after Close: %v", err)
	}
}

func TestJoinAndHost(t *testing.T) {
	a, _ := begin(t, Config{})
	b, out := begin(t, Config{Join: a.Netns()})
	if err := b.Go(Setup{Args: []string{"stat", "-Lc%i", "/proc/self/ns/net"}}); err != nil {
		t.Fatal(err)
	}
	if b.Wait() != 0 || strings.TrimSpace(out.String()) != fmt.Sprint(inode(t, a.Netns())) || b.Netns() != a.Netns() {
		t.Errorf("joined: %s, want %d", out, inode(t, a.Netns()))
	}
	c, out := begin(t, Config{Host: true})
	if err := c.Go(Setup{Args: []string{"stat", "-Lc%i", "/proc/self/ns/net"}}); err != nil {
		t.Fatal(err)
	}
	if c.Wait() != 0 || strings.TrimSpace(out.String()) != fmt.Sprint(inode(t, "/proc/thread-self/ns/net")) || c.Netns() != "" {
		t.Errorf("host: %s", out)
	}
	if _, err := Start(Config{Join: "/no/such"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("join of nothing: %v", err)
	}
	if _, err := Start(Config{Join: "/dev/null"}); err == nil {
		t.Error("joined a file that is no namespace")
	}
}

// TestKilledOwner: with the owner die all processes of the sandbox; the claim is free, and Sweep removes the rest.
func TestKilledOwner(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	next, w := lineReader(t)
	owner := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"owner", dir, "box"}, Stdout: w, Stderr: w}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "up" {
		t.Fatal(got)
	}
	ns := inode(t, filepath.Join(dir, "box"))
	if n := len(processesIn(ns)); n < 3 { // init, sh, sleep
		t.Errorf("%d processes in the sandbox", n)
	}
	_ = owner.Process.Kill()
	_ = owner.Wait()
	deadline := time.Now().Add(20 * time.Second)
	for left := processesIn(ns); len(left) > 0; left = processesIn(ns) {
		if time.Now().After(deadline) {
			t.Fatalf("still there: %v", left)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := os.WriteFile(filepath.Join(dir, "foreign"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(dir); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, "foreign")); err != nil {
		t.Errorf("Sweep took what is not ours: %v", err)
	}
	checkClean(t, dir)
	if err := Sweep(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
}

// processesIn lists the processes in a network namespace.
func processesIn(ns uint64) (out []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		var st syscall.Stat_t
		if syscall.Stat(p+"/ns/net", &st) == nil && st.Ino == ns {
			cmd, _ := os.ReadFile(p + "/cmdline")
			out = append(out, strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return out
}

func TestMountsBelow(t *testing.T) {
	got, err := mountsBelow("/sys")
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range got {
		if !strings.HasPrefix(p, "/sys/") || i > 0 && strings.HasPrefix(p, got[i-1]+"/") {
			t.Errorf("%q", got)
		}
	}
}
