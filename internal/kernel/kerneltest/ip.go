package kerneltest

import (
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
)

// lan makes a bridge sn-a that is up and has 10.1.0.1/24 and fd00:1::1/64.
func lan(s *suite) []kernel.Object {
	objs := []kernel.Object{
		bridge("sn-a"),
		&kernel.LinkUp{Link: "sn-a"},
		&kernel.Addr{Link: "sn-a", Prefix: pfx("10.1.0.1/24")},
		&kernel.Addr{Link: "sn-a", Prefix: pfx("fd00:1::1/64")},
	}
	s.make(objs...)
	return objs
}

func route(dst, via string) *kernel.Route {
	r := &kernel.Route{Dst: pfx(dst), Link: "sn-a"}
	if via != "" {
		r.Via = ip(via)
	}
	if r.Dst.Addr().Is6() {
		r.Metric = 1024
	} else if via == "" {
		r.Scope = kernel.ScopeLink
	}
	return r
}

func testUsableAtOnce(s *suite) {
	ns := s.h.AddNamespace(s)
	l := veth("sv-a", ns, "eth0")
	a4 := &kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("10.1.0.2/24")}
	a6 := &kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("fd00:1::2/64")}
	dad := &kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("fd00:1::3/64"), DAD: true}
	s.make(l, a4, a6, dad, &kernel.LinkUp{NS: ns, Link: "eth0"}, &kernel.LinkUp{Link: l.Name})
	for _, a := range []*kernel.Addr{a4, a6} {
		if !s.h.Usable(s, ns, a.Prefix.Addr()) {
			s.Errorf("%s can't be used at once", a)
		}
	}
	if s.h.Usable(s, ns, dad.Prefix.Addr()) {
		s.Errorf("%s can be used at once, though duplicate address detection was asked for", dad)
	}
}

func testAddrTakesRoutes(s *suite) {
	net := lan(s)
	a4, a6 := net[2].(*kernel.Addr), net[3].(*kernel.Addr)
	second := &kernel.Addr{Link: "sn-a", Prefix: pfx("10.2.0.1/24")}
	src4 := with(route("10.8.0.0/24", ""), func(r *kernel.Route) { r.Src = a4.Prefix.Addr() })
	src6 := with(route("fd00:8::/64", ""), func(r *kernel.Route) { r.Src = a6.Prefix.Addr() })
	via4, via6 := route("10.9.0.0/24", "10.1.0.9"), route("fd00:9::/64", "fd00:1::9")
	s.make(second, src4, src6, via4, via6)

	s.ok(s.delete(a4), "delete the IPv4 address")
	s.absent(src4)
	s.holds(via4, second) // Linux does not look at gateways again
	s.ok(s.delete(second), "delete the last IPv4 address")
	s.absent(via4)

	s.ok(s.delete(a6), "delete the IPv6 address")
	s.holds(via6, with(src6, func(r *kernel.Route) { r.Src = netip.Addr{} }))
	if src6.Holds(s.get(src6)) {
		s.Fatal("an IPv6 route kept a source address that is gone")
	}
	s.settle(append(net, second, src4, src6, via4, via6), nil)
}

func testSecondary(s *suite) {
	b := bridge("sn-a")
	first := &kernel.Addr{Link: "sn-a", Prefix: pfx("10.1.0.1/24")}
	second := &kernel.Addr{Link: "sn-a", Prefix: pfx("10.1.0.2/24")}
	third := &kernel.Addr{Link: "sn-a", Prefix: pfx("10.1.0.3/25")} // another subnet
	s.make(b)
	for _, a := range []*kernel.Addr{first, second, third} {
		s.make(a)
	}
	s.ok(s.delete(second), "delete a secondary address")
	s.holds(first, third)
	s.make(second)
	s.ok(s.delete(first), "delete the primary address")
	s.absent(second)
	s.holds(third)
	s.make(first, second, &kernel.Sysctl{Name: "net/ipv4/conf/sn-a/promote_secondaries", Value: "1"})
	s.ok(s.delete(first), "delete the primary address")
	s.holds(second, third)
}

func testTwoPrefixes(s *suite) {
	s.make(bridge("sn-a"))
	addr := func(p string) *kernel.Addr { return &kernel.Addr{Link: "sn-a", Prefix: pfx(p)} }
	s.make(addr("10.1.0.1/24"), addr("10.1.0.1/16"))
	s.make(addr("fd00:1::1/64"))
	s.is(s.create(addr("fd00:1::1/80")), kernel.ErrExists, "an IPv6 address with another prefix")
	s.absent(addr("fd00:1::1/80"))
	s.ok(s.delete(addr("fd00:1::1/80")), "delete it with the other prefix")
	s.holds(addr("fd00:1::1/64"))
	s.make(with(bridge("sn-b"), func(*kernel.Link) {}))
	s.make(&kernel.Addr{Link: "sn-b", Prefix: pfx("10.1.0.1/24")}, &kernel.Addr{Link: "sn-b", Prefix: pfx("fd00:1::1/64")})
}

func testAddrWildcard(s *suite) {
	net := lan(s)
	found := s.list(kernel.Scope{Objects: []kernel.Object{&kernel.Addr{Link: "sn-a"}}})
	for _, a := range net[2:] {
		if found[a.Key()] == nil {
			s.Errorf("%s is not among all addresses of the link", a)
		}
	}
	if n := len(s.list(kernel.Scope{Objects: []kernel.Object{&kernel.Addr{Link: "nope"}}})); n != 0 {
		s.Errorf("a link that is not there has %d addresses", n)
	}
}

func testNoRoute(s *suite) {
	s.make(bridge("sn-a"), &kernel.LinkUp{Link: "sn-a"},
		&kernel.Addr{Link: "sn-a", Prefix: pfx("10.1.0.1/24"), NoRoute: true},
		&kernel.Addr{Link: "sn-a", Prefix: pfx("fd00:1::1/64"), NoRoute: true})
	via4, via6 := route("10.9.0.0/24", "10.1.0.9"), route("fd00:9::/64", "fd00:1::9")
	s.is(s.create(via4), kernel.ErrAbsent, "a gateway that no route leads to")
	s.is(s.create(via6), kernel.ErrAbsent, "an IPv6 gateway that no route leads to")
	own4 := route("10.1.0.0/24", "")
	own6 := with(route("fd00:1::/64", ""), func(r *kernel.Route) { r.Metric = 256 })
	s.make(own4, own6)
	s.make(via4, via6)
}

func testLoopback(s *suite) {
	ns := s.h.AddNamespace(s)
	lo := &kernel.Link{NS: ns, Name: "lo", Type: kernel.Loopback}
	up := &kernel.LinkUp{NS: ns, Link: "lo", Keep: true}
	s.holds(lo)
	s.ok(s.create(lo), "create what is always there")
	s.absent(up)
	s.make(up)
	ours := []kernel.Object{&kernel.Addr{Link: "lo", Prefix: pfx("169.254.255.53/32")}, &kernel.Addr{Link: "lo", Prefix: pfx("fd5c::53/128")}}
	s.make(ours...)
	s.ours(ours...) // lo itself is the kernel's
	s.unmake(ours...)
	s.ours()
	s.holds(&kernel.Addr{NS: ns, Link: "lo", Prefix: pfx("127.0.0.1/8")}, &kernel.Addr{NS: ns, Link: "lo", Prefix: pfx("::1/128")})
	s.make(&kernel.Addr{NS: ns, Link: "lo", Prefix: pfx("127.0.0.1/8")}, &kernel.Addr{NS: ns, Link: "lo", Prefix: pfx("::1/128")})
	s.ok(s.delete(lo), "delete what can't be deleted: what is ours of it is gone")
	s.holds(lo, up)
	own := &kernel.LinkUp{Link: "lo", Keep: true}
	s.make(own)
	s.ours() // lo is not ours, and so is nothing on it
}

func testRouteDependencies(s *suite) {
	lan(s)
	for _, r := range []*kernel.Route{
		route("10.9.0.0/24", "10.7.0.1"), route("fd00:9::/64", "fd00:7::1"),
		with(route("10.9.0.0/24", ""), func(r *kernel.Route) { r.Link = "nope" }),
		with(route("fd00:9::/64", ""), func(r *kernel.Route) { r.Link = "nope" }),
	} {
		s.is(s.create(r), kernel.ErrAbsent, r.String())
		s.absent(r)
	}
	for _, r := range []*kernel.Route{
		with(route("10.9.0.0/24", ""), func(r *kernel.Route) { r.Src = ip("10.1.0.77") }),
		with(route("fd00:9::/64", ""), func(r *kernel.Route) { r.Src = ip("fd00:1::77") }),
		with(route("10.9.0.0/24", "10.1.0.9"), func(r *kernel.Route) { r.Scope = kernel.ScopeLink }),
	} {
		s.refused(s.create(r), r.String())
		s.absent(r)
	}
	s.refused(s.create(route("fd00:9::/64", "fd00:1::1")), "the own address as a gateway")

	// One Apply in the order of SortChanges can make a route and what its gateway is reached by.
	objs := []kernel.Object{route("0.0.0.0/0", "10.7.0.1"), route("10.7.0.1/32", ""),
		route("::/0", "fd00:7::1"), route("fd00:7::1/128", "")}
	s.make(objs...)
	s.unmake(objs...)
	s.absent(objs...)
}

func testGatewayByHostRoute(s *suite) {
	s.make(bridge("sn-a"), &kernel.LinkUp{Link: "sn-a"})
	via4 := route("10.9.0.0/24", "10.7.0.1")
	global := with(route("10.7.0.1/32", ""), func(r *kernel.Route) { r.Scope = kernel.ScopeGlobal })
	s.make(global)
	s.is(s.create(via4), kernel.ErrAbsent, "a gateway behind a route of scope global")
	s.is(s.create(route("10.7.0.1/32", "")), kernel.ErrExists, "the same with another scope")
	s.ok(s.delete(global), "delete")
	s.make(route("10.7.0.1/32", ""), via4)
	s.make(route("fd00:9::/64", "fe80::1")) // link-local gateways need nothing
}

func testRouteIdentity(s *suite) {
	lan(s)
	var all []kernel.Object
	for _, dst := range [][2]string{{"10.9.0.0/24", "10.1.0.%"}, {"fd00:9::/64", "fd00:1::%"}} {
		for i, via := range []string{"3", "4", "5"} {
			r := route(dst[0], dst[1][:len(dst[1])-1]+via)
			r.Metric += i / 2
			if i == 1 {
				r.Table = 100
			}
			all = append(all, r)
		}
	}
	s.make(all...)
	for _, o := range all {
		r := with(o.(*kernel.Route), func(r *kernel.Route) { r.Via = r.Via.Next().Next().Next() })
		s.is(s.create(r), kernel.ErrExists, "another gateway under one key")
		s.holds(all...)
	}
	for i, o := range all {
		s.ok(s.delete(o), "delete")
		s.absent(all[:i+1]...)
		s.holds(all[i+1:]...)
	}
}

func testNowhere(s *suite) {
	for _, dst := range []string{"10.9.0.0/24", "fd00:9::/64"} {
		for _, typ := range []string{"blackhole", "unreachable", "prohibit"} {
			r := &kernel.Route{Dst: pfx(dst), Type: typ}
			if r.Dst.Addr().Is6() {
				r.Metric = 1024
			}
			s.make(r)
			s.ours(r)
			other := with(r, func(r *kernel.Route) {
				r.Type = map[bool]string{true: "prohibit", false: "blackhole"}[typ == "blackhole"]
			})
			s.is(s.create(other), kernel.ErrExists, "another type")
			s.ok(s.update(r, other), "change the type")
			s.holds(other)
			s.ok(s.delete(other), "delete")
			s.absent(r)
		}
	}
}

func testForeignRoute(s *suite) {
	net := lan(s)
	for _, r := range [][2]*kernel.Route{
		{route("10.9.0.0/24", "10.1.0.9"), route("10.9.0.0/24", "10.1.0.8")},
		{route("fd00:9::/64", "fd00:1::9"), route("fd00:9::/64", "fd00:1::8")},
	} {
		theirs, ours := r[0], r[1]
		s.h.AddForeign(s, theirs)
		s.ours(net...)
		s.absent(ours)
		s.is(s.create(ours), kernel.ErrExists, "create over another's route")
		s.absent(ours)
		s.ok(s.delete(ours), "delete ours, which is not there")
		// What is wanted is there, whoever made it; but it does not become ours to delete.
		s.holds(theirs)
		s.ok(s.create(theirs), "create what another made")
		s.ok(s.delete(theirs), "delete what another made")
		s.holds(theirs)
	}
	// The kernel's own routes of the subnets are of that sort.
	own := route("10.1.0.0/24", "")
	own6 := with(route("fd00:1::/64", ""), func(r *kernel.Route) { r.Metric = 256 })
	s.make(own, own6)
	s.ok(s.delete(own), "delete")
	s.ok(s.delete(own6), "delete")
	s.holds(own, own6)
	s.ours(net...)
}

// testPluginRoute: what a CNI attachment without a daemon has is found by its keys only.
func testPluginRoute(s *suite) {
	l := bridge("cni-a")
	l.Alias = kernel.PluginAliasPrefix + "x"
	r := with(route("10.9.0.0/24", ""), func(r *kernel.Route) { r.Link = l.Name })
	s.make(l, &kernel.LinkUp{Link: l.Name}, &kernel.Addr{Link: l.Name, Prefix: pfx("10.1.0.1/24")}, r)
	if o := s.list(kernel.Scope{All: true})[r.Key()]; o != nil {
		s.Errorf("all that is ours has %s", o)
	}
	if o := s.list(kernel.Scope{Objects: []kernel.Object{r}})[r.Key()]; o == nil {
		s.Errorf("%s is not found by its key", r)
	}
}

func testForeignNeigh(s *suite) {
	net := lan(s)
	for _, a := range []string{"10.1.0.9", "fd00:1::9"} {
		theirs := &kernel.Neigh{Link: "sn-a", Addr: ip(a), MAC: "02:00:00:00:00:09"}
		s.h.AddForeign(s, theirs)
		s.ours(net...)
		s.holds(theirs)
		ours := with(theirs, func(n *kernel.Neigh) { n.MAC = "02:00:00:00:00:08" })
		s.is(s.create(ours), kernel.ErrExists, "create over another's neighbour")
		s.absent(ours)
		s.ok(s.delete(ours), "delete ours, which is not there")
		s.holds(theirs)
	}
}

func testForeignRule(s *suite) {
	for _, theirs := range []*kernel.Rule{
		{Priority: 200, From: pfx("10.1.0.0/24"), Table: 100},
		{V6: true, Priority: 200, From: pfx("fd00:1::/64"), Table: 100},
	} {
		s.h.AddForeign(s, theirs)
		s.ours()
		s.ok(s.delete(theirs), "delete ours, which is not there")
		s.holds(theirs)
		// The protocol number is part of a rule's identity: ours can stand beside theirs.
		s.ok(s.create(theirs), "create ours beside it")
		s.ours(theirs)
		s.ok(s.delete(theirs), "delete ours")
		s.ours()
		s.holds(theirs)
	}
}

func testForeignAddr(s *suite) {
	net := lan(s)
	for _, p := range []string{"10.1.0.77/24", "192.0.2.77/24", "fd00:1::77/64", "2001:db8::77/64"} {
		a := &kernel.Addr{Link: "sn-a", Prefix: pfx(p)}
		s.h.AddForeign(s, a) // on a link of ours, but not by us (told by IFA_PROTO, kernel 5.18)
		s.holds(a)
		s.ok(s.create(a), "create what another made")
		s.ours(net...)
	}
}
