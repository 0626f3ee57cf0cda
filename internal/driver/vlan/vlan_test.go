package vlan_test

import (
	"testing"

	"github.com/seine-net/seine/internal/driver/drivertest"
	"github.com/seine-net/seine/internal/driver/vlan"
)

func TestDriver(t *testing.T) {
	drivertest.Run(t, "vlan", vlan.New(),
		drivertest.Variant{Change: drivertest.With("parent", "eth1.50")},
	)
}
