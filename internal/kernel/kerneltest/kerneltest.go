// Package kerneltest is the conformance suite of kernel.Kernel: what a kernel that Seine works on does, and what a
// backend makes of it. It runs on the kernel in memory (internal/kernel/fake) and on the real one
// (internal/kernel/linux); where the two differ, the fake is wrong.
//
// A backend calls Run with a Rig: the kernel, and hands that change things past it as other programs and people do.
// Tools are such hands for the real kernel.
package kerneltest

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/kernel"
)

// Rig is a kernel under test, fresh for each case: its own namespace holds lo and nothing else.
type Rig struct {
	Kernel kernel.Kernel
	Hands  Hands
}

// Hands change and look at the kernel past kernel.Kernel. They fail the test where they can't do what they are asked.
// What they make goes with the test.
type Hands interface {
	// AddNamespace makes an empty network namespace and gives its path.
	AddNamespace(t testing.TB) string
	// RemoveNamespace ends one. The kernel may take its time with what was in it.
	RemoveNamespace(t testing.TB, path string)
	// Remove removes an object that exists: a link, address, route, nexthop, rule, neighbour, FDB entry, qdisc, table,
	// chain or element is deleted, a link that is up (LinkUp) is set down.
	Remove(t testing.TB, o kernel.Object)
	// Move moves a link of the machine's to another namespace, "" for its own, down, and gives it a name there.
	Move(t testing.TB, link, to, name string)
	// AddForeign makes a Link (bridge or veth) without an alias, a LinkUp, Addr, Route, Nexthop, Rule or Neigh that is not ours.
	AddForeign(t testing.TB, o kernel.Object)
	// AddForeignChain makes a forward chain with rules in nft syntax in a table of somebody else's.
	AddForeignChain(t testing.TB, family, table, chain string, rules ...string)
	// AddForeignTarget makes a chain beside it that nothing leads to yet.
	AddForeignTarget(t testing.TB, family, table, chain string, rules ...string)
	// ForeignRules gives the rules of such a chain in their order, each as nft lists it.
	ForeignRules(t testing.TB, family, table, chain string) []string
	// AddRule adds a rule to a chain of a table of ours.
	AddRule(t testing.TB, ns, table, chain, rule string)
	// Occupy binds a port of the machine ("tcp", "udp") as another program does. The error says that it is taken, the
	// function lets go.
	Occupy(t testing.TB, protocol string, at netip.AddrPort) (func(), error)
	// Usable reports whether a program in a namespace can bind the address now.
	Usable(t testing.TB, ns string, ip netip.Addr) bool
	// Settle waits until what the kernel does by itself after a change (link-local addresses, carrier) is done.
	Settle()
}

// Run runs the suite. newRig is called for each case.
func Run(t *testing.T, newRig func(t *testing.T) Rig) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			c.run(&suite{T: t, k: r.Kernel, h: r.Hands})
		})
	}
}

type testCase struct {
	name string
	run  func(*suite)
}

func cases() []testCase {
	all := []testCase{
		{"fresh", testFresh},
		{"goes on past failures", testGoesOn},
		{"context", testContext},
		{"namespace gone", testNamespaceGone},
		{"namespace takes links along", testNamespaceTakesLinks},
		{"veth pair", testVethPair},
		{"veth peer name taken", testPeerTaken},
		{"veth in one namespace is one object", testVethInOneNamespace},
		{"veth end that somebody takes", testHandoff},
		{"link needs its master", testMasterAbsent},
		{"bridge releases its ports", testBridgeGone},
		{"port flags", testPortFlags},
		{"link leaves and joins bridges", testMasterChange},
		{"link takes everything along", testLinkTakesAll},
		{"tap", testTap},
		{"tun", testTun},
		{"tap with an SELinux context", testTapContext},
		{"moved link", testHome},
		{"moved link refused", testHomeRefused},
		{"moved link finds its name taken", testHomeTaken},
		{"all links", testAllLinks},
		{"replacing a link", testReplace},
		{"sysctl", testSysctl},
		{"sysctl of a link", testLinkSysctl},
		{"redirect", testRedirect},
		{"attributes of a link", testAttrs},
		{"attributes: master", testAttrsMaster},
		{"vrf", testVRF},
		{"everything of a namespace", testEvery},
		{"down", testDown},
		{"down keeps addresses where asked", testKeepAddrs},
		{"address usable at once", testUsableAtOnce},
		{"address takes routes along", testAddrTakesRoutes},
		{"secondary addresses", testSecondary},
		{"one address with two prefixes", testTwoPrefixes},
		{"all addresses of a link", testAddrWildcard},
		{"address without route", testNoRoute},
		{"lo", testLoopback},
		{"route dependencies", testRouteDependencies},
		{"gateway by a host route", testGatewayByHostRoute},
		{"routes that differ in metric and table", testRouteIdentity},
		{"routes to nowhere", testNowhere},
		{"foreign links", testForeignLink},
		{"foreign addresses", testForeignAddr},
		{"foreign routes", testForeignRoute},
		{"routes of plugins", testPluginRoute},
		{"foreign neighbours", testForeignNeigh},
		{"foreign rules", testForeignRule},
		{"foreign chain", testForeignChain},
		{"relics", testRelics},
		{"first accept", testFirstAccept},
		{"whole set", testWholeSet},
		{"others' accept", testOthersAccept},
		{"fdb of one bridge", testFDB},
		{"hold", testHold},
		{"holds that overlap", testHoldOverlap},
		{"table keeps elements", testTableKeeps},
		{"table with other sets", testTableOtherSets},
		{"table drift", testTableDrift},
		{"table dependencies", testTableDependencies},
		{"nft all or nothing", testNftAtomic},
		{"element conflict", testElementConflict},
		{"intervals", testIntervals},
		{"verdicts", testVerdicts},
		{"mark", testMark},
		{"table of family bridge", testBridgeTable},
		{"tables of programs without a state", testStatelessTable},
		{"bridge that filters by VLAN", testVLANFiltering},
		{"VLANs of a port", testPortVLANs},
		{"VLANs of a bridge", testBridgeVLANs},
		{"whole endpoint", testEndpoint},
		{"random sets", func(s *suite) { Random(s.T, Rig{s.k, s.h}, 1, 15) }},
	}
	all = append(append(all, parentCases()...), tunnelCases()...)
	for _, l := range append(lifecycles(), tunnelLifecycles()...) {
		all = append(all, testCase{"lifecycle of " + l.name, l.run})
	}
	return all
}

// suite is one case at work.
type suite struct {
	*testing.T
	k kernel.Kernel
	h Hands
}

func (s *suite) apply(changes ...kernel.Change) []error {
	s.Helper()
	errs := s.k.Apply(s.Context(), changes)
	if len(errs) != len(changes) {
		s.Fatalf("Apply of %d changes gave %d entries", len(changes), len(errs))
	}
	return errs
}

func (s *suite) create(o kernel.Object) error {
	s.Helper()
	return s.apply(kernel.Change{Op: kernel.Create, New: o})[0]
}

func (s *suite) update(old, o kernel.Object) error {
	s.Helper()
	return s.apply(kernel.Change{Op: kernel.Update, Old: old, New: o})[0]
}

func (s *suite) delete(o kernel.Object) error {
	s.Helper()
	return s.apply(kernel.Change{Op: kernel.Delete, Old: o})[0]
}

// make creates objects in the order that SortChanges gives, and wants all of them to hold.
func (s *suite) make(objs ...kernel.Object) {
	s.Helper()
	changes := make([]kernel.Change, len(objs))
	for i, o := range objs {
		changes[i] = kernel.Change{Op: kernel.Create, New: o}
	}
	kernel.SortChanges(changes)
	for i, err := range s.apply(changes...) {
		s.ok(err, changes[i].String())
	}
	s.holds(objs...)
}

// unmake deletes objects in the order that SortChanges gives.
func (s *suite) unmake(objs ...kernel.Object) {
	s.Helper()
	changes := make([]kernel.Change, len(objs))
	for i, o := range objs {
		changes[i] = kernel.Change{Op: kernel.Delete, Old: o}
	}
	kernel.SortChanges(changes)
	for i, err := range s.apply(changes...) {
		s.ok(err, changes[i].String())
	}
}

func (s *suite) ok(err error, what string) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

func (s *suite) is(err, want error, what string) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("%s: got error %v, want %q", what, err, want)
	}
}

// refused wants an error, whichever.
func (s *suite) refused(err error, what string) {
	s.Helper()
	if err == nil {
		s.Fatalf("%s: was accepted", what)
	}
}

func (s *suite) list(scope kernel.Scope) map[kernel.Key]kernel.Object {
	s.Helper()
	objs, err := s.k.List(s.Context(), scope)
	if err != nil {
		s.Fatalf("List: %v", err)
	}
	m := map[kernel.Key]kernel.Object{}
	for _, o := range objs {
		if m[o.Key()] != nil {
			s.Fatalf("List gave %s twice", o.Key())
		}
		m[o.Key()] = o
	}
	return m
}

// get gives what is listed under the key of o; nil for nothing.
func (s *suite) get(o kernel.Object) kernel.Object {
	s.Helper()
	return s.list(kernel.Scope{Objects: []kernel.Object{o}})[o.Key()]
}

func (s *suite) holds(objs ...kernel.Object) {
	s.Helper()
	have := s.list(kernel.Scope{Objects: objs})
	for _, o := range objs {
		switch a := have[o.Key()]; {
		case a == nil:
			s.Fatalf("%s: is not listed", o)
		case !o.Holds(a):
			s.Fatalf("%s: is listed as %s", o, a)
		}
	}
}

func (s *suite) absent(objs ...kernel.Object) {
	s.Helper()
	have := s.list(kernel.Scope{Objects: objs})
	for _, o := range objs {
		if a := have[o.Key()]; a != nil {
			s.Fatalf("%s: is still listed as %s", o, a)
		}
	}
}

// ours wants the listing of everything that is ours to be just these objects.
func (s *suite) ours(objs ...kernel.Object) {
	s.Helper()
	all := s.list(kernel.Scope{All: true, Objects: objs})
	for _, o := range objs {
		if a := all[o.Key()]; a == nil {
			s.Errorf("%s: is not listed as ours", o)
		}
		delete(all, o.Key())
	}
	for _, o := range all {
		s.Errorf("%s: is listed as ours", o)
	}
	if s.Failed() {
		s.FailNow()
	}
}

// settle makes the kernel hold want and nothing of drop, in at most four passes.
func (s *suite) settle(want, drop []kernel.Object) {
	s.Helper()
	scope := append(append([]kernel.Object(nil), want...), drop...)
	for range 4 {
		have, err := s.k.List(s.Context(), kernel.Scope{Objects: scope, All: true})
		s.ok(err, "List")
		changes := kernel.Diff(want, have)
		if len(changes) == 0 {
			return
		}
		for i, err := range s.apply(changes...) {
			if err != nil {
				s.Logf("%s: %v", changes[i], err)
			}
		}
	}
	s.Fatal("it still differs after 4 passes")
}

// eventually waits for what a kernel does in its own time.
func (s *suite) eventually(what string, f func() bool) {
	s.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("after 10 s still not: %s", what)
		}
	}
}

func testFresh(s *suite) {
	s.ours()
	s.absent(&kernel.LinkUp{Link: "lo"})
	ns := s.h.AddNamespace(s)
	s.absent(&kernel.LinkUp{NS: ns, Link: "lo"})
	s.absent(everyKind("", ns)...)
	if errs := s.k.Apply(s.Context(), nil); len(errs) != 0 {
		s.Fatalf("Apply of nothing gave %v", errs)
	}
}

func testGoesOn(s *suite) {
	b1, b2 := bridge("sn-a"), bridge("sn-b")
	errs := s.apply(
		kernel.Change{Op: kernel.Create, New: b1},
		kernel.Change{Op: kernel.Create, New: &kernel.Addr{Link: "nope", Prefix: pfx("10.1.0.1/24")}},
		kernel.Change{Op: kernel.Create, New: &kernel.LinkUp{Link: "nope"}},
		kernel.Change{Op: kernel.Create, New: b2},
	)
	s.ok(errs[0], "first")
	s.is(errs[1], kernel.ErrAbsent, "address on no link")
	s.is(errs[2], kernel.ErrAbsent, "no link up")
	s.ok(errs[3], "last")
	s.holds(b1, b2)
}

func testContext(s *suite) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	b := bridge("sn-a")
	if errs := s.k.Apply(ctx, []kernel.Change{{Op: kernel.Create, New: b}}); len(errs) != 1 || !errors.Is(errs[0], context.Canceled) {
		s.Fatalf("Apply with a cancelled context gave %v", errs)
	}
	if _, err := s.k.List(ctx, kernel.Scope{All: true}); !errors.Is(err, context.Canceled) {
		s.Fatalf("List with a cancelled context gave %v", err)
	}
	s.absent(b)
}

func testNamespaceGone(s *suite) {
	ns := s.h.AddNamespace(s)
	gone := s.h.AddNamespace(s)
	s.h.RemoveNamespace(s, gone)
	for _, path := range []string{gone, "/run/netns/seine-kerneltest-nope"} {
		for _, o := range everyKind(path, path) {
			if o.Key().NS == "" {
				continue
			}
			s.is(s.create(o), kernel.ErrNamespaceGone, "create "+o.String())
			s.is(s.update(o, o), kernel.ErrNamespaceGone, "update "+o.String())
			s.ok(s.delete(o), "delete "+o.String())
			s.absent(o)
		}
		l := veth("sv-a", path, "eth0")
		s.is(s.create(l), kernel.ErrNamespaceGone, "a veth into it")
		s.absent(l)
		l = veth("sv-a", ns, "eth0")
		l.NS = path
		s.is(s.create(l), kernel.ErrNamespaceGone, "a veth from it")
		s.absent(&kernel.Link{NS: ns, Name: "eth0", Type: kernel.Veth})
	}
}

func testNamespaceTakesLinks(s *suite) {
	ns := s.h.AddNamespace(s)
	b := bridge("sn-a")
	l := veth("sv-a", ns, "eth0")
	l.Master = b.Name
	up := &kernel.LinkUp{Link: l.Name}
	s.make(b, l, up)
	s.h.RemoveNamespace(s, ns)
	s.eventually("the veth's other end is gone", func() bool { return s.get(&kernel.Link{Name: l.Name, Type: kernel.Veth}) == nil })
	s.absent(l, up)
	s.unmake(l, up)
	s.ours(b)
}
