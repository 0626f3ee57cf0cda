package fabric_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/fabric/hostgw"
	"github.com/seine-net/seine/internal/fabric/vxlan"
	"github.com/seine-net/seine/internal/fabric/wireguard"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/testkit"
)

// sink counts the packets that come to a UDP port of a container and have a text.
func (r *rig) sink(c *container, port uint16, text string) func(wait time.Duration) bool {
	r.Helper()
	p, err := c.ListenPacket("udp", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
	r.ok(err)
	r.Cleanup(func() { p.Close() })
	return func(wait time.Duration) bool {
		r.Helper()
		buf := make([]byte, 2000)
		for end := time.Now().Add(wait); ; {
			_ = p.SetReadDeadline(end)
			n, _, err := p.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return false
			}
			r.ok(err)
			if string(buf[:n]) == text {
				return true
			}
		}
	}
}

// udp4 is an IPv4 packet with a UDP datagram without a checksum.
func udp4(from, to netip.AddrPort, data string) []byte {
	b := make([]byte, 28+len(data))
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], from.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum>>16+sum&0xffff))
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(data)))
	copy(b[28:], data)
	return b
}

// overlay wraps a packet for a VTEP in Ethernet and VXLAN.
func overlay(vni uint32, to, from string, packet []byte) []byte {
	b := []byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	for _, mac := range []string{to, from} {
		hw, _ := net.ParseMAC(mac)
		b = append(b, hw...)
	}
	return append(append(b, 8, 0), packet...)
}

// raw sends an IPv4 packet as it is from a namespace.
func (r *rig) raw(n *testkit.NS, to netip.Addr, packet []byte) {
	r.Helper()
	r.ok(n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
	}))
}

// TestStrangers: who is not a node of the cluster gets nothing into a network: not by VXLAN, not by the addresses of its
// containers, not into connections that are open.
func TestStrangers(t *testing.T) {
	const port, text = 9, "from a stranger"
	r := newRig(t, dual, cluster(1))
	h1, h2 := r.hosts[0], r.hosts[1]
	one, two := h1.attach(1, 2), h2.attach(1, 2)
	r.meetAll(vxlan.Name)
	r.reach(two, one)
	came := r.sink(one, port, text)
	at := netip.AddrPortFrom(one.v4, port)
	fake := udp4(netip.AddrPortFrom(two.v4, port), at, text)
	vtep := vxlan.MAC(h1.node.ID)
	outer := func(from netip.Addr, packet []byte) []byte {
		return udp4(netip.AddrPortFrom(from, 55555), netip.AddrPortFrom(h1.V4, kernel.VXLANPort), string(packet))
	}
	frame := overlay(4096, vtep, vxlan.MAC(h2.node.ID), fake)

	r.raw(h2.NS, h1.V4, outer(h2.V4, frame))
	if !came(time.Second) {
		t.Fatal("a packet of a peer does not come: what follows would prove nothing")
	}
	r.raw(r.other.NS, h1.V4, outer(r.other.V4, frame))
	r.raw(one.NS, h1.V4, outer(one.v4, frame))
	r.raw(one.NS, h1.V4, outer(h2.V4, frame)) // in the name of a peer
	r.run(r.other.NS, "ip", "route", "add", "10.201.1.0/24", "via", h1.V4.String())
	r.raw(r.other.NS, one.v4, udp4(netip.AddrPortFrom(r.other.V4, 5), at, text))
	r.raw(r.other.NS, one.v4, fake)
	if came(300 * time.Millisecond) {
		t.Error("a stranger's packet came")
	}
	if out := r.run(h1.NS, "nft", "list", "chain", "inet", "seine", "tunnel"); out == "" {
		t.Error("no chain for tunnels")
	}

	// A connection that the hosts know, from two to one: a stranger answers in two's name.
	c, err := one.ListenPacket("udp", netip.AddrPortFrom(one.v4, 77).String())
	r.ok(err)
	defer c.Close()
	open := func(name string) {
		t.Helper()
		r.meetAll(name)
		if _, err := c.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(two.v4, 7))); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := c.ReadFrom(buf); err != nil {
			t.Fatalf("by %s: %v", name, err)
		}
		r.raw(r.other.NS, one.v4, udp4(netip.AddrPortFrom(two.v4, 7), netip.AddrPortFrom(one.v4, 77), text))
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, _, err := c.ReadFrom(buf); err == nil && name != hostgw.Name { // one link can't tell who is on it
			t.Errorf("by %s: a stranger gets %q into a connection", name, buf[:n])
		}
	}
	open(vxlan.Name)
	open(hostgw.Name)
	if testkit.Lacks("wireguard") == nil {
		open(wireguard.Name)
	}
}

// TestHostgwLetsOnlyBlocksIn: by hostgw too only what comes from the peer's addresses gets in, and only on its link.
func TestHostgwLetsOnlyBlocksIn(t *testing.T) {
	const port, text = 9, "in"
	r := newRig(t, dual, cluster(1), cluster(2))
	h1, h2 := r.hosts[0], r.hosts[1]
	one, two := h1.attach(1, 2), h2.attach(1, 2)
	other := h2.attach(2, 2)
	r.meetAll(hostgw.Name)
	r.reach(two, one)
	came := r.sink(one, port, text)
	at := netip.AddrPortFrom(one.v4, port)
	r.raw(h2.NS, one.v4, udp4(netip.AddrPortFrom(two.v4, port), at, text))
	if !came(time.Second) {
		t.Fatal("a packet of a peer does not come: what follows would prove nothing")
	}
	for _, from := range []netip.Addr{h2.V4, other.v4, netip.MustParseAddr("10.201.200.1"), netip.MustParseAddr("198.51.100.7")} {
		r.raw(h2.NS, one.v4, udp4(netip.AddrPortFrom(from, port), at, text))
	}
	if came(300 * time.Millisecond) {
		t.Error("a packet from an address that is not the peer's in this network came")
	}
}

// TestNothingLeaks: with the way to a peer gone, packets for its containers don't leave by the default route.
func TestNothingLeaks(t *testing.T) {
	r := newRig(t, routed, cluster(1))
	h1, h2 := r.hosts[0], r.hosts[1]
	one, two := h1.attach(1, 2), h2.attach(1, 2)
	r.meetAll(vxlan.Name)
	r.reach(one, two)
	s := r.stream(one, two.v4)
	r.flows(s, "at first")
	seen := r.capture(r.other.NS, one.v4)
	h1.set("peer/" + h2.node.ID)
	_, err := one.Ask(r.Context(), "udp", netip.AddrPortFrom(two.v4, 7), "x")
	if err == nil {
		t.Error("they still reach each other")
	}
	s.stop()
	if p := seen(); p != nil {
		t.Errorf("a packet of the container's is on the underlay: %x", p)
	}
}

// capture watches a host's interface for packets of IPv4 from an address; the function gives the first, or nil.
func (r *rig) capture(n *testkit.NS, from netip.Addr) func() []byte {
	r.Helper()
	var fd int
	r.ok(n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_IP))))
		return err
	}))
	r.Cleanup(func() { unix.Close(fd) })
	return func() []byte {
		buf := make([]byte, 2000)
		for {
			k, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return nil
			}
			if k >= 20 && netip.AddrFrom4([4]byte(buf[12:16])) == from {
				return buf[:k]
			}
		}
	}
}
