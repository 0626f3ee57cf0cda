package null_test

import (
	"testing"

	"github.com/seine-net/seine/internal/driver/drivertest"
	"github.com/seine-net/seine/internal/driver/null"
)

func TestDriver(t *testing.T) { drivertest.Run(t, "null", null.New()) }
