package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
)

// machine answers the engine's questions about namespaces and processes.
type machine struct {
	log *slog.Logger
	// ended is called after what was to be done for a process that ended.
	ended func()
	// links gives every interface of the machine, and facts what the machine uses them for.
	links func(context.Context) ([]kernel.Object, error)
	facts func(context.Context) (kernel.Facts, error)
	own   uint64 // inode of the namespace that we work in

	calls sync.WaitGroup
	mu    sync.Mutex
	procs map[int32]watched // pidfd → what to do when it becomes readable
	epoll int
	wake  int // eventfd that ends Run
}

type watched struct {
	gone func()
}

// newMachine opens the epoll set that Run waits on.
func newMachine(log *slog.Logger, ended func()) (*machine, error) {
	m := &machine{log: log, ended: ended, procs: map[int32]watched{}}
	var err error
	if m.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if m.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err := unix.EpollCtl(m.epoll, unix.EPOLL_CTL_ADD, m.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(m.wake)}); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	m.own = st.Ino
	return m, nil
}

// CheckNetns implements engine.Machine.
func (m *machine) CheckNetns(path string) (uint64, error) {
	// O_NONBLOCK: whatever lies there, opening it must not hang.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("can't be opened: %w", err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return 0, errors.New("is no namespace")
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return 0, errors.New("is no network namespace")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("can't be examined: %w", err)
	}
	if st.Ino == m.own {
		return 0, errors.New("is the machine's own network namespace")
	}
	cookie, err := linux.NetnsCookie(fd)
	if err != nil {
		return 0, fmt.Errorf("can't be entered: %w", err)
	}
	return cookie, nil
}

// checkTime bounds CheckMovable, in which only the kernel is asked.
const checkTime = 5 * time.Second

// CheckMovable implements engine.Machine. An interface is in use if it has an address, other than one that it gave itself,
// a default route, or others made on it; that of a plugin for a container has none of these.
func (m *machine) CheckMovable(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	f, err := m.facts(ctx)
	if err != nil {
		return err
	}
	all, err := m.links(ctx)
	if err != nil {
		return err
	}
	return movable(name, f, all)
}

func movable(name string, f kernel.Facts, all []kernel.Object) error {
	l := f.Link(name)
	switch {
	case l == nil:
		return errors.New("is not there")
	case l.Ours:
		return errors.New("is one of Seine's own")
	case name == f.Default4 || name == f.Default6:
		return errors.New("has the machine's default route")
	}
	for _, a := range l.Addrs {
		if !a.Addr().IsLinkLocalUnicast() {
			return fmt.Errorf("is in use by the machine: it has the address %s", a)
		}
	}
	for _, o := range all {
		x, ok := o.(*kernel.Link)
		switch {
		case !ok:
		case x.Name == name && x.Type == kernel.Loopback:
			return errors.New("is the machine's loopback")
		case x.Name == name && x.Master != "":
			return fmt.Errorf("is in use by the machine: it is a port of %q", x.Master)
		case x.Name != name && (x.Master == name || x.Parent != nil && x.Parent.NS == "" && x.Parent.Name == name):
			return fmt.Errorf("is in use by the machine: %q hangs on it", x.Name)
		}
	}
	return nil
}

// ProcessStart implements engine.Machine.
func (m *machine) ProcessStart(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command (field 2) is in parentheses and may hold anything; the fields after the last one are plain.
	_, rest, ok := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %q is not of the known form", pid, b)
	}
	if f[0] == "Z" || f[0] == "X" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// WatchProcess implements engine.Machine.
func (m *machine) WatchProcess(pid int, start uint64, gone func()) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		// The number may have gone to another process before it was opened.
		if now, e2 := m.ProcessStart(pid); e2 != nil || now != start {
			unix.Close(fd)
			err = unix.ESRCH
		}
	}
	if err == nil {
		m.mu.Lock()
		m.procs[int32(fd)] = watched{gone}
		m.mu.Unlock()
		if err = unix.EpollCtl(m.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			m.forget(int32(fd))
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, unix.ESRCH):
		m.calls.Go(func() { gone(); m.ended() }) // nobody may be called back while holding a lock of theirs
	default:
		m.log.Error("process can't be watched; its endpoints stay when it ends", "pid", pid, "err", err)
	}
}

func (m *machine) forget(fd int32) watched {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.procs[fd]
	delete(m.procs, fd)
	unix.Close(int(fd))
	return w
}

// Run calls back for processes that ended, until ctx ends.
func (m *machine) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _, _ = unix.Write(m.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stop()
	defer m.calls.Wait()
	events := make([]unix.EpollEvent, 64)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(m.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			m.log.Error("processes can't be watched any more", "err", err)
			return
		}
		for _, ev := range events[:max(n, 0)] {
			if int(ev.Fd) == m.wake {
				continue
			}
			if w := m.forget(ev.Fd); w.gone != nil {
				m.calls.Go(func() { w.gone(); m.ended() })
			}
		}
	}
}

// bootID tells this uptime of the machine from others.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
