package kerneltest

import "github.com/seine-net/seine/internal/kernel"

func id(n uint32) *uint32 { return &n }

func tap(name string) *kernel.Link {
	return &kernel.Link{Name: name, Type: kernel.Tap, MTU: 1400, MAC: "02:00:00:00:0e:01", Alias: alias}
}

func testTap(s *suite) {
	ns := s.h.AddNamespace(s)
	one := with(tap("tap0"), func(l *kernel.Link) { l.NS = ns })
	s.make(one)
	s.holds(with(one, func(l *kernel.Link) { l.Access = &kernel.Access{} }))
	s.absent(&kernel.Link{Name: "tap0", Type: kernel.Tap}) // it was not made in the machine's namespace and moved

	// The name is taken: by another TAP device, which opening it would attach to, and by something else.
	s.is(s.create(with(one, func(l *kernel.Link) { l.MTU = 1300 })), kernel.ErrExists, "a second TAP device of the name")
	s.h.AddForeign(s, &kernel.Link{NS: ns, Name: "ext0", Type: kernel.Bridge})
	s.is(s.create(with(one, func(l *kernel.Link) { l.Name = "ext0" })), kernel.ErrExists, "a TAP device of a bridge's name")
	s.holds(one, &kernel.Link{NS: ns, Name: "ext0", Type: kernel.Bridge})

	// Who may open it is settled when it is made.
	for _, a := range []*kernel.Access{{Owner: id(1000)}, {Group: id(0)}, {Owner: id(0), Group: id(107), MultiQueue: true}, {MultiQueue: true}} {
		other := with(one, func(l *kernel.Link) { l.Access = a })
		s.is(s.update(one, other), kernel.ErrExists, "to change in place what can't be: "+other.String())
		s.settle([]kernel.Object{other}, nil)
		s.holds(other)
	}

	bad := with(one, func(l *kernel.Link) { l.Name, l.Master = "tap1", "nope" })
	s.is(s.create(bad), kernel.ErrAbsent, "a port of no bridge")
	s.absent(&kernel.Link{NS: ns, Name: "tap1", Type: kernel.Tap})
	port := with(bad, func(l *kernel.Link) { l.Master, l.Port = "ext0", &kernel.Port{Isolated: true} })
	s.make(port)
	up := []kernel.Object{&kernel.LinkUp{NS: ns, Link: "tap0"}, &kernel.Addr{NS: ns, Link: "tap0", Prefix: pfx("10.1.0.1/24")},
		&kernel.Addr{NS: ns, Link: "tap0", Prefix: pfx("fd00:1::1/64")}}
	s.make(up...)
	if !s.h.Usable(s, ns, ip("fd00:1::1")) {
		s.Error("the IPv6 address of a TAP device that no program has open can't be used")
	}
	s.unmake(one, port)
	s.absent(append(up, one, port)...)
}

func testTun(s *suite) {
	one := &kernel.Link{Name: "tun0", Type: kernel.Tun, MTU: 1400, Alias: alias}
	s.make(one)
	s.holds(with(one, func(l *kernel.Link) { l.Access = &kernel.Access{} }))
	s.ours(one)
	s.is(s.create(with(one, func(l *kernel.Link) { l.MTU = 1300 })), kernel.ErrExists, "a second TUN device of the name")
	s.settle([]kernel.Object{with(one, func(l *kernel.Link) { l.MTU = 1300 })}, nil)
	tapped := with(tap("tun0"), func(l *kernel.Link) { l.MAC = "" })
	s.is(s.update(one, tapped), kernel.ErrExists, "to make a TAP device of it in place")
	s.settle([]kernel.Object{tapped}, nil)
	s.settle([]kernel.Object{one}, nil)
	s.refused(s.create(with(one, func(l *kernel.Link) { l.Name, l.MAC = "tun1", "02:00:00:00:0e:01" })), "one with a hardware address")
	s.absent(&kernel.Link{Name: "tun1", Type: kernel.Tun})
	up := &kernel.LinkUp{Link: "tun0"}
	s.make(up)
	s.unmake(one)
	s.absent(up, one)
}

func testTapContext(s *suite) {
	l := with(tap("tap0"), func(l *kernel.Link) { l.Access = &kernel.Access{Context: "system_u:system_r:container_t:s0"} })
	err := s.create(l)
	if err == nil {
		s.unmake(l)
		s.Skip("skip: needs a kernel without SELinux, or one with a policy that does not know container_t")
	}
	s.absent(&kernel.Link{Name: "tap0", Type: kernel.Tap})
	s.is(err, kernel.ErrUnsupported, "a device with a context where the kernel has no SELinux")
}

// device makes a link in the machine's namespace that can be moved: the end of a veth, as that is what every kernel has.
func (s *suite) device() (moved func(ns string) *kernel.Link) {
	s.Helper()
	s.h.AddForeign(s, &kernel.Link{Name: "ext0", Type: kernel.Veth, Peer: &kernel.Peer{Name: "ext1"}})
	s.h.AddForeign(s, &kernel.LinkUp{Link: "ext0"})
	s.h.AddForeign(s, &kernel.Addr{Link: "ext0", Prefix: pfx("192.0.2.1/24")})
	return func(ns string) *kernel.Link { return &kernel.Link{NS: ns, Name: "net1", Home: "ext0"} }
}

// home wants the device to be in the machine's namespace, down and as it was before it was ever moved.
func (s *suite) home() {
	s.Helper()
	l, _ := s.get(&kernel.Link{Name: "ext0"}).(*kernel.Link)
	if l == nil || l.Alias != "" || l.Type != kernel.Veth {
		s.Fatalf("the device is %v after it was given back", l)
	}
	s.absent(&kernel.LinkUp{Link: "ext0"}, &kernel.Addr{Link: "ext0", Prefix: pfx("192.0.2.1/24")})
}

func testHome(s *suite) {
	ns := s.h.AddNamespace(s)
	s.h.AddForeign(s, &kernel.Link{NS: ns, Name: "ext0", Type: kernel.Bridge}) // the container has its own by that name
	l := s.device()(ns)
	had, _ := s.get(&kernel.Link{Name: "ext0"}).(*kernel.Link)
	for range 2 {
		s.absent(l)
		s.ok(s.delete(l), "give back what is at home")
		s.make(l)
		s.ok(s.create(l), "move it again")
		s.absent(&kernel.Link{Name: "ext0"}, &kernel.LinkUp{NS: ns, Link: "net1"})
		got, _ := s.get(&kernel.Link{NS: ns, Name: "net1"}).(*kernel.Link)
		if got == nil || got.Alias != "ext0" || got.MAC != had.MAC || got.MTU != had.MTU || got.Type != had.Type || got.Home != "" {
			s.Fatalf("%s came as %v", had, got)
		}
		on := []kernel.Object{&kernel.LinkUp{NS: ns, Link: "net1"}, &kernel.Addr{NS: ns, Link: "net1", Prefix: pfx("10.1.0.2/24")},
			&kernel.Addr{NS: ns, Link: "net1", Prefix: pfx("fd00:1::2/64")},
			&kernel.Route{NS: ns, Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "net1"}}
		s.make(on...)
		s.unmake(append(on, l)...)
		s.absent(append(on, l)...)
		s.home()
		s.ok(s.delete(l), "give back again")
		s.home()
	}
	s.holds(&kernel.Link{NS: ns, Name: "ext0", Type: kernel.Bridge})
	s.ours()
}

func testHomeRefused(s *suite) {
	ns := s.h.AddNamespace(s)
	l := s.device()(ns)
	stays := func() {
		s.Helper()
		s.holds(&kernel.Link{Name: "ext0", Type: kernel.Veth}, &kernel.LinkUp{Link: "ext0"}, &kernel.Addr{Link: "ext0", Prefix: pfx("192.0.2.1/24")})
	}
	theirs := &kernel.Link{NS: ns, Name: "net1", Type: kernel.Bridge}
	s.h.AddForeign(s, theirs)
	s.is(s.create(l), kernel.ErrExists, "to a name that is taken")
	s.absent(l)
	s.ok(s.delete(l), "give back what another has the name of")
	s.holds(theirs)
	s.h.Remove(s, theirs)
	stays()
	s.is(s.create(with(l, func(l *kernel.Link) { l.Home = "nope" })), kernel.ErrAbsent, "a device that is not there")
	s.is(s.create(with(l, func(l *kernel.Link) { l.NS = "/run/netns/nope" })), kernel.ErrNamespaceGone, "to no namespace")
	s.ok(s.delete(with(l, func(l *kernel.Link) { l.NS = "/run/netns/nope" })), "give back from no namespace")
	s.refused(s.create(with(l, func(l *kernel.Link) { l.MTU = 1400 })), "to change a device that is moved")
	s.refused(s.create(with(l, func(l *kernel.Link) { l.NS = "" })), "to give a device of the machine another name")
	s.refused(s.create(with(l, func(l *kernel.Link) { l.Home = "lo" })), "to move lo")
	stays()
	s.make(l)
	s.ok(s.delete(with(l, func(l *kernel.Link) { l.Home = "ext7" })), "give back another device of the name")
	s.is(s.update(l, with(l, func(l *kernel.Link) { l.Home = "ext7" })), kernel.ErrExists, "to change one device into another")
	s.holds(l)
}

func testHomeTaken(s *suite) {
	ns := s.h.AddNamespace(s)
	l := s.device()(ns)
	s.make(l)
	taker := &kernel.Link{Name: "ext0", Type: kernel.Bridge}
	s.h.AddForeign(s, taker)
	s.ok(s.delete(l), "give back where the name is taken")
	s.absent(l)
	var lost *kernel.Link
	for _, o := range s.list(kernel.Scope{Links: true}) {
		if o := o.(*kernel.Link); o.Alias == "ext0" {
			lost = o
		}
	}
	if lost == nil || lost.NS != "" || lost.Type != kernel.Veth {
		s.Fatalf("the device is %v after it was given back", lost)
	}
	s.holds(taker)
	s.h.Remove(s, taker)
	s.ok(s.delete(&kernel.Link{Name: lost.Name, Home: "ext0"}), "give the name back")
	s.home()
	s.absent(&kernel.Link{Name: lost.Name})
}

func testAllLinks(s *suite) {
	ns := s.h.AddNamespace(s)
	s.make(bridge("sn-a"), veth("sv-a", ns, "eth0"), with(tap("tap0"), func(l *kernel.Link) { l.NS = ns }))
	s.h.AddForeign(s, &kernel.Link{Name: "ext0", Type: kernel.Bridge})
	all := s.list(kernel.Scope{Links: true, Objects: []kernel.Object{veth("sv-a", ns, "eth0")}})
	for _, l := range []*kernel.Link{bridge("sn-a"), veth("sv-a", ns, "eth0"), {Name: "ext0", Type: kernel.Bridge}, {Name: "lo", Type: kernel.Loopback}} {
		if o := all[l.Key()]; o == nil || !l.Holds(o) {
			s.Errorf("%s is listed as %v", l, o)
		}
		delete(all, l.Key())
	}
	if len(all) > 0 {
		s.Errorf("the listing of the machine's links has %v", all)
	}
}
