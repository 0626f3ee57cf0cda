package kerneltest

import (
	"github.com/seine-net/seine/internal/kernel"
)

// lifecycle takes one object from nothing to nothing, by every way that a change can come about.
type lifecycle struct {
	name string
	// needs are what the object hangs on.
	needs []kernel.Object
	// object is what is made, changed what it is changed into; nil where there is nothing to change.
	object, changed kernel.Object
	// free objects hang on nothing: without needs they can be made all the same.
	free bool
	// byHand says that the object can be removed by hand.
	byHand bool
	// prepare runs first.
	prepare func(*suite)
}

func (l lifecycle) run(s *suite) {
	if l.prepare != nil {
		l.prepare(s)
	}
	o := l.object
	if !l.free {
		s.is(s.create(o), kernel.ErrAbsent, "create without what it hangs on: "+o.String())
	}
	s.absent(o)
	s.ok(s.delete(o), "delete what never was")
	if len(l.needs) > 0 {
		s.make(l.needs...)
	}
	s.absent(o)
	s.ok(s.delete(o), "delete what is absent")

	s.make(o)
	s.ok(s.create(o), "create again")
	s.holds(o)
	s.ours(append([]kernel.Object{o}, l.needs...)...)
	if l.changed != nil {
		l.change(s)
	}
	if l.byHand {
		s.h.Remove(s, o)
		s.absent(o)
		s.ok(s.delete(o), "delete what was removed by hand")
		s.make(o)
	}
	s.ok(s.delete(o), "delete")
	s.absent(o)
	s.ok(s.delete(o), "delete again")
	s.ours(l.needs...)
	s.make(o)
	s.unmake(append([]kernel.Object{o}, l.needs...)...)
	s.ours()
}

// change changes the object there and back.
func (l lifecycle) change(s *suite) {
	s.is(s.create(l.changed), kernel.ErrExists, "create with other properties: "+l.changed.String())
	s.holds(l.object)
	for _, w := range [][2]kernel.Object{{l.object, l.changed}, {l.changed, l.object}} {
		diff := kernel.Diff(w[1:], []kernel.Object{s.get(w[0])})
		if len(diff) != 1 || diff[0].Op != kernel.Update {
			s.Fatalf("the difference of %s to %s is %v, want one update", w[0], w[1], diff)
		}
		s.ok(s.apply(diff...)[0], diff[0].String())
		s.holds(w[1])
		if l.object.Holds(s.get(w[1])) != (w[1] == l.object) {
			s.Fatalf("after %s it can't be told what holds", diff[0])
		}
		s.ok(s.update(w[0], w[1]), "update again")
		s.holds(w[1])
	}
}

func lifecycles() []lifecycle {
	up := func(name string) kernel.Object { return &kernel.LinkUp{Link: name} }
	addr := func(p string) *kernel.Addr { return &kernel.Addr{Link: "sn-a", Prefix: pfx(p)} }
	br := bridge("sn-a")
	pair := veth("sv-a", "", "sv-b")
	lone := *pair
	pair.Master, pair.Port = br.Name, &kernel.Port{}
	tbl := table()
	return append(nftLifecycles(tbl), []lifecycle{
		{name: "bridge", object: br, free: true, byHand: true,
			changed: with(br, func(l *kernel.Link) { l.MTU, l.MAC, l.Alias = 1400, "02:00:00:00:0b:02", alias+"2" })},
		{name: "bridge in a group", object: with(br, func(l *kernel.Link) { l.Group = 1 << 30 }), free: true,
			changed: with(br, func(l *kernel.Link) { l.Group = 1<<30 + 1 })},
		{name: "promiscuous bridge", object: with(br, func(l *kernel.Link) { l.Promisc = true }), free: true},
		{name: "veth", object: &lone, free: true, byHand: true, changed: with(&lone, func(l *kernel.Link) {
			l.MTU, l.MAC, l.Group = 1400, "02:00:00:00:0c:02", 7
			l.Peer = &kernel.Peer{Name: "sv-b", MTU: 1300, MAC: "02:00:00:00:0d:02", Alias: alias}
		})},
		{name: "veth on a bridge", needs: []kernel.Object{br}, object: pair, byHand: true,
			changed: with(pair, func(l *kernel.Link) { l.Port = &kernel.Port{Hairpin: true, Isolated: true} })},
		{name: "tap", object: tap("sv-a"), free: true, byHand: true,
			changed: with(tap("sv-a"), func(l *kernel.Link) { l.MTU, l.MAC, l.Group = 1300, "02:00:00:00:0e:02", 7 })},
		{name: "tap on a bridge", needs: []kernel.Object{br}, byHand: true,
			object: with(tap("sv-a"), func(l *kernel.Link) {
				l.Master, l.Port, l.Access = br.Name, &kernel.Port{}, &kernel.Access{Owner: id(1000), Group: id(0), MultiQueue: true}
			}),
			changed: with(tap("sv-a"), func(l *kernel.Link) { l.Master, l.Port = br.Name, &kernel.Port{Hairpin: true} })},
		{name: "up", needs: []kernel.Object{br}, object: up("sn-a"), byHand: true},
		{name: "tbf", needs: []kernel.Object{br}, byHand: true,
			object:  &kernel.Qdisc{Link: "sn-a", Type: "tbf", Parent: "root", Rate: 1250000, Burst: 15000, Limit: 30000},
			changed: &kernel.Qdisc{Link: "sn-a", Type: "tbf", Parent: "root", Rate: 333333, Burst: 31999, Limit: 64001}},
		{name: "ingress", needs: []kernel.Object{br}, byHand: true, object: &kernel.Qdisc{Link: "sn-a", Type: "ingress"}},
		{name: "tbf with a burst of an hour", needs: []kernel.Object{br}, byHand: true,
			object:  &kernel.Qdisc{Link: "sn-a", Type: "tbf", Parent: "root", Rate: 125000, Burst: 4294967294, Limit: 4294967295},
			changed: &kernel.Qdisc{Link: "sn-a", Type: "tbf", Parent: "root", Rate: 125000, Burst: 268435455, Limit: 268438580}},
		{name: "ifb", object: ifb("sn-i"), free: true, byHand: true,
			changed: with(ifb("sn-i"), func(l *kernel.Link) { l.MTU, l.Alias = 1400, alias+"2" })},
		{name: "redirect", byHand: true,
			needs:   []kernel.Object{br, ifb("sn-i"), ifb("sn-j"), &kernel.Qdisc{Link: "sn-a", Type: "ingress"}},
			object:  &kernel.Redirect{Link: "sn-a", To: "sn-i"},
			changed: &kernel.Redirect{Link: "sn-a", To: "sn-j"}},
		{name: "clsact", needs: []kernel.Object{br}, byHand: true, object: &kernel.Qdisc{Link: "sn-a", Type: "clsact"}},
		{name: "IPv4 address", needs: []kernel.Object{br}, byHand: true, object: addr("10.1.0.1/24")},
		{name: "IPv4 host address", needs: []kernel.Object{br}, byHand: true, object: addr("10.1.0.1/32")},
		{name: "IPv6 address", needs: []kernel.Object{br}, byHand: true, object: addr("fd00:1::1/64")},
		{name: "IPv6 link-local address", needs: []kernel.Object{br}, byHand: true, object: addr("fe80::1/64")},
		{name: "IPv4 rule", free: true, byHand: true, object: &kernel.Rule{Priority: 100, From: pfx("10.1.0.0/24"), Table: 100}},
		{name: "IPv4 rule with everything", free: true, byHand: true, object: &kernel.Rule{Priority: 101, To: pfx("10.2.0.0/16"),
			From: pfx("10.1.0.7/32"), Mark: 0x10, Mask: 0xff, IIF: "sn-a", Table: 4000}},
		{name: "IPv6 rule", free: true, byHand: true, object: &kernel.Rule{V6: true, Priority: 100, From: pfx("fd00:1::/64"), Table: 100}},
		{name: "IPv4 route", needs: []kernel.Object{br, up("sn-a"), addr("10.1.0.1/24")}, byHand: true,
			object: &kernel.Route{Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.9"), Link: "sn-a"},
			changed: &kernel.Route{Dst: pfx("10.9.0.0/24"), Via: ip("10.1.0.8"), Link: "sn-a", Src: ip("10.1.0.1"),
				MTU: 1400}},
		{name: "IPv6 route", needs: []kernel.Object{br, up("sn-a"), addr("fd00:1::1/64")}, byHand: true,
			object: &kernel.Route{Dst: pfx("fd00:9::/64"), Via: ip("fd00:1::9"), Link: "sn-a", Metric: 1024},
			changed: &kernel.Route{Dst: pfx("fd00:9::/64"), Via: ip("fd00:1::8"), Link: "sn-a", Metric: 1024,
				Src: ip("fd00:1::1"), MTU: 1400}},
		{name: "IPv4 default route", needs: []kernel.Object{br, up("sn-a"), addr("10.1.0.1/24")}, byHand: true,
			object:  &kernel.Route{Dst: pfx("0.0.0.0/0"), Via: ip("10.1.0.9"), Link: "sn-a", Metric: 3},
			changed: &kernel.Route{Dst: pfx("0.0.0.0/0"), Via: ip("10.1.0.8"), Link: "sn-a", Metric: 3}},
		{name: "IPv6 default route", needs: []kernel.Object{br, up("sn-a"), addr("fd00:1::1/64")}, byHand: true,
			object:  &kernel.Route{Dst: pfx("::/0"), Via: ip("fd00:1::9"), Link: "sn-a", Metric: 1027},
			changed: &kernel.Route{Dst: pfx("::/0"), Via: ip("fd00:1::8"), Link: "sn-a", Metric: 1027}},
		{name: "IPv4 link route", needs: []kernel.Object{br, up("sn-a")}, byHand: true,
			object:  &kernel.Route{Dst: pfx("10.1.0.2/32"), Link: "sn-a", Scope: kernel.ScopeLink, MTU: 1300},
			changed: &kernel.Route{Dst: pfx("10.1.0.2/32"), Link: "sn-a", Scope: kernel.ScopeLink, MTU: 1400}},
		{name: "IPv6 link route", needs: []kernel.Object{br, up("sn-a")}, byHand: true,
			object: &kernel.Route{Dst: pfx("fd00:1::2/128"), Link: "sn-a", Metric: 1024},
			// From a route without a gateway to one with: two sorts of routes to the IPv6 code.
			changed: &kernel.Route{Dst: pfx("fd00:1::2/128"), Via: ip("fe80::9"), Link: "sn-a", Metric: 1024}},
		// Linux takes no gateway for one as long as the namespace has no IPv4 address at all.
		{name: "IPv4 on-link route", needs: []kernel.Object{br, up("sn-a"), addr("10.1.0.1/24")}, byHand: true,
			object: &kernel.Route{Dst: pfx("10.9.0.0/24"), Via: ip("10.7.0.1"), Link: "sn-a", OnLink: true, Table: 100}},
		{name: "IPv6 on-link route", needs: []kernel.Object{br, up("sn-a")}, byHand: true,
			object: &kernel.Route{Dst: pfx("fd00:9::/64"), Via: ip("fd77::1"), Link: "sn-a", OnLink: true, Table: 100, Metric: 1024}},
		{name: "IPv4 neighbour", needs: []kernel.Object{br, up("sn-a"), addr("10.1.0.1/24")}, byHand: true,
			object:  &kernel.Neigh{Link: "sn-a", Addr: ip("10.1.0.9"), MAC: "02:00:00:00:00:09"},
			changed: &kernel.Neigh{Link: "sn-a", Addr: ip("10.1.0.9"), MAC: "02:00:00:00:00:08"}},
		{name: "IPv6 neighbour", needs: []kernel.Object{br, up("sn-a"), addr("fd00:1::1/64")}, byHand: true,
			object:  &kernel.Neigh{Link: "sn-a", Addr: ip("fd00:1::9"), MAC: "02:00:00:00:00:09"},
			changed: &kernel.Neigh{Link: "sn-a", Addr: ip("fd00:1::9"), MAC: "02:00:00:00:00:08"}},
		{name: "forwarding entry", needs: []kernel.Object{br, pair}, byHand: true, object: &kernel.FDB{Link: "sv-a", MAC: "02:00:00:00:00:0a"}},
	}...)
}

func nftLifecycles(tbl *kernel.Table) []lifecycle {
	needs := []kernel.Object{tbl}
	otherRules := with(tbl, func(t *kernel.Table) {
		last := len(t.Chains) - 1
		t.Chains = append([]*kernel.Chain(nil), t.Chains...)
		t.Chains[last] = with(t.Chains[last], func(c *kernel.Chain) { c.Rules = c.Rules[:1] })
	})
	chains := func(s *suite) {
		s.h.AddForeignChain(s, "ip", "others", "FORWARD", "ct state established accept", "drop")
	}
	return []lifecycle{
		{name: "table", object: tbl, changed: otherRules, free: true, byHand: true},
		{name: "chain", needs: needs, object: chain("extra", "ct state established,related accept", "drop"),
			changed: chain("extra", "drop"), byHand: true},
		{name: "base chain", needs: needs, byHand: true,
			object: &kernel.TableChain{Table: tableName, Chain: kernel.Chain{Name: "extra", Type: "filter", Hook: "input", Priority: 5,
				Rules: []string{"meta iifgroup @nets drop"}}},
			changed: &kernel.TableChain{Table: tableName, Chain: kernel.Chain{Name: "extra", Type: "filter", Hook: "input", Priority: 5}}},
		{name: "accept", object: &kernel.Accept{Family: "ip", Table: "others", Chain: "FORWARD", Rule: `iifname "sn-*"`}, free: true,
			prepare: chains, byHand: true},
		{name: "element of a group set", needs: needs, object: element(nets, "1073741825", ""), byHand: true},
		{name: "element of an IPv4 set", needs: needs, object: element(one4, "10.1.0.1", ""), byHand: true},
		{name: "element of an IPv6 set", needs: needs, object: element(one6, "fd00:1::1", ""), byHand: true},
		{name: "element of an IPv4 interval set", needs: needs, object: element(sub4, "10.1.0.0/24", ""), byHand: true},
		{name: "element of an IPv6 interval set", needs: needs, object: element(sub6, "fd00:1::/64", ""), byHand: true},
		{name: "element of a port range set", needs: needs, object: element(rng, "8000-8079", ""), byHand: true},
		{name: "element of an IPv4 map", needs: needs, object: element(port4, "tcp . 8080", "10.1.0.2 . 80"),
			changed: element(port4, "tcp . 8080", "10.1.0.3 . 81"), byHand: true},
		{name: "element of an IPv6 map", needs: needs, object: element(port6, "udp . fd00:1::1 . 8080", "fd00:1::2 . 80"),
			changed: element(port6, "udp . fd00:1::1 . 8080", "fd00:1::3 . 81"), byHand: true},
		{name: "element of a set of VXLAN networks", needs: needs, object: element(vnis, "4789 . 16777215", ""), byHand: false},
		{name: "element of a verdict map of prefixes", needs: needs, object: element(to4, "10.1.0.0/24", "drop"),
			changed: element(to4, "10.1.0.0/24", "accept"), byHand: true},
		{name: "element of a verdict map", needs: needs, object: element(go4, "10.1.0.1", "goto publish"),
			changed: element(go4, "10.1.0.1", "drop"), byHand: true},
	}
}
