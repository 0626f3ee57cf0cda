package linux

import (
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const ownNetns = "/proc/thread-self/ns/net"

// openNetns opens a namespace by path. A path that is missing, or that is something else (an unmounted /run/netns entry
// is an empty file), gives ErrNamespaceGone.
func openNetns(path string) (int, error) {
	// O_NONBLOCK: a path from outside may be a fifo, whose opening would wait for a writer.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		if isErrno(err, unix.ENOENT, unix.ENOTDIR, unix.ESRCH, unix.ENXIO, unix.ELOOP, unix.ENODEV) {
			return -1, fmt.Errorf("%w: %s: %w", kernel.ErrNamespaceGone, path, err)
		}
		return -1, fmt.Errorf("network namespace %s: %w", path, err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		unix.Close(fd)
		return -1, fmt.Errorf("%w: %s is no namespace", kernel.ErrNamespaceGone, path)
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err == nil && kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return -1, fmt.Errorf("%w: %s is a namespace of another kind", kernel.ErrNamespaceGone, path)
	}
	return fd, nil
}

// inNetns runs f on a thread that is in the namespace fd.
func inNetns(fd int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := unix.Open(ownNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer unix.Close(home)
	return visit(fd, home, f)
}

// visit runs f on a thread that is in the namespace fd and comes back to the namespace home.
func visit(fd, home int, f func() error) error {
	runtime.LockOSThread()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err := f()
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		// The thread stays locked: nobody else may get one that is in the wrong namespace.
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// NetnsCookie gives the identity of the network namespace that a file descriptor is of: a number that no other one gets
// while the machine is up (SO_NETNS_COOKIE, Linux 5.14). 0 where the kernel does not tell.
func NetnsCookie(fd int) (cookie uint64, err error) {
	err = inNetns(fd, func() error {
		so, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(so)
		cookie, err = unix.GetsockoptUint64(so, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if isErrno(err, unix.ENOPROTOOPT) {
			err = nil
		}
		return err
	})
	return cookie, err
}

// space is a namespace as one session uses it.
type space struct {
	k     *Kernel
	path  string
	fd    int
	socks map[int]*sock
	// inUse keeps the session from letting go of the namespace.
	inUse bool
	// index caches interface numbers by name.
	index map[string]int
	// known are all links by name, where a listing asked for all at once.
	known map[string]*linkInfo
	// declared has the tables that this session made, for chains that are made in the same transaction.
	declared map[tableRef]*kernel.Table
}

// session is one call of List or Apply.
type session struct {
	k      *Kernel
	spaces map[string]*space
	open   []string // the paths in spaces but for the base, oldest first
	gone   map[string]error
	dark   []*kernel.LinkUp // set up without a carrier, see awaitCarrier
	fresh  []*kernel.Addr   // IPv6 addresses just added, see awaitUse
}

func (k *Kernel) session() *session {
	return &session{k: k, spaces: map[string]*space{}, gone: map[string]error{}}
}

func (s *session) close() {
	for _, p := range s.spaces {
		p.close()
	}
}

func (p *space) close() {
	if p.path == "" {
		p.k.keep(p.socks)
		return
	}
	if !p.k.keepSpace(p) {
		p.release()
	}
}

// keepSpace takes a namespace of a session that ended, if it is one to keep; what the session knew of it is forgotten.
func (k *Kernel) keepSpace(p *space) bool {
	if !k.brief {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.spaces[p.path] != nil || len(k.spaces) >= maxIdle {
		return false
	}
	kept := &space{k: k, path: p.path, fd: p.fd, socks: map[int]*sock{}}
	for proto, so := range p.socks {
		if so.broken {
			so.close()
			continue
		}
		kept.socks[proto] = so
	}
	k.spaces[p.path] = kept
	return true
}

// keptSpace gives a namespace that was kept, nil for none.
func (k *Kernel) keptSpace(path string) *space {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.spaces[path]
	delete(k.spaces, path)
	return p
}

func (p *space) release() {
	for _, so := range p.socks {
		so.close()
	}
	unix.Close(p.fd)
}

// maxOpen is how many namespaces a session has open at once: each takes two or three file descriptors.
const maxOpen = 64

// trim lets go of the oldest namespaces that are not in use.
func (s *session) trim() {
	for i := 0; len(s.open) >= maxOpen && i < len(s.open); i++ {
		if p := s.spaces[s.open[i]]; !p.inUse {
			p.close()
			delete(s.spaces, p.path)
			s.open = slices.Delete(s.open, i, i+1)
			i--
		}
	}
}

// space gives a namespace by the path that objects carry.
func (s *session) space(path string) (*space, error) {
	if p := s.spaces[path]; p != nil {
		return p, nil
	}
	if err := s.gone[path]; err != nil {
		return nil, err
	}
	fd, err := s.k.base, s.k.baseErr
	var socks map[int]*sock
	if path != "" {
		s.trim()
		if p := s.k.keptSpace(path); p != nil {
			fd, err, socks = p.fd, nil, p.socks
		} else {
			fd, err = openNetns(path)
		}
	}
	if socks == nil {
		socks = map[int]*sock{}
	}
	if err != nil {
		s.gone[path] = err
		return nil, err
	}
	p := &space{k: s.k, path: path, fd: fd, socks: socks, index: map[string]int{},
		declared: map[tableRef]*kernel.Table{}}
	s.spaces[path] = p
	if path != "" {
		s.open = append(s.open, path)
	}
	return p, nil
}

// do runs f on a thread that is in the namespace.
func (p *space) do(f func() error) error {
	switch {
	case !p.k.brief:
		return inNetns(p.fd, f)
	case p.path == "":
		return f()
	}
	return visit(p.fd, p.k.base, f)
}

// sock gives the session's socket of a netlink protocol in this namespace.
func (p *space) sock(proto int) (*sock, error) {
	if so := p.socks[proto]; so != nil {
		return so, nil
	}
	var so *sock
	if p.path == "" {
		so = p.k.kept(proto)
	}
	if so != nil {
		p.socks[proto] = so
		return so, nil
	}
	err := p.do(func() (err error) {
		for range 8 { // another process may have the port id, if hardly
			so, err = openSock(proto, p.k.port())
			if !isErrno(err, unix.EADDRINUSE) {
				return err
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	p.socks[proto] = so
	return so, nil
}

func (p *space) route() (*sock, error) { return p.sock(unix.NETLINK_ROUTE) }
func (p *space) nft() (*sock, error)   { return p.sock(unix.NETLINK_NETFILTER) }
