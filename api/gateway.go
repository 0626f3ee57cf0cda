package api

import "cmp"

// The options of networks whose gateway is the machine. Each has the name that Docker gives it behind com.docker.network.
// or com.docker.network.bridge.
const (
	// OptGatewayMode4 and OptGatewayMode6 say how packets of a family pass between the network and what is beyond: a
	// GatewayMode.
	OptGatewayMode4 = "gateway_mode_ipv4"
	OptGatewayMode6 = "gateway_mode_ipv6"
	// OptHostBinding is the machine's IPv4 address that ports are published on which name none; 0.0.0.0 is all addresses of
	// both families, the default.
	OptHostBinding = "host_binding_ipv4"
	// OptHostIPv4 and OptHostIPv6 are the machine's addresses that the containers' are hidden behind, in place of that of the
	// interface which a packet leaves by.
	OptHostIPv4 = "host_ipv4"
	OptHostIPv6 = "host_ipv6"
	// OptTrusted names interfaces of the machine, separated by colons: what comes by them reaches containers at their own
	// addresses, as is published or not.
	OptTrusted = "trusted_host_interfaces"
	// OptIfacePrefix begins the name of the interface inside a container; the default is "eth".
	OptIfacePrefix = "container_iface_prefix"
	// OptInhibit4 keeps the bridge from having an IPv4 address: the gateway is another host on it.
	OptInhibit4 = "inhibit_ipv4"
)

// GatewayMode is how packets pass between a network and what is beyond the machine.
type GatewayMode string

// The gateway modes.
const (
	GatewayNAT         GatewayMode = "nat"             // masqueraded out; in only by published ports of the machine; the default
	GatewayUnprotected GatewayMode = "nat-unprotected" // masqueraded out; in to every port of a container's own address too
	GatewayRouted      GatewayMode = "routed"          // not translated; in to the published ports of a container's own address
	GatewayIsolated    GatewayMode = "isolated"        // an internal network that the machine is not on
)

// GatewayMode gives the mode of a family.
func (n *Network) GatewayMode(v4 bool) GatewayMode {
	key := OptGatewayMode6
	if v4 {
		key = OptGatewayMode4
	}
	return GatewayMode(cmp.Or(n.Options[key], string(GatewayNAT)))
}
