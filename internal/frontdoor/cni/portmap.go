package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/reconcile"
)

// portMapping is one entry of runtimeConfig.portMappings.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// portmapConf is the configuration of the plugin "portmap".
type portmapConf struct {
	SNAT                 *bool     `json:"snat"`
	MasqAll              bool      `json:"masqAll"`
	ConditionsV4         *[]string `json:"conditionsV4"`
	ConditionsV6         *[]string `json:"conditionsV6"`
	MarkMasqBit          *int      `json:"markMasqBit"`
	ExternalSetMarkChain *string   `json:"externalSetMarkChain"`
	Backend              *string   `json:"backend"`
}

// portmap is the plugin "portmap": it publishes ports of a container that plugins before it in the chain gave its
// interface.
type portmap struct{}

// mapping is a portMapping that was understood: addr is the zero Addr for any of the families in v4 and v6.
type mapping struct {
	protocol        string
	addr            netip.Addr
	v4, v6          bool
	host, container uint16
}

// ports is a request to portmap, validated.
type ports struct {
	r        *request
	conf     portmapConf
	mappings []mapping
	// when4 and when6 are the conditions of each family's ports, as alternatives; empty for none.
	when4, when6 []string
	// elsewhere are the elements, by set and item, that another attachment of the container has.
	elsewhere map[string]bool
}

func loadPorts(r *request) (*ports, error) {
	p := &ports{r: r}
	if err := decode(r.stdin, &p.conf); err != nil {
		return nil, err
	}
	switch c := &p.conf; {
	case c.MarkMasqBit != nil && c.ExternalSetMarkChain != nil:
		return nil, invalid("externalSetMarkChain", *c.ExternalSetMarkChain, "excludes markMasqBit", "one of the two")
	case c.MarkMasqBit != nil && (*c.MarkMasqBit < 0 || *c.MarkMasqBit > 31):
		return nil, invalid("markMasqBit", *c.MarkMasqBit, "is no bit of a mark", "0 to 31 (no mark is used)")
	case c.Backend != nil && *c.Backend != "iptables" && *c.Backend != "nftables":
		return nil, invalid("backend", *c.Backend, "is not known", "iptables or nftables (either gives nftables rules of our own)")
	}
	if err := p.loadConditions(); err != nil {
		return nil, err
	}
	for i, m := range r.conf.RuntimeConfig.PortMappings {
		x, err := m.parse(fmt.Sprintf("runtimeConfig.portMappings[%d].", i))
		if err != nil {
			return nil, err
		}
		p.mappings = append(p.mappings, x)
	}
	return p, nil
}

// loadConditions holds what is in the words of one backend to the other's name, as the reference plugin does.
func (p *ports) loadConditions() error {
	c := &p.conf
	backend := deref(c.Backend)
	if c.ExternalSetMarkChain != nil && backend == "nftables" {
		return invalid("externalSetMarkChain", *c.ExternalSetMarkChain, "is of iptables", "backend iptables, or none")
	}
	for _, f := range []struct {
		key   string
		words *[]string
		v6    bool
		to    *[]string
	}{{"conditionsV4", c.ConditionsV4, false, &p.when4}, {"conditionsV6", c.ConditionsV6, true, &p.when6}} {
		alts, native, err := parseConditions(f.key, f.words, f.v6)
		if err != nil {
			return err
		}
		if words := deref(f.words); len(words) > 0 && words[0] != "" && backend != "" && native != (backend == "nftables") {
			return invalid(f.key, strings.Join(words, " "), "is not in the words of the backend "+backend, "those of "+backend+", or no backend")
		}
		*f.to = alts
	}
	return nil
}

// when gives the conditions of an address's family.
func (p *ports) when(a netip.Addr) []string {
	if a.Is4() {
		return p.when4
	}
	return p.when6
}

func (m portMapping) parse(field string) (mapping, error) {
	out := mapping{protocol: strings.ToLower(m.Protocol), v4: true, v6: true}
	switch out.protocol {
	case "":
		out.protocol = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return out, invalid(field+"protocol", m.Protocol, "is no protocol that has ports", "tcp, udp or sctp")
	}
	if m.HostPort < 1 || m.HostPort > 65535 {
		return out, invalid(field+"hostPort", m.HostPort, "is no port", "1 to 65535")
	}
	if m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return out, invalid(field+"containerPort", m.ContainerPort, "is no port", "1 to 65535")
	}
	out.host, out.container = uint16(m.HostPort), uint16(m.ContainerPort)
	if m.HostIP == "" {
		return out, nil
	}
	a, err := netip.ParseAddr(m.HostIP)
	if err != nil || a.Zone() != "" || a.IsMulticast() {
		return out, invalid(field+"hostIP", m.HostIP, "is no address of a machine", "an address without a zone, or none for all")
	}
	a = a.Unmap()
	if out.v4, out.v6 = a.Is4(), a.Is6(); !a.IsUnspecified() {
		out.addr = a
	}
	return out, nil
}

// targets gives the container's first address of each family on the attachment's interface, with its subnet.
func (p *ports) targets() []netip.Prefix {
	var out []netip.Prefix
	have := map[bool]bool{}
	for _, ip := range p.r.prev.IPs {
		v4 := ip.Address.Addr().Is4()
		if have[v4] {
			continue
		}
		if ip.Interface != nil {
			l := p.r.prev.Interfaces[*ip.Interface]
			if l.Sandbox == "" || l.Name != p.r.ifname {
				continue
			}
		}
		have[v4] = true
		out = append(out, ip.Address)
	}
	return out
}

// hostLink is the machine's interface that leads to the container: the first of the result, a bridge or a veth's end, or
// the gateway of a VLAN of that bridge.
func (p *ports) hostLink() string {
	first := ""
	for _, l := range p.r.prev.Interfaces {
		switch vlan, ok := strings.CutPrefix(l.Name, first+"."); {
		case l.Sandbox != "":
		case first == "":
			first = l.Name
		case ok:
			if _, err := strconv.Atoi(vlan); err == nil {
				return l.Name
			}
		}
	}
	return first
}

// item gives the key of a mapping's element for a family.
func (m mapping) item() string {
	port := strconv.Itoa(int(m.host))
	if m.addr.IsValid() {
		return m.protocol + " . " + m.addr.String() + " . " + port
	}
	return m.protocol + " . " + port
}

// element gives a mapping's element that leads to an address; nil where the families differ.
func (m mapping) element(to netip.Addr, mark string) *kernel.Element {
	if to.Is4() && !m.v4 || to.Is6() && !m.v6 {
		return nil
	}
	set := pickSet(to, port4, port6)
	if m.addr.IsValid() {
		set = pickSet(to, host4, host6)
	}
	e := element(set, m.item(), fmt.Sprintf("%s . %d", to, m.container), mark)
	if m.protocol == "udp" {
		e.Flush = &kernel.Flow{Protocol: "udp", Addr: m.addr, Port: m.host}
	}
	return e
}

// portPlan is what published ports want: chains and what is on a bridge are shared, elements the attachment's own.
type portPlan struct {
	shared, chains, own []kernel.Object
}

// plan is pure.
func (p *ports) plan() (portPlan, error) {
	var out portPlan
	targets := p.targets()
	if len(targets) == 0 {
		return out, errorf(CodeConfig, "prevResult: has no address on interface %q of the container; want the result of a plugin that gives one", p.r.ifname)
	}
	mark := p.r.ident().mark()
	used := map[string]int{}
	for _, to := range targets {
		n := 0
		var when *kernel.TableChain
		if alts := p.when(to.Addr()); len(alts) > 0 {
			when = whenChain(to.Addr().Is4(), alts)
		}
		for i, m := range p.mappings {
			e := m.element(to.Addr(), mark)
			if e == nil {
				continue
			}
			if j, twice := used[e.Set.Name+e.Item]; twice {
				return out, invalid(fmt.Sprintf("runtimeConfig.portMappings[%d].hostPort", i), m.host,
					fmt.Sprintf("is published twice (see portMappings[%d])", j), "each port once per protocol and address")
			}
			used[e.Set.Name+e.Item] = i
			if p.elsewhere[e.Set.Name+e.Item] {
				continue
			}
			out.own = append(out.own, e)
			n++
			if when != nil {
				out.own = append(out.own, whenElement(e, when.Chain.Name))
				n++
			}
		}
		if n == 0 {
			continue
		}
		if when != nil {
			out.chains = append(out.chains, when)
		}
		chain := snatChain(to)
		out.chains = append(out.chains, chain)
		jump := chain.Chain.Name
		switch {
		case p.conf.SNAT != nil && !*p.conf.SNAT:
			jump = chainKeep
		case p.conf.MasqAll:
			jump = chainAll
		}
		out.own = append(out.own, element(pickSet(to.Addr(), snat4, snat6), to.Addr().String(), "jump "+jump, counted(mark, n)))
		if jump != chainKeep {
			p.loopback(&out, to.Addr(), mark)
		}
	}
	return out, nil
}

// loopback adds what lets the machine reach the ports at its loopback addresses.
func (p *ports) loopback(out *portPlan, to netip.Addr, mark string) {
	link := p.hostLink()
	if link == "" {
		return
	}
	if to.Is6() {
		out.shared = append(out.shared, &kernel.Route{Type: "local", Dst: netip.PrefixFrom(netip.IPv6Loopback(), 128), Link: link,
			Table: kernel.TableLocal, Metric: 4096})
		return
	}
	out.shared = append(out.shared, &kernel.Sysctl{Name: "net/ipv4/conf/" + link + "/route_localnet", Value: "1"})
	e := element(localnet, link, "", "")
	if strings.HasPrefix(link, vethPrefix) { // the attachment's own: both go together
		e.Comment = mark
		out.own = append(out.own, e)
		return
	}
	out.shared = append(out.shared, e)
}

// counted is a mark that also says how many elements lead to published ports, so that DEL knows when it has found all.
func counted(mark string, n int) string {
	key, names, _ := strings.Cut(mark, " ")
	out := key + " " + strconv.Itoa(n) + " " + names
	return out[:min(len(out), markLen)]
}

// count reads it back; -1 where it is not there.
func count(mark string) int {
	if f := strings.SplitN(mark, " ", 3); len(f) >= 2 {
		if n, err := strconv.Atoi(f[1]); err == nil {
			return n
		}
	}
	return -1
}

func (portmap) add(ctx context.Context, r *request) (*Result, error) {
	p, err := loadPorts(r)
	if err != nil {
		return nil, err
	}
	if r.prev == nil {
		return nil, errorf(CodeConfig, "prevResult is missing; want portmap behind a plugin that makes an interface")
	}
	if len(p.mappings) == 0 {
		return r.prev, nil
	}
	plan, err := p.plan()
	if err != nil {
		return nil, err
	}
	if err := p.hairpin(ctx); err != nil {
		return nil, err
	}
	return r.prev, p.publish(ctx, plan)
}

// publish carries the plan out or leaves the kernel as it was.
func (p *ports) publish(ctx context.Context, plan portPlan) error {
	scope := append(append(append([]kernel.Object(nil), plan.chains...), plan.shared...), plan.own...)
	for _, exclusive := range []bool{false, true} {
		unlock, err := p.r.host.Lock(exclusive)
		if err != nil {
			return err
		}
		objs, err := p.r.kernel.List(ctx, kernel.Scope{Objects: scope})
		if err != nil {
			unlock()
			return err
		}
		s := newSeen(objs)
		if plan, err = p.settle(plan, s); err != nil {
			unlock()
			return err
		}
		shared := append(tables(s.missing(plan.chains)), s.missing(plan.shared)...)
		if !exclusive && len(shared) > 0 {
			unlock()
			continue
		}
		err = p.apply(ctx, plan, s, shared)
		unlock()
		return err
	}
	panic("unreachable: the exclusive pass returns")
}

// settle names who publishes a port already. Where that is the container itself, on another network, the plan goes on
// without it: runtimes ask for the same ports on every network of a container, and the first of them has it.
func (p *ports) settle(plan portPlan, s *seen) (portPlan, error) {
	id := p.r.ident()
	for _, o := range plan.own {
		e := o.(*kernel.Element)
		have, ok := s.byKey[e.Key()].(*kernel.Element)
		if !ok || id.marked(have.Comment) || len(e.Set.Data) < 2 {
			continue
		}
		if !id.sameContainer(have.Comment) {
			return plan, errorf(CodeConfig, "runtimeConfig.portMappings: %s is published already by %s; want a port that is free", describe(e), markNames(have.Comment))
		}
		if p.elsewhere == nil {
			p.elsewhere = map[string]bool{}
		}
		p.elsewhere[e.Set.Name+e.Item] = true
	}
	if p.elsewhere == nil {
		return plan, nil
	}
	return p.plan()
}

func (p *ports) apply(ctx context.Context, plan portPlan, s *seen, shared []kernel.Object) error {
	var stale []kernel.Change
	for _, o := range plan.own {
		// An element of an address that another container had before, and whose DEL is late, makes way.
		if have, ok := s.byKey[o.Key()].(*kernel.Element); ok && (have.Comment != markOf(o) || !o.Holds(have)) {
			stale = append(stale, kernel.Change{Op: kernel.Delete, Old: have})
		}
	}
	if err := errors.Join(applyAll(ctx, p.r.kernel, stale)...); err != nil {
		return err
	}
	err := reconcile.Apply(ctx, p.r.kernel, append(shared, plan.own...), nil)
	if err == nil {
		return nil
	}
	back := s.undo(append(append([]kernel.Object(nil), plan.own...), shared...))
	return errors.Join(append([]error{err}, applyAll(context.WithoutCancel(ctx), p.r.kernel, back)...)...)
}

// del needs neither the namespace nor the ports nor prevResult: what is the attachment's is marked so. Where the interface
// is a veth of ours, the DEL of the plugin that made it comes next and takes the ports along: who ends after deleting
// elements waits until the kernel has let go of them, some 10 ms, and while it deletes a link that wait costs nothing.
func (portmap) del(ctx context.Context, r *request) error {
	id := r.ident()
	if len(r.prev.addrs()) > 0 { // by these the other finds that there are ports
		objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.Link{Name: id.veth()}}})
		if err != nil {
			return err
		}
		if l := newSeen(objs).link(id.veth()); l != nil && l.Type == kernel.Veth && id.marked(l.Alias) {
			return nil
		}
	}
	p, _ := loadPorts(r) // what is wrong with the configuration must not keep the ports
	var scope kernel.Scope
	addrs := r.prev.addrs()
	for _, a := range addrs {
		scope.Objects = append(scope.Objects, element(pickSet(a, snat4, snat6), a.String(), "", ""))
		if p == nil {
			continue
		}
		for _, m := range p.mappings {
			if e := m.element(a, ""); e != nil {
				scope.Objects = append(scope.Objects, e)
				if len(p.when(a)) > 0 {
					scope.Objects = append(scope.Objects, whenElement(e, ""))
				}
			}
		}
		if link := id.veth(); a.Is4() {
			scope.Objects = append(scope.Objects, element(localnet, link, "", ""))
		}
	}
	if len(addrs) == 0 {
		scope = kernel.Scope{Objects: []kernel.Object{table()}, Mark: id.key()}
	}
	found, missing, err := marked(ctx, r, scope)
	if err == nil && missing {
		// More was published than this configuration tells.
		found, _, err = marked(ctx, r, kernel.Scope{Objects: []kernel.Object{table()}, Mark: id.key()})
	}
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return dropRelics(ctx, r.kernel, id.referencePorts(addrs))
	}
	return errors.Join(applyAll(ctx, r.kernel, found)...)
}

// marked gives the removal of the attachment's elements that published ports among a listing. missing says that there
// are more ports than it has.
func marked(ctx context.Context, r *request, scope kernel.Scope) (found []kernel.Change, missing bool, err error) {
	objs, err := r.kernel.List(ctx, scope)
	if err != nil {
		return nil, false, err
	}
	id, ports, want := r.ident(), 0, 0
	for _, o := range objs {
		e, ok := o.(*kernel.Element)
		if !ok || !id.marked(e.Comment) {
			continue
		}
		switch e.Set.Name {
		case port4.Name, port6.Name, host4.Name, host6.Name, when4.Name, when6.Name, whenhost4.Name, whenhost6.Name:
			ports++
		case snat4.Name, snat6.Name:
			n := count(e.Comment)
			missing = missing || n < 0
			want += max(n, 0)
		case localnet.Name:
		default:
			continue // ipMasq's: the other plugin's
		}
		found = append(found, kernel.Change{Op: kernel.Delete, Old: withFlush(e)})
	}
	return found, missing || ports < want, nil
}

func (portmap) check(ctx context.Context, r *request) error {
	p, err := loadPorts(r)
	if err != nil {
		return err
	}
	if err := r.needPrev(); err != nil || len(p.mappings) == 0 {
		return err
	}
	plan, err := p.plan()
	if err != nil {
		return err
	}
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: plan.own})
	if err != nil {
		return err
	}
	if plan, err = p.settle(plan, newSeen(objs)); err == nil {
		err = differs(ctx, r.kernel, append(append(plan.chains, plan.shared...), plan.own...))
	}
	if err == nil {
		return nil
	}
	// What the reference plugin made is no element of ours.
	theirs, lerr := r.kernel.List(ctx, kernel.Scope{Objects: r.ident().referencePorts(r.prev.addrs())})
	if lerr == nil && len(theirs) > 0 {
		return nil
	}
	return errors.Join(err, lerr)
}

func (portmap) gc(ctx context.Context, r *request) error {
	valid, err := r.valid()
	if err != nil {
		return err
	}
	return collect(ctx, r, valid)
}

func (portmap) status(_ context.Context, r *request) error {
	_, err := loadPorts(r)
	return err
}
