package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// roleEnv has the test's program be one of the programs that are managed.
const roleEnv = "SEINE_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := programs[role](); err != nil {
			fmt.Fprintln(os.Stderr, role+":", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

var programs = map[string]func() error{
	// echo answers on the socket that it was given, or makes one; "die" ends it as a crash does, "quit" by its own will.
	"echo": func() error {
		m, err := Start()
		if err != nil {
			return err
		}
		path := os.Getenv("SEINE_TEST_SOCKET")
		var l net.Listener
		if f := m.Take("echo"); f != nil {
			l, err = net.FileListener(f)
			f.Close()
		} else {
			l, err = net.Listen("unix", path)
			if err == nil {
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				err = m.Keep("echo", l.(syscall.Conn))
			}
		}
		if err == nil {
			err = errors.Join(m.Discard(), m.Tell("READY=1"))
		}
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, func() { l.Close() })
		for {
			c, err := l.Accept()
			if err != nil {
				return nil
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			switch strings.TrimSpace(line) {
			case "die":
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			case "quit":
				return nil
			}
			fmt.Fprintf(c, "%d %s", os.Getpid(), line)
			c.Close()
		}
	},
	"never-ready": func() error { return errors.New("what it needs is missing") },
	// taken prints what it was handed over.
	"taken": func() error {
		m, err := Start()
		if err != nil {
			return err
		}
		for _, name := range []string{"api", "unknown", "dns-udp"} {
			if f := m.Take(name); f != nil {
				fmt.Printf("%s is %d\n", name, f.Fd())
			}
		}
		fmt.Printf("watchdog %s left %q %q\n", m.Watchdog(), os.Getenv("LISTEN_FDS"), os.Getenv("WATCHDOG_USEC"))
		return nil
	},
}

func TestHanded(t *testing.T) {
	for _, c := range []struct {
		pid, fds, names string
		want            []string
		err             string
	}{
		{"7", "2", "a:b", []string{"a", "b"}, ""},
		{"7", "2", "", []string{"unknown", "unknown"}, ""},
		{"7", "0", "", nil, ""},
		{"8", "2", "a:b", nil, ""}, // for somebody else
		{"", "2", "a:b", nil, ""},
		{"7", "", "", nil, ""},
		{"7", "x", "", nil, "LISTEN_FDS"},
		{"7", "-1", "", nil, "LISTEN_FDS"},
		{"7", "99999999", "", nil, "LISTEN_FDS"},
		{"7", "2", "a", nil, "LISTEN_FDNAMES"},
		{"7", "1", "a:b", nil, "LISTEN_FDNAMES"},
	} {
		got, err := handed(map[string]string{"LISTEN_PID": c.pid, "LISTEN_FDS": c.fds, "LISTEN_FDNAMES": c.names}, 7)
		if !slices.Equal(got, c.want) || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
	for env, want := range map[[2]string]time.Duration{{"2000000", "7"}: 2 * time.Second, {"5", ""}: 5 * time.Microsecond, {"5", "8"}: 0, {"", "7"}: 0, {"-5", "7"}: 0, {"x", ""}: 0} {
		if got := watchdog(map[string]string{"WATCHDOG_USEC": env[0], "WATCHDOG_PID": env[1]}, 7); got != want {
			t.Errorf("%q: %s, want %s", env, got, want)
		}
	}
}

// TestTakesFromSystemd: files and variables as systemd gives them, which names the process by its number.
func TestTakesFromSystemd(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	self, _ := os.Executable()
	run := func(pid string) string {
		cmd := exec.Command("sh", "-c", "LISTEN_PID="+pid+" WATCHDOG_PID=$$ exec "+self)
		cmd.Env = append(os.Environ(), roleEnv+"=taken", "LISTEN_FDS=2", "LISTEN_FDNAMES=api:dns-udp", "WATCHDOG_USEC=3000000")
		cmd.ExtraFiles = []*os.File{r, w}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got, want := run("$$"), "api is 3\ndns-udp is 4\nwatchdog 3s left \"\" \"\"\n"; got != want {
		t.Errorf("taken:\n%s", got)
	}
	if got, want := run("1"), "watchdog 3s left \"\" \"\"\n"; got != want {
		t.Errorf("what is somebody else's was taken:\n%s", got)
	}
}

// TestManagerAbsent: without a manager nothing is kept, and nothing fails.
func TestManagerAbsent(t *testing.T) {
	m := &Manager{}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(m.Keep("a", l.(syscall.Conn)), m.Tell("READY=1"), m.Forget("a"), m.Discard()); err != nil || m.Keeps() {
		t.Error(err)
	}
	m.notify = filepath.Join(t.TempDir(), "nobody")
	if err := m.Keep("a", l.(syscall.Conn)); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("a manager that is not there kept a socket: %v", err)
	}
}

// hold runs Hold with a program until the test ends, and gives where it answers and what Hold returned.
func hold(t *testing.T, role string) (socket string, ended <-chan error, stop func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	t.Setenv(roleEnv, role)
	t.Setenv("SEINE_TEST_SOCKET", socket)
	t.Setenv("TMPDIR", t.TempDir())
	self, _ := os.Executable()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	over := make(chan struct{})
	go func() { defer close(over); done <- Hold(ctx, slog.New(slog.DiscardHandler), self) }()
	t.Cleanup(func() {
		cancel()
		<-over
		if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 {
			t.Errorf("Hold left %v", left)
		}
	})
	return socket, done, cancel
}

func say(socket, what string) (string, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintln(c, what)
	out, err := io.ReadAll(c)
	return string(out), err
}

// TestHold: a program that crashes over and over is asked all the time, and nobody is refused.
func TestHold(t *testing.T) {
	socket, ended, _ := hold(t, "echo")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := say(socket, "hello"); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	pids := map[string]bool{}
	for range 3 {
		_, _ = say(socket, "die")
		for range 5 {
			out, err := say(socket, "hello") // no second try: it waits in the queue
			pid, text, _ := strings.Cut(out, " ")
			if err != nil || text != "hello\n" {
				t.Fatalf("after a crash: %q, %v", out, err)
			}
			pids[pid] = true
		}
	}
	if len(pids) != 3 {
		t.Errorf("%d programs answered, want three", len(pids))
	}
	_, _ = say(socket, "quit")
	if err := <-ended; err != nil {
		t.Errorf("a program that ended by its own will: %v", err)
	}
	if _, err := say(socket, "hello"); err == nil {
		t.Error("the socket is kept although nobody will answer")
	}
}

func TestHoldEndsWithItsContext(t *testing.T) {
	socket, ended, stop := hold(t, "echo")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := say(socket, "hello"); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestHoldGivesUp: a program that cannot start is not started for ever.
func TestHoldGivesUp(t *testing.T) {
	_, ended, _ := hold(t, "never-ready")
	var status *exec.ExitError
	if err := <-ended; !errors.As(err, &status) || status.ExitCode() != 3 {
		t.Errorf("ended with %v, want the program's status", err)
	}
	if err := Hold(t.Context(), slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a program that is not there was started")
	}
}

// TestHolderMessages: what a program may say wrongly costs nothing.
func TestHolderMessages(t *testing.T) {
	h := &holder{}
	fd := func() int {
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	open := func(fd int) bool { var st syscall.Stat_t; return syscall.Fstat(fd, &st) == nil }
	bad := []int{fd(), fd(), fd()}
	a, b, second := fd(), fd(), fd()
	h.said("STATUS=x", bad[:1])
	h.said("FDSTORE=1", bad[1:2])
	h.said("FDSTORE=1\nFDNAME=a:b", bad[2:])
	h.said("FDSTORE=1\nFDNAME=a", []int{a, second})
	h.said("FDSTORE=1\nFDNAME=a\n", []int{b})
	if open(a) || open(second) || !open(b) || len(h.kept) != 1 || slices.ContainsFunc(bad, open) {
		t.Errorf("kept is %v", h.kept)
	}
	h.said("FDSTOREREMOVE=1\nFDNAME=a", nil)
	if open(b) || len(h.kept) > 0 {
		t.Errorf("kept is %v after it was taken back", h.kept)
	}
}
