package udp

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/fabric"
)

var (
	// errGone: the device was deleted while it was in use.
	errGone = errors.New("link " + LinkName + " is gone")
	// errAbsent: there is no device of ours yet.
	errAbsent = errors.New("link " + LinkName + " is not there")
)

// device is the open TUN device.
type device struct {
	fd  int
	udp bool // the kernel segments UDP for us, and takes segmented UDP (TUN_F_USO4, kernel 6.2)
}

// openDevice attaches to the TUN device in the thread's namespace, which must be there and ours.
func openDevice() (*device, error) {
	if err := ours(); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	d := &device{fd: fd}
	if err := d.attach(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return d, nil
}

func (d *device) attach() error {
	req, err := unix.NewIfreq(LinkName)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(d.fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("link %s: TUNSETIFF: %w", LinkName, err)
	}
	if err := unix.IoctlIfreq(d.fd, unix.TUNGETIFF, req); err != nil {
		return fmt.Errorf("link %s: TUNGETIFF: %w", LinkName, err)
	}
	if req.Uint16()&unix.IFF_PERSIST == 0 {
		return errAbsent // it went meanwhile, and this made another, which goes with the file
	}
	if err := unix.IoctlSetPointerInt(d.fd, unix.TUNSETVNETHDRSZ, vnetLen); err != nil {
		return fmt.Errorf("link %s: TUNSETVNETHDRSZ: %w", LinkName, err)
	}
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	if err := unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6); err == nil {
		d.udp = true
		return nil
	}
	if err := unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, tcp); err != nil {
		return fmt.Errorf("link %s: TUNSETOFFLOAD: %w", LinkName, err)
	}
	return nil
}

// ours reports why the device can't be used: it is absent or somebody else's.
func ours() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(LinkName)
	if err != nil {
		return err
	}
	if unix.IoctlIfreq(s, unix.SIOCGIFINDEX, req) != nil {
		return errAbsent // asked first, as it is cheap where there are many links
	}
	rib, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	msgs, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	for i := range msgs {
		if msgs[i].Header.Type != unix.RTM_NEWLINK {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&msgs[i])
		if err != nil {
			return fmt.Errorf("links: %w", err)
		}
		var name, alias string
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFLA_IFNAME:
				name = unix.ByteSliceToString(a.Value)
			case unix.IFLA_IFALIAS:
				alias = unix.ByteSliceToString(a.Value)
			}
		}
		if name == LinkName && alias == fabric.Alias(Name) {
			return nil
		}
		if name == LinkName {
			return fmt.Errorf("link %s: is somebody else's: its alias is %q", LinkName, alias)
		}
	}
	return errAbsent
}

// read takes one packet, with its virtio header.
func (d *device) read(b []byte) (int, error) {
	for {
		n, err := unix.Read(d.fd, b)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EBADFD):
			return 0, errGone
		default:
			return 0, err
		}
	}
}

// await waits until fd can be read, or stop, which it reports.
func await(fd, stop int) (stopped bool, err error) {
	p := [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p[:], -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return p[1].Revents != 0, err
	}
}

// openSocket opens the socket for one family in the thread's namespace; -1 where the kernel has no such family.
func openSocket(v6 bool, port uint16) (int, error) {
	fam := unix.AF_INET
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if v6 {
		fam, at = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)}
	}
	fd, err := unix.Socket(fam, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	err = func() error {
		if v6 {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
				return err
			}
			// No "don't fragment": what an underlay with a smaller MTU than was thought can't take goes in pieces.
			err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
			if err != nil {
				return err
			}
		} else if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT); err != nil {
			return err
		}
		// These make it faster where they are had, and are missed by nothing else.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
		// A link that takes nothing must not keep the program from ending.
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
			return err
		}
		return unix.Bind(fd, at)
	}()
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("UDP port %d: %w", port, err)
	}
	return fd, nil
}

// socketBuffer, in bytes, is what a socket may hold while its reader is not on a processor.
const socketBuffer = 4 << 20
