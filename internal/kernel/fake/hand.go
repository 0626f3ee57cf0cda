package fake

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

// Break removes an object as somebody does by hand, whoever's it is, with all that the kernel removes then; a sysctl
// gets its default back. It reports whether there was such an object.
func (k *Kernel) Break(key kernel.Key) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.spaces[key.NS]
	if s == nil {
		return false
	}
	for _, o := range k.everything(s) {
		if o.Key() != key {
			continue
		}
		k.undo = nil
		defer k.loseCarriers()
		return k.delete(s, o, true) == nil
	}
	return false
}

// everything gives each object of a namespace that Break can remove, both ends of a veth included.
func (k *Kernel) everything(s *space) []kernel.Object {
	var all []kernel.Object
	for _, l := range s.links {
		all = append(all, l.object(false))
		all = append(all, l.hanging(false)...)
		for _, a := range l.addrs {
			all = append(all, a.Addr)
		}
		for _, n := range l.neighs {
			all = append(all, n.Neigh)
		}
		for _, f := range l.fdb {
			all = append(all, f)
		}
		all = append(all, l.wireguard()...)
	}
	for _, r := range s.routes {
		all = append(all, r.Route)
	}
	for _, r := range s.rules {
		all = append(all, r)
	}
	for _, n := range s.nexthops {
		all = append(all, n.Nexthop)
	}
	for name, v := range s.sysctls {
		all = append(all, &kernel.Sysctl{NS: s.path, Name: name, Value: v, Before: s.sysctlDefault(name)})
	}
	for _, t := range s.tables {
		all = append(all, t.shape)
		all = append(all, t.content()...)
	}
	if s.path == "" {
		all = append(all, k.outside()...)
	}
	return all
}

// AddForeign puts an object there that is not ours: a *kernel.Link without an alias of ours, or a LinkUp, Addr, Route,
// Rule, Nexthop or Neigh. A link of no type is a device that is no software. It panics where the kernel refuses it.
func (k *Kernel) AddForeign(o kernel.Object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.spaces[o.Key().NS]
	if s == nil {
		panic(fmt.Sprintf("fake: %s: %v", o.Key(), kernel.ErrNamespaceGone))
	}
	if err := k.addForeign(s, o); err != nil {
		panic(fmt.Sprintf("fake: %s: %v", o.Key(), err))
	}
}

func (k *Kernel) addForeign(s *space, o kernel.Object) error {
	if l, ok := o.(*kernel.Link); ok && l.Type == "" {
		return k.addDevice(s, l)
	}
	if err := k.put(s, o, false); err != nil {
		return err
	}
	switch o := o.(type) {
	case *kernel.Link:
		if s.links[o.Name].ours() {
			return fmt.Errorf("the alias %q makes it ours", o.Alias)
		}
	case *kernel.Route:
		for _, r := range s.routes {
			r.ours = r.ours && r.Route != o
		}
	case *kernel.Nexthop:
		s.nexthops[o.ID].ours = false
	case *kernel.Rule:
		delete(s.rules, ruleID{o.Key(), true})
		s.rules[ruleID{ruleOf(o).Key, false}] = o
	case *kernel.Neigh:
		s.links[o.Link].neighs[idOf(o)].ours = false
	case *kernel.Addr:
		s.links[o.Link].addr(o.Prefix).maker = others
	case *kernel.LinkUp:
	default:
		return fmt.Errorf("%T can't be foreign", o)
	}
	return nil
}

// Move moves a link to another namespace under a name as somebody does by hand, or renames it in its own. It reports
// whether there was such a link, and such a namespace.
func (k *Kernel) Move(ns, link, to, name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.spaces[ns] == nil || k.spaces[to] == nil || k.spaces[ns].links[link] == nil {
		return false
	}
	k.undo = nil
	l := k.spaces[ns].links[link]
	if ns != to {
		k.move(l, to, name)
		return true
	}
	k.setDown(l)
	delete(k.spaces[ns].links, link)
	for _, port := range k.spaces[ns].links {
		if port.master == link {
			port.master = name
		}
	}
	l.name, k.spaces[ns].links[name] = name, l
	return true
}

// AddForeignChain makes a chain of somebody else with rules in nft syntax: a place for a kernel.Accept.
func (k *Kernel) AddForeignChain(family, table, chain string, rules ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &otherChain{family: family, table: table, chain: chain}
	for _, r := range rules {
		c.rules = append(c.rules, otherRule{text: r})
	}
	k.others[otherKey(family, table, chain)] = c
}

// AddForeignTarget makes a chain of somebody else that sees only what jumps to it.
func (k *Kernel) AddForeignTarget(family, table, chain string, rules ...string) {
	k.AddForeignChain(family, table, chain, rules...)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.others[otherKey(family, table, chain)].target = true
}

// ForeignRules gives the rules of a chain of somebody else in their order, the accepts of ours among them.
func (k *Kernel) ForeignRules(family, table, chain string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var rules []string
	if c := k.others[otherKey(family, table, chain)]; c != nil {
		for _, r := range c.rules {
			rules = append(rules, r.text)
		}
	}
	return rules
}

// AddRule appends a rule, of any text, by hand to a chain of a table of ours: the table is no longer what was wanted.
// It reports whether there is such a chain.
func (k *Kernel) AddRule(ns, name, chain, rule string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.spaces[ns]
	if s == nil || s.tables[name] == nil {
		return false
	}
	t := s.tables[name]
	shape := *t.shape
	shape.Chains = slices.Clone(shape.Chains)
	for i, c := range shape.Chains {
		if c.Name == chain {
			c := *c
			c.Rules = append(slices.Clone(c.Rules), rule)
			shape.Chains[i] = &c
			t.shape = &shape
			return true
		}
	}
	return false
}

// Usable reports whether a program in a namespace can use an address now: it is there, its link is up, and for IPv6 no
// duplicate address detection is under way (in this kernel it never ends).
func (k *Kernel) Usable(ns string, ip netip.Addr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.spaces[ns]
	if s == nil {
		return false
	}
	for _, l := range s.links {
		for _, a := range l.addrs {
			if a.Prefix.Addr() == ip && l.up && !(ip.Is6() && a.DAD) {
				return true
			}
		}
	}
	return false
}
