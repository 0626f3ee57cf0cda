package kerneltest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

// Random goes through steps random sets of wanted objects. Each time the kernel was damaged before, and has to hold
// exactly the wanted set after at most four passes of List, Diff and Apply. It returns the last set.
//
// The sets are networks with endpoints: bridges, veths that change their namespace, name and bridge, addresses,
// routes, elements that go from one owner to another, a table whose rules and sets change.
func Random(t *testing.T, r Rig, seed uint64, steps int) []kernel.Object {
	s := &suite{T: t, k: r.Kernel, h: r.Hands}
	w := &world{rnd: rand.New(rand.NewPCG(seed, 0))}
	for range 3 {
		w.spaces = append(w.spaces, r.Hands.AddNamespace(t))
	}
	var last []kernel.Object
	for step := range steps {
		want := w.wants()
		s.pursue(want, last, fmt.Sprintf("seed %d step %d", seed, step))
		if step+1 < steps {
			s.damage(w.rnd, want)
		}
		last = want
	}
	return last
}

type world struct {
	rnd    *rand.Rand
	spaces []string
}

func (w *world) chance(percent int) bool { return w.rnd.IntN(100) < percent }

// wants makes a random set of objects that can exist together.
func (w *world) wants() []kernel.Object {
	var objs []kernel.Object
	if w.chance(5) {
		return nil
	}
	objs = append(objs, w.table())
	for n := 1; n <= 2; n++ {
		if !w.chance(80) {
			continue
		}
		objs = append(objs, w.vary(network(n))...)
		for i := 2; i <= 4; i++ {
			if w.chance(60) {
				objs = append(objs, w.endpoint(n, i)...)
			}
		}
		if w.chance(50) {
			objs = append(objs, w.extras(n)...)
		}
	}
	w.rnd.Shuffle(len(objs), func(i, j int) { objs[i], objs[j] = objs[j], objs[i] })
	return distinct(objs)
}

// distinct drops what is there twice (lo is wanted up by every endpoint of a namespace).
func distinct(objs []kernel.Object) []kernel.Object {
	seen := map[kernel.Key]bool{}
	return slices.DeleteFunc(objs, func(o kernel.Object) bool {
		twice := seen[o.Key()]
		seen[o.Key()] = true
		return twice
	})
}

func (w *world) table() kernel.Object {
	t := table()
	if w.chance(20) {
		t.Chains[2] = &kernel.Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: 0, Rules: []string{"meta oifgroup @nets drop"}}
	}
	if w.chance(10) {
		t.Sets = append(t.Sets, &kernel.Set{Name: "more", Key: []kernel.Type{kernel.TypeIPv6}})
	}
	return t
}

// vary gives links another MTU and hardware address now and then.
func (w *world) vary(objs []kernel.Object) []kernel.Object {
	for i, o := range objs {
		if l, ok := o.(*kernel.Link); ok && w.chance(30) {
			l = with(l, func(l *kernel.Link) { l.MTU, l.MAC = 1400, l.MAC[:3]+"01"+l.MAC[5:] })
			if l.Peer != nil {
				l.Peer = with(l.Peer, func(p *kernel.Peer) { p.MTU = 1400 })
				l.Port = &kernel.Port{Hairpin: w.chance(50), Isolated: w.chance(50)}
			}
			objs[i] = l
		}
	}
	return objs
}

// endpoint puts an endpoint into a random namespace under one of two names.
func (w *world) endpoint(n, i int) []kernel.Object {
	ns := w.spaces[w.rnd.IntN(len(w.spaces))]
	dev := fmt.Sprintf("eth%d", 10*n+i)
	if w.chance(30) {
		dev = fmt.Sprintf("net%d", 10*n+i)
	}
	objs := w.vary(endpoint(n, i, ns, dev))
	if w.chance(30) { // the port leads to another address than it did
		objs[9] = element(port4, objs[9].(*kernel.Element).Item, fmt.Sprintf("10.%d.0.99 . 81", n))
	}
	if w.chance(30) {
		objs = append(objs, &kernel.Qdisc{NS: ns, Link: dev, Type: "tbf", Parent: "root", Rate: uint64(125000 * (1 + w.rnd.IntN(3))), Burst: 15000, Limit: 30000})
	}
	return objs
}

// extras adds the kinds that plain endpoints do not have.
func (w *world) extras(n int) []kernel.Object {
	name := fmt.Sprintf("sn-%d", n)
	gw4, gw6 := fmt.Sprintf("10.%d.0.%d", n, 50+w.rnd.IntN(2)), fmt.Sprintf("fd00:%d::%d", n, 50+w.rnd.IntN(2))
	return []kernel.Object{
		&kernel.Route{Dst: pfx(fmt.Sprintf("10.%d.0.0/24", 100+n)), Via: ip(gw4), Link: name},
		&kernel.Route{Dst: pfx(fmt.Sprintf("fd00:%d::/64", 100+n)), Via: ip(gw6), Link: name, Metric: 1024},
		// Through a gateway that a route of ours leads to.
		&kernel.Route{Dst: pfx(fmt.Sprintf("10.200.%d.1/32", n)), Link: name, Scope: kernel.ScopeLink},
		&kernel.Route{Dst: pfx(fmt.Sprintf("10.%d.0.0/24", 150+n)), Via: ip(fmt.Sprintf("10.200.%d.1", n)), Link: name},
		&kernel.Rule{Priority: 100 + n, From: pfx(fmt.Sprintf("10.%d.0.0/24", n)), Table: 100 + w.rnd.IntN(2)},
		&kernel.Rule{V6: true, Priority: 100 + n, From: pfx(fmt.Sprintf("fd00:%d::/64", n)), Table: 100},
		&kernel.Neigh{Link: name, Addr: ip(gw4), MAC: fmt.Sprintf("02:00:00:00:00:%02x", w.rnd.IntN(3))},
		&kernel.Neigh{Link: name, Addr: ip(gw6), MAC: fmt.Sprintf("02:00:00:00:00:%02x", w.rnd.IntN(3))},
		chain(fmt.Sprintf("extra%d", n), "ct state established,related accept"),
		element(go4, fmt.Sprintf("10.%d.0.1", n), []string{"drop", fmt.Sprintf("jump extra%d", n)}[w.rnd.IntN(2)]),
		element(rng, fmt.Sprintf("%d-%d", 1000*n+w.rnd.IntN(10), 1000*n+20), ""),
	}
}

// pursue makes the kernel hold want, and nothing else of what was wanted last or is ours.
func (s *suite) pursue(want, last []kernel.Object, when string) {
	s.Helper()
	wanted := map[kernel.Key]bool{}
	for _, o := range want {
		wanted[o.Key()] = true
	}
	scope := slices.Clone(want)
	for _, o := range last {
		if wanted[o.Key()] || kernel.Stays(o) {
			continue
		}
		if o.Key().Kind == kernel.KindSysctl { // has a value at all times, so no listing ends the want of it
			s.ok(s.delete(o), when+": "+o.String())
			continue
		}
		scope = append(scope, o)
	}
	var errs []error
	var changes []kernel.Change
	for range 4 {
		have, err := s.k.List(s.Context(), kernel.Scope{Objects: scope, All: true})
		s.ok(err, when)
		if changes = kernel.Diff(want, have); len(changes) == 0 {
			return
		}
		errs = s.apply(changes...)
	}
	for i, c := range changes {
		s.Logf("%s: %v", c, errs[i])
	}
	s.Fatalf("%s: still differs after 4 passes", when)
}

// damage removes some objects by hand.
func (s *suite) damage(rnd *rand.Rand, objs []kernel.Object) {
	for range rnd.IntN(4) {
		if len(objs) == 0 {
			return
		}
		o := objs[rnd.IntN(len(objs))]
		switch o.Key().Kind {
		case kernel.KindSysctl, kernel.KindHold, kernel.KindAccept:
			continue
		case kernel.KindChain: // the kernel keeps one that is in use
			continue
		}
		if s.get(o) != nil {
			s.h.Remove(s, o)
		}
	}
}
