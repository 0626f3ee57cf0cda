package kerneltest

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

func testForeignChain(s *suite) {
	for _, family := range []string{"ip", "ip6", "inet"} {
		accept := func(chain string) *kernel.Accept {
			return &kernel.Accept{Family: family, Table: "others", Chain: chain, Rule: `iifname "sn-*"`}
		}
		s.is(s.create(accept("nope")), kernel.ErrAbsent, "accept in no chain")
		s.ok(s.delete(accept("nope")), "delete from no chain")

		chains := map[string][]string{
			"rejecting": {"ct state established accept", "reject"},
			"dropping":  {"ct state established accept", "counter drop"},
			"open":      {"ct state established accept", "tcp dport 22 drop"},
			"empty":     nil,
		}
		for _, name := range []string{"rejecting", "dropping", "open", "empty"} {
			s.h.AddForeignChain(s, family, "others", name, chains[name]...)
		}
		s.ours()
		for _, name := range []string{"rejecting", "dropping", "open", "empty"} {
			before := s.h.ForeignRules(s, family, "others", name)
			in, out := accept(name), with(accept(name), func(a *kernel.Accept) { a.Rule = `oifname "sn-*"` })
			s.make(in, out)
			s.ok(s.create(in), "create again")
			s.ours(in, out)
			rules := s.h.ForeignRules(s, family, "others", name)
			if len(rules) != len(before)+2 {
				s.Fatalf("chain %q: two accepts make %q of %q", name, rules, before)
			}
			where := slices.IndexFunc(rules, func(r string) bool { return strings.Contains(r, "sn-*") })
			if last := name == "open" || name == "empty"; last != (where == len(rules)-2) {
				s.Errorf("chain %q: the accepts stand at %d: %q", name, where, rules)
			}
			s.ok(s.delete(in), "delete")
			s.absent(in)
			s.holds(out)
			s.ok(s.delete(in), "delete again")
			s.ok(s.delete(out), "delete")
			if rules := s.h.ForeignRules(s, family, "others", name); !slices.Equal(rules, before) {
				s.Errorf("chain %q: has %q afterwards, was %q", name, rules, before)
			}
		}
		s.ours()
	}
}

// testWholeSet: an element without an item stands for all of its set, and of no other, or for those with a comment that
// begins as its own.
func testWholeSet(s *suite) {
	t := table()
	all := []kernel.Object{element(one4, "", ""), element(sub4, "", ""), element(port4, "", "")}
	list := func(comment string) []kernel.Object {
		s.Helper()
		for _, o := range all {
			o.(*kernel.Element).Comment = comment
		}
		objs, err := s.k.List(s.Context(), kernel.Scope{Objects: all})
		if err != nil {
			s.Fatal(err)
		}
		return objs
	}
	if got := list(""); len(got) != 0 {
		s.Errorf("of no table: %v", got)
	}
	in := []kernel.Object{element(one4, "10.1.0.1", ""), element(one4, "10.1.0.2", ""), element(sub4, "10.1.0.0/24", ""),
		element(port4, "tcp . 8080", "10.1.0.2 . 80")}
	in[1].(*kernel.Element).Comment = "seine:b"
	s.make(append(in, t, element(one6, "fd00:1::1", ""))...)
	got := list("")
	if len(got) != len(in) {
		s.Errorf("got %v", got)
	}
	for _, w := range in {
		if !slices.ContainsFunc(got, func(o kernel.Object) bool { return o.Key() == w.Key() && w.Holds(o) }) {
			s.Errorf("%s is not among %v", w, got)
		}
	}
	if got := list("seine:"); len(got) != 1 || got[0].Key() != in[1].Key() {
		s.Errorf("with a comment that begins with seine: got %v, want %s", got, in[1])
	}
}

// testFirstAccept: an accept that stands before what others have, behind the chain that packets are to pass first.
func testFirstAccept(s *suite) {
	for _, family := range []string{"ip", "ip6", "inet"} {
		accept := func(chain string) *kernel.Accept {
			return &kernel.Accept{Family: family, Table: "others", Chain: chain, Rule: "meta mark and 0x1000 == 0x1000", First: true,
				Via: "ADMIN", Mark: "other:"}
		}
		rules := func(chain string) []string {
			var out []string
			for _, r := range s.h.ForeignRules(s, family, "others", chain) {
				switch {
				case strings.Contains(r, "mark") && strings.Contains(r, "accept"):
					r = "accept"
				case strings.Contains(r, "jump"):
					r = r[strings.Index(r, "jump"):]
					r, _, _ = strings.Cut(r, " comment")
				}
				out = append(out, r)
			}
			return out
		}
		want := func(what, chain string, want ...string) {
			s.Helper()
			if got := rules(chain); !slices.Equal(got, want) {
				s.Errorf("%s: %s: chain %q has %q, want %q", family, what, chain, got, want)
			}
		}
		s.h.AddForeignChain(s, family, "others", "one", "drop")
		one := accept("one")
		s.make(one)
		want("no such chain", "one", "accept", "drop")
		s.ours() // it carries somebody else's mark
		s.h.AddForeignTarget(s, family, "others", "ADMIN")
		s.absent(one)
		s.make(one)
		s.make(one)
		want("then there is one", "one", "jump ADMIN", "accept", "drop")
		s.h.AddForeignTarget(s, family, "others", "MORE")
		more := with(one, func(a *kernel.Accept) { a.Via = "MORE" })
		s.absent(more)
		s.make(more)
		s.holds(one, more)
		want("two", "one", "jump MORE", "jump ADMIN", "accept", "drop")
		s.ok(s.delete(more), "delete")
		want("one way less", "one", "jump ADMIN", "drop")
		s.make(more)
		s.ok(s.delete(with(one, func(a *kernel.Accept) { a.Via = "" })), "delete")
		want("deleted", "one", "drop")

		s.h.AddForeignTarget(s, family, "others", "CNI", "jump ADMIN", "tcp dport 22 accept")
		s.h.AddForeignChain(s, family, "others", "two", "tcp dport 23 accept", "jump CNI", "tcp dport 24 drop")
		two := accept("two")
		s.make(two)
		want("by another's chain", "two", "tcp dport 23 accept", "jump CNI", "accept", "tcp dport 24 drop")
		s.ok(s.delete(two), "delete")
		s.absent(two)
		want("deleted", "two", "tcp dport 23 accept", "jump CNI", "tcp dport 24 drop")
	}
}

// testOthersAccept: rules that others made for an address go, and no others.
func testOthersAccept(s *suite) {
	for family, a := range map[string][2]string{"ip": {"ip saddr 10.1.0.2", "ip daddr 10.1.0.2"}, "ip6": {"ip6 saddr fd00:1::2", "ip6 daddr fd00:1::2"}} {
		s.h.AddForeignChain(s, family, "others", "f", a[0]+" accept", a[1]+" ct state established,related accept", a[0]+"2 accept", a[1]+" drop")
		for _, rule := range a {
			o := &kernel.Accept{Family: family, Table: "others", Chain: "f", Rule: rule, Others: true}
			s.holds(o)
			s.is(s.create(o), kernel.ErrUnsupported, "make")
			s.ok(s.delete(o), "delete")
			s.absent(o)
			s.ok(s.delete(o), "delete again")
		}
		if got := s.h.ForeignRules(s, family, "others", "f"); !slices.Equal(got, []string{a[0] + "2 accept", a[1] + " drop"}) {
			s.Errorf("left are %q", got)
		}
	}
}

func testTableKeeps(s *suite) {
	t := table()
	c := chain("extra", "drop")
	elems := []kernel.Object{element(sub4, "10.1.0.0/24", ""), element(sub6, "fd00:1::/64", ""),
		element(port4, "tcp . 8080", "10.1.0.2 . 80"), element(go4, "10.1.0.1", "jump extra")}
	s.make(append(elems, t, c)...)
	changed := with(t, func(t *kernel.Table) {
		t.Chains = append(slices.Clone(t.Chains), &kernel.Chain{Name: "input", Type: "filter", Hook: "input", Priority: 0,
			Rules: []string{"ct state established,related accept"}})
		t.Chains[2] = &kernel.Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: 10, Rules: []string{"meta oifgroup @nets drop"}}
	})
	s.is(s.create(changed), kernel.ErrExists, "create with other rules")
	s.ok(s.update(t, changed), "change the rules")
	s.holds(append(elems, changed, c)...)
	s.ok(s.update(changed, t), "change them back")
	s.holds(append(elems, t, c)...)
	s.ours(append(elems, t, c)...)
}

func testTableOtherSets(s *suite) {
	t := table()
	elems := []kernel.Object{element(sub4, "10.1.0.0/24", ""), element(port4, "tcp . 8080", "10.1.0.2 . 80"), chain("extra", "drop")}
	s.make(append(elems, t)...)
	more := &kernel.Set{Name: "more", Key: []kernel.Type{kernel.TypeIPv4}}
	changed := with(t, func(t *kernel.Table) { t.Sets = append(slices.Clone(t.Sets), more) })
	if t.Holds(s.get(t)) && changed.Holds(s.get(t)) {
		s.Fatal("a table with another set is no other table")
	}
	s.ok(s.update(t, changed), "change the sets")
	s.holds(append(elems, changed)...) // nothing is lost where a set comes to the others
	want := append(slices.Clone(elems), changed, element(more, "10.1.0.1", ""))
	s.settle(want, nil)
	s.holds(want...)
	s.ours(want...)
	s.settle(append(elems, t), nil)
	s.absent(element(more, "10.1.0.1", ""))
	s.ours(append(elems, t)...)
}

func testTableDrift(s *suite) {
	t := table()
	e := element(port4, "tcp . 8080", "10.1.0.2 . 80")
	s.make(t, e)
	s.h.AddRule(s, "", tableName, "forward", "tcp dport 22 accept")
	if t.Holds(s.get(t)) {
		s.Fatal("a rule that was added by hand is not seen")
	}
	s.settle([]kernel.Object{t, e}, nil)
	s.holds(t, e)
	s.h.Remove(s, t)
	s.absent(t, e)
	s.ours()
	s.ok(s.delete(e), "delete an element of no table")
	s.settle([]kernel.Object{t, e}, nil)
	s.holds(t, e)
	s.ok(s.delete(t), "delete the table")
	s.absent(t, e)
}

func testTableDependencies(s *suite) {
	t := table()
	for _, o := range []kernel.Object{chain("extra", "drop"), element(sub4, "10.1.0.0/24", "")} {
		s.is(s.create(o), kernel.ErrAbsent, "create in no table: "+o.String())
		s.ok(s.delete(o), "delete from no table")
		s.absent(o)
	}
	s.make(t)
	nope := &kernel.Set{Name: "nope", Key: []kernel.Type{kernel.TypeIPv4}}
	s.is(s.create(element(nope, "10.1.0.1", "")), kernel.ErrAbsent, "an element of no set")
	s.absent(element(nope, "10.1.0.1", ""))
	s.ok(s.delete(element(nope, "10.1.0.1", "")), "delete from no set")
	s.is(s.create(element(go4, "10.1.0.1", "jump nope")), kernel.ErrAbsent, "a jump to no chain")
	s.is(s.create(chain("extra", "jump nope")), kernel.ErrAbsent, "a rule that jumps to no chain")
	s.is(s.create(chain("extra", "ip saddr @nope drop")), kernel.ErrAbsent, "a rule that looks into no set")
	s.absent(chain("extra", "drop"), element(go4, "10.1.0.1", "jump nope"))
	for _, e := range []*kernel.Element{
		element(one4, "fd00::1", ""), element(one4, "10.1.0.0/24", ""), element(one4, "10.1.0.300", ""), element(one6, "10.1.0.1", ""),
		element(port4, "8080", "10.1.0.2 . 80"), element(port4, "tcp . 70000", "10.1.0.2 . 80"), element(port4, "tcp . 80", "10.1.0.2"),
		element(port4, "tcp . 80", ""), element(go4, "10.1.0.1", "perhaps"), element(rng, "90-80", ""), element(one4, "", ""),
	} {
		s.refused(s.create(e), e.String())
	}
	s.ours(t)
}

func testNftAtomic(s *suite) {
	t := table()
	taken := element(port4, "tcp . 8080", "10.1.0.9 . 80")
	s.make(t, taken)
	group := []kernel.Object{
		element(sub4, "10.1.0.0/24", ""), chain("extra", "drop"),
		element(port4, "tcp . 8080", "10.1.0.2 . 80"), // is in the way
		element(port4, "tcp . 8081", "10.1.0.2 . 81"),
	}
	var changes []kernel.Change
	for _, o := range group {
		changes = append(changes, kernel.Change{Op: kernel.Create, New: o})
	}
	errs := s.apply(changes...)
	s.is(errs[2], kernel.ErrExists, "the element that is in the way")
	have := s.list(kernel.Scope{Objects: group})
	for i, o := range group {
		a := have[o.Key()]
		if holds := a != nil && o.Holds(a); holds != (errs[i] == nil) {
			s.Errorf("%s: holds is %v, its error %v", o, holds, errs[i])
		}
	}
	s.holds(t, taken)
	// Whatever was taken back can be done by itself.
	s.make(group[0], group[1], group[3])
	s.ours(t, taken, group[0], group[1], group[3])

	// Within one Apply an item can change hands.
	other := element(port4, "tcp . 8080", "10.1.0.2 . 80")
	for i, err := range s.apply(kernel.Change{Op: kernel.Delete, Old: taken}, kernel.Change{Op: kernel.Create, New: other}) {
		s.ok(err, []string{"delete", "create"}[i])
	}
	s.holds(other)
	// And what is absent does not keep the rest from going.
	for _, err := range s.apply(
		kernel.Change{Op: kernel.Delete, Old: element(port4, "udp . 1", "10.1.0.2 . 1")},
		kernel.Change{Op: kernel.Delete, Old: other},
		kernel.Change{Op: kernel.Delete, Old: chain("nope", "drop")},
		kernel.Change{Op: kernel.Delete, Old: group[0]},
	) {
		s.ok(err, "delete")
	}
	s.absent(other, group[0])
}

func testElementConflict(s *suite) {
	t := table()
	one, two := element(port4, "tcp . 8080", "10.1.0.2 . 80"), element(port4, "tcp . 8080", "10.1.0.3 . 80")
	two.Comment = "somebody else"
	s.make(t, one)
	s.is(s.create(two), kernel.ErrExists, "one port for two")
	s.holds(one)
	got, _ := s.get(two).(*kernel.Element)
	if got == nil || got.Data != one.Data || got.Comment != one.Comment {
		s.Fatalf("the port is listed as %+v, want data %q and comment %q", got, one.Data, one.Comment)
	}
	// The same data of another owner is the same element.
	s.ok(s.create(with(one, func(e *kernel.Element) { e.Comment = "somebody else" })), "create with another comment")
	s.make(element(port4, "udp . 8080", "10.1.0.3 . 80"), element(port4, "sctp . 8080", "10.1.0.3 . 80"))
}

func testIntervals(s *suite) {
	s.make(table())
	s.make(element(sub4, "10.1.0.0/24", ""), element(sub6, "fd00:1::/64", ""), element(rng, "8000-8079", ""))
	for _, e := range []*kernel.Element{
		element(sub4, "10.1.0.0/25", ""), element(sub4, "10.1.0.128/25", ""), element(sub4, "10.1.0.64/26", ""),
		element(sub4, "10.1.0.0/16", ""), element(sub4, "10.0.0.0/8", ""), element(sub4, "10.1.0.7", ""),
		element(sub4, "10.1.0.250-10.1.1.5", ""),
		element(sub6, "fd00:1::/65", ""), element(sub6, "fd00:1::/48", ""), element(sub6, "fd00:1::7", ""),
		element(rng, "8079-8090", ""), element(rng, "7999-8000", ""), element(rng, "8040", ""),
	} {
		s.is(s.create(e), kernel.ErrExists, e.String())
		s.absent(e)
	}
	next := []kernel.Object{
		element(sub4, "10.1.1.0/24", ""), element(sub4, "10.0.255.255", ""), element(sub4, "10.2.0.1-10.2.0.9", ""),
		element(sub4, "0.0.0.0/8", ""), element(sub4, "255.255.255.0/24", ""),
		element(sub6, "fd00:1:0:1::/64", ""), element(sub6, "fd00:0:ffff:ffff:ffff:ffff:ffff:ffff", ""),
		element(rng, "8080", ""), element(rng, "7000-7999", ""), element(rng, "65000-65535", ""),
	}
	s.make(next...) // what only touches is beside it
	s.holds(element(sub4, "10.1.0.0/24", ""), element(sub6, "fd00:1::/64", ""), element(rng, "8000-8079", ""))
	s.unmake(next...)
	s.absent(next...)
	s.ok(s.delete(element(sub4, "10.1.0.0/24", "")), "delete")
	s.make(element(sub4, "10.1.0.0/25", ""), element(sub4, "10.1.0.128/25", ""))
}

func testVerdicts(s *suite) {
	t := table()
	c := chain("extra", "drop")
	e := element(go4, "10.1.0.1", "jump extra")
	s.make(t, c, e)
	s.refused(s.delete(c), "delete a chain that an element leads to")
	s.holds(c, e)
	s.make(chain("more", "jump extra"))
	s.ok(s.delete(e), "delete the element")
	s.refused(s.delete(c), "delete a chain that a rule leads to")
	s.unmake(chain("more", "jump extra"))
	s.ok(s.delete(c), "delete the chain")
	s.refused(s.create(element(go4, "10.1.0.1", "jump prerouting")), "a jump to a base chain")
	for _, v := range []string{"accept", "drop", "jump publish", "goto publish"} {
		e := element(go4, "10.1.0.1", v)
		s.make(e)
		s.ok(s.delete(e), "delete")
	}
	// One transaction can take away a chain and what leads to it.
	s.make(c, e)
	s.unmake(e, c)
	s.absent(e, c)
}

func testMark(s *suite) {
	t := table()
	mine, other := element(port4, "tcp . 8080", "10.1.0.2 . 80"), element(port4, "tcp . 8081", "10.1.0.3 . 80")
	mine.Comment, other.Comment = alias+"/a", alias+"/b"
	c := chain("extra", "drop")
	b1, b2 := bridge("sn-a"), bridge("sn-b")
	b1.Alias, b2.Alias = alias+"/a", alias+"/b"
	s.make(t, mine, other, c, b1, b2)
	found := s.list(kernel.Scope{Mark: alias + "/a", Objects: []kernel.Object{t}})
	for _, o := range []kernel.Object{t, mine, c, b1} {
		if found[o.Key()] == nil {
			s.Errorf("%s is not listed by its mark", o)
		}
		delete(found, o.Key())
	}
	for _, o := range found {
		s.Errorf("%s is listed by another's mark", o)
	}
	if found := s.list(kernel.Scope{Mark: alias + "/a"}); len(found) != 1 || found[b1.Key()] == nil {
		s.Errorf("without the table the mark gives %v", found)
	}
}

func testBridgeTable(s *suite) {
	guarded := &kernel.Set{Name: "guarded", Key: []kernel.Type{kernel.TypeIfname}}
	source := &kernel.Set{Name: "source", Key: []kernel.Type{kernel.TypeIfname, kernel.TypeEther}}
	t := &kernel.Table{Family: kernel.FamilyBridge, Name: tableName, Sets: []*kernel.Set{guarded, source}, Chains: []*kernel.Chain{
		{Name: "prerouting", Type: "filter", Hook: "prerouting", Priority: -300, Rules: []string{
			"iifname @guarded iifname . ether saddr != @source drop"}}}}
	in := func(set *kernel.Set, item string) *kernel.Element {
		return &kernel.Element{Family: kernel.FamilyBridge, Table: tableName, Set: set, Item: item, Comment: alias}
	}
	c := chain("extra", "drop")
	c.Family = kernel.FamilyBridge
	s.is(s.create(in(guarded, "sv-a")), kernel.ErrAbsent, "an element of no table")
	e := []kernel.Object{in(guarded, "sv-a"), in(source, "sv-a . 02:00:00:00:00:0a"), in(source, "a23456789012345 . 02:00:00:00:00:0b")}
	s.make(append(e, t, c)...)
	inet := table() // of one name, and another table
	s.make(inet)
	s.holds(t)
	s.ok(s.delete(inet), "delete the one of family inet")
	s.holds(append(e, t, c)...)
	found := s.list(kernel.Scope{Mark: alias, Objects: []kernel.Object{t}})
	for _, o := range append(e, t, c) {
		if found[o.Key()] == nil {
			s.Errorf("%s is not listed by its mark", o)
		}
	}
	more := with(t, func(t *kernel.Table) {
		t.Chains = []*kernel.Chain{with(t.Chains[0], func(c *kernel.Chain) { c.Rules = []string{"iifname @guarded drop"} })}
	})
	s.ok(s.update(t, more), "change the rules")
	s.holds(append(e, more, c)...)
	s.refused(s.create(&kernel.TableChain{Family: kernel.FamilyBridge, Table: tableName, Chain: kernel.Chain{Name: "more", Rules: []string{
		"ip saddr 10.1.0.0/24 drop"}}}), "a match of addresses in family bridge")
	s.make(inet)
	s.refused(s.create(chain("more", "iifname . ether saddr @source drop")), "a match of hardware addresses in family inet")
	s.unmake(e...)
	s.absent(e...)
	s.h.Remove(s, more)
	s.absent(t, c)
	s.ok(s.delete(t), "delete what was removed by hand")
	s.holds(inet)
}

func testStatelessTable(s *suite) {
	t := &kernel.Table{Name: "seine_kerneltest", Sets: []*kernel.Set{one4}}
	e := &kernel.Element{Table: t.Name, Set: one4, Item: "10.1.0.1", Comment: alias}
	s.make(t, e)
	all := s.list(kernel.Scope{All: true})
	for _, o := range all {
		s.Errorf("%s is listed as ours: whoever wants nothing would delete it", o)
	}
}

// testRelics: of what other programs have only that goes which is meant.
func testRelics(s *suite) {
	for _, f := range []struct{ family, word, a, b string }{
		{"ip", "ip", "10.1.0.2", "10.1.0.3"}, {"ip6", "ip6", "fd00:1::2", "fd00:1::3"}, {"inet", "ip6", "fd00:1::2", "fd00:1::3"},
	} {
		rules := func(chain string) string { return strings.Join(s.h.ForeignRules(s, f.family, "nat", chain), "\n") }
		relic := func(change func(*kernel.Relic)) *kernel.Relic {
			r := &kernel.Relic{Family: f.family, Table: "nat", In: []string{"TOP", "NONE"}}
			change(r)
			return r
		}
		chain := relic(func(r *kernel.Relic) { r.Chain = "CNI-1" })
		s.is(s.create(chain), kernel.ErrUnsupported, "create a relic")
		s.absent(chain)
		s.ok(s.delete(chain), "delete from no table")
		from := func(addr, chain string) string { return f.word + " saddr " + addr + " jump " + chain }
		s.h.AddForeignTarget(s, f.family, "nat", "CNI-1", f.word+" daddr "+f.a+" accept")
		s.h.AddForeignTarget(s, f.family, "nat", "CNI-12", "drop")
		s.h.AddForeignChain(s, f.family, "nat", "TOP", from(f.a, "CNI-1"), from(f.b, "CNI-1"), from(f.a, "CNI-12"),
			"tcp dport 1 accept comment \"c, more\"", f.word+" daddr "+f.b+" accept comment \"c, more\"", "tcp dport 2 accept comment \"c1\"")
		s.holds(chain)

		one := relic(func(r *kernel.Relic) { r.Chain, r.Addrs = "CNI-1", []netip.Addr{ip(f.a)} })
		s.ok(s.delete(one), "delete what leads there from one address")
		if got := rules("TOP"); strings.Contains(got, f.a+" jump CNI-1\n") || !strings.Contains(got, f.b+" jump CNI-1") {
			s.Errorf("%s: after the relic of one address there is\n%s", f.family, got)
		}
		s.absent(one)
		s.ok(s.delete(chain), "delete the chain")
		if got := rules("TOP"); strings.Contains(got, "CNI-1\n") || strings.Count(got, "\n") != 3 || rules("CNI-12") == "" {
			s.Errorf("%s: after the relic of a chain there is\n%s", f.family, got)
		}
		s.absent(chain)
		s.ok(s.delete(chain), "delete again")

		s.ok(s.delete(relic(func(r *kernel.Relic) { r.Comment = "c" })), "delete what has a comment that nothing has")
		s.ok(s.delete(relic(func(r *kernel.Relic) { r.Comment, r.Addrs = "c,*", []netip.Addr{ip(f.b)} })), "delete by comment and address")
		if got := rules("TOP"); strings.Count(got, "comment") != 2 {
			s.Errorf("%s: after the relic of a comment there is\n%s", f.family, got)
		}
		s.ok(s.delete(relic(func(r *kernel.Relic) { r.Comment = "c1" })), "delete by the whole comment")
		if got := rules("TOP"); strings.Contains(got, "c1") || !strings.Contains(got, "c, more") {
			s.Errorf("%s: after the relic of another comment there is\n%s", f.family, got)
		}
	}
	s.ours()
}
