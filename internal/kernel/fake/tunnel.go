package fake

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

type nexthop struct {
	*kernel.Nexthop
	ours bool
}

func (k *Kernel) putNexthop(s *space, o *kernel.Nexthop, update bool) error {
	old := s.nexthops[o.ID]
	switch {
	case o.ID == 0:
		return errors.New("a nexthop has a number")
	case old != nil && o.Holds(old.Nexthop): // whoever made it
		return nil
	case old != nil && !old.ours:
		return fmt.Errorf("a nexthop of another owner has the number: %w", kernel.ErrExists)
	case old != nil && !update:
		return kernel.ErrExists
	case old == nil && update:
		return kernel.ErrAbsent
	}
	l := s.links[o.Link]
	switch {
	case l == nil || !k.carrier(l):
		return fmt.Errorf("link %q is not there, or down, or has no carrier: %w", o.Link, kernel.ErrAbsent)
	case o.Via.IsValid() && o.Via.Is6() != o.V6:
		return fmt.Errorf("gateway %s is of the other family", o.Via)
	case o.Via.IsValid() && !o.OnLink && !s.reachable(l, o.Via, kernel.TableMain):
		return fmt.Errorf("gateway %s is not reachable on link %q: %w", o.Via, o.Link, kernel.ErrAbsent)
	}
	if !o.V6 {
		for _, r := range s.routes {
			if r.Nexthop == o.ID && r.Dst.Addr().Is6() {
				return errors.New("IPv6 routes refer to it")
			}
		}
	}
	s.nexthops[o.ID] = &nexthop{o, true}
	return nil
}

func (s *space) deleteNexthop(o *kernel.Nexthop, force bool) {
	n := s.nexthops[o.ID]
	if n == nil || !n.ours && !force {
		return
	}
	delete(s.nexthops, o.ID)
	maps.DeleteFunc(s.routes, func(_ kernel.Key, r *route) bool { return r.Nexthop == o.ID })
}

// carrier reports whether a link can send: a bridge needs a port that can, a veth its other end.
func (k *Kernel) carrier(l *link) bool {
	switch {
	case !l.up:
		return false
	case l.peer != nil:
		return l.peer.up
	case l.typ != kernel.Bridge:
		return true
	}
	for _, port := range k.spaces[l.ns].links {
		if port.master == l.name && k.carrier(port) {
			return true
		}
	}
	return false
}

// loseCarriers drops the nexthops on links that can't send any more.
func (k *Kernel) loseCarriers() {
	for _, s := range k.spaces {
		for _, n := range s.nexthops {
			if !k.carrier(s.links[n.Link]) {
				s.deleteNexthop(n.Nexthop, true)
			}
		}
	}
}

// dropNexthops does what the kernel does when a link goes, or goes down.
func (s *space) dropNexthops(link string) {
	for _, n := range s.nexthops {
		if n.Link == link {
			s.deleteNexthop(n.Nexthop, true)
		}
	}
}

// checkNexthop checks a route that refers to a nexthop.
func (s *space) checkNexthop(o *kernel.Route) error {
	n := s.nexthops[o.Nexthop]
	switch {
	case o.Via.IsValid() || o.Link != "" || o.OnLink:
		return errors.New("the nexthop stands for gateway and link")
	case o.Type != "":
		return fmt.Errorf("a route of type %s with a nexthop", o.Type)
	case n == nil:
		return fmt.Errorf("nexthop %d: %w", o.Nexthop, kernel.ErrAbsent)
	case o.Dst.Addr().Is6() && !n.V6:
		return fmt.Errorf("nexthop %d is not for IPv6", o.Nexthop)
	case o.Dst.Addr().Is4() && n.Via.IsValid() && o.Scope >= kernel.ScopeLink:
		return errors.New("a route with a gateway has scope global")
	}
	return nil
}

// listedRoute gives a route as a listing does: with what its nexthop stands for.
func (s *space) listedRoute(r *kernel.Route) *kernel.Route {
	n := s.nexthops[r.Nexthop]
	if n == nil {
		return r
	}
	c := *r
	c.Via, c.Link, c.OnLink = n.Via, n.Link, n.OnLink
	return &c
}

// bore makes a vxlan of a new link.
func (s *space) bore(l *link, t *kernel.Tunnel) error {
	switch {
	case t.VNI == 0 || t.VNI >= 1<<24:
		return fmt.Errorf("network identifier %d is out of range", t.VNI)
	case t.Port == 0:
		return errors.New("port 0 is none")
	case t.Under != "" && s.links[t.Under] == nil:
		return fmt.Errorf("link %q: %w", t.Under, kernel.ErrAbsent)
	}
	for _, o := range s.links {
		if o.tunnel != nil && o.tunnel.VNI == t.VNI && o.tunnel.Port == t.Port && o.tunnel.Local.Is6() == t.Local.Is6() {
			return fmt.Errorf("link %q has network identifier %d: %w", o.name, t.VNI, kernel.ErrExists)
		}
	}
	l.tunnel = t
	return nil
}

// putVTEP says where a hardware address is behind a vxlan.
func (l *link) putVTEP(o *kernel.FDB, update bool) error {
	if l.tunnel == nil {
		return fmt.Errorf("a remote VTEP on a link of type %s: %w", l.typ, kernel.ErrUnsupported)
	}
	if l.tunnel.Local.Is6() != o.Dst.Is6() {
		return fmt.Errorf("VTEP %s is of another family than the tunnel: %w", o.Dst, kernel.ErrUnsupported)
	}
	if old := l.fdb[o.Key()]; old != nil && !o.Holds(old) && !update {
		return kernel.ErrExists
	}
	l.fdb[o.Key()] = o
	return nil
}

// features are those that links have at first, and that can be turned off.
var features = map[string]bool{"tx-checksum-ip-generic": true, "tx-generic-segmentation": true, "rx-gro": true}

func (l *link) feature(name string) *kernel.Feature {
	on, changed := l.features[name]
	if !changed {
		on = features[name]
	}
	return &kernel.Feature{NS: l.ns, Link: l.name, Name: name, On: on}
}

func (k *Kernel) putFeature(s *space, o *kernel.Feature) error {
	l := s.links[o.Link]
	if l == nil {
		return kernel.ErrAbsent
	}
	first, known := features[o.Name]
	if !known {
		return fmt.Errorf("no such feature: %w", kernel.ErrUnsupported)
	}
	if l.features[o.Name] = o.On; o.On == first {
		delete(l.features, o.Name)
	}
	return nil
}

// wgLink gives a link of type wireguard.
func (s *space) wgLink(name string) (*link, error) {
	l := s.links[name]
	if l == nil || l.typ != kernel.WG {
		return nil, fmt.Errorf("link %q is not there or no wireguard: %w", name, kernel.ErrAbsent)
	}
	return l, nil
}

func (k *Kernel) putWireGuard(s *space, o *kernel.WireGuard, update bool) error {
	l, err := s.wgLink(o.Link)
	if err != nil {
		return err
	}
	if l.wg != nil && !update && !o.Holds(l.wg) {
		return kernel.ErrExists
	}
	if l.wg != nil && o.PrivateKey.IsZero() {
		c := *o
		c.PrivateKey = l.wg.PrivateKey
		o = &c
	}
	l.wg = o
	return nil
}

func (k *Kernel) putWGPeer(s *space, o *kernel.WGPeer, update bool) error {
	l, err := s.wgLink(o.Link)
	if err != nil {
		return err
	}
	for _, p := range o.AllowedIPs {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("allowed address %s is no prefix, or has host bits", p)
		}
	}
	old := l.wgPeers[o.PublicKey]
	switch {
	case old != nil && o.Holds(old):
		return nil
	case old != nil && !update:
		return kernel.ErrExists
	case old == nil && update:
		return kernel.ErrAbsent
	}
	if old != nil && !o.Endpoint.IsValid() && old.Endpoint.IsValid() {
		c := *o
		c.Endpoint = old.Endpoint
		o = &c
	}
	l.wgPeers[o.PublicKey] = o
	for key, p := range l.wgPeers { // a prefix is one peer's
		if key == o.PublicKey {
			continue
		}
		c := *p
		c.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(a netip.Prefix) bool { return slices.Contains(o.AllowedIPs, a) })
		l.wgPeers[key] = &c
	}
	return nil
}

// wireguard gives the configuration and the peers of a link.
func (l *link) wireguard() []kernel.Object {
	var all []kernel.Object
	if l.wg != nil {
		all = append(all, l.wg)
	}
	for _, p := range l.wgPeers {
		all = append(all, p)
	}
	return all
}
