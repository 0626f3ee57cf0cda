package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace of its own. It has no name in the file system: it lives as long as this process and the
// processes in it, so that a test that is killed leaves nothing behind.
type NS struct {
	// Name is for people.
	Name string

	file    *os.File
	nl      *netlink.Handle
	mu      sync.Mutex
	closers []func()
}

// NewNS makes a namespace with nothing but a loopback interface, which is up.
func NewNS(name string) (*NS, error) {
	file, err := unshare()
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: %w", name, err)
	}
	n, err := newNS(name, file)
	if err != nil {
		return nil, err
	}
	if err := n.up("lo"); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// OpenNS gives a namespace that is there already, such as a container's by "/proc/PID/ns/net". It is kept alive until
// it is closed.
func OpenNS(name, path string) (*NS, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: %w", name, err)
	}
	return newNS(name, file)
}

func newNS(name string, file *os.File) (*NS, error) {
	n := &NS{Name: name, file: file}
	// The handle's sockets belong to the namespace, so nothing below changes threads.
	var err error
	if n.nl, err = netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("network namespace %q: netlink: %w", name, err)
	}
	return n, nil
}

// unshare gives a new namespace. The thread that made it ends with its goroutine, since it is never unlocked.
func unshare() (*os.File, error) {
	type made struct {
		file *os.File
		err  error
	}
	out := make(chan made)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			out <- made{nil, fmt.Errorf("unshare: %w", err)}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		out <- made{file, err}
	}()
	m := <-out
	return m.file, m.err
}

// Path is a path under which this process, and others of root, can open the namespace while this process runs.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Netlink is a handle on the namespace's links, addresses and routes. It is the namespace's: don't close it.
func (n *NS) Netlink() *netlink.Handle { return n.nl }

// Fd is a descriptor of the namespace, for libraries that want one. It is the namespace's: don't close it.
func (n *NS) Fd() int { return int(n.file.Fd()) }

// Close gives the namespace up, after everything that was started in it by Echo. The kernel takes it away, with its
// interfaces, when no process is in it and no socket of it is open any more.
func (n *NS) Close() {
	n.mu.Lock()
	closers := n.closers
	n.closers = nil
	n.mu.Unlock()
	for i := len(closers) - 1; i >= 0; i-- {
		closers[i]()
	}
	n.nl.Close()
	_ = n.file.Close()
}

func (n *NS) onClose(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closers = append(n.closers, f)
}

// Do runs f on a thread in the namespace and gives its error. Goroutines that f starts are not in the namespace;
// sockets and processes that f makes are, for good. f must not end its goroutine (t.Fatal does).
func (n *NS) Do(f func() error) error {
	out := make(chan error, 1)
	ended := false
	go func() {
		defer func() {
			if !ended {
				out <- errors.New("function ended its goroutine")
			}
		}()
		runtime.LockOSThread() // for good: the thread ends with the goroutine, so none is left in a wrong namespace
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			ended = true
			out <- fmt.Errorf("enter network namespace %q: %w", n.Name, err)
			return
		}
		err := f()
		ended = true
		out <- err
	}()
	return <-out
}

// Exec runs a program in the namespace and gives what it printed, both streams together. A program that ended with
// anything but 0 is an error that has its output. It is killed when ctx ends.
func (n *NS) Exec(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", n.Name, strings.Join(cmd.Args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), err
}

// Start starts a prepared program in the namespace; the caller waits for it. Not with SysProcAttr.Pdeathsig, which
// is about the thread that starts it, and that one ends at once.
func (n *NS) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Dial connects from within the namespace. The address is a literal one: names are looked up elsewhere.
func (n *NS) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.DialWith(ctx, net.Dialer{}, network, address)
}

// DialWith is Dial with the local address and other properties of a dialer.
func (n *NS) DialWith(ctx context.Context, d net.Dialer, network, address string) (c net.Conn, err error) {
	err = n.Do(func() (err error) { c, err = d.DialContext(ctx, network, address); return err })
	return c, err
}

// Listen opens a listener (of "tcp", "tcp4", "tcp6", "unix") in the namespace. The caller closes it.
func (n *NS) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() (err error) { l, err = net.Listen(network, address); return err })
	return l, err
}

// ListenPacket opens a packet socket (of "udp", "udp4", "udp6") in the namespace. The caller closes it.
func (n *NS) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = n.Do(func() (err error) { c, err = net.ListenPacket(network, address); return err })
	return c, err
}

// Sysctl writes a value under /proc/sys: "net/ipv4/ip_forward".
func (n *NS) Sysctl(name, value string) error {
	return n.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0) })
}

// ReadSysctl reads a value under /proc/sys.
func (n *NS) ReadSysctl(name string) (value string, err error) {
	err = n.Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys", name))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

func (n *NS) up(link string) error {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		err = n.nl.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("%s: link %q up: %w", n.Name, link, err)
	}
	return nil
}
