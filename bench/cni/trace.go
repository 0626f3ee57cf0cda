package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// straceCall matches a line that begins a system call, straceExec one by which a program has been started. strace makes
// every call slow, so how often threads wait for each other, or look whether they should, is chance: straceWait.
// straceTrip is a message to the kernel by netlink: none of the programs sends any other.
var (
	straceCall = regexp.MustCompile(`^\d+ +[a-z_0-9]+\(`)
	straceWait = regexp.MustCompile(`^\d+ +(futex|nanosleep|clock_nanosleep|sched_yield|tgkill|rt_sigreturn|restart_syscall|epoll_p?wait)\(`)
	straceTrip = regexp.MustCompile(`^\d+ +(sendto|sendmsg)\(`)
	straceExec = regexp.MustCompile(`^\d+ +(execve\(|<\.\.\. execve resumed>).* = 0$`)
)

// trace counts the programs that a plugin starts, itself not among them, and the system calls of all.
func trace(args []string, attr *os.ProcAttr) (cost, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return cost{}, err
	}
	f, err := os.CreateTemp("/run", "strace")
	if err != nil {
		return cost{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	p, err := os.StartProcess(strace, append([]string{"strace", "-f", "-qq", "-s", "0", "-o", f.Name()}, args...), attr)
	if err != nil {
		return cost{}, err
	}
	st, err := p.Wait()
	if err != nil {
		return cost{}, err
	}
	if !st.Success() {
		return cost{}, fmt.Errorf("%s", st)
	}
	c, err := countTrace(f)
	c.Procs-- // the plugin
	return c, err
}

func countTrace(r io.Reader) (c cost, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if straceCall.Match(lines.Bytes()) && !straceWait.Match(lines.Bytes()) {
			c.Calls++
		}
		if straceTrip.Match(lines.Bytes()) {
			c.Trips++
		}
		if straceExec.Match(lines.Bytes()) {
			c.Procs++
		}
	}
	return c, lines.Err()
}

// highWater gives the most memory that the plugin held. What wait4 tells of that begins with the memory of the process
// that forked, which this one shares until exec; so the plugin is stopped when it ends, and asked itself.
func highWater(args []string, attr *os.ProcAttr) (c cost, err error) {
	runtime.LockOSThread() // a thread traces, not a process
	defer runtime.UnlockOSThread()
	a := *attr
	a.Sys = &syscall.SysProcAttr{Ptrace: true}
	p, err := os.StartProcess(args[0], args, &a)
	if err != nil {
		return c, err
	}
	defer p.Release()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(p.Pid, &ws, 0, nil); err != nil {
		return c, err
	}
	if err := unix.PtraceSetOptions(p.Pid, unix.PTRACE_O_TRACEEXIT); err != nil {
		return c, errors.Join(err, p.Kill())
	}
	for sig := 0; ; {
		if err := unix.PtraceCont(p.Pid, sig); err != nil {
			return c, errors.Join(err, p.Kill())
		}
		if _, err := unix.Wait4(p.Pid, &ws, unix.WALL, nil); err != nil {
			return c, err
		}
		switch {
		case ws.Exited() && ws.ExitStatus() == 0:
			return c, nil
		case ws.Exited():
			return c, fmt.Errorf("exit status %d", ws.ExitStatus())
		case ws.Signaled():
			return c, fmt.Errorf("killed by signal %s", ws.Signal())
		case ws.TrapCause() == unix.PTRACE_EVENT_EXIT:
			sig = 0
			if c.RSS, err = vmHWM(p.Pid); err != nil {
				return c, errors.Join(err, p.Kill())
			}
		default:
			sig = int(ws.StopSignal())
		}
	}
}

func vmHWM(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(kb), " kB"))
			return n << 10, err
		}
	}
	return 0, errors.New("the kernel does not tell VmHWM")
}
