package linux

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	vethInfoPeer = 1      // VETH_INFO_PEER
	vrfTable     = 1      // IFLA_VRF_TABLE
	skipStats    = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	ifinfoLen    = unix.SizeofIfInfomsg
)

// halfMade is the group (IFLA_GROUP) of a link of ours between its making and its getting an alias, which the kernel
// only takes from a second message. A process that ends in between leaves a link that is still provably ours.
const halfMade = 0x5e14e

// linkInfo is a link as the kernel tells it.
type linkInfo struct {
	index        int
	name, kind   string
	alias, mac   string
	flags        uint32
	mtu, group   int
	txqlen       int
	table        int // of a VRF
	master, peer int
	netnsid      int32 // the namespace that peer is in, sameNetns for the link's own
	mode, flag   string
	vlan         int
	bcQueueLen   uint32
	port         *kernel.Port
	access       *kernel.Access
	tunnel       *kernel.Tunnel
	under        int    // the number of the tunnel's Under
	filtering    bool   // of a bridge, by VLAN
	conf4, conf6 []byte // see devconf.go
}

func (l *linkInfo) ours() bool {
	return strings.HasPrefix(l.alias, kernel.AliasPrefix) || l.alias == "" && l.group == halfMade
}

func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, ifinfoLen)
	native.PutUint32(b[4:], uint32(index))
	native.PutUint32(b[8:], flags)
	native.PutUint32(b[12:], change)
	return b
}

// promisc is ifinfo that turns promiscuous mode on, or leaves it alone.
func promisc(index int, on bool) []byte {
	if on {
		return ifinfo(index, unix.IFF_PROMISC, unix.IFF_PROMISC)
	}
	return ifinfo(index, 0, 0)
}

func parseLink(r reply) *linkInfo {
	if r.typ != unix.RTM_NEWLINK || len(r.data) < ifinfoLen {
		return nil
	}
	l := &linkInfo{index: int(native.Uint32(r.data[4:])), flags: native.Uint32(r.data[8:]), netnsid: sameNetns}
	for t, v := range attrs(r.rest(ifinfoLen)) {
		switch t {
		case unix.IFLA_IFNAME:
			l.name = cstr(v)
		case unix.IFLA_IFALIAS:
			l.alias = cstr(v)
		case unix.IFLA_ADDRESS:
			l.mac = net.HardwareAddr(v).String()
		case unix.IFLA_MTU:
			l.mtu = int(num32(v))
		case unix.IFLA_TXQLEN:
			l.txqlen = int(num32(v))
		case unix.IFLA_GROUP:
			l.group = int(num32(v))
		case unix.IFLA_MASTER:
			l.master = int(num32(v))
		case unix.IFLA_LINK:
			l.peer = int(num32(v))
		case unix.IFLA_LINK_NETNSID:
			l.netnsid = int32(num32(v))
		case unix.IFLA_LINKINFO:
			l.parseInfo(v)
		case unix.IFLA_AF_SPEC:
			l.parseSpec(v)
		}
	}
	if l.kind == "" && l.flags&unix.IFF_LOOPBACK != 0 {
		l.kind = string(kernel.Loopback)
	}
	return l
}

func (l *linkInfo) parseInfo(b []byte) {
	var slave string
	for t, v := range attrs(b) {
		switch t {
		case unix.IFLA_INFO_KIND:
			l.kind = cstr(v)
		case unix.IFLA_INFO_DATA: // the kernel tells the kind first
			l.parseData(v)
		case unix.IFLA_INFO_SLAVE_KIND:
			slave = cstr(v)
		case unix.IFLA_INFO_SLAVE_DATA:
			if slave != "bridge" {
				continue
			}
			on := func(t uint16) bool { d := attrOf(v, t); return len(d) > 0 && d[0] != 0 }
			l.port = &kernel.Port{Hairpin: on(unix.IFLA_BRPORT_MODE), Isolated: on(unix.IFLA_BRPORT_ISOLATED),
				NoLearning: !on(unix.IFLA_BRPORT_LEARNING), NoFlood: !on(unix.IFLA_BRPORT_UNICAST_FLOOD), Suppress: on(unix.IFLA_BRPORT_NEIGH_SUPPRESS)}
		}
	}
}

// link looks a link up by name. A missing one gives ENODEV.
func (p *space) link(name string) (*linkInfo, error) {
	if p.known != nil {
		if l := p.known[name]; l != nil {
			return l, nil
		}
		return nil, unix.ENODEV
	}
	return p.linkBy(func(m *msg) { m.str(unix.IFLA_IFNAME, name) }, 0)
}

func (p *space) linkBy(key func(*msg), index int) (*linkInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	m := newMsg(unix.RTM_GETLINK, 0, ifinfo(index, 0, 0))
	if key != nil {
		key(m)
	}
	m.u32(unix.IFLA_EXT_MASK, skipStats)
	r, err := so.get(m)
	if err != nil {
		return nil, err
	}
	l := parseLink(r)
	if l == nil {
		return nil, errNoAnswer
	}
	p.index[l.name] = l.index
	return l, nil
}

// links lists all links of the namespace.
func (p *space) links() ([]*linkInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	m := newMsg(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0))
	m.u32(unix.IFLA_EXT_MASK, skipStats)
	rs, err := so.dump(m)
	if err != nil {
		return nil, err
	}
	var out []*linkInfo
	for _, r := range rs {
		if l := parseLink(r); l != nil {
			out = append(out, l)
		}
	}
	return out, nil
}

// ifindex gives a link's number, from the session's cache where it is there.
func (p *space) ifindex(name string) (int, error) {
	if i := p.index[name]; i != 0 {
		return i, nil
	}
	l, err := p.link(name)
	if err != nil {
		return 0, fmt.Errorf("link %q: %w", name, err)
	}
	return l.index, nil
}

// listLinks lists links and their up states.
func (s *session) listLinks(sp *space, want []kernel.Object, f *found) error {
	byIndex := map[int]string{}
	cache := map[string]*linkInfo{}
	for _, o := range want {
		name := ""
		switch o := o.(type) {
		case *kernel.Link:
			if o.Taken {
				f.add(o)
				continue
			}
			if name = o.Name; name == "" {
				if err := s.everyLink(sp, f); err != nil {
					return err
				}
				continue
			}
		case *kernel.LinkUp:
			name = o.Link
		}
		l, ok := cache[name]
		if !ok {
			var err error
			if l, err = sp.link(name); err != nil && !gone(err) && !isErrno(err, unix.EINVAL, unix.ERANGE) {
				return err
			}
			cache[name] = l
		}
		if l == nil {
			continue
		}
		switch o := o.(type) {
		case *kernel.LinkUp:
			if l.flags&unix.IFF_UP != 0 {
				f.add(&kernel.LinkUp{NS: sp.path, Link: name})
			}
		case *kernel.Link:
			// Somebody else's link under a name that is wanted as ours is not listed, so that nobody takes it for
			// one to change: making ours will say that it is in the way.
			if strings.HasPrefix(o.Alias, kernel.AliasPrefix) && !l.ours() || o.Home != "" && o.Home != l.alias {
				continue
			}
			got, err := s.asLink(sp, l, o, byIndex)
			if err != nil {
				return err
			}
			got.Home = o.Home
			f.add(got)
		}
	}
	return nil
}

// asLink turns what the kernel tells into a kernel.Link. want says where to look for the other end of a veth and for
// what a link was made on; nil for nowhere.
func (s *session) asLink(sp *space, l *linkInfo, want *kernel.Link, names map[int]string) (*kernel.Link, error) {
	if want == nil {
		want = &kernel.Link{}
	}
	out := &kernel.Link{NS: sp.path, Name: l.name, Type: kernel.LinkType(l.kind), MTU: l.mtu, MAC: l.mac, Alias: l.alias, Port: l.port,
		Group: uint32(l.group), Promisc: l.flags&unix.IFF_PROMISC != 0, Mode: l.mode, Flag: l.flag, VLAN: l.vlan, BCQueueLen: l.bcQueueLen, Access: l.access,
		VLANFiltering: l.filtering, Table: l.table}
	var err error
	if l.tunnel != nil {
		t := *l.tunnel
		t.Under = sp.linkName(l.under, names)
		out.Tunnel = &t
	}
	if out.Parent, err = s.parentOf(sp, l, want.Parent, names); err != nil {
		return nil, err
	}
	if l.master != 0 {
		name, ok := names[l.master]
		if !ok {
			m, err := sp.linkBy(nil, l.master)
			if err != nil && !gone(err) {
				return nil, err
			}
			if m != nil {
				name = m.name
			}
			names[l.master] = name
		}
		out.Master = name
	}
	peer := want.Peer
	if l.kind != string(kernel.Veth) || peer == nil || peer.Handoff {
		return out, nil
	}
	far, err := s.space(peer.NS)
	if err == nil {
		var o *linkInfo
		if o, err = far.link(peer.Name); err == nil {
			// Both ends name each other; numbers alone repeat from namespace to namespace.
			if o.kind == l.kind && o.index == l.peer && o.peer == l.index {
				out.Peer = &kernel.Peer{NS: peer.NS, Name: o.name, MTU: o.mtu, MAC: o.mac, Alias: o.alias}
			}
		}
	}
	if err != nil && !gone(err) {
		return nil, err
	}
	return out, nil
}

func (s *session) applyLink(sp *space, c kernel.Change) error {
	want := c.New.(*kernel.Link)
	if want.Taken {
		return nil
	}
	if c.Op == kernel.Update {
		return s.updateLink(sp, want)
	}
	err := s.createLink(sp, want)
	if isErrno(err, unix.EEXIST) {
		return s.exists(want, err)
	}
	return err
}

func (s *session) createLink(sp *space, want *kernel.Link) error {
	switch {
	case want.Type == kernel.Loopback:
		return unix.EEXIST
	case want.Home != "":
		return s.moveIn(sp, want)
	case want.Type == kernel.Tap || want.Type == kernel.Tun:
		return s.createTap(sp, want)
	}
	from, parent, name, err := s.origin(sp, want)
	if err != nil {
		return err
	}
	so, err := from.route()
	if err != nil {
		return err
	}
	m, err := s.newLink(sp, want, name)
	if err != nil {
		return err
	}
	if parent != 0 {
		m.u32(unix.IFLA_LINK, uint32(parent))
	}
	if from != sp {
		m.u32(unix.IFLA_NET_NS_FD, uint32(sp.fd))
	}
	if err := so.exec1(m); err != nil {
		return err
	}
	delete(sp.index, want.Name)
	index := 0
	if name != want.Name {
		l, err := sp.link(name)
		if err != nil {
			return err
		}
		index = l.index
		delete(sp.index, name)
	}
	err = s.dress(sp, want, index)
	if err == nil {
		return nil
	}
	undo := newMsg(unix.RTM_DELLINK, 0, ifinfo(index, 0, 0))
	if index == 0 {
		undo.str(unix.IFLA_IFNAME, name)
	}
	if so, rerr := sp.route(); rerr == nil {
		err = errors.Join(err, so.exec1(undo))
	}
	return err
}

// newLink is the message that makes a link under a name: with its master and its peer, but without what the kernel takes
// only for one that exists.
func (s *session) newLink(sp *space, want *kernel.Link, name string) (*msg, error) {
	m := newMsg(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0))
	m.str(unix.IFLA_IFNAME, name)
	if want.Alias != "" {
		m.u32(unix.IFLA_GROUP, halfMade)
	} else if want.Group != 0 {
		m.u32(unix.IFLA_GROUP, want.Group)
	}
	if want.Master != "" {
		i, err := sp.ifindex(want.Master)
		if err != nil {
			return nil, err
		}
		m.u32(unix.IFLA_MASTER, uint32(i))
	}
	if err := shape(m, want.MTU, want.MAC); err != nil {
		return nil, err
	}
	var far *space
	if p := want.Peer; p != nil {
		var err error
		if far, err = s.space(p.NS); err != nil {
			return nil, err
		}
		delete(far.index, p.Name)
	}
	var err error
	m.nested(unix.IFLA_LINKINFO, func() {
		m.str(unix.IFLA_INFO_KIND, string(want.Type))
		if far == nil {
			err = sp.infoData(m, want)
			return
		}
		m.nested(unix.IFLA_INFO_DATA, func() {
			m.nested(vethInfoPeer, func() {
				m.raw(ifinfo(0, 0, 0))
				m.str(unix.IFLA_IFNAME, want.Peer.Name)
				m.u32(unix.IFLA_NET_NS_FD, uint32(far.fd))
				err = shape(m, want.Peer.MTU, want.Peer.MAC)
			})
		})
	})
	return m, err
}

func shape(m *msg, mtu int, mac string) error {
	if mtu != 0 {
		m.u32(unix.IFLA_MTU, uint32(mtu))
	}
	if mac != "" {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		m.attr(unix.IFLA_ADDRESS, hw)
	}
	return nil
}

// dress gives a new link what newLink could not. One that was made under another name is told by its number and gets its
// own; else index is 0.
func (s *session) dress(sp *space, want *kernel.Link, index int) error {
	if want.Alias != "" || want.Port != nil || want.Promisc || index != 0 {
		m := newMsg(unix.RTM_NEWLINK, 0, promisc(index, want.Promisc))
		m.str(unix.IFLA_IFNAME, want.Name)
		if want.Alias != "" {
			m.str(unix.IFLA_IFALIAS, want.Alias)
			m.u32(unix.IFLA_GROUP, want.Group)
		}
		portFlags(m, want.Port)
		so, err := sp.route()
		if err != nil {
			return err
		}
		if err := so.exec1(m); err != nil {
			return err
		}
	}
	if want.VLANFiltering {
		if err := sp.filters(want.Name); err != nil {
			return err
		}
	}
	p := want.Peer
	if p == nil || p.Alias == "" {
		return nil
	}
	far, err := s.space(p.NS)
	if err != nil {
		return err
	}
	so, err := far.route()
	if err != nil {
		return err
	}
	m := newMsg(unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0))
	m.str(unix.IFLA_IFNAME, p.Name)
	m.str(unix.IFLA_IFALIAS, p.Alias)
	return so.exec1(m)
}

func portFlags(m *msg, p *kernel.Port) {
	if p == nil {
		return
	}
	m.nested(unix.IFLA_LINKINFO, func() {
		m.str(unix.IFLA_INFO_SLAVE_KIND, "bridge")
		m.nested(unix.IFLA_INFO_SLAVE_DATA, func() {
			m.u8(unix.IFLA_BRPORT_MODE, b2u(p.Hairpin))
			m.u8(unix.IFLA_BRPORT_ISOLATED, b2u(p.Isolated))
			m.u8(unix.IFLA_BRPORT_LEARNING, b2u(!p.NoLearning))
			m.u8(unix.IFLA_BRPORT_UNICAST_FLOOD, b2u(!p.NoFlood))
			m.u8(unix.IFLA_BRPORT_NEIGH_SUPPRESS, b2u(p.Suppress))
		})
	})
}

func b2u(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// errForeign says that the name is taken by a link that does not carry our alias.
var errForeign = fmt.Errorf("%w: a link of this name is somebody else's", kernel.ErrExists)

// updateLink changes in place what differs from want.
func (s *session) updateLink(sp *space, want *kernel.Link) error {
	l, err := sp.link(want.Name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(want.Alias, kernel.AliasPrefix) && !l.ours() || want.Home != "" && want.Home != l.alias {
		return errForeign
	}
	have, err := s.asLink(sp, l, want, map[int]string{})
	if err != nil {
		return err
	}
	have.Home = want.Home
	if want.Replace(have) {
		return fmt.Errorf("%w: it can't be changed in place", kernel.ErrExists)
	}
	so, err := sp.route()
	if err != nil {
		return err
	}
	m := newMsg(unix.RTM_NEWLINK, 0, promisc(l.index, want.Promisc && !have.Promisc))
	if want.Alias != "" {
		m.str(unix.IFLA_IFALIAS, want.Alias)
	}
	if want.Group != 0 && want.Group != have.Group || l.group == halfMade {
		m.u32(unix.IFLA_GROUP, want.Group)
	}
	if want.Master != have.Master {
		i := 0
		if want.Master != "" {
			if i, err = sp.ifindex(want.Master); err != nil {
				return err
			}
		}
		m.u32(unix.IFLA_MASTER, uint32(i))
	}
	mtu, mac := differ(want.MTU, want.MAC, have.MTU, have.MAC)
	if err := shape(m, mtu, mac); err != nil {
		return err
	}
	if want.Mode != "" && want.Mode != have.Mode || want.Flag != "" && want.Flag != have.Flag || want.BCQueueLen != 0 && want.BCQueueLen != have.BCQueueLen ||
		want.VLANFiltering && !have.VLANFiltering {
		m.nested(unix.IFLA_LINKINFO, func() {
			m.str(unix.IFLA_INFO_KIND, string(want.Type))
			err = sp.infoData(m, want)
		})
		if err != nil {
			return err
		}
	}
	if err := so.exec1(m); err != nil {
		return err
	}
	if want.VLANFiltering && !have.VLANFiltering {
		if err := sp.filters(want.Name); err != nil {
			return err
		}
	}
	if want.Port != nil && (want.Master != have.Master || have.Port == nil || *want.Port != *have.Port) {
		m := newMsg(unix.RTM_NEWLINK, 0, ifinfo(l.index, 0, 0))
		portFlags(m, want.Port)
		if err := so.exec1(m); err != nil {
			return err
		}
	}
	return s.updatePeer(want.Peer, have.Peer)
}

func differ(mtu int, mac string, haveMTU int, haveMAC string) (int, string) {
	if mtu == haveMTU {
		mtu = 0
	}
	if mac == haveMAC {
		mac = ""
	}
	return mtu, mac
}

func (s *session) updatePeer(want, have *kernel.Peer) error {
	if want == nil || have == nil {
		return nil
	}
	far, err := s.space(want.NS)
	if err != nil {
		return err
	}
	so, err := far.route()
	if err != nil {
		return err
	}
	m := newMsg(unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0))
	m.str(unix.IFLA_IFNAME, want.Name)
	if want.Alias != "" {
		m.str(unix.IFLA_IFALIAS, want.Alias)
	}
	mtu, mac := differ(want.MTU, want.MAC, have.MTU, have.MAC)
	if err := shape(m, mtu, mac); err != nil {
		return err
	}
	return so.exec1(m)
}
