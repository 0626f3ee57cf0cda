package cni

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/reconcile"
)

// firewallConf is the configuration of the plugin "firewall".
type firewallConf struct {
	Backend    string `json:"backend"`
	Policy     string `json:"ingressPolicy"`
	AdminChain string `json:"iptablesAdminChainName"`
	Zone       string `json:"firewalldZone"`
}

// firewall is the plugin "firewall": it lets a container's packets pass where the machine drops what it forwards, and
// keeps bridges apart.
type firewall struct{}

// wall is a request to firewall, validated.
type wall struct {
	r    *request
	conf firewallConf
	// bridge is the bridge that ingressPolicy is about; "" where it is open.
	bridge string
	// zone is that of firewalld which gets the addresses; "" where firewalld is not used.
	zone string
}

func loadWall(r *request) (*wall, error) {
	w := &wall{r: r}
	if err := decode(r.stdin, &w.conf); err != nil {
		return nil, err
	}
	c := &w.conf
	if c.AdminChain == "" {
		c.AdminChain = "CNI-ADMIN"
	}
	if c.Zone == "" {
		c.Zone = "trusted"
	}
	_, chainErr := kernel.ParseRule("jump " + c.AdminChain)
	switch {
	case !atLeast(r.version, "0.4.0"):
		return nil, errorf(CodeVersion, "cniVersion %q: firewall needs prevResult, which runtimes keep since 0.4.0; want that or newer", r.version)
	case !slices.Contains([]string{"", "iptables", "nftables", "firewalld"}, c.Backend):
		return nil, invalid("backend", c.Backend, "is not known", "iptables or nftables (either gives nftables rules of our own), firewalld, or none")
	case !slices.Contains([]string{"", "open", "same-bridge", "isolated"}, c.Policy):
		return nil, invalid("ingressPolicy", c.Policy, "is not known", "open, same-bridge or isolated")
	case chainErr != nil || len(c.AdminChain) > 28:
		return nil, invalid("iptablesAdminChainName", c.AdminChain, "is no name of a chain", "a letter, then up to 27 letters, digits, '-', '_', '.' and '/'")
	case len(c.Zone) > 40 || strings.ContainsAny(c.Zone, " \t\n\x00"):
		return nil, invalid("firewalldZone", c.Zone, "is no name of a zone", "at most 40 bytes without white space")
	}
	return w, nil
}

// findBridge finds the bridge in prevResult: the machine's interface that the container hangs on.
func (w *wall) findBridge() error {
	if w.conf.Policy == "" || w.conf.Policy == "open" {
		return nil
	}
	for _, l := range w.r.prev.Interfaces {
		if l.Sandbox == "" && l.Name != "" {
			w.bridge = l.Name
			return validIfname("prevResult.interfaces.name", l.Name)
		}
	}
	return invalid("ingressPolicy", w.conf.Policy, "has no bridge: prevResult names no interface of the machine",
		"firewall behind a plugin such as bridge, or open")
}

// useZone decides whether firewalld is used, as the reference does: where it is asked for, or where it runs and nothing
// else is asked for. The Firewalld is nil where it is not.
func (w *wall) useZone(ctx context.Context) (Firewalld, error) {
	if w.conf.Backend != "" && w.conf.Backend != "firewalld" {
		return nil, nil
	}
	f, err := w.r.host.Firewalld(ctx)
	if f != nil {
		w.zone = w.conf.Zone
		return f, nil
	}
	if w.conf.Backend == "" {
		return nil, nil // no bus is as good as no firewalld
	}
	if err == nil {
		err = errors.New("it does not run")
	}
	return nil, errorf(CodeTryAgain, "backend \"firewalld\": %w; want firewalld to own %s on the system bus", err, firewalldName)
}

// wallPlan is what a firewall wants: all but the own elements is shared.
type wallPlan struct {
	chains, shared, own []kernel.Object
}

func (p *wallPlan) all() []kernel.Object { return slices.Concat(p.chains, p.shared, p.own) }

// plan says what the attachment wants of a machine with these chains of others.
func (w *wall) plan(others []kernel.ForeignChain) *wallPlan {
	p := &wallPlan{}
	addrs := w.r.prev.addrs()
	slices.SortFunc(addrs, netip.Addr.Compare)
	if addrs = slices.Compact(addrs); len(addrs) == 0 {
		return p
	}
	p.chains = []kernel.Object{passChain(), passedChain()}
	for _, c := range others {
		if a := w.accept(c, addrs); a != nil {
			p.shared = append(p.shared, a)
		}
	}
	if w.bridge != "" {
		p.chains = append(p.chains, isolationChain())
		p.shared = append(p.shared, element(policied, w.bridge, "", bridgeMark), element(sameBridge, pair(w.bridge), "", bridgeMark))
		if w.conf.Policy == "isolated" {
			p.shared = append(p.shared, element(isolated, pair(w.bridge), "", bridgeMark))
		}
	}
	for _, a := range addrs {
		p.own = append(p.own, element(pickSet(a, pass4, pass6), a.String(), "", w.mark(len(addrs))))
	}
	return p
}

// accept lets marked packets pass a chain of others: the reference's rules stand first in iptables' FORWARD, and chains
// elsewhere are opened where they drop what they don't know. nil where nothing is to be done.
func (w *wall) accept(c kernel.ForeignChain, addrs []netip.Addr) *kernel.Accept {
	has := func(v4 bool) bool {
		return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is4() == v4 })
	}
	out := &kernel.Accept{Family: c.Family, Table: c.Table, Chain: c.Chain, Rule: passRule, Mark: markPrefix}
	switch {
	case c.Hook != "forward", c.Locked, c.Family == "ip" && !has(true), c.Family == "ip6" && !has(false):
		return nil
	case isFilter(c):
		out.First, out.Via = true, w.conf.AdminChain
		return out
	case c.Table == "firewalld":
		// Its zones, which it jumps to before its last rule, reject by themselves. With firewalld's backend they decide.
		if out.First = true; w.zone != "" {
			return nil
		}
	case c.Why == "":
		return nil
	}
	return out
}

// isFilter tells the chain FORWARD of iptables and ip6tables.
func isFilter(c kernel.ForeignChain) bool {
	return c.Family != "inet" && c.Table == "filter" && c.Chain == "FORWARD"
}

// foreignChains lists the chains of others, where the kernel can tell.
func foreignChains(ctx context.Context, r *request) ([]kernel.ForeignChain, error) {
	k, ok := r.kernel.(interface {
		ForeignChains(context.Context) ([]kernel.ForeignChain, error)
	})
	if !ok {
		return nil, nil
	}
	return k.ForeignChains(ctx)
}

func (w *wall) planned(ctx context.Context) (*wallPlan, error) {
	others, err := foreignChains(ctx, w.r)
	if err != nil {
		return nil, err
	}
	return w.plan(others), nil
}

func (firewall) add(ctx context.Context, r *request) (*Result, error) {
	w, err := loadWall(r)
	if err != nil {
		return nil, err
	}
	if r.prev == nil {
		return nil, errorf(CodeConfig, "prevResult is missing; want firewall behind a plugin that makes an interface")
	}
	if err := w.findBridge(); err != nil {
		return nil, err
	}
	fw, err := w.useZone(ctx)
	if err != nil {
		return nil, err
	}
	if fw != nil {
		defer fw.Close()
	}
	p, err := w.planned(ctx)
	if err != nil || len(p.own) == 0 {
		return r.prev, err
	}
	if err := w.put(ctx, p); err != nil {
		return nil, err
	}
	if fw == nil {
		return r.prev, nil
	}
	if err := w.addSources(ctx, fw); err != nil {
		return nil, errors.Join(err, dropWall(context.WithoutCancel(ctx), r, elementsOf(p.own)))
	}
	w.mendSources(ctx, fw)
	return r.prev, nil
}

// put carries the plan out or leaves the kernel as it was.
func (w *wall) put(ctx context.Context, p *wallPlan) error {
	r := w.r
	for _, exclusive := range []bool{false, true} {
		unlock, err := r.host.Lock(exclusive)
		if err != nil {
			return err
		}
		objs, err := r.kernel.List(ctx, kernel.Scope{Objects: p.all()})
		if err != nil {
			unlock()
			return err
		}
		s := newSeen(objs)
		shared := append(tables(s.missing(p.chains)), s.missing(p.shared)...)
		if !exclusive && len(shared) > 0 {
			unlock()
			continue
		}
		err = w.apply(ctx, p, s, shared)
		unlock()
		return err
	}
	panic("unreachable: the exclusive pass returns")
}

func (w *wall) apply(ctx context.Context, p *wallPlan, s *seen, shared []kernel.Object) error {
	var stale []*kernel.Element // of who had the address before, and whose DEL is late
	for _, o := range p.own {
		if have, ok := s.byKey[o.Key()].(*kernel.Element); ok && have.Comment != markOf(o) {
			stale = append(stale, have)
		}
	}
	err := dropPassing(ctx, w.r, stale)
	if err != nil {
		return err
	}
	if err = reconcile.Apply(ctx, w.r.kernel, append(shared, p.own...), nil); err == nil {
		return nil
	}
	back := s.undo(slices.Concat(p.own, shared))
	return errors.Join(append([]error{err}, applyAll(context.WithoutCancel(ctx), w.r.kernel, back)...)...)
}

// del needs neither the namespace nor prevResult nor a configuration that is right.
func (firewall) del(ctx context.Context, r *request) error {
	addrs := r.prev.addrs()
	own, others, err := passing(ctx, r, addrs)
	if err == nil && len(addrs) > 0 && (len(own) == 0 || len(own) < readMark(own[0]).addrs) {
		// ADD was told other addresses than prevResult has.
		own, _, err = passing(ctx, r, nil)
	}
	if err != nil {
		return err
	}
	if len(own) == 0 { // it was made by the reference plugin, or is gone
		if len(addrs) == 0 {
			if addrs, err = attachedAddrs(ctx, r); err == nil && len(addrs) > 0 {
				_, others, err = passing(ctx, r, addrs)
			}
			if err != nil {
				return err
			}
		}
		return dropReferences(ctx, r, addrs, others)
	}
	return dropWall(ctx, r, own)
}

// dropWall removes what the attachment has.
func dropWall(ctx context.Context, r *request, own []*kernel.Element) error {
	if err := dropPassing(ctx, r, own); err != nil {
		return err
	}
	if !slices.ContainsFunc(own, func(e *kernel.Element) bool { return readMark(e).bridge != "" }) {
		return nil
	}
	unlock, err := r.host.Lock(true) // no ADD may be about to rely on what is being removed
	if err != nil {
		return err
	}
	defer unlock()
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{element(pass4, "", "", ""), element(pass6, "", "", ""),
		element(policied, "", "", ""), element(sameBridge, "", "", ""), element(isolated, "", "", "")}})
	if err != nil {
		return err
	}
	return errors.Join(applyAll(ctx, r.kernel, idleBridges(objs))...)
}

func elementsOf(objs []kernel.Object) []*kernel.Element {
	var out []*kernel.Element
	for _, o := range objs {
		if e, ok := o.(*kernel.Element); ok {
			out = append(out, e)
		}
	}
	return out
}

// passing gives the attachment's elements of addresses that pass, and those of the same addresses that others have; without
// addresses, all of the attachment's.
func passing(ctx context.Context, r *request, addrs []netip.Addr) (own, others []*kernel.Element, err error) {
	id := r.ident()
	scope := kernel.Scope{Objects: []kernel.Object{table()}, Mark: id.key()}
	if len(addrs) > 0 {
		scope = kernel.Scope{}
		for _, a := range addrs {
			scope.Objects = append(scope.Objects, element(pickSet(a, pass4, pass6), a.String(), "", ""))
		}
	}
	objs, err := r.kernel.List(ctx, scope)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range objs {
		switch e, ok := o.(*kernel.Element); {
		case !ok || !isPass(e):
		case id.marked(e.Comment):
			own = append(own, e)
		default:
			others = append(others, e)
		}
	}
	return own, others, nil
}

// dropPassing removes elements of addresses that pass, and the addresses from firewalld's zones before: what can't be
// removed there is still known at the next try.
func dropPassing(ctx context.Context, r *request, elems []*kernel.Element) error {
	if err := dropSources(ctx, r, elems); err != nil {
		return err
	}
	var changes []kernel.Change
	for _, e := range elems {
		changes = append(changes, kernel.Change{Op: kernel.Delete, Old: e})
	}
	return errors.Join(applyAll(ctx, r.kernel, changes)...)
}

// referenceChain is where the reference plugin has its rules, two for each address.
const referenceChain = "CNI-FORWARD"

func referenceRules(addrs []netip.Addr) []kernel.Object {
	var out []kernel.Object
	for _, a := range addrs {
		fam := "ip"
		if a.Is6() {
			fam = "ip6"
		}
		for _, side := range []string{" saddr ", " daddr "} {
			out = append(out, &kernel.Accept{Family: fam, Table: "filter", Chain: referenceChain, Rule: fam + side + a.String(), Others: true})
		}
	}
	return out
}

// dropReferences removes what the reference plugin made for addresses: rules in iptables, or sources of a zone where none
// of the others has the address by now.
func dropReferences(ctx context.Context, r *request, addrs []netip.Addr, others []*kernel.Element) error {
	if len(addrs) == 0 {
		return nil
	}
	var changes []kernel.Change
	for _, o := range referenceRules(addrs) {
		changes = append(changes, kernel.Change{Op: kernel.Delete, Old: o})
	}
	errs := applyAll(ctx, r.kernel, changes)
	w, _ := loadWall(r)
	if w == nil {
		return errors.Join(errs...)
	}
	fw, _ := w.useZone(ctx)
	if fw == nil {
		return errors.Join(errs...) // what firewalld had went with it
	}
	defer fw.Close()
	for _, a := range addrs {
		if !slices.ContainsFunc(others, func(e *kernel.Element) bool { return e.Item == a.String() }) {
			errs = append(errs, fw.RemoveSource(ctx, w.zone, source(a)))
		}
	}
	return errors.Join(errs...)
}

func (firewall) check(ctx context.Context, r *request) error {
	w, err := loadWall(r)
	if err != nil {
		return err
	}
	if err := r.needPrev(); err != nil {
		return err
	}
	if err := w.findBridge(); err != nil {
		return err
	}
	addrs := r.prev.addrs()
	own, _, err := passing(ctx, r, addrs)
	if err != nil || len(addrs) == 0 {
		return err
	}
	if len(own) == 0 {
		ok, err := w.references(ctx, addrs)
		if ok || err != nil {
			return err
		}
	} else if w.zone = readMark(own[0]).zone; w.zone != "" { // as the ADD found it
		if err := w.checkSources(ctx); err != nil {
			return err
		}
	}
	p, err := w.planned(ctx)
	if err != nil {
		return err
	}
	return differs(ctx, r.kernel, p.all())
}

// references reports whether the reference plugin made what the attachment has.
func (w *wall) references(ctx context.Context, addrs []netip.Addr) (bool, error) {
	want := referenceRules(addrs)
	objs, err := w.r.kernel.List(ctx, kernel.Scope{Objects: want})
	if err != nil || len(objs) == len(want) {
		return err == nil, err
	}
	fw, err := w.useZone(ctx)
	if fw == nil {
		return false, err
	}
	fw.Close()
	return true, w.checkSources(ctx)
}

func (firewall) gc(ctx context.Context, r *request) error {
	valid, err := r.valid()
	if err != nil {
		return err
	}
	return collect(ctx, r, valid)
}

func (firewall) status(ctx context.Context, r *request) error {
	w, err := loadWall(r)
	if err != nil || w.conf.Backend != "firewalld" {
		return err
	}
	fw, err := w.useZone(ctx)
	if err != nil {
		return errorf(CodeUnavailable, "%w", err)
	}
	fw.Close()
	return nil
}
