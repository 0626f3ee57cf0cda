package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/seine-net/seine/internal/kernel"
)

// vrf is the plugin "vrf": it puts the interface that plugins before it in the chain made into a VRF of the container,
// which it makes where it is missing and removes with its last interface.
type vrf struct{}

// vrfConf is its configuration.
type vrfConf struct {
	VRFName string `json:"vrfname"`
	Table   int    `json:"table"`
}

func loadVRF(r *request) (*vrfConf, error) {
	var c vrfConf
	if err := decode(r.stdin, &c); err != nil {
		return &c, err
	}
	if err := validIfname("vrfname", c.VRFName); err != nil {
		return &c, err
	}
	if c.VRFName == r.ifname {
		return &c, invalid("vrfname", c.VRFName, "is the interface's name", "another")
	}
	if c.Table < 0 || c.Table > 1<<32-1 || c.Table == kernel.TableLocal {
		return &c, invalid("table", c.Table, "is no routing table for a VRF", "1 to 4294967295 without 255, or none for one that is free")
	}
	return &c, nil
}

// vrfView is what is seen of a container.
type vrfView struct {
	links  map[string]*kernel.Link
	tables map[int]bool
	addrs  []*kernel.Addr
	// routes are those over the interface, up is whether the VRF is.
	routes []*kernel.Route
	up     bool
}

func (c *vrfConf) view(ctx context.Context, r *request) (*vrfView, error) {
	ns := r.netns
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.Link{NS: ns}, &kernel.Rule{NS: ns}, &kernel.Route{NS: ns},
		&kernel.Addr{NS: ns, Link: r.ifname}, &kernel.LinkUp{NS: ns, Link: c.VRFName}}})
	if err != nil {
		return nil, err
	}
	v := &vrfView{links: map[string]*kernel.Link{}, tables: map[int]bool{}}
	for _, o := range objs {
		switch o := o.(type) {
		case *kernel.Link:
			v.links[o.Name] = o
			v.tables[o.Table] = true // 0 for what is no VRF
		case *kernel.LinkUp:
			v.up = true
		case *kernel.Rule:
			v.tables[o.Table] = true
		case *kernel.Addr:
			v.addrs = append(v.addrs, o)
		case *kernel.Route:
			v.tables[o.TableOrMain()] = true
			if o.Link == r.ifname && o.Type == "" && !byKernel(o) {
				v.routes = append(v.routes, o)
			}
		}
	}
	return v, nil
}

// Protocol numbers (rtnetlink(7)) of routes that come again by themselves when a link comes up.
const (
	protoKernel        = 2
	protoAdvertisement = 9
)

func byKernel(r *kernel.Route) bool { return r.Proto == protoKernel || r.Proto == protoAdvertisement }

func (vrf) add(ctx context.Context, r *request) (*Result, error) {
	c, err := loadVRF(r)
	if err != nil {
		return nil, err
	}
	if r.prev == nil {
		return nil, errorf(CodeConfig, "prevResult is missing; want vrf behind a plugin that makes an interface")
	}
	// Or two attachments of the container would both make the VRF, or find the same table free.
	unlock, err := r.host.LockNetns(r.netns)
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := c.view(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := c.possible(r, v); err != nil {
		return nil, err
	}
	done := &changeLog{kernel: r.kernel}
	err = c.join(ctx, r, v, done)
	if err == nil {
		return r.prev, nil
	}
	if errors.Is(err, kernel.ErrUnsupported) {
		err = fmt.Errorf("this kernel has no VRFs (CONFIG_NET_VRF): %w", err)
	}
	ctx = context.WithoutCancel(ctx)
	return nil, errors.Join(err, done.undo(ctx), v.restore(ctx, r, 0))
}

// possible says what is in the way of the interface joining the VRF.
func (c *vrfConf) possible(r *request, v *vrfView) error {
	link, have := v.links[r.ifname], v.links[c.VRFName]
	switch {
	case link == nil:
		return errorf(CodeConfig, "CNI_IFNAME %q: the container has no such interface; want one that a plugin before vrf made", r.ifname)
	case link.Master != "":
		return errorf(CodeConfig, "CNI_IFNAME %q: is a port of %q already; want an interface of its own", r.ifname, link.Master)
	case have != nil && have.Type != kernel.VRF:
		return invalid("vrfname", c.VRFName, "is a link of type "+string(have.Type)+" in the container", "the name of a VRF, or one that is free")
	case have != nil && c.Table != 0 && have.Table != c.Table:
		return invalid("table", c.Table, fmt.Sprintf("differs from that of VRF %q, %d", c.VRFName, have.Table), "the same, or none")
	}
	return nil
}

// join makes the VRF where it is missing and puts the interface and what it had into it.
func (c *vrfConf) join(ctx context.Context, r *request, v *vrfView, done *changeLog) error {
	table := c.Table
	have := v.links[c.VRFName]
	if have != nil {
		table = have.Table
	} else {
		if table == 0 {
			table = free(v.tables, 1)
		}
		if err := done.do(ctx, creations(&kernel.Link{NS: r.netns, Name: c.VRFName, Type: kernel.VRF, Table: table})); err != nil {
			return err
		}
	}
	if !v.up {
		if err := done.do(ctx, creations(&kernel.LinkUp{NS: r.netns, Link: c.VRFName})); err != nil {
			return err
		}
	}
	none := ""
	in := &kernel.Attrs{NS: r.netns, Link: r.ifname, Master: &c.VRFName, Before: &kernel.Attrs{Master: &none}}
	if err := done.do(ctx, creations(in)); err != nil {
		return err
	}
	return v.restore(ctx, r, table)
}

// restore gives the interface the IPv6 addresses and the routes again that the kernel takes when a link joins or leaves
// a VRF; those of the main table go to another one, unless that is 0.
func (v *vrfView) restore(ctx context.Context, r *request, table int) error {
	var want []kernel.Object
	for _, a := range v.addrs {
		if ip := a.Prefix.Addr(); ip.Is4() || ip.IsLinkLocalUnicast() || a.Temporary {
			continue // those stay, and these come again by themselves
		}
		again := *a
		again.DAD = false // it was tried out before
		want = append(want, &again)
	}
	errs := applyAll(ctx, r.kernel, creations(want...))
	var routes []kernel.Object
	for _, rt := range v.routes {
		again := *rt
		if again.TableOrMain() == kernel.TableMain {
			again.Table = table
		}
		routes = append(routes, &again)
	}
	if table != 0 { // there may be one to the same place already, by another interface of the VRF
		var err error
		if routes, err = behind(ctx, r.kernel, routes); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(append(errs, applyAll(ctx, r.kernel, creations(routes...))...)...)
}

// del needs neither the interface nor a configuration that is in order: whichever VRF the interface is in, it leaves.
func (vrf) del(ctx context.Context, r *request) error {
	if r.netns == "" {
		return nil
	}
	c, cerr := loadVRF(r)
	unlock, err := r.host.LockNetns(r.netns)
	if errors.Is(err, kernel.ErrNamespaceGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	v, err := c.view(ctx, r)
	if err != nil {
		return err
	}
	link := v.links[r.ifname]
	if cerr != nil && link != nil {
		c.VRFName = link.Master
	}
	if have := v.links[c.VRFName]; have == nil || have.Type != kernel.VRF {
		return nil
	}
	var changes []kernel.Change
	if link != nil && link.Master == c.VRFName {
		none := ""
		changes = append(changes, deletions(&kernel.Attrs{NS: r.netns, Link: r.ifname, Before: &kernel.Attrs{Master: &none}})...)
	}
	if !v.used(c.VRFName, r.ifname) {
		changes = append(changes, deletions(v.links[c.VRFName])...)
	}
	return errors.Join(applyAll(ctx, r.kernel, changes)...)
}

// used reports whether a VRF has an interface other than one.
func (v *vrfView) used(name, but string) bool {
	for _, l := range v.links {
		if l.Master == name && l.Name != but {
			return true
		}
	}
	return false
}

func (vrf) check(ctx context.Context, r *request) error {
	c, err := loadVRF(r)
	if err != nil {
		return err
	}
	if err := r.needPrev(); err != nil {
		return err
	}
	return differs(ctx, r.kernel, []kernel.Object{
		&kernel.Link{NS: r.netns, Name: c.VRFName, Type: kernel.VRF, Table: c.Table},
		&kernel.LinkUp{NS: r.netns, Link: c.VRFName},
		&kernel.Attrs{NS: r.netns, Link: r.ifname, Master: &c.VRFName},
	})
}

// gc has nothing to do: all that the plugin makes is in the container's namespace and ends with it.
func (vrf) gc(_ context.Context, r *request) error {
	_, err := r.valid()
	return err
}

func (vrf) status(_ context.Context, r *request) error {
	_, err := loadVRF(r)
	return err
}
