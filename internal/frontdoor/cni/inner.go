package cni

import (
	"context"
	"errors"

	"github.com/seine-net/seine/internal/kernel"
)

// An inner link is in the container alone, under the interface's name. It carries the attachment's mark like the
// machine's end of a veth, goes with its namespace, and is found by DEL only where that is known.

// resolver is a maker that has to ask the kernel before it can plan. Nothing was changed or taken then.
type resolver interface {
	resolve(context.Context, *request) error
}

func resolve(ctx context.Context, r *request, m maker) error {
	if m, ok := m.(resolver); ok {
		return m.resolve(ctx, r)
	}
	return nil
}

// innerLink is the attachment's inner link without what its type has.
func (a *attaching) innerLink(typ kernel.LinkType) *kernel.Link {
	return &kernel.Link{NS: a.netns, Name: a.ifname, Type: typ, Alias: a.alias}
}

// planInner adds all that hangs on the attachment's addresses to a plan that has an inner link; without addresses the
// link is just up. With notify the kernel tells the neighbours when the link comes up or gets another hardware address.
func (a *attaching) planInner(p *plan, notify bool) error {
	up := &kernel.LinkUp{NS: a.netns, Link: a.ifname}
	p.result = a.resultOf()
	if a.ips == nil {
		p.own = append(p.own, up)
		return nil
	}
	if len(a.ips.IPs) == 0 {
		return invalid("ipam", "", "gives no address", "at least one")
	}
	if notify {
		p.own = append(p.own, a.sysctl("net/ipv4/conf/"+a.ifname+"/arp_notify", "1"))
		if a.ipv6 {
			p.own = append(p.own, a.sysctl("net/ipv6/conf/"+a.ifname+"/ndisc_notify", "1"))
		}
	}
	p.own = append(p.own, a.enable6()...)
	for _, ip := range a.ips.IPs {
		p.own = append(p.own, &kernel.Addr{NS: a.netns, Link: a.ifname, Prefix: ip.Address})
	}
	p.own = append(p.own, up)
	routes, err := a.routes()
	p.own = append(p.own, routes...)
	return err
}

// absent gives an error where the attachment is there already.
func (p attacher) absent(ctx context.Context, r *request) error {
	l, err := p.present(ctx, r)
	if err != nil || l == nil {
		return err
	}
	id := r.ident()
	if p.inner != "" && !id.marked(l.Alias) {
		return errorf(CodeInternal, "CNI_IFNAME %q: the container has an interface of this name already; want one that is free", r.ifname)
	}
	return errorf(CodeInternal, "container %q is attached to network %q as %q already (link %q)", id.containerID, id.network, id.ifname, l.Name)
}

// present gives the link that has the place of the attachment's; nil where there is none.
func (p attacher) present(ctx context.Context, r *request) (*kernel.Link, error) {
	l := &kernel.Link{Name: r.ident().veth()}
	if p.inner != "" {
		l = &kernel.Link{NS: r.netns, Name: r.ifname}
	}
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{l}})
	if err != nil || len(objs) == 0 {
		return nil, err
	}
	return objs[0].(*kernel.Link), nil
}

// delInner removes the inner link where it is the attachment's: by its mark or, where another implementation of the
// plugin made it, by what that left behind. Without a namespace it is gone already.
func (p attacher) delInner(ctx context.Context, r *request, i ipam) error {
	if r.netns == "" {
		return nil
	}
	l, err := p.present(ctx, r)
	if err != nil || l == nil {
		return err
	}
	if !r.ident().marked(l.Alias) && (l.Alias != "" || l.Type != p.inner || !madeByOthers(r, i)) {
		return nil
	}
	return errors.Join(applyAll(ctx, r.kernel, []kernel.Change{{Op: kernel.Delete, Old: l}})...)
}
