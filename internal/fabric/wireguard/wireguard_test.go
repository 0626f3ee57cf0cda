package wireguard_test

import (
	"encoding/json"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/fabrictest"
	"github.com/seine-net/seine/internal/fabric/wireguard"
	"github.com/seine-net/seine/internal/kernel"
)

func node(i int) fabric.Fabric {
	return wireguard.New(kernel.NewSecret(kernel.WGKey{byte(8 * (i + 1))}, true), 0)
}

func TestFabric(t *testing.T) { fabrictest.Run(t, wireguard.Name, node(0), node) }

// TestHidden: who is behind what translates addresses is not spoken to first, and keeps speaking itself.
func TestHidden(t *testing.T) {
	f := func(i int) map[string]fabric.Fabric { return map[string]fabric.Fabric{wireguard.Name: node(i)} }
	nodes, facts, err := fabrictest.Nodes(true, false, f(0), f)
	if err != nil {
		t.Fatal(err)
	}
	hidden := nodes[1]
	hidden.Labels = map[string]string{wireguard.HiddenLabel: "true"}
	raw, err := node(1).Announce(hidden, facts)
	if err != nil {
		t.Fatal(err)
	}
	hidden.Fabrics = map[string]json.RawMessage{wireguard.Name: raw}
	nets := []fabric.Network{fabrictest.Network(1, 2, true, true, false)}
	peer := func(self fabric.Fabric, a, b api.Node) *kernel.WGPeer {
		objects, err := self.Objects(a, b, nets, facts)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			if p, ok := o.(*kernel.WGPeer); ok {
				return p
			}
		}
		t.Fatal("no peer")
		return nil
	}
	if p := peer(node(0), nodes[0], hidden); p.Endpoint.IsValid() || p.Keepalive != 0 {
		t.Errorf("a hidden peer: %s", p)
	}
	if p := peer(node(1), hidden, nodes[0]); !p.Endpoint.IsValid() || p.Keepalive == 0 {
		t.Errorf("a peer of a hidden node: %s", p)
	}
}
