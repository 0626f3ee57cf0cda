// Package ptp is the driver of point-to-point networks: a veth from the machine into each sandbox and a route per
// endpoint, with no bridge between. Containers share no broadcast domain; all packets between them are routed.
//
//	machine                                   sandbox
//	sn-… (gateway/32; route ADDRESS/32) ────║ eth0 (ADDRESS/32; gateway/32 on the link; default by the gateway)
package ptp

import (
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// Driver is the ptp driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses {
	return driver.Uses{Subnets: true, Sandbox: true, Ports: true, Options: driver.GatewayOptions()}
}

// Complete implements driver.Completer.
func (Driver) Complete(n *api.Network, env driver.Env) error { return driver.CompleteGateway(n, env) }

// Interfaces implements driver.Driver: the veth's end is both.
func (Driver) Interfaces(n api.Network, e api.Endpoint) (via, end string) {
	end = driver.PortName(kernel.HostPrefix, n.Name, e.Name)
	return end, end
}

// Network implements driver.Driver: the network's elements, and an end for packets to addresses that no endpoint has:
// they would leave by the machine's default route.
func (Driver) Network(n api.Network, _ kernel.Facts) ([]kernel.Object, error) {
	var out []kernel.Object
	for _, s := range n.Subnets {
		out = append(out, &kernel.Route{Type: "unreachable", Dst: s.Prefix, Metric: metric(s.Gateway)})
	}
	return append(out, driver.Elements(n)...), nil
}

// Objects implements driver.Driver: the veth, and addresses and routes of both ends.
func (d Driver) Objects(n api.Network, e api.Endpoint, _ kernel.Facts) ([]kernel.Object, error) {
	host, _ := d.Interfaces(n, e)
	alias := driver.Alias(driver.EndpointOwner(n.Name, e.Name))
	ns, dev := e.Sandbox.Netns, e.Sandbox.Interface
	out := []kernel.Object{
		&kernel.Link{Name: host, Type: kernel.Veth, MTU: n.MTU, Alias: alias, Group: ruleset.Group(n.Name),
			Peer: &kernel.Peer{NS: ns, Name: dev, MTU: n.MTU, MAC: e.MAC, Alias: alias}},
		&kernel.LinkUp{Link: host},
	}
	if n.Subnet6() != nil {
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + host + "/disable_ipv6", Value: "0"})
		out = append(out, driver.IPv6("", host)...)
	}
	out = append(out, driver.Inside(n, e)...)
	for _, s := range n.Subnets {
		a := e.Address(s.Prefix.Addr().Is4())
		if !a.IsValid() {
			continue
		}
		gw := one(s.Gateway)
		out = append(out,
			&kernel.Addr{Link: host, Prefix: gw, NoRoute: true},
			&kernel.Route{Dst: one(a), Link: host, Src: s.Gateway, Scope: kernel.ScopeLink, Metric: metric(a)},
			&kernel.Addr{NS: ns, Link: dev, Prefix: one(a)},
			&kernel.Route{NS: ns, Dst: gw, Link: dev, Scope: kernel.ScopeLink, Metric: metric(a) + e.Index},
			// The network's other containers, whichever interface the default route is on.
			&kernel.Route{NS: ns, Dst: s.Prefix, Via: s.Gateway, Link: dev, Metric: metric(a) + e.Index},
		)
	}
	return append(out, driver.DefaultRoutes(n, e)...), nil
}

// one is the prefix that holds just a.
func one(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// metric is the lowest metric that can be asked for and read back.
func metric(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1024
}
