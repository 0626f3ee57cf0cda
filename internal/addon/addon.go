// Package addon declares what an addon is: a pure function that says which further kernel objects an endpoint needs
// for something that is not its interface. Each addon is a folder below; internal/builtin lists them.
package addon

import (
	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// Addon gives the objects that an endpoint needs beyond its driver's; none where the endpoint does not ask for what
// the addon does. The endpoint is complete, as for a driver.
type Addon interface {
	Objects(n api.Network, e api.Endpoint, at Place, f kernel.Facts) ([]kernel.Object, error)
}

// Place is what an addon needs to know of the endpoint's interface.
type Place struct {
	// Owner is the endpoint's owner in the desired set, for comments.
	Owner string
	// HostInterface is the machine's interface that the endpoint's packets come by.
	HostInterface string
}
