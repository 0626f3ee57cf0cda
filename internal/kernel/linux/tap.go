package linux

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// The kind of a TUN or TAP device (IFLA_INFO_KIND) and what the kernel tells of one (IFLA_TUN_…, kernel 4.17).
const (
	tunKind       = "tun"
	tunOwner      = 1
	tunGroup      = 2
	tunType       = 3
	tunMultiQueue = 7
)

// parseTun takes apart what the kernel tells of a TUN or TAP device.
func (l *linkInfo) parseTun(b []byte) {
	t := attrOf(b, tunType)
	if len(t) == 0 {
		return
	}
	l.kind = string(kernel.Tun)
	if t[0] == unix.IFF_TAP {
		l.kind = string(kernel.Tap)
	}
	id := func(t uint16) *uint32 {
		v := attrOf(b, t)
		if len(v) < 4 {
			return nil
		}
		n := num32(v)
		return &n
	}
	q := attrOf(b, tunMultiQueue)
	l.access = &kernel.Access{Owner: id(tunOwner), Group: id(tunGroup), MultiQueue: len(q) > 0 && q[0] != 0}
}

// createTap makes a TUN or TAP device. Up to TUNSETPERSIST, the last step, it goes with the file: nothing is left of one that
// could not be finished, nor of a process that was killed in between.
func (s *session) createTap(sp *space, want *kernel.Link) error {
	// The device is made in the namespace of the thread that opens the file.
	var fd int
	open := func() (err error) {
		fd, err = openTun(want)
		return err
	}
	var err error
	if a := want.Access; a != nil && a.Context != "" {
		err = sp.doAs(a.Context, open)
	} else {
		err = sp.do(open)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	delete(sp.index, want.Name)
	so, err := sp.route()
	if err != nil {
		return err
	}
	m := newMsg(unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0))
	m.str(unix.IFLA_IFNAME, want.Name)
	if want.Group != 0 {
		m.u32(unix.IFLA_GROUP, want.Group)
	}
	if want.Master != "" {
		i, err := sp.ifindex(want.Master)
		if err != nil {
			return err
		}
		m.u32(unix.IFLA_MASTER, uint32(i))
	}
	if err := shape(m, want.MTU, want.MAC); err != nil {
		return err
	}
	if err := so.exec1(m); err != nil {
		return err
	}
	if err := s.dress(sp, want, 0); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("TUNSETPERSIST: %w", err)
	}
	return nil
}

// openTun makes a device that lasts as long as the file that it gives.
func openTun(want *kernel.Link) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		if isErrno(err, unix.ENOENT, unix.ENODEV, unix.ENXIO) {
			err = fmt.Errorf("%w: /dev/net/tun: %w", kernel.ErrUnsupported, err)
		}
		return -1, err
	}
	if err := setTun(fd, want); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setTun(fd int, want *kernel.Link) error {
	req, err := unix.NewIfreq(want.Name)
	if err != nil {
		return fmt.Errorf("name %q is no interface name", want.Name)
	}
	access := want.Access
	if access == nil {
		access = &kernel.Access{}
	}
	// Who opens a device that is there says anew whether packets have headers (IFF_NO_PI, IFF_VNET_HDR): only the number
	// of queues stays.
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if want.Type == kernel.Tun {
		flags ^= unix.IFF_TAP | unix.IFF_TUN
	}
	if access.MultiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		if isErrno(err, unix.EBUSY) { // IFF_TUN_EXCL: there is a link of this name
			err = unix.EEXIST
		}
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if req.Name() != want.Name {
		return fmt.Errorf("name %q is a pattern", want.Name)
	}
	for _, id := range []struct {
		what string
		req  uint
		n    *uint32
	}{{"TUNSETOWNER", unix.TUNSETOWNER, access.Owner}, {"TUNSETGROUP", unix.TUNSETGROUP, access.Group}} {
		if id.n == nil {
			continue
		}
		if err := unix.IoctlSetInt(fd, id.req, int(*id.n)); err != nil {
			return fmt.Errorf("%s %d: %w", id.what, *id.n, err)
		}
	}
	return nil
}

// hasSELinux reports whether the kernel runs SELinux.
func hasSELinux() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/selinux", &st) == nil && uint32(st.Type) == unix.SELINUX_MAGIC
}

// doAs runs f in the namespace on a thread that has an SELinux context: a TUN or TAP device gets that of the thread that
// makes it, whatever /proc/thread-self/attr/sockcreate says (selinux_tun_dev_alloc_security, security/selinux/hooks.c).
// SELinux lets one of several threads change to a context that its own bounds (typebounds), and to no other. The thread
// ends with f, as it might not be let back.
func (p *space) doAs(context string, f func() error) error {
	if !hasSELinux() {
		return fmt.Errorf("%w: SELinux context %q: the kernel runs no SELinux", kernel.ErrUnsupported, context)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- func() error {
			if err := unix.Setns(p.fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace: %w", err)
			}
			err := os.WriteFile("/proc/thread-self/attr/current", []byte(context), 0)
			if err != nil {
				return fmt.Errorf("SELinux context %q: %w", context, errors.Unwrap(err))
			}
			return f()
		}()
	}()
	return <-done
}
