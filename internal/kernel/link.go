package kernel

import (
	"fmt"
	"strings"
)

// LinkType is the kernel's name of a kind of link (IFLA_INFO_KIND).
type LinkType string

// The link types that can be wanted.
const (
	Bridge   LinkType = "bridge"
	Veth     LinkType = "veth"
	Dummy    LinkType = "dummy"
	Macvlan  LinkType = "macvlan"
	Ipvlan   LinkType = "ipvlan"
	VLAN     LinkType = "vlan"
	Tap      LinkType = "tap" // a TAP device that stays when no program has it open (tun.txt in the kernel's tree)
	Tun      LinkType = "tun" // the same with IP packets and no hardware addresses
	VRF      LinkType = "vrf"
	Loopback LinkType = "loopback" // exists in every namespace; only ever wanted up
	// IFB is a link that what a Redirect sends to it passes, so that its root qdisc shapes what comes in elsewhere. The
	// packets go on where they were.
	IFB LinkType = "ifb"
	// VXLAN and WG are the ends of tunnels to other machines, see Tunnel and WireGuard.
	VXLAN LinkType = "vxlan"
	WG    LinkType = "wireguard"
)

// Link is a network interface. Whether it is up is an object of its own (LinkUp), so that sysctls and addresses are in
// place before the first packet.
type Link struct {
	NS   string
	Name string
	Type LinkType
	// MTU in bytes; 0 leaves the kernel's default.
	MTU int
	// MAC is the hardware address as "02:…"; "" leaves it to the kernel.
	MAC string
	// Alias marks the link as ours; see AliasPrefix.
	Alias string
	// Master is the bridge (or VRF) in the same namespace that the link is a port of; "" for none.
	Master string
	// Group is the device group (IFLA_GROUP, ip-link(8)). Interfaces of one network share one, and the rules of the
	// nftables table go by it (iifgroup, oifgroup). 0 is the kernel's default and not compared.
	Group uint32
	// Peer is the other end of a veth. A veth is one object, kept under its host end.
	Peer *Peer
	// Parent is what a macvlan, ipvlan or vlan is made on.
	Parent *Parent
	// Mode is how links on one parent reach each other, one of Modes: of a macvlan "bridge", "private", "vepa" (the
	// kernel's default) or "passthru", of an ipvlan "l2", "l3" (the kernel's default) or "l3s"; see
	// Documentation/networking in the kernel's tree. "" leaves it alone. All ipvlans on one parent have the mode that was
	// set last.
	Mode string
	// Flag is what an ipvlan does beside its mode, one of IpvlanFlags: "bridge" (the kernel's default) leads packets to
	// others on the parent straight to them, "private" drops them, "vepa" sends them out for a switch to send back. ""
	// leaves it alone. All ipvlans on one parent have the flag that was set last.
	Flag string
	// VLAN is the tag of a vlan (IEEE 802.1Q), 0 to 4094.
	VLAN int
	// BCQueueLen is how many frames of a macvlan to all or many stations may wait (IFLA_MACVLAN_BC_QUEUE_LEN, kernel
	// 5.11); 0 leaves the kernel's default, 1000.
	BCQueueLen uint32
	// Port holds the flags of a bridge port; nil leaves them alone.
	Port *Port
	// Promisc turns promiscuous mode on (ip-link(8)); false leaves it alone.
	Promisc bool
	// Access says who may open a TUN or TAP device and how; nil is the zero Access when it is made, and not compared.
	Access *Access
	// VLANFiltering has a bridge keep its ports' VLANs apart (ip-link(8), vlan_filtering); false leaves it alone. A kernel
	// without the ability gives ErrUnsupported.
	VLANFiltering bool
	// Home is the name that the link has in the machine's own namespace: it is not made but moved from there, with
	// whatever type, MTU and hardware address it has, and keeps Home as its alias; the other fields are not to be set.
	// Making it needs a Home that exists, and an NS that is not the machine's. Deleting it moves it back as Home, down
	// and without alias; where that name is taken it becomes devN, with the alias. A link of this name with another
	// alias is somebody else's. In the machine's namespace the deletion gives the link its name back: the kernel moves
	// devices that are no software there, as they are, when the namespace that holds them ends.
	Home string
	// Tunnel is what a vxlan is made with.
	Tunnel *Tunnel
	// Table is the routing table of a VRF (Documentation/networking/vrf.rst), for whose ports it takes the place of the
	// main one. It can't be changed in place; 0 is not compared.
	Table int
	// Taken says that somebody else has taken the link, moved and renamed it: it is neither made nor compared nor changed,
	// and a listing gives it as it is asked for. Deleting it deletes it where it came back under its name and is ours.
	Taken bool
}

// Modes are the modes of the links that are made on another one.
var Modes = map[LinkType][]string{
	Macvlan: {"bridge", "private", "vepa", "passthru"},
	Ipvlan:  {"l2", "l3", "l3s"},
}

// IpvlanFlags are what an ipvlan may do beside its mode.
var IpvlanFlags = []string{"bridge", "private", "vepa"}

// Access is what opening a TUN or TAP device takes (TUNSETIFF, TUNSETOWNER, TUNSETGROUP).
type Access struct {
	// Owner and Group are the user and the group that may open the device without CAP_NET_ADMIN; nil for none.
	Owner, Group *uint32
	// MultiQueue has the device opened once for each queue, each time with IFF_MULTI_QUEUE.
	MultiQueue bool
	// Context is the SELinux context that the device gets; "" for that of the process that makes it. It is not
	// compared, as the kernel doesn't tell it.
	Context string
}

func (a *Access) holds(b *Access) bool {
	same := func(a, b *uint32) bool { return a == b || a != nil && b != nil && *a == *b }
	return a == nil || b != nil && same(a.Owner, b.Owner) && same(a.Group, b.Group) && a.MultiQueue == b.MultiQueue
}

// Peer is the far end of a veth pair, made in its namespace under its final name. Deleting either end deletes both.
type Peer struct {
	NS    string
	Name  string
	MTU   int
	MAC   string
	Alias string
	// Handoff says that somebody else takes the end, moves and renames it, once the pair is made: from then on nothing of it
	// is compared, looked for or changed.
	Handoff bool
}

// Parent is a link that others are made on (IFLA_LINK). It may be in another namespace than they; when it goes, they go.
// One that has another name now is not told from what was asked for, as long as no other link has the name.
type Parent struct {
	NS   string
	Name string
}

// Port is a set of bridge port flags (bridge(8)).
type Port struct {
	// Hairpin lets a frame leave by the port that it came in by.
	Hairpin bool
	// Isolated keeps the port from talking to other isolated ports (kernel 4.18).
	Isolated bool
	// NoLearning has the bridge not learn what is behind the port: only its FDB entries say.
	NoLearning bool
	// NoFlood keeps unicast frames to addresses that the bridge does not know from the port; those to all or many
	// stations still go out.
	NoFlood bool
	// Suppress has the bridge answer questions for addresses (ARP, NDP) from its own neighbours, rather than send them
	// out of the port, where the neighbour's hardware address is behind this port (neigh_suppress, kernel 4.15).
	Suppress bool
}

// Key is the link's name.
func (l *Link) Key() Key { return Key{KindLink, l.NS, l.Name} }

// Holds implements Object.
func (l *Link) Holds(actual Object) bool {
	a, ok := actual.(*Link)
	if ok && (l.Taken || a.Taken) { // one that is not taken is another want
		return l.Taken
	}
	if ok && l.Home != "" {
		return l.Home == a.Home
	}
	if !ok || l.Type != a.Type || l.Master != a.Master || !l.Access.holds(a.Access) || !l.Tunnel.same(a.Tunnel) ||
		l.MTU != 0 && l.MTU != a.MTU ||
		l.MAC != "" && l.MAC != a.MAC ||
		l.Group != 0 && l.Group != a.Group ||
		l.Alias != "" && l.Alias != a.Alias ||
		l.Port != nil && (a.Port == nil || *l.Port != *a.Port) ||
		l.Promisc && !a.Promisc ||
		l.Parent != nil && (a.Parent == nil || *l.Parent != *a.Parent) ||
		l.Mode != "" && l.Mode != a.Mode || l.Flag != "" && l.Flag != a.Flag ||
		l.BCQueueLen != 0 && l.BCQueueLen != a.BCQueueLen || l.VLAN != a.VLAN ||
		l.VLANFiltering && !a.VLANFiltering ||
		l.Table != 0 && l.Table != a.Table {
		return false
	}
	if l.Peer == nil || l.Peer.Handoff {
		return true
	}
	p := a.Peer
	return p != nil && l.Peer.NS == p.NS && l.Peer.Name == p.Name &&
		(l.Peer.MTU == 0 || l.Peer.MTU == p.MTU) && (l.Peer.MAC == "" || l.Peer.MAC == p.MAC)
}

// Replace reports whether actual can't be turned into l in place and has to be deleted first.
func (l *Link) Replace(actual *Link) bool {
	if l.Taken {
		return false
	}
	if l.Home != "" || actual.Home != "" {
		return l.Home != actual.Home
	}
	if l.Type != actual.Type || l.VLAN != actual.VLAN || l.Table != 0 && l.Table != actual.Table || !l.Access.holds(actual.Access) ||
		!l.Tunnel.same(actual.Tunnel) {
		return true
	}
	if l.Parent != nil && (actual.Parent == nil || *l.Parent != *actual.Parent) {
		return true
	}
	// A macvlan has its parent for itself, or not, from the beginning.
	if l.Mode != "" && l.Mode != actual.Mode && (l.Mode == "passthru" || actual.Mode == "passthru") {
		return true
	}
	return l.Peer != nil && !l.Peer.Handoff && (actual.Peer == nil || l.Peer.NS != actual.Peer.NS || l.Peer.Name != actual.Peer.Name)
}

// String implements Object.
func (l *Link) String() string {
	var b strings.Builder
	b.WriteString("link " + l.Name)
	word := func(k, v string) {
		if v != "" && v != "0" {
			b.WriteString(" " + k + " " + v)
		}
	}
	word("type", string(l.Type))
	word("of the machine's", l.Home)
	word("mtu", fmt.Sprint(l.MTU))
	word("address", l.MAC)
	word("master", l.Master)
	word("group", fmt.Sprint(l.Group))
	if l.Type == VLAN {
		b.WriteString(fmt.Sprint(" id ", l.VLAN))
	}
	word("mode", l.Mode)
	word("flag", l.Flag)
	word("bcqueuelen", fmt.Sprint(l.BCQueueLen))
	word("table", fmt.Sprint(l.Table))
	if t := l.Tunnel; t != nil {
		fmt.Fprintf(&b, " id %d dstport %d", t.VNI, t.Port)
		if t.Local.IsValid() {
			b.WriteString(" local " + t.Local.String())
		}
		word("dev", t.Under)
	}
	if p := l.Port; p != nil {
		for _, f := range []struct {
			on   bool
			text string
		}{{p.Hairpin, " hairpin on"}, {p.Isolated, " isolated on"}, {p.NoLearning, " learning off"}, {p.NoFlood, " flood off"},
			{p.Suppress, " neigh_suppress on"}} {
			if f.on {
				b.WriteString(f.text)
			}
		}
	}
	if l.Promisc {
		b.WriteString(" promisc on")
	}
	if a := l.Access; a != nil {
		id := func(k string, n *uint32) {
			if n != nil {
				fmt.Fprintf(&b, " %s %d", k, *n)
			}
		}
		id("user", a.Owner)
		id("group", a.Group)
		if a.MultiQueue {
			b.WriteString(" multi_queue")
		}
		word("context", a.Context)
	}
	if l.VLANFiltering {
		b.WriteString(" vlan_filtering 1")
	}
	word("alias", l.Alias)
	if l.Parent != nil {
		b.WriteString(" link " + l.Parent.Name)
		if l.Parent.NS != l.NS {
			b.WriteString(" of " + place(l.Parent.NS))
		}
	}
	if l.Peer != nil {
		b.WriteString(" peer " + l.Peer.Name)
		word("mtu", fmt.Sprint(l.Peer.MTU))
		word("address", l.Peer.MAC)
		b.WriteString(in(l.Peer.NS))
		if l.Peer.Handoff {
			b.WriteString(" to be taken")
		}
	}
	if l.Taken {
		b.WriteString(" taken")
	}
	return b.String() + in(l.NS)
}

func place(ns string) string {
	if ns == "" {
		return "the machine"
	}
	return ns
}

func in(ns string) string {
	if ns == "" {
		return ""
	}
	return " netns " + ns
}

// LinkUp is the administrative up state of a link.
type LinkUp struct {
	NS   string
	Link string
	// Keep leaves the link up when nobody wants it up any more: for links that are not ours, such as lo.
	Keep bool
}

// Key is the link's name.
func (u *LinkUp) Key() Key { return Key{KindLinkUp, u.NS, u.Link} }

// Holds implements Object.
func (u *LinkUp) Holds(actual Object) bool { _, ok := actual.(*LinkUp); return ok }

// String implements Object.
func (u *LinkUp) String() string { return "link " + u.Link + " up" + in(u.NS) }

// Sysctl is a value under /proc/sys. The Name is a path below it with slashes, such as net/ipv4/conf/eth0/forwarding
// (interface names may hold dots). Deleting one restores Before, or does nothing where Before is "".
type Sysctl struct {
	NS    string
	Name  string
	Value string
	// Before is the value that Delete puts back; it is not compared.
	Before string
}

// Key is the path.
func (s *Sysctl) Key() Key { return Key{KindSysctl, s.NS, s.Name} }

// Holds implements Object.
func (s *Sysctl) Holds(actual Object) bool {
	a, ok := actual.(*Sysctl)
	return ok && a.Value == s.Value
}

// String implements Object.
func (s *Sysctl) String() string { return "sysctl " + s.Name + " = " + s.Value + in(s.NS) }

// Qdisc is a queueing discipline (tc(8)).
type Qdisc struct {
	NS   string
	Link string
	// Type is "tbf", "clsact" or "ingress".
	Type string
	// Parent is "root" for a tbf; the others have a fixed place and leave it "".
	Parent string
	// Rate in bytes per second, Burst and Limit in bytes: for a tbf.
	Rate  uint64
	Burst uint32
	Limit uint32
}

// Key is the link and the place.
func (q *Qdisc) Key() Key {
	place := q.Parent
	if place == "" {
		place = "ingress"
	}
	return Key{KindQdisc, q.NS, q.Link + " " + place}
}

// Holds implements Object.
func (q *Qdisc) Holds(actual Object) bool {
	a, ok := actual.(*Qdisc)
	return ok && a.Type == q.Type && (q.Rate == 0 || q.Rate == a.Rate && q.Burst == a.Burst && q.Limit == a.Limit)
}

// String implements Object.
func (q *Qdisc) String() string {
	s := "qdisc dev " + q.Link + " " + q.Parent + " " + q.Type
	if q.Rate != 0 {
		s += fmt.Sprintf(" rate %dbit burst %d limit %d", q.Rate*8, q.Burst, q.Limit)
	}
	return s + in(q.NS)
}

// Redirect sends every packet that enters a link out by another one: a filter of the link's ingress qdisc, which has to
// be there, that takes all (tc-u32(8)) with the action mirred egress redirect (tc-mirred(8)). A link has one of ours.
type Redirect struct {
	NS   string
	Link string
	// To is the other link, in the same namespace. Where it is gone, the kernel drops what it is sent and a listing
	// says "".
	To string
}

// Key is the link.
func (r *Redirect) Key() Key { return Key{KindRedirect, r.NS, r.Link} }

// Holds implements Object.
func (r *Redirect) Holds(actual Object) bool {
	a, ok := actual.(*Redirect)
	return ok && a.To == r.To
}

// String implements Object.
func (r *Redirect) String() string {
	return "filter dev " + r.Link + " ingress redirect dev " + r.To + in(r.NS)
}
