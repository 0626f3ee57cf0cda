package machine_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
)

// TestRunEnds: however a `seine run` ends, nothing is left of it.
func TestRunEnds(t *testing.T) {
	r := newCLIRig(t, options{})
	r.ok("network", "create", "back", "--internal")
	r.atRest("back")
	before := dump(t, r.machine.NS)
	kill := func(sig syscall.Signal) func(*box, api.Endpoint) {
		return func(b *box, _ api.Endpoint) { b.signal(b.cmd.Process.Pid, sig) }
	}
	for _, c := range []struct {
		name string
		end  func(*box, api.Endpoint)
		code int
	}{
		{"Ctrl-C", func(b *box, _ api.Endpoint) { b.ctrlC() }, 130},
		{"SIGINT to the command line alone", kill(syscall.SIGINT), 130},
		{"SIGTERM", kill(syscall.SIGTERM), 143},
		{"SIGHUP", kill(syscall.SIGHUP), 129},
		{"SIGTERM to what the daemon says is its process", func(b *box, e api.Endpoint) { b.signal(e.Sandbox.PID, syscall.SIGTERM) }, 143},
		{"SIGKILL of that", func(b *box, e api.Endpoint) { b.signal(e.Sandbox.PID, syscall.SIGKILL) }, 137},
		{"detached meanwhile", func(b *box, e api.Endpoint) { r.ok("endpoint", "rm", e.Key()); b.ctrlC() }, 130},
		{"connected meanwhile", func(b *box, _ api.Endpoint) { r.ok("network", "connect", "back", "web"); b.ctrlC() }, 130},
		{"SIGKILL of the command line", kill(syscall.SIGKILL), 137},
		{"SIGKILL of all", func(b *box, _ api.Endpoint) { b.signal(-b.cmd.Process.Pid, syscall.SIGKILL) }, 137},
	} {
		web := r.web("--name", "web", "--publish", "8080:80")
		ep := r.endpoint("default", "web")
		ns := r.inside(ep.Sandbox.Netns)
		r.served(r.outside.NS, at(r.machine.V6, 8080), "web", r.outside.V6)
		c.end(web, ep)
		if code := web.wait(); code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s", c.name, code, c.code, web)
		}
		if c.code == 137 { // nobody was left to clear up but the daemon
			r.eventually(patience, func() error { return r.left(ns) })
		} else if strings.Contains(web.String(), "note:") {
			t.Errorf("%s: %s", c.name, web)
		}
		r.nothingLeft(before, ns)
		if t.Failed() {
			t.Fatalf("that was after %s", c.name)
		}
	}
}

// TestRunInATerminal: the keys of a terminal reach the program, once.
func TestRunInATerminal(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	keys, tty := terminal(t)
	cmd := r.command("run", "--name", "c", "--", "sh", "-c", `trap 'n=$((n+1)); echo interrupted $n' INT; echo up; while :; do if read line; then echo "got $line"; fi; [ "$line" != end ] || exit 7; done`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	b := &box{screen: &screen{}}
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		buf := make([]byte, 4096)
		for {
			n, err := keys.Read(buf)
			_, _ = b.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	r.begin(b, cmd, "up\r\n")
	tty.Close()
	for i, in := range []struct{ keys, shown string }{{"\x03", "interrupted 1\r\n"}, {"one\n", "got one\r\n"}, {"\x03", "interrupted 2\r\n"}, {"two\n", "got two\r\n"}, {"end\n", "got end\r\n"}} {
		if _, err := keys.WriteString(in.keys); err != nil {
			t.Fatal(i, err)
		}
		b.waitFor(in.shown)
	}
	if code := b.wait(); code != 7 {
		t.Errorf("exit code %d: %s", code, b)
	}
	<-shown
	if strings.Count(b.String(), "interrupted") != 2 {
		t.Errorf("two times Ctrl-C were more to the program: %s", b)
	}
	r.nothingLeft(before)
}

// terminal opens a pseudoterminal: what is typed and shown, and what programs see.
func terminal(t *testing.T) (keys, tty *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("skip: needs pseudoterminals: %v", err)
	}
	t.Cleanup(func() { keys.Close() })
	raw, err := keys.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var failed error
	err = raw.Control(func(fd uintptr) { // Fd() would make reads block for good
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed == nil {
			number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err == nil && failed == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	t.Cleanup(func() { tty.Close() })
	return keys, tty
}

// TestRunThatCant: what can't be is told with its cause, nothing is started, nothing is left.
func TestRunThatCant(t *testing.T) {
	r := newCLIRig(t, options{})
	taken, err := r.machine.Listen("tcp6", ":8081") // of one family only
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	text := filepath.Join(r.dir, "text")
	if err := os.WriteFile(text, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	format := filepath.Join(r.dir, "format")
	if err := os.WriteFile(format, []byte("\x00no program"), 0o700); err != nil {
		t.Fatal(err)
	}
	before := dump(t, r.machine.NS)
	started := filepath.Join(r.dir, "started")
	touch := []string{"touch", started}
	for _, c := range []struct {
		code int
		says []string
		args []string
	}{
		{4, []string{`ports[0].hostPort "8081"`, "in use", "want a port that is free"}, append([]string{"--publish", "8081:80"}, touch...)},
		{4, []string{`ports[1].hostPort "8081"`, "in use", "want a port that is free"}, append([]string{"-p", "8080:80", "-p", "[::]:8081:80"}, touch...)},
		{2, []string{`ports[0].hostIP "203.0.113.9"`, "want an address of the machine"}, append([]string{"-p", "203.0.113.9:8080:80"}, touch...)},
		{2, []string{`ports[1].hostPort "8080"`, "twice", "want each host port once"}, append([]string{"-p", "8080:80", "-p", "8080:81"}, touch...)},
		{2, []string{`--publish "80"`, "has no port of the machine", "want [IP:]HOST:CONTAINER"}, append([]string{"-p", "80"}, touch...)},
		{3, []string{`network "nope" does not exist`}, append([]string{"--network", "default", "--network", "nope", "-p", "8080:80"}, touch...)},
		{2, []string{`name "-"`, "want 1 to"}, append([]string{"--name", "-"}, touch...)},
		{2, []string{`--hostname "a b"`, "want at most"}, append([]string{"--hostname", "a b"}, touch...)},
		{2, []string{"--network \"host\"", "want"}, append([]string{"--network", "host", "-p", "8080:80"}, touch...)},
		{2, []string{"--network \"host\"", "want"}, append([]string{"--network", "default", "--network", "host"}, touch...)},
		{2, []string{"PROGRAM is missing"}, []string{"--name", "x"}},
		{2, []string{"--nope"}, append([]string{"--nope"}, touch...)},
		{127, []string{`program "no-such-program": is not found`}, []string{"no-such-program"}},
		{127, []string{`program "/no/such/program": is not found`}, []string{"/no/such/program"}},
		{126, []string{"can't be run: permission denied"}, []string{text}},
		{126, []string{"can't be run", "exec format error"}, []string{"-q", format}},
	} {
		r.refused(c.code, c.says, append([]string{"run"}, c.args...)...)
		r.nothingLeft(before)
		if _, err := os.Stat(started); err == nil {
			t.Errorf("run %s: the program was started", strings.Join(c.args, " "))
			os.Remove(started)
		}
	}
	r.kill(syscall.SIGTERM)
	r.refused(6, []string{r.dir + "/s", "start it with"}, append([]string{"run"}, touch...)...)
	r.start()
	r.nothingLeft(before)
}

// TestRunOutlivesTheDaemon: a daemon that is killed takes no container along, and none that ended meanwhile stays.
func TestRunOutlivesTheDaemon(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	web := r.web("--name", "web", "--publish", "8080:80")
	short := r.run("up\n", "--name", "short", "--", "sh", "-c", "echo up; exec sleep 1000")
	killed := r.run("up\n", "--name", "killed", "--", "sh", "-c", "echo up; exec sleep 1000")
	webNS, shortNS, killedNS := r.endpoint("default", "web"), r.endpoint("default", "short"), r.endpoint("default", "killed")
	namespaces := []uint64{r.inside(webNS.Sandbox.Netns), r.inside(shortNS.Sandbox.Netns), r.inside(killedNS.Sandbox.Netns)}

	r.kill(syscall.SIGKILL)
	r.served(r.outside.NS, at(r.machine.V4, 8080), "web", r.outside.V4)
	r.served(r.machine.NS, at(loop4, 8080), "web", webNS.Status.Gateways[0])
	short.ctrlC()
	if code := short.wait(); code != 130 || !strings.Contains(short.String(), "note: not detached: ") || !strings.Contains(short.String(), "the daemon will do it") {
		t.Errorf("ended while there was no daemon: exit code %d: %s", code, short)
	}
	killed.signal(killed.cmd.Process.Pid, syscall.SIGKILL)
	killed.wait()

	r.start()
	r.eventually(patience, func() error {
		all, err := r.client.Endpoints(r.Context())
		if err == nil && len(all) != 1 {
			err = fmt.Errorf("%d endpoints are left, want web alone", len(all))
		}
		return err
	})
	if now := r.endpoint("default", "web"); fmt.Sprint(now.Addresses) != fmt.Sprint(webNS.Addresses) {
		t.Errorf("web is at %s now, was at %s", now.Addresses, webNS.Addresses)
	}
	r.served(r.outside.NS, at(r.machine.V6, 8080), "web", r.outside.V6)
	r.checkAsBothFamilies(webNS, "web")
	r.clean()
	web.ctrlC()
	if code := web.wait(); code != 130 || strings.Contains(web.String(), "note:") {
		t.Errorf("exit code %d: %s", code, web)
	}
	r.eventually(patience, func() error { return r.left(namespaces...) })
	r.nothingLeft(before, namespaces...)
}

// TestRunWithADaemonThatHangs: who does not want to wait for the daemon presses Ctrl-C again.
func TestRunWithADaemonThatHangs(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	web := r.web("--name", "web", "-p", "8080:80")
	ep := r.endpoint("default", "web")
	ns := r.inside(ep.Sandbox.Netns)
	_ = r.daemon.Process.Signal(syscall.SIGSTOP)
	defer func() { _ = r.daemon.Process.Signal(syscall.SIGCONT) }()
	r.eventually(patience, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.daemon.Process.Pid))
		if err == nil && !strings.Contains(string(stat), ") T ") {
			err = errors.New("the daemon goes on")
		}
		return err
	})
	late := r.run("seine: asking the daemon …\n", "-v", "--name", "late", "--network", "default", "--", "touch", filepath.Join(r.dir, "started"))
	web.ctrlC()
	r.eventually(patience, func() error { // the program has ended, the command line waits
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", ep.Sandbox.PID)); err == nil {
			return errors.New("it runs")
		}
		return nil
	})
	late.ctrlC()
	r.eventually(patience, func() error {
		select {
		case <-web.ended:
			return nil
		default:
			_ = syscall.Kill(-web.cmd.Process.Pid, syscall.SIGINT) // it may be ending
			return errors.New("it still waits")
		}
	})
	for _, b := range []*box{web, late} {
		if code := b.wait(); code != 130 {
			t.Errorf("exit code %d: %s", code, b)
		}
	}
	if !strings.Contains(web.String(), "the daemon will do it") || !strings.Contains(late.String(), "broken off by SIGINT") {
		t.Errorf("%s%s", web, late)
	}
	_ = r.daemon.Process.Signal(syscall.SIGCONT)
	r.eventually(patience, func() error { return r.left(ns) })
	r.nothingLeft(before, ns)
	if _, err := os.Stat(filepath.Join(r.dir, "started")); err == nil {
		t.Error("what was broken off was started")
	}
}

// TestDaemonEndsWhileContainersDo: the daemon ends soon after SIGTERM, also when it is just detaching.
func TestDaemonEndsWhileContainersDo(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	for range 3 {
		var boxes []*box
		for range 4 {
			boxes = append(boxes, r.run("up\n", "--", "sh", "-c", "echo up; exec sleep 1000"))
		}
		for _, b := range boxes {
			b.signal(b.cmd.Process.Pid, syscall.SIGKILL)
		}
		if err := endIn(r.daemon, 10*time.Second); err != nil {
			t.Errorf("SIGTERM to the daemon while containers end: %v", err)
		}
		r.daemon = nil
		for _, b := range boxes {
			b.wait()
		}
		r.start()
		r.eventually(patience, func() error { return r.left() })
		r.nothingLeft(before)
		if t.Failed() {
			return
		}
	}
}

// endIn has a program end by SIGTERM, and by SIGKILL if that takes too long, which is the error.
func endIn(cmd *exec.Cmd, limit time.Duration) (err error) {
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(limit):
		err = fmt.Errorf("it still runs %s later", limit)
		_ = cmd.Process.Kill()
		<-ended
	}
	return err
}
