package linux

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	ifaProto       = 11 // IFA_PROTO, kernel 5.18
	ifaProtoKernel = 3  // IFAPROT_KERNEL_LL: up to here the kernel made it
)

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func addrMsg(typ, flags uint16, index int, a *kernel.Addr) *msg {
	ip := a.Prefix.Addr()
	m := newMsg(typ, flags, []byte{family(ip), uint8(a.Prefix.Bits()), 0, addrScope(ip), 0, 0, 0, 0})
	native.PutUint32(m.b[unix.NLMSG_HDRLEN+4:], uint32(index))
	m.attr(unix.IFA_LOCAL, ip.AsSlice())
	m.attr(unix.IFA_ADDRESS, ip.AsSlice())
	if typ == unix.RTM_DELADDR {
		return m
	}
	if ip.Is4() && a.Prefix.Bits() < 31 {
		m.attr(unix.IFA_BROADCAST, broadcast(a.Prefix).AsSlice())
	}
	f := uint32(0)
	if a.NoRoute {
		f |= unix.IFA_F_NOPREFIXROUTE
	}
	if ip.Is6() && !a.DAD {
		f |= unix.IFA_F_NODAD
	}
	m.u32(unix.IFA_FLAGS, f)
	m.u8(ifaProto, kernel.RouteProtocol)
	return m
}

// changeAddr adds or removes an address.
func (p *space) changeAddr(op kernel.Op, a *kernel.Addr) error {
	m, err := p.addrChange(op, a)
	if err != nil {
		return err
	}
	so, err := p.route()
	if err != nil {
		return err
	}
	return so.exec1(m)
}

func addrScope(ip netip.Addr) uint8 {
	switch {
	case ip.IsLoopback():
		return unix.RT_SCOPE_HOST
	case ip.IsLinkLocalUnicast():
		return unix.RT_SCOPE_LINK
	}
	return unix.RT_SCOPE_UNIVERSE
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// addrInfo is an address as the kernel tells it.
type addrInfo struct {
	index  int
	prefix netip.Prefix
	flags  uint32
	scope  uint8
	proto  uint8 // 0 where the kernel does not say
}

func parseAddr(r reply) (addrInfo, bool) {
	if r.typ != unix.RTM_NEWADDR || len(r.data) < 8 {
		return addrInfo{}, false
	}
	a := addrInfo{index: int(native.Uint32(r.data[4:])), flags: uint32(r.data[2]), scope: r.data[3]}
	var local, address netip.Addr
	for t, v := range attrs(r.rest(8)) {
		switch t {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(v)
		case unix.IFA_FLAGS:
			a.flags = num32(v)
		case ifaProto:
			if len(v) > 0 {
				a.proto = v[0]
			}
		}
	}
	if !local.IsValid() { // IPv6 has it only with a peer address
		local = address
	}
	a.prefix = netip.PrefixFrom(local, int(r.data[1]))
	return a, local.IsValid()
}

// addrs lists the addresses of a link, of all links where index is 0.
func (p *space) addrs(index int) ([]addrInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	fixed := make([]byte, 8)
	native.PutUint32(fixed[4:], uint32(index))
	rs, err := so.dump(newMsg(unix.RTM_GETADDR, 0, fixed))
	if err != nil {
		return nil, err
	}
	var out []addrInfo
	for _, r := range rs {
		if a, ok := parseAddr(r); ok && (index == 0 || a.index == index) {
			out = append(out, a)
		}
	}
	return out, nil
}

func (a *addrInfo) object(ns, link string) *kernel.Addr {
	return &kernel.Addr{NS: ns, Link: link, Prefix: a.prefix, NoRoute: a.flags&unix.IFA_F_NOPREFIXROUTE != 0,
		DAD: a.prefix.Addr().Is6() && a.flags&unix.IFA_F_NODAD == 0, Temporary: a.flags&unix.IFA_F_PERMANENT == 0}
}

func (s *session) listAddrs(sp *space, want []kernel.Object, f *found) error {
	byLink := map[string]map[netip.Prefix]bool{}
	for _, o := range want {
		a := o.(*kernel.Addr)
		if byLink[a.Link] == nil {
			byLink[a.Link] = map[netip.Prefix]bool{}
		}
		byLink[a.Link][a.Prefix] = true
	}
	for link, prefixes := range byLink {
		index, err := sp.ifindex(link)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		have, err := sp.addrs(index)
		if err != nil && !gone(err) {
			return err
		}
		for _, a := range have {
			if prefixes[a.prefix] || prefixes[netip.Prefix{}] {
				f.add(a.object(sp.path, link))
			}
		}
	}
	return nil
}
