package kernel_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

var (
	portMap = &kernel.Set{Name: "port4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService},
		Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}}
	full = &kernel.Link{Name: "sv-a", Type: kernel.Veth, MTU: 1400, MAC: "02:00:00:00:00:01", Alias: "seine:x", Master: "sn-a", Group: 7,
		Port: &kernel.Port{Hairpin: true, Isolated: true}, Promisc: true,
		Peer: &kernel.Peer{NS: "/run/netns/a", Name: "eth0", MTU: 1300, MAC: "02:00:00:00:00:02", Alias: "seine:x"}}
	macvlan      = &kernel.Link{NS: "/a", Name: "net1", Type: kernel.Macvlan, Parent: &kernel.Parent{Name: "eth0"}, Mode: "bridge", BCQueueLen: 5}
	vlan         = &kernel.Link{Name: "eth0.7", Type: kernel.VLAN, Parent: &kernel.Parent{Name: "eth0"}, VLAN: 7}
	owner, other = uint32(1000), uint32(0)
	tap          = &kernel.Link{NS: "/a", Name: "tap0", Type: kernel.Tap, Access: &kernel.Access{Owner: &owner, Group: &other, MultiQueue: true, Context: "c"}}
	moved        = &kernel.Link{NS: "/a", Name: "net1", Home: "eth1"}
	tbl          = &kernel.Table{Name: "seine", Sets: []*kernel.Set{portMap}, Chains: []*kernel.Chain{
		{Name: "forward", Type: "filter", Hook: "forward", Rules: []string{"drop"}}, {Name: "publish", Rules: []string{"accept", "drop"}}}}
)

var (
	on, queue, blue = true, 2000, "blue"
	tuned           = &kernel.Attrs{NS: "/a", Link: "eth0", MAC: "02:00:00:00:00:01", MTU: 1400, TxQLen: &queue, Promisc: &on, AllMulti: new(bool), Master: &blue}
)

// with gives a changed copy.
func with[T any](o *T, f func(*T)) *T {
	c := *o
	f(&c)
	return &c
}

var (
	secret = kernel.NewSecret(kernel.WGKey{0xff, 31: 0xff}, true)
	wgPeer = &kernel.WGPeer{Link: "w", PublicKey: kernel.WGKey{7}, PresharedKey: secret, Endpoint: netip.MustParseAddrPort("192.0.2.2:9"), Keepalive: 25,
		AllowedIPs: []netip.Prefix{prefix("10.2.0.0/24"), prefix("fd00:2::/64")}}
	vxlan = &kernel.Link{Name: "x", Type: kernel.VXLAN, Tunnel: &kernel.Tunnel{VNI: 1, Port: 4789}}
)

// TestSecret: no way of writing a private key down shows it.
func TestSecret(t *testing.T) {
	shown := secret.Reveal()
	if shown[0] != 0xf8 || shown[31] != 0x7f {
		t.Errorf("the key is not clamped: %x", shown)
	}
	conf := &kernel.WireGuard{Link: "w", PrivateKey: secret}
	j, err := json.Marshal(struct{ A, B any }{conf, wgPeer})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(j), fmt.Sprint(secret), fmt.Sprintf("%v %+v %#v %s", *conf, *conf, *conf, conf), fmt.Sprintf("%+v %#v", *wgPeer, *wgPeer)} {
		for _, bad := range []string{shown.String(), fmt.Sprintf("%x", shown[:4]), fmt.Sprint(shown[0]) + " ", "0xf8"} {
			if strings.Contains(s, bad) {
				t.Errorf("%q shows the key as %q", s, bad)
			}
		}
	}
	a, b := kernel.NewSecret(kernel.WGKey{8}, true), kernel.NewSecret(kernel.WGKey{16}, true)
	pa, err := a.Public()
	pb, err2 := b.Public()
	if err != nil || err2 != nil || pa == pb || pa == (kernel.WGKey{}) {
		t.Errorf("public keys: %s %v, %s %v", pa, err, pb, err2)
	}
	if back, err := kernel.ParseWGKey(pa.String()); err != nil || back != pa {
		t.Errorf("%s is read as %s, %v", pa, back, err)
	}
	for _, bad := range []string{"", "AAAA", strings.Repeat("x", 44), pa.String() + "AAAA"} {
		if _, err := kernel.ParseWGKey(bad); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
}

func vlans(v ...kernel.VLANRange) *kernel.PortVLANs { return &kernel.PortVLANs{Link: "a", VLANs: v} }

func TestHolds(t *testing.T) {
	route := &kernel.Route{Dst: prefix("10.9.0.0/24"), Via: addr("10.1.0.1"), Link: "eth0", Src: addr("10.1.0.2"), MTU: 1400, AdvMSS: 1300}
	route6 := &kernel.Route{Dst: prefix("fd00:9::/64"), Via: addr("fd00::1"), Link: "eth0", Metric: 1024}
	tbf := &kernel.Qdisc{Link: "a", Type: "tbf", Parent: "root", Rate: 1000, Burst: 100, Limit: 200}
	elem := &kernel.Element{Table: "seine", Set: portMap, Item: "tcp . 80", Data: "10.1.0.2 . 80", Comment: "a"}
	tests := []struct {
		name         string
		want, actual kernel.Object
		holds        bool
	}{
		{"link, itself", full, full, true},
		{"link, nothing asked", &kernel.Link{Name: "sv-a", Type: kernel.Veth, Master: "sn-a"}, full, true},
		{"link, no master asked", &kernel.Link{Name: "sv-a", Type: kernel.Veth}, full, false},
		{"link, type", &kernel.Link{Name: "sv-a", Type: kernel.Bridge, Master: "sn-a"}, full, false},
		{"link, mtu", full, with(full, func(l *kernel.Link) { l.MTU = 1500 }), false},
		{"link, mac", full, with(full, func(l *kernel.Link) { l.MAC = "02:00:00:00:00:09" }), false},
		{"link, alias", full, with(full, func(l *kernel.Link) { l.Alias = "" }), false},
		{"link, group", full, with(full, func(l *kernel.Link) { l.Group = 0 }), false},
		{"link, promisc", full, with(full, func(l *kernel.Link) { l.Promisc = false }), false},
		{"link, promisc not asked", with(full, func(l *kernel.Link) { l.Promisc = false }), full, true},
		{"link, port flags", full, with(full, func(l *kernel.Link) { l.Port = &kernel.Port{Hairpin: true} }), false},
		{"link, no port", full, with(full, func(l *kernel.Link) { l.Port = nil }), false},
		{"link, peer mtu", full, with(full, func(l *kernel.Link) { l.Peer = with(l.Peer, func(p *kernel.Peer) { p.MTU = 9 }) }), false},
		{"link, peer mac", full, with(full, func(l *kernel.Link) { l.Peer = with(l.Peer, func(p *kernel.Peer) { p.MAC = "" }) }), false},
		{"link, peer namespace", full, with(full, func(l *kernel.Link) { l.Peer = with(l.Peer, func(p *kernel.Peer) { p.NS = "" }) }), false},
		{"link, no peer", full, with(full, func(l *kernel.Link) { l.Peer = nil }), false},
		{"link, peer not asked", with(full, func(l *kernel.Link) { l.Peer = nil }), full, true},
		{"link, on its parent", macvlan, macvlan, true},
		{"link, parent", macvlan, with(macvlan, func(l *kernel.Link) { l.Parent = &kernel.Parent{Name: "eth1"} }), false},
		{"link, parent's namespace", macvlan, with(macvlan, func(l *kernel.Link) { l.Parent = &kernel.Parent{NS: "/a", Name: "eth0"} }), false},
		{"link, no parent", macvlan, with(macvlan, func(l *kernel.Link) { l.Parent = nil }), false},
		{"link, parent not asked", with(macvlan, func(l *kernel.Link) { l.Parent = nil }), macvlan, true},
		{"link, mode", macvlan, with(macvlan, func(l *kernel.Link) { l.Mode = "vepa" }), false},
		{"link, queue length", macvlan, with(macvlan, func(l *kernel.Link) { l.BCQueueLen = 1000 }), false},
		{"link, nothing asked of a macvlan", &kernel.Link{Type: kernel.Macvlan}, macvlan, true},
		{"link, vlan", vlan, with(vlan, func(l *kernel.Link) { l.VLAN = 0 }), false},
		{"link, vlan 0", with(vlan, func(l *kernel.Link) { l.VLAN = 0 }), vlan, false},
		{"link, tap", tap, with(tap, func(l *kernel.Link) {
			o, g := owner, other
			l.Access = &kernel.Access{Owner: &o, Group: &g, MultiQueue: true}
		}), true},
		{"link, owner", tap, with(tap, func(l *kernel.Link) { l.Access = &kernel.Access{Owner: &other, Group: &other, MultiQueue: true} }), false},
		{"link, no owner", tap, with(tap, func(l *kernel.Link) { l.Access = &kernel.Access{Group: &other, MultiQueue: true} }), false},
		{"link, owner not asked", with(tap, func(l *kernel.Link) { l.Access = &kernel.Access{Group: &other, MultiQueue: true} }), tap, false},
		{"link, queues", tap, with(tap, func(l *kernel.Link) { l.Access = &kernel.Access{Owner: &owner, Group: &other} }), false},
		{"link, no access", tap, with(tap, func(l *kernel.Link) { l.Access = nil }), false},
		{"link, access not asked", with(tap, func(l *kernel.Link) { l.Access = nil }), tap, true},
		{"link, moved", moved, with(moved, func(l *kernel.Link) { l.Type, l.MTU, l.Alias = kernel.Veth, 1500, "eth1" }), true},
		{"link, moved from elsewhere", moved, with(moved, func(l *kernel.Link) { l.Home = "eth2" }), false},
		{"link, not moved", moved, with(moved, func(l *kernel.Link) { l.Home = "" }), false},
		{"link, no link", full, &kernel.LinkUp{Link: "sv-a"}, false},
		{"link, VLAN filtering", &kernel.Link{Name: "b", Type: kernel.Bridge, VLANFiltering: true}, &kernel.Link{Name: "b", Type: kernel.Bridge}, false},
		{"link, VLAN filtering not asked", &kernel.Link{Name: "b", Type: kernel.Bridge}, &kernel.Link{Name: "b", Type: kernel.Bridge, VLANFiltering: true}, true},
		{"vlans, in other ranges", vlans(kernel.VLANRange{First: 3, Last: 5}), vlans(kernel.VLANRange{First: 5, Last: 5}, kernel.VLANRange{First: 3, Last: 4}), true},
		{"vlans, one missing", vlans(kernel.VLANRange{First: 3, Last: 5}), vlans(kernel.VLANRange{First: 3, Last: 4}), false},
		{"vlans, one more", vlans(kernel.VLANRange{First: 3, Last: 4}), vlans(kernel.VLANRange{First: 3, Last: 5}), false},
		{"vlans, one more is kept", with(vlans(kernel.VLANRange{First: 3, Last: 4}), func(p *kernel.PortVLANs) { p.Keep = true }), vlans(kernel.VLANRange{First: 3, Last: 5}), true},
		{"vlans, tagged", vlans(kernel.VLANRange{First: 3, Last: 3}), vlans(kernel.VLANRange{First: 3, Last: 3, Untagged: true}), false},
		{"vlans, not the port's own", vlans(kernel.VLANRange{First: 3, Last: 3, Untagged: true}), vlans(kernel.VLANRange{First: 3, Last: 3, Untagged: true, PVID: true}), false},
		{"link, table", &kernel.Link{Name: "a", Type: kernel.VRF, Table: 1}, &kernel.Link{Name: "a", Type: kernel.VRF, Table: 2}, false},
		{"link, table not asked", &kernel.Link{Name: "a", Type: kernel.VRF}, &kernel.Link{Name: "a", Type: kernel.VRF, Table: 2}, true},
		{"attributes, itself", tuned, tuned, true},
		{"attributes, nothing asked", &kernel.Attrs{Link: "a"}, tuned, true},
		{"attributes, before is not asked", with(tuned, func(a *kernel.Attrs) { a.Before = &kernel.Attrs{MTU: 9} }), tuned, true},
		{"attributes, mac", tuned, with(tuned, func(a *kernel.Attrs) { a.MAC = "02:00:00:00:00:09" }), false},
		{"attributes, mtu", tuned, with(tuned, func(a *kernel.Attrs) { a.MTU = 1500 }), false},
		{"attributes, queue", tuned, with(tuned, func(a *kernel.Attrs) { a.TxQLen = new(int) }), false},
		{"attributes, promisc", tuned, with(tuned, func(a *kernel.Attrs) { a.Promisc = new(bool) }), false},
		{"attributes, allmulti", tuned, with(tuned, func(a *kernel.Attrs) { a.AllMulti = &on }), false},
		{"attributes, master", tuned, with(tuned, func(a *kernel.Attrs) { a.Master = new(string) }), false},
		{"up", &kernel.LinkUp{Link: "a", Keep: true}, &kernel.LinkUp{Link: "a"}, true},
		{"sysctl", &kernel.Sysctl{Name: "a", Value: "1", Before: "0"}, &kernel.Sysctl{Name: "a", Value: "1"}, true},
		{"sysctl, value", &kernel.Sysctl{Name: "a", Value: "1"}, &kernel.Sysctl{Name: "a", Value: "0"}, false},
		{"qdisc", tbf, with(tbf, func(*kernel.Qdisc) {}), true},
		{"qdisc, rate", tbf, with(tbf, func(q *kernel.Qdisc) { q.Rate++ }), false},
		{"qdisc, burst", tbf, with(tbf, func(q *kernel.Qdisc) { q.Burst++ }), false},
		{"redirect", &kernel.Redirect{Link: "a", To: "b"}, &kernel.Redirect{Link: "a", To: "b"}, true},
		{"redirect, to", &kernel.Redirect{Link: "a", To: "b"}, &kernel.Redirect{Link: "a", To: "c"}, false},
		{"qdisc, type", &kernel.Qdisc{Link: "a", Type: "clsact"}, &kernel.Qdisc{Link: "a", Type: "ingress"}, false},
		{"address", &kernel.Addr{Link: "a", Prefix: prefix("10.1.0.1/24"), NoRoute: true}, &kernel.Addr{Link: "a", Prefix: prefix("10.1.0.1/24")}, true},
		{"route", route, with(route, func(r *kernel.Route) { r.OnLink = true }), true},
		{"route, gateway", route, with(route, func(r *kernel.Route) { r.Via = netip.Addr{} }), false},
		{"route, link", route, with(route, func(r *kernel.Route) { r.Link = "eth1" }), false},
		{"route, source", route, with(route, func(r *kernel.Route) { r.Src = netip.Addr{} }), false},
		{"route, source not asked", with(route, func(r *kernel.Route) { r.Src = netip.Addr{} }), route, true},
		{"route, mtu", route, with(route, func(r *kernel.Route) { r.MTU = 0 }), false},
		{"route, mss", route, with(route, func(r *kernel.Route) { r.AdvMSS = 0 }), false},
		{"route, type", route, with(route, func(r *kernel.Route) { r.Type = "blackhole" }), false},
		{"route, scope", route, with(route, func(r *kernel.Route) { r.Scope = kernel.ScopeLink }), false},
		{"route, IPv6 has no scope", route6, with(route6, func(r *kernel.Route) { r.Scope = kernel.ScopeLink }), true},
		{"route, nexthop", &kernel.Route{Dst: route.Dst, Nexthop: 7}, &kernel.Route{Dst: route.Dst, Nexthop: 7, Via: route.Via, Link: "eth0"}, true},
		{"route, another nexthop", &kernel.Route{Dst: route.Dst, Nexthop: 7}, &kernel.Route{Dst: route.Dst, Nexthop: 8}, false},
		{"route, nexthop not asked", with(route, func(*kernel.Route) {}), with(route, func(r *kernel.Route) { r.Nexthop = 8 }), false},
		{"nexthop, gateway", &kernel.Nexthop{ID: 7, Via: addr("10.1.0.1"), Link: "a"}, &kernel.Nexthop{ID: 7, Link: "a"}, false},
		{"nexthop, family", &kernel.Nexthop{ID: 7, Link: "a"}, &kernel.Nexthop{ID: 7, Link: "a", V6: true}, false},
		{"fdb, VTEP", &kernel.FDB{Link: "a", MAC: "02:00:00:00:00:01", Dst: addr("192.0.2.1")}, &kernel.FDB{Link: "a", MAC: "02:00:00:00:00:01", Dst: addr("192.0.2.2")}, false},
		{"vxlan", vxlan, with(vxlan, func(*kernel.Link) {}), true},
		{"vxlan, identifier", vxlan, with(vxlan, func(l *kernel.Link) { l.Tunnel = &kernel.Tunnel{VNI: 2, Port: 4789} }), false},
		{"feature", &kernel.Feature{On: true}, &kernel.Feature{}, false},
		{"wireguard, key not asked", &kernel.WireGuard{Port: 1}, &kernel.WireGuard{Port: 1, PrivateKey: secret}, true},
		{"wireguard, key", &kernel.WireGuard{Port: 1, PrivateKey: secret}, &kernel.WireGuard{Port: 1}, false},
		{"wireguard peer, endpoint not asked", with(wgPeer, func(p *kernel.WGPeer) { p.Endpoint = netip.AddrPort{} }), wgPeer, true},
		{"wireguard peer, endpoint", wgPeer, with(wgPeer, func(p *kernel.WGPeer) { p.Endpoint = netip.AddrPort{} }), false},
		{"wireguard peer, prefixes", wgPeer, with(wgPeer, func(p *kernel.WGPeer) { p.AllowedIPs = p.AllowedIPs[:1] }), false},
		{"wireguard peer, shared key", wgPeer, with(wgPeer, func(p *kernel.WGPeer) { p.PresharedKey = kernel.Secret{} }), false},
		{"neighbour", &kernel.Neigh{Link: "a", Addr: addr("fd00::1"), MAC: "02:00:00:00:00:01"},
			&kernel.Neigh{Link: "a", Addr: addr("fd00::1"), MAC: "02:00:00:00:00:02"}, false},
		{"element, comment", elem, with(elem, func(e *kernel.Element) { e.Comment = "b" }), true},
		{"element, data", elem, with(elem, func(e *kernel.Element) { e.Data = "10.1.0.3 . 80" }), false},
	}
	for _, tt := range tests {
		if got := tt.want.Holds(tt.actual); got != tt.holds {
			t.Errorf("%s: holds is %v: %s by %s", tt.name, got, tt.want, tt.actual)
		}
	}
	for _, a := range network() { // nothing is held by another kind
		for _, b := range network() {
			if a.Key().Kind != b.Key().Kind && a.Holds(b) {
				t.Errorf("%s holds %s", a, b)
			}
		}
	}
}

func TestTableHolds(t *testing.T) {
	chains := func(f func([]*kernel.Chain) []*kernel.Chain) *kernel.Table {
		return with(tbl, func(t *kernel.Table) { t.Chains = f(append([]*kernel.Chain(nil), t.Chains...)) })
	}
	first := func(f func(*kernel.Chain)) *kernel.Table {
		return chains(func(c []*kernel.Chain) []*kernel.Chain { c[0] = with(c[0], f); return c })
	}
	set := func(f func(*kernel.Set)) *kernel.Table {
		return with(tbl, func(t *kernel.Table) { t.Sets = []*kernel.Set{with(portMap, f)} })
	}
	listed := chains(func(c []*kernel.Chain) []*kernel.Chain {
		for i := range c {
			c[i] = with(c[i], func(c *kernel.Chain) {
				var hashes []string
				for _, r := range c.Rules {
					hashes = append(hashes, kernel.RuleHash(r))
				}
				c.Rules = hashes
			})
		}
		return append(c, &kernel.Chain{Name: "a chain that is an object of its own"})
	})
	for name, actual := range map[string]*kernel.Table{"itself": tbl, "as listed": listed} {
		if !tbl.Holds(actual) {
			t.Errorf("the table is not held by %s", name)
		}
	}
	for name, actual := range map[string]*kernel.Table{
		"another rule":     first(func(c *kernel.Chain) { c.Rules = []string{"accept"} }),
		"a rule more":      first(func(c *kernel.Chain) { c.Rules = append(c.Rules, "accept") }),
		"another hook":     first(func(c *kernel.Chain) { c.Hook = "input" }),
		"another priority": first(func(c *kernel.Chain) { c.Priority = 1 }),
		"another type":     first(func(c *kernel.Chain) { c.Type = "nat" }),
		"another order": chains(func(c []*kernel.Chain) []*kernel.Chain {
			c[1] = with(c[1], func(c *kernel.Chain) { c.Rules = []string{"drop", "accept"} })
			return c
		}),
		"a chain less": chains(func(c []*kernel.Chain) []*kernel.Chain { return c[:1] }),
		"no set":       with(tbl, func(t *kernel.Table) { t.Sets = nil }),
		"another set":  set(func(s *kernel.Set) { s.Name = "port5" }),
		"another key":  set(func(s *kernel.Set) { s.Key = s.Key[:1] }),
		"other data":   set(func(s *kernel.Set) { s.Data = nil }),
		"intervals":    set(func(s *kernel.Set) { s.Interval = true }),
	} {
		if tbl.Holds(actual) {
			t.Errorf("the table is held by one with %s", name)
		}
	}
}

func TestRuleHash(t *testing.T) {
	h := kernel.RuleHash("ip saddr @masq4 masquerade")
	if !strings.HasPrefix(h, "h:") || len(h) != 18 {
		t.Errorf("the hash is %q, want h: and 16 digits", h)
	}
	if kernel.RuleHash(h) != h {
		t.Error("the hash of a hash is another one")
	}
	if kernel.RuleHash("ip saddr @masq6 masquerade") == h {
		t.Error("two rules have one hash")
	}
}

func TestString(t *testing.T) {
	for _, tt := range []struct {
		o           kernel.Object
		text, key   string
		ns, hangsOn string
	}{
		{full, "link sv-a type veth mtu 1400 address 02:00:00:00:00:01 master sn-a group 7 hairpin on isolated on promisc on alias seine:x" +
			" peer eth0 mtu 1300 address 02:00:00:00:00:02 netns /run/netns/a", "link sv-a", "", ""},
		{macvlan, "link net1 type macvlan mode bridge bcqueuelen 5 link eth0 of the machine netns /a", "link net1 @/a", "", ""},
		{vlan, "link eth0.7 type vlan id 7 link eth0", "link eth0.7", "", ""},
		{tap, "link tap0 type tap user 1000 group 0 multi_queue context c netns /a", "link tap0 @/a", "", ""},
		{moved, "link net1 of the machine's eth1 netns /a", "link net1 @/a", "", ""},
		{&kernel.LinkUp{NS: "/a", Link: "eth0"}, "link eth0 up netns /a", "up eth0 @/a", "/a", "eth0"},
		{&kernel.Sysctl{Name: "net/ipv4/ip_forward", Value: "1"}, "sysctl net/ipv4/ip_forward = 1", "sysctl net/ipv4/ip_forward", "", ""},
		{&kernel.Sysctl{NS: "/a", Name: "net/ipv6/conf/eth0.1/accept_ra", Value: "0"}, "sysctl net/ipv6/conf/eth0.1/accept_ra = 0 netns /a",
			"sysctl net/ipv6/conf/eth0.1/accept_ra @/a", "/a", "eth0.1"},
		{&kernel.Sysctl{Name: "net/ipv4/conf/all/forwarding", Value: "1"}, "sysctl net/ipv4/conf/all/forwarding = 1",
			"sysctl net/ipv4/conf/all/forwarding", "", ""},
		{&kernel.Sysctl{Name: "net/ipv6/neigh/a/retrans_time_ms", Value: "1"}, "sysctl net/ipv6/neigh/a/retrans_time_ms = 1",
			"sysctl net/ipv6/neigh/a/retrans_time_ms", "", "a"},
		{&kernel.Redirect{Link: "a", To: "b"}, "filter dev a ingress redirect dev b", "redirect a", "", "a"},
		{tuned, "link eth0 mtu 1400 address 02:00:00:00:00:01 txqueuelen 2000 promisc on allmulticast off master blue netns /a", "attrs eth0 @/a", "/a", "eth0"},
		{&kernel.Attrs{Link: "a", Master: new(string)}, "link a nomaster", "attrs a", "", "a"},
		{&kernel.Link{Name: "blue", Type: kernel.VRF, Table: 10}, "link blue type vrf table 10", "link blue", "", ""},
		{&kernel.Rule{Priority: 5, Table: 7, Proto: 4}, "rule v4 priority 5 lookup 7 proto 4", "rule v4 priority 5 lookup 7 proto 4", "", ""},
		{&kernel.Qdisc{Link: "a", Type: "tbf", Parent: "root", Rate: 125000, Burst: 1500, Limit: 3000},
			"qdisc dev a root tbf rate 1000000bit burst 1500 limit 3000", "qdisc a root", "", "a"},
		{&kernel.Addr{Link: "a", Prefix: prefix("fd00::1/64")}, "addr fd00::1/64 dev a", "addr a fd00::1/64", "", "a"},
		{&kernel.Route{Dst: prefix("0.0.0.0/0"), Via: addr("10.1.0.1"), Link: "a", Metric: 3}, "route default via 10.1.0.1 dev a metric 3",
			"route 254 0.0.0.0/0 metric 3", "", "a"},
		{&kernel.Route{NS: "/a", Dst: prefix("::/0"), Via: addr("fe80::1"), Link: "a", Src: addr("fd00::1"), Table: 100, Metric: 1024},
			"route default (v6) via fe80::1 dev a src fd00::1 table 100 metric 1024 netns /a", "route 100 ::/0 metric 1024 @/a", "/a", "a"},
		{&kernel.Route{Dst: prefix("10.9.0.0/24"), Type: "blackhole"}, "route blackhole 10.9.0.0/24", "route 254 10.9.0.0/24 metric 0", "", ""},
		{&kernel.Route{Dst: prefix("fd00::1/128"), Type: "local", Link: "a", Table: kernel.TableLocal},
			"route local fd00::1/128 dev a table 255", "route 255 fd00::1/128 metric 0 dev a", "", "a"},
		{&kernel.Rule{Priority: 5, From: prefix("10.1.0.0/24"), To: prefix("10.2.0.0/24"), Mark: 1, Mask: 255, IIF: "a", Table: 100},
			"rule v4 priority 5 from 10.1.0.0/24 to 10.2.0.0/24 fwmark 0x1/0xff iif a lookup 100",
			"rule v4 priority 5 from 10.1.0.0/24 to 10.2.0.0/24 fwmark 0x1/0xff iif a lookup 100", "", ""},
		{&kernel.Rule{NS: "/a", V6: true, Table: 254}, "rule v6 priority 0 lookup 254 netns /a", "rule v6 priority 0 lookup 254 @/a", "", ""},
		{&kernel.Neigh{Link: "a", Addr: addr("10.1.0.2"), MAC: "02:00:00:00:00:01"}, "neigh 10.1.0.2 lladdr 02:00:00:00:00:01 dev a",
			"neigh a 10.1.0.2", "", "a"},
		{&kernel.FDB{Link: "a", MAC: "02:00:00:00:00:01"}, "fdb 02:00:00:00:00:01 dev a dst -", "fdb a 02:00:00:00:00:01 -", "", "a"},
		{&kernel.FDB{Link: "x", MAC: "02:00:00:00:00:01", Dst: addr("192.0.2.1")}, "fdb 02:00:00:00:00:01 dev x dst 192.0.2.1",
			"fdb x 02:00:00:00:00:01 vtep", "", "x"},
		{&kernel.Neigh{Link: "a", Addr: addr("fd00::2"), Proxy: true}, "neigh proxy fd00::2 dev a", "neigh a fd00::2 proxy", "", "a"},
		{&kernel.Nexthop{ID: 7, Via: addr("10.1.0.1"), Link: "a", OnLink: true}, "nexthop id 7 via 10.1.0.1 dev a onlink", "nexthop 7", "", "a"},
		{&kernel.Nexthop{NS: "/a", ID: 7, V6: true, Link: "a"}, "nexthop id 7 dev a (v6) netns /a", "nexthop 7 @/a", "/a", "a"},
		{&kernel.Route{Dst: prefix("10.9.0.0/24"), Nexthop: 7, Via: addr("10.1.0.1"), Link: "a"}, "route 10.9.0.0/24 nhid 7",
			"route 254 10.9.0.0/24 metric 0", "", "a"},
		{&kernel.Feature{Link: "a", Name: "rx-gro"}, "feature rx-gro off dev a", "feature a rx-gro", "", "a"},
		{&kernel.WireGuard{Link: "w", PrivateKey: secret, Port: 51820, Mark: 5},
			"wireguard w private-key (hidden) listen-port 51820 fwmark 0x5", "wireguard w", "", "w"},
		{wgPeer, "wireguard peer BwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= dev w preshared-key (hidden) endpoint 192.0.2.2:9 persistent-keepalive 25 " +
			"allowed-ips 10.2.0.0/24,fd00:2::/64", "wgpeer w BwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "", "w"},
		{&kernel.Link{Name: "x", Type: kernel.VXLAN, Tunnel: &kernel.Tunnel{VNI: 4096, Port: 4789, Local: addr("192.0.2.1"), Under: "eth0"},
			Master: "a", Port: &kernel.Port{NoLearning: true, NoFlood: true, Suppress: true}},
			"link x type vxlan master a id 4096 dstport 4789 local 192.0.2.1 dev eth0 learning off flood off neigh_suppress on", "link x", "", ""},
		{&kernel.FDB{Link: "x", MAC: "00:00:00:00:00:00", Dst: addr("192.0.2.1")}, "fdb 00:00:00:00:00:00 dev x dst 192.0.2.1",
			"fdb x 00:00:00:00:00:00 192.0.2.1", "", "x"},
		{&kernel.Hold{Protocol: "tcp", Addr: addr("::"), Port: 80}, "hold tcp [::]:80", "hold tcp [::]:80", "", ""},
		{&kernel.PortVLANs{Link: "a", Keep: true, VLANs: []kernel.VLANRange{{First: 7, Last: 7, PVID: true, Untagged: true}, {First: 9, Last: 11}}},
			"vlan dev a vid 7 pvid untagged, 9-11, and others", "vlans a", "", "a"},
		{&kernel.Table{Family: kernel.FamilyBridge, Name: "seine"}, "table bridge seine (0 sets, 0 chains)", "table bridge seine", "", ""},
		{&kernel.TableChain{Family: kernel.FamilyBridge, Table: "seine", Chain: kernel.Chain{Name: "c"}}, "chain bridge seine c {  }", "chain bridge seine c", "", ""},
		{&kernel.Element{Family: kernel.FamilyBridge, Table: "seine", Set: portMap, Item: "tcp . 80", Data: "10.1.0.2 . 80"},
			"element bridge seine port4 { tcp . 80 : 10.1.0.2 . 80 }", "element bridge seine port4 tcp . 80", "", ""},
		{tbl, "table inet seine (1 sets, 2 chains)", "table seine", "", ""},
		{&kernel.TableChain{Table: "seine", Chain: kernel.Chain{Name: "c", Rules: []string{"accept", "drop"}}}, "chain inet seine c { accept; drop }",
			"chain seine c", "", ""},
		{&kernel.Element{Table: "seine", Set: portMap, Item: "tcp . 80", Data: "10.1.0.2 . 80"},
			"element inet seine port4 { tcp . 80 : 10.1.0.2 . 80 }", "element seine port4 tcp . 80", "", ""},
		{&kernel.Accept{Family: "ip6", Table: "filter", Chain: "FORWARD", Rule: `iifname "sn-*"`}, `rule ip6 filter FORWARD iifname "sn-*" accept`,
			`accept ip6 filter FORWARD iifname "sn-*"`, "", ""},
	} {
		if got := tt.o.String(); got != tt.text {
			t.Errorf("got  %s\nwant %s", got, tt.text)
		}
		if got := tt.o.Key().String(); got != tt.key {
			t.Errorf("the key of %s is %q, want %q", tt.o, got, tt.key)
		}
		if ns, link := kernel.HangsOn(tt.o); ns != tt.ns || link != tt.hangsOn {
			t.Errorf("%s hangs on %q in %q, want %q in %q", tt.o, link, ns, tt.hangsOn, tt.ns)
		}
	}
}

func TestReplace(t *testing.T) {
	on := func(l *kernel.Link, f func(*kernel.Link)) *kernel.Link { return with(l, f) }
	for name, c := range map[string]struct {
		want, actual *kernel.Link
		replace      bool
	}{
		"itself":           {full, full, false},
		"type":             {full, macvlan, true},
		"mtu":              {full, on(full, func(l *kernel.Link) { l.MTU = 9 }), false},
		"peer's name":      {full, on(full, func(l *kernel.Link) { l.Peer = &kernel.Peer{Name: "eth1"} }), true},
		"parent":           {macvlan, on(macvlan, func(l *kernel.Link) { l.Parent = &kernel.Parent{Name: "eth1"} }), true},
		"no parent":        {macvlan, on(macvlan, func(l *kernel.Link) { l.Parent = nil }), true},
		"parent not asked": {on(macvlan, func(l *kernel.Link) { l.Parent = nil }), macvlan, false},
		"mode":             {macvlan, on(macvlan, func(l *kernel.Link) { l.Mode = "vepa" }), false},
		"passthru":         {macvlan, on(macvlan, func(l *kernel.Link) { l.Mode = "passthru" }), true},
		"to passthru":      {on(macvlan, func(l *kernel.Link) { l.Mode = "passthru" }), macvlan, true},
		"mode not asked":   {on(macvlan, func(l *kernel.Link) { l.Mode = "" }), on(macvlan, func(l *kernel.Link) { l.Mode = "passthru" }), false},
		"tunnel":           {vxlan, with(vxlan, func(l *kernel.Link) { l.Tunnel = &kernel.Tunnel{VNI: 1, Port: 8472} }), true},
		"mtu of a tunnel":  {vxlan, with(vxlan, func(l *kernel.Link) { l.MTU = 9 }), false},
		"vlan":             {vlan, on(vlan, func(l *kernel.Link) { l.VLAN = 8 }), true},
		"the same tap":     {tap, tap, false},
		"mtu of a tap":     {with(tap, func(l *kernel.Link) { l.MTU = 1400 }), tap, false},
		"access":           {tap, with(tap, func(l *kernel.Link) { l.Access = &kernel.Access{} }), true},
		"access not asked": {with(tap, func(l *kernel.Link) { l.Access = nil }), tap, false},
		"moved":            {moved, with(moved, func(l *kernel.Link) { l.Type = kernel.Veth }), false},
		"another device":   {moved, with(moved, func(l *kernel.Link) { l.Home = "eth2" }), true},
	} {
		if got := c.want.Replace(c.actual); got != c.replace {
			t.Errorf("%s: replace is %v, want %v", name, got, c.replace)
		}
	}
}

func TestStays(t *testing.T) {
	for o, want := range map[kernel.Object]bool{
		&kernel.LinkUp{Link: "lo", Keep: true}:               true,
		&kernel.LinkUp{Link: "sn-a"}:                         false,
		&kernel.Sysctl{Name: "a", Value: "1"}:                true,
		&kernel.Sysctl{Name: "a", Value: "1", Before: "0"}:   false,
		&kernel.PortVLANs{Link: "a"}:                         true,
		&kernel.Attrs{Link: "a", MTU: 1400}:                  true,
		&kernel.Attrs{Link: "a", Before: &kernel.Attrs{}}:    false,
		&kernel.Addr{Link: "a", Prefix: prefix("::1/128")}:   false,
		&kernel.Link{Name: "sn-a", Type: kernel.Bridge}:      false,
		&kernel.Hold{Protocol: "tcp", Addr: addr("0.0.0.0")}: false,
	} {
		if got := kernel.Stays(o); got != want {
			t.Errorf("%s: stays is %v", o, got)
		}
	}
}
