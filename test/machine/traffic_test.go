package machine_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

const short = 400 * time.Millisecond // how long to wait for what must not come

func TestContainersReachEachOtherAtOnce(t *testing.T) {
	bothDrivers(t, func(r *rig) {
		b := r.attach("net", "b")
		r.serve("b", 80)
		a := r.attach("net", "a")
		// The first packet works: IPv6 too, there is nothing to wait for.
		for i := len(b.Addresses) - 1; i >= 0; i-- {
			for _, network := range networks {
				got := testkit.Reach(r.T, r.container("a"), network, at(b.Addresses[i], 80))
				if got.Source.Addr() != a.Addresses[i] {
					r.Errorf("%s to %s: server sees %s, want the container's own %s", network, b.Addresses[i], got.Source, a.Addresses[i])
				}
			}
		}
		r.clean()
	})
}

func TestFirstIPv6PacketToTheGateway(t *testing.T) {
	bothDrivers(t, func(r *rig) {
		n, err := r.client.Network(r.Context(), "net")
		if err != nil {
			r.Fatal(err)
		}
		// Its address is there once the first endpoint is (with ptp it is on each endpoint's own link).
		r.attach("net", "first")
		server := testkit.Serve(r.T, r.machine.NS, "udp", "[::]:7000")
		r.attach("net", "a")
		testkit.Reach(r.T, r.container("a"), "udp", at(n.Subnet6().Gateway, server.Port()))
	})
}

func TestOutsideSeesTheMachine(t *testing.T) {
	bothDrivers(t, func(r *rig) {
		r.attach("net", "a")
		for _, network := range networks {
			for far, own := range map[netip.Addr]netip.Addr{testkit.Far4: r.machine.V4, testkit.Far6: r.machine.V6} {
				server := testkit.Serve(r.T, r.outside.NS, network, at(far, 0).String())
				got := testkit.Reach(r.T, r.container("a"), network, at(far, server.Port()))
				if got.Source.Addr() != own {
					r.Errorf("%s: outside sees %s, want the machine's %s", network, got.Source, own)
				}
			}
		}
	})
}

func TestPublishedPortsFromEverywhere(t *testing.T) {
	bothDrivers(t, func(r *rig) {
		r.network(api.Network{Name: "other"})
		web := r.attach("net", "web", api.Port{HostPort: 8080, ContainerPort: 80}, api.Port{Protocol: "udp", HostPort: 8080, ContainerPort: 80})
		r.serve("web", 80)
		r.attach("net", "neighbour")
		elsewhere := r.attach("other", "elsewhere")
		n, _ := r.client.Network(r.Context(), "net")
		gateways := map[bool]netip.Addr{true: n.Subnet4().Gateway, false: n.Subnet6().Gateway}
		for _, network := range networks {
			for _, own := range r.machine.Addrs() {
				v4 := own.Is4()
				to := at(own, 8080)
				check := func(what string, from *testkit.NS, to netip.AddrPort, want netip.Addr) {
					got := testkit.Reach(r.T, from, network, to)
					if got.Server != "web" || want.IsValid() && got.Source.Addr() != want {
						r.Errorf("%s %s %s: server %q sees %s, want %s", what, network, to, got.Server, got.Source, want)
					}
				}
				out := r.outside.V4
				loop, far := netip.MustParseAddr("127.0.0.1"), elsewhere.Address(v4)
				if !v4 {
					out, loop = r.outside.V6, netip.IPv6Loopback()
				}
				check("from outside", r.outside.NS, to, out)
				check("from the machine", r.machine.NS, to, own)
				check("from the machine's loopback", r.machine.NS, at(loop, 8080), gateways[v4])
				check("from another network", r.container("elsewhere"), to, far)
				check("from the same network", r.container("neighbour"), to, netip.Addr{})
				check("from itself", r.container("web"), to, netip.Addr{})
				check("from the machine, directly", r.machine.NS, at(web.Address(v4), 80), netip.Addr{})
			}
		}
		r.clean()
	})
}

func TestPublishedOnOneAddressOnly(t *testing.T) {
	bothFilters(t, func(r *rig) {
		r.network(api.Network{Name: "net"})
		loop := netip.MustParseAddr("127.0.0.1")
		r.attach("net", "web", api.Port{HostPort: 8080, ContainerPort: 80, HostIP: loop}, api.Port{HostPort: 8081, ContainerPort: 80, HostIP: r.machine.V6})
		r.serve("web", 80)
		testkit.Reach(r.T, r.machine.NS, "tcp", at(loop, 8080))
		testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V6, 8081))
		testkit.CantReach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 8080), short)
		testkit.CantReach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 8081), short)
		// A neighbour that sends packets for 127.0.0.1 to the machine's hardware address.
		if err := r.outside.Sysctl("net/ipv4/conf/eth0/route_localnet", "1"); err != nil {
			r.Fatal(err)
		}
		if err := r.outside.Sysctl("net/ipv4/conf/all/route_localnet", "1"); err != nil {
			r.Fatal(err)
		}
		if _, err := r.outside.Exec(r.Context(), "ip", "route", "add", "127.0.0.1/32", "via", r.machine.V4.String(), "dev", "eth0", "table", "7"); err != nil {
			r.Fatal(err)
		}
		for _, rule := range [][]string{{"rule", "add", "pref", "0", "to", "127.0.0.1/32", "lookup", "7"}, {"rule", "del", "pref", "0", "lookup", "local"}, {"rule", "add", "pref", "1", "lookup", "local"}} {
			if _, err := r.outside.Exec(r.Context(), "ip", rule...); err != nil {
				r.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(r.Context(), short)
		defer cancel()
		if got, err := r.outside.AskFrom(ctx, r.outside.V4, "tcp", at(loop, 8080), "x"); err == nil {
			r.Errorf("a neighbour reached a port published on 127.0.0.1: %+v", got)
		}
	})
}

func TestWhatIsNotPublishedCantBeReached(t *testing.T) {
	bothDrivers(t, func(r *rig) {
		web := r.attach("net", "web", api.Port{HostPort: 8080, ContainerPort: 80})
		r.serve("web", 80)
		r.serve("web", 81)
		r.network(api.Network{Name: "other"})
		r.attach("other", "stranger")
		for _, a := range web.Addresses {
			gw, bits := r.machine.V4, netip.PrefixFrom(a, a.BitLen())
			if a.Is6() {
				gw = r.machine.V6
			}
			if err := r.outside.AddRoute(bits, gw); err != nil {
				r.Fatal(err)
			}
			for _, port := range []uint16{80, 81} {
				for _, network := range networks {
					testkit.CantReach(r.T, r.outside.NS, network, at(a, port), short)
					testkit.CantReach(r.T, r.container("stranger"), network, at(a, port), short)
				}
			}
		}
	})
}

func TestInternalNetworkHasNoWayOut(t *testing.T) {
	bothFilters(t, func(r *rig) {
		for _, driver := range []string{"bridge", "ptp"} {
			r.network(api.Network{Name: driver, Driver: driver, Internal: true})
			b := r.attach(driver, driver+"-b")
			r.serve(driver+"-b", 80)
			r.attach(driver, driver+"-a")
			a := r.container(driver + "-a")
			server := testkit.Serve(r.T, r.outside.NS, "udp", "[::]:0")
			for i, far := range []netip.Addr{testkit.Far4, testkit.Far6} {
				testkit.Reach(r.T, a, "tcp", at(b.Addresses[i], 80))
				// Not even with a default route of its own making.
				gw, _ := r.client.Network(r.Context(), driver)
				_ = a.AddRoute(netip.PrefixFrom(far, far.BitLen()), gw.Subnets[i].Gateway)
				testkit.CantReach(r.T, a, "udp", at(far, server.Port()), short)
			}
		}
	})
}

func TestNoICC(t *testing.T) {
	bothFilters(t, func(r *rig) {
		off := false
		for _, driver := range []string{"bridge", "ptp"} {
			r.network(api.Network{Name: driver, Driver: driver, ICC: &off})
			b := r.attach(driver, driver+"-b")
			r.serve(driver+"-b", 80)
			r.attach(driver, driver+"-a")
			server := testkit.Serve(r.T, r.outside.NS, "tcp", "[::]:0")
			for i, far := range []netip.Addr{testkit.Far4, testkit.Far6} {
				testkit.CantReach(r.T, r.container(driver+"-a"), "tcp", at(b.Addresses[i], 80), short)
				testkit.Reach(r.T, r.container(driver+"-a"), "tcp", at(far, server.Port()))
				testkit.Reach(r.T, r.machine.NS, "tcp", at(b.Addresses[i], 80))
			}
		}
	})
}

func TestConnectAndDisconnectWhileItRuns(t *testing.T) {
	r := newRig(t, options{})
	r.network(api.Network{Name: "one"})
	r.network(api.Network{Name: "two", Driver: "ptp"})
	r.attach("one", "c")
	peer := r.attach("two", "peer")
	r.serve("peer", 80)
	far := testkit.Serve(t, r.outside.NS, "tcp", "[::]:0")
	second := r.attach("two", "c")
	if second.Sandbox.Interface != "eth1" {
		t.Errorf("second interface is %q", second.Sandbox.Interface)
	}
	for _, a := range peer.Addresses {
		testkit.Reach(t, r.container("c"), "tcp", at(a, 80))
	}
	r.detach("one", "c")
	for _, a := range peer.Addresses {
		testkit.Reach(t, r.container("c"), "tcp", at(a, 80))
	}
	for _, a := range []netip.Addr{testkit.Far4, testkit.Far6} { // the second network's default route took over
		testkit.Reach(t, r.container("c"), "tcp", at(a, far.Port()))
	}
	r.clean()
}

func TestMTUAndStaticAddresses(t *testing.T) {
	r := newRig(t, options{})
	r.network(api.Network{Name: "net", MTU: 1400, Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.77.0.0/24")}, {Prefix: netip.MustParsePrefix("fd77::/64")}}})
	ep, err := r.tryAttach(api.Endpoint{Network: "net", Name: "a", MAC: "02:11:22:33:44:55",
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.9"), netip.MustParseAddr("fd77::9")}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.container("a").Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if l.Attrs().MTU != 1400 || l.Attrs().HardwareAddr.String() != "02:11:22:33:44:55" || fmt.Sprint(ep.Addresses) != "[10.77.0.9 fd77::9]" {
		t.Errorf("mtu %d, mac %s, addresses %s", l.Attrs().MTU, l.Attrs().HardwareAddr, ep.Addresses)
	}
}

func TestUDPFlowFollowsThePort(t *testing.T) {
	bothFilters(t, func(r *rig) {
		r.network(api.Network{Name: "net"})
		port := api.Port{Protocol: "udp", HostPort: 5000, ContainerPort: 80}
		r.attach("net", "old", port)
		r.serve("old", 80)
		conn, err := r.outside.Dial(r.Context(), "udp", at(r.machine.V4, 5000).String())
		if err != nil {
			r.Fatal(err)
		}
		defer conn.Close()
		ask := func() string {
			buf := make([]byte, 1500)
			for range 20 {
				_, _ = conn.Write([]byte("x\n"))
				_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if n, err := conn.Read(buf); err == nil {
					return string(buf[:n])
				}
			}
			return "no answer"
		}
		first := ask()
		r.detach("net", "old")
		r.attach("net", "new", port)
		r.serve("new", 80)
		// The same flow, whose translation conntrack remembers.
		var second string
		r.eventually(3*time.Second, func() error {
			if second = ask(); second == "no answer" || second == first {
				return fmt.Errorf("first answer %q, now %q", first, second)
			}
			return nil
		})
	})
}

func TestPortThatIsTaken(t *testing.T) {
	r := newRig(t, options{})
	r.network(api.Network{Name: "net"})
	r.calm()
	r.attach("net", "first") // a bridge that never had a port reports another state
	r.detach("net", "first")
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := r.machine.Listen(network, ":8080")
		if err != nil {
			t.Fatal(err)
		}
		before := dump(t, r.machine.NS)
		_, err = r.tryAttach(api.Endpoint{Network: "net", Name: "web", Ports: []api.Port{{HostPort: 80, ContainerPort: 80}, {HostPort: 8080, ContainerPort: 80}}})
		if api.CodeOf(err) != api.Conflict {
			t.Errorf("%s: error is %v", network, err)
		}
		l.Close()
		r.unchanged(before)
	}
	_, err := r.tryAttach(api.Endpoint{Network: "net", Name: "web", Ports: []api.Port{{HostPort: 8080, ContainerPort: 80, HostIP: r.outside.V4}}})
	var field *api.Error
	if !errors.As(err, &field) || field.Field != "ports[0].hostIP" {
		t.Errorf("an address that the machine has not: %v", err)
	}
	r.attach("net", "web", api.Port{HostPort: 8080, ContainerPort: 80})
	for _, network := range []string{"tcp4", "tcp6"} {
		if l, err := r.machine.Listen(network, ":8080"); err == nil {
			l.Close()
			t.Errorf("another program could take %s port 8080 while it is published", network)
		}
	}
	r.detach("net", "web")
	l, err := r.machine.Listen("tcp", ":8080")
	if err != nil {
		t.Fatalf("the port is not free again: %v", err)
	}
	l.Close()
}

func TestNames(t *testing.T) {
	bothDrivers(t, func(r *rig) {
		if _, err := r.tryAttach(api.Endpoint{Network: "net", Name: "web", Aliases: []string{"www"}}); err != nil {
			r.Fatal(err)
		}
		r.network(api.Network{Name: "other"})
		r.attach("other", "hidden")
		web, _ := r.client.Endpoint(r.Context(), "net", "web")
		a := r.attach("net", "a")
		for _, server := range a.Status.DNS {
			for _, proto := range networks {
				res := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return r.container("a").Dial(ctx, proto, at(server, 53).String())
				}}
				for _, name := range []string{"web", "WWW", "web.net"} {
					got, err := res.LookupNetIP(r.Context(), "ip", name+".")
					if err != nil || len(got) != 2 {
						r.Errorf("%s by %s/%s: %v, %v; want both addresses", name, server, proto, got, err)
					}
				}
				if got, err := res.LookupNetIP(r.Context(), "ip", "hidden."); err == nil {
					r.Errorf("a name of another network is seen: %v", got)
				}
				back, err := res.LookupAddr(r.Context(), web.Addresses[0].String())
				if err != nil || len(back) == 0 {
					r.Errorf("reverse look-up: %v, %v", back, err)
				}
			}
		}
		// The name server is for containers, at the port that it really has neither.
		testkit.CantReach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 5380), short)
	})
}
