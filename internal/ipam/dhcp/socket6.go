package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Ports and addresses of DHCPv6 (RFC 8415 section 7) and of routers (RFC 4291 section 2.7.1).
const (
	serverPort6 = 547
	clientPort6 = 546
)

var (
	allServers = netip.MustParseAddr("ff02::1:2")
	allRouters = netip.MustParseAddr("ff02::2")
)

// errNotYet says that the interface's link-local address can't be used yet.
var errNotYet = errors.New("the interface has no link-local address yet")

// notYetPause is how long to wait for that.
const notYetPause = 50 * time.Millisecond

// socket6 is a DHCPv6 client's socket on a container's interface.
type socket6 struct {
	*port
	to *unix.SockaddrInet6
}

func openSocket6(ctx context.Context, l *lease) (*socket6, error) {
	p, index, err := openPort(ctx, l, func(int) (int, error) {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1, err
		}
		return fd, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1), unix.BindToDevice(fd, l.Interface),
			unix.Bind(fd, &unix.SockaddrInet6{Port: clientPort6}))
	})
	if err != nil {
		return nil, err
	}
	return &socket6{p, &unix.SockaddrInet6{Port: serverPort6, ZoneId: uint32(index), Addr: allServers.As16()}}, nil
}

func (s *socket6) send(msg []byte) error { return notYet(s.port.send(msg, s.to)) }

// notYet recognises what the kernel says while the interface's address is tried out, or the link has no carrier.
func notYet(err error) error {
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("%w: %w", errNotYet, err)
	}
	return err
}

func (s *socket6) receive(until time.Time) ([]byte, error) {
	buf := make([]byte, 2048)
	n, _, err := s.port.receive(until, buf)
	return buf[:max(n, 0)], err
}

// routerSocket asks routers and hears them.
type routerSocket struct {
	*port
	to *unix.SockaddrInet6
}

func openRouterSocket(ctx context.Context, l *lease) (*routerSocket, error) {
	p, index, err := openPort(ctx, l, func(int) (int, error) {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
		if err != nil {
			return -1, err
		}
		only := &unix.ICMPv6Filter{} // a set bit is a type that is not let in
		for i := range only.Data {
			only.Data[i] = ^uint32(0)
		}
		only.Data[icmpAdvert/32] &^= 1 << (icmpAdvert % 32)
		return fd, errors.Join(unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, only), unix.BindToDevice(fd, l.Interface),
			// Both ways a number of hops of 255 shows that no router was passed (RFC 4861 section 6.1).
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1))
	})
	if err != nil {
		return nil, err
	}
	return &routerSocket{p, &unix.SockaddrInet6{ZoneId: uint32(index), Addr: allRouters.As16()}}, nil
}

// solicit asks all routers to speak; the kernel fills in the sum.
func (s *routerSocket) solicit() error {
	return notYet(s.port.send([]byte{icmpSolicit, 0, 0, 0, 0, 0, 0, 0}, s.to))
}

// receive gives the next advertisement, nil where there was none until then.
func (s *routerSocket) receive(until time.Time) *advert {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.port.receive(until, buf)
		if err != nil {
			return nil
		}
		if at, ok := from.(*unix.SockaddrInet6); ok && s.hops() == 255 {
			if a, err := parseAdvert(buf[:n], netip.AddrFrom16(at.Addr)); err == nil {
				return a
			}
		}
	}
}

// hops is the last packet's number of hops; 0 where the kernel did not say.
func (s *routerSocket) hops() int {
	all, err := unix.ParseSocketControlMessage(s.beside)
	if err != nil {
		return 0
	}
	for _, m := range all {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}
