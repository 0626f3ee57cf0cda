package kernel

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Addr is an address on a link. IPv6 addresses are added with IFA_F_NODAD: we own them, so they work at once
// (RFC 4862 section 5.4 lets an address be used without duplicate address detection where that is known).
type Addr struct {
	NS   string
	Link string
	// Prefix is the address with the length of its subnet, such as 10.1.0.2/24.
	Prefix netip.Prefix
	// NoRoute leaves the subnet's own route out (IFA_F_NOPREFIXROUTE).
	NoRoute bool
	// DAD asks for duplicate address detection after all.
	DAD bool
	// Temporary addresses have a lifetime, such as those that a router's advertisement gave. It is only ever listed.
	Temporary bool
}

// Key is the link and the prefix.
func (a *Addr) Key() Key { return Key{KindAddr, a.NS, a.Link + " " + a.Prefix.String()} }

// Holds implements Object.
func (a *Addr) Holds(actual Object) bool { _, ok := actual.(*Addr); return ok }

// String implements Object.
func (a *Addr) String() string { return "addr " + a.Prefix.String() + " dev " + a.Link + in(a.NS) }

// Scope of a route (rtnetlink(7), rtm_scope).
type RouteScope uint8

// The scopes.
const (
	ScopeGlobal RouteScope = 0
	ScopeLink   RouteScope = 253
	ScopeHost   RouteScope = 254
)

// The routing tables that have names.
const (
	TableMain  = 254
	TableLocal = 255
)

// NoProtocol as the Proto of a Route or a Rule says that it carries no protocol number (RTPROT_UNSPEC). Deleting
// takes it for any number.
const NoProtocol = -1

// Route is a route; ours carry RouteProtocol.
type Route struct {
	NS  string
	Dst netip.Prefix
	// Via is the gateway; the zero Addr for none.
	Via netip.Addr
	// Link is the interface that packets leave by; "" where Type says that none do.
	Link string
	// Src is the preferred source address; the zero Addr for none.
	Src netip.Addr
	// Table is the routing table; 0 means TableMain.
	Table int
	// Metric is the priority, lowest first. For IPv6 the kernel turns 0 into 1024, so ask for 1024.
	Metric int
	Scope  RouteScope
	// OnLink takes the gateway as reachable on Link whatever its address is.
	OnLink bool
	// Nexthop is the number of a nexthop object that stands for Via, Link and OnLink, which are not to be set then (a
	// listing tells what they are at present); 0 for none. The route goes with it.
	Nexthop uint32
	// Type is "" for unicast, else "local", "blackhole", "unreachable" or "prohibit".
	Type string
	// MTU of the path in bytes; 0 for none.
	MTU int
	// AdvMSS is the largest TCP segment to announce, in bytes; 0 leaves it to the kernel.
	AdvMSS int
	// Proto is the protocol number (rtnetlink(7), rtm_protocol) of a route that is somebody else's, so that it can be
	// deleted and be put back as it was; 0 is RouteProtocol. It is not compared.
	Proto int
}

// TableOrMain is the table with the default applied.
func (r *Route) TableOrMain() int {
	if r.Table == 0 {
		return TableMain
	}
	return r.Table
}

// Key is table, destination and metric, and for the IPv6 local table the link too (it may hold one entry per link).
func (r *Route) Key() Key {
	n := strconv.Itoa(r.TableOrMain()) + " " + r.Dst.String() + " metric " + strconv.Itoa(r.Metric)
	if r.Type == "local" {
		n += " dev " + r.Link
	}
	return Key{KindRoute, r.NS, n}
}

// Holds implements Object.
func (r *Route) Holds(actual Object) bool {
	a, ok := actual.(*Route)
	return ok && a.Nexthop == r.Nexthop && (r.Nexthop != 0 || a.Via == r.Via && a.Link == r.Link) && a.Type == r.Type && (!r.Src.IsValid() || a.Src == r.Src) &&
		(r.MTU == 0 || r.MTU == a.MTU) && (r.AdvMSS == 0 || r.AdvMSS == a.AdvMSS) && (r.Dst.Addr().Is6() || r.Scope == a.Scope)
}

// String implements Object.
func (r *Route) String() string {
	var b strings.Builder
	b.WriteString("route ")
	if r.Type != "" {
		b.WriteString(r.Type + " ")
	}
	if r.Dst.Bits() == 0 {
		b.WriteString("default")
		if r.Dst.Addr().Is6() {
			b.WriteString(" (v6)")
		}
	} else {
		b.WriteString(r.Dst.String())
	}
	switch {
	case r.Nexthop != 0:
		fmt.Fprintf(&b, " nhid %d", r.Nexthop)
	case r.Via.IsValid():
		b.WriteString(" via " + r.Via.String())
	}
	if r.Link != "" && r.Nexthop == 0 {
		b.WriteString(" dev " + r.Link)
	}
	if r.Src.IsValid() {
		b.WriteString(" src " + r.Src.String())
	}
	if r.Table != 0 && r.Table != TableMain {
		fmt.Fprintf(&b, " table %d", r.Table)
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	return b.String() + in(r.NS)
}

// Rule is a policy routing rule (ip-rule(8)); ours carry RouteProtocol.
type Rule struct {
	NS       string
	V6       bool
	Priority int
	From, To netip.Prefix
	Mark     uint32
	Mask     uint32
	IIF      string
	Table    int
	// Proto is the protocol number of a rule that is somebody else's; 0 is RouteProtocol.
	Proto int
}

// Key is everything about the rule: the kernel lets several share a priority.
func (r *Rule) Key() Key { return Key{KindRule, r.NS, r.text()} }

// Holds implements Object.
func (r *Rule) Holds(actual Object) bool { _, ok := actual.(*Rule); return ok }

// String implements Object.
func (r *Rule) String() string { return "rule " + r.text() + in(r.NS) }

func (r *Rule) text() string {
	f := "v4"
	if r.V6 {
		f = "v6"
	}
	s := fmt.Sprintf("%s priority %d", f, r.Priority)
	if r.From.IsValid() {
		s += " from " + r.From.String()
	}
	if r.To.IsValid() {
		s += " to " + r.To.String()
	}
	if r.Mark != 0 || r.Mask != 0 {
		s += fmt.Sprintf(" fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.IIF != "" {
		s += " iif " + r.IIF
	}
	s += fmt.Sprintf(" lookup %d", r.Table)
	if r.Proto != 0 {
		s += fmt.Sprintf(" proto %d", r.Proto)
	}
	return s
}

// Neigh is a permanent neighbour entry: an address on a link is at a hardware address.
type Neigh struct {
	NS   string
	Link string
	Addr netip.Addr
	MAC  string
	// Proxy has the machine itself answer for the address on the link (ip-neighbour(8), proxy); MAC is "" then. The kernel
	// does so while it routes the address to another link; for IPv6 if net.ipv6.conf.*.proxy_ndp is on. It tells nobody
	// when such an entry is deleted.
	Proxy bool
}

// Key is the link and the address, and whether it is a proxy's: both may be there.
func (n *Neigh) Key() Key {
	name := n.Link + " " + n.Addr.String()
	if n.Proxy {
		name += " proxy"
	}
	return Key{KindNeigh, n.NS, name}
}

// Holds implements Object.
func (n *Neigh) Holds(actual Object) bool { a, ok := actual.(*Neigh); return ok && a.MAC == n.MAC }

// String implements Object.
func (n *Neigh) String() string {
	if n.Proxy {
		return "neigh proxy " + n.Addr.String() + " dev " + n.Link + in(n.NS)
	}
	return "neigh " + n.Addr.String() + " lladdr " + n.MAC + " dev " + n.Link + in(n.NS)
}

// EveryMAC is the address of a VXLAN device's FDB entries for frames to all or many stations: the device sends a copy
// to the Dst of each.
const EveryMAC = "00:00:00:00:00:00"

// FDB is a permanent forwarding entry: a hardware address is behind a port of a bridge, or behind a remote VTEP. A port
// that is a VXLAN device may have one of either sort for one address.
type FDB struct {
	NS   string
	Link string
	// MAC is a unicast address, or EveryMAC.
	MAC string
	// Dst is the remote VTEP of a VXLAN device; the zero Addr for a bridge port.
	Dst netip.Addr
}

// Key is the link and the hardware address, and for EveryMAC the remote VTEP, as there may be several.
func (f *FDB) Key() Key {
	name := f.Link + " " + f.MAC
	switch {
	case !f.Dst.IsValid():
		name += " -"
	case f.MAC == EveryMAC:
		name += " " + f.Dst.String()
	default:
		name += " vtep"
	}
	return Key{KindFDB, f.NS, name}
}

// Holds implements Object.
func (f *FDB) Holds(actual Object) bool { a, ok := actual.(*FDB); return ok && a.Dst == f.Dst }

// String implements Object.
func (f *FDB) String() string {
	dst := "-"
	if f.Dst.IsValid() {
		dst = f.Dst.String()
	}
	return "fdb " + f.MAC + " dev " + f.Link + " dst " + dst + in(f.NS)
}

// Hold keeps a port of the machine from other programs by binding it: programs that want it get "address already in
// use" instead of a port whose packets never reach them. It lasts as long as the process that applied it.
type Hold struct {
	// Protocol is "tcp", "udp" or "sctp".
	Protocol string
	// Addr is the address to bind; an unspecified one (0.0.0.0, ::) binds all of its family.
	Addr netip.Addr
	Port uint16
}

// Key is protocol, address and port.
func (h *Hold) Key() Key {
	return Key{KindHold, "", h.Protocol + " " + netip.AddrPortFrom(h.Addr, h.Port).String()}
}

// Holds implements Object.
func (h *Hold) Holds(actual Object) bool { _, ok := actual.(*Hold); return ok }

// String implements Object.
func (h *Hold) String() string {
	return "hold " + h.Protocol + " " + netip.AddrPortFrom(h.Addr, h.Port).String()
}
