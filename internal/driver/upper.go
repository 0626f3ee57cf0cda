package driver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// OptHost is the option that gives the machine an interface of its own on a network whose parent it can't be reached by.
const OptHost = "host"

// HostHelp says what OptHost is.
const HostHelp = "true, or ADDRESS[,ADDRESS]: the machine's own on the network, by an interface of its own: containers and machine reach each other, and names are resolved there"

// Upper is what the drivers have in common whose interfaces are made on a link of the machine, the parent:
//
//	machine                            sandbox
//	eth0 ──┬───────────────────────────║ eth0 (addresses; default by the gateway)
//	       └ sn-… (host: address/32; route ADDRESS/32 of every endpoint)
//
// The kernel lets no packet pass between the parent itself and what is made on it, so the machine reaches the network's
// containers only by such an interface of its own.
type Upper struct {
	// Link has what is the same for all interfaces of a network: its type, mode and the like.
	Link kernel.Link
	// SharedMAC says that they have the parent's hardware address.
	SharedMAC bool
	// DevRoute makes the interface itself the way out, without a gateway.
	DevRoute bool
}

// HostAddrs gives the machine's own addresses on a network with OptHost, as Complete wrote them.
func HostAddrs(n api.Network) []netip.Addr {
	var out []netip.Addr
	for s := range strings.SplitSeq(n.Options[OptHost], ",") {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// Complete checks a network with a parent, or one with none that gets a dummy instead and leads nowhere then. noHost,
// where it is not "", says why the network can't have OptHost. wide are the options that the kernel keeps per parent.
func (u Upper) Complete(n *api.Network, env Env, noHost string, wide ...string) error {
	noun := api.NetworkNoun(n.Name)
	if n.Masquerade != nil && *n.Masquerade {
		return api.FieldError(noun, "masquerade", true, fmt.Sprintf("has no meaning for driver %q", n.Driver), "none: the machine carries none of its packets")
	}
	p := ParentOf(*n)
	if _, ok := n.Options[OptParent]; ok && p.Link == "" {
		return api.FieldError(noun, "options."+OptParent, "", "is empty", "the name of an interface, or no such option for a network that leads nowhere")
	}
	if p.Link == "" {
		n.Internal = true
	} else if err := p.check(n, env, wide...); err != nil {
		return err
	}
	if l := env.Facts.Link(p.Link); l != nil {
		reserve(n, l.Addrs...)
	}
	return completeHost(n, noHost)
}

// reserve keeps addresses from being given out.
func reserve(n *api.Network, addrs ...netip.Prefix) {
	for _, a := range addrs {
		for i := range n.Subnets {
			s := &n.Subnets[i]
			if s.Prefix.Contains(a.Addr()) && a.Addr() != s.Gateway && !slices.Contains(s.Reserved, a.Addr()) {
				s.Reserved = append(slices.Clone(s.Reserved), a.Addr())
			}
		}
	}
}

// completeHost writes addresses into OptHost: those that were asked for, or the last of each subnet.
func completeHost(n *api.Network, noHost string) error {
	noun, asked := api.NetworkNoun(n.Name), n.Options[OptHost]
	bad := func(msg, want string) error { return api.FieldError(noun, "options."+OptHost, asked, msg, want) }
	var addrs []netip.Addr
	switch {
	case asked == "" || asked == "false":
		delete(n.Options, OptHost)
		return nil
	case noHost != "":
		return bad(noHost, "none, or another mode")
	case asked == "true":
		for _, s := range n.Subnets {
			addrs = append(addrs, lastFree(s))
		}
	default:
		for text := range strings.SplitSeq(asked, ",") {
			a, err := netip.ParseAddr(text)
			i := slices.IndexFunc(n.Subnets, func(s api.Subnet) bool { return err == nil && s.Prefix.Contains(a) })
			if i < 0 || a == n.Subnets[i].Gateway || slices.ContainsFunc(addrs, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
				return bad("names no free address of the network", "true, or at most one address of each of its subnets")
			}
			addrs = append(addrs, a)
		}
	}
	var text []string
	for _, a := range addrs {
		text = append(text, a.String())
		reserve(n, netip.PrefixFrom(a, a.BitLen()))
	}
	n.Options[OptHost] = strings.Join(text, ",")
	return nil
}

// lastFree is the last host address of a subnet, or of its range, that is neither its gateway nor reserved. The last 128
// of an IPv6 subnet are anycast addresses (RFC 2526).
func lastFree(s api.Subnet) netip.Addr {
	r := s.Prefix
	if s.Range.IsValid() {
		r = s.Range
	}
	a := api.LastAddr(r)
	for range 128 {
		if a.Is6() && r.Bits() <= 120 {
			a = a.Prev()
		}
	}
	for a == api.LastAddr(s.Prefix) && a.Is4() || a == s.Gateway || slices.Contains(s.Reserved, a) {
		a = a.Prev()
	}
	return a
}

// Network gives the parent, where it is ours to make, and the machine's own interface.
func (u Upper) Network(n api.Network, f kernel.Facts) []kernel.Object {
	p := ParentOf(n)
	out := p.Objects(f)
	if p.Link == "" {
		name := parentName(n)
		out = append(out, &kernel.Link{Name: name, Type: kernel.Dummy, MTU: n.MTU, Alias: Alias(NetworkOwner(n.Name))}, &kernel.LinkUp{Link: name})
	}
	addrs := HostAddrs(n)
	if len(addrs) == 0 {
		return out
	}
	l := u.Link
	l.Name, l.Parent, l.MTU, l.Group, l.Alias = HostName(n.Name), &kernel.Parent{Name: parentName(n)}, n.MTU, ruleset.Group(n.Name), Alias(NetworkOwner(n.Name))
	if !u.SharedMAC {
		l.MAC = MAC(addrs[0])
	}
	out = append(out, &l, &kernel.LinkUp{Link: l.Name})
	if n.Subnet6() != nil {
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + l.Name + "/disable_ipv6", Value: "0"})
		out = append(out, IPv6("", l.Name)...)
	}
	for _, a := range addrs {
		// No route to the subnet: the parent may have one, to the wire's other hosts.
		out = append(out, &kernel.Addr{Link: l.Name, Prefix: netip.PrefixFrom(a, a.BitLen()), NoRoute: true})
	}
	quiet := false
	n.Masquerade = &quiet
	return append(out, ElementsAt(n, addrs)...)
}

// Objects gives the interface in the sandbox with addresses and routes, and the machine's way to it.
func (u Upper) Objects(n api.Network, e api.Endpoint) []kernel.Object {
	l := u.Link
	l.NS, l.Name, l.Parent, l.MTU, l.Alias = e.Sandbox.Netns, e.Sandbox.Interface, &kernel.Parent{Name: parentName(n)}, n.MTU, Alias(EndpointOwner(n.Name, e.Name))
	if !u.SharedMAC {
		l.MAC = e.MAC
	}
	var out []kernel.Object
	for _, own := range HostAddrs(n) {
		if a := e.Address(own.Is4()); a.IsValid() {
			out = append(out, &kernel.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Link: HostName(n.Name), Src: own, Scope: kernel.ScopeLink, Metric: firstMetric(a)})
		}
	}
	if e.Sandbox.Handoff {
		l.Taken = e.Sandbox.Taken
		return append(out, &l)
	}
	out = append(out, &l)
	out = append(out, Inside(n, e)...)
	out = append(out, Addresses(n, e)...)
	for _, s := range n.Subnets {
		conf, name := "ipv4", "arp_notify"
		if s.Prefix.Addr().Is6() {
			conf, name = "ipv6", "ndisc_notify"
		}
		// Neighbours on the wire may remember who had the address before.
		out = append(out, &kernel.Sysctl{NS: l.NS, Name: "net/" + conf + "/conf/" + l.Name + "/" + name, Value: "1"})
	}
	if !u.DevRoute {
		return append(out, DefaultRoutes(n, e)...)
	}
	return append(out, defaultRoutes(n, e, func(api.Subnet) netip.Addr { return netip.Addr{} })...)
}

// parentName is the link that a network's interfaces are made on.
func parentName(n api.Network) string {
	if p := ParentOf(n); p.Link != "" {
		return p.Link
	}
	return PortName(kernel.ParentPrefix, n.Name, "")
}
