package kerneltest

import (
	"errors"
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
)

func testHold(s *suite) {
	for _, h := range []*kernel.Hold{
		{Protocol: "tcp", Addr: ip("0.0.0.0"), Port: 8080},
		{Protocol: "tcp", Addr: ip("::"), Port: 8080},
		{Protocol: "udp", Addr: ip("0.0.0.0"), Port: 8080},
		{Protocol: "udp", Addr: ip("::"), Port: 8080},
		{Protocol: "tcp", Addr: ip("127.0.0.1"), Port: 8081},
		{Protocol: "udp", Addr: ip("::1"), Port: 8081},
		{Protocol: "sctp", Addr: ip("0.0.0.0"), Port: 8082},
		{Protocol: "sctp", Addr: ip("::"), Port: 8082},
	} {
		s.make(&kernel.LinkUp{Link: "lo", Keep: true})
		if h.Protocol == "sctp" {
			if err := s.create(h); errors.Is(err, kernel.ErrUnsupported) {
				s.Log("skip: this kernel has no SCTP")
				continue
			}
		}
		s.make(h)
		s.ok(s.create(h), "create again")
		s.ours(h)
		at := netip.AddrPortFrom(h.Addr, h.Port)
		if h.Protocol != "sctp" {
			if _, err := s.h.Occupy(s, h.Protocol, at); err == nil {
				s.Fatalf("%s: another program got the port", h)
			}
		}
		s.ok(s.delete(h), "delete")
		s.ok(s.delete(h), "delete again")
		s.absent(h)
		if h.Protocol == "sctp" {
			continue
		}
		release, err := s.h.Occupy(s, h.Protocol, at)
		s.ok(err, "let another program have the port")
		s.is(s.create(h), kernel.ErrInUse, h.String())
		s.absent(h)
		s.ok(s.delete(h), "delete what was refused")
		release()
		s.make(h)
		s.ok(s.delete(h), "delete")
	}
}

func testHoldOverlap(s *suite) {
	s.make(&kernel.LinkUp{Link: "lo", Keep: true})
	for _, proto := range []string{"tcp", "udp"} {
		any4 := &kernel.Hold{Protocol: proto, Addr: ip("0.0.0.0"), Port: 8080}
		one4 := &kernel.Hold{Protocol: proto, Addr: ip("127.0.0.1"), Port: 8080}
		any6 := &kernel.Hold{Protocol: proto, Addr: ip("::"), Port: 8080}
		s.make(any4, any6) // the families do not share ports
		s.is(s.create(one4), kernel.ErrInUse, "one address of all that are held")
		s.absent(one4)
		s.ok(s.delete(any4), "delete")
		s.make(one4)
		s.is(s.create(any4), kernel.ErrInUse, "all addresses of which one is held")
		s.make(&kernel.Hold{Protocol: proto, Addr: ip("127.0.0.2"), Port: 8080})
	}
}
