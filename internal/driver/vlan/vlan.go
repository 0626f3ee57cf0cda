// Package vlan is the driver of networks that are one VLAN (IEEE 802.1Q) of a wire, which one sandbox of the machine has
// for itself: the VLAN's interface is made in it.
//
//	wire ── eth0 (carries tagged frames) ── eth0 of the sandbox: VLAN 50, untagged
package vlan

import (
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

// Driver is the vlan driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses {
	return driver.Uses{Subnets: true, Sandbox: true, Handoff: true, Router: true,
		NoPorts: "its container is a host of the wire: others reach it at its own address",
		Options: map[string]string{driver.OptParent: "the machine's interface that carries the VLAN's frames, and the VLAN: eth0.50"}}
}

// Complete implements driver.Completer.
func (Driver) Complete(n *api.Network, env driver.Env) error {
	p := driver.ParentOf(*n)
	if p.Base == "" {
		return api.FieldError(api.NetworkNoun(n.Name), "options."+driver.OptParent, p.Link, "names no VLAN", "an interface and a VLAN from 1 to 4094, such as eth0.50")
	}
	for _, o := range env.Others {
		if o.Driver == n.Driver && driver.ParentOf(o) == p {
			err := api.FieldError(api.NetworkNoun(n.Name), "options."+driver.OptParent, p.Link, "is network \""+o.Name+"\" already", "another VLAN")
			err.Code = api.Conflict
			return err
		}
	}
	return (driver.Upper{}).Complete(n, env, "")
}

// Parents implements driver.Parented.
func (Driver) Parents(n api.Network) []string { return []string{driver.ParentOf(n).Base} }

// Limits implements driver.Limited.
func (Driver) Limits(api.Network) driver.Limits {
	return driver.Limits{One: "a VLAN of an interface can be had once"}
}

// OwnAddrs implements driver.Present: the machine is not on the network.
func (Driver) OwnAddrs(api.Network) []netip.Addr { return nil }

// Interfaces implements driver.Driver: none.
func (Driver) Interfaces(api.Network, api.Endpoint) (via, end string) { return "", "" }

// Network implements driver.Driver: nothing.
func (Driver) Network(api.Network, kernel.Facts) ([]kernel.Object, error) { return nil, nil }

// Objects implements driver.Driver: the VLAN with addresses and routes.
func (Driver) Objects(n api.Network, e api.Endpoint, _ kernel.Facts) ([]kernel.Object, error) {
	p := driver.ParentOf(n)
	on := n
	on.Options = map[string]string{driver.OptParent: p.Base}
	return driver.Upper{Link: kernel.Link{Type: kernel.VLAN, VLAN: p.VLAN}}.Objects(on, e), nil
}
