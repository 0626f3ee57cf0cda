// Package fabric declares what a fabric is: the pure function that says which kernel objects let this node reach a peer's
// containers. Each fabric is a folder below; internal/builtin lists them. What fabrics share is here: the routes to a
// peer's blocks, who answers for them, and what may pass.
//
// A network of a cluster has one subnet per family over all nodes, of which each node holds blocks, and every node's
// bridge has the same gateway address. Between nodes it is routed, by one nexthop object per peer and family:
//
//	container ── bridge ── route to the peer's block ── nexthop ── tunnel or underlay ── peer … bridge ── container
//	             answers ARP and NDP for what          └─ the one thing that differs between fabrics, replaced
//	             is on other nodes                        as a whole when a pair of nodes changes its fabric
//
// or, where it asks for broadcast, it is one switch: a tunnel is a port of the bridge (internal/fabric/vxlan).
package fabric

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// Fabric says which kernel objects let this node reach one peer, and what peers must know about this node. It changes
// nothing: the same arguments give the same objects.
type Fabric interface {
	// Announce gives what peers must know about this node; it ends up in api.Node.Fabrics under the fabric's name.
	Announce(self api.Node, f kernel.Facts) (json.RawMessage, error)
	// Objects gives all the objects by which this node reaches the peer in these networks, so that a change of one peer
	// is the change of one owner's objects. What several peers share, such as the tunnel, is among the objects of each of
	// them, computed from the node and the network alone: it comes with the first and goes with the last. An error says
	// why the peer can't be reached so.
	Objects(self, peer api.Node, networks []Network, f kernel.Facts) ([]kernel.Object, error)
	// Traits says what the fabric can do.
	Traits() Traits
}

// Carrier is a fabric whose packets this program carries itself. What Objects gives may need it to run.
type Carrier interface {
	Fabric
	// Carry is told what Objects is told, before those objects are made; with no networks the peer is forgotten, of whom
	// then only the ID is needed. The same again changes nothing, and after an error the peer is as it was.
	Carry(self, peer api.Node, networks []Network) error
	// Run carries packets until ctx ends.
	Run(ctx context.Context) error
}

// Traits says what a fabric can do.
type Traits struct {
	// Encrypts: nobody on the way can read or forge packets.
	Encrypts bool
	// Broadcast: a network can be one layer 2 switch over all nodes.
	Broadcast bool
	// Overhead4 and Overhead6 are the bytes that a packet grows by on an underlay of IPv4 and of IPv6.
	Overhead4, Overhead6 int
}

// MTU is the largest packet, in bytes, that containers can send by a fabric over links whose MTU is underlay, where the
// nodes speak IPv6 (v6) or IPv4 to each other.
func (t Traits) MTU(underlay int, v6 bool) int {
	if v6 {
		return underlay - t.Overhead6
	}
	return underlay - t.Overhead4
}

// Network is a network of the cluster, as it concerns this node and one peer.
type Network struct {
	api.Network
	// Link is the network's bridge on this node.
	Link string
	// Blocks are the peer's addresses in the network: blocks that it holds and single ones. They don't overlap.
	Blocks []netip.Prefix
	// Endpoints are the peer's in the network.
	Endpoints []Endpoint
	// Hop4 and Hop6 are the numbers of the nexthop objects that lead to the peer in this network; see Numbers.
	Hop4, Hop6 uint32
}

// Check says why a fabric with some traits does not carry the network: it is never carried with less than it asks for.
func (n *Network) Check(name string, t Traits) error {
	refuse := func(field string, value any, can string) error {
		return api.FieldError(api.NetworkNoun(n.Name), field, value, fmt.Sprintf("is not to be had by fabric %q", name), "a fabric that "+can)
	}
	switch {
	case n.Encrypt && !t.Encrypts:
		return refuse("encrypt", true, "encrypts, such as wireguard")
	case n.Broadcast && !t.Broadcast:
		return refuse("broadcast", true, "has broadcast, such as vxlan")
	}
	return nil
}

// Endpoint is an interface of a container on the peer.
type Endpoint struct {
	Addresses []netip.Addr
	MAC       string
}

// Numbers gives nexthop objects their numbers, which a node needs to find again after a restart: they come from a hash of
// what they are for. Where that is taken the next one is, so that a clash costs two nexthops their stability and nothing
// else. The zero value is ready. It is not safe for use by several goroutines at once.
type Numbers struct {
	byName map[string]uint32
	taken  map[uint32]bool
}

// Number is the number for a network, by its identity, a peer, by its identity, and a family. It is at least 2^31, away from
// the small numbers that people and routing daemons use.
func (n *Numbers) Number(network, peer string, v6 bool) uint32 {
	name := fmt.Sprintf("%s\x00%s\x00%v", network, peer, v6)
	if id, ok := n.byName[name]; ok {
		return id
	}
	if n.byName == nil {
		n.byName, n.taken = map[string]uint32{}, map[uint32]bool{}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	id := h.Sum32() | 1<<31
	for n.taken[id] {
		id = (id + 1) | 1<<31
	}
	n.byName[name], n.taken[id] = id, true
	return id
}

// Release gives a number back.
func (n *Numbers) Release(network, peer string, v6 bool) {
	name := fmt.Sprintf("%s\x00%s\x00%v", network, peer, v6)
	if id, ok := n.byName[name]; ok {
		delete(n.byName, name)
		delete(n.taken, id)
	}
}

// Shared gives what a network of the cluster needs on this node whoever its peers are and whatever way leads to them: its
// subnets are the cluster's, and its bridge answers for addresses on other nodes at once. owner is the network's.
func Shared(n Network, owner string) []kernel.Object {
	var out []kernel.Object
	for _, s := range n.Subnets {
		out = append(out, ruleset.Element(ruleset.ByFamily(s.Prefix.Addr(), ruleset.Cluster4, ruleset.Cluster6), s.Prefix.String(), "", owner))
	}
	if n.Broadcast {
		return out
	}
	sysctl := func(name, value string) { out = append(out, &kernel.Sysctl{Name: name, Value: value}) }
	if n.Subnet4() != nil {
		sysctl("net/ipv4/conf/"+n.Link+"/proxy_arp", "1")
		sysctl("net/ipv4/neigh/"+n.Link+"/proxy_delay", "0")
	}
	if n.Subnet6() != nil {
		sysctl("net/ipv6/conf/"+n.Link+"/proxy_ndp", "1")
		sysctl("net/ipv6/neigh/"+n.Link+"/proxy_delay", "0")
	}
	return out
}

// Local gives what an endpoint of this node needs on a network of the cluster beside its driver's objects: where the network
// is one switch, the bridge knows its neighbours, so that questions for them don't go to other nodes.
func Local(n Network, e api.Endpoint) []kernel.Object {
	if !n.Broadcast {
		return nil
	}
	var out []kernel.Object
	for _, a := range e.Addresses {
		out = append(out, &kernel.Neigh{Link: n.Link, Addr: a, MAC: e.MAC})
	}
	return out
}

// Owner names the owner, in the desired set, of what leads to a peer.
func Owner(peer api.Node) string { return "peer/" + peer.ID }

// Alias marks a link that leads to peers as ours.
func Alias(what string) string { return kernel.AliasPrefix + "fabric/" + what }

// hops reports for each family whether packets of it go to the peer's blocks in the network.
func (n *Network) hops() (v4, v6 bool) {
	for _, b := range n.Blocks {
		v4, v6 = v4 || b.Addr().Is4(), v6 || b.Addr().Is6()
	}
	return v4, v6
}

// Routes gives the routes to the peer's blocks by the nexthops, which v4 and v6 make where the family has blocks, and for
// each of its IPv6 endpoints an entry with which the bridge answers for it. (IPv4 needs none: a bridge with proxy_arp
// answers for whatever is routed elsewhere.)
func (n *Network) Routes(v4, v6 func(id uint32) (*kernel.Nexthop, error)) ([]kernel.Object, error) {
	var out []kernel.Object
	has4, has6 := n.hops()
	for _, h := range []struct {
		has  bool
		id   uint32
		make func(uint32) (*kernel.Nexthop, error)
	}{{has4, n.Hop4, v4}, {has6, n.Hop6, v6}} {
		if !h.has {
			continue
		}
		if h.id == 0 {
			return nil, fmt.Errorf("%s: there is no number for the nexthop", api.NetworkNoun(n.Name))
		}
		hop, err := h.make(h.id)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", api.NetworkNoun(n.Name), err)
		}
		out = append(out, hop)
	}
	for _, b := range n.Blocks {
		r := &kernel.Route{Dst: b, Nexthop: n.Hop4}
		if b.Addr().Is6() {
			r.Nexthop, r.Metric = n.Hop6, 1024
		}
		out = append(out, r)
	}
	for _, e := range n.Endpoints {
		for _, a := range e.Addresses {
			if a.Is6() {
				out = append(out, &kernel.Neigh{Link: n.Link, Addr: a, Proxy: true})
			}
		}
	}
	return out, nil
}

// Pass gives the elements that let packets pass between the network and the peer's blocks by an interface that is not the
// network's own, in both directions, and by no other.
func (n *Network) Pass(link, owner string) []kernel.Object {
	if !n.ICCOn() {
		return nil
	}
	chain := ruleset.FarChain(n.Name, link)
	out := []kernel.Object{chain}
	for _, b := range n.Blocks {
		set := ruleset.ByFamily(b.Addr(), ruleset.Far4, ruleset.Far6)
		item := b.String()
		if b.IsSingleIP() {
			item = b.Addr().String()
		}
		out = append(out, ruleset.Element(set, item, "jump "+chain.Chain.Name, owner))
	}
	return out
}

// UnderMTU is the MTU, in bytes, of the smallest link that has one of the node's addresses; where none has, that of the
// link that the default route uses.
func UnderMTU(self api.Node, f kernel.Facts) int {
	under := 0
	for _, a := range self.Addresses {
		for _, l := range f.Links {
			for _, p := range l.Addrs {
				if p.Addr() == a && (under == 0 || l.MTU < under) {
					under = l.MTU
				}
			}
		}
	}
	if under == 0 {
		under = f.PathMTU()
	}
	return under
}

// Under picks the pair of addresses by which two nodes reach each other: of IPv4 where both have one, else of IPv6.
func Under(self, peer api.Node) (from, to netip.Addr, err error) {
	for _, v4 := range []bool{true, false} {
		if from, to = self.Address(v4), peer.Address(v4); from.IsValid() && to.IsValid() {
			return from, to, nil
		}
	}
	return from, to, fmt.Errorf("node %q: has no address of a family that node %q has one of", peer.Name, self.Name)
}
