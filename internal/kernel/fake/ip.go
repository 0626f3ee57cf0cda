package fake

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

type addr struct {
	*kernel.Addr
	maker maker
	// bare says that the route of its subnet was deleted.
	bare bool
}

// maker is who made an address; the kernel keeps a mark of it (IFA_PROTO, kernel 5.18).
type maker uint8

const (
	us maker = iota
	others
	itself // the kernel
)

type route struct {
	*kernel.Route
	ours bool
}

// The protocol numbers (rtnetlink(7)) of routes that the kernel makes, and of those that others make here.
const (
	protoKernel = 2
	protoStatic = 4
)

// proto gives the number as a listing does.
func (r *route) proto() int {
	if r.ours {
		return 0
	}
	return cmp.Or(r.Proto, protoStatic)
}

// ruleID tells rules apart as the kernel does: the protocol number belongs to the identity.
type ruleID struct {
	kernel.Key
	ours bool
}

func (l *link) addr(p netip.Prefix) *addr {
	for _, a := range l.addrs {
		if a.Prefix == p {
			return a
		}
	}
	return nil
}

func (k *Kernel) putAddr(s *space, o *kernel.Addr) error {
	l := s.links[o.Link]
	if l == nil {
		return kernel.ErrAbsent
	}
	ip := o.Prefix.Addr()
	if !o.Prefix.IsValid() || ip.Is4In6() || ip.Zone() != "" || ip.IsMulticast() || ip.IsUnspecified() {
		return errors.New("is no address for a link")
	}
	if l.addr(o.Prefix) != nil {
		return nil
	}
	if ip.Is6() {
		if s.noIPv6(o.Link) {
			return errors.New("IPv6 is disabled on this link")
		}
		for _, a := range l.addrs { // IPv6 has an address once per link, whatever the prefix
			if a.Prefix.Addr() == ip {
				return fmt.Errorf("it is there as %s: %w", a.Prefix, kernel.ErrExists)
			}
		}
	}
	l.addrs = append(l.addrs, &addr{Addr: o})
	return nil
}

// deleteAddr removes an address and what Linux removes with it: for IPv4 the secondary addresses of its subnet (unless
// they are promoted), routes that prefer it as a source, and with the last one all routes and neighbours of the link.
// IPv6 routes only lose their preferred source.
func (k *Kernel) deleteAddr(s *space, o *kernel.Addr) {
	l := s.links[o.Link]
	if l == nil || l.addr(o.Prefix) == nil {
		return
	}
	gone := []netip.Prefix{o.Prefix}
	is4 := o.Prefix.Addr().Is4()
	if is4 && !s.promotes(l.name) {
		if sub := l.subnet(o.Prefix); sub[0] == o.Prefix {
			gone = sub
		}
	}
	l.addrs = slices.DeleteFunc(l.addrs, func(a *addr) bool { return slices.Contains(gone, a.Prefix) })
	for _, p := range gone {
		if !s.local(p.Addr()) {
			s.dropSource(p.Addr())
		}
	}
	if is4 && !slices.ContainsFunc(l.addrs, func(a *addr) bool { return a.Prefix.Addr().Is4() }) {
		maps.DeleteFunc(s.routes, func(_ kernel.Key, r *route) bool { return r.Link == l.name && r.Dst.Addr().Is4() })
		maps.DeleteFunc(l.neighs, func(id neighID, _ *neigh) bool { return id.addr.Is4() })
	}
}

// subnet gives the link's addresses with the same subnet as p, the primary one first.
func (l *link) subnet(p netip.Prefix) []netip.Prefix {
	var in []netip.Prefix
	for _, a := range l.addrs {
		if a.Prefix.Masked() == p.Masked() {
			in = append(in, a.Prefix)
		}
	}
	return in
}

// dropSource deals with the routes that prefer a source address which is gone.
func (s *space) dropSource(ip netip.Addr) {
	for key, r := range s.routes {
		if r.Src != ip {
			continue
		}
		if ip.Is4() {
			delete(s.routes, key)
			continue
		}
		without := *r.Route
		without.Src = netip.Addr{}
		r.Route = &without
	}
}

// local reports whether the namespace has the address.
func (s *space) local(ip netip.Addr) bool {
	for _, l := range s.links {
		if slices.ContainsFunc(l.addrs, func(a *addr) bool { return a.Prefix.Addr() == ip }) {
			return true
		}
	}
	return false
}

func (k *Kernel) putRoute(s *space, o *kernel.Route, update bool) error {
	if o.Dst.Addr().Is6() && (o.Metric == 0 || o.Scope != kernel.ScopeGlobal) {
		// What Linux makes of it: IPv6 has no scopes, and 1024 is its metric where none is given.
		c := *o
		c.Scope = kernel.ScopeGlobal
		if c.Metric == 0 {
			c.Metric = 1024
		}
		o = &c
	}
	key := o.Key()
	old := s.route(key)
	switch {
	case old != nil && o.Holds(old.Route): // whoever made it
		return nil
	case old != nil && !old.ours:
		return fmt.Errorf("a route of another owner is in the way: %w", kernel.ErrExists)
	case old != nil && !update:
		return kernel.ErrExists
	case old == nil && update:
		return kernel.ErrAbsent
	}
	if err := s.checkRoute(o); err != nil {
		return err
	}
	for _, a := range s.bare(key) {
		if o.Proto == protoKernel { // put back
			a.bare = false
			return nil
		}
	}
	s.routes[key] = &route{Route: o, ours: o.Proto == 0}
	return nil
}

// deleteRoute deletes a route of the protocol number that is asked for; of ours, where none is.
func (s *space) deleteRoute(o *kernel.Route, force bool) {
	key := o.Key()
	if r := s.routes[key]; r != nil {
		if force || o.Proto == kernel.NoProtocol || o.Proto == r.proto() {
			delete(s.routes, key)
		}
		return
	}
	if o.Proto != protoKernel && o.Proto != kernel.NoProtocol {
		return
	}
	for _, l := range s.links {
		for _, a := range l.addrs {
			if r := s.subnetRoute(l, a); r != nil && r.Key() == key && l.name == o.Link {
				a.bare = true
			}
		}
	}
}

// bare gives the addresses whose subnet's route has the key and was deleted.
func (s *space) bare(key kernel.Key) []*addr {
	var out []*addr
	for _, l := range s.links {
		for _, a := range l.addrs {
			if r := s.subnetRoute(l, a); a.bare && r != nil && r.Key() == key {
				out = append(out, a)
			}
		}
	}
	return out
}

func (s *space) checkRoute(o *kernel.Route) error {
	is4 := o.Dst.Addr().Is4()
	if !o.Dst.IsValid() || o.Dst != o.Dst.Masked() || o.Dst.Addr().Is4In6() {
		return errors.New("the destination is no prefix, or has host bits")
	}
	if o.Via.IsValid() && o.Via.Is4() != is4 || o.Src.IsValid() && o.Src.Is4() != is4 {
		return errors.New("destination, gateway and source are of different families")
	}
	switch o.Type {
	case "":
	case "local":
		if is4 && o.Scope != kernel.ScopeHost {
			return errors.New("a local route has scope host")
		}
	case "blackhole", "unreachable", "prohibit":
		if o.Link != "" || o.Via.IsValid() {
			return fmt.Errorf("a route of type %s goes nowhere", o.Type)
		}
		return nil
	default:
		return fmt.Errorf("type %q: %w", o.Type, kernel.ErrUnsupported)
	}
	if o.Src.IsValid() && !s.local(o.Src) {
		return fmt.Errorf("source %s is no address of the machine's", o.Src)
	}
	if o.Nexthop != 0 {
		return s.checkNexthop(o)
	}
	l := s.links[o.Link]
	if l == nil {
		return fmt.Errorf("link %q: %w", o.Link, kernel.ErrAbsent)
	}
	if !l.up {
		return fmt.Errorf("link %q is down: %w", o.Link, kernel.ErrAbsent)
	}
	if !o.Via.IsValid() {
		return nil
	}
	if is4 && o.Scope >= kernel.ScopeLink {
		return errors.New("a route with a gateway has scope global")
	}
	if !is4 && s.local(o.Via) {
		return fmt.Errorf("gateway %s is the machine's own address", o.Via)
	}
	if !o.OnLink && !s.reachable(l, o.Via, o.TableOrMain()) {
		return fmt.Errorf("gateway %s is not reachable on link %q: %w", o.Via, o.Link, kernel.ErrAbsent)
	}
	return nil
}

// reachable reports whether a gateway is a direct neighbour on an interface: a subnet of the interface or a route
// without a gateway holds it. For IPv4 that route must have a narrower scope than the one that goes through it.
func (s *space) reachable(l *link, via netip.Addr, table int) bool {
	if via.Is6() && via.IsLinkLocalUnicast() {
		return true
	}
	for _, a := range l.addrs {
		if !a.NoRoute && a.Prefix.Masked().Contains(via) {
			return true
		}
	}
	for _, r := range s.routes {
		if r.Link == l.name && r.Type == "" && !r.Via.IsValid() && r.Dst.Contains(via) &&
			(r.TableOrMain() == table || r.TableOrMain() == kernel.TableMain) &&
			(via.Is6() || r.Scope >= kernel.ScopeLink) {
			return true
		}
	}
	return false
}

// route gives the route under a key; one that the kernel made by itself for an address, too. nil for none.
func (s *space) route(key kernel.Key) *route {
	if r := s.routes[key]; r != nil {
		return r
	}
	for _, r := range s.connected() {
		if r.Key() == key {
			return r
		}
	}
	return nil
}

// connected gives the routes that the kernel made by itself for addresses.
func (s *space) connected() []*route {
	var out []*route
	for _, l := range s.links {
		for _, a := range l.addrs {
			if r := s.subnetRoute(l, a); r != nil && !a.bare {
				out = append(out, &route{Route: r})
			}
		}
	}
	return out
}

// subnetRoute gives the route that the kernel makes for an address; nil for none.
func (s *space) subnetRoute(l *link, a *addr) *kernel.Route {
	p := a.Prefix
	if !l.up || a.NoRoute || p.Addr().Is4() && p.Bits() == 32 {
		return nil
	}
	r := &kernel.Route{NS: s.path, Dst: p.Masked(), Link: l.name, Metric: 256, Table: l.table(), Proto: protoKernel}
	if p.Addr().Is4() {
		r.Metric, r.Scope, r.Src = 0, kernel.ScopeLink, l.subnet(p)[0].Addr()
	}
	return r
}

func (k *Kernel) putRule(s *space, o *kernel.Rule) error {
	for _, p := range []netip.Prefix{o.From, o.To} {
		if p.IsValid() && (p != p.Masked() || p.Addr().Is6() != o.V6) {
			return fmt.Errorf("%s is of the other family, or has host bits", p)
		}
	}
	if o.Table <= 0 || o.Priority < 0 {
		return errors.New("a rule looks up a table and has a priority")
	}
	s.rules[ruleOf(o)] = o
	return nil
}

// ruleOf gives a rule's identity, in which all numbers but ours are one.
func ruleOf(o *kernel.Rule) ruleID {
	plain := *o
	plain.Proto = 0
	return ruleID{plain.Key(), o.Proto == 0}
}

// proto gives the number as a listing does.
func (id ruleID) proto(r *kernel.Rule) int {
	if id.ours {
		return 0
	}
	return cmp.Or(r.Proto, protoStatic)
}

// deleteRule deletes a rule of the protocol number that is asked for; of ours, where none is.
func (s *space) deleteRule(o *kernel.Rule, force bool) {
	id := ruleOf(o)
	for _, ours := range []bool{true, false} {
		id.ours = ours
		r := s.rules[id]
		if r != nil && (force || o.Proto == kernel.NoProtocol || o.Proto == id.proto(r)) {
			delete(s.rules, id)
		}
	}
}

func (k *Kernel) putNeigh(s *space, o *kernel.Neigh, update bool) error {
	l := s.links[o.Link]
	if l == nil {
		return kernel.ErrAbsent
	}
	if !o.Addr.IsValid() || o.Addr.Is4In6() || o.Addr.Zone() != "" {
		return errors.New("is no address")
	}
	if o.Proxy && o.MAC != "" {
		return errors.New("a proxy has no hardware address")
	}
	if err := checkMAC(o.MAC); err != nil && !o.Proxy {
		return err
	}
	old := l.neighs[idOf(o)]
	switch {
	case old != nil && o.Holds(old.Neigh): // whoever made it
		return nil
	case old != nil && !old.ours:
		return fmt.Errorf("a neighbour of another owner is in the way: %w", kernel.ErrExists)
	case old != nil && !update:
		return kernel.ErrExists
	case old == nil && update:
		return kernel.ErrAbsent
	}
	l.neighs[idOf(o)] = &neigh{o, true}
	return nil
}

func (k *Kernel) putFDB(s *space, o *kernel.FDB, update bool) error {
	l := s.links[o.Link]
	if l == nil {
		return kernel.ErrAbsent
	}
	if err := checkMAC(o.MAC); err != nil {
		return err
	}
	if o.Dst.IsValid() {
		return l.putVTEP(o, update)
	}
	if o.MAC == kernel.EveryMAC {
		return fmt.Errorf("%q is no address behind a port", o.MAC)
	}
	if l.master == "" {
		return fmt.Errorf("link %q is no port of a bridge: %w", o.Link, kernel.ErrAbsent)
	}
	for _, port := range s.links { // a bridge knows a hardware address behind one port
		for _, f := range port.fdb {
			if port != l && port.master == l.master && f.MAC == o.MAC && !f.Dst.IsValid() {
				return fmt.Errorf("it is behind port %q: %w", port.name, kernel.ErrExists)
			}
		}
	}
	l.fdb[o.Key()] = o
	return nil
}

func (k *Kernel) putHold(o *kernel.Hold) error {
	switch o.Protocol {
	case "tcp", "udp", "sctp":
	default:
		return fmt.Errorf("protocol %q: %w", o.Protocol, kernel.ErrUnsupported)
	}
	if !o.Addr.IsValid() || o.Addr.Is4In6() || o.Port == 0 {
		return errors.New("is no address and port to bind")
	}
	if k.holds[o.Key()] != nil {
		return nil
	}
	at := netip.AddrPortFrom(o.Addr, o.Port)
	if k.bound(o.Protocol, at) {
		return kernel.ErrInUse
	}
	if !o.Addr.IsUnspecified() && !o.Addr.IsLoopback() && !k.spaces[""].local(o.Addr) {
		return fmt.Errorf("the machine has no address %s: %w", o.Addr, kernel.ErrAbsent)
	}
	k.holds[o.Key()] = o
	return nil
}

// bound reports whether a socket is in the way of another one.
func (k *Kernel) bound(protocol string, at netip.AddrPort) bool {
	for _, s := range k.occupied {
		if s.protocol == protocol && clash(s.at, at) {
			return true
		}
	}
	for _, h := range k.holds {
		if h.Protocol == protocol && clash(netip.AddrPortFrom(h.Addr, h.Port), at) {
			return true
		}
	}
	return false
}

// clash reports whether two sockets can't be bound at once; IPv6 ones are bound with IPV6_V6ONLY.
func clash(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && a.Addr().Is4() == b.Addr().Is4() &&
		(a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified())
}
