package kerneltest

import (
	"errors"

	"github.com/seine-net/seine/internal/kernel"
)

// filtering makes a bridge that filters by VLAN, and skips the case where the kernel can't.
func (s *suite) filtering(name string) *kernel.Link {
	s.Helper()
	b := with(bridge(name), func(l *kernel.Link) { l.VLANFiltering = true })
	err := s.create(b)
	if errors.Is(err, kernel.ErrUnsupported) {
		s.absent(b) // nothing is left of the attempt
		s.Skipf("skip: needs VLAN filtering on bridges (the VM lab has it): %v", err)
	}
	s.ok(err, "create")
	s.holds(b)
	return b
}

func testVLANFiltering(s *suite) {
	b := s.filtering("sn-a")
	s.ok(s.create(b), "create again")
	s.ours(b)
	s.unmake(b)
	plain := bridge("sn-a")
	s.make(plain)
	if s.get(plain).(*kernel.Link).VLANFiltering {
		s.Fatal("a bridge filters by VLAN that was not asked to")
	}
	s.is(s.create(b), kernel.ErrExists, "create one that filters in place of one that does not")
	s.ok(s.update(plain, b), "turn it on")
	s.holds(b)
	s.ok(s.update(b, plain), "leave it alone")
	s.holds(b)
}

// port makes a port of a bridge.
func (s *suite) port(bridge, name, peer string, last string) *kernel.Link {
	s.Helper()
	l := veth(name, "", peer)
	l.Master, l.MAC, l.Peer.MAC = bridge, "02:00:00:00:0c:"+last, "02:00:00:00:0d:"+last
	s.make(l)
	return l
}

func testPortVLANs(s *suite) {
	b := s.filtering("sn-a")
	vlans := func(link string, v ...kernel.VLANRange) *kernel.PortVLANs {
		return &kernel.PortVLANs{Link: link, VLANs: v}
	}
	one := kernel.VLANRange{First: 1, Last: 1, PVID: true, Untagged: true}
	hundred := kernel.VLANRange{First: 100, Last: 100, PVID: true, Untagged: true}
	trunk := kernel.VLANRange{First: 200, Last: 299}
	s.is(s.create(vlans("sv-a", hundred)), kernel.ErrAbsent, "VLANs of no link")
	s.absent(vlans("sv-a", hundred))
	s.ok(s.delete(vlans("sv-a", hundred)), "delete what never was")
	lone := veth("sv-a", "", "sv-b")
	s.make(lone)
	s.is(s.create(vlans("sv-a", hundred)), kernel.ErrAbsent, "VLANs of what is no port")
	s.absent(vlans("sv-a", hundred))
	s.unmake(lone)

	p := s.port(b.Name, "sv-a", "sv-b", "01")
	s.holds(vlans("sv-a", one), vlans(b.Name, one))
	s.make(vlans("sv-a", hundred))
	s.ours(b, p) // they belong to the port and are nothing of their own
	want := vlans("sv-a", hundred, trunk)
	s.ok(s.update(s.get(want), want), "add a trunk")
	s.holds(want)
	want = vlans("sv-a", kernel.VLANRange{First: 99, Last: 99, PVID: true, Untagged: true}, kernel.VLANRange{First: 100, Last: 101}, kernel.VLANRange{First: 250, Last: 4094})
	s.ok(s.update(s.get(want), want), "move to others")
	s.holds(want)
	if vlans("sv-a", hundred).Holds(s.get(want)) {
		s.Fatal("VLAN 100 as it was holds")
	}
	want = vlans("sv-a", hundred, trunk)
	s.ok(s.create(want), "create over others")
	s.holds(want)
	s.ok(s.delete(want), "delete")
	s.holds(want) // they go with the port

	kept := s.port(b.Name, "sv-c", "sv-d", "02")
	want = &kernel.PortVLANs{Link: kept.Name, VLANs: []kernel.VLANRange{hundred}, Keep: true}
	s.make(want)
	s.holds(vlans(kept.Name, kernel.VLANRange{First: 1, Last: 1, Untagged: true}, hundred))
	s.unmake(p)
	s.absent(vlans("sv-a", hundred))
}

func testBridgeVLANs(s *suite) {
	b1, b2 := s.filtering("sn-a"), bridge("sn-b")
	s.make(b2)
	p1, p2, p3 := s.port("sn-a", "sv-a", "sv-b", "01"), s.port("sn-a", "sv-c", "sv-d", "02"), s.port("sn-b", "sv-e", "sv-f", "03")
	want := []kernel.Object{
		&kernel.PortVLANs{Link: p1.Name, VLANs: []kernel.VLANRange{{First: 7, Last: 7, PVID: true, Untagged: true}, {First: 20, Last: 30}}},
		&kernel.PortVLANs{Link: p2.Name, VLANs: []kernel.VLANRange{{First: 40, Last: 40}}},
	}
	own := &kernel.PortVLANs{Link: b1.Name, VLANs: []kernel.VLANRange{{First: 7, Last: 7}, {First: 9, Last: 11}}}
	s.make(append(want, own)...)
	found := s.list(kernel.Scope{Objects: []kernel.Object{&kernel.PortVLANs{Bridge: "sn-a"}}})
	for _, o := range want {
		if a := found[o.Key()]; a == nil || !o.Holds(a) {
			s.Errorf("%s is listed as %v", o, a)
		}
		delete(found, o.Key())
	}
	for _, o := range found {
		s.Errorf("%s is listed for another bridge than %s's", o, p3.Master)
	}
	if found := s.list(kernel.Scope{Objects: []kernel.Object{&kernel.PortVLANs{Bridge: "sn-nope"}}}); len(found) != 0 {
		s.Errorf("ports of no bridge: %v", found)
	}
}
