package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/reconcile"
)

// maker is what tells one plugin that makes an interface from another. attacher has the verbs.
type maker interface {
	// needsIPAM says that the plugin can't do without addresses.
	needsIPAM() bool
	// masquerades says whether the configuration asks for ipMasq.
	masquerades() bool
	// plan says what an attachment wants the kernel to hold, and the result that tells of it. It is pure: seen is what
	// the kernel holds of the objects of a plan that was made with nothing seen. An error says that what was seen is in
	// the way. Without addresses (a.ips is nil) it is the interface alone, up: also what an address plugin that asks
	// over the interface finds, see overLink.
	plan(a *attaching, seen *seen) (*plan, error)
}

// attaching is everything that a plan is made from beside the plugin's own configuration.
type attaching struct {
	ident
	netns string
	// host is the name of the machine's end.
	host string
	// alias marks links and elements as the attachment's; "" where others may have made it.
	alias string
	// hostMAC, mac, bridgeMAC and gatewayMAC are the addresses to make links with.
	hostMAC, mac, bridgeMAC, gatewayMAC string
	// check leaves out what plugins later in the chain, or the container, may change: MTU, hardware addresses, flags.
	check bool
	// made says that the interface is there already, without addresses; what fails now leaves it to the caller.
	made bool
	// ips is what the address plugin gave; nil where there is none.
	ips  *Result
	dns  DNS
	ipv6 bool
}

// plan is what an attachment wants.
type plan struct {
	// shared is also others': made where it is missing, never removed with the attachment.
	shared []kernel.Object
	// chains are shared chains of the nftables table.
	chains []kernel.Object
	// look are further objects that plan has to see; an Addr without Prefix stands for all of its link.
	look []kernel.Object
	// replace is somebody else's and makes way.
	replace []kernel.Object
	// link is the attachment's interface and own what hangs on it, or is its alone.
	link   *kernel.Link
	own    []kernel.Object
	result *Result
}

// scope is all that has to be listed before the plan can be carried out.
func (p *plan) scope() []kernel.Object {
	out := append(append(append([]kernel.Object(nil), p.shared...), p.chains...), p.look...)
	return append(out, elements(p.own)...)
}

func elements(objs []kernel.Object) []kernel.Object {
	var out []kernel.Object
	for _, o := range objs {
		if _, ok := o.(*kernel.Element); ok {
			out = append(out, o)
		}
	}
	return out
}

// seen is a listing.
type seen struct {
	byKey map[kernel.Key]kernel.Object
	all   []kernel.Object
}

func newSeen(objs []kernel.Object) *seen {
	s := &seen{byKey: make(map[kernel.Key]kernel.Object, len(objs)), all: objs}
	for _, o := range objs {
		s.byKey[o.Key()] = o
	}
	return s
}

// link gives a link of the machine's namespace; nil where there is none.
func (s *seen) link(name string) *kernel.Link {
	l, _ := s.byKey[(&kernel.Link{Name: name}).Key()].(*kernel.Link)
	return l
}

// missing gives those of want that are not held. A sysctl is told what value it had.
func (s *seen) missing(want []kernel.Object) []kernel.Object {
	var out []kernel.Object
	for _, w := range want {
		have := s.byKey[w.Key()]
		if have != nil && w.Holds(have) {
			continue
		}
		if c, ok := have.(*kernel.Sysctl); ok {
			o := *w.(*kernel.Sysctl)
			o.Before, w = c.Value, &o
		}
		out = append(out, w)
	}
	return out
}

// undo gives the changes that take back what was made or changed of some objects. The table stays: it was wanted along
// with a chain and may hold all that other attachments have.
func (s *seen) undo(made []kernel.Object) []kernel.Change {
	var back []kernel.Change
	for _, o := range made {
		switch o.(type) {
		case *kernel.Table:
			continue
		case *kernel.Sysctl: // its Delete puts Before back
		default:
			if s.byKey[o.Key()] != nil {
				continue
			}
		}
		back = append(back, kernel.Change{Op: kernel.Delete, Old: o})
	}
	return back
}

// sweeper is a maker of things that several attachments share and that go with the last of them.
type sweeper interface {
	// sweep removes what nobody uses any more; an attachment or several have just gone.
	sweep(ctx context.Context, r *request) error
}

// attacher is a plugin that makes an interface: a veth with one end on the machine, which carries the mark and a name that
// follows from the attachment, or, with inner, a link in the container alone, see inner.go.
type attacher struct {
	load func(*request) (maker, error)
	// inner is the type of a link that is in the container alone; "" for a veth.
	inner kernel.LinkType
}

func (p attacher) prepare(r *request) (maker, ipam, error) {
	m, err := p.load(r)
	if err != nil {
		return nil, nil, err
	}
	i, err := ipamOf(r)
	if err != nil {
		return nil, nil, err
	}
	if i == nil && m.needsIPAM() {
		return nil, nil, invalid("ipam.type", "", "is missing", "an address plugin such as host-local")
	}
	if i == nil && r.verb == verbAdd && !atLeast(r.version, "0.3.0") {
		_, err := (&Result{}).old(r.version) // better now than when all is made
		return nil, nil, err
	}
	return m, i, nil
}

func (p attacher) add(ctx context.Context, r *request) (*Result, error) {
	m, i, err := p.prepare(r)
	if err != nil {
		return nil, err
	}
	if err := resolve(ctx, r, m); err != nil {
		return nil, err
	}
	id := r.ident()
	a := &attaching{ident: id, alias: id.mark(), netns: r.netns, host: id.veth(), dns: r.conf.DNS, ipv6: r.host.IPv6(),
		mac: r.host.newMAC(0), bridgeMAC: r.host.newMAC(0), gatewayMAC: r.host.newMAC(0),
		// A bridge without an address of its own takes the lowest of its ports': never one of ours.
		hostMAC: r.host.newMAC(0xfe)}
	// Before anything is taken: what a failure would give back must not be what an earlier ADD made.
	if err := p.absent(ctx, r); err != nil {
		return nil, err
	}
	undo := func(context.Context) error { return nil }
	if _, ok := i.(overLink); ok {
		return addOverLink(ctx, r, m, i, a)
	}
	if i != nil {
		if a.ips, undo, err = i.add(ctx); err != nil {
			return nil, err
		}
	}
	res, err := addLocked(ctx, r, m, a)
	if err != nil {
		return nil, errors.Join(err, undo(context.WithoutCancel(ctx)))
	}
	return res, nil
}

func addLocked(ctx context.Context, r *request, m maker, a *attaching) (*Result, error) {
	first, err := m.plan(a, newSeen(nil))
	if err != nil {
		return nil, err
	}
	for _, exclusive := range []bool{false, true} {
		unlock, err := r.host.Lock(exclusive)
		if err != nil {
			return nil, err
		}
		p, s, err := replan(ctx, r, m, a, first)
		if err != nil {
			unlock()
			return nil, err
		}
		shared := append(s.missing(p.shared), tables(s.missing(p.chains))...)
		if !exclusive && (len(shared) > 0 || len(p.replace) > 0) {
			unlock() // what others rely on changes: alone
			continue
		}
		err = p.apply(ctx, r, s, shared, a.made)
		unlock()
		return p.result, err
	}
	panic("unreachable: the exclusive pass returns")
}

func replan(ctx context.Context, r *request, m maker, a *attaching, first *plan) (*plan, *seen, error) {
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: first.scope()})
	if err != nil {
		return nil, nil, err
	}
	s := newSeen(objs)
	p, err := m.plan(a, s)
	return p, s, err
}

// apply carries the plan out or leaves the kernel as it was; there says that the link was there before.
func (p *plan) apply(ctx context.Context, r *request, s *seen, shared []kernel.Object, there bool) error {
	if err := p.takeOver(ctx, r, s); err != nil {
		return err
	}
	// The link goes first: the rest is about an interface of that name, whoever's it is.
	err := reconcile.Apply(ctx, r.kernel, append(shared, p.link), p.replace)
	made := err == nil
	if errors.Is(err, kernel.ErrExists) {
		err = fmt.Errorf("can't make interface %q in the container: %w", r.ifname, err)
	}
	if err == nil {
		inside, rest := p.insideRoutes(r.netns)
		if err = reconcile.Apply(ctx, r.kernel, rest, nil); err == nil {
			err = addRoutes(ctx, r.kernel, inside)
		}
	}
	if err == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	var back []kernel.Change
	if made {
		for _, o := range elements(p.own) {
			if s.byKey[o.Key()] == nil {
				back = append(back, kernel.Change{Op: kernel.Delete, Old: o})
			}
		}
	}
	if !there && (made || p.link.NS == "") { // in a container the name may be another's
		back = append(back, kernel.Change{Op: kernel.Delete, Old: p.link})
	}
	back = append(back, s.undo(shared)...)
	for _, o := range p.replace {
		back = append(back, kernel.Change{Op: kernel.Create, New: o})
	}
	return errors.Join(append([]error{err}, applyAll(ctx, r.kernel, back)...)...)
}

// insideRoutes tells the container's routes from the rest of what the attachment has.
func (p *plan) insideRoutes(netns string) (routes, rest []kernel.Object) {
	for _, o := range p.own {
		if rt, ok := o.(*kernel.Route); ok && rt.NS == netns {
			routes = append(routes, o)
		} else {
			rest = append(rest, o)
		}
	}
	return routes, rest
}

// behind gives the routes with the metrics that they can have beside those of the container's other interfaces: one that
// another interface has already comes behind it. So the first attachment's default route is used, as with the reference
// plugins, and when that attachment goes the next one's takes over.
func behind(ctx context.Context, k kernel.Kernel, routes []kernel.Object) ([]kernel.Object, error) {
	const most = 64 // interfaces of one container with one destination
	for range most {
		objs, err := k.List(ctx, kernel.Scope{Objects: routes})
		if err != nil {
			return nil, err
		}
		s, moved := newSeen(objs), false
		next := make([]kernel.Object, len(routes))
		for i, o := range routes {
			r := o.(*kernel.Route)
			if have, ok := s.byKey[r.Key()].(*kernel.Route); ok && have.Link != r.Link {
				later := *r
				later.Metric++
				r, moved = &later, true
			}
			next[i] = r
		}
		if routes = next; !moved {
			return routes, nil
		}
	}
	return routes, nil
}

// addRoutes makes the container's routes. One that somebody else made there stays.
func addRoutes(ctx context.Context, k kernel.Kernel, routes []kernel.Object) error {
	routes, err := behind(ctx, k, routes)
	if err != nil {
		return err
	}
	var changes []kernel.Change
	for _, o := range routes {
		changes = append(changes, kernel.Change{Op: kernel.Create, New: o})
	}
	var errs []error
	for _, err := range applyAll(ctx, k, changes) {
		if !errors.Is(err, kernel.ErrExists) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// takeOver removes elements that another attachment left behind under a key that is this one's now, such as that of an
// address that was given out anew before the DEL of its last holder. Elements of ports are no such: they are taken.
func (p *plan) takeOver(ctx context.Context, r *request, s *seen) error {
	var stale []kernel.Change
	for _, o := range elements(p.own) {
		have, ok := s.byKey[o.Key()].(*kernel.Element)
		if !ok || have.Comment == markOf(o) {
			continue
		}
		stale = append(stale, kernel.Change{Op: kernel.Delete, Old: withFlush(have)})
	}
	return errors.Join(applyAll(ctx, r.kernel, stale)...)
}

func applyAll(ctx context.Context, k kernel.Kernel, changes []kernel.Change) []error {
	if len(changes) == 0 {
		return nil
	}
	kernel.SortChanges(changes)
	return k.Apply(ctx, changes)
}

func (p attacher) del(ctx context.Context, r *request) error {
	// What is wrong with the configuration was wrong at the ADD too, or came later: either way the attachment has to go.
	m, _ := p.load(r)
	i, err := ipamOf(r)
	errs := []error{lenient(err)}
	_, first := i.(overLink)
	if first { // while there is an interface to say it by
		errs = append(errs, i.del(ctx))
	}
	if err := p.delKernel(ctx, r, m, i); err != nil {
		// The addresses stay taken as long as they may be in use.
		return errors.Join(append(errs, err)...)
	}
	if s, ok := m.(sweeper); ok {
		errs = append(errs, s.sweep(ctx, r))
	}
	if i != nil && !first {
		errs = append(errs, i.del(ctx))
	}
	return errors.Join(errs...)
}

func (p attacher) delKernel(ctx context.Context, r *request, m maker, i ipam) error {
	if p.inner != "" {
		return p.delInner(ctx, r, i)
	}
	id := r.ident()
	// The ifb of the plugin bandwidth goes along: see there.
	scope := kernel.Scope{Objects: []kernel.Object{&kernel.Link{Name: id.veth(), Type: kernel.Veth}, &kernel.Link{Name: id.ifb(), Type: kernel.IFB}}}
	masquerades := m == nil || m.masquerades()
	var addrs []netip.Addr
	if masquerades {
		var err error
		if addrs, err = findMasquerade(ctx, r, &scope); err != nil {
			return err
		}
	}
	if g, ok := m.(guarder); m == nil || ok && g.guards() {
		objs, err := findGuard(ctx, r)
		if err != nil {
			return err
		}
		scope.Objects = append(scope.Objects, objs...)
	}
	objs, err := listWithPorts(ctx, r, scope)
	if err != nil {
		return err
	}
	var changes []kernel.Change
	found := false
	for _, o := range objs {
		switch o := o.(type) {
		case *kernel.Link:
			ours := o.Name == id.veth() || o.Name == id.ifb() && o.Type == kernel.IFB
			if !ours || o.Alias != "" && !id.marked(o.Alias) {
				continue
			}
			found = found || o.Name == id.veth()
			changes = append(changes, kernel.Change{Op: kernel.Delete, Old: o})
		case *kernel.Element:
			if id.marked(o.Comment) {
				changes = append(changes, kernel.Change{Op: kernel.Delete, Old: withFlush(o)})
			}
		}
	}
	if !found && r.netns != "" && madeByOthers(r, i) {
		changes = append(changes, kernel.Change{Op: kernel.Delete, Old: &kernel.Link{NS: r.netns, Name: r.ifname, Type: kernel.Veth}})
	}
	errs := applyAll(ctx, r.kernel, changes)
	if !found && masquerades {
		errs = append(errs, dropRelics(ctx, r.kernel, id.referenceMasq(addrs)))
	}
	return errors.Join(errs...)
}

// listWithPorts lists what a DEL of an interface looks at, and all that is marked as the attachment's where it has
// published ports: the DEL of portmap leaves them to this one.
func listWithPorts(ctx context.Context, r *request, scope kernel.Scope) ([]kernel.Object, error) {
	for _, a := range r.prev.addrs() {
		scope.Objects = append(scope.Objects, element(pickSet(a, snat4, snat6), a.String(), "", ""))
	}
	objs, err := r.kernel.List(ctx, scope)
	if err != nil {
		return nil, err
	}
	for _, o := range objs {
		e, ok := o.(*kernel.Element)
		if ok && (e.Set.Name == snat4.Name || e.Set.Name == snat6.Name) && r.ident().marked(e.Comment) {
			ports, err := r.kernel.List(ctx, kernel.Scope{Objects: publishedBy(r)})
			return append(objs, ports...), err
		}
	}
	return objs, nil
}

// publishedBy stands for all elements that the DEL of portmap finds by an attachment's configuration, which this one does
// not have: whole sets, but neither the links of the machine nor what other plugins keep in the table.
func publishedBy(r *request) []kernel.Object {
	var v4, v6 bool
	for _, a := range r.prev.addrs() {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	out := []kernel.Object{element(localnet, r.ident().veth(), "", "")}
	for _, f := range []struct {
		has  bool
		sets []*kernel.Set
	}{{v4, []*kernel.Set{port4, host4, when4, whenhost4}}, {v6, []*kernel.Set{port6, host6, when6, whenhost6}}} {
		for _, s := range f.sets {
			if f.has {
				out = append(out, element(s, "", "", r.ident().key()))
			}
		}
	}
	return out
}

// attachedAddrs gives the attachment's addresses: prevResult tells them, or else the container's interface; none where
// neither does.
func attachedAddrs(ctx context.Context, r *request) ([]netip.Addr, error) {
	addrs := r.prev.addrs()
	if len(addrs) > 0 || r.netns == "" {
		return addrs, nil
	}
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.Addr{NS: r.netns, Link: r.ifname}}})
	for _, o := range objs {
		if a, ok := o.(*kernel.Addr); ok && !a.Prefix.Addr().IsLinkLocalUnicast() {
			addrs = append(addrs, a.Prefix.Addr())
		}
	}
	return addrs, err
}

// findMasquerade gives the attachment's addresses, and adds to scope where the attachment's masquerade elements are: at its
// addresses; where these are not known, they are found by their mark.
func findMasquerade(ctx context.Context, r *request, scope *kernel.Scope) ([]netip.Addr, error) {
	addrs, err := attachedAddrs(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		scope.Objects = append(scope.Objects, table())
		scope.Mark = r.ident().key()
		return nil, nil
	}
	for _, a := range addrs {
		scope.Objects = append(scope.Objects, masqElement(a, "", ""))
	}
	return addrs, nil
}

// madeByOthers reports whether the interface in the container may have been made by another implementation of the
// plugin: then there is no link of ours, but an ADD that succeeded.
func madeByOthers(r *request, i ipam) bool {
	if r.prev != nil {
		for _, l := range r.prev.Interfaces {
			if l.Name == r.ifname && l.Sandbox != "" {
				return true
			}
		}
		return false
	}
	if h, ok := i.(*hostLocal); ok {
		return len(h.held()) > 0
	}
	return !atLeast(r.version, "0.4.0") // from there on a successful ADD leaves a prevResult
}

func (p attacher) check(ctx context.Context, r *request) error {
	m, i, err := p.prepare(r)
	if err != nil {
		return err
	}
	if err := r.needPrev(); err != nil {
		return err
	}
	if i != nil {
		if err := i.check(ctx); err != nil {
			return err
		}
	}
	a := &attaching{ident: r.ident(), netns: r.netns, check: true, ipv6: r.host.IPv6(), dns: r.conf.DNS}
	if a.host, err = hostEnd(r); err != nil {
		return err
	}
	ours := a.host == a.veth()
	var inner *kernel.Link
	if p.inner != "" {
		if inner, err = p.present(ctx, r); err != nil {
			return err
		}
		ours = inner != nil && a.marked(inner.Alias)
	}
	if ours {
		a.alias = a.mark()
	}
	if i != nil {
		a.ips = &Result{IPs: r.prev.IPs, Routes: r.prev.Routes}
	}
	first, err := m.plan(a, newSeen(nil))
	if err != nil {
		return err
	}
	p2, _, err := replan(ctx, r, m, a, first)
	if err != nil {
		return err
	}
	inside, rest := p2.insideRoutes(r.netns)
	if inside, err = asFound(ctx, r.kernel, inside); err != nil {
		return err
	}
	link := p2.link
	if inner != nil && link != nil && inner.Master != link.Master { // the plugin vrf's
		c := *link
		c.Master, link = inner.Master, &c
	}
	want := append([]kernel.Object{link}, p2.shared...)
	for _, o := range append(append(rest, inside...), p2.chains...) {
		// What the reference plugin made is no element of ours; sysctls are the container's to change.
		switch o.(type) {
		case *kernel.Sysctl:
			continue
		case *kernel.Element, *kernel.TableChain:
			if a.alias == "" {
				continue
			}
		}
		want = append(want, o)
	}
	return differs(ctx, r.kernel, want)
}

// asFound leaves out the routes of a container that a later plugin (sbr, vrf) moved to another table, and gives those
// that went behind another interface's the metrics that they have: that one may be gone by now.
func asFound(ctx context.Context, k kernel.Kernel, routes []kernel.Object) ([]kernel.Object, error) {
	if len(routes) == 0 {
		return nil, nil
	}
	one := routes[0].(*kernel.Route)
	objs, err := k.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.Route{NS: one.NS, Link: one.Link}}})
	if err != nil {
		return nil, err
	}
	var out []kernel.Object
	for _, o := range routes {
		w, moved := o.(*kernel.Route), false
		want := *w
		for _, o := range objs {
			r, ok := o.(*kernel.Route)
			if !ok || r.Dst != w.Dst || r.Via != w.Via {
				continue
			}
			switch {
			case r.TableOrMain() == w.TableOrMain() && r.Metric > w.Metric:
				want.Metric = r.Metric
			case r.TableOrMain() != w.TableOrMain() && w.TableOrMain() == kernel.TableMain:
				moved = true
			}
		}
		if have := newSeen(objs).byKey[w.Key()]; have != nil && w.Holds(have) {
			want = *w
		}
		if !moved {
			out = append(out, &want)
		}
	}
	return out, nil
}

// differs gives an error that names what a kernel does not hold.
func differs(ctx context.Context, k kernel.Kernel, want []kernel.Object) error {
	changes, err := reconcile.Check(ctx, k, want)
	var errs []error
	for _, c := range changes {
		if c.Op != kernel.Delete { // beside what is wanted there may be more
			errs = append(errs, fmt.Errorf("differs from what ADD made: %s", c))
		}
	}
	return errors.Join(append([]error{err}, errs...)...)
}

// hostEnd finds the machine's end of the veth in prevResult: the reference plugins give it any name.
func hostEnd(r *request) (string, error) {
	id := r.ident()
	inside, host := false, ""
	for _, l := range r.prev.Interfaces {
		switch {
		case l.Sandbox != "":
			inside = inside || l.Name == r.ifname && l.Sandbox == r.netns
		case l.Name == id.veth():
			host = l.Name
		case host == "" && len(l.Name) > len(vethPrefix) && l.Name[:len(vethPrefix)] == vethPrefix:
			host = l.Name
		}
	}
	if !inside {
		return "", errorf(CodeConfig, "prevResult: has no interface %q with sandbox %q; want the result of the ADD", r.ifname, r.netns)
	}
	if host == "" {
		host = id.veth()
	}
	return host, nil
}

func (p attacher) gc(ctx context.Context, r *request) error {
	valid, err := r.valid()
	if err != nil {
		return err
	}
	i, err := ipamOf(r)
	if err != nil {
		return err
	}
	var spaces []string
	if p.inner != "" {
		spaces = r.host.Namespaces()
	}
	errs := []error{collect(ctx, r, valid, spaces...)}
	m, _ := p.load(r)
	if s, ok := m.(sweeper); ok {
		errs = append(errs, s.sweep(ctx, r))
	}
	if i != nil {
		errs = append(errs, i.gc(ctx, valid))
	}
	return errors.Join(errs...)
}

func (p attacher) status(ctx context.Context, r *request) error {
	m, i, err := p.prepare(r)
	if err != nil {
		return err
	}
	if err := resolve(ctx, r, m); err != nil {
		return errorf(CodeUnavailable, "%w", err)
	}
	if i == nil {
		return nil
	}
	return i.status(ctx)
}
