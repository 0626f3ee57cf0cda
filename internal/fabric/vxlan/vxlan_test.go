package vxlan_test

import (
	"testing"

	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/fabrictest"
	"github.com/seine-net/seine/internal/fabric/vxlan"
)

func TestFabric(t *testing.T) {
	fabrictest.Run(t, vxlan.Name, vxlan.New(0), func(int) fabric.Fabric { return vxlan.New(0) })
}
