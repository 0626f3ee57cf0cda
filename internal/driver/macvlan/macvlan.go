// Package macvlan is the driver of networks on a wire of the machine's: each endpoint has an interface with a hardware
// address of its own there, so that the other hosts of the wire take a container for one of them.
//
//	wire ── eth0 or eth0.50 (the parent) ──┬── eth0 of a sandbox, with its own hardware address
//	                                       ├── eth0 of another
//	                                       └── sn-… the machine's own, with the option host
package macvlan

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

const (
	optMode  = "mode"
	passthru = "passthru"
)

// Driver is the macvlan driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses {
	return driver.Uses{Subnets: true, Sandbox: true, Handoff: true, Router: true,
		NoPorts: "its containers are hosts of the wire: the machine carries none of their packets, and others reach them at their own addresses",
		Options: map[string]string{
			driver.OptParent: driver.ParentHelp,
			optMode:          "bridge (containers reach each other), private (they don't), vepa (by a switch that sends their frames back), passthru (one container, with the parent's hardware address)",
			driver.OptHost:   driver.HostHelp,
		}}
}

// Complete implements driver.Completer.
func (Driver) Complete(n *api.Network, env driver.Env) error {
	noun, mode := api.NetworkNoun(n.Name), n.Options[optMode]
	if mode == "" {
		if mode = "bridge"; !n.ICCOn() {
			mode = "private"
		}
		n.Options[optMode] = mode
	}
	modes := kernel.Modes[kernel.Macvlan]
	if !slices.Contains(modes, mode) {
		return api.FieldError(noun, "options."+optMode, mode, "is no mode of a macvlan", strings.Join(modes, ", "))
	}
	if !n.ICCOn() && mode == "bridge" {
		return api.FieldError(noun, "icc", false, `does not go with mode "bridge", which lets containers reach each other`, "mode private or vepa")
	}
	noHost := ""
	if mode != "bridge" {
		noHost = "can't be had in mode " + mode + ", which keeps the interfaces of a parent apart"
	}
	if err := upper(*n).Complete(n, env, noHost); err != nil {
		return err
	}
	for _, o := range env.Others {
		if p := driver.ParentOf(o).Link; p != "" && p == driver.ParentOf(*n).Link && o.Driver == n.Driver && (mode == passthru || o.Options[optMode] == passthru) {
			err := api.FieldError(noun, "options."+optMode, mode, "can't be had on "+p+" beside network \""+o.Name+"\": one in mode passthru has its parent for itself", "another parent")
			err.Code = api.Conflict
			return err
		}
	}
	return nil
}

// upper is how the interfaces of a network are.
func upper(n api.Network) driver.Upper {
	mode := n.Options[optMode]
	return driver.Upper{Link: kernel.Link{Type: kernel.Macvlan, Mode: mode}, SharedMAC: mode == passthru}
}

// Parents implements driver.Parented.
func (Driver) Parents(n api.Network) []string { return driver.ParentOf(n).Links() }

// Limits implements driver.Limited.
func (Driver) Limits(n api.Network) driver.Limits {
	if n.Options[optMode] != passthru {
		return driver.Limits{}
	}
	return driver.Limits{One: "in mode passthru one interface has the parent for itself", NoMAC: "in mode passthru an interface has its parent's"}
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
