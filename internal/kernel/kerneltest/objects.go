package kerneltest

import (
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
)

const alias = kernel.AliasPrefix + "kerneltest"

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func bridge(name string) *kernel.Link {
	return &kernel.Link{Name: name, Type: kernel.Bridge, MTU: 1500, MAC: "02:00:00:00:0b:01", Alias: alias}
}

func ifb(name string) *kernel.Link {
	return &kernel.Link{Name: name, Type: kernel.IFB, MTU: 1500, Alias: alias}
}

// veth is a pair with its main end in the machine's own namespace.
func veth(name, ns, peer string) *kernel.Link {
	return &kernel.Link{Name: name, Type: kernel.Veth, MTU: 1500, MAC: "02:00:00:00:0c:01", Alias: alias,
		Peer: &kernel.Peer{NS: ns, Name: peer, MTU: 1500, MAC: "02:00:00:00:0d:01", Alias: alias}}
}

// with gives a changed copy.
func with[T any](o *T, f func(*T)) *T {
	c := *o
	f(&c)
	return &c
}

// The sets of the table that the cases work on.
var (
	nets = &kernel.Set{Name: "nets", Key: []kernel.Type{kernel.TypeGroup}}
	sub4 = &kernel.Set{Name: "sub4", Key: []kernel.Type{kernel.TypeIPv4}, Interval: true}
	sub6 = &kernel.Set{Name: "sub6", Key: []kernel.Type{kernel.TypeIPv6}, Interval: true}
	rng  = &kernel.Set{Name: "ranges", Key: []kernel.Type{kernel.TypeService}, Interval: true}
	one4 = &kernel.Set{Name: "one4", Key: []kernel.Type{kernel.TypeIPv4}}
	one6 = &kernel.Set{Name: "one6", Key: []kernel.Type{kernel.TypeIPv6}}

	port4 = &kernel.Set{Name: "port4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}}
	port6 = &kernel.Set{Name: "port6", Key: []kernel.Type{kernel.TypeProto, kernel.TypeIPv6, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv6, kernel.TypeService}}
	vnis = &kernel.Set{Name: "vnis", Key: []kernel.Type{kernel.TypeService, kernel.TypeVNI}}
	to4  = &kernel.Set{Name: "to4", Key: []kernel.Type{kernel.TypeIPv4}, Interval: true, Data: []kernel.Type{kernel.TypeVerdict}}
	go4  = &kernel.Set{Name: "go4", Key: []kernel.Type{kernel.TypeIPv4}, Data: []kernel.Type{kernel.TypeVerdict}}
)

const tableName = "seine-kerneltest"

func table() *kernel.Table {
	return &kernel.Table{
		Name: tableName,
		Sets: []*kernel.Set{nets, sub4, sub6, rng, one4, one6, port4, port6, go4, vnis, to4},
		Chains: []*kernel.Chain{
			{Name: "publish", Rules: []string{
				"fib daddr type local dnat ip to meta l4proto . th dport map @port4",
				"dnat ip6 to meta l4proto . ip6 daddr . th dport map @port6",
			}},
			{Name: "prerouting", Type: "nat", Hook: "prerouting", Priority: -100, Rules: []string{"jump publish"}},
			{Name: "forward", Type: "filter", Hook: "forward", Priority: 0, Rules: []string{
				"ct state established,related accept",
				"ip daddr vmap @to4",
				"udp dport . vxlan vni @vnis drop",
				"meta oifgroup @nets drop",
			}},
			{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: 100, Rules: []string{
				"ip saddr @sub4 masquerade",
				"ip6 saddr @sub6 masquerade",
			}},
		},
	}
}

func element(set *kernel.Set, item, data string) *kernel.Element {
	return &kernel.Element{Table: tableName, Set: set, Item: item, Data: data, Comment: "kerneltest"}
}

func chain(name string, rules ...string) *kernel.TableChain {
	return &kernel.TableChain{Table: tableName, Chain: kernel.Chain{Name: name, Rules: rules}}
}

// everyKind gives an object of each kind that can be in a namespace; a veth goes from ns to peerNS.
func everyKind(ns, peerNS string) []kernel.Object {
	l := veth("sv-a", peerNS, "eth0")
	l.NS = ns
	t := table()
	t.NS = ns
	c := chain("extra", "drop")
	c.NS = ns
	e := element(port4, "tcp . 8080", "10.1.0.2 . 80")
	e.NS = ns
	b := bridge("sn-a")
	b.NS = ns
	p := tap("sv-t")
	p.NS = ns
	return []kernel.Object{
		t, c, e, l, b, p,
		&kernel.Attrs{NS: ns, Link: "sn-a", MTU: 1400, Before: &kernel.Attrs{MTU: 1500}},
		&kernel.Sysctl{NS: ns, Name: "net/ipv4/conf/sn-a/route_localnet", Value: "1", Before: "0"},
		&kernel.Qdisc{NS: ns, Link: "sn-a", Type: "tbf", Parent: "root", Rate: 1250000, Burst: 15000, Limit: 30000},
		&kernel.Redirect{NS: ns, Link: "sn-a", To: "sv-a"},
		&kernel.Addr{NS: ns, Link: "sn-a", Prefix: pfx("10.1.0.1/24")},
		&kernel.Addr{NS: ns, Link: "sn-a", Prefix: pfx("fd00:1::1/64")},
		&kernel.LinkUp{NS: ns, Link: "sn-a"},
		&kernel.Rule{NS: ns, Priority: 100, From: pfx("10.1.0.0/24"), Table: 100},
		&kernel.Rule{NS: ns, V6: true, Priority: 100, From: pfx("fd00:1::/64"), Table: 100},
		&kernel.Route{NS: ns, Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "sn-a"},
		&kernel.Route{NS: ns, Dst: pfx("fd00:9::/64"), Via: ip("fd00:1::9"), Link: "sn-a", Metric: 1024},
		&kernel.Nexthop{NS: ns, ID: 1 << 31, Via: ip("10.1.0.9"), Link: "sn-a"},
		&kernel.Route{NS: ns, Dst: pfx("10.8.0.0/24"), Nexthop: 1 << 31},
		&kernel.Feature{NS: ns, Link: "sn-a", Name: "tx-checksum-ip-generic"},
		&kernel.WireGuard{NS: ns, Link: "sx-w", PrivateKey: secret(1), Port: 51820},
		&kernel.WGPeer{NS: ns, Link: "sx-w", PublicKey: kernel.WGKey{9}},
		&kernel.Neigh{NS: ns, Link: "sn-a", Addr: ip("10.1.0.8"), Proxy: true},
		&kernel.Neigh{NS: ns, Link: "sn-a", Addr: ip("10.1.0.9"), MAC: "02:00:00:00:00:09"},
		&kernel.Neigh{NS: ns, Link: "sn-a", Addr: ip("fd00:1::9"), MAC: "02:00:00:00:00:09"},
		&kernel.FDB{NS: ns, Link: "sv-a", MAC: "02:00:00:00:00:0a"},
	}
}
