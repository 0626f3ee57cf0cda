package vxlan_test

import (
	"encoding/json"
	"net"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/fabrictest"
	"github.com/seine-net/seine/internal/fabric/vxlan"
	"github.com/seine-net/seine/internal/kernel"
)

func TestFabric(t *testing.T) {
	fabrictest.Run(t, vxlan.Name, vxlan.New(0), func(int) fabric.Fabric { return vxlan.New(0) })
}

// TestNames: a node's hardware address is unicast, its own and the same each time; tunnels' names fit and differ.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, id := range []string{"", "a", "b", "id-of-h1", "id-of-h2"} {
		mac := vxlan.MAC(id)
		if hw, err := net.ParseMAC(mac); err != nil || hw[0] != 2 || mac != vxlan.MAC(id) || seen[mac] {
			t.Errorf("the address of %q is %s, %v", id, mac, err)
		}
		seen[mac] = true
	}
	for _, name := range []string{"a", "default", "wg", "a-name-of-twelve", "a-name-of-thirteen", "6-a", "x"} {
		for _, v6 := range []bool{false, true} {
			link := vxlan.LinkName(fabric.Network{Network: api.Network{Name: name}}, v6)
			if len(link) > 15 || seen[link] || link == wireguardLink {
				t.Errorf("the tunnel of %q is called %q", name, link)
			}
			seen[link] = true
		}
	}
}

// wireguardLink is the name of that fabric's device.
const wireguardLink = kernel.TunnelPrefix + "wg"

// TestMTU: what is left of 1,500 bytes by RFC 7348 section 5.
func TestMTU(t *testing.T) {
	tr := vxlan.New(0).Traits()
	if v4, v6 := tr.MTU(1500, false), tr.MTU(1500, true); v4 != 1450 || v6 != 1430 {
		t.Errorf("%d and %d bytes are left, want 1,450 and 1,430", v4, v6)
	}
}

// TestRefused: a peer with another port, or in another's name, is refused.
func TestRefused(t *testing.T) {
	x := vxlan.New(0)
	for what, f := range map[string]func(*api.Node){
		"port": func(n *api.Node) { n.Fabrics[vxlan.Name] = raw(t, vxlan.New(8472), *n) },
		"name": func(n *api.Node) { n.ID = "another" },
	} {
		nodes, facts, err := fabrictest.Nodes(true, false, map[string]fabric.Fabric{vxlan.Name: x}, func(int) map[string]fabric.Fabric { return map[string]fabric.Fabric{vxlan.Name: x} })
		if err != nil {
			t.Fatal(err)
		}
		f(&nodes[1])
		if _, err := x.Objects(nodes[0], nodes[1], []fabric.Network{fabrictest.Network(1, 2, true, true, false)}, facts); err == nil {
			t.Errorf("a peer with another %s is not refused", what)
		}
	}
	if _, err := x.Announce(api.Node{Name: "h1"}, kernel.Facts{}); err == nil {
		t.Error("a node without an identity announces itself")
	}
}

func raw(t *testing.T, f fabric.Fabric, n api.Node) json.RawMessage {
	t.Helper()
	b, err := f.Announce(n, kernel.Facts{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
