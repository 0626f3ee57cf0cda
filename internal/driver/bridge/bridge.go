// Package bridge is the driver of bridge networks: one Linux bridge per network on the machine, with the gateways'
// addresses, and a veth from it into each sandbox.
//
//	machine                          sandbox
//	sn-NET (bridge, gateway) ── sv-… ║ eth0 (address, default route by the gateway)
//
// What it does not do: VLANs (a network is one broadcast domain), anything beyond the machine (a fabric's job).
package bridge

import (
	"net/netip"
	"slices"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// Driver is the bridge driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses {
	options := driver.GatewayOptions()
	options[api.OptGatewayMode4] += ", isolated (on an internal network: the machine has no IPv4 address there)"
	options[api.OptInhibit4] = "true: the bridge has no IPv4 address; the gateway is another host on it"
	return driver.Uses{Subnets: true, Sandbox: true, Handoff: true, Ports: true, Options: options}
}

// Complete implements driver.Completer.
func (Driver) Complete(n *api.Network, env driver.Env) error {
	if s, ok := n.Options[api.OptInhibit4]; ok {
		bad := func(msg, want string) error {
			return api.FieldError(api.NetworkNoun(n.Name), "options."+api.OptInhibit4, s, msg, want)
		}
		if s != "true" && s != "false" {
			return bad("is neither true nor false", "one of the two")
		}
		if n.Subnet4() == nil {
			return bad("has no meaning: the network has no IPv4 subnet", "none, or such a subnet")
		}
	}
	return driver.CompleteGateway(n, env, api.GatewayIsolated)
}

// OwnAddrs implements driver.Present: the gateways of the families in which the bridge has an address.
func (Driver) OwnAddrs(n api.Network) []netip.Addr {
	var out []netip.Addr
	for _, s := range n.Subnets {
		v4 := s.Prefix.Addr().Is4()
		if n.GatewayMode(v4) != api.GatewayIsolated && !(v4 && n.Options[api.OptInhibit4] == "true") {
			out = append(out, s.Gateway)
		}
	}
	return out
}

// Interfaces implements driver.Driver: the bridge, and its port.
func (Driver) Interfaces(n api.Network, e api.Endpoint) (via, end string) {
	if via = n.Interface; via == "" {
		via = driver.HostName(n.Name)
	}
	return via, driver.PortName(kernel.PortPrefix, n.Name, e.Name)
}

// Network implements driver.Driver: the bridge with its addresses, and the network's elements.
func (d Driver) Network(n api.Network, _ kernel.Facts) ([]kernel.Object, error) {
	br, _ := d.Interfaces(n, api.Endpoint{})
	// A bridge without an address of its own takes the lowest of its ports, and changes it as they come and go: the
	// gateway's entry in every container would go stale.
	mac := driver.MAC(n.Subnets[0].Gateway)
	out := []kernel.Object{
		&kernel.Link{Name: br, Type: kernel.Bridge, MTU: n.MTU, MAC: mac, Group: ruleset.Group(n.Name),
			Alias: driver.Alias(driver.NetworkOwner(n.Name))},
		&kernel.LinkUp{Link: br},
	}
	if n.Subnet6() != nil {
		// The machine may turn IPv6 off by default.
		off := "0"
		if n.GatewayMode(false) == api.GatewayIsolated {
			off = "1" // not even a link-local address
		}
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + br + "/disable_ipv6", Value: off})
		out = append(out, driver.IPv6("", br)...)
	}
	own := d.OwnAddrs(n)
	for _, s := range n.Subnets {
		if slices.Contains(own, s.Gateway) {
			out = append(out, &kernel.Addr{Link: br, Prefix: netip.PrefixFrom(s.Gateway, s.Prefix.Bits())})
		}
	}
	return append(out, driver.ElementsAt(n, own)...), nil
}

// Objects implements driver.Driver: the veth, and addresses and routes inside.
func (d Driver) Objects(n api.Network, e api.Endpoint, f kernel.Facts) ([]kernel.Object, error) {
	br, host := d.Interfaces(n, e)
	alias := driver.Alias(driver.EndpointOwner(n.Name, e.Name))
	out := []kernel.Object{
		&kernel.Link{Name: host, Type: kernel.Veth, MTU: n.MTU, Alias: alias, Master: br,
			Port: &kernel.Port{
				// With bridge netfilter, a port published by the container that asks for it is bridged back to it.
				Hairpin:  len(e.Ports) > 0 && (f.BridgeFilter4 || f.BridgeFilter6),
				Isolated: !n.ICCOn(),
			},
			Peer: &kernel.Peer{NS: e.Sandbox.Netns, Name: e.Sandbox.Interface, MTU: n.MTU, MAC: e.MAC, Alias: alias}},
		&kernel.LinkUp{Link: host},
	}
	if e.Sandbox.Handoff {
		p := out[0].(*kernel.Link).Peer
		p.Handoff, p.Alias = true, "" // who takes it may look at the alias; and it is not ours for long
	}
	if !f.NoIPv6 {
		// The port itself speaks no IPv6. The kernel would give it a link-local address and routes, and walks all of
		// these whenever a link comes or goes: the cost of one more endpoint would grow with their number.
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + host + "/disable_ipv6", Value: "1"})
	}
	if e.Sandbox.Handoff {
		return out, nil
	}
	out = append(out, driver.Inside(n, e)...)
	out = append(out, driver.Addresses(n, e)...)
	return append(out, driver.DefaultRoutes(n, e)...), nil
}
