// Package sandbox runs a program in namespaces of its own, for `seine run`: a network namespace that has a path, so that
// the daemon can put interfaces into it, a mount namespace in which the files of name resolution are ours, a UTS
// namespace for the host name, and a PID namespace, so that nothing that the program started outlives it.
//
//	Start ── claim the name ── network namespace, mounted at DIR/NAME ── init, waiting (its PID is known now)
//	  the caller attaches the namespace, then
//	Go ───── init covers files, starts the program, hands signals on, reaps, ends with the program's status
//	Wait, Close ── everything is undone; also what a caller that was killed left: with the next claim, or by Sweep
//
// init is this program again, started as Arg0. It dies with its parent (PR_SET_PDEATHSIG), and as process 1 of its PID
// namespace it takes all others there along. It is no container: the program sees the machine's files and is root if
// its caller is.
package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Config says what is to be started.
type Config struct {
	// Dir is where names are claimed and namespaces mounted; it is made if it is missing.
	Dir string
	// Name is the sandbox's, a file name.
	Name string
	// Host keeps the machine's network; nothing is claimed then.
	Host bool
	// Join is the path of a network namespace to enter instead of a new one; nothing is claimed then.
	Join string
	// Stdin, Stdout and Stderr are the program's.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Setup is what init learns when it may go on.
type Setup struct {
	// Args are the program, which is looked up in PATH, and its arguments.
	Args []string `json:"args"`
	// Hostname is the host name inside; "" keeps the machine's.
	Hostname string `json:"hostname,omitempty"`
	// Files are covered with the text given, where they exist: "/etc/resolv.conf".
	Files map[string]string `json:"files,omitempty"`

	// Sys has /sys show the interfaces of the sandbox, Loopback has lo set up. Go fills them in.
	Sys      bool `json:"sys"`
	Loopback bool `json:"loopback"`
}

// Sandbox is a process that waits to become a program, and then that program.
type Sandbox struct {
	config  Config
	claim   *claim // nil for Host and Join
	cmd     *exec.Cmd
	control *os.File
	exited  chan struct{} // closed when init has ended and status is set
	status  int

	mu     sync.Mutex // guards writes to control
	closed bool
}

// Start claims the name and starts init, which waits for Go. After an error nothing is left. ErrTaken says that the
// name belongs to a sandbox that lives.
func Start(c Config) (*Sandbox, error) {
	s := &Sandbox{config: c, exited: make(chan struct{})}
	var err error
	if !c.Host && c.Join == "" {
		if s.claim, err = newClaim(c.Dir, c.Name); err != nil {
			return nil, fmt.Errorf("sandbox %q: %w", c.Name, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox %q: %w", c.Name, err), s.claim.release())
	}
	s.control = w
	s.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{Arg0, c.Name}, Env: os.Environ(),
		Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, ExtraFiles: []*os.File{r},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS, Pdeathsig: syscall.SIGKILL,
		},
	}
	started := make(chan error)
	go s.thread(started)
	err = <-started
	r.Close()
	if err != nil {
		w.Close()
		return nil, errors.Join(fmt.Errorf("sandbox %q: %w", c.Name, err), s.claim.release())
	}
	return s, nil
}

// thread goes into the network namespace, starts init from there and waits for it. It keeps its thread to itself, and
// for as long as init lives: the thread's end is what init's death signal waits for. As it returns locked, the runtime
// ends the thread, whose namespace is not the others'.
func (s *Sandbox) thread(started chan<- error) {
	runtime.LockOSThread()
	err := s.enter()
	if err == nil {
		err = s.cmd.Start()
	}
	started <- err
	if err != nil {
		return
	}
	defer close(s.exited)
	err = s.cmd.Wait()
	s.status = statusOf(s.cmd.ProcessState)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && s.status == 0 {
		s.status = 1 // the program's output could not be copied to the end
	}
}

func statusOf(p *os.ProcessState) int {
	ws, ok := p.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.ExitCode()
}

// enter puts the calling thread into the sandbox's network namespace.
func (s *Sandbox) enter() error {
	switch {
	case s.config.Host:
		return nil
	case s.config.Join != "":
		return join(s.config.Join)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	return s.claim.mount("/proc/thread-self/ns/net")
}

func join(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %q: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace %q: %w", path, err)
	}
	return nil
}

// Netns is the path of the network namespace; "" for the machine's.
func (s *Sandbox) Netns() string {
	if s.claim != nil {
		return s.claim.path
	}
	return s.config.Join
}

// PID is the process that the sandbox lives and dies with.
func (s *Sandbox) PID() int { return s.cmd.Process.Pid }

// Go has init start the program.
func (s *Sandbox) Go(setup Setup) error {
	setup.Sys, setup.Loopback = !s.config.Host, s.claim != nil
	return s.send(message{Go: &setup})
}

// Signal has init send a signal to the program. It is an error after the program's end.
func (s *Sandbox) Signal(sig syscall.Signal) error { return s.send(message{Signal: sig}) }

func (s *Sandbox) send(m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", s.config.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("sandbox %q: %w", s.config.Name, os.ErrProcessDone)
	}
	if _, err := s.control.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("sandbox %q: %w", s.config.Name, err)
	}
	return nil
}

// Exited is closed when the program has ended.
func (s *Sandbox) Exited() <-chan struct{} { return s.exited }

// Wait waits for the program's end and gives its exit status, as a shell has it: 128 and the number of the signal that
// ended it; 126 or 127 if it could not be started.
func (s *Sandbox) Wait() int {
	<-s.exited
	return s.status
}

// Close ends all processes of the sandbox if there still are any, and takes away the namespace's path and the claim of
// the name. It may be called more than once.
func (s *Sandbox) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if !first {
		return nil
	}
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.exited
	return errors.Join(s.control.Close(), s.claim.release())
}
