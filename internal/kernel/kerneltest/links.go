package kerneltest

import "github.com/seine-net/seine/internal/kernel"

func testVethPair(s *suite) {
	ns := s.h.AddNamespace(s)
	l := veth("sv-a", ns, "eth0")
	inner := &kernel.Link{NS: ns, Name: "eth0", Type: kernel.Veth, MAC: l.Peer.MAC}
	s.make(l)
	s.holds(inner) // the far end can be looked up as a link, too
	up := []kernel.Object{&kernel.LinkUp{Link: l.Name}, &kernel.LinkUp{NS: ns, Link: "eth0"}}
	s.make(up...)

	s.ok(s.delete(l), "delete by the main end")
	s.absent(append([]kernel.Object{l, inner}, up...)...)
	s.make(l)
	s.ok(s.delete(inner), "delete by the far end")
	s.absent(l, inner)
	s.ok(s.delete(l), "delete what went with its other end")

	s.make(l)
	s.h.Remove(s, inner)
	s.absent(l, inner)
}

func testPeerTaken(s *suite) {
	ns := s.h.AddNamespace(s)
	s.make(veth("sv-a", ns, "eth0"))
	second := veth("sv-b", ns, "eth0")
	second.MAC, second.Peer.MAC = "02:00:00:00:0c:02", "02:00:00:00:0d:02"
	s.is(s.create(second), kernel.ErrExists, "a second eth0 in one namespace")
	s.absent(second)
	// What was to hang on it leaves alone what has the name.
	rest := []kernel.Object{&kernel.Sysctl{NS: ns, Name: "net/ipv4/conf/eth0/arp_notify", Value: "1"},
		&kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("10.1.0.9/24")}, &kernel.LinkUp{NS: ns, Link: "eth0"}, &kernel.LinkUp{Link: "sv-b"}}
	changes := []kernel.Change{{Op: kernel.Create, New: second}}
	for _, o := range rest {
		changes = append(changes, kernel.Change{Op: kernel.Create, New: o})
	}
	for i, err := range s.k.Apply(s.Context(), changes) {
		if i > 0 {
			s.is(err, kernel.ErrAbsent, changes[i].New.String()+" of a link that could not be made")
		}
	}
	s.holds(&kernel.Sysctl{NS: ns, Name: "net/ipv4/conf/eth0/arp_notify", Value: "0"})
	s.absent(rest[1:]...)
	s.is(s.create(veth("sv-a", ns, "eth1")), kernel.ErrExists, "a second link of the name")
	s.absent(&kernel.Link{NS: ns, Name: "eth1", Type: kernel.Veth})
	s.is(s.create(with(bridge("sv-a"), func(*kernel.Link) {})), kernel.ErrExists, "a bridge of the name")
	s.holds(veth("sv-a", ns, "eth0"))
}

func testVethInOneNamespace(s *suite) {
	l := veth("sv-a", "", "sv-b")
	s.make(l)
	s.ours(l)
	far := with(l, func(o *kernel.Link) {
		o.Name, o.MAC = l.Peer.Name, l.Peer.MAC
		o.Peer = &kernel.Peer{Name: l.Name, MAC: l.MAC}
	})
	s.ours(far) // whichever end is asked for
	s.settle(nil, nil)
	s.absent(l, far)
}

func testHandoff(s *suite) {
	ns := s.h.AddNamespace(s)
	b, l := bridge("sn-a"), veth("sv-a", "", "sc-a")
	l.Master, l.Peer.Alias, l.Peer.Handoff = "sn-a", "", true
	want := []kernel.Object{b, l, &kernel.LinkUp{Link: b.Name}, &kernel.LinkUp{Link: l.Name}}
	s.make(want...)
	s.ours(want...)
	s.absent(&kernel.Link{NS: ns, Name: "eth7", Type: kernel.Veth})

	s.h.Move(s, "sc-a", ns, "eth7")
	taken := &kernel.Link{NS: ns, Name: "eth7", Type: kernel.Veth, MAC: l.Peer.MAC}
	s.holds(append(want, taken)...)
	s.ours(want...)
	if left := kernel.Diff(want, values(s.list(kernel.Scope{Objects: want, All: true}))); len(left) > 0 {
		s.Errorf("an end that was taken is to be changed: %v", left)
	}
	more := with(l, func(o *kernel.Link) {
		o.MTU, o.Peer = 1400, &kernel.Peer{Name: "sc-a", MTU: 1400, MAC: "02:00:00:00:0e:01", Handoff: true}
	})
	s.ok(s.update(l, more), "to change the end that is kept")
	s.holds(more, taken)
	s.is(s.create(with(more, func(o *kernel.Link) { o.Name, o.Peer = "sv-b", &kernel.Peer{Name: "sn-a", Handoff: true} })),
		kernel.ErrExists, "an end whose name is taken")
	s.ok(s.delete(more), "delete with the end elsewhere")
	s.absent(more, taken)

	s.make(more)
	s.h.Move(s, "sc-a", ns, "eth7")
	s.h.RemoveNamespace(s, ns)
	s.eventually("the end that is kept goes, too", func() bool { return s.get(more) == nil })
	s.settle(nil, nil)
	s.ours()
}

func testMasterAbsent(s *suite) {
	ns := s.h.AddNamespace(s)
	l := veth("sv-a", ns, "eth0")
	l.Master = "sn-a"
	s.is(s.create(l), kernel.ErrAbsent, "a port of no bridge")
	s.absent(l, &kernel.Link{NS: ns, Name: "eth0", Type: kernel.Veth})

	lone := with(l, func(o *kernel.Link) { o.Master = "" })
	s.make(lone)
	s.is(s.update(lone, l), kernel.ErrAbsent, "to join no bridge")
	s.holds(lone)
	other := veth("sv-b", ns, "eth1")
	s.make(other)
	s.refused(s.update(lone, with(l, func(o *kernel.Link) { o.Master = "sv-b" })), "to be a port of a veth")
	s.holds(lone)
	b1, b2 := bridge("sn-a"), bridge("sn-b")
	s.make(b1, b2)
	s.refused(s.update(b2, with(b2, func(o *kernel.Link) { o.Master = "sn-a" })), "a bridge as a port of a bridge")
	s.holds(b2)
}

func testBridgeGone(s *suite) {
	ns := s.h.AddNamespace(s)
	b := bridge("sn-a")
	l := veth("sv-a", ns, "eth0")
	l.Master, l.Port = b.Name, &kernel.Port{Hairpin: true}
	fdb := &kernel.FDB{Link: l.Name, MAC: "02:00:00:00:00:0a"}
	s.make(b, l, fdb)
	s.ok(s.delete(b), "delete the bridge")
	s.absent(b, fdb)
	got, _ := s.get(l).(*kernel.Link)
	if got == nil || got.Master != "" {
		s.Fatalf("the port is %v after its bridge went", got)
	}
	s.settle([]kernel.Object{b, l, fdb}, nil)
	s.holds(b, l, fdb)
}

func testPortFlags(s *suite) {
	ns := s.h.AddNamespace(s)
	b := bridge("sn-a")
	s.make(b)
	last := (*kernel.Link)(nil)
	for _, p := range []kernel.Port{{}, {Hairpin: true}, {Isolated: true}, {Hairpin: true, Isolated: true}} {
		l := veth("sv-a", ns, "eth0")
		l.Master, l.Port = b.Name, &p
		if last == nil {
			s.make(l)
		} else {
			s.ok(s.update(last, l), "change the flags")
		}
		s.holds(l)
		last = l
	}
}

func testMasterChange(s *suite) {
	ns := s.h.AddNamespace(s)
	b1, b2 := bridge("sn-a"), bridge("sn-b")
	l := veth("sv-a", ns, "eth0")
	at := func(master string) *kernel.Link {
		return with(l, func(o *kernel.Link) {
			if o.Master = master; master != "" {
				o.Port = &kernel.Port{Hairpin: true}
			}
		})
	}
	fdb := &kernel.FDB{Link: l.Name, MAC: "02:00:00:00:00:0a"}
	s.make(b1, b2, l)
	for _, master := range []string{"sn-a", "sn-b", "", "sn-a"} {
		s.ok(s.update(s.get(l), at(master)), "go to "+master)
		s.holds(at(master))
		s.absent(fdb) // what a bridge knows about a port goes with the membership
		if master != "" {
			s.make(fdb)
		}
	}
}

// onLink gives objects of all kinds that hang on a bridge sn-a, the link itself and its up state first.
func onLink() []kernel.Object {
	return []kernel.Object{
		bridge("sn-a"),
		&kernel.LinkUp{Link: "sn-a"},
		&kernel.Sysctl{Name: "net/ipv4/conf/sn-a/route_localnet", Value: "1", Before: "0"},
		&kernel.Sysctl{Name: "net/ipv6/conf/sn-a/accept_ra", Value: "0", Before: "1"},
		&kernel.Qdisc{Link: "sn-a", Type: "tbf", Parent: "root", Rate: 1250000, Burst: 15000, Limit: 30000},
		&kernel.Addr{Link: "sn-a", Prefix: pfx("10.1.0.1/24")},
		&kernel.Addr{Link: "sn-a", Prefix: pfx("fd00:1::1/64")},
		&kernel.Route{Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "sn-a"},
		&kernel.Route{Dst: pfx("fd00:9::/64"), Via: ip("fd00:1::9"), Link: "sn-a", Metric: 1024},
		&kernel.Neigh{Link: "sn-a", Addr: ip("10.1.0.9"), MAC: "02:00:00:00:00:09"},
		&kernel.Neigh{Link: "sn-a", Addr: ip("fd00:1::9"), MAC: "02:00:00:00:00:09"},
	}
}

func testLinkTakesAll(s *suite) {
	all := onLink()
	s.make(all...)
	for _, byHand := range []bool{false, true} {
		if byHand {
			s.h.Remove(s, all[0])
		} else {
			s.ok(s.delete(all[0]), "delete the link")
		}
		s.absent(all...)
		s.ours()
		s.unmake(all...)
		s.make(all...)
	}
	// The link was made anew: what hung on the old one is not on it by itself.
	s.ok(s.delete(all[0]), "delete the link")
	s.make(all[0])
	for _, o := range all[1:] {
		if w, ok := o.(*kernel.Sysctl); ok {
			if got, _ := s.get(o).(*kernel.Sysctl); got == nil || got.Value != w.Before {
				s.Fatalf("%s: is %v on a new link", o, got)
			}
			continue
		}
		s.absent(o)
	}
}

func testReplace(s *suite) {
	ns, ns2 := s.h.AddNamespace(s), s.h.AddNamespace(s)
	world := func(ns, peer string) []kernel.Object {
		return []kernel.Object{
			veth("sv-a", ns, peer),
			&kernel.LinkUp{Link: "sv-a"}, &kernel.LinkUp{NS: ns, Link: peer},
			&kernel.Addr{Link: "sv-a", Prefix: pfx("10.1.0.1/24")},
			&kernel.Addr{Link: "sv-a", Prefix: pfx("fd00:1::1/64")},
			&kernel.Route{Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "sv-a"},
			&kernel.Route{Dst: pfx("fd00:9::/64"), Via: ip("fd00:1::9"), Link: "sv-a", Metric: 1024},
		}
	}
	old := world(ns, "eth0")
	s.make(old...)
	for _, want := range [][]kernel.Object{world(ns, "eth1"), world(ns2, "eth1"), old} {
		s.is(s.update(s.get(want[0]), want[0]), kernel.ErrExists, "to change in place what can't be")
		scope := kernel.Scope{Objects: append(append([]kernel.Object(nil), want...), old...), All: true}
		first := kernel.Diff(want, values(s.list(scope)))
		for i, err := range s.apply(first...) {
			s.ok(err, first[i].String())
		}
		if len(kernel.Diff(want, values(s.list(scope)))) == 0 {
			s.Fatal("the routes over a link outlived it")
		}
		s.settle(want, old)
		s.holds(want...)
		s.ours(inMachine(want)...)
		old = want
	}
}

func values(m map[kernel.Key]kernel.Object) []kernel.Object {
	var all []kernel.Object
	for _, o := range m {
		all = append(all, o)
	}
	return all
}

// inMachine gives the objects that are in the machine's own namespace.
func inMachine(objs []kernel.Object) []kernel.Object {
	var in []kernel.Object
	for _, o := range objs {
		if o.Key().NS == "" {
			in = append(in, o)
		}
	}
	return in
}

func testSysctl(s *suite) {
	ns := s.h.AddNamespace(s)
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		w := &kernel.Sysctl{NS: ns, Name: name, Value: "1", Before: "0"}
		off := with(w, func(o *kernel.Sysctl) { o.Value = "0" })
		s.ok(s.create(off), "turn off")
		s.holds(off)
		if !off.Holds(s.get(w)) {
			s.Fatalf("%s is listed as %s", off, s.get(w))
		}
		s.ok(s.create(w), "turn on, with a create as nothing was there")
		s.holds(w)
		s.ok(s.update(w, off), "turn off")
		s.holds(off)
		s.make(w)
		s.ok(s.delete(with(w, func(o *kernel.Sysctl) { o.Before = "" })), "delete without a value of before")
		s.holds(w)
		s.ok(s.delete(w), "delete")
		s.holds(off)
	}
	// "all" is written through to each link.
	s.make(&kernel.Sysctl{NS: ns, Name: "net/ipv4/ip_forward", Value: "1"},
		&kernel.Sysctl{NS: ns, Name: "net/ipv6/conf/all/forwarding", Value: "1"})
	s.holds(&kernel.Sysctl{NS: ns, Name: "net/ipv4/conf/lo/forwarding", Value: "1"},
		&kernel.Sysctl{NS: ns, Name: "net/ipv4/conf/all/forwarding", Value: "1"},
		&kernel.Sysctl{NS: ns, Name: "net/ipv6/conf/lo/forwarding", Value: "1"})
	b := with(bridge("sn-a"), func(l *kernel.Link) { l.NS = ns })
	s.make(b)
	s.holds(&kernel.Sysctl{NS: ns, Name: "net/ipv4/conf/sn-a/forwarding", Value: "1"},
		&kernel.Sysctl{NS: ns, Name: "net/ipv6/conf/sn-a/forwarding", Value: "1"})

	nope := &kernel.Sysctl{NS: ns, Name: "net/ipv4/no_such_switch", Value: "1", Before: "0"}
	s.refused(s.create(nope), "a sysctl that is not there")
	s.absent(nope)
}

func testLinkSysctl(s *suite) {
	b := bridge("sn-a.7") // a name with a dot is no path
	w := &kernel.Sysctl{Name: "net/ipv4/conf/sn-a.7/route_localnet", Value: "1", Before: "0"}
	s.is(s.create(w), kernel.ErrAbsent, "a sysctl of no link")
	s.absent(w)
	s.ok(s.delete(w), "put back on no link")
	s.make(b)
	if got, _ := s.get(w).(*kernel.Sysctl); got == nil || got.Value != "0" {
		s.Fatalf("%s is %v at first", w.Name, got)
	}
	s.make(w)
	s.ok(s.delete(w), "put back")
	s.holds(with(w, func(o *kernel.Sysctl) { o.Value = "0" }))
	s.ours(b)
}

func testDown(s *suite) {
	all := onLink()
	s.make(all...)
	s.ok(s.delete(all[1]), "set down")
	for _, o := range all {
		stays := true
		switch o := o.(type) {
		case *kernel.LinkUp, *kernel.Route, *kernel.Neigh:
			stays = false
		case *kernel.Addr:
			stays = o.Prefix.Addr().Is4()
		}
		if stays {
			s.holds(o)
		} else {
			s.absent(o)
		}
	}
	s.is(s.create(&kernel.Route{Dst: pfx("10.8.0.0/24"), Link: "sn-a", Scope: kernel.ScopeLink}), kernel.ErrAbsent, "a route over a link that is down")
	s.is(s.create(&kernel.Route{Dst: pfx("fd00:8::/64"), Link: "sn-a", Metric: 1024}), kernel.ErrAbsent, "an IPv6 route over a link that is down")
	s.settle(all, nil)
	s.h.Remove(s, all[1])
	s.settle(all, nil)
	s.holds(all...)
}

func testKeepAddrs(s *suite) {
	b := bridge("sn-a")
	up := &kernel.LinkUp{Link: b.Name}
	a4, a6 := &kernel.Addr{Link: b.Name, Prefix: pfx("10.1.0.1/24")}, &kernel.Addr{Link: b.Name, Prefix: pfx("fd00:1::1/64")}
	keep := &kernel.Sysctl{Name: "net/ipv6/conf/sn-a/keep_addr_on_down", Value: "1", Before: "0"}
	s.make(b, keep, a4, a6, up)
	s.ok(s.delete(up), "set down")
	s.holds(a4, a6)
	s.ok(s.delete(keep), "put back")
	s.make(up)
	s.ok(s.delete(up), "set down")
	s.holds(a4)
	s.absent(a6)
}

func testForeignLink(s *suite) {
	theirs := &kernel.Link{Name: "ext0", Type: kernel.Bridge}
	s.h.AddForeign(s, theirs)
	s.h.AddForeign(s, &kernel.Link{Name: "ext1", Type: kernel.Veth, Peer: &kernel.Peer{Name: "ext2"}})
	s.h.AddForeign(s, &kernel.LinkUp{Link: "ext0"})
	s.h.AddForeign(s, &kernel.Addr{Link: "ext0", Prefix: pfx("192.0.2.1/24")})
	s.h.AddForeign(s, &kernel.Addr{Link: "ext0", Prefix: pfx("2001:db8::1/64")})
	s.ours()
	s.holds(theirs) // asked for without a mark of ours, it is just a link

	for _, ours := range []*kernel.Link{bridge("ext0"), veth("ext1", "", "ext2"), veth("ext0", "", "sv-b")} {
		s.absent(ours)
		s.is(s.create(ours), kernel.ErrExists, "create over another's link")
		s.is(s.update(&kernel.Link{Name: ours.Name, Type: ours.Type}, ours), kernel.ErrExists, "update another's link")
		s.ok(s.delete(ours), "delete ours, which is not there")
		s.absent(ours, &kernel.Link{Name: "sv-b", Type: kernel.Veth})
	}
	s.holds(theirs, &kernel.LinkUp{Link: "ext0"}, &kernel.Addr{Link: "ext0", Prefix: pfx("192.0.2.1/24")},
		&kernel.Addr{Link: "ext0", Prefix: pfx("2001:db8::1/64")}, &kernel.Link{Name: "ext1", Type: kernel.Veth})
	s.ours()
}

func testFDB(s *suite) {
	ns := s.h.AddNamespace(s)
	b := bridge("sn-a")
	l1, l2 := veth("sv-a", ns, "eth0"), veth("sv-b", ns, "eth1")
	l1.Master, l2.Master = b.Name, b.Name
	l2.MAC, l2.Peer.MAC = "02:00:00:00:0c:02", "02:00:00:00:0d:02"
	one := &kernel.FDB{Link: l1.Name, MAC: "02:00:00:00:00:0a"}
	other := &kernel.FDB{Link: l2.Name, MAC: one.MAC}
	s.make(b, l1, l2, one)
	s.is(s.create(other), kernel.ErrExists, "one hardware address behind two ports")
	s.absent(other)
	s.holds(one)
	s.ok(s.delete(other), "delete what is behind the other port")
	s.holds(one)
	s.ok(s.delete(one), "delete")
	s.make(other)
	lone := veth("sv-c", ns, "eth2")
	s.make(lone)
	s.refused(s.create(&kernel.FDB{Link: lone.Name, MAC: one.MAC}), "a forwarding entry of what is no port")
}

// What a redirect hangs on goes by itself.
func testRedirect(s *suite) {
	ingress := &kernel.Qdisc{Link: "sn-a", Type: "ingress"}
	r := &kernel.Redirect{Link: "sn-a", To: "sn-i"}
	s.make(bridge("sn-a"), ifb("sn-i"))
	s.is(s.create(r), kernel.ErrAbsent, "a redirect without an ingress qdisc")
	s.ok(s.delete(r), "delete a redirect without an ingress qdisc")
	s.make(ingress)
	s.is(s.create(with(r, func(r *kernel.Redirect) { r.To = "sn-z" })), kernel.ErrAbsent, "a redirect to no link")
	s.make(r)
	s.ok(s.delete(ingress), "delete the qdisc")
	s.absent(r, ingress)
	s.make(ingress, r)
	s.ok(s.delete(ifb("sn-i")), "delete the link that it leads to")
	if got, _ := s.get(r).(*kernel.Redirect); got == nil || got.To != "" {
		s.Fatalf("a redirect to a link that went is listed as %v", got)
	}
	s.make(ifb("sn-i"))
	s.settle([]kernel.Object{bridge("sn-a"), ifb("sn-i"), ingress, r}, nil)
	s.ok(s.delete(bridge("sn-a")), "delete the link")
	s.absent(r, ingress)
}
