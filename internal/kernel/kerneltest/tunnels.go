package kerneltest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

func secret(b byte) kernel.Secret { return kernel.NewSecret(kernel.WGKey{b, 2, 3}, true) }

// vxlan is a tunnel with an IPv4 or IPv6 underlay.
func vxlan(name string, vni uint32, local string) *kernel.Link {
	return &kernel.Link{Name: name, Type: kernel.VXLAN, MTU: 1400, MAC: "02:00:00:00:0f:01", Alias: alias, Group: 1<<30 + 7,
		Tunnel: &kernel.Tunnel{VNI: vni, Port: kernel.VXLANPort, Local: ip(local)}}
}

func wireguard(name string) *kernel.Link {
	return &kernel.Link{Name: name, Type: kernel.WG, MTU: 1400, Alias: alias}
}

func tunnelLifecycles() []lifecycle {
	br, up := bridge("sn-a"), &kernel.LinkUp{Link: "sn-a"}
	a4, a6 := &kernel.Addr{Link: "sn-a", Prefix: pfx("10.1.0.1/24")}, &kernel.Addr{Link: "sn-a", Prefix: pfx("fd00:1::1/64")}
	net, far := []kernel.Object{br, up, a4, a6}, carried()
	v4, v6 := vxlan("sx-a", 4096, "192.0.2.1"), vxlan("sx-b", 4096, "2001:db8::1")
	port := with(v4, func(l *kernel.Link) {
		l.MTU, l.Master, l.Port = 1500, "sn-a", &kernel.Port{NoLearning: true, NoFlood: true, Suppress: true}
	})
	nh := func(via string) *kernel.Nexthop {
		n := &kernel.Nexthop{ID: 1<<31 + 5, Link: "sx-n"}
		if via != "" {
			n.Via = ip(via)
			n.V6 = n.Via.Is6()
		}
		return n
	}
	nh2 := with(nh("fe80::9"), func(n *kernel.Nexthop) { n.ID++ })
	wg := wireguard("sx-w")
	conf := &kernel.WireGuard{Link: "sx-w", PrivateKey: secret(1), Port: 51820}
	peer := &kernel.WGPeer{Link: "sx-w", PublicKey: kernel.WGKey{7}, PresharedKey: kernel.NewSecret(kernel.WGKey{3}, false), Keepalive: 25,
		Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"), AllowedIPs: []netip.Prefix{pfx("10.2.0.0/24"), pfx("fd00:2::/64")}}
	return []lifecycle{
		{name: "vxlan", object: v4, free: true, byHand: true,
			changed: with(v4, func(l *kernel.Link) { l.MTU, l.MAC, l.Group = 1300, "02:00:00:00:0f:02", 9 })},
		{name: "vxlan on IPv6", object: v6, free: true, byHand: true},
		{name: "vxlan on a link", needs: []kernel.Object{br}, byHand: true,
			object: with(v4, func(l *kernel.Link) { l.Tunnel = with(l.Tunnel, func(t *kernel.Tunnel) { t.Under = "sn-a" }) })},
		{name: "vxlan as a port", needs: []kernel.Object{br}, object: port, byHand: true,
			changed: with(port, func(l *kernel.Link) { l.Port = &kernel.Port{Isolated: true, NoFlood: true} })},
		{name: "IPv4 nexthop", needs: far, object: nh("10.1.0.9"), changed: nh("10.1.0.8"), byHand: true},
		{name: "IPv6 nexthop", needs: far, object: nh("fd00:1::9"), changed: nh("fe80::8"), byHand: true},
		{name: "nexthop without a gateway", needs: far[:2], object: nh(""), changed: nh("fe80::8"), byHand: true},
		{name: "on-link nexthop", needs: far, byHand: true,
			object: with(nh("10.7.0.1"), func(n *kernel.Nexthop) { n.OnLink = true })},
		{name: "IPv4 route to a nexthop", needs: append(slices.Clone(far), nh("10.1.0.9"), nh2), byHand: true,
			object:  &kernel.Route{Dst: pfx("10.9.0.0/24"), Nexthop: 1<<31 + 5},
			changed: &kernel.Route{Dst: pfx("10.9.0.0/24"), Nexthop: 1<<31 + 6}},
		{name: "IPv4 route from a gateway to a nexthop", needs: append(slices.Clone(far), nh("10.1.0.9")), byHand: true,
			object:  &kernel.Route{Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "sx-n"},
			changed: &kernel.Route{Dst: pfx("10.9.0.0/24"), Nexthop: 1<<31 + 5}},
		{name: "IPv6 route to a nexthop", needs: append(slices.Clone(far), nh("fd00:1::9"), nh2), byHand: true,
			object:  &kernel.Route{Dst: pfx("fd00:9::/64"), Nexthop: 1<<31 + 5, Metric: 1024},
			changed: &kernel.Route{Dst: pfx("fd00:9::/64"), Nexthop: 1<<31 + 6, Metric: 1024}},
		{name: "IPv6 route from a gateway to a nexthop", needs: append(slices.Clone(far), nh("fd00:1::9")), byHand: true,
			object:  &kernel.Route{Dst: pfx("fd00:9::/64"), Via: ip("fd00:1::9"), Link: "sx-n", Metric: 1024},
			changed: &kernel.Route{Dst: pfx("fd00:9::/64"), Nexthop: 1<<31 + 5, Metric: 1024}},
		{name: "IPv4 proxy", needs: net, byHand: true, object: &kernel.Neigh{Link: "sn-a", Addr: ip("10.1.0.9"), Proxy: true}},
		{name: "IPv6 proxy", needs: net, byHand: true, object: &kernel.Neigh{Link: "sn-a", Addr: ip("fd00:1::9"), Proxy: true}},
		{name: "VTEP", needs: []kernel.Object{v4}, byHand: true,
			object:  &kernel.FDB{Link: "sx-a", MAC: "02:00:00:00:00:0a", Dst: ip("192.0.2.2")},
			changed: &kernel.FDB{Link: "sx-a", MAC: "02:00:00:00:00:0a", Dst: ip("192.0.2.3")}},
		{name: "VTEP on IPv6", needs: []kernel.Object{v6}, byHand: true,
			object: &kernel.FDB{Link: "sx-b", MAC: "02:00:00:00:00:0a", Dst: ip("2001:db8::2")}},
		{name: "VTEP for all stations", needs: []kernel.Object{v4}, byHand: true,
			object: &kernel.FDB{Link: "sx-a", MAC: kernel.EveryMAC, Dst: ip("192.0.2.2")}},
		{name: "wireguard", object: wg, free: true, byHand: true, prepare: needing(kernel.WG),
			changed: with(wg, func(l *kernel.Link) { l.MTU, l.Group = 1300, 9 })},
		{name: "wireguard configuration", needs: []kernel.Object{wg}, object: conf, prepare: needing(kernel.WG),
			changed: &kernel.WireGuard{Link: "sx-w", PrivateKey: secret(8), Port: 51821, Mark: 5}},
		{name: "wireguard peer", needs: []kernel.Object{wg, conf}, object: peer, prepare: needing(kernel.WG),
			changed: with(peer, func(p *kernel.WGPeer) {
				p.Endpoint, p.Keepalive, p.PresharedKey = netip.MustParseAddrPort("[2001:db8::2]:5"), 0, kernel.Secret{}
				p.AllowedIPs = []netip.Prefix{pfx("10.2.0.0/25"), pfx("10.3.0.0/24"), pfx("fd00:2::/64")}
			})},
	}
}

func tunnelCases() []testCase {
	return []testCase{
		{"tunnels that clash", testTunnelClash},
		{"tunnel replaced", testTunnelReplace},
		{"VTEPs of one address", testVTEPs},
		{"forwarding entries of a tunnel that is a port", testTunnelPort},
		{"nexthop takes routes along", testNexthopTakes},
		{"nexthop moves routes", testNexthopMoves},
		{"routes to a nexthop refused", testNexthopRefused},
		{"foreign nexthop", testForeignNexthop},
		{"proxies beside neighbours", testProxies},
		{"features of a link", testFeatures},
		{"many routes at once", testManyRoutes},
		{"many neighbours at once", testManyNeighs},
		{"wireguard peers", testWGPeers},
	}
}

func testTunnelClash(s *suite) {
	v := vxlan("sx-a", 4096, "192.0.2.1")
	s.make(v)
	s.is(s.create(vxlan("sx-b", 4096, "192.0.2.1")), kernel.ErrExists, "a second tunnel of one identifier")
	s.absent(&kernel.Link{Name: "sx-b", Type: kernel.VXLAN})
	s.make(vxlan("sx-b", 4096, "2001:db8::1"), vxlan("sx-c", 4097, "192.0.2.1"))
	s.refused(s.create(vxlan("sx-d", 1<<24, "192.0.2.1")), "an identifier that is out of range")
	s.holds(v)
}

func testTunnelReplace(s *suite) {
	v := vxlan("sx-a", 4096, "192.0.2.1")
	fdb := &kernel.FDB{Link: "sx-a", MAC: kernel.EveryMAC, Dst: ip("192.0.2.2")}
	s.make(v, fdb)
	for i, f := range []func(*kernel.Tunnel){
		func(t *kernel.Tunnel) { t.VNI++ },
		func(t *kernel.Tunnel) { t.Port = 8472 },
		func(t *kernel.Tunnel) { t.Local = ip("192.0.2.9") },
	} {
		w := with(v, func(l *kernel.Link) { l.Tunnel = with(l.Tunnel, f) })
		s.is(s.create(w), kernel.ErrExists, fmt.Sprintf("create otherwise (%d)", i))
		s.is(s.update(v, w), kernel.ErrExists, fmt.Sprintf("change in place (%d)", i))
		s.holds(v)
		s.settle([]kernel.Object{w, fdb}, nil)
		s.holds(w, fdb)
		s.settle([]kernel.Object{v, fdb}, nil)
	}
}

func testVTEPs(s *suite) {
	v := vxlan("sx-a", 4096, "192.0.2.1")
	s.make(v)
	all := []kernel.Object{
		&kernel.FDB{Link: "sx-a", MAC: kernel.EveryMAC, Dst: ip("192.0.2.2")},
		&kernel.FDB{Link: "sx-a", MAC: kernel.EveryMAC, Dst: ip("192.0.2.3")},
		&kernel.FDB{Link: "sx-a", MAC: "02:00:00:00:00:0a", Dst: ip("192.0.2.2")},
	}
	s.make(all...)
	s.ours(append(all, v)...)
	s.ok(s.delete(all[0]), "delete one of two")
	s.absent(all[0])
	s.holds(all[1:]...)
	// One that moved to another host meanwhile is not the one that was meant.
	moved := &kernel.FDB{Link: "sx-a", MAC: "02:00:00:00:00:0a", Dst: ip("192.0.2.3")}
	s.ok(s.update(all[2], moved), "move")
	s.ok(s.delete(all[2]), "delete what moved")
	s.holds(moved)
	s.refused(s.create(&kernel.FDB{Link: "sx-a", MAC: "02:00:00:00:00:0b", Dst: ip("2001:db8::2")}), "a VTEP of the other family")
	up := &kernel.LinkUp{Link: "sx-a"}
	s.make(up)
	s.unmake(up)
	s.holds(all[1], moved) // they stay when the tunnel goes down
	s.ok(s.delete(v), "delete the tunnel")
	s.absent(all[1], moved)
}

func testTunnelPort(s *suite) {
	b := bridge("sn-a")
	v := with(vxlan("sx-a", 4096, "192.0.2.1"), func(l *kernel.Link) { l.MTU, l.Master, l.Port = 1500, "sn-a", &kernel.Port{NoLearning: true} })
	port := &kernel.FDB{Link: "sx-a", MAC: "02:00:00:00:00:0a"}
	vtep := &kernel.FDB{Link: "sx-a", MAC: "02:00:00:00:00:0a", Dst: ip("192.0.2.2")}
	s.make(b, v, port, vtep)
	s.ours(b, v, port, vtep)
	s.ok(s.delete(vtep), "delete the VTEP")
	s.holds(port)
	s.make(vtep)
	s.ok(s.delete(port), "delete the port's")
	s.holds(vtep)
	s.make(port)
	s.ok(s.delete(b), "delete the bridge")
	s.absent(port)
	s.holds(vtep)
}

// carried is a link that has a carrier and addresses: a bridge without ports has none, and the kernel takes no nexthop
// on it.
func carried() []kernel.Object {
	return []kernel.Object{vxlan("sx-n", 4000, "192.0.2.9"), &kernel.LinkUp{Link: "sx-n"},
		&kernel.Addr{Link: "sx-n", Prefix: pfx("10.1.0.1/24")}, &kernel.Addr{Link: "sx-n", Prefix: pfx("fd00:1::1/64")}}
}

// hops makes a network with two nexthops and routes to them.
func hops(s *suite) (v4, v6 *kernel.Nexthop, routes []kernel.Object) {
	s.make(carried()...)
	v4 = &kernel.Nexthop{ID: 1<<31 + 1, Via: ip("10.1.0.9"), Link: "sx-n"}
	v6 = &kernel.Nexthop{ID: 1<<31 + 2, V6: true, Via: ip("fe80::9"), Link: "sx-n"}
	routes = []kernel.Object{
		&kernel.Route{Dst: pfx("10.8.0.0/24"), Nexthop: v4.ID},
		&kernel.Route{Dst: pfx("10.9.0.7/32"), Nexthop: v6.ID}, // IPv4 by a gateway of IPv6 (RFC 5549)
		&kernel.Route{Dst: pfx("fd00:9::/64"), Nexthop: v6.ID, Metric: 1024},
		&kernel.Route{Dst: pfx("fd00:9:1::7/128"), Nexthop: v6.ID, Metric: 1024},
	}
	s.make(append([]kernel.Object{v4, v6}, routes...)...)
	return v4, v6, routes
}

func testNexthopTakes(s *suite) {
	v4, v6, routes := hops(s)
	all := append([]kernel.Object{v4, v6}, routes...)
	s.ok(s.delete(v4), "delete a nexthop")
	s.absent(v4, routes[0])
	s.holds(all[1])
	s.h.Remove(s, v6)
	s.absent(all...)
	s.unmake(all...)
	s.make(all...)
	s.h.Remove(s, &kernel.LinkUp{Link: "sx-n"})
	s.absent(all...)
	s.is(s.create(v4), kernel.ErrAbsent, "a nexthop on a link that is down")
	s.is(s.create(routes[0]), kernel.ErrAbsent, "a route to a nexthop that is gone")
	a6 := &kernel.Addr{Link: "sx-n", Prefix: pfx("fd00:1::1/64")} // goes with the link's being up
	s.make(&kernel.LinkUp{Link: "sx-n"}, a6)
	s.make(all...)
	s.ok(s.delete(carried()[0]), "delete the link")
	s.absent(all...)
	s.ours()
	b := bridge("sn-a")
	s.make(b, &kernel.LinkUp{Link: "sn-a"})
	s.is(s.create(&kernel.Nexthop{ID: 9, Link: "sn-a"}), kernel.ErrAbsent, "a nexthop on a link without a carrier")
}

func testNexthopMoves(s *suite) {
	v4, v6, routes := hops(s)
	to := &kernel.Nexthop{ID: v4.ID, V6: true, Via: ip("fe80::8"), Link: "sx-n"}
	s.ok(s.update(v4, to), "from IPv4 to IPv6")
	s.holds(append(routes, to)...)
	plain := &kernel.Nexthop{ID: v4.ID, Link: "sx-n"}
	s.ok(s.update(to, plain), "to no gateway")
	s.holds(append(routes, plain)...)
	s.make(vxlan("sn-b", 4001, "192.0.2.9"), &kernel.LinkUp{Link: "sn-b"})
	other := &kernel.Nexthop{ID: v6.ID, V6: true, Via: ip("fe80::9"), Link: "sn-b"}
	s.ok(s.update(v6, other), "to another link")
	s.holds(append(routes, other)...)
	s.refused(s.update(other, &kernel.Nexthop{ID: v6.ID, Via: ip("10.1.0.9"), Link: "sx-n"}), "IPv6 routes by IPv4")
	s.ok(s.delete(carried()[0]), "delete the link that it was on")
	s.holds(append(routes[1:], other)...)
	s.is(s.update(v4, plain), kernel.ErrAbsent, "change one that is gone")
	s.absent(v4)
}

func testNexthopRefused(s *suite) {
	v4, _, _ := hops(s)
	s.refused(s.create(&kernel.Route{Dst: pfx("fd00:7::/64"), Nexthop: v4.ID, Metric: 1024}), "an IPv6 route by IPv4")
	s.is(s.create(&kernel.Route{Dst: pfx("10.7.0.0/24"), Nexthop: 77}), kernel.ErrAbsent, "a route to no nexthop")
	s.is(s.create(&kernel.Route{Dst: pfx("10.7.0.0/24"), Nexthop: 1<<31 + 77}), kernel.ErrAbsent, "a route to no nexthop")
	s.is(s.create(&kernel.Nexthop{ID: 9, Via: ip("10.1.0.9"), Link: "nope"}), kernel.ErrAbsent, "a nexthop on no link")
	s.is(s.create(&kernel.Nexthop{ID: 9, Via: ip("10.77.0.9"), Link: "sx-n"}), kernel.ErrAbsent, "a gateway that is not on the link")
	s.absent(&kernel.Nexthop{ID: 9, Via: ip("10.1.0.9"), Link: "sx-n"})
}

func testForeignNexthop(s *suite) {
	net := carried()
	s.make(net...)
	theirs := &kernel.Nexthop{ID: 1<<31 + 1, Via: ip("10.1.0.9"), Link: "sx-n"}
	s.h.AddForeign(s, theirs)
	s.ours(net...)
	s.ok(s.create(theirs), "what is there just as it is wanted")
	ours := &kernel.Nexthop{ID: theirs.ID, Via: ip("10.1.0.8"), Link: "sx-n"}
	s.absent(ours)
	s.is(s.create(ours), kernel.ErrExists, "create in its place")
	s.ok(s.delete(ours), "delete")
	s.holds(theirs)
}

func testProxies(s *suite) {
	net := lan(s)
	for _, a := range []string{"10.1.0.9", "fd00:1::9"} {
		n, p := &kernel.Neigh{Link: "sn-a", Addr: ip(a), MAC: "02:00:00:00:00:09"}, &kernel.Neigh{Link: "sn-a", Addr: ip(a), Proxy: true}
		s.make(n, p)
		s.ok(s.delete(n), "delete the neighbour")
		s.holds(p)
		s.make(n)
		s.ok(s.delete(p), "delete the proxy")
		s.holds(n)
		s.unmake(n)
	}
	s.ours(net...)
}

func testFeatures(s *suite) {
	const name = "tx-checksum-ip-generic"
	f := &kernel.Feature{Link: "sx-a", Name: name}
	s.is(s.create(f), kernel.ErrAbsent, "of no link")
	s.absent(f)
	s.ok(s.delete(f), "delete what never was")
	v := vxlan("sx-a", 4096, "192.0.2.1")
	s.make(v)
	if err := s.create(f); errors.Is(err, kernel.ErrUnsupported) {
		s.Skipf("skip: needs a kernel with ethtool's netlink family: %v", err)
	} else {
		s.ok(err, "turn off")
	}
	s.holds(f)
	s.ours(v) // it belongs to the link and is nothing of its own
	on := &kernel.Feature{Link: "sx-a", Name: name, On: true}
	if on.Holds(s.get(on)) {
		s.Fatal("it is on and off")
	}
	s.ok(s.update(f, on), "turn on")
	s.holds(on)
	s.ok(s.update(on, f), "turn off")
	s.ok(s.delete(f), "leave it to the kernel")
	s.holds(on)
	s.is(s.create(&kernel.Feature{Link: "sx-a", Name: "no-such-thing", On: true}), kernel.ErrUnsupported, "a feature that is none")
}

// testManyRoutes: more than go into one message to the kernel, some of which are refused.
func testManyRoutes(s *suite) {
	v4, v6, _ := hops(s)
	taken := &kernel.Route{Dst: pfx("10.64.3.0/24"), Nexthop: v6.ID}
	s.make(taken)
	var changes []kernel.Change
	var routes []kernel.Object
	for i := range 3000 {
		var o kernel.Object = &kernel.Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + i>>8), byte(i), 0}), 24), Nexthop: v4.ID}
		if i%10 == 7 {
			o = with(o.(*kernel.Route), func(r *kernel.Route) { r.Nexthop = 77 }) // there is no such
		}
		routes = append(routes, o)
		changes = append(changes, kernel.Change{Op: kernel.Create, New: o})
	}
	for i, err := range s.apply(changes...) {
		switch {
		case i == 3:
			s.is(err, kernel.ErrExists, changes[i].String())
		case i%10 == 7:
			s.is(err, kernel.ErrAbsent, changes[i].String())
		default:
			s.ok(err, changes[i].String())
		}
	}
	have := s.list(kernel.Scope{Objects: routes})
	if len(have) != 2700 {
		s.Errorf("%d routes are there, want 2,700", len(have))
	}
	s.holds(taken)
	if !v6.Holds(s.get(v6)) {
		s.Error("the other nexthop changed")
	}
	routes[3] = taken
	for i := range changes {
		changes[i] = kernel.Change{Op: kernel.Delete, Old: routes[i]}
	}
	for i, err := range s.apply(changes...) {
		s.ok(err, changes[i].String())
	}
	if have := s.list(kernel.Scope{Objects: routes}); len(have) != 0 {
		s.Errorf("%d routes are left", len(have))
	}
}

func testManyNeighs(s *suite) {
	net := lan(s)
	v := vxlan("sx-a", 4096, "192.0.2.1")
	s.make(v)
	all := []kernel.Object{}
	for i := range 300 {
		a4, a6 := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 14: byte(i >> 8), 15: byte(i)})
		mac := fmt.Sprintf("02:00:00:01:%02x:%02x", i>>8, i&255)
		all = append(all, &kernel.Neigh{Link: "sn-a", Addr: a4, MAC: mac}, &kernel.Neigh{Link: "sn-a", Addr: a6, Proxy: true},
			&kernel.FDB{Link: "sx-a", MAC: mac, Dst: ip("192.0.2.2")})
	}
	all = slices.Delete(all, 0, 6) // the network's own address, and the machine's
	s.make(all...)
	s.ours(append(append(net, v), all...)...)
	s.unmake(all...)
	s.ours(append(net, v)...)
}

func testWGPeers(s *suite) {
	s.needs(kernel.WG)
	wg, conf := wireguard("sx-w"), &kernel.WireGuard{Link: "sx-w", PrivateKey: secret(1), Port: 51820}
	s.make(wg, conf, &kernel.LinkUp{Link: "sx-w"})
	peer := func(b byte, ips ...string) *kernel.WGPeer {
		p := &kernel.WGPeer{Link: "sx-w", PublicKey: kernel.WGKey{b}}
		for _, a := range ips {
			p.AllowedIPs = append(p.AllowedIPs, pfx(a))
		}
		p.AllowedIPs = kernel.SortPrefixes(p.AllowedIPs)
		return p
	}
	one, two := peer(1, "10.2.0.0/24", "fd00:2::/64"), peer(2, "10.3.0.0/24")
	s.make(one, two)
	more := peer(1, "10.2.0.0/24", "10.4.0.0/24", "fd00:2::/64")
	s.ok(s.update(one, more), "one prefix more")
	s.holds(more, two)
	s.ok(s.update(more, one), "one prefix less")
	s.holds(one)
	taker := peer(2, "10.2.0.0/24", "10.3.0.0/24")
	s.ok(s.update(two, taker), "take a prefix of another peer")
	s.holds(taker, peer(1, "fd00:2::/64"))
	far := with(peer(2, "10.3.0.0/24"), func(p *kernel.WGPeer) { p.Endpoint = netip.MustParseAddrPort("192.0.2.2:9") })
	s.ok(s.update(taker, far), "an endpoint")
	s.ok(s.update(far, two), "leave the endpoint alone")
	s.holds(far)
	s.is(s.update(peer(3), peer(3, "10.9.0.0/24")), kernel.ErrAbsent, "change a peer that is not there")
	s.absent(peer(3))

	big := peer(4)
	for i := range 3000 {
		big.AllowedIPs = append(big.AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, byte(i >> 8), byte(i)}), 32))
	}
	s.make(big)
	s.ok(s.delete(one), "delete a peer")
	s.absent(one)
	s.holds(big, far)
	s.ok(s.delete(wg), "delete the link")
	s.absent(big, far, conf)
	s.is(s.create(one), kernel.ErrAbsent, "a peer of no link")
	b := bridge("sx-w")
	s.make(b)
	s.is(s.create(conf), kernel.ErrAbsent, "a configuration of a bridge")
	s.absent(conf, one)
}
