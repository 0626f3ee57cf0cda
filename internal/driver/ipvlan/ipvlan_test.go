package ipvlan_test

import (
	"testing"

	"github.com/seine-net/seine/internal/driver/drivertest"
	"github.com/seine-net/seine/internal/driver/ipvlan"
)

func TestDriver(t *testing.T) {
	drivertest.Run(t, "ipvlan", ipvlan.New(),
		drivertest.Variant{Change: drivertest.With("parent", "eth0")},
		drivertest.Variant{Name: "vlan", Change: drivertest.With("parent", "eth1.50", "flag", "vepa")},
		drivertest.Variant{Name: "l3", Change: func(c *drivertest.Case) {
			drivertest.NoGateways(c)
			drivertest.With("mode", "l3")(c)
		}},
		drivertest.Variant{Name: "host", Change: drivertest.With("host", "true")},
		drivertest.Variant{Name: "no-parent", Change: func(c *drivertest.Case) { c.Network.Options = nil }},
	)
}
