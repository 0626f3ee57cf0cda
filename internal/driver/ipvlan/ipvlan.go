// Package ipvlan is the driver of networks on a wire of the machine's whose endpoints share the machine's hardware
// address there: packets are led to them by their addresses.
//
//	wire ── eth0 or eth0.50 (the parent) ──┬── eth0 of a sandbox   l2: the wire's hosts find it by ARP and NDP
//	                                       ├── eth0 of another     l3, l3s: they need a route by the machine
//	                                       └── sn-… the machine's own, with the option host
package ipvlan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

const (
	optMode = "mode"
	optFlag = "flag"
)

// Driver is the ipvlan driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses {
	return driver.Uses{Subnets: true, Sandbox: true, Handoff: true, Router: true,
		NoPorts: "its containers are hosts of the wire: others reach them at their own addresses",
		Options: map[string]string{
			driver.OptParent: driver.ParentHelp,
			optMode:          "l2 (containers are on the wire), l3 (the machine routes for them), l3s (the same, seen by its packet filter)",
			optFlag:          "bridge (containers reach each other), private (they don't), vepa (by a switch or router that sends their packets back)",
			driver.OptHost:   driver.HostHelp,
		}}
}

// Complete implements driver.Completer.
func (Driver) Complete(n *api.Network, env driver.Env) error {
	noun := api.NetworkNoun(n.Name)
	fill := func(key, value string) {
		if n.Options[key] == "" {
			n.Options[key] = value
		}
	}
	fill(optMode, "l2")
	if n.ICCOn() {
		fill(optFlag, "bridge")
	}
	fill(optFlag, "private")
	mode, flag := n.Options[optMode], n.Options[optFlag]
	if modes := kernel.Modes[kernel.Ipvlan]; !slices.Contains(modes, mode) {
		return api.FieldError(noun, "options."+optMode, mode, "is no mode of an ipvlan", strings.Join(modes, ", "))
	}
	if !slices.Contains(kernel.IpvlanFlags, flag) {
		return api.FieldError(noun, "options."+optFlag, flag, "is no flag of an ipvlan", strings.Join(kernel.IpvlanFlags, ", "))
	}
	if !n.ICCOn() && flag == "bridge" {
		return api.FieldError(noun, "icc", false, `does not go with flag "bridge", which lets containers reach each other`, "flag private or vepa")
	}
	if mode != "l2" {
		for i := range n.Subnets {
			if g := n.Subnets[i].Gateway; g.IsValid() {
				return api.FieldError(noun, fmt.Sprintf("subnets[%d].gateway", i), g, "has no meaning in mode "+mode+", in which the machine routes", "none")
			}
		}
	}
	noHost := ""
	if flag != "bridge" {
		noHost = "can't be had with flag " + flag + ", which keeps the interfaces of a parent apart"
	}
	return upper(*n).Complete(n, env, noHost, optMode, optFlag)
}

// upper is how the interfaces of a network are.
func upper(n api.Network) driver.Upper {
	return driver.Upper{Link: kernel.Link{Type: kernel.Ipvlan, Mode: n.Options[optMode], Flag: n.Options[optFlag]},
		SharedMAC: true, DevRoute: n.Options[optMode] != "l2"}
}

// Parents implements driver.Parented.
func (Driver) Parents(n api.Network) []string { return driver.ParentOf(n).Links() }

// Limits implements driver.Limited.
func (Driver) Limits(api.Network) driver.Limits {
	return driver.Limits{NoMAC: "an ipvlan has its parent's"}
}

// OwnAddrs implements driver.Present.
func (Driver) OwnAddrs(n api.Network) []netip.Addr { return driver.HostAddrs(n) }

// Interfaces implements driver.Driver: the machine's own, if it has one. Nothing of the machine leads into the sandbox.
func (Driver) Interfaces(n api.Network, _ api.Endpoint) (via, end string) {
	if len(driver.HostAddrs(n)) > 0 {
		via = driver.HostName(n.Name)
	}
	return via, ""
}

// Network implements driver.Driver: a parent that is ours to make, and the machine's own interface.
func (Driver) Network(n api.Network, f kernel.Facts) ([]kernel.Object, error) {
	return upper(n).Network(n, f), nil
}

// Objects implements driver.Driver: the interface with addresses and routes.
func (Driver) Objects(n api.Network, e api.Endpoint, _ kernel.Facts) ([]kernel.Object, error) {
	return upper(n).Objects(n, e), nil
}
