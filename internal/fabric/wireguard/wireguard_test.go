package wireguard_test

import (
	"testing"

	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/fabrictest"
	"github.com/seine-net/seine/internal/fabric/wireguard"
	"github.com/seine-net/seine/internal/kernel"
)

func node(i int) fabric.Fabric {
	return wireguard.New(kernel.NewSecret(kernel.WGKey{byte(8 * (i + 1))}, true), 0)
}

func TestFabric(t *testing.T) { fabrictest.Run(t, wireguard.Name, node(0), node) }
