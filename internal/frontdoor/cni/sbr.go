package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
)

// sbr is the plugin "sbr", source based routing: what has one of the interface's addresses as its source is routed by a
// table of that address's own, which the interface's routes are moved to.
//
//	rule  from 10.1.0.2 lookup 100      table 100  default via 10.1.0.1 dev net1
//	                                               10.1.0.0/24 dev net1
type sbr struct{}

// sbrConf is its configuration.
type sbrConf struct {
	Table          *int     `json:"table"`
	Gateways       []string `json:"gateways"`
	AddSourceHints bool     `json:"addSourceHints"`
}

// firstTable is the first table that is tried.
const firstTable = 100

// sourced is a request to sbr, validated.
type sourced struct {
	r *request
	// table is 0 where a free one is to be found.
	table    int
	gateways map[bool]netip.Addr // by whether it is IPv4
	hints    bool
}

func loadSourced(r *request) (*sourced, error) {
	var c sbrConf
	if err := decode(r.stdin, &c); err != nil {
		return nil, err
	}
	s := &sourced{r: r, gateways: map[bool]netip.Addr{}, hints: c.AddSourceHints}
	if c.Table != nil {
		if s.table = *c.Table; s.table < 1 || s.table > 1<<32-1 || s.table == kernel.TableLocal {
			return nil, invalid("table", s.table, "is no routing table for it", "1 to 4294967295 without 255, or none for one that is free")
		}
		if len(c.Gateways) > 0 || c.AddSourceHints {
			return nil, invalid("table", s.table, "excludes gateways and addSourceHints: routes stay where they are", "one of the two")
		}
	}
	for i, text := range c.Gateways {
		key := fmt.Sprintf("gateways[%d]", i)
		gw, err := netip.ParseAddr(text)
		if gw = gw.Unmap(); err != nil || gw.Zone() != "" || gw.IsUnspecified() || gw.IsMulticast() {
			return nil, invalid(key, text, "is no address of a router", "one such as 10.1.0.1 for each family")
		}
		if old := s.gateways[gw.Is4()]; old.IsValid() {
			return nil, invalid(key, text, "is of the same family as "+old.String(), "one for each family")
		}
		s.gateways[gw.Is4()] = gw
	}
	return s, nil
}

// around gives what has to be seen of the container: all its rules and routes, and the interface.
func (s *sourced) around() kernel.Scope {
	ns := s.r.netns
	return kernel.Scope{Objects: []kernel.Object{&kernel.Rule{NS: ns}, &kernel.Route{NS: ns}, &kernel.Attrs{NS: ns, Link: s.r.ifname},
		&kernel.Addr{NS: ns, Link: s.r.ifname}}}
}

// sourcePlan is what ADD does, one after the other: a route that goes must not be missed by one that comes.
type sourcePlan struct {
	add, drop, hints []kernel.Object
}

// plan is pure.
func (s *sourced) plan(objs []kernel.Object) (*sourcePlan, error) {
	ips := s.r.prev.on(s.r.ifname)
	if len(ips) == 0 {
		return nil, errorf(CodeConfig, "prevResult: has no address on interface %q of the container; want the result of a plugin that gives one", s.r.ifname)
	}
	if newSeen(objs).byKey[(&kernel.Attrs{NS: s.r.netns, Link: s.r.ifname}).Key()] == nil {
		return nil, errorf(CodeConfig, "CNI_IFNAME %q: the container has no such interface; want one that a plugin before sbr made", s.r.ifname)
	}
	p := &sourcePlan{}
	tables, priorities, main := s.survey(objs)
	for _, ip := range ips {
		a := ip.Address.Addr()
		rule := &kernel.Rule{NS: s.r.netns, V6: a.Is6(), From: single(a), Table: s.table, Priority: priorities[a.Is4()]}
		priorities[a.Is4()] = max(1, rule.Priority-1)
		if s.table == 0 {
			rule.Table = free(tables, firstTable)
			p.add = append(p.add, s.own(ip, ips, main, rule.Table)...)
		}
		p.add = append(p.add, rule)
	}
	if s.table != 0 {
		return p, nil
	}
	keep := map[kernel.Key]bool{}
	if s.hints {
		keep = p.hint(ips, main)
	}
	for _, r := range main {
		if !keep[r.Key()] {
			p.drop = append(p.drop, r)
		}
	}
	return p, nil
}

// free takes the first table that is not in use, from one on.
func free(tables map[int]bool, from int) int {
	for tables[from] {
		from++
	}
	tables[from] = true
	return from
}

// survey gives the tables in use, the priority for the next rule of each family (by whether it is IPv4; one less than
// the least, as the kernel chooses), and the interface's routes in the main table.
func (s *sourced) survey(objs []kernel.Object) (tables map[int]bool, priorities map[bool]int, main []*kernel.Route) {
	tables, priorities = map[int]bool{}, map[bool]int{true: 32766, false: 32766}
	for _, o := range objs {
		switch o := o.(type) {
		case *kernel.Rule:
			tables[o.Table] = true
			if v4 := !o.V6; o.Priority > 0 {
				priorities[v4] = min(priorities[v4], o.Priority)
			}
		case *kernel.Route:
			tables[o.TableOrMain()] = true
			// The kernel's own route of the link-local subnet stays: no source rule is about such addresses.
			if o.Link == s.r.ifname && o.TableOrMain() == kernel.TableMain && o.Type == "" && !o.Dst.Addr().IsLinkLocalUnicast() {
				main = append(main, o)
			}
		}
	}
	for v4 := range priorities {
		priorities[v4] = max(1, priorities[v4]-1)
	}
	return tables, priorities, main
}

// own gives the routes of an address's table: those of the interface that are about this address, and a default route.
func (s *sourced) own(ip IP, ips []IP, main []*kernel.Route, table int) []kernel.Object {
	a := ip.Address.Addr()
	var out []kernel.Object
	have := map[kernel.Key]bool{}
	put := func(r *kernel.Route) {
		if !have[r.Key()] {
			have[r.Key()] = true
			out = append(out, r)
		}
	}
	way := func(gw netip.Addr) {
		if gw.IsValid() {
			r := &kernel.Route{NS: s.r.netns, Dst: everywhere(a), Via: gw, Link: s.r.ifname, Table: table}
			if a.Is6() {
				r.Metric = 1024
			}
			put(r)
		}
	}
	way(s.gateways[a.Is4()]) // goes before what the interface has
	for _, r := range main {
		if r.Dst.Addr().Is4() == a.Is4() && concerns(r, ip, ips) {
			c := *r
			c.Table, c.Proto = table, 0
			put(&c)
		}
	}
	if !s.gateways[a.Is4()].IsValid() {
		way(ip.Gateway)
	}
	return out
}

func everywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// concerns reports whether a route is about an address of the interface: by its source, or else by its gateway, save
// where either is in the subnet of another of the addresses only.
func concerns(r *kernel.Route, ip IP, ips []IP) bool {
	by := r.Src
	if !by.IsValid() {
		by = r.Via
	}
	if !by.IsValid() || ip.Address.Contains(by) {
		return true
	}
	for _, other := range ips {
		if other.Address.Contains(by) {
			return false
		}
	}
	return true
}

// hint lets the main table keep a route to each subnet, with the address as preferred source. It gives the keys of those
// that are so already.
func (p *sourcePlan) hint(ips []IP, main []*kernel.Route) (keep map[kernel.Key]bool) {
	keep = map[kernel.Key]bool{}
	made := map[kernel.Key]bool{}
	for _, ip := range ips {
		if ip.Address.IsSingleIP() {
			continue
		}
		found := false
		for _, r := range main {
			if r.Dst == ip.Address.Masked() && r.Src == ip.Address.Addr() && !r.Via.IsValid() {
				keep[r.Key()], found = true, true
			}
		}
		r := &kernel.Route{Dst: ip.Address.Masked(), Src: ip.Address.Addr(), Scope: kernel.ScopeLink}
		if r.Dst.Addr().Is6() {
			r.Scope, r.Metric = kernel.ScopeGlobal, 1024
		}
		if found || made[r.Key()] { // of two addresses in a subnet the first is used
			continue
		}
		made[r.Key()] = true
		p.hints = append(p.hints, r)
	}
	return keep
}

func (sbr) add(ctx context.Context, r *request) (*Result, error) {
	s, err := loadSourced(r)
	if err != nil {
		return nil, err
	}
	if r.prev == nil {
		return nil, errorf(CodeConfig, "prevResult is missing; want sbr behind a plugin that makes an interface")
	}
	// Or two attachments of the container would find the same table free.
	unlock, err := r.host.LockNetns(r.netns)
	if err != nil {
		return nil, err
	}
	defer unlock()
	objs, err := r.kernel.List(ctx, s.around())
	if err != nil {
		return nil, err
	}
	p, err := s.plan(objs)
	if err != nil {
		return nil, err
	}
	done := &changeLog{kernel: r.kernel}
	if err = done.do(ctx, creations(p.add...)); err == nil {
		err = done.do(ctx, deletions(p.drop...))
	}
	if err == nil {
		err = s.addHints(ctx, done, p.hints)
	}
	if err != nil {
		return nil, errors.Join(err, done.undo(ctx))
	}
	return r.prev, nil
}

// addHints makes the hints. Where another interface of the container has the subnet in the main table already, that goes
// on to be used.
func (s *sourced) addHints(ctx context.Context, done *changeLog, hints []kernel.Object) error {
	for _, o := range hints {
		h := *o.(*kernel.Route)
		h.NS, h.Link = s.r.netns, s.r.ifname
		if err := done.do(ctx, creations(&h)); err != nil && !errors.Is(err, kernel.ErrExists) {
			return err
		}
	}
	return nil
}

// del removes the rules that are about the interface's addresses, as prevResult tells them or the interface has them,
// and the routes that they led to. Rules that the reference plugin made carry no protocol number.
func (sbr) del(ctx context.Context, r *request) error {
	if r.netns == "" {
		return nil
	}
	s, _ := loadSourced(r) // what is wrong with the configuration must not keep the rules
	if s == nil {
		s = &sourced{r: r}
	}
	unlock, err := r.host.LockNetns(r.netns)
	if errors.Is(err, kernel.ErrNamespaceGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	objs, err := r.kernel.List(ctx, s.around())
	if err != nil {
		return err
	}
	mine := map[netip.Addr]bool{}
	if r.prev != nil {
		for _, ip := range r.prev.on(r.ifname) {
			mine[ip.Address.Addr()] = true
		}
	}
	for _, o := range objs {
		if a, ok := o.(*kernel.Addr); ok {
			mine[a.Prefix.Addr()] = true
		}
	}
	var drop []kernel.Object
	tables := map[int]bool{}
	for _, o := range objs {
		rule, ok := o.(*kernel.Rule)
		if ok && rule.From.IsSingleIP() && mine[rule.From.Addr()] && (rule.Proto == 0 || rule.Proto == kernel.NoProtocol) {
			drop = append(drop, rule)
			tables[rule.Table] = rule.Table != s.table
		}
	}
	for _, o := range objs {
		if rt, ok := o.(*kernel.Route); ok && tables[rt.Table] && rt.Link == r.ifname && rt.Proto == 0 && rt.TableOrMain() >= firstTable && rt.TableOrMain() != kernel.TableMain {
			drop = append(drop, rt)
		}
	}
	return errors.Join(applyAll(ctx, r.kernel, deletions(drop...))...)
}

// check looks for the rules, and for the default routes that they have to lead to. Other routes are the container's.
func (sbr) check(ctx context.Context, r *request) error {
	s, err := loadSourced(r)
	if err != nil {
		return err
	}
	if err := r.needPrev(); err != nil {
		return err
	}
	objs, err := r.kernel.List(ctx, s.around())
	if err != nil {
		return err
	}
	var errs []error
	for _, ip := range r.prev.on(r.ifname) {
		errs = append(errs, s.checkIP(ip, objs))
	}
	return errors.Join(errs...)
}

func (s *sourced) checkIP(ip IP, objs []kernel.Object) error {
	a, table := ip.Address.Addr(), 0
	for _, o := range objs {
		if rule, ok := o.(*kernel.Rule); ok && rule.From == single(a) && (rule.Table == s.table || s.table == 0 && rule.Table >= firstTable) {
			table = rule.Table
		}
	}
	if table == 0 {
		return fmt.Errorf("differs from what ADD made: no rule from %s", a)
	}
	gw := s.gateways[a.Is4()]
	if !gw.IsValid() {
		gw = ip.Gateway
	}
	if s.table != 0 || !gw.IsValid() {
		return nil
	}
	for _, o := range objs {
		if rt, ok := o.(*kernel.Route); ok && rt.Table == table && rt.Link == s.r.ifname && rt.Dst == everywhere(a) {
			return nil
		}
	}
	return fmt.Errorf("differs from what ADD made: no default route of %s by %s in table %d", a, s.r.ifname, table)
}

// gc has nothing to do: all that the plugin makes is in the container's namespace and ends with it.
func (sbr) gc(_ context.Context, r *request) error {
	_, err := r.valid()
	return err
}

func (sbr) status(_ context.Context, r *request) error {
	_, err := loadSourced(r)
	return err
}
