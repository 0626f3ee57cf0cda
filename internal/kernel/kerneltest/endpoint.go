package kerneltest

import (
	"fmt"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

// network gives the objects of a dual-stack network: bridge, addresses, masquerade.
func network(n int) []kernel.Object {
	name := fmt.Sprintf("sn-%d", n)
	group := fmt.Sprint(1<<30 + n)
	return []kernel.Object{
		&kernel.Link{Name: name, Type: kernel.Bridge, MTU: 1500, MAC: fmt.Sprintf("02:00:00:00:0b:%02x", n), Alias: alias, Group: uint32(1<<30 + n)},
		&kernel.LinkUp{Link: name},
		&kernel.Sysctl{Name: "net/ipv4/conf/" + name + "/route_localnet", Value: "1", Before: "0"},
		&kernel.Addr{Link: name, Prefix: pfx(fmt.Sprintf("10.%d.0.1/24", n))},
		&kernel.Addr{Link: name, Prefix: pfx(fmt.Sprintf("fd00:%d::1/64", n))},
		element(nets, group, ""),
		element(sub4, fmt.Sprintf("10.%d.0.0/24", n), ""),
		element(sub6, fmt.Sprintf("fd00:%d::/64", n), ""),
	}
}

// endpoint gives the objects of the i-th endpoint of network n in namespace ns, with a port of each family.
func endpoint(n, i int, ns, dev string) []kernel.Object {
	host := fmt.Sprintf("sv-%d-%d", n, i)
	a4, a6 := fmt.Sprintf("10.%d.0.%d", n, i), fmt.Sprintf("fd00:%d::%x", n, i)
	gw4, gw6 := ip(fmt.Sprintf("10.%d.0.1", n)), ip(fmt.Sprintf("fd00:%d::1", n))
	port := uint16(20000 + 100*n + i)
	return []kernel.Object{
		&kernel.Link{Name: host, Type: kernel.Veth, MTU: 1500, MAC: fmt.Sprintf("02:00:00:01:%02x:%02x", n, i), Alias: alias,
			Master: fmt.Sprintf("sn-%d", n), Port: &kernel.Port{Hairpin: true},
			Peer: &kernel.Peer{NS: ns, Name: dev, MTU: 1500, MAC: fmt.Sprintf("02:00:00:02:%02x:%02x", n, i), Alias: alias}},
		&kernel.LinkUp{Link: host}, &kernel.LinkUp{NS: ns, Link: dev}, &kernel.LinkUp{NS: ns, Link: "lo", Keep: true},
		&kernel.Sysctl{NS: ns, Name: "net/ipv6/conf/" + dev + "/accept_ra", Value: "0"},
		&kernel.Addr{NS: ns, Link: dev, Prefix: pfx(a4 + "/24")},
		&kernel.Addr{NS: ns, Link: dev, Prefix: pfx(a6 + "/64")},
		&kernel.Route{NS: ns, Dst: pfx("0.0.0.0/0"), Via: gw4, Link: dev, Metric: 10*n + i},
		&kernel.Route{NS: ns, Dst: pfx("::/0"), Via: gw6, Link: dev, Metric: 1024 + 10*n + i},
		element(port4, fmt.Sprintf("tcp . %d", port), a4+" . 80"),
		element(port6, fmt.Sprintf("tcp . fd00:%d::1 . %d", n, port), a6+" . 80"),
		&kernel.Hold{Protocol: "tcp", Addr: ip("0.0.0.0"), Port: port},
	}
}

func testEndpoint(s *suite) {
	ns := s.h.AddNamespace(s)
	net := append(network(1), table())
	ep := endpoint(1, 2, ns, "eth0")
	want := append(slices.Clone(net), ep...)

	diff := kernel.Diff(want, values(s.list(kernel.Scope{Objects: want, All: true})))
	for i, err := range s.apply(diff...) {
		s.ok(err, diff[i].String()) // one pass, in the order that Diff gives
	}
	s.holds(want...)
	for _, a := range []string{"10.1.0.2", "fd00:1::2"} {
		if !s.h.Usable(s, ns, ip(a)) {
			s.Errorf("%s can't be used at once", a)
		}
	}
	// What the kernel does by itself on links of ours (link-local addresses, own hardware addresses) is not ours.
	for range 2 {
		s.ours(inMachine(want)...)
		if left := kernel.Diff(want, values(s.list(kernel.Scope{Objects: want, All: true}))); len(left) > 0 {
			s.Fatalf("still different: %v", left)
		}
		s.h.Settle()
	}

	diff = kernel.Diff(net, values(s.list(kernel.Scope{Objects: net, All: true})))
	for i, err := range s.apply(diff...) {
		s.ok(err, diff[i].String())
	}
	s.holds(net...)
	s.ours(inMachine(net)...)
	s.absent(ep[0], ep[1], ep[2], ep[5], ep[6], ep[7], ep[8], ep[9], ep[10], ep[11])

	s.settle(want, nil)
	s.h.RemoveNamespace(s, ns)
	s.eventually("the endpoint's link is gone", func() bool { return s.get(ep[0]) == nil })
	for _, o := range slices.Backward(ep) {
		s.ok(s.delete(o), "delete with the namespace gone: "+o.String())
	}
	s.ours(inMachine(net)...)
	s.settle(nil, nil)
	s.ours()
}
