package bridge_test

import (
	"testing"

	"github.com/seine-net/seine/internal/driver/bridge"
	"github.com/seine-net/seine/internal/driver/drivertest"
)

func TestDriver(t *testing.T) { drivertest.Run(t, "bridge", bridge.New()) }
