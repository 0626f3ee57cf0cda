package hostgw_test

import (
	"testing"

	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/fabrictest"
	"github.com/seine-net/seine/internal/fabric/hostgw"
)

func TestFabric(t *testing.T) {
	fabrictest.Run(t, hostgw.Name, hostgw.New(), func(int) fabric.Fabric { return hostgw.New() })
}
