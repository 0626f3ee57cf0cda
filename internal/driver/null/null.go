// Package null is the driver of networks that connect to nothing: the sandbox has its loopback and no more.
package null

import (
	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

// Driver is the null driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses { return driver.Uses{Sandbox: true} }

// Interfaces implements driver.Driver: none.
func (Driver) Interfaces(api.Network, api.Endpoint) (via, end string) { return "", "" }

// Network implements driver.Driver: nothing.
func (Driver) Network(api.Network, kernel.Facts) ([]kernel.Object, error) { return nil, nil }

// Objects implements driver.Driver: lo is up.
func (Driver) Objects(_ api.Network, e api.Endpoint, _ kernel.Facts) ([]kernel.Object, error) {
	return []kernel.Object{&kernel.LinkUp{NS: e.Sandbox.Netns, Link: "lo", Keep: true}}, nil
}
