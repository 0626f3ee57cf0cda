package testkit

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is the name of a host's interface on its network.
const Interface = "eth0"

// Host is a namespace that stands for a machine: a loopback interface and eth0 with an IPv4 and an IPv6 address.
type Host struct {
	*NS
	// V4 and V6 are the addresses of eth0. V6 is the zero Addr where the kernel has no IPv6.
	V4, V6 netip.Addr
	// MAC is eth0's hardware address.
	MAC net.HardwareAddr
}

// Addrs are the host's addresses, IPv4 first.
func (h *Host) Addrs() []netip.Addr {
	if !h.V6.IsValid() {
		return []netip.Addr{h.V4}
	}
	return []netip.Addr{h.V4, h.V6}
}

// hasIPv6 says whether the kernel has IPv6 at all.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// prefixes of the underlay of a Lab and of a Sandbox, from the ranges for documentation (RFC 5737, RFC 3849).
var (
	under4 = netip.MustParsePrefix("192.0.2.0/24")
	under6 = netip.MustParsePrefix("2001:db8::/64")
)

// newHost makes a host with the number i (1 to 254) whose eth0 is one end of a veth; the other one is peer in the
// namespace far.
func newHost(name string, i int, far *NS, peer string) (*Host, error) {
	n, err := NewNS(name)
	if err != nil {
		return nil, err
	}
	h := &Host{NS: n, V4: nth(under4, i), MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}}
	if hasIPv6() {
		h.V6 = nth(under6, i)
	}
	if err := h.plug(far, peer); err != nil {
		n.Close()
		return nil, err
	}
	return h, nil
}

func (h *Host) plug(far *NS, peer string) error {
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr = Interface, h.MAC
	v := &netlink.Veth{LinkAttrs: a, PeerName: peer, PeerNamespace: netlink.NsFd(far.Fd())}
	if err := h.nl.LinkAdd(v); err != nil {
		return fmt.Errorf("%s: veth to %s: %w", h.Name, far.Name, err)
	}
	if err := h.AddAddr(Interface, netip.PrefixFrom(h.V4, under4.Bits())); err != nil {
		return err
	}
	if h.V6.IsValid() {
		if err := h.AddAddr(Interface, netip.PrefixFrom(h.V6, under6.Bits())); err != nil {
			return err
		}
	}
	if err := far.up(peer); err != nil {
		return err
	}
	if err := h.up(Interface); err != nil || !h.V6.IsValid() {
		return err
	}
	return h.await(h.V6)
}

func nth(p netip.Prefix, i int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(i)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// AddAddr puts an address on a link. On a link that is up, with a carrier, it works when AddAddr returns; there is no duplicate address
// detection.
func (n *NS) AddAddr(link string, p netip.Prefix) error {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		a := &netlink.Addr{IPNet: ipnet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		err = n.nl.AddrReplace(l, a)
		if err == nil && p.Addr().Is6() && l.Attrs().RawFlags&unix.IFF_RUNNING != 0 {
			err = n.await(p.Addr())
		}
	}
	if err != nil {
		return fmt.Errorf("%s: address %s on %q: %w", n.Name, p, link, err)
	}
	return nil
}

// await waits until the namespace takes packets to an IPv6 address of its own. Even for an address without duplicate
// address detection, the kernel adds the local route in a work queue, some time after it has confirmed the address;
// what comes before is lost.
func (n *NS) await(a netip.Addr) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := n.nl.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: address %s: has no local route after 5 s", n.Name, a)
		}
	}
}

// AddRoute makes packets to a prefix go to a gateway. 0.0.0.0/0 and ::/0 make the default routes.
func (n *NS) AddRoute(to netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{Dst: ipnet(to), Gw: via.AsSlice()}
	if err := n.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("%s: route to %s by %s: %w", n.Name, to, via, err)
	}
	return nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Sandbox is a machine of its own with a world outside:
//
//	Machine eth0 ───────────── eth0 Outside, the machine's gateway
//	192.0.2.2                  192.0.2.1      198.51.100.1       (also addresses of Outside, but only
//	2001:db8::2                2001:db8::1    2001:db8:ffff::1    reached by the default route)
//
// Outside is a neighbour on the machine's own network and the Internet in one. It has no route back to anything
// behind the machine, as the Internet has none.
type Sandbox struct {
	Machine, Outside *Host
}

// The addresses of Outside that the machine reaches by its default routes only.
var (
	Far4 = netip.MustParseAddr("198.51.100.1")
	Far6 = netip.MustParseAddr("2001:db8:ffff::1")
)

// BuildSandbox makes a Sandbox. The caller closes it.
func BuildSandbox() (*Sandbox, error) {
	// newHost makes the veth from its own side, so the outside is made first, by hand.
	out, err := NewNS("outside")
	if err != nil {
		return nil, err
	}
	m, err := newHost("machine", 2, out, Interface)
	if err != nil {
		out.Close()
		return nil, err
	}
	s := &Sandbox{Machine: m, Outside: &Host{NS: out, V4: nth(under4, 1)}}
	if err := s.connect(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Sandbox) connect() error {
	l, err := s.Outside.nl.LinkByName(Interface)
	if err != nil {
		return fmt.Errorf("outside: %w", err)
	}
	s.Outside.MAC = l.Attrs().HardwareAddr
	add := func(near, far, any netip.Prefix) error {
		if err := s.Outside.AddAddr(Interface, near); err != nil {
			return err
		}
		if err := s.Outside.AddAddr("lo", far); err != nil {
			return err
		}
		return s.Machine.AddRoute(any, near.Addr())
	}
	err = add(netip.PrefixFrom(s.Outside.V4, under4.Bits()), netip.PrefixFrom(Far4, 32), netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	if err != nil || !hasIPv6() {
		return err
	}
	s.Outside.V6 = nth(under6, 1)
	return add(netip.PrefixFrom(s.Outside.V6, under6.Bits()), netip.PrefixFrom(Far6, 128), netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}

// Close gives both up.
func (s *Sandbox) Close() {
	s.Machine.Close()
	s.Outside.Close()
}
