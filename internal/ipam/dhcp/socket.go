package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// socket4 is a wire on a real interface: a packet socket that takes what is for a DHCPv4 client, whatever addresses the
// interface has, and, for what goes by the container's routes, a UDP socket.
type socket4 struct {
	*port
	l     *lease
	index int
	mac   [6]byte
	udp   int // -1 while there is none
}

// openWire opens the sockets of a DHCPv4 client in a lease's namespace and notes what the interface is.
func openWire(ctx context.Context, l *lease) (wire, error) {
	s := &socket4{l: l, udp: -1}
	var err error
	s.port, s.index, err = openPort(ctx, l, func(index int) (int, error) {
		link, err := interfaceOf(l.Interface)
		if err != nil {
			return -1, err
		}
		copy(s.mac[:], link.HardwareAddr)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1, err
		}
		return fd, listenPackets(fd, index)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// interfaceOf finds an interface of Ethernet's kind.
func interfaceOf(name string) (*net.Interface, error) {
	all, err := net.Interfaces() // of net.InterfaceByName one can't tell failing from finding none
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", name, err)
	}
	i := slices.IndexFunc(all, func(l net.Interface) bool { return l.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("%w: there is no %q", errGone, name)
	}
	link := &all[i]
	if len(link.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %q: hardware address %q: want one of 6 bytes", name, link.HardwareAddr)
	}
	return link, nil
}

// listenPackets makes a packet socket take UDP for a DHCPv4 client's port, and nothing before it does.
func listenPackets(fd, index int) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 9}, // protocol
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_UDP, Jf: 6},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 6}, // fragments
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x3fff, Jt: 4},
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2}, // destination port
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: clientPort4, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("packet socket: filter: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: order(unix.ETH_P_IP), Ifindex: index}); err != nil {
		return fmt.Errorf("packet socket: bind: %w", err)
	}
	return nil
}

// order gives a number in the network's order of bytes.
func order(n uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n)) }

// MAC implements wire.
func (s *socket4) MAC() [6]byte { return s.mac }

func (s *socket4) broadcast(msg []byte, from netip.Addr) error {
	return s.direct(msg, from, everybody, [6]byte{255, 255, 255, 255, 255, 255})
}

func (s *socket4) direct(msg []byte, from, to netip.Addr, via [6]byte) error {
	at := &unix.SockaddrLinklayer{Protocol: order(unix.ETH_P_IP), Ifindex: s.index, Halen: 6}
	copy(at.Addr[:], via[:])
	if err := s.send(frame4(msg, from, to), at); err != nil {
		return fmt.Errorf("interface %q: send to %s: %w", s.l.Interface, to, err)
	}
	return nil
}

func (s *socket4) unicast(msg []byte, from, to netip.Addr) error {
	if s.udp < 0 {
		_, err := enter(s.l.Netns, s.l.Space, func() (err error) {
			s.udp, err = udpSocket(s.l.Interface, from)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := unix.Sendto(s.udp, msg, 0, &unix.SockaddrInet4{Port: serverPort4, Addr: to.As4()}); err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

// udpSocket opens a socket on the port that the answer comes to; the answer itself is read from the packet socket, but
// without a socket the kernel would tell the server that nobody listens.
func udpSocket(link string, from netip.Addr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.BindToDevice(fd, link))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: clientPort4, Addr: from.As4()})
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("socket of %s on %q: %w", from, link, err)
	}
	return fd, nil
}

func (s *socket4) receive(until time.Time) (msg []byte, via [6]byte, err error) {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.port.receive(until, buf)
		if err != nil {
			return nil, via, err
		}
		if at, ok := from.(*unix.SockaddrLinklayer); ok {
			copy(via[:], at.Addr[:])
		}
		if msg, ok := unframe4(buf[:n]); ok {
			return msg, via, nil
		}
	}
}

// Close closes the sockets.
func (s *socket4) Close() error {
	if s.udp >= 0 {
		unix.Close(s.udp)
		s.udp = -1
	}
	return s.port.Close()
}
