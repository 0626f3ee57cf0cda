package linux

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	ndmsgLen    = 12 // struct ndmsg
	ndaProtocol = 12 // NDA_PROTOCOL, kernel 5.1
	ntfSelf     = unix.NTF_SELF
	ntfMaster   = unix.NTF_MASTER
)

func ndmsg(fam uint8, index int, state uint16, flags uint8) []byte {
	b := make([]byte, ndmsgLen)
	b[0] = fam
	native.PutUint32(b[4:], uint32(index))
	native.PutUint16(b[8:], state)
	b[10] = flags
	return b
}

// neighChange makes, changes or deletes a permanent neighbour. A learnt entry in the way is no obstacle: it would go by
// itself.
func (p *space) neighChange(op kernel.Op, n *kernel.Neigh) (*msg, error) {
	i, err := p.ifindex(n.Link)
	if err != nil {
		return nil, err
	}
	typ, flags := how(op, unix.RTM_NEWNEIGH)
	if op != kernel.Update {
		have, ours, err := p.neigh(i, n)
		if err != nil {
			return nil, err
		}
		if op == kernel.Delete && !ours {
			return nil, unix.ENOENT // the kernel would not ask whose it is
		}
		if have == nil {
			flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
		}
	}
	m := newMsg(typ, flags, ndmsg(family(n.Addr), i, unix.NUD_PERMANENT, 0))
	m.attr(unix.NDA_DST, n.Addr.AsSlice())
	if op == kernel.Delete {
		return m, nil
	}
	hw, err := net.ParseMAC(n.MAC)
	if err != nil {
		return nil, err
	}
	m.attr(unix.NDA_LLADDR, hw)
	m.u8(ndaProtocol, kernel.RouteProtocol)
	return m, nil
}

// neigh looks a permanent neighbour up; nil where there is none. ours says that it carries our protocol number.
func (p *space) neigh(index int, n *kernel.Neigh) (have *kernel.Neigh, ours bool, err error) {
	so, err := p.route()
	if err != nil {
		return nil, false, err
	}
	m := newMsg(unix.RTM_GETNEIGH, 0, ndmsg(family(n.Addr), index, 0, 0))
	m.attr(unix.NDA_DST, n.Addr.AsSlice())
	r, err := so.get(m)
	if gone(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	e := parseNeigh(r)
	if e == nil || e.state&unix.NUD_PERMANENT == 0 {
		return nil, false, nil
	}
	return &kernel.Neigh{NS: p.path, Link: n.Link, Addr: n.Addr, MAC: e.mac}, e.proto == kernel.RouteProtocol, nil
}

// neighInfo is a neighbour or forwarding entry as the kernel tells it.
type neighInfo struct {
	fam, flags, proto uint8
	state             uint16
	index             int
	dst               netip.Addr
	mac               string
}

func parseNeigh(r reply) *neighInfo {
	if r.typ != unix.RTM_NEWNEIGH || len(r.data) < ndmsgLen {
		return nil
	}
	b := r.data
	n := &neighInfo{fam: b[0], index: int(native.Uint32(b[4:])), state: native.Uint16(b[8:]), flags: b[10]}
	for t, v := range attrs(r.rest(ndmsgLen)) {
		switch t {
		case unix.NDA_DST:
			n.dst, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			n.mac = net.HardwareAddr(v).String()
		case ndaProtocol:
			if len(v) > 0 {
				n.proto = v[0]
			}
		}
	}
	return n
}

// neighs lists the neighbours (AF_UNSPEC: of both families) or, for AF_BRIDGE, the forwarding entries; of one link
// where index is not 0.
func (p *space) neighs(fam uint8, index int) ([]*neighInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	m := newMsg(unix.RTM_GETNEIGH, 0, ndmsg(fam, 0, 0, 0))
	if fam == unix.AF_BRIDGE {
		native.PutUint32(m.b[unix.NLMSG_HDRLEN+4:], uint32(index))
	} else if index != 0 {
		m.u32(unix.NDA_IFINDEX, uint32(index))
	}
	rs, err := so.dump(m)
	if err != nil {
		return nil, err
	}
	var out []*neighInfo
	for _, r := range rs {
		if n := parseNeigh(r); n != nil && (index == 0 || n.index == index) {
			out = append(out, n)
		}
	}
	return out, nil
}

// fdbChange makes or deletes a forwarding entry. That of a bridge port is static and not "permanent", which would mean
// the bridge's own address; that of a VXLAN device names a VTEP.
func (p *space) fdbChange(op kernel.Op, f *kernel.FDB) (*msg, error) {
	i, err := p.ifindex(f.Link)
	if err != nil {
		return nil, err
	}
	hw, err := net.ParseMAC(f.MAC)
	if err != nil {
		return nil, err
	}
	typ, flags := how(op, unix.RTM_NEWNEIGH)
	fixed := ndmsg(unix.AF_BRIDGE, i, unix.NUD_NOARP, ntfMaster)
	if f.Dst.IsValid() {
		fixed = ndmsg(unix.AF_BRIDGE, i, unix.NUD_PERMANENT, ntfSelf)
		if op != kernel.Delete { // the all-zeros address has an entry per VTEP
			flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND
		}
	}
	m := newMsg(typ, flags, fixed)
	m.attr(unix.NDA_LLADDR, hw)
	if f.Dst.IsValid() {
		m.attr(unix.NDA_DST, f.Dst.AsSlice())
	}
	return m, nil
}

// object gives the entry as one that can be wanted, nil for one that was learnt or is the kernel's own.
func (n *neighInfo) object(ns, link string) *kernel.FDB {
	switch {
	case n.flags&ntfSelf != 0 && n.dst.IsValid() && n.state&unix.NUD_PERMANENT != 0:
		return &kernel.FDB{NS: ns, Link: link, MAC: n.mac, Dst: n.dst}
	case n.flags&ntfSelf == 0 && !n.dst.IsValid() && n.state&unix.NUD_NOARP != 0:
		return &kernel.FDB{NS: ns, Link: link, MAC: n.mac}
	}
	return nil
}

func (s *session) listNeighs(sp *space, want []kernel.Object, f *found) error {
	fdb := map[string]map[kernel.Key]bool{}
	for _, o := range want {
		switch o := o.(type) {
		case *kernel.FDB:
			if fdb[o.Link] == nil {
				fdb[o.Link] = map[kernel.Key]bool{}
			}
			fdb[o.Link][o.Key()] = true
		case *kernel.Neigh:
			i, err := sp.ifindex(o.Link)
			if gone(err) {
				continue
			}
			if err != nil {
				return err
			}
			n, ours, err := sp.neigh(i, o)
			if err != nil {
				return err
			}
			if n != nil && (ours || o.Holds(n)) { // as with routes
				f.add(n)
			}
		}
	}
	for link, keys := range fdb {
		i, err := sp.ifindex(link)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		have, err := sp.neighs(unix.AF_BRIDGE, i)
		if err != nil && !gone(err) {
			return err
		}
		for _, n := range have {
			if o := n.object(sp.path, link); o != nil && keys[o.Key()] {
				f.add(o)
			}
		}
	}
	return nil
}
