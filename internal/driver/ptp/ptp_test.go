package ptp_test

import (
	"testing"

	"github.com/seine-net/seine/internal/driver/drivertest"
	"github.com/seine-net/seine/internal/driver/ptp"
)

func TestDriver(t *testing.T) { drivertest.Run(t, "ptp", ptp.New()) }
