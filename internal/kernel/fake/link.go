package fake

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// link is one network interface with all that lives on it and goes with it.
type link struct {
	ns, name string
	typ      kernel.LinkType
	mtu      int
	mac      string
	alias    string
	master   string
	port     kernel.Port
	group    uint32
	promisc  bool
	filter   bool                     // vlan_filtering
	vlans    map[int]kernel.VLANRange // nil for what is neither bridge nor port
	parent   *link                    // what it was made on, see parent.go
	mode     string
	flag     string
	vlan     int
	// bcQueueLen is a macvlan's.
	bcQueueLen uint32
	allMulti   bool
	txQLen     int
	vrfTable   int            // of a VRF
	vrf        *link          // the master, where that is a VRF
	access     *kernel.Access // of a TAP device
	peer       *link          // the other end of a veth
	main       bool           // false for the end that a veth was made with as its peer
	up         bool
	asked      struct{ mtu, mac bool } // was it asked for, or is it the kernel's default
	tuned      struct{ mtu, mac bool } // was it asked for by Attrs only
	addrs      []*addr                 // in the order of their making
	neighs     map[neighID]*neigh
	fdb        map[kernel.Key]*kernel.FDB
	tunnel     *kernel.Tunnel
	wg         *kernel.WireGuard // of a wireguard, nil before it is configured
	wgPeers    map[kernel.WGKey]*kernel.WGPeer
	features   map[string]bool          // those that are not as they were at first
	qdiscs     map[string]*kernel.Qdisc // by the name in their key
	redirect   *kernel.Redirect
}

type neighID struct {
	addr  netip.Addr
	proxy bool
}

func idOf(n *kernel.Neigh) neighID { return neighID{n.Addr, n.Proxy} }

type neigh struct {
	*kernel.Neigh
	ours bool
}

func newLink(ns, name string, typ kernel.LinkType) *link {
	// The kernel's own choice is random; a test wants the same one each time.
	sum := sha256.Sum256([]byte(ns + "\x00" + name))
	sum[0] = sum[0]&^1 | 2
	l := &link{ns: ns, name: name, typ: typ, main: true, mtu: 1500, txQLen: txQLen, mac: net.HardwareAddr(sum[:6]).String(),
		neighs: map[neighID]*neigh{}, fdb: map[kernel.Key]*kernel.FDB{}, qdiscs: map[string]*kernel.Qdisc{},
		wgPeers: map[kernel.WGKey]*kernel.WGPeer{}, features: map[string]bool{}}
	if typ == kernel.WG {
		l.mtu, l.mac = 1420, "" // it carries packets, not frames
	}
	if typ == kernel.Tun {
		l.mac = ""
	}
	if typ == kernel.Bridge {
		l.vlans = defaultVLAN()
	}
	return l
}

// ours reports whether the alias proves the link to be ours.
func (l *link) ours() bool { return strings.HasPrefix(l.alias, kernel.AliasPrefix) }

// foreign reports whether a link that was asked for as ours is somebody else's.
func (l *link) foreign(wanted *kernel.Link) bool {
	return strings.HasPrefix(wanted.Alias, kernel.AliasPrefix) && !l.ours() || wanted.Home != "" && wanted.Home != l.alias
}

// object gives the link as a listing does. With bare it leaves out what the kernel chose by itself.
func (l *link) object(bare bool) *kernel.Link {
	o := &kernel.Link{NS: l.ns, Name: l.name, Type: l.typ, MTU: l.mtu, MAC: l.mac, Alias: l.alias, Master: l.master,
		Group: l.group, Promisc: l.promisc, Mode: l.mode, Flag: l.flag, VLAN: l.vlan, BCQueueLen: l.bcQueueLen, Access: l.access,
		VLANFiltering: l.filter, Table: l.vrfTable, Tunnel: l.tunnel}
	if l.parent != nil {
		o.Parent = &kernel.Parent{NS: l.parent.ns, Name: l.parent.name}
	}
	if bare && !l.asked.mtu {
		o.MTU = 0
	}
	if bare && !l.asked.mac {
		o.MAC = ""
	}
	if l.master != "" && l.vrf == nil {
		p := l.port
		o.Port = &p
	}
	if l.peer != nil {
		p := *l.peer
		p.peer = nil // or it would describe its peer in turn
		end := p.object(bare)
		o.Peer = &kernel.Peer{NS: end.NS, Name: end.Name, MTU: end.MTU, MAC: end.MAC, Alias: end.Alias}
	}
	return o
}

func (k *Kernel) putLink(s *space, o *kernel.Link, update bool) error {
	if err := checkLink(o); err != nil {
		return err
	}
	l := s.links[o.Name]
	switch {
	case o.Taken:
		return nil
	case l == nil && update:
		return kernel.ErrAbsent
	case l == nil && o.Home != "":
		return k.moveIn(s, o)
	case l == nil:
		return k.createLink(s, o)
	case l.foreign(o):
		return fmt.Errorf("a link of another owner has the name: %w", kernel.ErrExists)
	case o.Holds(k.listed(l, o)):
		return nil
	case !update || o.Replace(k.listed(l, o)):
		return kernel.ErrExists
	}
	return k.setLink(s, l, o)
}

func (k *Kernel) createLink(s *space, o *kernel.Link) error {
	l := newLink(o.NS, o.Name, o.Type)
	if o.Parent != nil {
		if err := k.stack(l, o); err != nil {
			return err
		}
	}
	if o.Type == kernel.VXLAN {
		if err := s.bore(l, o.Tunnel); err != nil {
			return err
		}
	}
	if o.Type == kernel.Tap || o.Type == kernel.Tun {
		if l.access = o.Access; l.access == nil {
			l.access = &kernel.Access{}
		}
		if l.access.Context != "" {
			return fmt.Errorf("SELinux context %q: %w", l.access.Context, kernel.ErrUnsupported)
		}
	}
	if o.Type == kernel.Veth {
		if o.Peer == nil {
			return errors.New("a veth is made with its peer")
		}
		ps := k.spaces[o.Peer.NS]
		if ps == nil {
			return fmt.Errorf("peer %q: %w", o.Peer.Name, kernel.ErrNamespaceGone)
		}
		if ps.links[o.Peer.Name] != nil || o.Peer.NS == o.NS && o.Peer.Name == o.Name {
			return fmt.Errorf("peer %q: %w", o.Peer.Name, kernel.ErrExists)
		}
		l.peer = newLink(o.Peer.NS, o.Peer.Name, kernel.Veth)
		l.peer.peer, l.peer.main = l, false
	}
	if err := k.setLink(s, l, o); err != nil {
		return err
	}
	if l.mode == "passthru" {
		l.mac = l.parent.mac
	}
	for _, l := range []*link{l, l.peer} {
		if l != nil {
			k.spaces[l.ns].links[l.name] = l
			k.spaces[l.ns].inherit(l.name)
		}
	}
	return nil
}

// setLink gives l what o asks for: all of it, or nothing where it gives an error.
func (k *Kernel) setLink(s *space, l *link, o *kernel.Link) error {
	if err := s.checkMaster(o.Type, o.Master); err != nil {
		return err
	}
	if o.Port != nil && (o.Master == "" || s.links[o.Master].typ != kernel.Bridge) {
		return errors.New("port flags without a bridge")
	}
	if err := k.setStack(l, o); err != nil {
		return err
	}
	k.setMaster(s, l, o.Master)
	l.vrfTable = o.Table
	if o.Port != nil {
		l.port = *o.Port
	}
	if o.Alias != "" {
		l.alias = o.Alias
	}
	if o.Group != 0 {
		l.group = o.Group
	}
	l.promisc = l.promisc || o.Promisc
	l.filter = l.filter || o.VLANFiltering
	l.setBasics(o.MTU, o.MAC)
	if o.Peer != nil && l.peer != nil && !(o.Peer.Handoff && s.links[l.name] == l) {
		if o.Peer.Alias != "" {
			l.peer.alias = o.Peer.Alias
		}
		l.peer.setBasics(o.Peer.MTU, o.Peer.MAC)
	}
	return nil
}

func (l *link) setBasics(mtu int, mac string) {
	if mtu != 0 {
		l.mtu, l.asked.mtu = mtu, true
	}
	if mac != "" {
		l.mac, l.asked.mac = mac, true
	}
}

func checkLink(o *kernel.Link) error {
	if o.Home != "" {
		return checkHome(o)
	}
	switch o.Type {
	case kernel.Bridge, kernel.Veth, kernel.Dummy, kernel.IFB, kernel.Tap, kernel.Tun, kernel.Loopback, kernel.Macvlan, kernel.Ipvlan, kernel.VLAN,
		kernel.VRF, kernel.VXLAN, kernel.WG:
	default:
		return fmt.Errorf("type %q: %w", o.Type, kernel.ErrUnsupported)
	}
	if o.Type != kernel.Bridge && o.VLANFiltering {
		return errors.New("only a bridge filters by VLAN")
	}
	if err := checkVRF(o); err != nil {
		return err
	}
	if o.Type != kernel.Veth && o.Peer != nil {
		return errors.New("only a veth has a peer")
	}
	if (o.Type == kernel.VXLAN) != (o.Tunnel != nil) {
		return errors.New("a vxlan, and nothing else, is made with a Tunnel")
	}
	if (o.Type == kernel.WG || o.Type == kernel.Tun) && o.MAC != "" {
		return fmt.Errorf("a %s has no hardware address", o.Type)
	}
	if o.Type != kernel.Tap && o.Type != kernel.Tun && o.Access != nil {
		return errors.New("only a TUN or TAP device has an Access")
	}
	if err := checkStack(o); err != nil {
		return err
	}
	if (o.Type == kernel.Loopback) != (o.Name == "lo") {
		return fmt.Errorf("lo is the one link of type loopback: %w", kernel.ErrUnsupported)
	}
	if err := checkBasics(o.Name, o.MTU, o.MAC, o.Alias); err != nil {
		return err
	}
	if o.Peer != nil {
		return checkBasics(o.Peer.Name, o.Peer.MTU, o.Peer.MAC, o.Peer.Alias)
	}
	return nil
}

func checkBasics(name string, mtu int, mac, alias string) error {
	if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r\x00%") {
		return fmt.Errorf("name %q is no interface name", name)
	}
	if mtu != 0 && (mtu < 68 || mtu > 65535) {
		return fmt.Errorf("link %q: mtu %d is out of range", name, mtu)
	}
	if len(alias) > 255 {
		return fmt.Errorf("link %q: the alias is longer than 255 bytes", name)
	}
	if mac == "" {
		return nil
	}
	return checkMAC(mac)
}

// checkMAC wants a unicast Ethernet address in the one form that a listing gives: lower case, colons.
func checkMAC(mac string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 || hw.String() != mac || hw[0]&1 != 0 {
		return fmt.Errorf("%q is no hardware address", mac)
	}
	return nil
}

func (k *Kernel) deleteLink(s *space, o *kernel.Link, force bool) error {
	l := s.links[o.Name]
	if l == nil || l.foreign(o) && !force {
		return nil
	}
	switch {
	case o.Home != "":
		k.giveBack(l, o.Home)
	case l.typ != kernel.Loopback:
		k.removeLink(l)
	}
	return nil
}

// removeLink takes a link out with all that hangs on it, the other end of a veth likewise, and what was made on it.
func (k *Kernel) removeLink(l *link) {
	for _, l := range []*link{l, l.peer} {
		if l == nil {
			continue
		}
		for _, c := range k.children(l) {
			k.removeLink(c)
		}
		k.takeOut(l)
	}
}

// takeOut takes a link out of its namespace with what others there have by its name.
func (k *Kernel) takeOut(l *link) {
	s := k.spaces[l.ns]
	delete(s.links, l.name)
	maps.DeleteFunc(s.routes, func(_ kernel.Key, r *route) bool { return r.Link == l.name })
	s.dropNexthops(l.name)
	maps.DeleteFunc(s.sysctls, func(name, _ string) bool {
		_, dev, _, ok := splitSysctl(name)
		return ok && dev == l.name
	})
	for _, port := range s.links {
		if port.master == l.name {
			k.leaveMaster(port)
		}
		if r := port.redirect; r != nil && r.To == l.name { // it leads nowhere now
			port.redirect = &kernel.Redirect{NS: r.NS, Link: r.Link}
		}
	}
}

func (k *Kernel) putUp(s *space, o *kernel.LinkUp) error {
	l := s.links[o.Link]
	if l == nil {
		return kernel.ErrAbsent
	}
	if l.up {
		return nil
	}
	if l.typ == kernel.VLAN && !l.parent.up {
		return fmt.Errorf("parent %q is down: %w", l.parent.name, kernel.ErrAbsent)
	}
	l.up = true
	for _, c := range k.children(l) {
		c.up = c.up || c.typ == kernel.VLAN // the kernel sets them up and down along
	}
	if l.typ == kernel.Loopback {
		// The kernel gives lo its addresses as it comes up.
		for _, p := range []string{"127.0.0.1/8", "::1/128"} {
			p := netip.MustParsePrefix(p)
			if l.addr(p) == nil && !(p.Addr().Is6() && s.noIPv6(l.name)) {
				l.addrs = append(l.addrs, &addr{Addr: &kernel.Addr{NS: s.path, Link: "lo", Prefix: p}, maker: itself})
			}
		}
	}
	return nil
}

// setDown takes away what Linux takes away: the routes over the link, its neighbours, its IPv6 addresses.
func (k *Kernel) setDown(l *link) {
	if !l.up {
		return
	}
	l.up = false
	for _, c := range k.children(l) {
		if c.typ == kernel.VLAN {
			k.setDown(c)
		}
	}
	s := k.spaces[l.ns]
	maps.DeleteFunc(s.routes, func(_ kernel.Key, r *route) bool { return r.Link == l.name })
	s.dropNexthops(l.name)
	clear(l.neighs)
	if !s.keepsAddrs(l.name) {
		k.dropIPv6(s, l)
	}
}

// dropIPv6 removes all IPv6 addresses of a link.
func (k *Kernel) dropIPv6(s *space, l *link) {
	for _, a := range slices.Clone(l.addrs) {
		if a.Prefix.Addr().Is6() {
			k.deleteAddr(s, a.Addr)
		}
	}
}

func (k *Kernel) putQdisc(s *space, o *kernel.Qdisc, update bool) error {
	l := s.links[o.Link]
	if l == nil {
		return kernel.ErrAbsent
	}
	switch o.Type {
	case "tbf":
		if o.Parent != "root" || o.Rate == 0 || o.Burst == 0 || o.Limit == 0 {
			return errors.New("a tbf is at the root and has a rate, a burst and a limit")
		}
	case "clsact", "ingress":
		if o.Parent != "" || o.Rate != 0 || o.Burst != 0 || o.Limit != 0 {
			return fmt.Errorf("a qdisc of type %s has a place of its own and no rate", o.Type)
		}
	default:
		return fmt.Errorf("type %q: %w", o.Type, kernel.ErrUnsupported)
	}
	name := o.Key().Name
	if old := l.qdiscs[name]; old != nil && !update && !o.Holds(old) {
		return kernel.ErrExists
	} else if old == nil && update {
		return kernel.ErrAbsent
	}
	l.qdiscs[name] = o
	return nil
}

func (k *Kernel) deleteQdisc(l *link, o *kernel.Qdisc) {
	name := o.Key().Name
	if q := l.qdiscs[name]; q != nil && q.Parent == "" {
		l.redirect = nil // a filter is the qdisc's
	}
	delete(l.qdiscs, name)
}

func (k *Kernel) putRedirect(s *space, o *kernel.Redirect, update bool) error {
	l := s.links[o.Link]
	if l == nil || s.links[o.To] == nil {
		return kernel.ErrAbsent
	}
	if l.qdiscs[(&kernel.Qdisc{Link: o.Link}).Key().Name] == nil {
		return fmt.Errorf("the link has no ingress qdisc: %w", kernel.ErrAbsent)
	}
	if l.redirect != nil && !update && !o.Holds(l.redirect) {
		return kernel.ErrExists
	}
	l.redirect = o
	return nil
}
