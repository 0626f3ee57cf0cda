package bridge_test

import (
	"net/netip"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver/bridge"
	"github.com/seine-net/seine/internal/driver/drivertest"
	"github.com/seine-net/seine/internal/kernel"
)

func TestDriver(t *testing.T) {
	with := drivertest.With
	drivertest.Run(t, "bridge", bridge.New(),
		drivertest.Variant{Name: "routed", Change: with(api.OptGatewayMode4, "routed", api.OptGatewayMode6, "routed")},
		drivertest.Variant{Name: "unprotected", Change: with(api.OptGatewayMode4, "nat-unprotected", api.OptGatewayMode6, "nat", api.OptTrusted, "wg0:eth1")},
		drivertest.Variant{Name: "isolated", Change: func(c *drivertest.Case) {
			with(api.OptGatewayMode4, "isolated", api.OptGatewayMode6, "isolated")(c)
			c.Network.Internal = true
		}},
		drivertest.Variant{Name: "inhibit", Change: with(api.OptInhibit4, "true")},
		drivertest.Variant{Name: "source", Change: func(c *drivertest.Case) {
			with(api.OptHostIPv4, "192.0.2.7", api.OptHostIPv6, "2001:db8::7")(c)
			c.Facts.Links = append(c.Facts.Links, kernel.LinkFact{Name: "up0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64")}})
		}},
	)
}
