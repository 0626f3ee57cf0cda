package floor

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Spec says what an attachment is. All of it is given: nothing is chosen here.
type Spec struct {
	// Netns is the path of the container's namespace and IfName the interface in it, "lo" for nothing but loopback.
	Netns, IfName string
	// Host is the name of the machine's end; that of the ifb for Rate has an "i" before it.
	Host string
	// Group is put on the machine's end (IFLA_GROUP) when it is not 0.
	Group uint32
	// Bridge is where the machine's end is a port; "" for none (ptp).
	Bridge string
	// Addrs are the container's, Gateways those of its default routes, in the same order.
	Addrs    []netip.Prefix
	Gateways []netip.Addr
	// Elements are put into the sets of Table.
	Elements []Element
	// Rate is a limit in both directions in bytes per second; 0 for none.
	Rate uint32
}

const (
	vethInfoPeer = 1 // VETH_INFO_PEER
	newObject    = unix.NLM_F_CREATE | unix.NLM_F_EXCL
)

// ifinfo is the fixed part of messages about links.
func ifinfo(index uint32, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(b[4:], index)
	native.PutUint32(b[8:], flags)
	native.PutUint32(b[12:], change)
	return b
}

// Add attaches. The calling thread is in the container's namespace afterwards: give it one that ends then.
func (s *Spec) Add(h *Host) error {
	ns, err := unix.Open(s.Netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Netns, err)
	}
	defer unix.Close(ns)
	if s.IfName != "lo" {
		fd, err := h.socket(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := s.outside(fd, ns); err != nil {
			return err
		}
		if err := h.batch(unix.NFT_MSG_NEWSETELEM, s.Elements); err != nil {
			return err
		}
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", s.Netns, err)
	}
	fd, err := socket(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.inside(fd)
}

// outside makes the pair and what else the machine has of the attachment.
func (s *Spec) outside(fd, ns int) error {
	var r request
	r.begin(unix.RTM_NEWLINK, newObject, ifinfo(0, unix.IFF_UP, unix.IFF_UP)...)
	r.str(unix.IFLA_IFNAME, s.Host)
	if s.Group != 0 {
		r.u32(unix.IFLA_GROUP, s.Group)
	}
	if s.Bridge != "" {
		master, err := index(fd, s.Bridge)
		if err != nil {
			return err
		}
		r.u32(unix.IFLA_MASTER, master)
	}
	r.nest(unix.IFLA_LINKINFO, func() {
		r.str(unix.IFLA_INFO_KIND, "veth")
		r.nest(unix.IFLA_INFO_DATA, func() {
			r.nest(vethInfoPeer, func() {
				r.b = append(r.b, ifinfo(0, 0, 0)...) // the kernel sets no end up before it knows the other
				r.str(unix.IFLA_IFNAME, s.IfName)
				r.u32(unix.IFLA_NET_NS_FD, uint32(ns))
			})
		})
	})
	if s.Rate != 0 {
		r.ifb(s.ifb())
	}
	if err := r.do(fd, "veth"); err != nil || s.Bridge != "" && s.Rate == 0 {
		return err
	}
	host, err := index(fd, s.Host)
	if err != nil {
		return err
	}
	r = request{}
	if s.Bridge == "" {
		for i, a := range s.Addrs {
			r.address(host, netip.PrefixFrom(s.Gateways[i], a.Addr().BitLen()))
			r.route(host, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), netip.Addr{})
		}
	}
	if s.Rate != 0 {
		ifb, err := index(fd, s.ifb())
		if err != nil {
			return err
		}
		r.limit(host, ifb, s.Rate)
	}
	return r.do(fd, "the machine's end")
}

// inside gives the container its addresses and routes.
func (s *Spec) inside(fd int) error {
	link, err := index(fd, s.IfName)
	if err != nil {
		return err
	}
	var r request
	r.begin(unix.RTM_NEWLINK, 0, ifinfo(link, unix.IFF_UP, unix.IFF_UP)...)
	for i, a := range s.Addrs {
		gw := s.Gateways[i]
		r.address(link, a)
		if !a.Masked().Contains(gw) {
			r.route(link, netip.PrefixFrom(gw, gw.BitLen()), netip.Addr{})
		}
		r.route(link, netip.PrefixFrom(netip.IPv6Unspecified(), 0), gw)
	}
	return r.do(fd, "the container's end")
}

// Del detaches.
func (s *Spec) Del(h *Host) error {
	if s.IfName == "lo" {
		return s.down()
	}
	fd, err := h.socket(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	var r request
	for _, name := range []string{s.Host, s.ifb()} {
		if name == s.Host || s.Rate != 0 {
			r.begin(unix.RTM_DELLINK, 0, ifinfo(0, 0, 0)...)
			r.str(unix.IFLA_IFNAME, name)
		}
	}
	if err := r.do(fd, "delete veth"); err != nil {
		return err
	}
	return h.batch(unix.NFT_MSG_DELSETELEM, s.Elements)
}

// down sets the container's loopback down.
func (s *Spec) down() error {
	ns, err := unix.Open(s.Netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Netns, err)
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", s.Netns, err)
	}
	fd, err := socket(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var r request
	r.begin(unix.RTM_NEWLINK, 0, ifinfo(0, 0, unix.IFF_UP)...)
	r.str(unix.IFLA_IFNAME, s.IfName)
	return r.do(fd, "loopback down")
}

func (s *Spec) ifb() string { return "i" + s.Host }

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// address adds an address; one of IPv6 can be used at once.
func (r *request) address(link uint32, p netip.Prefix) {
	fixed := []byte{family(p.Addr()), byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	if p.Addr().Is6() {
		fixed[2] = unix.IFA_F_NODAD
	}
	r.begin(unix.RTM_NEWADDR, newObject, native.AppendUint32(fixed, link)...)
	r.attr(unix.IFA_LOCAL, p.Addr().AsSlice())
	r.attr(unix.IFA_ADDRESS, p.Addr().AsSlice())
}

// route adds a route, to what the link reaches itself where via is invalid. Dst with length 0 is the default of the
// family of via.
func (r *request) route(link uint32, dst netip.Prefix, via netip.Addr) {
	fam, scope := family(dst.Addr()), byte(unix.RT_SCOPE_LINK)
	if via.IsValid() {
		fam, scope = family(via), unix.RT_SCOPE_UNIVERSE
	}
	r.begin(unix.RTM_NEWROUTE, newObject, fam, byte(dst.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST, 0, 0, 0, 0)
	if dst.Bits() > 0 {
		r.attr(unix.RTA_DST, dst.Addr().AsSlice())
	}
	if via.IsValid() {
		r.attr(unix.RTA_GATEWAY, via.AsSlice())
	}
	r.u32(unix.RTA_OIF, link)
}
