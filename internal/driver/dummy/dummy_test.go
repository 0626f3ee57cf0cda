package dummy_test

import (
	"testing"

	"github.com/seine-net/seine/internal/driver/drivertest"
	"github.com/seine-net/seine/internal/driver/dummy"
)

func TestDriver(t *testing.T) {
	drivertest.Run(t, "dummy", dummy.New(),
		drivertest.Variant{Change: drivertest.NoGateways},
	)
}
