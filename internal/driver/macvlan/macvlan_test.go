package macvlan_test

import (
	"testing"

	"github.com/seine-net/seine/internal/driver/drivertest"
	"github.com/seine-net/seine/internal/driver/macvlan"
)

func TestDriver(t *testing.T) {
	drivertest.Run(t, "macvlan", macvlan.New(),
		drivertest.Variant{Change: drivertest.With("parent", "eth0")},
		drivertest.Variant{Name: "vlan", Change: drivertest.With("parent", "eth1.50", "mode", "vepa")},
		drivertest.Variant{Name: "passthru", Change: drivertest.With("mode", "passthru")},
		drivertest.Variant{Name: "no-gateway", Change: drivertest.NoGateways},
		drivertest.Variant{Name: "host", Change: drivertest.With("host", "true")},
		drivertest.Variant{Name: "host-v4", Change: drivertest.With("host", "10.1.0.7")},
		drivertest.Variant{Name: "no-parent", Change: func(c *drivertest.Case) { c.Network.Options = nil }},
	)
}
