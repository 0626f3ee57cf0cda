package linux

import (
	"context"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Attributes of IFLA_INFO_DATA (linux/if_link.h) and of RTM_GETNSID (linux/net_namespace.h).
const (
	macvlanMode       = 1
	macvlanBCQueueLen = 7
	ipvlanMode        = 1
	ipvlanFlags       = 2
	vlanID            = 1
	netnsaNSID        = 1
	netnsaFD          = 3
)

var macvlanModes = map[string]uint32{"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}

var ipvlanFlagBits = map[string]uint16{"bridge": 0, "private": 1, "vepa": 2}

var ipvlanModes = map[string]uint16{"l2": 0, "l3": 1, "l3s": 2}

// sameNetns stands for the number of a link's own namespace, which the kernel does not tell (IFLA_LINK_NETNSID).
const sameNetns = -1

// infoData puts what a link of its type is told beside its parent into IFLA_INFO_DATA.
func (p *space) infoData(m *msg, l *kernel.Link) error {
	if l.Tunnel != nil {
		return p.tunnelData(m, l)
	}
	if l.Type != kernel.VLAN && l.Type != kernel.VRF && l.Mode == "" && l.Flag == "" && l.BCQueueLen == 0 && !l.VLANFiltering {
		return nil
	}
	var err error
	m.nested(unix.IFLA_INFO_DATA, func() {
		switch l.Type {
		case kernel.Bridge:
			m.u8(unix.IFLA_BR_VLAN_FILTERING, b2u(l.VLANFiltering))
		case kernel.Macvlan:
			mode, ok := macvlanModes[l.Mode]
			if ok {
				m.u32(macvlanMode, mode)
			} else if l.Mode != "" {
				err = fmt.Errorf("mode %q: is no mode of a macvlan; want bridge, private, vepa or passthru", l.Mode)
			}
			if l.BCQueueLen != 0 {
				m.u32(macvlanBCQueueLen, l.BCQueueLen)
			}
		case kernel.Ipvlan:
			mode, ok := ipvlanModes[l.Mode]
			if ok {
				m.attr(ipvlanMode, native.AppendUint16(nil, mode))
			} else if l.Mode != "" {
				err = fmt.Errorf("mode %q: is no mode of an ipvlan; want l2, l3 or l3s", l.Mode)
			}
			if flag, ok := ipvlanFlagBits[l.Flag]; ok {
				m.attr(ipvlanFlags, native.AppendUint16(nil, flag))
			} else if l.Flag != "" {
				err = fmt.Errorf("flag %q: is no flag of an ipvlan; want bridge, private or vepa", l.Flag)
			}
		case kernel.VLAN:
			m.attr(vlanID, native.AppendUint16(nil, uint16(l.VLAN)))
		case kernel.VRF:
			m.u32(vrfTable, uint32(l.Table))
		default:
			err = fmt.Errorf("type %q: has no mode", l.Type)
		}
	})
	return err
}

// parseData reads what infoData writes.
func (l *linkInfo) parseData(b []byte) {
	switch kernel.LinkType(l.kind) {
	case tunKind:
		l.parseTun(b)
	case kernel.Bridge:
		d := attrOf(b, unix.IFLA_BR_VLAN_FILTERING)
		l.filtering = len(d) > 0 && d[0] != 0
	case kernel.Macvlan:
		l.bcQueueLen = num32(attrOf(b, macvlanBCQueueLen))
		for name, v := range macvlanModes {
			if v == num32(attrOf(b, macvlanMode)) {
				l.mode = name
			}
		}
	case kernel.Ipvlan:
		for name, v := range ipvlanModes {
			if d := attrOf(b, ipvlanMode); len(d) >= 2 && v == native.Uint16(d) {
				l.mode = name
			}
		}
		for name, v := range ipvlanFlagBits {
			if d := attrOf(b, ipvlanFlags); len(d) >= 2 && v == native.Uint16(d) {
				l.flag = name
			}
		}
	case kernel.VLAN:
		if d := attrOf(b, vlanID); len(d) >= 2 {
			l.vlan = int(native.Uint16(d))
		}
	case kernel.VXLAN:
		l.parseTunnel(b)
	case kernel.VRF:
		l.table = int(num32(attrOf(b, vrfTable)))
	}
}

// stacked reports whether links of the type are made on another link.
func stacked(kind string) bool {
	switch kernel.LinkType(kind) {
	case kernel.Macvlan, kernel.Ipvlan, kernel.VLAN:
		return true
	}
	return false
}

// parentOf gives what a link was made on. The kernel tells only numbers, so in another namespace than the link's own it
// is looked for where want says.
func (s *session) parentOf(sp *space, l *linkInfo, want *kernel.Parent, names map[int]string) (*kernel.Parent, error) {
	if !stacked(l.kind) || l.peer == 0 {
		return nil, nil
	}
	if want != nil {
		is, err := s.isParent(sp, l, want)
		if is || err != nil {
			return want, err
		}
	}
	if l.netnsid == sameNetns {
		if name := sp.linkName(l.peer, names); name != "" {
			return &kernel.Parent{NS: sp.path, Name: name}, nil
		}
	}
	return nil, nil
}

func (s *session) isParent(sp *space, l *linkInfo, want *kernel.Parent) (bool, error) {
	far, err := s.space(want.NS)
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p, err := far.link(want.Name)
	if gone(err) {
		return true, nil // had it gone, the link would have gone with it: it has another name now
	}
	if err != nil {
		return false, err
	}
	id, err := sp.nsid(far)
	if err != nil {
		return false, err
	}
	if p.index == l.peer && id == l.netnsid {
		return true, nil
	}
	// One that is made on another of its own type is put beside that, on its parent.
	beside := p.kind == l.kind && p.peer == l.peer && stacked(l.kind) && l.kind != string(kernel.VLAN)
	if id == sameNetns {
		return beside && p.netnsid == l.netnsid, nil
	}
	return beside && p.netnsid == sameNetns && id == l.netnsid, nil
}

// nsid gives the number by which the kernel names a namespace in what it tells in another, sameNetns for that itself. One
// that was never named has no number; then -2.
func (p *space) nsid(other *space) (int32, error) {
	same, err := p.same(other)
	if err != nil || same {
		return sameNetns, err
	}
	so, err := p.route()
	if err != nil {
		return 0, err
	}
	m := newMsg(unix.RTM_GETNSID, 0, make([]byte, 1)) // struct rtgenmsg
	m.u32(netnsaFD, uint32(other.fd))
	r, err := so.get(m)
	if err != nil {
		return 0, err
	}
	if id := int32(num32(attrOf(r.rest(4), netnsaNSID))); id >= 0 {
		return id, nil
	}
	return -2, nil
}

// same reports whether two paths name one namespace.
func (p *space) same(other *space) (bool, error) {
	if p == other {
		return true, nil
	}
	var a, b unix.Stat_t
	if err := unix.Fstat(p.fd, &a); err != nil {
		return false, err
	}
	if err := unix.Fstat(other.fd, &b); err != nil {
		return false, err
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// origin says from where a link is made: the namespace whose numbers the message is in, and under which name. A link on
// a parent in another namespace is made by a message in the parent's, straight into its own (IFLA_NET_NS_FD). Before
// 6.14 the kernel wants its name to be free in both, so it gets its own only once it is there.
func (s *session) origin(sp *space, want *kernel.Link) (from *space, parent int, name string, err error) {
	if want.Parent == nil {
		return sp, 0, want.Name, nil
	}
	if from, err = s.space(want.Parent.NS); err != nil {
		return nil, 0, "", err
	}
	if parent, err = from.ifindex(want.Parent.Name); err != nil {
		return nil, 0, "", err
	}
	same, err := from.same(sp)
	if err != nil || same {
		return sp, parent, want.Name, err
	}
	return from, parent, fmt.Sprintf("new%08x", rand.Uint32()), nil
}

// DefaultLink gives the link that a namespace's default route leaves by, IPv4's before IPv6's; "" where it has none.
func (k *Kernel) DefaultLink(ctx context.Context, ns string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	s := k.session()
	defer s.close()
	sp, err := s.space(ns)
	if err != nil {
		return "", err
	}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes, err := sp.routes(fam, kernel.TableMain, 0)
		if isErrno(err, unix.EOPNOTSUPP, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return "", err
		}
		best := -1
		for i, r := range routes {
			if r.Dst.Bits() == 0 && r.typ == unix.RTN_UNICAST && r.index != 0 && (best < 0 || r.Metric < routes[best].Metric) {
				best = i
			}
		}
		if best >= 0 {
			return sp.linkName(routes[best].index, map[int]string{}), nil
		}
	}
	return "", nil
}
