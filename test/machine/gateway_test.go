package machine_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// gatewayRig is a rig whose outside has a route to the network "net", which has options, and a container that serves port
// 80, which is published at 8080, and 81, which is not.
func gatewayRig(t *testing.T, options map[string]string) (*rig, api.Endpoint) {
	r := newRig(t, plain)
	n := api.Network{Name: "net", Options: options, Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.77.0.0/24")}, {Prefix: netip.MustParsePrefix("fd00:77::/64")}}}
	r.network(n)
	web := r.attach("net", "web", api.Port{HostPort: 8080, ContainerPort: 80}, api.Port{Protocol: "udp", HostPort: 8080, ContainerPort: 80})
	r.serve("web", 80)
	r.serve("web", 81)
	for i, s := range n.Subnets {
		if _, err := r.outside.Exec(r.Context(), "ip", []string{"-4", "-6"}[i], "route", "add", s.Prefix.String(), "via", r.machine.Addrs()[i].String(), "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	return r, web
}

var plain = options{}

// outsideReaches says whether the outside reaches an address and port, TCP and UDP.
func (r *rig) outsideReaches(to netip.AddrPort, want bool) {
	r.Helper()
	for _, proto := range networks {
		if want {
			testkit.Reach(r.T, r.outside.NS, proto, to)
		} else {
			testkit.CantReach(r.T, r.outside.NS, proto, to, short)
		}
	}
}

// seenAs wants the outside to see a container at an address, where it asks a server there.
func (r *rig) seenAs(container string, i int, want netip.Addr) {
	r.Helper()
	server := testkit.Serve(r.T, r.outside.NS, "tcp", at(r.outside.Addrs()[i], 0).String())
	if got := testkit.Reach(r.T, r.container(container), "tcp", server); got.Source.Addr() != want {
		r.Errorf("the outside sees %s, want %s", got.Source, want)
	}
}

func TestGatewayModes(t *testing.T) {
	for _, tt := range []struct {
		mode                               string
		ownAddress, published, unprotected bool
	}{
		{"nat", false, false, false},
		{"routed", true, true, false},
		{"nat-unprotected", false, true, true},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			r, web := gatewayRig(t, map[string]string{"gateway_mode_ipv4": tt.mode, "gateway_mode_ipv6": tt.mode})
			elsewhere := r.attach("default", "elsewhere")
			for i, a := range web.Addresses {
				want := r.machine.Addrs()[i]
				if tt.ownAddress {
					want = a
				}
				r.seenAs("web", i, want)
				r.outsideReaches(at(a, 80), tt.published)
				r.outsideReaches(at(a, 81), tt.unprotected)
				r.outsideReaches(at(r.machine.Addrs()[i], 8080), tt.mode != "routed")
				if tt.mode == "routed" { // other networks are beyond, too
					if got := testkit.Reach(r.T, r.container("elsewhere"), "tcp", at(a, 80)); got.Source.Addr() != elsewhere.Addresses[i] {
						t.Errorf("%s is seen as %s", elsewhere.Key(), got.Source)
					}
				}
				if _, err := r.outside.Exec(r.Context(), "ping", "-c1", "-W1", a.String()); (err == nil) != (tt.mode != "nat") {
					t.Errorf("ping %s: %v", a, err)
				}
			}
			r.clean()
		})
	}
}

func TestGatewayTrustedInterfaces(t *testing.T) {
	r, web := gatewayRig(t, map[string]string{"trusted_host_interfaces": "eth0:eth7"})
	r.attach("default", "elsewhere")
	for i, a := range web.Addresses {
		r.outsideReaches(at(a, 81), true)
		r.seenAs("web", i, r.machine.Addrs()[i])
		testkit.CantReach(r.T, r.container("elsewhere"), "udp", at(a, 81), short)
	}
	r.clean()
}

func TestGatewaySourceAndBinding(t *testing.T) {
	r := newRig(t, plain)
	second4, second6 := netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77")
	for _, args := range []string{"addr add 192.0.2.77/24 dev eth0", "addr add 2001:db8::77/64 dev eth0 nodad preferred_lft 0"} {
		if _, err := r.machine.Exec(r.Context(), "ip", strings.Fields(args)...); err != nil {
			t.Fatal(err)
		}
	}
	// The daemon looks at the machine a moment after it changed.
	r.eventually(patience, func() error {
		_, err := r.client.PutNetwork(r.Context(), api.Network{Name: "net", Options: map[string]string{"host_ipv4": second4.String(), "host_ipv6": second6.String(),
			"host_binding_ipv4": second4.String(), "container_iface_prefix": "net"}}, 0)
		return err
	})
	web := r.attach("net", "web", api.Port{HostPort: 8080, ContainerPort: 80}, api.Port{Protocol: "udp", HostPort: 8080, ContainerPort: 80})
	r.serve("web", 80)
	r.seenAs("web", 0, second4)
	r.seenAs("web", 1, second6)
	r.outsideReaches(at(second4, 8080), true)
	r.outsideReaches(at(r.machine.V4, 8080), false)
	r.outsideReaches(at(r.machine.V6, 8080), false)
	if web.Sandbox.Interface != "net0" || web.Ports[0].HostIP != second4 {
		t.Errorf("%+v", web)
	}
	r.attach("default", "other")
	r.seenAs("other", 0, r.machine.V4)
	r.clean()
}

// TestGatewayNotTheMachine: networks on which the bridge has no address.
func TestGatewayNotTheMachine(t *testing.T) {
	r := newRig(t, plain)
	r.network(api.Network{Name: "iso", Internal: true, Options: map[string]string{"gateway_mode_ipv4": "isolated", "gateway_mode_ipv6": "isolated"}})
	a := r.attach("iso", "a")
	r.attach("iso", "b")
	r.serve("a", 80)
	for i := range a.Addresses {
		testkit.Reach(r.T, r.container("b"), "tcp", at(a.Addresses[i], 80))
		testkit.CantReach(r.T, r.machine.NS, "udp", at(a.Addresses[i], 80), short)
	}
	if len(a.Status.DNS) > 0 {
		t.Errorf("name servers %v on a network that the machine is not on", a.Status.DNS)
	}
	if out, err := r.machine.Exec(r.Context(), "ip", "-o", "addr", "show", "dev", "sn-iso"); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("%v: the bridge has %s", err, out)
	}

	// The gateway is a host on the bridge that somebody else put there.
	gw := api.Subnet{Prefix: netip.MustParsePrefix("10.78.0.0/24"), Gateway: netip.MustParseAddr("10.78.0.9")}
	r.network(api.Network{Name: "inh", Family: api.IPv4, Subnets: []api.Subnet{gw}, Options: map[string]string{"inhibit_ipv4": "true"}})
	c := r.attach("inh", "c")
	router := r.container("router")
	for _, args := range []string{"link add rt0 type veth peer name eth0 netns " + router.Path(), "link set rt0 master sn-inh", "link set rt0 up"} {
		if _, err := r.machine.Exec(r.Context(), "ip", strings.Fields(args)...); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range []string{"link set eth0 up", "addr add 10.78.0.9/24 dev eth0", "addr add 203.0.113.9/32 dev lo"} {
		if _, err := router.Exec(r.Context(), "ip", strings.Fields(args)...); err != nil {
			t.Fatal(err)
		}
	}
	server := testkit.Serve(r.T, router, "tcp", "203.0.113.9:0")
	if got := testkit.Reach(r.T, r.container("c"), "tcp", server); got.Source.Addr() != c.Addresses[0] {
		t.Errorf("the router sees %s", got.Source)
	}
}
