package kerneltest

import (
	"context"
	"errors"

	"github.com/seine-net/seine/internal/kernel"
)

// on is a link of one of the types that are made on another link.
func on(typ kernel.LinkType, ns, name string, parent *kernel.Link) *kernel.Link {
	l := &kernel.Link{NS: ns, Name: name, Type: typ, Alias: alias, Parent: &kernel.Parent{NS: parent.NS, Name: parent.Name}}
	switch typ {
	case kernel.Macvlan:
		l.Mode, l.MAC, l.MTU = "bridge", "02:00:00:00:0e:01", 1400
	case kernel.Ipvlan:
		l.Mode, l.Flag = "l2", "bridge"
	case kernel.VLAN:
		l.VLAN = 7
	}
	return l
}

// needs skips the test where the kernel lacks links of a type.
func (s *suite) needs(typ kernel.LinkType) {
	s.Helper()
	ns := s.h.AddNamespace(s)
	b := bridge("sn-probe")
	b.NS = ns
	l := &kernel.Link{NS: ns, Name: "probe", Type: typ}
	switch typ {
	case kernel.Macvlan, kernel.Ipvlan, kernel.VLAN:
		l = on(typ, ns, "probe", b)
	}
	s.make(b)
	if err := s.create(l); errors.Is(err, kernel.ErrUnsupported) {
		s.Skipf("skip: needs a kernel with links of type %s: %v", typ, err)
	} else if err != nil {
		s.Fatalf("probe for links of type %s: %v", typ, err)
	}
	s.h.RemoveNamespace(s, ns)
}

func needing(typ kernel.LinkType) func(*suite) { return func(s *suite) { s.needs(typ) } }

func parentLifecycles() []lifecycle {
	br := bridge("sn-a")
	macvlan, ipvlan, vlan := on(kernel.Macvlan, "", "mv", br), on(kernel.Ipvlan, "", "iv", br), on(kernel.VLAN, "", "vl", br)
	needs := []kernel.Object{br}
	return []lifecycle{
		{name: "dummy", object: &kernel.Link{Name: "du", Type: kernel.Dummy, Alias: alias, MAC: "02:00:00:00:0e:01"}, free: true, byHand: true,
			prepare: needing(kernel.Dummy),
			changed: &kernel.Link{Name: "du", Type: kernel.Dummy, Alias: alias, MAC: "02:00:00:00:0e:02", MTU: 9000}},
		{name: "macvlan", needs: needs, object: macvlan, byHand: true, prepare: needing(kernel.Macvlan),
			changed: with(macvlan, func(l *kernel.Link) { l.Mode, l.MTU, l.MAC, l.BCQueueLen = "private", 1300, "02:00:00:00:0e:02", 77 })},
		{name: "ipvlan", needs: needs, object: ipvlan, byHand: true, prepare: needing(kernel.Ipvlan),
			changed: with(ipvlan, func(l *kernel.Link) { l.Mode, l.Flag, l.Alias = "l3", "private", alias+"2" })},
		{name: "vlan", needs: needs, object: vlan, byHand: true, prepare: needing(kernel.VLAN),
			changed: with(vlan, func(l *kernel.Link) { l.MTU, l.Alias = 1300, alias+"2" })},
	}
}

// onElsewhere: a link in a container on one of the machine, under a name that the machine has a link of as well.
func onElsewhere(typ kernel.LinkType) func(*suite) {
	return func(s *suite) {
		s.needs(typ)
		ns := s.h.AddNamespace(s)
		parent, other := bridge("eth0"), bridge("sn-b")
		up := &kernel.LinkUp{Link: "eth0"}
		l := on(typ, ns, "eth0", parent)
		s.is(s.create(l), kernel.ErrAbsent, "create without its parent")
		s.absent(l)
		s.make(parent, other, up)
		s.make(l, &kernel.LinkUp{NS: ns, Link: "eth0"}, &kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("10.1.0.2/24")},
			&kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("fd00:1::2/64")})
		s.ok(s.create(l), "create again")
		s.ours(parent, other, up) // what is in containers is not listed as the machine's

		moved := with(l, func(o *kernel.Link) { o.Parent = &kernel.Parent{Name: "sn-b"} })
		if got := s.get(moved); got == nil || moved.Holds(got) || !moved.Replace(got.(*kernel.Link)) {
			s.Fatalf("%s: asked for on %s it is listed as %v", l, moved.Parent.Name, got)
		}
		s.is(s.create(moved), kernel.ErrExists, "create on another parent")
		s.is(s.update(l, moved), kernel.ErrExists, "move to another parent")
		s.holds(l)
		s.settle([]kernel.Object{parent, other, up, moved}, nil)
		s.holds(moved)
		s.absent(&kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("10.1.0.2/24")})
		s.ok(s.delete(moved), "delete")
		s.absent(l, moved)

		s.make(l)
		s.ok(s.delete(parent), "delete the parent")
		s.absent(l, &kernel.LinkUp{NS: ns, Link: "eth0"})
		s.make(parent, l)
		s.h.RemoveNamespace(s, ns)
		s.absent(l)
		s.ok(s.delete(l), "delete from a namespace that is gone")
		s.is(s.create(l), kernel.ErrNamespaceGone, "create in a namespace that is gone")
		l = on(typ, s.h.AddNamespace(s), "eth0", parent)
		s.eventually("the parent takes another of the kind", func() bool { return s.create(l) == nil })
		s.holds(l)
	}
}

// onNameTaken: where the name is taken the parent keeps no link either. A macvlan that wants its parent for itself tells.
func onNameTaken(s *suite) {
	s.needs(kernel.Macvlan)
	ns := s.h.AddNamespace(s)
	b := bridge("sn-a")
	s.make(b, veth("sv-a", ns, "eth0"))
	l := on(kernel.Macvlan, ns, "eth0", b)
	for range 2 {
		s.is(s.create(l), kernel.ErrExists, "create under the name of another link")
		s.holds(&kernel.Link{NS: ns, Name: "eth0", Type: kernel.Veth})
	}
	l.Name, l.Mode = "eth1", "passthru"
	s.ok(s.create(l), "create in mode passthru")
	l.MAC = b.MAC // whatever was asked for
	s.holds(l)
	second := on(kernel.Macvlan, ns, "eth2", b)
	s.refused(s.create(second), "another beside one in mode passthru")
	s.absent(second)
	second.Parent = &kernel.Parent{NS: ns, Name: "eth9"}
	s.is(s.create(second), kernel.ErrAbsent, "create on a parent in the container that is not there")
}

// onInside: the parent is in the container, and may be such a link itself.
func onInside(typ kernel.LinkType) func(*suite) {
	return func(s *suite) {
		s.needs(typ)
		ns := s.h.AddNamespace(s)
		b := bridge("sn-a")
		first := on(typ, ns, "net1", b)
		second := on(typ, ns, "net2", first)
		if typ == kernel.Macvlan {
			second.MAC = "02:00:00:00:0e:02"
		}
		up := []kernel.Object{&kernel.LinkUp{Link: b.Name}, &kernel.LinkUp{NS: ns, Link: first.Name}, &kernel.LinkUp{NS: ns, Link: second.Name}}
		s.make(b, first)
		s.make(second)
		for _, o := range up {
			s.make(o)
		}
		s.holds(b, first, second)
		s.ok(s.create(second), "create again")
		s.settle([]kernel.Object{b, up[0]}, []kernel.Object{first, second})
		s.absent(first, second)

		third := on(typ, ns, "net3", veth("eth0", "", ""))
		third.Parent.NS = ns
		s.make(veth("sv-a", ns, "eth0"), third)
		s.ok(s.delete(veth("sv-a", ns, "eth0")), "delete the parent by its other end")
		s.absent(third)
	}
}

func testVLANUp(s *suite) {
	s.needs(kernel.VLAN)
	ns := s.h.AddNamespace(s)
	b := bridge("sn-a")
	l := on(kernel.VLAN, ns, "eth0", b)
	up, inner := &kernel.LinkUp{Link: "sn-a"}, &kernel.LinkUp{NS: ns, Link: "eth0"}
	s.make(b, l)
	s.is(s.create(inner), kernel.ErrAbsent, "set up on a parent that is down")
	s.make(up)
	s.make(inner)
	s.ok(s.delete(up), "set the parent down")
	s.absent(inner)
	s.make(up)
	s.holds(inner)
	s.is(s.create(on(kernel.VLAN, s.h.AddNamespace(s), "eth0", b)), kernel.ErrExists, "a second link of the same tag")
	zero := with(l, func(o *kernel.Link) { o.Name, o.VLAN = "eth1", 0 })
	s.make(zero)
	s.holds(l, zero)
}

// testTaken: a link that somebody else has moved away is left alone, and goes where it came back.
func testTaken(s *suite) {
	ns := s.h.AddNamespace(s)
	b := bridge("sn-a")
	l := on(kernel.Macvlan, "", "sc-a", b)
	taken := with(l, func(o *kernel.Link) { o.Taken, o.MTU = true, 1300 })
	s.make(b)
	s.ok(s.create(taken), "create what is taken")
	s.absent(&kernel.Link{Name: "sc-a", Type: kernel.Macvlan})
	s.holds(taken)
	s.make(l)
	s.holds(taken)
	s.h.Move(s, "sc-a", ns, "eth7")
	s.absent(l)
	s.holds(taken)
	s.settle([]kernel.Object{b, taken}, nil)
	s.absent(l)
	s.ok(s.update(l, taken), "update what is taken")
	s.ok(s.delete(taken), "delete what is elsewhere")
	s.holds(&kernel.Link{NS: ns, Name: "eth7", Type: kernel.Macvlan, MTU: 1400})
	other := &kernel.Link{Name: "sc-a", Type: kernel.Bridge}
	s.h.AddForeign(s, other)
	s.ok(s.delete(taken), "delete where another has the name")
	s.holds(other)
	s.h.Remove(s, other)
	s.h.RemoveNamespace(s, ns)
	s.make(with(l, func(o *kernel.Link) { o.MAC = "02:00:00:00:0e:02" }))
	s.ok(s.delete(taken), "delete what came back")
	s.absent(l)
}

// testRenamedParent: a link on a parent that got another name holds, until another link has that name.
func testRenamedParent(s *suite) {
	ns := s.h.AddNamespace(s)
	b := bridge("sn-a")
	l := on(kernel.Macvlan, ns, "eth0", b)
	s.make(b, l)
	s.h.Move(s, "sn-a", "", "sn-b")
	s.holds(l)
	s.is(s.create(with(l, func(o *kernel.Link) { o.Name, o.MAC = "eth1", "02:00:00:00:0e:02" })), kernel.ErrAbsent, "create on a parent of another name now")
	s.h.AddForeign(s, &kernel.Link{Name: "sn-a", Type: kernel.Bridge})
	if got := s.get(l); got == nil || l.Holds(got) {
		s.Fatalf("%s: on another parent it is listed as %v", l, got)
	}
}

func testParentModes(s *suite) {
	for typ, modes := range map[kernel.LinkType][]string{kernel.Macvlan: {"private", "vepa", "bridge"}, kernel.Ipvlan: {"l2", "l3", "l3s"}} {
		ns := s.h.AddNamespace(s)
		b := bridge("sn-" + string(typ))
		first := on(typ, ns, string(typ), b)
		first.Mode = modes[0]
		s.make(b)
		if err := s.create(first); errors.Is(err, kernel.ErrUnsupported) && typ != kernel.Macvlan {
			s.Logf("skip: needs a kernel with links of type %s: %v", typ, err)
			continue
		}
		for _, m := range append(modes, modes[0]) {
			l := with(first, func(o *kernel.Link) { o.Mode = m })
			s.settle([]kernel.Object{b, l}, nil)
			s.holds(l)
		}
		s.refused(s.create(with(first, func(o *kernel.Link) { o.Name, o.Mode = "x", "none" })), "a mode that is none")
		s.absent(&kernel.Link{NS: ns, Name: "x", Type: typ})
		if typ == kernel.Ipvlan {
			continue // takes any MTU
		}
		s.refused(s.create(with(first, func(o *kernel.Link) { o.Name, o.MTU, o.MAC = "x", 9000, "" })), "a larger MTU than the parent's")
		s.absent(&kernel.Link{NS: ns, Name: "x", Type: typ})
	}
}

// testDefaultLink: which link a namespace's default route leaves by.
func testDefaultLink(s *suite) {
	k := s.k.(interface {
		DefaultLink(ctx context.Context, ns string) (string, error)
	})
	ns := s.h.AddNamespace(s)
	is := func(want string) {
		s.Helper()
		got, err := k.DefaultLink(s.Context(), ns)
		s.ok(err, "DefaultLink")
		if got != want {
			s.Fatalf("the default route leaves by %q, want %q", got, want)
		}
	}
	is("")
	var world []kernel.Object
	for i, name := range []string{"a", "b"} {
		br := bridge(name)
		br.NS = ns
		world = append(world, br, &kernel.LinkUp{NS: ns, Link: name},
			&kernel.Addr{NS: ns, Link: name, Prefix: pfx([]string{"10.1.0.1/24", "10.2.0.1/24"}[i])},
			&kernel.Addr{NS: ns, Link: name, Prefix: pfx([]string{"fd00:1::1/64", "fd00:2::1/64"}[i])})
	}
	s.make(world...)
	is("")
	s.make(&kernel.Route{NS: ns, Dst: pfx("10.9.0.0/16"), Via: ip("10.1.0.9"), Link: "a"},
		&kernel.Route{NS: ns, Dst: pfx("0.0.0.0/0"), Via: ip("10.1.0.9"), Link: "a", Table: 100})
	is("")
	s.make(&kernel.Route{NS: ns, Dst: pfx("::/0"), Via: ip("fd00:2::9"), Link: "b", Metric: 1024})
	is("b")
	s.h.AddForeign(s, &kernel.Route{NS: ns, Dst: pfx("::/0"), Via: ip("fd00:1::9"), Link: "a", Metric: 100})
	is("a")
	s.make(&kernel.Route{NS: ns, Dst: pfx("0.0.0.0/0"), Via: ip("10.2.0.9"), Link: "b", Metric: 7})
	is("b")
	s.make(&kernel.Route{NS: ns, Dst: pfx("0.0.0.0/0"), Via: ip("10.1.0.9"), Link: "a", Metric: 3})
	is("a")
	if _, err := k.DefaultLink(s.Context(), "/run/netns/seine-kerneltest-nope"); !errors.Is(err, kernel.ErrNamespaceGone) {
		s.Fatalf("DefaultLink of a namespace that is gone: %v", err)
	}
}

// testMarkInNamespaces: Scope.Mark finds links in other namespaces, and nothing that was not asked for.
func testMarkInNamespaces(s *suite) {
	here, there, other := s.h.AddNamespace(s), s.h.AddNamespace(s), s.h.AddNamespace(s)
	b := bridge("sn-a")
	var links []*kernel.Link
	for i, ns := range []string{here, there, other} {
		l := on(kernel.Macvlan, ns, "eth0", b)
		l.Alias, l.MAC = "mark:"+ns, []string{"02:00:00:00:0e:01", "02:00:00:00:0e:02", "02:00:00:00:0e:03"}[i]
		links = append(links, l)
	}
	unmarked := on(kernel.Macvlan, here, "eth1", b)
	unmarked.Alias, unmarked.MAC = "", "02:00:00:00:0e:04"
	s.make(b, links[0], links[1], links[2], unmarked)
	got := s.list(kernel.Scope{Mark: "mark:", MarkNS: []string{here, there, "/run/netns/seine-kerneltest-nope"}})
	for _, l := range links[:2] {
		if a, ok := got[l.Key()].(*kernel.Link); !ok || a.Alias != l.Alias || a.Type != l.Type {
			s.Errorf("%s: is listed as %v", l, got[l.Key()])
		} else {
			s.ok(s.delete(a), "delete what was listed")
		}
		s.absent(l)
		delete(got, l.Key())
	}
	for _, o := range got {
		s.Errorf("%s: is listed", o)
	}
	s.holds(links[2], unmarked)
}

func parentCases() []testCase {
	all := []testCase{
		{"macvlan under a taken name", onNameTaken},
		{"vlan up", testVLANUp},
		{"link that is taken", testTaken},
		{"parent that is renamed", testRenamedParent},
		{"modes of links on a parent", testParentModes},
		{"default link", testDefaultLink},
		{"marked links of other namespaces", testMarkInNamespaces},
	}
	for _, typ := range []kernel.LinkType{kernel.Macvlan, kernel.Ipvlan, kernel.VLAN} {
		all = append(all, testCase{string(typ) + " on another namespace's link", onElsewhere(typ)},
			testCase{string(typ) + " on a link of its namespace", onInside(typ)})
	}
	for _, l := range parentLifecycles() {
		all = append(all, testCase{"lifecycle of " + l.name, l.run})
	}
	return all
}
