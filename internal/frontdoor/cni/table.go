package cni

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// tableName is the nftables table (family inet) of all plugins. Its shape is fixed; what belongs to an attachment is an
// element of a set or map with the attachment's mark as comment, and what belongs to a subnet a chain that is named
// after what is in it.
//
// Whoever changes a rule or a set below gives the sets that it uses new names: elements of older versions of the program
// live in them, and a plugin that finds its sets looks no further.
//
//	raw          drop what comes from containers for 127.0.0.0/8, where route_localnet let it in
//	prerouting   published ports: on one address, on any address of the machine
//	output       the same for programs of the machine
//	postrouting  published: hairpin and loopback by the container's chain; then ipMasq by its subnet's
//
// The chains of the plugin firewall are in walltable.go.
const tableName = "seine_cni"

var (
	inet4 = []kernel.Type{kernel.TypeIPv4}
	inet6 = []kernel.Type{kernel.TypeIPv6}

	verdict = []kernel.Type{kernel.TypeVerdict}

	// masq4 and masq6 jump from a container's address to the chain of its subnet.
	masq4 = &kernel.Set{Name: "masq4", Key: inet4, Data: []kernel.Type{kernel.TypeVerdict}}
	masq6 = &kernel.Set{Name: "masq6", Key: inet6, Data: []kernel.Type{kernel.TypeVerdict}}
	// snat4 and snat6 jump likewise for connections to its published ports. Every attachment that publishes has one
	// element here for each of its addresses, so that DEL can tell that there is more to find.
	snat4 = &kernel.Set{Name: "snat4", Key: inet4, Data: []kernel.Type{kernel.TypeVerdict}}
	snat6 = &kernel.Set{Name: "snat6", Key: inet6, Data: []kernel.Type{kernel.TypeVerdict}}
	// port4 and port6 hold what is published on any address: protocol, port → address, port.
	port4 = &kernel.Set{Name: "port4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}}
	port6 = &kernel.Set{Name: "port6", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv6, kernel.TypeService}}
	// host4 and host6 hold what is published on one address: protocol, address, port → address, port.
	host4 = &kernel.Set{Name: "host4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeIPv4, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}}
	host6 = &kernel.Set{Name: "host6", Key: []kernel.Type{kernel.TypeProto, kernel.TypeIPv6, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv6, kernel.TypeService}}
	// when4, when6, whenhost4 and whenhost6 go, for those of the ports above that have conditions, to the chain that looks
	// at these first: protocol, port; protocol, address, port.
	when4     = &kernel.Set{Name: "when4", Key: port4.Key, Data: verdict}
	when6     = &kernel.Set{Name: "when6", Key: port6.Key, Data: verdict}
	whenhost4 = &kernel.Set{Name: "whenhost4", Key: host4.Key, Data: verdict}
	whenhost6 = &kernel.Set{Name: "whenhost6", Key: host6.Key, Data: verdict}
	// localnet holds the interfaces that route_localnet was set on.
	localnet = &kernel.Set{Name: "localnet", Key: []kernel.Type{kernel.TypeIfname}}
)

// Chains of the table that snat elements jump to.
const (
	chainKeep = "keep" // leave the source as it is
	chainAll  = "all"  // masquerade whatever the source is
)

// The rules that lead to published ports.
const (
	toHost4 = "dnat ip to meta l4proto . ip daddr . th dport map @host4"
	toPort4 = "fib daddr type local dnat ip to meta l4proto . th dport map @port4"
	toHost6 = "dnat ip6 to meta l4proto . ip6 daddr . th dport map @host6"
	toPort6 = "fib daddr type local dnat ip6 to meta l4proto . th dport map @port6"
)

// table is the table without what comes and goes.
func table() *kernel.Table {
	return &kernel.Table{
		Name: tableName,
		Sets: []*kernel.Set{masq4, masq6, snat4, snat6, port4, port6, host4, host6, when4, when6, whenhost4, whenhost6, localnet,
			pass4, pass6, policied, sameBridge, isolated},
		Chains: []*kernel.Chain{
			{Name: chainKeep},
			{Name: chainAll, Rules: []string{"masquerade"}},
			{Name: "publish", Rules: []string{
				"meta l4proto . ip daddr . th dport vmap @whenhost4",
				toHost4,
				"fib daddr type local meta nfproto ipv4 meta l4proto . th dport vmap @when4",
				toPort4,
				"meta l4proto . ip6 daddr . th dport vmap @whenhost6",
				toHost6,
				"fib daddr type local meta nfproto ipv6 meta l4proto . th dport vmap @when6",
				toPort6,
			}},
			{Name: "raw", Type: "filter", Hook: "prerouting", Priority: -300, Rules: []string{
				"iifname @localnet ip daddr 127.0.0.0/8 drop",
			}},
			{Name: "prerouting", Type: "nat", Hook: "prerouting", Priority: -100, Rules: []string{
				// What is published on 127.0.0.1 is for the machine alone.
				"ip daddr 127.0.0.0/8 return",
				"jump publish",
			}},
			{Name: "output", Type: "nat", Hook: "output", Priority: -100, Rules: []string{"jump publish"}},
			{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: 100, Rules: []string{
				"ct status dnat ip daddr vmap @snat4",
				"ct status dnat ip6 daddr vmap @snat6",
				"ip saddr vmap @masq4",
				"ip6 saddr vmap @masq6",
			}},
		},
	}
}

// byContent makes a chain whose name follows from its rules: who finds it by name knows what is in it, and all networks
// that need the same share it.
func byContent(prefix string, rules ...string) *kernel.TableChain {
	return &kernel.TableChain{Table: tableName,
		Chain: kernel.Chain{Name: prefix + short(12, rules...), Rules: rules}}
}

// masqChain masquerades what leaves a container's subnet, multicast left out.
func masqChain(addr netip.Prefix) *kernel.TableChain {
	daddr, multicast := "ip daddr ", "224.0.0.0/4"
	if addr.Addr().Is6() {
		daddr, multicast = "ip6 daddr ", "ff00::/8"
	}
	return byContent("masq-", daddr+addr.Masked().String()+" return", daddr+multicast+" return", "masquerade")
}

// snatChain masquerades what reaches a published port from where the container would answer past the machine: from its
// own subnet, and from the machine's loopback.
func snatChain(addr netip.Prefix) *kernel.TableChain {
	saddr, loopback := "ip saddr ", "127.0.0.0/8"
	if addr.Addr().Is6() {
		saddr, loopback = "ip6 saddr ", "::1"
	}
	return byContent("snat-", saddr+addr.Masked().String()+" masquerade", saddr+loopback+" masquerade")
}

// whenChain leads to published ports where one of the alternatives holds. Who is sent there does not come back: a port
// whose conditions don't hold is not published.
func whenChain(v4 bool, alternatives []string) *kernel.TableChain {
	to := []string{toHost6, toPort6}
	if v4 {
		to = []string{toHost4, toPort4}
	}
	var rules []string
	for _, a := range alternatives {
		for _, t := range to {
			rules = append(rules, a+" "+t)
		}
	}
	return byContent("when-", rules...)
}

// whenElement sends those who come for the port of an element to a chain of conditions.
func whenElement(e *kernel.Element, chain string) *kernel.Element {
	set := map[*kernel.Set]*kernel.Set{port4: when4, port6: when6, host4: whenhost4, host6: whenhost6}[e.Set]
	return element(set, e.Item, "goto "+chain, e.Comment)
}

func element(set *kernel.Set, item, data, comment string) *kernel.Element {
	return &kernel.Element{Table: tableName, Set: set, Item: item, Data: data, Comment: comment}
}

func pickSet(a netip.Addr, v4, v6 *kernel.Set) *kernel.Set {
	if a.Is4() {
		return v4
	}
	return v6
}

// masquerade gives the chains and elements for addresses of an attachment.
func masquerade(ips []IP, mark string) (chains, elements []kernel.Object) {
	for _, ip := range ips {
		c := masqChain(ip.Address)
		chains = append(chains, c)
		elements = append(elements, masqElement(ip.Address.Addr(), "jump "+c.Chain.Name, mark))
	}
	return chains, elements
}

func masqElement(a netip.Addr, data, mark string) *kernel.Element {
	return element(pickSet(a, masq4, masq6), a.String(), data, mark)
}

// withFlush gives a listed element what a listing does not tell: the connections to end when it goes.
func withFlush(e *kernel.Element) *kernel.Element {
	switch e.Set.Name {
	case port4.Name, port6.Name, host4.Name, host6.Name:
	default:
		return e
	}
	words := strings.Split(e.Item, " . ")
	port, err := strconv.ParseUint(words[len(words)-1], 10, 16)
	if err != nil || words[0] != "udp" {
		return e
	}
	out := *e
	out.Flush = &kernel.Flow{Protocol: "udp", Port: uint16(port)}
	if len(words) == 3 {
		out.Flush.Addr, _ = netip.ParseAddr(words[1])
	}
	return &out
}

// tables gives what a kernel has to hold for some chains: the table goes along.
func tables(chains []kernel.Object) []kernel.Object {
	if len(chains) == 0 {
		return nil
	}
	return append([]kernel.Object{table()}, chains...)
}

// describe names an element of a port as people write it.
func describe(e *kernel.Element) string {
	words := strings.Split(e.Item, " . ")
	if len(words) == 3 {
		return fmt.Sprintf("%s port %s on %s", words[0], words[2], words[1])
	}
	return fmt.Sprintf("%s port %s", words[0], words[len(words)-1])
}
