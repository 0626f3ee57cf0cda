package fake

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// List implements kernel.Kernel.
func (k *Kernel) List(ctx context.Context, scope kernel.Scope) ([]kernel.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.crashed {
		return nil, ErrCrashed
	}
	found := map[kernel.Key]kernel.Object{}
	ends := map[*link]bool{} // the other ends of veths that were asked for
	for _, o := range scope.Objects {
		key := o.Key()
		s := k.spaces[key.NS]
		if s == nil {
			continue
		}
		if a := k.lookUp(s, o); a != nil && found[key] == nil {
			found[key] = a
		}
		if a, ok := o.(*kernel.Addr); ok && !a.Prefix.IsValid() && s.links[a.Link] != nil {
			for _, a := range s.links[a.Link].addrs {
				found[a.Key()] = a.Addr
			}
		}
		if e, ok := o.(*kernel.Element); ok && e.Item == "" {
			if t := s.tableOf(e.Family, e.Table); t != nil {
				for _, have := range t.elems[e.Set.Name] {
					if strings.HasPrefix(have.Comment, e.Comment) {
						found[have.Key()] = listedContent(have)
					}
				}
			}
		}
		if w, ok := o.(*kernel.PortVLANs); ok && w.Link == "" {
			for _, l := range s.links {
				if a := l.listedVLANs(); l.master == w.Bridge && a != nil {
					found[a.Key()] = a
				}
			}
		}
		for _, a := range k.every(s, o) {
			found[a.Key()] = a
		}
		if l, ok := o.(*kernel.Link); ok && s.links[l.Name] != nil {
			ends[s.links[l.Name].peer] = true
		}
	}
	if scope.Links {
		for _, l := range k.spaces[""].links {
			if o := k.listed(l, nil); !ends[l] && found[o.Key()] == nil {
				found[o.Key()] = o
			}
		}
	}
	if scope.Mark != "" {
		for _, o := range k.marked(scope, ends) {
			found[o.Key()] = o
		}
	}
	if scope.All {
		for _, o := range k.ours(ends) {
			if found[o.Key()] == nil {
				found[o.Key()] = o
			}
		}
	}
	return sorted(found), nil
}

// every gives all that an object stands for which leaves out what names it; see kernel.Scope.
func (k *Kernel) every(s *space, o kernel.Object) []kernel.Object {
	var all []kernel.Object
	switch o := o.(type) {
	case *kernel.Link:
		for _, l := range s.links {
			if o.Name == "" {
				all = append(all, k.listed(l, nil))
			}
		}
	case *kernel.Route:
		if o.Dst.IsValid() {
			return nil
		}
		for _, r := range append(slices.Collect(maps.Values(s.routes)), s.connected()...) {
			c := *s.listedRoute(r.Route)
			if c.Proto = r.proto(); o.Link == "" || c.Link == o.Link {
				all = append(all, &c)
			}
		}
	case *kernel.Rule:
		for id, r := range s.rules {
			c := *r
			if c.Proto = id.proto(r); o.Table == 0 {
				all = append(all, &c)
			}
		}
	}
	return all
}

func sorted(m map[kernel.Key]kernel.Object) []kernel.Object {
	keys := slices.SortedFunc(maps.Keys(m), func(x, y kernel.Key) int {
		return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.NS, y.NS), cmp.Compare(x.Name, y.Name))
	})
	all := make([]kernel.Object, len(keys))
	for i, k := range keys {
		all[i] = m[k]
	}
	return all
}

// lookUp gives what the kernel holds under the key of o; nil for nothing. What is somebody else's and not just what o
// asks for is not listed, so that nobody takes it for something to change.
func (k *Kernel) lookUp(s *space, o kernel.Object) kernel.Object {
	switch o := o.(type) {
	case *kernel.Link:
		if o.Taken {
			return o
		}
		if l := s.links[o.Name]; l != nil && !l.foreign(o) {
			return k.listed(l, o)
		}
	case *kernel.Attrs:
		if l := s.links[o.Link]; l != nil {
			return l.attrs()
		}
	case *kernel.LinkUp:
		if l := s.links[o.Link]; l != nil && l.up {
			return &kernel.LinkUp{NS: o.NS, Link: o.Link}
		}
	case *kernel.Sysctl:
		if v := s.sysctl(o.Name); v != "" {
			return &kernel.Sysctl{NS: o.NS, Name: o.Name, Value: v}
		}
	case *kernel.Qdisc:
		if l := s.links[o.Link]; l != nil && l.qdiscs[o.Key().Name] != nil {
			return l.qdiscs[o.Key().Name]
		}
	case *kernel.Redirect:
		if l := s.links[o.Link]; l != nil && l.redirect != nil {
			return l.redirect
		}
	case *kernel.PortVLANs:
		if l := s.links[o.Link]; l != nil && l.listedVLANs() != nil {
			return l.listedVLANs()
		}
	case *kernel.Addr:
		if l := s.links[o.Link]; l != nil {
			if a := l.addr(o.Prefix); a != nil {
				return a.Addr
			}
		}
	case *kernel.Route:
		if r := s.route(o.Key()); r != nil && (r.ours || o.Holds(r.Route)) {
			return s.listedRoute(r.Route)
		}
	case *kernel.Rule:
		for _, ours := range []bool{true, false} {
			if s.rules[ruleID{o.Key(), ours}] != nil {
				return o
			}
		}
	case *kernel.Nexthop:
		if n := s.nexthops[o.ID]; n != nil && (n.ours || o.Holds(n.Nexthop)) {
			return n.Nexthop
		}
	case *kernel.Feature:
		if l := s.links[o.Link]; l != nil {
			return l.feature(o.Name)
		}
	case *kernel.WireGuard:
		if l := s.links[o.Link]; l != nil && l.wg != nil {
			return l.wg
		}
	case *kernel.WGPeer:
		if l := s.links[o.Link]; l != nil && l.wgPeers[o.PublicKey] != nil {
			return l.wgPeers[o.PublicKey]
		}
	case *kernel.Neigh:
		if l := s.links[o.Link]; l != nil && l.neighs[idOf(o)] != nil {
			if n := l.neighs[idOf(o)]; n.ours || o.Holds(n.Neigh) {
				return n.Neigh
			}
		}
	case *kernel.FDB:
		if l := s.links[o.Link]; l != nil && l.fdb[o.Key()] != nil {
			return l.fdb[o.Key()]
		}
	case *kernel.Hold:
		if h := k.holds[o.Key()]; h != nil {
			return h
		}
	}
	return k.lookUpNFT(s, o)
}

func (k *Kernel) lookUpNFT(s *space, o kernel.Object) kernel.Object {
	switch o := o.(type) {
	case *kernel.Table:
		if t := s.tableOf(o.Family, o.Name); t != nil {
			return t.listed()
		}
	case *kernel.TableChain:
		if t := s.tableOf(o.Family, o.Table); t != nil && t.chains[o.Chain.Name] != nil {
			return listedContent(t.chains[o.Chain.Name])
		}
	case *kernel.Element:
		if t := s.tableOf(o.Family, o.Table); t != nil {
			if e := t.elems[o.Set.Name][o.Item]; e != nil {
				return listedContent(e)
			}
		}
	case *kernel.Relic:
		if rules, chain := k.relic(o); len(rules) > 0 || chain {
			return o
		}
	case *kernel.Accept:
		return k.accept(o)
	}
	return nil
}

// listedContent gives a further chain or an element as the kernel knows it: with hashes for rules, and nothing about
// what else is to be done when the element goes.
func listedContent(o kernel.Object) kernel.Object {
	switch o := o.(type) {
	case *kernel.TableChain:
		return &kernel.TableChain{NS: o.NS, Family: o.Family, Table: o.Table, Chain: hashed(o.Chain)}
	case *kernel.Element:
		e := *o
		e.Flush = nil
		return &e
	}
	return o
}

// listed gives the link as a listing does: of a veth's other end, and of what a link was made on, it knows only what it
// was asked for, as a kernel tells a number and not where that is. An alias is a home only to who asks for one.
func (k *Kernel) listed(l *link, asked *kernel.Link) *kernel.Link {
	o := l.object(false)
	if asked == nil {
		asked = &kernel.Link{}
	}
	if asked.Peer == nil || asked.Peer.Handoff || o.Peer != nil && (o.Peer.NS != asked.Peer.NS || o.Peer.Name != asked.Peer.Name) {
		o.Peer = nil
	}
	if asked.Home == l.alias {
		o.Home = asked.Home
	}
	o.Parent = k.parentAs(l, asked.Parent)
	return o
}

// ours gives everything in the machine's own namespace that carries a mark of ours or hangs on what does. Of a veth
// that was asked for by one end, the other end is not a link of its own.
func (k *Kernel) ours(ends map[*link]bool) []kernel.Object {
	var all []kernel.Object
	s := k.spaces[""]
	for _, l := range s.links {
		if l.ours() {
			if !ends[l] {
				all = append(all, k.listed(l, nil))
			}
			all = append(all, l.hanging(true)...)
		}
	}
	for _, a := range s.links["lo"].addrs {
		if a.maker == us {
			all = append(all, a.Addr)
		}
	}
	for _, l := range s.links {
		for _, n := range l.neighs {
			if n.ours {
				all = append(all, n.Neigh)
			}
		}
		if !l.ours() {
			continue
		}
		for _, f := range l.fdb {
			all = append(all, f)
		}
		all = append(all, l.wireguard()...)
	}
	for _, r := range s.routes {
		l := s.links[r.Link]
		theirs := l != nil && !l.ours() && (strings.HasPrefix(l.alias, kernel.PluginAliasPrefix) || r.Type == "local")
		if r.ours && !theirs {
			all = append(all, s.listedRoute(r.Route))
		}
	}
	for _, n := range s.nexthops {
		if n.ours {
			all = append(all, n.Nexthop)
		}
	}
	for id, r := range s.rules {
		if id.ours {
			all = append(all, r)
		}
	}
	for _, t := range s.tables {
		if strings.HasPrefix(t.shape.Name, tablePrefix+"_") || t.shape.Family != "" {
			continue // of programs that find by marks what is theirs
		}
		all = append(all, t.listed())
		for _, o := range t.content() {
			all = append(all, listedContent(o))
		}
	}
	return append(all, k.outside()...)
}

// marked gives the links, elements and chains that Scope.Mark is about.
func (k *Kernel) marked(scope kernel.Scope, ends map[*link]bool) []kernel.Object {
	var all []kernel.Object
	s := k.spaces[""]
	for _, l := range s.links {
		if strings.HasPrefix(l.alias, scope.Mark) && !ends[l] {
			all = append(all, k.listed(l, nil))
		}
	}
	for _, ns := range scope.MarkNS {
		if k.spaces[ns] == nil {
			continue
		}
		for _, l := range k.spaces[ns].links {
			if strings.HasPrefix(l.alias, scope.Mark) {
				all = append(all, k.listed(l, nil))
			}
		}
	}
	for _, o := range scope.Objects {
		w, ok := o.(*kernel.Table)
		if !ok || s.tableOf(w.Family, w.Name) == nil || w.NS != "" {
			continue
		}
		for _, o := range s.tableOf(w.Family, w.Name).content() {
			switch o := o.(type) {
			case *kernel.Element:
				if strings.HasPrefix(o.Comment, scope.Mark) {
					all = append(all, listedContent(o))
				}
			case *kernel.TableChain:
				all = append(all, listedContent(o))
			}
		}
	}
	return all
}

// hanging gives what is on a link and can't be without it: its up state, addresses and qdiscs; with ours only the
// addresses that we made, without only what somebody made.
func (l *link) hanging(ours bool) []kernel.Object {
	var all []kernel.Object
	if l.up {
		all = append(all, &kernel.LinkUp{NS: l.ns, Link: l.name})
	}
	for _, a := range l.addrs {
		if a.maker == us || !ours && a.maker == others {
			all = append(all, a.Addr)
		}
	}
	for _, q := range l.qdiscs {
		all = append(all, q)
	}
	if l.redirect != nil {
		all = append(all, l.redirect)
	}
	return all
}

// content gives the further chains and the elements of a table, as they were put.
func (t *table) content() []kernel.Object {
	var all []kernel.Object
	for _, c := range t.chains {
		all = append(all, c)
	}
	for _, set := range t.elems {
		for _, e := range set {
			all = append(all, e)
		}
	}
	return all
}

// outside gives what is in no namespace's own: accepts and holds.
func (k *Kernel) outside() []kernel.Object {
	var all []kernel.Object
	for _, c := range k.others {
		for _, r := range c.rules {
			if r.accept != nil && r.accept.Mark == "" && !r.via {
				all = append(all, r.accept)
			}
		}
	}
	for _, h := range k.holds {
		all = append(all, h)
	}
	return all
}
