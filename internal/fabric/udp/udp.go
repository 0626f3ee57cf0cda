// Package udp is the fabric for where neither VXLAN nor WireGuard may pass: this program carries the packets itself,
// between a TUN device and UDP datagrams. See README.md. Fabric says which objects that takes and changes nothing;
// Runner carries.
//
//	routes to peers' blocks ── sx-udp ── split into segments ── UDP_SEGMENT ──▶ underlay
//	                          (TSO, USO)      a datagram each, a system call for many
//	bridge … containers ◀── sx-udp ◀── segments of one flow together ── UDP_GRO ◀── underlay
package udp

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/kernel"
)

// Name is the fabric's name.
const Name = "udp"

// DefaultPort is the UDP port where none is chosen.
const DefaultPort = 8286

// LinkName is the name of the device, which no network's tunnel has.
const LinkName = kernel.TunnelPrefix + "udp"

// Fabric is the fabric.
type Fabric struct {
	tag  tag
	port uint16
}

// New makes the fabric of a node. secret is something of the node's own that nobody can guess: what peers write on packets
// to it comes from that. port is the UDP port, 0 for DefaultPort.
func New(secret []byte, port uint16) Fabric {
	if port == 0 {
		port = DefaultPort
	}
	sum := sha256.Sum256(append([]byte("seine fabric udp\x00"), secret...))
	return Fabric{tag(sum[:6]), port}
}

// Traits implements fabric.Fabric: outer IP and UDP headers and our own.
func (Fabric) Traits() fabric.Traits {
	const headers = 8 + headerLen
	return fabric.Traits{Overhead4: 20 + headers, Overhead6: 40 + headers}
}

// announcement is what peers need to know.
type announcement struct {
	Port uint16 `json:"port"`
	// Tag is written on each packet for the node, in base64url.
	Tag string `json:"tag"`
}

// Announce implements fabric.Fabric.
func (u Fabric) Announce(api.Node, kernel.Facts) (json.RawMessage, error) {
	return json.Marshal(announcement{u.port, base64.RawURLEncoding.EncodeToString(u.tag[:])})
}

// PeerOf gives what a Runner needs to know of a peer, with the blocks that it has in these networks.
func (u Fabric) PeerOf(self, peer api.Node, networks []fabric.Network) (Peer, error) {
	var told announcement
	if err := json.Unmarshal(peer.Fabrics[Name], &told); err != nil {
		return Peer{}, fmt.Errorf("node %q: what it tells of %s: %w", peer.Name, Name, err)
	}
	if _, err := parseTag(told.Tag); err != nil {
		return Peer{}, fmt.Errorf("node %q: %w", peer.Name, err)
	}
	if told.Port == 0 {
		return Peer{}, fmt.Errorf("node %q: tells no port", peer.Name)
	}
	from, to, err := fabric.Under(self, peer)
	if err != nil {
		return Peer{}, err
	}
	p := Peer{Local: from, Remote: netip.AddrPortFrom(to, told.Port), Tag: told.Tag}
	for i := range networks {
		p.Blocks = append(p.Blocks, networks[i].Blocks...)
	}
	return p, nil
}

// Objects implements fabric.Fabric. Nexthops can be made only while a Runner has the device open: it has no carrier else.
func (u Fabric) Objects(self, peer api.Node, networks []fabric.Network, f kernel.Facts) ([]kernel.Object, error) {
	if _, err := u.PeerOf(self, peer, networks); err != nil {
		return nil, err
	}
	out := u.device(self, f)
	hop := func(v6 bool) func(uint32) (*kernel.Nexthop, error) {
		return func(id uint32) (*kernel.Nexthop, error) { return &kernel.Nexthop{ID: id, V6: v6, Link: LinkName}, nil }
	}
	for i := range networks {
		n := &networks[i]
		if err := n.Check(Name, u.Traits()); err != nil {
			return nil, err
		}
		routes, err := n.Routes(hop(false), hop(true))
		if err != nil {
			return nil, err
		}
		out = append(append(out, routes...), n.Pass(LinkName, fabric.Owner(peer))...)
	}
	return out, nil
}

// device gives the device, which all peers share. Its MTU is what a full packet of the smallest link leaves it; networks
// have their own, at most that.
func (u Fabric) device(self api.Node, f kernel.Facts) []kernel.Object {
	mtu := u.Traits().MTU(fabric.UnderMTU(self, f), self.Address(false).IsValid())
	out := []kernel.Object{
		&kernel.Link{Name: LinkName, Type: kernel.Tun, MTU: max(mtu, 1280), Alias: fabric.Alias(Name)},
		&kernel.LinkUp{Link: LinkName},
	}
	if !f.NoIPv6 {
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + LinkName + "/disable_ipv6", Value: "0"})
	}
	return out
}
