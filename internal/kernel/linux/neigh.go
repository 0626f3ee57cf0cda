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

// neighChange makes, changes or deletes a permanent neighbour, or a proxy. A learnt entry in the way is no obstacle: it
// would go by itself.
func (p *space) neighChange(op kernel.Op, n *kernel.Neigh) (*msg, error) {
	i, err := p.ifindex(n.Link)
	if err != nil {
		return nil, err
	}
	typ, flags := how(op, unix.RTM_NEWNEIGH)
	if op != kernel.Update {
		have, err := p.neigh(i, n)
		if err != nil {
			return nil, err
		}
		if op == kernel.Delete && (have == nil || have.proto != kernel.RouteProtocol) {
			return nil, unix.ENOENT // the kernel would not ask whose it is
		}
		if have == nil {
			flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
		} else if n.Proxy && op == kernel.Create {
			return nil, unix.EEXIST // the kernel would not mind
		}
	}
	m := newMsg(typ, flags, ndmsg(family(n.Addr), i, unix.NUD_PERMANENT, proxyFlag(n)))
	m.attr(unix.NDA_DST, n.Addr.AsSlice())
	if op == kernel.Delete {
		return m, nil
	}
	if !n.Proxy {
		hw, err := net.ParseMAC(n.MAC)
		if err != nil {
			return nil, err
		}
		m.attr(unix.NDA_LLADDR, hw)
	}
	m.u8(ndaProtocol, kernel.RouteProtocol)
	return m, nil
}

func proxyFlag(n *kernel.Neigh) uint8 {
	if n.Proxy {
		return unix.NTF_PROXY
	}
	return 0
}

// neigh looks a permanent neighbour or a proxy up; nil where there is none.
func (p *space) neigh(index int, n *kernel.Neigh) (*neighInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	m := newMsg(unix.RTM_GETNEIGH, 0, ndmsg(family(n.Addr), index, 0, proxyFlag(n)))
	m.attr(unix.NDA_DST, n.Addr.AsSlice())
	r, err := so.get(m)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if e := parseNeigh(r); e != nil && e.neigh(p.path, n.Link) != nil {
		return e, nil
	}
	return nil, nil
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

// neigh gives the entry as one that can be wanted, nil for one that was learnt.
func (n *neighInfo) neigh(ns, link string) *kernel.Neigh {
	switch {
	case n.flags&unix.NTF_PROXY != 0:
		return &kernel.Neigh{NS: ns, Link: link, Addr: n.dst, Proxy: true}
	case n.state&unix.NUD_PERMANENT != 0:
		return &kernel.Neigh{NS: ns, Link: link, Addr: n.dst, MAC: n.mac}
	}
	return nil
}

// proxies lists the proxy entries of both families.
func (p *space) proxies() ([]*neighInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	var out []*neighInfo
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		rs, err := so.dump(newMsg(unix.RTM_GETNEIGH, 0, ndmsg(fam, 0, 0, unix.NTF_PROXY)))
		if isErrno(err, unix.EOPNOTSUPP, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, r := range rs {
			if n := parseNeigh(r); n != nil {
				out = append(out, n)
			}
		}
	}
	return out, nil
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
		if op != kernel.Delete && f.MAC == kernel.EveryMAC { // it has an entry per VTEP
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

// fewNeighs is how many neighbours of a link are looked up one by one.
const fewNeighs = 16

func (s *session) listNeighs(sp *space, want []kernel.Object, f *found) error {
	fdb, neighs := map[string]map[kernel.Key]bool{}, map[string][]*kernel.Neigh{}
	for _, o := range want {
		switch o := o.(type) {
		case *kernel.FDB:
			if fdb[o.Link] == nil {
				fdb[o.Link] = map[kernel.Key]bool{}
			}
			fdb[o.Link][o.Key()] = true
		case *kernel.Neigh:
			neighs[o.Link] = append(neighs[o.Link], o)
		}
	}
	for link, some := range neighs {
		i, err := sp.ifindex(link)
		if gone(err) {
			continue
		}
		if err == nil {
			err = sp.neighsOf(link, i, some, f)
		}
		if err != nil {
			return err
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

// neighsOf lists which of some neighbours a link has.
func (p *space) neighsOf(link string, index int, some []*kernel.Neigh, f *found) error {
	keep := func(n *neighInfo, w *kernel.Neigh) {
		if o := n.neigh(p.path, link); n.proto == kernel.RouteProtocol || w.Holds(o) { // as with routes
			f.add(o)
		}
	}
	if len(some) <= fewNeighs {
		for _, w := range some {
			n, err := p.neigh(index, w)
			if err != nil {
				return err
			}
			if n != nil {
				keep(n, w)
			}
		}
		return nil
	}
	all, err := p.neighs(unix.AF_UNSPEC, index)
	if err != nil {
		return err
	}
	proxies, err := p.proxies()
	if err != nil {
		return err
	}
	byKey := make(map[kernel.Key]*kernel.Neigh, len(some))
	for _, w := range some {
		byKey[w.Key()] = w
	}
	for _, n := range append(all, proxies...) {
		o := n.neigh(p.path, link)
		if o == nil || n.index != index {
			continue
		}
		if w := byKey[o.Key()]; w != nil {
			keep(n, w)
		}
	}
	return nil
}
