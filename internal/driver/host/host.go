// Package host is the driver of endpoints that use the machine's own network: there is nothing to make.
package host

import (
	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

// Driver is the host driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses { return driver.Uses{} }

// Interfaces implements driver.Driver: none.
func (Driver) Interfaces(api.Network, api.Endpoint) (via, end string) { return "", "" }

// Network implements driver.Driver: nothing.
func (Driver) Network(api.Network, kernel.Facts) ([]kernel.Object, error) { return nil, nil }

// Objects implements driver.Driver: nothing.
func (Driver) Objects(api.Network, api.Endpoint, kernel.Facts) ([]kernel.Object, error) {
	return nil, nil
}
