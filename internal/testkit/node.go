package testkit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Node makes a machine of a namespace that programs can run on which believe it to be theirs: a tree of processes with
// mounts and IPC of its own, whose first process is this test's program again. /run, /var/lib and /dev/shm are empty, so
// that daemons have their files at the usual places. All that runs on it ends when the node does, and the node ends when
// this process does, for whatever reason.
type Node struct {
	// NS is the network namespace of the node.
	NS *NS

	pid  int
	stop func()
}

// nodeEnv tells the program of a test that it is the first process of a node.
const nodeEnv = "SEINE_TEST_NODE"

// IfNode is to be called first in TestMain by tests that make nodes: in the first process of a node it does that
// process's work and does not return.
func IfNode() {
	if os.Getenv(nodeEnv) == "" {
		return
	}
	if err := runNode(); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runNode makes the mounts and then waits for whatever ends below it, until its standard input ends: when it has ended,
// for whatever reason, the kernel has ended all the others.
func runNode() error {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	err = errors.Join(err, unix.Mount("proc", "/proc", "proc", 0, ""))
	for _, dir := range []string{"/run", "/var/lib", "/dev/shm"} {
		err = errors.Join(err, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"))
	}
	if err := errors.Join(err, os.Mkdir("/run/lock", 0o755)); err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	closed := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(closed)
	}()
	fmt.Println("ready")
	for {
		select {
		case <-closed:
			return nil
		case <-ended:
			for pid := 1; pid > 0; {
				pid, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			}
		}
	}
}

// NewNode makes a node of a namespace; TestMain has to call IfNode. The test is skipped where there can't be one. It is
// stopped when the test ends.
func NewNode(t TB, n *NS) *Node {
	t.Helper()
	Need(t, "root", "program:nsenter")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), nodeEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC}
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatalf("%v", err)
	}
	if err := n.Start(cmd); err != nil {
		t.Skipf("skip: needs process and mount namespaces: %v", err)
	}
	node := &Node{NS: n, pid: cmd.Process.Pid, stop: sync.OnceFunc(func() { in.Close(); _ = cmd.Wait() })}
	t.Cleanup(node.Stop)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("node: says %q: %v; does TestMain call testkit.IfNode?", line, err)
	}
	return node
}

// Stop ends everything that runs on the node, at once, and waits for that. It may be called again.
func (n *Node) Stop() { n.stop() }

// Path is where a path of the node is for this process.
func (n *Node) Path(path string) string { return fmt.Sprintf("/proc/%d/root%s", n.pid, path) }

// Command is a program to be run on the node. It is nsenter's child: what this process signals is nsenter, see Signal.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(n.pid), "-n", "-m", "-p", "-i", "--", name}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TMPDIR=/run", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Signal signals a program that was started by Command: not nsenter, but its child.
func Signal(cmd *exec.Cmd, sig syscall.Signal) error {
	children := fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)
	b, err := os.ReadFile(children)
	if err != nil {
		return err
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		return fmt.Errorf("%s: has no child: %w", strings.Join(cmd.Args, " "), err)
	}
	return syscall.Kill(pid, sig)
}

// RemoveCgroups removes the control groups with a name that programs of a stopped node leave in every hierarchy.
func RemoveCgroups(t TB, name string) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var left []string
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			found, _ := filepath.Glob(pattern + name)
			for _, top := range found {
				_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
					if err == nil && d.IsDir() {
						left = append(left, path)
					}
					return nil
				})
			}
		}
		slices.Reverse(left) // what is inside comes first
		for _, dir := range left {
			_ = syscall.Rmdir(dir) // the next round looks
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("control groups stay: %s", strings.Join(left, ", "))
			return
		}
	}
}
