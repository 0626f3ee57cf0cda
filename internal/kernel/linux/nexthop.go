package linux

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const nhmsgLen = 8 // struct nhmsg

// nexthopChange is the message that makes, changes or deletes a nexthop object. A change is made by a message without
// NLM_F_CREATE, so that one which went away meanwhile, with its routes, is not made alone.
func (p *space) nexthopChange(op kernel.Op, n *kernel.Nexthop) (*msg, error) {
	typ, flags := how(op, unix.RTM_NEWNEXTHOP)
	b := make([]byte, nhmsgLen)
	if op == kernel.Delete {
		// The kernel would not ask whose it is.
		if have, err := p.nexthop(n.ID); err != nil || have.proto != kernel.RouteProtocol {
			return nil, unix.ENOENT
		}
		m := newMsg(typ, flags, b)
		m.u32(unix.NHA_ID, n.ID)
		return m, nil
	}
	i, err := p.ifindex(n.Link)
	if err != nil {
		return nil, err
	}
	b[0] = unix.AF_INET
	if n.V6 {
		b[0] = unix.AF_INET6
	}
	b[2] = kernel.RouteProtocol
	if n.OnLink {
		native.PutUint32(b[4:], unix.RTNH_F_ONLINK)
	}
	if op == kernel.Update {
		flags = unix.NLM_F_REPLACE
	}
	m := newMsg(typ, flags, b)
	m.u32(unix.NHA_ID, n.ID)
	if n.Via.IsValid() {
		m.attr(unix.NHA_GATEWAY, n.Via.AsSlice())
	}
	m.u32(unix.NHA_OIF, uint32(i))
	return m, nil
}

// nexthopInfo is a nexthop object as the kernel tells it.
type nexthopInfo struct {
	kernel.Nexthop
	index int
	proto uint8
}

// parseNexthop reads a nexthop object; nil for one of another sort than can be wanted (a group, a blackhole).
func parseNexthop(r reply) *nexthopInfo {
	if r.typ != unix.RTM_NEWNEXTHOP || len(r.data) < nhmsgLen {
		return nil
	}
	b := r.data
	n := &nexthopInfo{proto: b[2]}
	n.V6, n.OnLink = b[0] == unix.AF_INET6, native.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	for t, v := range attrs(r.rest(nhmsgLen)) {
		switch t {
		case unix.NHA_ID:
			n.ID = num32(v)
		case unix.NHA_OIF:
			n.index = int(num32(v))
		case unix.NHA_GATEWAY:
			n.Via, _ = netip.AddrFromSlice(v)
		case unix.NHA_GROUP, unix.NHA_BLACKHOLE:
			return nil
		}
	}
	return n
}

// nexthop looks one up by its number.
func (p *space) nexthop(id uint32) (*nexthopInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	m := newMsg(unix.RTM_GETNEXTHOP, 0, make([]byte, nhmsgLen))
	m.u32(unix.NHA_ID, id)
	r, err := so.get(m)
	if err != nil {
		return nil, err
	}
	n := parseNexthop(r)
	if n == nil {
		return nil, unix.ENOENT
	}
	return n, nil
}

// nexthops lists all nexthop objects of the namespace; none where the kernel has no such thing (before 5.3).
func (p *space) nexthops() ([]*nexthopInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	rs, err := so.dump(newMsg(unix.RTM_GETNEXTHOP, 0, make([]byte, nhmsgLen)))
	if isErrno(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*nexthopInfo
	for _, r := range rs {
		if n := parseNexthop(r); n != nil {
			out = append(out, n)
		}
	}
	return out, nil
}

func (n *nexthopInfo) object(p *space, names map[int]string) *kernel.Nexthop {
	o := n.Nexthop
	o.NS, o.Link = p.path, p.linkName(n.index, names)
	return &o
}

// fewNexthops is how many are looked up one by one.
const fewNexthops = 16

func (s *session) listNexthops(sp *space, want []kernel.Object, f *found) error {
	names := map[int]string{}
	keep := func(n *nexthopInfo, w *kernel.Nexthop) {
		if o := n.object(sp, names); n.proto == kernel.RouteProtocol || w.Holds(o) { // as with routes
			f.add(o)
		}
	}
	if len(want) <= fewNexthops {
		for _, o := range want {
			n, err := sp.nexthop(o.(*kernel.Nexthop).ID)
			if gone(err) || isErrno(err, unix.EOPNOTSUPP) {
				continue
			}
			if err != nil {
				return err
			}
			keep(n, o.(*kernel.Nexthop))
		}
		return nil
	}
	byID := make(map[uint32]*kernel.Nexthop, len(want))
	for _, o := range want {
		byID[o.(*kernel.Nexthop).ID] = o.(*kernel.Nexthop)
	}
	all, err := sp.nexthops()
	if err != nil {
		return err
	}
	for _, n := range all {
		if w := byID[n.ID]; w != nil {
			keep(n, w)
		}
	}
	return nil
}

// allNexthops lists those that carry our protocol number.
func (p *space) allNexthops(links []*linkInfo, f *found) error {
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	all, err := p.nexthops()
	if err != nil {
		return err
	}
	for _, n := range all {
		if n.proto == kernel.RouteProtocol {
			f.add(n.object(p, names))
		}
	}
	return nil
}
