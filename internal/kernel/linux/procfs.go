package linux

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// procUses is how many files are opened by one private procfs before it is given up for a new one.
const procUses = 32

// procfs opens files under /proc/sys. The kernel keeps a directory entry of its own in /proc/sys/net for each network
// namespace that was ever looked into, all of them under one name and so in one chain that each look-up walks: with
// 1,500 namespaces a sysctl takes 0.6 ms instead of 0.1. A procfs of our own, mounted nowhere (fsmount(2), kernel 5.2)
// and given up after some uses, has short chains.
type procfs struct {
	private bool

	mu  sync.Mutex
	cur *procMount
}

// procMount is one private procfs; the last user of one that was given up closes it.
type procMount struct {
	fd, uses, users int
	old             bool
}

// open opens the file of a sysctl on the calling thread's behalf, whose namespace decides which it is. It gives a bare
// descriptor: an os.File would be put into the runtime's poller, which is twice the work of reading or writing it.
func (p *procfs) open(name string, flags int) (int, error) {
	path, err := sysctlPath(name)
	if err != nil {
		return -1, err
	}
	dir, file := unix.AT_FDCWD, path
	if m := p.take(); m != nil {
		defer p.give(m)
		dir = m.fd
		file, _ = filepath.Rel("/proc", path)
	}
	fd, err := again(func() (int, error) { return unix.Openat(dir, file, flags|unix.O_CLOEXEC, 0) })
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// again calls f until no signal interrupts it.
func again(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}

// take gives the private procfs of the moment; nil where there can't be one.
func (p *procfs) take() *procMount {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.private {
		return nil
	}
	if p.cur != nil && p.cur.uses >= procUses {
		p.retireLocked()
	}
	if p.cur == nil {
		fd, err := mountProc()
		if err != nil { // an old kernel, or no right to mount: /proc does as well, if slower
			p.private = false
			return nil
		}
		p.cur = &procMount{fd: fd}
	}
	p.cur.uses++
	p.cur.users++
	return p.cur
}

func (p *procfs) give(m *procMount) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.users--; m.old && m.users == 0 {
		unix.Close(m.fd)
	}
}

func (p *procfs) retireLocked() {
	if p.cur == nil {
		return
	}
	if p.cur.old = true; p.cur.users == 0 {
		unix.Close(p.cur.fd)
	}
	p.cur = nil
}

func (p *procfs) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retireLocked()
	p.private = false
}

func mountProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// A procfs is that of a pid namespace; it has to be one in which this process is.
	if err := unix.Faccessat(fd, strconv.Itoa(os.Getpid()), unix.F_OK, 0); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
