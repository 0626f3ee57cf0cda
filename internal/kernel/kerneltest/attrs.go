package kerneltest

import (
	"errors"
	"os"

	"github.com/seine-net/seine/internal/kernel"
)

func ptr[T any](v T) *T { return &v }

// lacking skips the case where the kernel has no links of a type. In the VM lab it has.
func (s *suite) lacking(l *kernel.Link, ability string) {
	s.Helper()
	err := s.create(l)
	if errors.Is(err, kernel.ErrUnsupported) && os.Getenv("SEINE_VM") != "1" {
		s.Skipf("skip: needs a kernel with %s (the VM lab has it: make vm): %v", ability, err)
	}
	s.ok(err, l.String())
}

// attrsOf gives what is listed of a link's attributes.
func (s *suite) attrsOf(ns, link string) *kernel.Attrs {
	s.Helper()
	a, _ := s.get(&kernel.Attrs{NS: ns, Link: link}).(*kernel.Attrs)
	if a == nil {
		s.Fatalf("attributes of %q are not listed", link)
	}
	return a
}

func testAttrs(s *suite) {
	ns := s.h.AddNamespace(s)
	want := &kernel.Attrs{NS: ns, Link: "eth0", MAC: "02:00:00:00:0d:07", MTU: 1400, TxQLen: ptr(2000), Promisc: ptr(true), AllMulti: ptr(true)}
	s.is(s.create(want), kernel.ErrAbsent, "attributes of no link")
	s.absent(want)
	s.ok(s.delete(with(want, func(a *kernel.Attrs) { a.Before = &kernel.Attrs{MTU: 1500} })), "put back on no link")
	l := veth("sv-a", ns, "eth0")
	s.make(l, &kernel.LinkUp{NS: ns, Link: "eth0"})

	before := s.attrsOf(ns, "eth0")
	if want.Holds(before) || before.MTU != l.Peer.MTU || before.MAC != l.Peer.MAC || *before.Master != "" || *before.TxQLen == 2000 {
		s.Fatalf("at first the attributes are %s", before)
	}
	s.ok(s.create(want), "set them, with a create whatever they were")
	s.holds(want)
	s.ok(s.create(&kernel.Attrs{NS: ns, Link: "eth0", MTU: 1300}), "set one of them")
	s.holds(with(want, func(a *kernel.Attrs) { a.MTU = 1300 }))
	s.ok(s.update(before, want), "update")
	s.holds(want)
	s.ok(s.delete(want), "delete without what was before")
	s.holds(want)
	s.refused(s.create(&kernel.Attrs{NS: ns, Link: "eth0", MTU: 5}), "an MTU that is none")
	s.holds(want)
	s.ok(s.create(&kernel.Attrs{NS: ns, Link: "eth0", Promisc: ptr(false)}), "turn one off")
	s.holds(with(want, func(a *kernel.Attrs) { a.Promisc = ptr(false) }))

	want.Before = before
	s.ok(s.delete(want), "delete")
	s.holds(before)
	s.unmake(l, want)
	s.ours()
}

func testAttrsMaster(s *suite) {
	b := bridge("sn-a")
	s.h.AddForeign(s, &kernel.Link{Name: "ext0", Type: kernel.Veth, Peer: &kernel.Peer{Name: "ext1"}})
	joined := &kernel.Attrs{Link: "ext0", Master: ptr("sn-a"), Before: &kernel.Attrs{Master: ptr("")}}
	s.is(s.create(joined), kernel.ErrAbsent, "a port of no bridge")
	s.make(b, joined)
	s.refused(s.create(&kernel.Attrs{Link: "ext1", Master: ptr("ext0")}), "a port of a veth")
	s.ok(s.delete(joined), "delete")
	s.holds(&kernel.Attrs{Link: "ext0", Master: ptr("")})
}

func testVRF(s *suite) {
	ns := s.h.AddNamespace(s)
	vrf := &kernel.Link{NS: ns, Name: "blue", Type: kernel.VRF, Table: 1001}
	s.lacking(vrf, "VRF")
	s.holds(vrf)
	if other := with(vrf, func(l *kernel.Link) { l.Table = 1002 }); !other.Replace(s.get(vrf).(*kernel.Link)) {
		s.Fatal("a VRF with another table need not be replaced")
	}
	s.make(veth("sv-a", ns, "eth0"), &kernel.LinkUp{NS: ns, Link: "eth0"}, &kernel.LinkUp{Link: "sv-a"}, &kernel.LinkUp{NS: ns, Link: "blue"})
	a4, a6 := &kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("10.1.0.2/24")}, &kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("fd00:1::2/64")}
	routes := []kernel.Object{
		&kernel.Route{NS: ns, Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "eth0"},
		&kernel.Route{NS: ns, Dst: pfx("fd00:9::/64"), Via: ip("fd00:1::9"), Link: "eth0", Metric: 1024},
	}
	s.make(append([]kernel.Object{a4, a6}, routes...)...)

	joined := &kernel.Attrs{NS: ns, Link: "eth0", Master: ptr("blue"), Before: &kernel.Attrs{Master: ptr("")}}
	s.ok(s.create(joined), "join the VRF")
	s.holds(joined, a4, &kernel.LinkUp{NS: ns, Link: "eth0"})
	s.absent(append(routes, a6)...) // joining sets the link down
	s.make(a6)
	for _, table := range []int{1001, 0} {
		listed := 0
		for _, o := range s.list(kernel.Scope{Objects: []kernel.Object{&kernel.Route{NS: ns, Link: "eth0"}}}) {
			if r := o.(*kernel.Route); r.TableOrMain() == (&kernel.Route{Table: table}).TableOrMain() && (r.Dst == pfx("10.1.0.0/24") || r.Dst == pfx("fd00:1::/64")) {
				listed++
			}
		}
		if want := map[int]int{1001: 2}[table]; listed != want {
			s.Fatalf("table %d has %d routes of subnets, want %d", table, listed, want)
		}
	}
	inVRF := &kernel.Route{NS: ns, Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "eth0", Table: 1001}
	s.make(inVRF)
	s.ok(s.delete(joined), "leave the VRF")
	s.holds(a4)
	s.absent(a6, inVRF)
	s.make(joined)
	s.ok(s.delete(vrf), "delete the VRF")
	s.absent(vrf)
	s.holds(&kernel.Attrs{NS: ns, Link: "eth0", Master: ptr("")}, a4)
}

// testEvery is about objects that leave out what names them, and about what others made being listed so that it can be
// deleted and be put back.
func testEvery(s *suite) {
	s.h.AddForeign(s, &kernel.Link{Name: "ext0", Type: kernel.Veth, Peer: &kernel.Peer{Name: "ext1"}})
	for _, o := range []kernel.Object{&kernel.LinkUp{Link: "ext0"}, &kernel.LinkUp{Link: "ext1"}, &kernel.Addr{Link: "ext0", Prefix: pfx("10.1.0.1/24")},
		&kernel.Addr{Link: "ext0", Prefix: pfx("fd00:1::1/64")}} {
		s.h.AddForeign(s, o)
	}
	theirs := []kernel.Object{
		&kernel.Route{Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "ext0", Table: 100},
		&kernel.Route{Dst: pfx("fd00:9::/64"), Via: ip("fd00:1::9"), Link: "ext0", Metric: 1024},
		&kernel.Rule{Priority: 200, From: pfx("10.1.0.1/32"), Table: 100},
		&kernel.Rule{V6: true, Priority: 200, From: pfx("fd00:1::1/128"), Table: 100},
	}
	for _, o := range theirs {
		s.h.AddForeign(s, o)
	}
	ours := []kernel.Object{
		&kernel.Route{Dst: pfx("10.8.0.0/24"), Via: ip("10.1.0.9"), Link: "ext0"},
		&kernel.Rule{Priority: 201, From: pfx("10.1.0.1/32"), Table: 100},
	}
	s.make(ours...)
	subnets := []kernel.Object{&kernel.Route{Dst: pfx("10.1.0.0/24"), Link: "ext0", Scope: kernel.ScopeLink, Src: ip("10.1.0.1")},
		&kernel.Route{Dst: pfx("fd00:1::/64"), Link: "ext0", Metric: 256}}

	every := kernel.Scope{Objects: []kernel.Object{&kernel.Link{}, &kernel.Route{Link: "ext0"}, &kernel.Rule{}}}
	// listed finds an object by all but the protocol number.
	listed := func(o kernel.Object) kernel.Object {
		s.Helper()
		for _, have := range s.list(every) {
			switch h := have.(type) {
			case *kernel.Route:
				if h.TableOrMain() == kernel.TableMain {
					have = with(h, func(r *kernel.Route) { r.Table = 0 })
				}
				if w, ok := o.(*kernel.Route); ok && w.Key() == h.Key() && w.Holds(h) {
					return have
				}
			case *kernel.Rule:
				if w, ok := o.(*kernel.Rule); ok && with(h, func(r *kernel.Rule) { r.Proto = 0 }).Key() == w.Key() {
					return have
				}
			case *kernel.Link:
				if w, ok := o.(*kernel.Link); ok && w.Name == h.Name {
					return have
				}
			}
		}
		return nil
	}
	for _, name := range []string{"lo", "ext0", "ext1"} {
		if listed(&kernel.Link{Name: name}) == nil {
			s.Fatalf("link %q is not listed", name)
		}
	}
	for _, o := range ours {
		if o := listed(o); o == nil || protoOf(o) != 0 {
			s.Fatalf("ours is listed as %v", o)
		}
	}
	for _, o := range append(theirs, subnets...) {
		have := listed(o)
		if have == nil || protoOf(have) == 0 {
			s.Fatalf("%s is listed as %v", o, have)
		}
		s.ok(s.delete(o), "delete it as ours")
		if listed(o) == nil {
			s.Fatalf("%s went as if it were ours", o)
		}
		s.ok(s.delete(have), "delete it as listed")
		if have := listed(o); have != nil {
			s.Fatalf("%s is listed after it was deleted", have)
		}
		s.ok(s.create(have), "put it back")
		if again := listed(o); again == nil || protoOf(again) != protoOf(have) {
			s.Fatalf("%s was put back as %v", have, again)
		}
		s.ok(s.delete(have), "delete it as listed")
	}
	for _, o := range ours {
		s.ok(s.delete(o), "delete ours")
	}
	for _, o := range s.list(every) {
		if r, ok := o.(*kernel.Rule); ok && r.From.IsValid() {
			s.Errorf("left is %s", r)
		}
	}
}

func protoOf(o kernel.Object) int {
	switch o := o.(type) {
	case *kernel.Route:
		return o.Proto
	case *kernel.Rule:
		return o.Proto
	}
	return 0
}
