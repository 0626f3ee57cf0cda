// Package ruleset is the shape of the one nftables table that all features of the daemon share. The rules never change
// while the daemon runs; what varies per network, endpoint or port is an element of a set or map. So one more container
// rewrites no chain, and a packet walks no list.
//
//	prerouting  raw     drop packets from containers to 127.0.0.0/8 (route_localnet is on where ports are published)
//	            dnat    name service, published ports
//	output      dnat    name service at the fixed addresses and published ports, for programs of the machine itself
//	forward     filter  between machines of a cluster only by the way that is meant for it; replies; within a network;
//	                    published; nothing else goes to a network, nothing from an internal one, nor from a network to one
//	                    of Docker's own
//	input       filter  VXLAN is for machines of the cluster only, the name server's port for containers, guests among them
//	postrouting snat    hairpin, from the machine's loopback, masquerade
//
// Networks are told apart by the device group of their interfaces, not by name: a bridge network has one interface, a
// ptp network one per endpoint, and both cost the same few elements per network.
//
// It is pure and imports internal/kernel only.
package ruleset

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

// Name is the table's name; its family is inet.
const Name = "seine"

// The sets and maps of the table.
var (
	// Nets holds the group of every network.
	Nets = &kernel.Set{Name: "nets", Key: []kernel.Type{kernel.TypeGroup}}
	// Internal holds the groups of internal networks.
	Internal = &kernel.Set{Name: "internal", Key: []kernel.Type{kernel.TypeGroup}}
	// Same holds (g, g) for every network, Intra for those whose containers may reach each other.
	Same  = &kernel.Set{Name: "same", Key: []kernel.Type{kernel.TypeGroup, kernel.TypeGroup}}
	Intra = &kernel.Set{Name: "intra", Key: []kernel.Type{kernel.TypeGroup, kernel.TypeGroup}}
	// Apart holds the names of other people's bridges whose containers ours reach by published ports only.
	Apart = &kernel.Set{Name: "apart", Key: []kernel.Type{kernel.TypeIfname}}
	// Masq4 and Masq6 hold the subnets that are masqueraded on the way out.
	Masq4 = &kernel.Set{Name: "masq4", Key: []kernel.Type{kernel.TypeIPv4}, Interval: true}
	Masq6 = &kernel.Set{Name: "masq6", Key: []kernel.Type{kernel.TypeIPv6}, Interval: true}
	// DNS4 and DNS6 hold the addresses at which containers find the name server.
	DNS4 = &kernel.Set{Name: "dns4", Key: []kernel.Type{kernel.TypeIPv4}}
	DNS6 = &kernel.Set{Name: "dns6", Key: []kernel.Type{kernel.TypeIPv6}}
	// Fixed4 and Fixed6 hold the addresses at which the machine's own programs and guests find the name server, too.
	Fixed4 = &kernel.Set{Name: "fixed4", Key: []kernel.Type{kernel.TypeIPv4}}
	Fixed6 = &kernel.Set{Name: "fixed6", Key: []kernel.Type{kernel.TypeIPv6}}
	// Guests holds the names of bridges of others whose containers may ask the name server.
	Guests = &kernel.Set{Name: "guests", Key: []kernel.Type{kernel.TypeIfname}}
	// Self4 and Self6 hold (a, a) for addresses that are published while bridge netfilter is on: what a container sends
	// to its own published port then comes back to it by the bridge, with its own address as the source.
	Self4 = &kernel.Set{Name: "self4", Key: []kernel.Type{kernel.TypeIPv4, kernel.TypeIPv4}}
	Self6 = &kernel.Set{Name: "self6", Key: []kernel.Type{kernel.TypeIPv6, kernel.TypeIPv6}}
	// Port4 and Port6 publish on every address of the machine: protocol, port → address, port.
	Port4 = &kernel.Set{Name: "port4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}}
	Port6 = &kernel.Set{Name: "port6", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv6, kernel.TypeService}}
	// AddrPort4 and AddrPort6 publish on one address: protocol, address, port → address, port.
	AddrPort4 = &kernel.Set{Name: "addrport4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeIPv4, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}}
	AddrPort6 = &kernel.Set{Name: "addrport6", Key: []kernel.Type{kernel.TypeProto, kernel.TypeIPv6, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv6, kernel.TypeService}}
	// Snat4 and Snat6 have the address that a network's containers are hidden behind, by its group.
	Snat4 = &kernel.Set{Name: "snat4", Key: []kernel.Type{kernel.TypeGroup}, Data: []kernel.Type{kernel.TypeIPv4}}
	Snat6 = &kernel.Set{Name: "snat6", Key: []kernel.Type{kernel.TypeGroup}, Data: []kernel.Type{kernel.TypeIPv6}}
	// Direct4 and Direct6 hold the groups of networks whose containers are reached at their own addresses, Routed4 and
	// Routed6 of those that are at published ports only: Open4 and Open6 hold these, as address, protocol, port.
	Direct4 = &kernel.Set{Name: "direct4", Key: []kernel.Type{kernel.TypeGroup}}
	Direct6 = &kernel.Set{Name: "direct6", Key: []kernel.Type{kernel.TypeGroup}}
	Routed4 = &kernel.Set{Name: "routed4", Key: []kernel.Type{kernel.TypeGroup}}
	Routed6 = &kernel.Set{Name: "routed6", Key: []kernel.Type{kernel.TypeGroup}}
	Open4   = &kernel.Set{Name: "open4", Key: []kernel.Type{kernel.TypeIPv4, kernel.TypeProto, kernel.TypeService}}
	Open6   = &kernel.Set{Name: "open6", Key: []kernel.Type{kernel.TypeIPv6, kernel.TypeProto, kernel.TypeService}}
	// Trusted holds an interface and the group of a network: what comes by the one reaches the other's containers.
	Trusted = &kernel.Set{Name: "trusted", Key: []kernel.Type{kernel.TypeIfname, kernel.TypeGroup}}
)

// What machines of a cluster send one another.
var (
	// Cluster4 and Cluster6 hold the subnets of the cluster's networks. Nobody may be there but containers, and what
	// other machines send by the way that Far4 and Far6 say.
	Cluster4 = &kernel.Set{Name: "cluster4", Key: []kernel.Type{kernel.TypeIPv4}, Interval: true}
	Cluster6 = &kernel.Set{Name: "cluster6", Key: []kernel.Type{kernel.TypeIPv6}, Interval: true}
	// Far4 and Far6 lead from a block of addresses on another machine to the chain of its network and the interface by
	// which it is reached (FarChain), where that is not the network's own.
	Far4 = &kernel.Set{Name: "far4", Key: []kernel.Type{kernel.TypeIPv4}, Interval: true, Data: []kernel.Type{kernel.TypeVerdict}}
	Far6 = &kernel.Set{Name: "far6", Key: []kernel.Type{kernel.TypeIPv6}, Interval: true, Data: []kernel.Type{kernel.TypeVerdict}}
	// Tunnels holds (port, identifier) of our VXLAN networks, VTEP4 and VTEP6 the machines that may use them.
	Tunnels = &kernel.Set{Name: "tunnels", Key: []kernel.Type{kernel.TypeService, kernel.TypeVNI}}
	VTEP4   = &kernel.Set{Name: "vtep4", Key: []kernel.Type{kernel.TypeIPv4}}
	VTEP6   = &kernel.Set{Name: "vtep6", Key: []kernel.Type{kernel.TypeIPv6}}
)

// FarChain is the chain that lets a network's packets pass between it and an interface of the machine, and is what Far4
// and Far6 lead to.
func FarChain(network, link string) *kernel.TableChain {
	sum := sha256.Sum256([]byte(network + "\x00" + link))
	return &kernel.TableChain{Table: Name, Chain: kernel.Chain{Name: fmt.Sprintf("far-%x", sum[:8]), Rules: []string{
		fmt.Sprintf("iifname %q meta oifgroup %d accept", link, Group(network)),
		fmt.Sprintf("oifname %q meta iifgroup %d accept", link, Group(network)),
	}}}
}

// Table is the table, with the port that the name server listens on. With relay6 connections to [::1] are left to
// somebody who listens there (internal/loopback).
func Table(dnsPort uint16, relay6 bool) *kernel.Table {
	names := func(from, set4, set6 string) (out []string) {
		for _, to := range []string{"ip daddr @" + set4, "ip6 daddr @" + set6} {
			for _, proto := range []string{"udp", "tcp"} {
				out = append(out, fmt.Sprintf("%s%s %s dport 53 redirect to :%d", from, to, proto, dnsPort))
			}
		}
		return out
	}
	output := names("", "fixed4", "fixed6")
	if relay6 {
		output = append(output, "ip6 daddr ::1 return")
	}
	output = append(output, "jump publish")
	guard := fmt.Sprintf("iifname != @guests meta iifgroup != @nets %%s dport %d drop", dnsPort)
	return &kernel.Table{
		Name: Name,
		Sets: []*kernel.Set{Nets, Internal, Same, Intra, Apart, Masq4, Masq6, DNS4, DNS6, Fixed4, Fixed6, Guests, Self4, Self6, Port4, Port6, AddrPort4, AddrPort6,
			Cluster4, Cluster6, Far4, Far6, Tunnels, VTEP4, VTEP6,
			Snat4, Snat6, Direct4, Direct6, Routed4, Routed6, Open4, Open6, Trusted},
		Chains: []*kernel.Chain{
			{Name: "publish", Rules: []string{
				"dnat ip to meta l4proto . ip daddr . th dport map @addrport4",
				"fib daddr type local dnat ip to meta l4proto . th dport map @port4",
				"dnat ip6 to meta l4proto . ip6 daddr . th dport map @addrport6",
				"fib daddr type local dnat ip6 to meta l4proto . th dport map @port6",
			}},
			{Name: "comes", Rules: []string{
				"ip saddr @cluster4 jump far",
				"ip6 saddr @cluster6 jump far",
			}},
			{Name: "goes", Rules: []string{
				"meta iifgroup != @nets return",
				"ip daddr @cluster4 jump near",
				"ip6 daddr @cluster6 jump near",
			}},
			{Name: "far", Rules: []string{
				"ip saddr vmap @far4",
				"ip6 saddr vmap @far6",
				// Through a published port, which is open to anybody.
				"ct status dnat return",
				"drop",
			}},
			{Name: "near", Rules: []string{
				"ip daddr vmap @far4",
				"ip6 daddr vmap @far6",
				"drop",
			}},
			{Name: "tunnel", Rules: []string{
				"meta iifgroup @nets drop",
				"ip saddr @vtep4 accept",
				"ip6 saddr @vtep6 accept",
				"drop",
			}},
			{Name: "raw", Type: "filter", Hook: "prerouting", Priority: -300, Rules: []string{
				"meta iifgroup @nets ip daddr 127.0.0.0/8 drop",
				// Nothing is to be known of the outer packets: the inner ones are looked at.
				"udp dport . vxlan vni @tunnels fib daddr type local notrack",
			}},
			{Name: "rawout", Type: "filter", Hook: "output", Priority: -300, Rules: []string{
				"udp dport . vxlan vni @tunnels notrack",
			}},
			{Name: "prerouting", Type: "nat", Hook: "prerouting", Priority: -100, Rules: slices.Concat(
				names("meta iifgroup @nets ", "dns4", "dns6"), names("iifname @guests ", "fixed4", "fixed6"), []string{
					// Ports published on 127.0.0.1 are not for neighbours, whatever route_localnet says.
					"ip daddr 127.0.0.0/8 return",
					"jump publish",
				})},
			{Name: "output", Type: "nat", Hook: "output", Priority: -100, Rules: output},
			{Name: "input", Type: "filter", Hook: "input", Priority: 0, Rules: []string{
				"udp dport . vxlan vni @tunnels jump tunnel",
				fmt.Sprintf("iifname != \"lo\" "+guard, "udp"),
				fmt.Sprintf("iifname != \"lo\" "+guard, "tcp"),
			}},
			{Name: "forward", Type: "filter", Hook: "forward", Priority: 0, Rules: []string{
				// What is most and needs no more: every look-up is paid for by every packet.
				"meta iifgroup . meta oifgroup @intra accept",
				// Before what is known: nobody may add to a connection between containers of two machines from beside
				// their way, and nothing of it may leave by another.
				"meta iifgroup != @nets jump comes",
				"meta oifgroup != @nets jump goes",
				"ct state established,related accept",
				"meta iifgroup @internal drop",
				"meta oifgroup @internal drop",
				"meta oifgroup @nets ct status dnat accept",
				"iifname . meta oifgroup @trusted accept",
				"meta nfproto ipv4 meta oifgroup @direct4 accept",
				"meta nfproto ipv6 meta oifgroup @direct6 accept",
				"meta oifgroup @routed4 ip daddr . meta l4proto . th dport @open4 accept",
				"meta oifgroup @routed6 ip6 daddr . meta l4proto . th dport @open6 accept",
				"meta oifgroup @routed4 meta l4proto icmp accept",
				"meta oifgroup @routed6 meta l4proto ipv6-icmp accept",
				"meta oifgroup @nets drop",
				"ct status dnat accept",
				"meta iifgroup @nets oifname @apart drop",
			}},
			{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: 100, Rules: []string{
				// Back into the network it came from: the reply has to pass here to be translated back.
				"ct status dnat meta iifgroup . meta oifgroup @same masquerade",
				"ct status dnat ip saddr . ip daddr @self4 masquerade",
				"ct status dnat ip6 saddr . ip6 daddr @self6 masquerade",
				"meta oifgroup @nets ip saddr 127.0.0.0/8 masquerade",
				"meta oifgroup @nets ip6 saddr ::1 masquerade",
				"meta oifgroup @nets return",
				"ip daddr @cluster4 return",
				"ip6 daddr @cluster6 return",
				"snat ip to meta iifgroup map @snat4",
				"snat ip6 to meta iifgroup map @snat6",
				"ip saddr @masq4 masquerade",
				"ip6 saddr @masq6 masquerade",
			}},
		},
	}
}

// Group is the device group of a network's interfaces: 31 bits of a hash of the name, the highest of them set, which
// keeps clear of the small numbers that people use.
func Group(network string) uint32 {
	sum := sha256.Sum256([]byte(network))
	return binary.BigEndian.Uint32(sum[:])&0x3fffffff | 0x40000000
}

// Element makes an element of one of the sets above.
func Element(set *kernel.Set, item, data, owner string) *kernel.Element {
	return &kernel.Element{Table: Name, Set: set, Item: item, Data: data, Comment: owner}
}

// ByFamily picks between the IPv4 and the IPv6 form of a set.
func ByFamily(a netip.Addr, v4, v6 *kernel.Set) *kernel.Set {
	if a.Is4() {
		return v4
	}
	return v6
}
