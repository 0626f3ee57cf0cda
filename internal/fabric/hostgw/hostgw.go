// Package hostgw is the fabric without a tunnel: the peer itself is the gateway to its containers, as it is on a link of
// this node. See README.md.
package hostgw

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/kernel"
)

// Name is the fabric's name.
const Name = "hostgw"

// Fabric is the fabric.
type Fabric struct{}

// New makes the fabric; it has no state.
func New() Fabric { return Fabric{} }

// Traits implements fabric.Fabric.
func (Fabric) Traits() fabric.Traits { return fabric.Traits{} }

// announcement is what peers need to know: where IPv6 packets can be sent to on a link that both are on, even if the nodes
// have no IPv6 address but the one that every link has.
type announcement struct {
	// LinkLocal has for each of the node's addresses the link-local address of the same link.
	LinkLocal map[netip.Addr]netip.Addr `json:"linkLocal,omitempty"`
}

// Announce implements fabric.Fabric.
func (Fabric) Announce(self api.Node, f kernel.Facts) (json.RawMessage, error) {
	var a announcement
	for _, addr := range self.Addresses {
		l, _ := on(f, addr)
		if l == nil {
			continue
		}
		for _, p := range l.Addrs {
			if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				if a.LinkLocal == nil {
					a.LinkLocal = map[netip.Addr]netip.Addr{}
				}
				a.LinkLocal[addr] = p.Addr()
				break
			}
		}
	}
	return json.Marshal(a)
}

// on gives the link that has a subnet with the address; own says that the address is the link's own.
func on(f kernel.Facts, a netip.Addr) (l *kernel.LinkFact, own bool) {
	for i := range f.Links {
		for _, p := range f.Links[i].Addrs {
			if p.Contains(a) && !f.Links[i].Ours && !p.Addr().IsLinkLocalUnicast() {
				return &f.Links[i], p.Addr() == a
			}
		}
	}
	return nil, false
}

// way is how a peer is reached: the link, and the gateways on it.
type way struct {
	link   string
	v4, v6 netip.Addr
}

// ways finds the link that both nodes are on. IPv4 goes by IPv6 where the peer has no IPv4 address there (RFC 5549).
func ways(peer api.Node, f kernel.Facts) (way, error) {
	var told announcement
	if raw := peer.Fabrics[Name]; raw != nil {
		if err := json.Unmarshal(raw, &told); err != nil {
			return way{}, fmt.Errorf("node %q: what it tells of %s: %w", peer.Name, Name, err)
		}
	}
	var w way
	var local netip.Addr
	for _, a := range peer.Addresses {
		l, own := on(f, a)
		if l == nil || own || !l.Up || w.link != "" && l.Name != w.link {
			continue
		}
		w.link = l.Name
		switch {
		case a.Is4() && !w.v4.IsValid():
			w.v4 = a
		case a.Is6() && !w.v6.IsValid():
			w.v6 = a
		}
		if ll := told.LinkLocal[a]; ll.Is6() && ll.IsLinkLocalUnicast() && !local.IsValid() {
			local = ll
		}
	}
	if w.link == "" {
		return w, fmt.Errorf("node %q: none of its addresses %v is on a link of this node; fabric %s needs nodes that are on one link", peer.Name, peer.Addresses, Name)
	}
	if !w.v6.IsValid() {
		w.v6 = local
	}
	if !w.v4.IsValid() {
		w.v4 = w.v6
	}
	return w, nil
}

// Objects implements fabric.Fabric.
func (Fabric) Objects(_, peer api.Node, networks []fabric.Network, f kernel.Facts) ([]kernel.Object, error) {
	w, err := ways(peer, f)
	if err != nil {
		return nil, err
	}
	var out []kernel.Object
	for i := range networks {
		n := &networks[i]
		if err := n.Check(Name, Fabric{}.Traits()); err != nil {
			return nil, err
		}
		hop := func(via netip.Addr, v6 bool) func(uint32) (*kernel.Nexthop, error) {
			return func(id uint32) (*kernel.Nexthop, error) {
				if !via.IsValid() || v6 && !via.Is6() {
					return nil, fmt.Errorf("node %q: has no IPv6 address on link %q", peer.Name, w.link)
				}
				return &kernel.Nexthop{ID: id, V6: via.Is6(), Via: via, Link: w.link}, nil
			}
		}
		routes, err := n.Routes(hop(w.v4, false), hop(w.v6, true))
		if err != nil {
			return nil, err
		}
		out = append(out, routes...)
		out = append(out, n.Pass(w.link, fabric.Owner(peer))...)
	}
	return out, nil
}
