// Package wireguard is the fabric of the kernel's WireGuard: one device per node, on which each peer is told by its key.
// See README.md.
package wireguard

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/kernel"
)

// Name is the fabric's name.
const Name = "wireguard"

// DefaultPort is the UDP port where none is chosen: one beside the usual 51820, which a machine may use for itself.
const DefaultPort = 51871

// Fabric is the fabric.
type Fabric struct {
	key  kernel.Secret
	port uint16
}

// New makes the fabric of a node with a private key. The node makes it once (crypto/rand) and keeps it; it never leaves the
// node. port is the UDP port to listen on, 0 for DefaultPort.
func New(key kernel.Secret, port uint16) Fabric {
	if port == 0 {
		port = DefaultPort
	}
	return Fabric{key, port}
}

// Traits implements fabric.Fabric: outer IP and UDP headers, and WireGuard's own with the tag behind.
func (Fabric) Traits() fabric.Traits {
	const headers = 8 + 16 + 16
	return fabric.Traits{Encrypts: true, Overhead4: 20 + headers, Overhead6: 40 + headers}
}

// announcement is what peers need to know.
type announcement struct {
	Key  string `json:"key"`
	Port uint16 `json:"port"`
	// Hidden says that the node can't be spoken to first: it is behind what translates addresses. It speaks, and keeps
	// speaking.
	Hidden bool `json:"hidden,omitempty"`
}

// HiddenLabel is the label of a node (value "true") that is behind what translates addresses.
const HiddenLabel = "seine.hidden"

// keepalive is how often, in seconds, a node speaks that is hidden: what translates addresses forgets after 30 at least
// (RFC 4787 section 4.3 asks for 120).
const keepalive = 25

// Announce implements fabric.Fabric.
func (w Fabric) Announce(self api.Node, _ kernel.Facts) (json.RawMessage, error) {
	pub, err := w.key.Public()
	if err != nil {
		return nil, err
	}
	return json.Marshal(announcement{pub.String(), w.port, self.Labels[HiddenLabel] == "true"})
}

// LinkName is the name of the device, which no network's tunnel has.
const LinkName = kernel.TunnelPrefix + "wg"

// Objects implements fabric.Fabric.
func (w Fabric) Objects(self, peer api.Node, networks []fabric.Network, f kernel.Facts) ([]kernel.Object, error) {
	var told announcement
	if err := json.Unmarshal(peer.Fabrics[Name], &told); err != nil {
		return nil, fmt.Errorf("node %q: what it tells of %s: %w", peer.Name, Name, err)
	}
	pub, err := kernel.ParseWGKey(told.Key)
	if err != nil {
		return nil, fmt.Errorf("node %q: %w", peer.Name, err)
	}
	if told.Port == 0 {
		return nil, fmt.Errorf("node %q: tells no port", peer.Name)
	}
	_, to, err := fabric.Under(self, peer)
	if err != nil {
		return nil, err
	}
	p := &kernel.WGPeer{Link: LinkName, PublicKey: pub}
	if !told.Hidden {
		p.Endpoint = netip.AddrPortFrom(to, told.Port)
	}
	if self.Labels[HiddenLabel] == "true" {
		p.Keepalive = keepalive
	}
	out := w.device(self, f)
	var rest []kernel.Object
	for i := range networks {
		n := &networks[i]
		if err := n.Check(Name, w.Traits()); err != nil {
			return nil, err
		}
		p.AllowedIPs = append(p.AllowedIPs, n.Blocks...)
		hop := func(v6 bool) func(uint32) (*kernel.Nexthop, error) {
			return func(id uint32) (*kernel.Nexthop, error) {
				return &kernel.Nexthop{ID: id, V6: v6, Link: LinkName}, nil
			}
		}
		routes, err := n.Routes(hop(false), hop(true))
		if err != nil {
			return nil, err
		}
		rest = append(append(rest, routes...), n.Pass(LinkName, fabric.Owner(peer))...)
	}
	p.AllowedIPs = kernel.SortPrefixes(p.AllowedIPs)
	return append(append(out, p), rest...), nil
}

// device gives the device, which all peers share. Its MTU is what a full packet of the smallest link leaves it; networks
// have their own, at most that.
func (w Fabric) device(self api.Node, f kernel.Facts) []kernel.Object {
	mtu := w.Traits().MTU(fabric.UnderMTU(self, f), self.Address(false).IsValid())
	out := []kernel.Object{
		&kernel.Link{Name: LinkName, Type: kernel.WG, MTU: max(mtu, 1280), Alias: fabric.Alias(Name)},
		&kernel.WireGuard{Link: LinkName, PrivateKey: w.key, Port: w.port},
		&kernel.LinkUp{Link: LinkName},
	}
	if !f.NoIPv6 {
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + LinkName + "/disable_ipv6", Value: "0"})
	}
	return out
}
