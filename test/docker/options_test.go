package docker_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// networkOptions: every option of `docker network create` that is ours does what it says, seen from inside.
func networkOptions(r *rig) {
	out := testkit.Serve(r.T, r.outside.NS, "tcp", "[::]:0")
	leaves := func(from *testkit.NS, v6 bool) {
		r.Helper()
		for _, to := range far(v6) {
			testkit.Reach(r.T, from, "tcp", netip.AddrPortFrom(to, out.Port()))
		}
	}
	r.Run("own addresses", func(t *testing.T) {
		r := r.with(t)
		r.create("auto", "--ipv6")
		a, b := r.run("ca", "auto"), r.run("cb", "auto")
		if n := len(r.addr("ca", "auto")); n != 2 {
			t.Errorf("ca has %d addresses, want one of each family", n)
		}
		r.mutual("auto", a, b)
		leaves(a, true)
	})
	r.Run("Docker's addresses", func(t *testing.T) {
		r := r.with(t)
		r.docker("network", "create", "-d", driver, "--subnet", "10.61.0.0/24", "--ipv6", "--subnet", "fd00:61::/64", "theirs")
		c, d := r.run("cc", "theirs"), r.run("cd", "theirs")
		r.mutual("theirs", c, d)
		leaves(c, true)
	})
	r.Run("range, gateway and auxiliary address", func(t *testing.T) {
		r := r.with(t)
		r.create("part", "--subnet", "10.62.0.0/24", "--ip-range", "10.62.0.128/29", "--gateway", "10.62.0.254", "--aux-address", "router=10.62.0.129")
		e, f := r.run("ce", "part"), r.run("cf", "part")
		for _, name := range []string{"ce", "cf"} {
			a := r.addr(name, "part")[0]
			if !netip.MustParsePrefix("10.62.0.128/29").Contains(a) || a == netip.MustParseAddr("10.62.0.129") {
				t.Errorf("%s has %s, want one of 10.62.0.128/29 without 10.62.0.129", name, a)
			}
		}
		if gw := gateways(t, e); gw != "10.62.0.254" {
			t.Errorf("gateways are %s", gw)
		}
		r.mutual("part", e, f)
		leaves(e, false)
	})
	r.Run("mtu, and no packets among containers", func(t *testing.T) {
		r := r.with(t)
		r.create("tight", "--ipv6", "-o", "com.docker.network.driver.mtu=1300", "-o", "com.docker.network.bridge.enable_icc=false")
		g, h := r.run("cg", "tight"), r.run("ch", "tight")
		l, err := g.Netlink().LinkByName("eth0")
		if err != nil || l.Attrs().MTU != 1300 {
			t.Errorf("link is %+v, %v; want an MTU of 1300", l, err)
		}
		for _, a := range r.addr("ch", "tight") {
			r.cantReach(g, a, 80)
			testkit.Reach(t, r.machine.NS, "tcp", netip.AddrPortFrom(a, 80))
		}
		leaves(h, true)
	})
	r.Run("internal", func(t *testing.T) {
		r := r.with(t)
		r.create("inner", "--internal", "--ipv6")
		i, j := r.run("ci", "inner"), r.run("cj", "inner")
		r.mutual("inner", i, j)
		for _, to := range far(true) {
			testkit.CantReach(t, i, "tcp", netip.AddrPortFrom(to, out.Port()), wait)
		}
		if gw := gateways(t, i); gw != "" {
			t.Errorf("gateways are %s, want none", gw)
		}
		// Nor by a bridge of Docker's own.
		if links, err := i.Netlink().LinkList(); err != nil || len(links) != 2 {
			t.Errorf("%d links, %v; want lo and eth0", len(links), err)
		}
	})
	r.Run("refused", func(t *testing.T) {
		r := r.with(t)
		nets := r.docker("network", "ls", "-q")
		r.create("taken", "--subnet", "10.63.0.0/24")
		r.refused("overlaps", "network", "create", "-d", driver, "--ipam-driver", driver, "--subnet", "10.63.0.0/16", "wrong")
		r.refused(`"parent"`, "network", "create", "-d", driver, "--ipam-driver", driver, "-o", "parent=eth0", "wrong")
		r.refused("MTU", "network", "create", "-d", driver, "--ipam-driver", driver, "-o", "com.docker.network.driver.mtu=much", "wrong")
		r.refused("no matching subnet", "network", "create", "-d", driver, "--ipam-driver", driver, "--subnet", "10.64.0.0/24", "--gateway", "10.65.0.1", "wrong")
		r.docker("network", "rm", "taken")
		if now := r.docker("network", "ls", "-q"); now != nets {
			t.Errorf("networks are\n%s\nwere\n%s", now, nets)
		}
	})
}

// gateways gives the gateways of a namespace's default routes, IPv4 first.
func gateways(t *testing.T, ns *testkit.NS) string {
	t.Helper()
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := ns.Netlink().RouteList(nil, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Gw != nil && (r.Dst == nil || r.Dst.IP.IsUnspecified()) {
				out = append(out, r.Gw.String())
			}
		}
	}
	return strings.Join(out, " ")
}

// published gives the machine's ports that `seine ports` lists, by the containers' as "80/tcp".
func (r *rig) published() map[string][]uint16 {
	r.Helper()
	var rows []api.PublishedPort
	text := r.seine("ports", "-o", "json")
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		r.Fatalf("seine ports: %v\n%s", err, text)
	}
	out := map[string][]uint16{}
	for _, p := range rows {
		key := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
		out[key] = append(out[key], p.HostPort)
	}
	return out
}

// runOptions: every option of `docker run` that concerns a network's endpoint.
func runOptions(r *rig) {
	r.create("net", "--ipv6", "--subnet", "10.66.0.0/24", "--subnet", "fd00:66::/64")
	a := r.run("ca", "net", "--ip", "10.66.0.77", "--ip6", "fd00:66::77", "--mac-address", "02:42:66:00:00:77", "--network-alias", "first", "--network-alias", "one",
		"--hostname", "host-a")
	b := r.run("cb", "net", "-P", "--expose", "80", "--expose", "81", "--expose", "82/udp")
	if l, err := a.Netlink().LinkByName("eth0"); err != nil || l.Attrs().HardwareAddr.String() != "02:42:66:00:00:77" {
		r.Errorf("link is %+v, %v", l, err)
	}
	if got := r.addr("ca", "net"); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("10.66.0.77"), netip.MustParseAddr("fd00:66::77")}) {
		r.Errorf("addresses are %s", got)
	}
	r.mutual("net", a, b)
	for _, name := range []string{"ca", "first", "one"} {
		r.docker("exec", "cb", "ping", "-c", "1", "-W", "3", name)
	}
	for _, wrong := range [][]string{{"--ip", "10.66.0.77"}, {"--ip6", "fd00:66::77"}} {
		r.refused("in use", append(append([]string{"run", "--rm", "--network", "net"}, wrong...), "bb", "sleep", "0")...)
	}
	r.refused("subnet", "run", "--rm", "--network", "net", "--ip", "10.67.0.1", "bb", "sleep", "0")

	// The host's ports of -P are ours to choose; Docker can't show them.
	ports := r.published()
	if len(ports) != 3 || len(ports["80/tcp"]) != 1 || len(ports["81/tcp"]) != 1 || len(ports["82/udp"]) != 1 {
		r.Fatalf("published are %v, want 80 and 81 of TCP and 82 of UDP", ports)
	}
	for _, to := range r.machine.Addrs() {
		if got := testkit.Reach(r.T, r.outside.NS, "tcp", netip.AddrPortFrom(to, ports["80/tcp"][0])); got.Server != "cb" {
			r.Errorf("%s answers, want cb", got.Server)
		}
	}
}
