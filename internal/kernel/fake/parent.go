package fake

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

// stacked reports whether links of the type are made on another link.
func stacked(t kernel.LinkType) bool {
	return t == kernel.Macvlan || t == kernel.Ipvlan || t == kernel.VLAN
}

// children gives the links that were made on l, in whichever namespace they are.
func (k *Kernel) children(l *link) []*link {
	var out []*link
	for _, s := range k.spaces {
		for _, c := range s.links {
			if c.parent == l {
				out = append(out, c)
			}
		}
	}
	return out
}

// checkStack holds what is asked of a link on a parent to what its type has.
func checkStack(o *kernel.Link) error {
	switch {
	case stacked(o.Type) != (o.Parent != nil):
		return fmt.Errorf("a link of type %s with the parent %v", o.Type, o.Parent)
	case o.Mode != "" && !slices.Contains(kernel.Modes[o.Type], o.Mode):
		return fmt.Errorf("mode %q is none of type %s", o.Mode, o.Type)
	case o.Flag != "" && (o.Type != kernel.Ipvlan || !slices.Contains(kernel.IpvlanFlags, o.Flag)):
		return fmt.Errorf("flag %q of a link of type %s", o.Flag, o.Type)
	case o.BCQueueLen != 0 && o.Type != kernel.Macvlan:
		return fmt.Errorf("a link of type %s has no queue of broadcasts", o.Type)
	case o.VLAN != 0 && o.Type != kernel.VLAN || o.VLAN < 0 || o.VLAN > 4094:
		return fmt.Errorf("vlan %d of a link of type %s", o.VLAN, o.Type)
	}
	return nil
}

// stack puts a new link on its parent.
func (k *Kernel) stack(l *link, o *kernel.Link) error {
	ps := k.spaces[o.Parent.NS]
	if ps == nil {
		return fmt.Errorf("parent %q: %w", o.Parent.Name, kernel.ErrNamespaceGone)
	}
	p := ps.links[o.Parent.Name]
	if p == nil {
		return fmt.Errorf("parent %q: %w", o.Parent.Name, kernel.ErrAbsent)
	}
	if p.typ == l.typ && l.typ != kernel.VLAN {
		p = p.parent // beside it, as Linux does
	}
	if p.typ == kernel.Loopback {
		return errors.New("lo can't be a parent")
	}
	for _, c := range k.children(p) {
		switch {
		case l.typ == kernel.VLAN && c.typ == kernel.VLAN && c.vlan == o.VLAN:
			return fmt.Errorf("vlan %d: %w", o.VLAN, kernel.ErrExists)
		case l.typ == kernel.VLAN || c.typ == kernel.VLAN:
		case c.typ != l.typ:
			return fmt.Errorf("parent %q has links of type %s: busy", p.name, c.typ)
		case c.mode == "passthru" || o.Mode == "passthru":
			return fmt.Errorf("parent %q can have but one macvlan in mode passthru", p.name)
		}
	}
	if l.typ != kernel.VLAN && p.master != "" {
		return fmt.Errorf("parent %q is a port of %q: busy", p.name, p.master)
	}
	l.parent, l.mtu, l.vlan = p, p.mtu, o.VLAN
	switch l.typ {
	case kernel.Macvlan:
		l.mode, l.bcQueueLen = "vepa", 1000
	case kernel.Ipvlan:
		l.mode, l.flag, l.mac = "l3", "bridge", p.mac
		for _, c := range k.children(p) {
			if c.typ == kernel.Ipvlan {
				l.mode, l.flag = c.mode, c.flag
			}
		}
	case kernel.VLAN:
		l.mac = p.mac
	}
	return nil
}

// setStack changes what can be changed of a link on a parent.
func (k *Kernel) setStack(l *link, o *kernel.Link) error {
	if l.parent == nil {
		return nil
	}
	if o.MTU > l.parent.mtu && l.typ != kernel.Ipvlan {
		return fmt.Errorf("mtu %d is more than the %d of parent %q", o.MTU, l.parent.mtu, l.parent.name)
	}
	if o.Mode != "" {
		l.mode = o.Mode
	}
	if o.Flag != "" {
		l.flag = o.Flag
	}
	for _, c := range k.children(l.parent) {
		if l.typ == kernel.Ipvlan && c.typ == kernel.Ipvlan {
			c.mode, c.flag = l.mode, l.flag
		}
	}
	if o.BCQueueLen != 0 {
		l.bcQueueLen = o.BCQueueLen
	}
	return nil
}

// parentAs gives a link's parent as a listing does: of one in another namespace only what was asked for is known.
func (k *Kernel) parentAs(l *link, asked *kernel.Parent) *kernel.Parent {
	if l.parent == nil {
		return nil
	}
	if asked != nil && k.spaces[asked.NS] != nil {
		p := k.spaces[asked.NS].links[asked.Name]
		if p == nil { // had it gone, the link would have gone with it: it has another name now
			return asked
		}
		if p == l.parent || p.typ == l.typ && p.parent == l.parent && l.typ != kernel.VLAN {
			return asked
		}
	}
	if l.parent.ns == l.ns {
		return &kernel.Parent{NS: l.ns, Name: l.parent.name}
	}
	return nil
}

// DefaultLink gives the link that a namespace's default route leaves by, IPv4's before IPv6's; "" where it has none.
func (k *Kernel) DefaultLink(ctx context.Context, ns string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.spaces[ns]
	if s == nil {
		return "", kernel.ErrNamespaceGone
	}
	var best *kernel.Route
	for _, r := range s.routes {
		if r.Dst.Bits() > 0 || r.Type != "" || r.TableOrMain() != kernel.TableMain {
			continue
		}
		if v4 := r.Dst.Addr().Is4(); best == nil || v4 && best.Dst.Addr().Is6() ||
			v4 == best.Dst.Addr().Is4() && r.Metric < best.Metric {
			best = r.Route
		}
	}
	if best == nil {
		return "", nil
	}
	return best.Link, nil
}
