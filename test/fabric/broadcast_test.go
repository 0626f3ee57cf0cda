package fabric_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/hostgw"
	"github.com/seine-net/seine/internal/fabric/vxlan"
	"github.com/seine-net/seine/internal/testkit"
)

// TestBroadcast: a network with broadcast is one switch over all hosts: packets to all and to many arrive everywhere once,
// questions for addresses are answered where they are asked.
func TestBroadcast(t *testing.T) {
	for _, u := range []underlay{dual, routed, {name: "ipv6", v6: true}} {
		t.Run(u.name, func(t *testing.T) {
			n := cluster(1)
			n.Broadcast = true
			r := newRig(t, u, n)
			var all []*container
			for _, h := range r.hosts {
				all = append(all, h.attach(1, 2), h.attach(1, 3))
			}
			r.meetAll(vxlan.Name)
			questions := r.questions(r.hosts[1].NS, vxlan.LinkName(n, !u.v4))
			for _, from := range all {
				for _, to := range all {
					if from != to {
						r.reach(from, to)
					}
				}
				r.full(from, all[0], 1400, true)
			}
			if q := questions(); q != "" {
				t.Errorf("a question crossed between hosts that could be answered at home: %s", q)
			}
			r.toAll(all, netip.MustParseAddr("10.201.255.255"))
			r.toAll(all, netip.MustParseAddr("239.1.2.3"))
			r.toAll(all, netip.MustParseAddr("ff05::1:2:3"))

			// An endpoint that moved to another host is found there, under the same addresses.
			mover := all[len(all)-1]
			at := r.hosts[2].ends[n.Name]
			r.hosts[2].ends[n.Name], r.hosts[1].ends[n.Name] = at[:1], append(r.hosts[1].ends[n.Name], at[1])
			objects, err := r.hosts[0].objects(r.hosts[1], vxlan.Name)
			r.ok(err)
			rest, err := r.hosts[0].objects(r.hosts[2], vxlan.Name)
			r.ok(err)
			r.hosts[0].set(fabric.Owner(r.hosts[2].node), rest...)
			r.hosts[0].set(fabric.Owner(r.hosts[1].node), objects...)
			under := r.hosts[1].V4
			if !u.v4 {
				under = r.hosts[1].V6
			}
			out := r.run(r.hosts[0].NS, "bridge", "fdb", "show", "dev", vxlan.LinkName(n, !u.v4))
			if want := fmt.Sprintf("%s dst %s", mover.mac, under); !strings.Contains(out, want) {
				t.Errorf("after the move there is no %q in\n%s", want, out)
			}
		})
	}
}

// TestBroadcastOnlyWhereItIs: hostgw says that it can't.
func TestBroadcastOnlyWhereItIs(t *testing.T) {
	n := cluster(1)
	n.Broadcast = true
	r := newRig(t, dual, n)
	if _, err := r.hosts[0].objects(r.hosts[1], hostgw.Name); err == nil {
		t.Error("hostgw carries a network with broadcast")
	}
}

// toAll sends a datagram to an address that stands for many and wants it to come to every other container, once.
func (r *rig) toAll(all []*container, group netip.Addr) {
	r.Helper()
	const port = 5353
	var socks []net.PacketConn
	for _, c := range all {
		s, err := c.ListenPacket("udp", netip.AddrPortFrom(map[bool]netip.Addr{true: netip.IPv4Unspecified(), false: netip.IPv6Unspecified()}[group.Is4()], port).String())
		r.ok(err)
		defer s.Close()
		r.ok(join(c.NS, s.(*net.UDPConn), group))
		socks = append(socks, s)
	}
	text := "to all at " + group.String()
	if _, err := socks[0].WriteTo([]byte(text), net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, port))); err != nil {
		r.Fatal(err)
	}
	buf := make([]byte, 100)
	for i, s := range socks[1:] {
		_ = s.SetReadDeadline(time.Now().Add(time.Second))
		n, from, err := s.ReadFrom(buf)
		if err != nil || string(buf[:n]) != text {
			r.Errorf("%s to %s: %s gets %q, %v", all[0].Name, group, all[i+1].Name, buf[:n], err)
			continue
		}
		if src := from.(*net.UDPAddr).AddrPort().Addr().Unmap(); src != all[0].v4 && src.WithZone("") != all[0].v6 {
			r.Errorf("%s to %s: %s sees the source %s", all[0].Name, group, all[i+1].Name, src)
		}
		_ = s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, _, err := s.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			r.Errorf("%s to %s: %s gets it twice: %q, %v", all[0].Name, group, all[i+1].Name, buf[:n], err)
		}
	}
}

// join lets a socket send to and receive from a group, or broadcast.
func join(n *testkit.NS, c *net.UDPConn, group netip.Addr) error {
	return n.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var serr error
		err = raw.Control(func(fd uintptr) {
			switch {
			case group.Is6():
				serr = unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(ifi.Index)})
				if serr == nil {
					serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, ifi.Index)
				}
			case group.IsMulticast():
				mreq := &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(ifi.Index)}
				if serr = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, mreq); serr == nil {
					serr = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, mreq)
				}
			default:
				serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			}
		})
		return errors.Join(err, serr)
	})
}

// questions watches a tunnel for ARP requests and neighbour solicitations; the function gives the first, or "".
func (r *rig) questions(n *testkit.NS, link string) func() string {
	r.Helper()
	var fd int
	r.ok(n.Do(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index})
	}))
	r.Cleanup(func() { unix.Close(fd) })
	return func() string {
		buf := make([]byte, 2000)
		frames := 0
		for {
			k, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				if frames == 0 {
					return "nothing at all was seen"
				}
				return ""
			}
			frames++
			switch typ := binary.BigEndian.Uint16(buf[12:]); {
			case typ == unix.ETH_P_ARP && k >= 42 && buf[21] == 1:
				return fmt.Sprintf("who has %s", netip.AddrFrom4([4]byte(buf[38:42])))
			case typ == unix.ETH_P_IPV6 && k >= 78 && buf[20] == unix.IPPROTO_ICMPV6 && buf[54] == 135:
				return fmt.Sprintf("who has %s", netip.AddrFrom16([16]byte(buf[62:78])))
			}
		}
	}
}

// TestProxies: on a routed network the bridge answers at once for what is on other hosts, and for nothing else.
func TestProxies(t *testing.T) {
	r := newRig(t, dual, cluster(1))
	one, two := r.hosts[0].attach(1, 2), r.hosts[1].attach(1, 2)
	r.meetAll(vxlan.Name)
	for _, a := range two.addrs() {
		r.run(one.NS, "ip", "neigh", "flush", "dev", "eth0")
		ctx, cancel := context.WithTimeout(t.Context(), slow*150*time.Millisecond)
		if _, err := one.Ask(ctx, "udp", netip.AddrPortFrom(a, 7), "x"); err != nil {
			t.Errorf("the first packet to %s takes long: %v", a, err)
		}
		cancel()
	}
	// 10.201.9.9 is nobody's: who asks for it gets no answer.
	for _, a := range []string{"10.201.9.9", "10.201.1.9", "fd00:1::9:0:9", "fd00:1::2:0:9"} {
		_, _ = one.Exec(t.Context(), "ping", "-c", "1", "-W", "1", a)
		if out := r.run(one.NS, "ip", "neigh", "show", a); strings.Contains(out, "lladdr") {
			t.Errorf("somebody answers for %s: %s", a, out)
		}
	}
}
