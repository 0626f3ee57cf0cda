// Package vxlan is the fabric of the kernel's VXLAN (RFC 7348): one device per network and node, whose entries are
// programmed; it learns nothing and floods nothing. See README.md.
package vxlan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// Name is the fabric's name.
const Name = "vxlan"

// Fabric is the fabric.
type Fabric struct {
	port uint16
}

// New makes the fabric. port is the UDP port, the same on all nodes; 0 means kernel.VXLANPort.
func New(port uint16) Fabric {
	if port == 0 {
		port = kernel.VXLANPort
	}
	return Fabric{port: port}
}

// Traits implements fabric.Fabric: outer IP and UDP headers, VXLAN's own, and the inner Ethernet header.
func (Fabric) Traits() fabric.Traits {
	const headers = 8 + 8 + 14
	return fabric.Traits{Broadcast: true, Overhead4: 20 + headers, Overhead6: 40 + headers}
}

// announcement is what peers need to know.
type announcement struct {
	Port uint16 `json:"port"`
	MAC  string `json:"mac"`
}

// Announce implements fabric.Fabric.
func (x Fabric) Announce(self api.Node, _ kernel.Facts) (json.RawMessage, error) {
	if self.ID == "" {
		return nil, fmt.Errorf("node %q: has no identity to make a hardware address of", self.Name)
	}
	return json.Marshal(announcement{x.port, MAC(self.ID)})
}

func digest(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// MAC is the hardware address of a node's tunnels. It comes from the node's identity, so it is the same after a restart,
// whatever happened to names and addresses.
func MAC(node string) string {
	b := digest("vtep\x00" + node)
	return fmt.Sprintf("02:5f:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

// gateway is the address of a node on its tunnels, which nothing but the nexthops of other nodes names.
func gateway(node string) netip.Addr {
	a := netip.AddrFrom16([16]byte{0xfe, 0x80}).As16()
	copy(a[8:], digest("vtep\x00"+node))
	return netip.AddrFrom16(a)
}

// gateway4 is used in its place by kernels without IPv6; RFC 3927's range is for links.
func gateway4(node string) netip.Addr {
	b := digest("vtep\x00" + node)
	return netip.AddrFrom4([4]byte{169, 254, 1 + b[0]%254, 1 + b[1]%254})
}

// LinkName is the name of a network's tunnel over IPv4 or over IPv6 on this node: the prefix and the network's name where
// that makes an interface name of its own, else a hash of it.
func LinkName(n fabric.Network, v6 bool) string {
	prefix := kernel.TunnelPrefix
	if v6 {
		prefix = kernel.Tunnel6Prefix
	}
	if name := prefix + n.Name; len(name) <= 15 && n.Name != "wg" {
		return name
	}
	return (prefix + hex.EncodeToString(digest(n.Name)))[:15]
}

// Objects implements fabric.Fabric.
func (x Fabric) Objects(self, peer api.Node, networks []fabric.Network, f kernel.Facts) ([]kernel.Object, error) {
	var told announcement
	if err := json.Unmarshal(peer.Fabrics[Name], &told); err != nil {
		return nil, fmt.Errorf("node %q: what it tells of %s: %w", peer.Name, Name, err)
	}
	if told.Port != x.port {
		return nil, fmt.Errorf("node %q: speaks VXLAN at port %d, this node at %d; want one port in the whole cluster", peer.Name, told.Port, x.port)
	}
	if told.MAC != MAC(peer.ID) {
		return nil, fmt.Errorf("node %q: tells the hardware address %q, which is not that of its identity, %s", peer.Name, told.MAC, MAC(peer.ID))
	}
	from, to, err := fabric.Under(self, peer)
	if err != nil {
		return nil, err
	}
	owner := fabric.Owner(peer)
	out := []kernel.Object{ruleset.Element(ruleset.ByFamily(to, ruleset.VTEP4, ruleset.VTEP6), to.String(), "", owner)}
	for i := range networks {
		n := &networks[i]
		if err := n.Check(Name, x.Traits()); err != nil {
			return nil, err
		}
		link := LinkName(*n, to.Is6())
		out = append(out, x.tunnel(self, n, link, from, f)...)
		if n.Broadcast {
			out = append(out, switched(n, link, to)...)
			continue
		}
		routed, err := x.routed(peer, n, link, to, f)
		if err != nil {
			return nil, err
		}
		out = append(out, routed...)
	}
	return out, nil
}

// tunnel gives a network's tunnel, which all peers share. Its group is the network's, so that what passes between it and
// the bridge counts as being within the network.
func (x Fabric) tunnel(self api.Node, n *fabric.Network, link string, from netip.Addr, f kernel.Facts) []kernel.Object {
	owner := "network/" + n.Name
	l := &kernel.Link{Name: link, Type: kernel.VXLAN, MTU: n.MTU, MAC: MAC(self.ID), Group: ruleset.Group(n.Name),
		Alias: fabric.Alias(Name + "/" + n.Name), Tunnel: &kernel.Tunnel{VNI: n.VNI, Port: x.port, Local: from}}
	out := []kernel.Object{l, &kernel.LinkUp{Link: link}, ruleset.Element(ruleset.Tunnels, fmt.Sprintf("%d . %d", x.port, n.VNI), "", owner)}
	if n.Broadcast {
		l.Master = n.Link
		if !f.NoIPv6 { // a port speaks none of its own
			out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + link + "/disable_ipv6", Value: "1"})
		}
		l.Port = &kernel.Port{NoLearning: true, NoFlood: true, Suppress: true, Isolated: !n.ICCOn()}
	}
	return out
}

// routed gives the way to a peer by a gateway on the tunnel.
func (Fabric) routed(peer api.Node, n *fabric.Network, link string, to netip.Addr, f kernel.Facts) ([]kernel.Object, error) {
	via, mac := gateway(peer.ID), MAC(peer.ID)
	out := []kernel.Object{&kernel.FDB{Link: link, MAC: mac, Dst: to}}
	if f.NoIPv6 {
		via = gateway4(peer.ID)
	} else {
		// The machine may turn IPv6 off by default; the gateway is one of IPv6 for both families.
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + link + "/disable_ipv6", Value: "0"},
			&kernel.Sysctl{Name: "net/ipv6/conf/" + link + "/accept_ra", Value: "0"},
			&kernel.Sysctl{Name: "net/ipv6/conf/" + link + "/accept_dad", Value: "0"})
	}
	out = append(out, &kernel.Neigh{Link: link, Addr: via, MAC: mac})
	hop := func(id uint32) (*kernel.Nexthop, error) {
		return &kernel.Nexthop{ID: id, V6: via.Is6(), Via: via, Link: link, OnLink: true}, nil
	}
	routes, err := n.Routes(hop, hop)
	return append(out, routes...), err
}

// switched gives the way to a peer's endpoints on a network that is one switch: where each hardware address is, who has
// which address, so that nobody needs to be asked, and where frames to all stations go.
func switched(n *fabric.Network, link string, to netip.Addr) []kernel.Object {
	out := []kernel.Object{&kernel.FDB{Link: link, MAC: kernel.EveryMAC, Dst: to}}
	for _, e := range n.Endpoints {
		out = append(out, &kernel.FDB{Link: link, MAC: e.MAC, Dst: to}, &kernel.FDB{Link: link, MAC: e.MAC})
		for _, a := range e.Addresses {
			out = append(out, &kernel.Neigh{Link: n.Link, Addr: a, MAC: e.MAC})
		}
	}
	return out
}
