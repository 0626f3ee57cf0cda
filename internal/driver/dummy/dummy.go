// Package dummy is the driver of networks that lead nowhere: each endpoint has an interface with addresses that are its
// own, and nothing is behind it.
package dummy

import (
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

// Driver is the dummy driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses {
	return driver.Uses{Subnets: true, Sandbox: true, Handoff: true, Router: true, NoPorts: "nothing leads to its containers"}
}

// Complete implements driver.Completer.
func (Driver) Complete(n *api.Network, _ driver.Env) error {
	noun := api.NetworkNoun(n.Name)
	n.Internal = true
	for _, s := range n.Subnets {
		if s.Gateway.IsValid() {
			return api.FieldError(noun, "gateway", s.Gateway, "has no meaning on a network that leads nowhere", "none")
		}
	}
	if n.Masquerade != nil && *n.Masquerade {
		return api.FieldError(noun, "masquerade", true, "has no meaning on a network that leads nowhere", "none")
	}
	return nil
}

// OwnAddrs implements driver.Present: the machine is not on the network.
func (Driver) OwnAddrs(api.Network) []netip.Addr { return nil }

// Interfaces implements driver.Driver: none.
func (Driver) Interfaces(api.Network, api.Endpoint) (via, end string) { return "", "" }

// Network implements driver.Driver: nothing.
func (Driver) Network(api.Network, kernel.Facts) ([]kernel.Object, error) { return nil, nil }

// Objects implements driver.Driver: the interface with its addresses.
func (Driver) Objects(n api.Network, e api.Endpoint, _ kernel.Facts) ([]kernel.Object, error) {
	l := &kernel.Link{NS: e.Sandbox.Netns, Name: e.Sandbox.Interface, Type: kernel.Dummy, MTU: n.MTU, MAC: e.MAC,
		Alias: driver.Alias(driver.EndpointOwner(n.Name, e.Name))}
	if e.Sandbox.Handoff {
		l.Taken = e.Sandbox.Taken
		return []kernel.Object{l}, nil
	}
	out := append([]kernel.Object{l}, driver.Inside(n, e)...)
	return append(out, driver.Addresses(n, e)...), nil
}
