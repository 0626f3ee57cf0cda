package docker_test

import (
	"net/netip"

	"github.com/seine-net/seine/internal/testkit"
)

// neighbours: a network of Docker's bridge driver and one of ours are as apart as two of Docker's are: no container
// reaches the other's address, but each reaches the other's published ports by the machine's addresses. A container on
// both networks reaches both.
func neighbours(r *rig) {
	r.docker("network", "create", "--ipv6", "--subnet", "10.91.0.0/24", "--subnet", "fd00:91::/64", "theirs")
	r.create("ours", "--ipv6")
	theirs, ours := r.run("theirs", "theirs", "-p", "8081:80"), r.run("ours", "ours", "-p", "8082:80", "-p", "8082:80/udp")
	first := r.run("first", "bridge") // of docker0, without IPv6
	for _, from := range []*testkit.NS{theirs, first} {
		for _, to := range r.addr("ours", "ours") {
			if to.Is4() || from == theirs {
				r.cantReach(from, to, 80)
			}
		}
		r.reach(from, r.machine.V4, 8082, "ours", netip.Addr{})
	}
	for _, to := range append(r.addr("theirs", "theirs"), r.addr("first", "bridge")...) {
		r.cantReach(ours, to, 80)
	}
	for _, to := range r.machine.Addrs() {
		testkit.Reach(r.T, ours, "tcp", netip.AddrPortFrom(to, 8081))
	}
	r.works(ours, 8082)
	out := testkit.Serve(r.T, r.outside.NS, "tcp", "[::]:0")
	testkit.Reach(r.T, theirs, "tcp", netip.AddrPortFrom(testkit.Far4, out.Port()))
	r.docker("network", "connect", "ours", "theirs")
	r.mutual("ours", ours, theirs)
	r.docker("network", "connect", "theirs", "ours")
	r.reach(ours, r.addr("theirs", "theirs")[0], 80, "theirs", r.addr("ours", "theirs")[0])
}
