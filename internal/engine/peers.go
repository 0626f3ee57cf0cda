package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/kernel"
)

// AutoFabric has a fabric chosen for each pair of machines.
const AutoFabric = "auto"

// preference is the order in which AutoFabric tries fabrics: the first one that leads to the peer is taken.
var preference = []string{"hostgw", "vxlan", "wireguard", "udp"}

// Peer is another machine of the cluster, as it announces itself.
type Peer struct {
	Node api.Node
	// Networks are those that it has endpoints or blocks of, by api.Network.ID.
	Networks map[string]PeerNetwork
}

// PeerNetwork is what a peer has of a network.
type PeerNetwork struct {
	Blocks []netip.Prefix
	// Endpoints have name, aliases, addresses and MAC.
	Endpoints []api.Endpoint
}

// SetSelf tells the engine what the cluster knows this machine as; with an empty ID it is in none, and all peers go.
func (e *Engine) SetSelf(ctx context.Context, self api.Node) error {
	e.mu.Lock()
	same := reflect.DeepEqual(e.self, self)
	e.self = self
	if self.ID == "" {
		e.peers = map[string]Peer{}
	}
	e.mu.Unlock()
	if same {
		return nil
	}
	return e.refreshPeers(ctx)
}

// Announce gives what each fabric tells peers about this machine.
func (e *Engine) Announce(self api.Node) (api.Node, error) {
	self.Fabrics = nil
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(e.Fabrics)) {
		told, err := e.Fabrics[name].Announce(self, e.Facts())
		if err != nil {
			errs = append(errs, fmt.Errorf("fabric %q: %w", name, err))
			continue
		}
		if self.Fabrics == nil {
			self.Fabrics = map[string]json.RawMessage{}
		}
		self.Fabrics[name] = told
	}
	return self, errors.Join(errs...)
}

// SetPeer has the kernel hold what leads to a peer, and the name server know its endpoints. The same again changes nothing.
// An error says what of it can't be had; the rest is there.
func (e *Engine) SetPeer(ctx context.Context, p Peer) error {
	noun := fmt.Sprintf("node %q", p.Node.Name)
	unlock, err := e.busy.lock(ctx, "peer "+p.Node.ID)
	if err != nil {
		return refused(noun, err)
	}
	defer unlock()
	e.mu.Lock()
	was := e.peers[p.Node.ID]
	e.peers[p.Node.ID] = p
	e.mu.Unlock()
	e.namePeer(was, p)
	return e.syncPeer(ctx, p)
}

// DropPeer forgets a peer: nothing leads to it any more.
func (e *Engine) DropPeer(ctx context.Context, id string) error {
	unlock, err := e.busy.lock(ctx, "peer "+id)
	if err != nil {
		return refused("node "+id, err)
	}
	defer unlock()
	e.mu.Lock()
	was := e.peers[id]
	delete(e.peers, id)
	delete(e.paths, id)
	e.mu.Unlock()
	e.namePeer(was, Peer{})
	e.forget(id)
	return refusedOrNil("node "+id, e.Loop.Sync(ctx, e.Want.Drop(fabric.Owner(api.Node{ID: id}))))
}

// Peers gives the peers, by name.
func (e *Engine) Peers() []Peer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.SortedFunc(maps.Values(e.peers), func(a, b Peer) int { return strings.Compare(a.Node.Name, b.Node.Name) })
}

// Paths gives the ways to each peer, by network, as they were chosen last, with what the kernel refuses of them.
func (e *Engine) Paths() []api.Path {
	e.mu.Lock()
	paths := maps.Clone(e.paths)
	e.mu.Unlock()
	var out []api.Path
	for _, id := range slices.Sorted(maps.Keys(paths)) {
		refused := e.Loop.Cause(e.Want.Keys(fabric.Owner(api.Node{ID: id})))
		for _, p := range paths[id] {
			if p.Error == "" && refused != nil {
				p.Error = refused.Error()
			}
			out = append(out, p)
		}
	}
	return out
}

// refreshPeers computes anew what leads to all peers: a network, this machine or its links have changed.
func (e *Engine) refreshPeers(ctx context.Context) error {
	var errs []error
	e.mu.Lock()
	ids := slices.Sorted(maps.Keys(e.peers))
	self := e.self
	e.mu.Unlock()
	if self.ID == "" {
		for _, owner := range e.Want.Owners() {
			if id, ok := strings.CutPrefix(owner, fabric.Owner(api.Node{})); ok {
				e.forget(id)
				errs = append(errs, e.Loop.Sync(ctx, e.Want.Drop(owner)))
			}
		}
		return errors.Join(errs...)
	}
	for _, id := range ids {
		unlock, err := e.busy.lock(ctx, "peer "+id)
		if err != nil {
			return err
		}
		e.mu.Lock()
		p, ok := e.peers[id]
		e.mu.Unlock()
		if ok {
			errs = append(errs, e.syncPeer(ctx, p))
		}
		unlock()
	}
	return errors.Join(errs...)
}

// syncPeer makes what leads to a peer; its lock is held.
func (e *Engine) syncPeer(ctx context.Context, p Peer) error {
	objects, paths := e.peerObjects(p)
	keys, err := e.Want.Set(fabric.Owner(p.Node), objects...)
	if err == nil {
		err = e.Loop.Sync(ctx, keys)
	}
	var errs []error
	for i := range paths {
		if paths[i].Error != "" {
			errs = append(errs, fmt.Errorf("network %q: %s", paths[i].Network, paths[i].Error))
		}
	}
	e.mu.Lock()
	was := e.paths[p.Node.ID]
	e.paths[p.Node.ID] = paths
	e.mu.Unlock()
	if !slices.EqualFunc(was, paths, func(a, b api.Path) bool { return a.Network == b.Network && a.Fabric == b.Fabric }) {
		// A device that went took nexthops with it, and these routes, which stay what they were: nobody else looks for them.
		e.Loop.Touch(e.Want.Keys(fabric.Owner(p.Node))...)
	}
	if err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return refused(fmt.Sprintf("node %q", p.Node.Name), err)
	}
	return nil
}

// peerObjects gives what leads to a peer in the networks that both take part in, and which way was chosen for each.
func (e *Engine) peerObjects(p Peer) ([]kernel.Object, []api.Path) {
	facts := e.Facts()
	e.mu.Lock()
	self := e.self
	e.mu.Unlock()
	var out []kernel.Object
	var paths []api.Path
	by := map[string][]fabric.Network{}
	for _, n := range e.Store.Networks() {
		has, ok := p.Networks[n.ID]
		if !n.Shared() || !ok || !e.takesPart(n) || self.ID == "" {
			continue
		}
		net := e.fabricNetwork(n, p.Node.ID, has)
		path := api.Path{Network: n.Name, Node: p.Node.Name}
		if err := e.choose(self, p.Node, net, facts, &path); err != nil {
			path.Error = err.Error()
		} else {
			by[path.Fabric] = append(by[path.Fabric], net)
		}
		paths = append(paths, path)
	}
	failed := e.carry(self, p.Node, by)
	for _, name := range slices.Sorted(maps.Keys(by)) {
		// All networks at once: what they share, such as a peer of WireGuard's with the addresses of all, is one object.
		objects, err := e.Fabrics[name].Objects(self, p.Node, by[name], facts)
		err = cmp.Or(err, failed[name])
		for i := range paths {
			if err != nil && paths[i].Fabric == name {
				paths[i].Error = err.Error()
			}
		}
		out = append(out, objects...)
	}
	return out, paths
}

// carry tells each fabric that carries packets itself which networks lead to the peer by it: none, of most.
func (e *Engine) carry(self, peer api.Node, by map[string][]fabric.Network) map[string]error {
	failed := map[string]error{}
	for name, f := range e.Fabrics {
		if c, ok := f.(fabric.Carrier); ok {
			if err := c.Carry(self, peer, by[name]); err != nil {
				failed[name] = err
			}
		}
	}
	return failed
}

// forget has the fabrics that carry packets themselves forget a peer.
func (e *Engine) forget(id string) { e.carry(api.Node{}, api.Node{ID: id}, nil) }

// fabricNetwork is a network as it concerns this machine and a peer.
func (e *Engine) fabricNetwork(n api.Network, peer string, has PeerNetwork) fabric.Network {
	net := fabric.Network{Network: n, Link: e.via(n)}
	mine := e.blocksOf(n.Name)
	for _, b := range has.Blocks { // a peer may speak for addresses of the network only, and not for this machine's
		of := slices.ContainsFunc(n.Subnets, func(s api.Subnet) bool { return s.Prefix.Contains(b.Addr()) && b.Bits() >= s.Prefix.Bits() })
		if of && !slices.ContainsFunc(mine, b.Overlaps) {
			net.Blocks = append(net.Blocks, b.Masked())
		}
	}
	for _, ep := range has.Endpoints {
		net.Endpoints = append(net.Endpoints, fabric.Endpoint{Addresses: ep.Addresses, MAC: ep.MAC})
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	net.Hop4, net.Hop6 = e.hops.Number(n.ID, peer, false), e.hops.Number(n.ID, peer, true)
	return net
}

// choose takes the fabric that a network asks for, or the first that leads to the peer, and notes which one and why.
func (e *Engine) choose(self, peer api.Node, n fabric.Network, f kernel.Facts, path *api.Path) error {
	names := []string{n.Fabric}
	if n.Fabric == "" || n.Fabric == AutoFabric {
		names = preference
	}
	var errs []error
	for _, name := range names {
		fab := e.Fabrics[name]
		if fab == nil {
			continue
		}
		err := suits(fab, n)
		if err == nil {
			if _, err = fab.Objects(self, peer, []fabric.Network{n}, f); err == nil {
				path.Fabric, path.Reason = name, reason(n, errs)
				return nil
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	if len(errs) == 0 {
		return fmt.Errorf("fabric %q is not known", n.Fabric)
	}
	return errors.Join(errs...)
}

// suits reports why a fabric can't carry a network.
func suits(f fabric.Fabric, n fabric.Network) error {
	t := f.Traits()
	switch {
	case n.Encrypt && !t.Encrypts:
		return errors.New("does not encrypt")
	case n.Broadcast && !t.Broadcast:
		return errors.New("has no broadcast")
	}
	return nil
}

// reason says why a fabric was taken.
func reason(n fabric.Network, passed []error) string {
	if n.Fabric != "" && n.Fabric != AutoFabric {
		return "the network asks for it"
	}
	if len(passed) == 0 {
		return "it is the first choice"
	}
	return strings.ReplaceAll(errors.Join(passed...).Error(), "\n", "; ")
}

// nameP tells the name server what changed of a peer's endpoints.
func (e *Engine) namePeer(was, now Peer) {
	if e.Names == nil {
		return
	}
	had := e.peerNames(was)
	for key, r := range e.peerNames(now) {
		if !reflect.DeepEqual(had[key], r) {
			e.Names.Set(key, r)
		}
		delete(had, key)
	}
	for key := range had {
		e.Names.Drop(key)
	}
}

// peerNames gives what a peer's endpoints bring into the name server, of the networks that are known here.
func (e *Engine) peerNames(p Peer) map[string]NameRecord {
	out := map[string]NameRecord{}
	for _, n := range e.Store.Networks() {
		has, ok := p.Networks[n.ID]
		if !n.Shared() || !ok {
			continue
		}
		for _, ep := range has.Endpoints {
			key := "node " + p.Node.ID + " " + n.Name + "/" + ep.Name
			out[key] = NameRecord{Names: append([]string{ep.Name}, ep.Aliases...), Network: n.Name, Aliases: n.Aliases, Container: key,
				Addrs: ep.Addresses, Internal: n.Internal}
		}
	}
	return out
}
