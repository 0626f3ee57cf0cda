package engine_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/seine-net/seine/api"
)

// Options of networks whose gateway is the machine are checked by their field, and change nothing where they are refused.
func TestGatewayOptionsAreChecked(t *testing.T) {
	r := wireRig(t)
	ctx := context.Background()
	before := r.kernel.Dump()
	internal := func(n api.Network) api.Network { n.Internal = true; return n }
	v4 := func(n api.Network) api.Network { n.Family = api.IPv4; return n }
	for _, tt := range []struct {
		name  string
		n     api.Network
		field string
	}{
		{"mode", on("x", "bridge", "gateway_mode_ipv4", "route"), "options.gateway_mode_ipv4"},
		{"isolated outside", on("x", "bridge", "gateway_mode_ipv6", "isolated"), "options.gateway_mode_ipv6"},
		{"isolated ptp", internal(on("x", "ptp", "gateway_mode_ipv6", "isolated")), "options.gateway_mode_ipv6"},
		{"mode of no family", v4(on("x", "bridge", "gateway_mode_ipv6", "routed")), "options.gateway_mode_ipv6"},
		{"binding", on("x", "bridge", "host_binding_ipv4", "::1"), "options.host_binding_ipv4"},
		{"source that is nobody's", on("x", "bridge", "host_ipv4", "192.0.2.77"), "options.host_ipv4"},
		{"source of the other family", on("x", "bridge", "host_ipv6", "10.9.0.1"), "options.host_ipv6"},
		{"source where nothing is translated", on("x", "bridge", "host_ipv4", "10.9.0.1", "gateway_mode_ipv4", "routed"), "options.host_ipv4"},
		{"source of an internal network", internal(on("x", "bridge", "host_ipv4", "10.9.0.1")), "options.host_ipv4"},
		{"trusted", on("x", "bridge", "trusted_host_interfaces", "eth0:"), "options.trusted_host_interfaces"},
		{"trusted inside", internal(on("x", "ptp", "trusted_host_interfaces", "eth0")), "options.trusted_host_interfaces"},
		{"prefix", on("x", "ptp", "container_iface_prefix", "a/b"), "options.container_iface_prefix"},
		{"long prefix", on("x", "ptp", "container_iface_prefix", "abcdefghijkl"), "options.container_iface_prefix"},
		{"inhibit", on("x", "bridge", "inhibit_ipv4", "yes"), "options.inhibit_ipv4"},
		{"inhibit of ptp", on("x", "ptp", "inhibit_ipv4", "true"), "options"},
	} {
		_, err := r.PutNetwork(ctx, tt.n, 0)
		t.Run(tt.name, func(t *testing.T) { code(t, err, api.Invalid, tt.field) })
	}
	if after := r.kernel.Dump(); after != before {
		t.Errorf("changed:\n%s\nwas:\n%s", after, before)
	}

	r.network(on("a", "bridge", "host_binding_ipv4", "10.9.0.1", "container_iface_prefix", "net"))
	ep := r.attach("a", "web", api.Port{HostPort: 80, ContainerPort: 80})
	if ep.Sandbox.Interface != "net0" || ep.Ports[0].HostIP != netip.MustParseAddr("10.9.0.1") {
		t.Errorf("%+v", ep)
	}
	if again := r.attach("a", "web", api.Port{HostPort: 80, ContainerPort: 80}); again.Revision != ep.Revision {
		t.Errorf("the same again is another: %+v", again)
	}
	r.settled()
}
