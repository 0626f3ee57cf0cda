package sandbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Arg0 is the name under which a program is to call Init first of all.
const Arg0 = "seine-init"

// The statuses of a program that could not be started, as shells have them.
const (
	CantRun  = 126
	NotFound = 127
)

// controlFD is where init finds the pipe from its parent.
const controlFD = 3

// message is a line on the pipe from the parent to init. The first one has Go, all others Signal.
type message struct {
	Go     *Setup         `json:"go,omitempty"`
	Signal syscall.Signal `json:"signal,omitempty"`
}

// IsInit reports whether this process was started to be init.
func IsInit(args []string) bool { return len(args) > 0 && args[0] == Arg0 }

// Init is process 1 of a sandbox. It gives the status to exit with, and must be called before anything else is started.
func Init() int {
	unix.CloseOnExec(controlFD)
	// The terminal sends its signals to the whole process group, the program included, so init has only to survive
	// them. Notify, not Ignore, as what is ignored stays ignored in the program.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGALRM, syscall.SIGPIPE)

	lines := bufio.NewReader(os.NewFile(controlFD, "control"))
	first, err := readMessage(lines)
	if err != nil || first.Go == nil {
		return 1 // the parent gave up, and says why itself
	}
	if err := first.Go.apply(); err != nil {
		fmt.Fprintln(os.Stderr, "seine:", err)
		return 1
	}
	p, status, err := startProgram(first.Go.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "seine:", err)
		return status
	}
	go func() { // ends with the process
		for sig := range signals {
			switch sig {
			case syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2: // no terminal sends them: somebody means the program
				_ = p.Signal(sig)
			}
		}
	}()
	go func() { // ends with the process
		for {
			m, err := readMessage(lines)
			if err != nil { // the parent is gone
				os.Exit(128 + int(syscall.SIGKILL))
			}
			_ = p.Signal(m.Signal) // it may have ended
		}
	}()
	return reap(p.Pid)
}

func readMessage(r *bufio.Reader) (m message, err error) {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(line, &m)
}

// Lookup finds the program as init will, and gives the status to exit with where that fails.
func Lookup(name string) (path string, status int, err error) {
	path, err = exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil // a shell would run it as well
	}
	switch {
	case err == nil:
		return path, 0, nil
	case errors.Is(err, fs.ErrPermission):
		return "", CantRun, fmt.Errorf("program %q: can't be run: %w", name, fs.ErrPermission)
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return "", NotFound, fmt.Errorf("program %q: is not found", name)
	}
	return "", CantRun, fmt.Errorf("program %q: can't be run: %w", name, err)
}

func startProgram(args []string) (*os.Process, int, error) {
	path, status, err := Lookup(args[0])
	if err != nil {
		return nil, status, err
	}
	p, err := os.StartProcess(path, args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: os.Environ()})
	if err != nil {
		return nil, CantRun, fmt.Errorf("program %q: can't be run: %w", args[0], err)
	}
	return p, 0, nil
}

// reap waits for all children, which orphans become here, and gives the status of the program.
func reap(program int) int {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1
		case pid == program && ws.Signaled():
			return 128 + int(ws.Signal())
		case pid == program && ws.Exited():
			return ws.ExitStatus()
		}
	}
}
