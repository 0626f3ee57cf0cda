package host_test

import (
	"testing"

	"github.com/seine-net/seine/internal/driver/drivertest"
	"github.com/seine-net/seine/internal/driver/host"
)

func TestDriver(t *testing.T) { drivertest.Run(t, "host", host.New()) }
