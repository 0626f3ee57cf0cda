package table

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// seal signs with the origin's name: forged is what does not carry the right one.
type seal string

func (s seal) Sign(m []byte) []byte { return []byte(string(s) + ":" + fmt.Sprint(digest(m))) }
func (s seal) Verify(origin string, m, sig []byte) bool {
	return string(sig) == origin+":"+fmt.Sprint(digest(m))
}

func newTable(t testing.TB, name string, epoch uint64, networks ...string) *Table {
	t.Helper()
	x, err := New(name, epoch, seal(name))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x.Subscribe(networks); err != nil {
		t.Fatal(err)
	}
	return x
}

func put(t testing.TB, x *Table, network, key, data string) *Chunk {
	t.Helper()
	c, err := x.Put(network, key, []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func apply(t testing.TB, x *Table, c *Chunk) Result {
	t.Helper()
	r, err := x.Apply(recode(t, c))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// recode sends a chunk over the wire.
func recode(t testing.TB, c *Chunk) *Chunk {
	t.Helper()
	m, err := Decode((&Message{Type: Deltas, From: "x", Chunks: []Chunk{*c}}).Encode(nil))
	if err != nil {
		t.Fatal(err)
	}
	return &m.Chunks[0]
}

// sync lets b learn and tell, as two nodes do it over the wire, until neither has anything to say.
func sync(t testing.TB, a, b *Table, limit int) {
	t.Helper()
	for range 1000 {
		if !exchange(t, a, b, limit) && !exchange(t, b, a, limit) {
			return
		}
	}
	t.Fatalf("%s and %s have something to tell each other for ever", a.name, b.name)
}

func exchange(t testing.TB, a, b *Table, limit int) bool {
	any := false
	for _, name := range append(a.Networks(), "") {
		n, _, ok := b.Differ(a.Root(name))
		if !ok {
			continue
		}
		mask := b.Mask(n, a.Sums(n))
		d := a.Compare(n, mask, b.Heads(n, mask))
		for _, o := range d.Doubts {
			d.Wants = append(d.Wants, a.Doubt(n, o))
		}
		any = give(t, b, a, n, d.Wants, limit) || any
		any = give(t, a, b, n, d.Offers, limit) || any
	}
	return any
}

func give(t testing.TB, from, to *Table, network string, wants []Want, limit int) bool {
	any := false
	for _, w := range wants {
		if c := from.Select(network, w, limit); c != nil {
			r := apply(t, to, c)
			any = any || r.Fresh || r.Epoch != 0
		}
	}
	return any
}

func has(m map[string]struct{}, k string) bool {
	_, ok := m[k]
	return ok
}

func content(x *Table, network string) []string {
	var all []string
	for _, r := range x.Records(network) {
		all = append(all, r.Origin+"/"+r.Key+"="+string(r.Data))
	}
	return all
}

func expect(t testing.TB, x *Table, network string, want ...string) {
	t.Helper()
	if got := content(x, network); !slices.Equal(got, want) {
		t.Errorf("%s has in %q %q, want %q", x.name, network, got, want)
	}
}

func TestPutDelete(t *testing.T) {
	a, b := newTable(t, "a", 1, "net"), newTable(t, "b", 1, "net")
	sync(t, a, b, 1000)
	one := put(t, a, "net", "k", "1")
	if put(t, a, "net", "k", "1") != nil {
		t.Error("the same data again is told")
	}
	two := put(t, a, "net", "k", "2")
	del := a.Delete("net", "k")
	if a.Delete("net", "k") != nil {
		t.Error("a second delete is told")
	}
	if del.Records[0].Deletes != two.Records[0].Version.Count {
		t.Errorf("delete names version %d, want %d", del.Records[0].Deletes, two.Records[0].Version.Count)
	}
	// Reordered: the delete comes first, and no earlier write brings the record back.
	if r := apply(t, b, del); !r.Gap || !r.Fresh || len(r.Changes) != 0 {
		t.Errorf("a delete that came early: %+v, want a gap and no change", r)
	}
	if r := apply(t, b, one); len(r.Changes) != 0 {
		t.Errorf("a write after its delete: %+v, want no change", r)
	}
	if r := apply(t, b, two); r.Gap || len(r.Changes) != 0 {
		t.Errorf("the hole is filled: %+v, want no gap", r)
	}
	if a.Root("net") != b.Root("net") {
		t.Error("the roots differ after all was told")
	}
	for _, c := range []*Chunk{one, two, del} {
		if r := apply(t, b, c); r.Fresh || r.Gap {
			t.Errorf("a duplicate: %+v, want nothing", r)
		}
	}
}

func TestChanges(t *testing.T) {
	a, b := newTable(t, "a", 1, "net"), newTable(t, "b", 1, "net")
	sync(t, a, b, 1000)
	if r := apply(t, b, put(t, a, "net", "k", "1")); len(r.Changes) != 1 || r.Changes[0].Kind != Put || string(r.Changes[0].Record.Data) != "1" {
		t.Errorf("put: %+v", r)
	}
	r := apply(t, b, a.Delete("net", "k"))
	if len(r.Changes) != 1 || r.Changes[0].Kind != Delete || string(r.Changes[0].Record.Data) != "1" {
		t.Errorf("delete: %+v, want the record that was deleted", r)
	}
}

func TestForgottenDelete(t *testing.T) {
	a, b, c := newTable(t, "a", 1, "net"), newTable(t, "b", 1, "net"), newTable(t, "c", 1, "net")
	for i := range 20 {
		put(t, a, "net", fmt.Sprint("k", i), "x")
	}
	sync(t, a, b, 200)
	sync(t, a, c, 200)
	old := recode(t, a.Select("net", Want{Origin: "a"}, 1<<20))
	// c is away while a record goes, and while all forget that it ever was.
	a.Delete("net", "k3")
	put(t, a, "net", "k4", "y")
	sync(t, a, b, 200)
	a.Compact()
	a.Compact()
	b.Compact()
	b.Compact()
	if a.nets["net"].streams["a"].main.entries["k3"] != nil {
		t.Fatal("the tombstone is still there")
	}
	sync(t, c, b, 200)
	sync(t, a, c, 200)
	if len(content(c, "net")) != 19 || !slices.Equal(content(a, "net"), content(c, "net")) {
		t.Errorf("c has %q", content(c, "net"))
	}
	// A replay of what was true once changes nothing.
	if r := apply(t, c, old); r.Fresh {
		t.Errorf("replay: %+v", r)
	}
}

func TestRestart(t *testing.T) {
	a, b := newTable(t, "a", 1, "net", "other"), newTable(t, "b", 7, "net", "other")
	put(t, a, "net", "stays", "1")
	put(t, a, "net", "goes", "1")
	put(t, a, "other", "goes", "1")
	sync(t, a, b, 1000)
	old := recode(t, a.Select("net", Want{Origin: "a"}, 1<<20))
	a = newTable(t, "a", 2, "net")
	put(t, a, "net", "stays", "1")
	put(t, a, "net", "new", "1")
	a.Put("", "addr", []byte("x"))
	m := mirror{}
	m.load(b)
	if r := apply(t, b, a.Select("net", Want{Origin: "a"}, 1000)); !r.Gap || r.Fresh {
		t.Errorf("a network's records before those that say who takes part: %+v, want a gap", r)
	}
	give(t, a, b, "", []Want{{Origin: "a"}}, 1000)
	// The new epoch comes piece by piece, and takes the old one's place in one step.
	for from := (Want{Origin: "a"}); ; {
		c := a.Select("net", from, 1)
		if c == nil {
			break
		}
		r := apply(t, b, c)
		m.apply(t, r.Changes)
		from = Want{"a", c.Epoch, c.to(), c.to()}
		if _, ok := m["net/a/stays"]; !ok {
			t.Fatal("a record that both epochs have was gone for a moment")
		}
	}
	expect(t, b, "net", "a/new=1", "a/stays=1")
	expect(t, b, "other") // it said so before
	if r := apply(t, b, old); r.Fresh {
		t.Error("a replay of an earlier epoch was taken")
	}
	if got := b.Participants("other"); len(got) != 0 {
		t.Errorf("participants of other: %q, want none", got)
	}
}

func TestLostDisk(t *testing.T) {
	a, b := newTable(t, "a", 9, "net"), newTable(t, "b", 1, "net")
	put(t, a, "net", "old", "1")
	sync(t, a, b, 1000)
	a = newTable(t, "a", 1, "net")
	put(t, a, "net", "new", "1")
	sync(t, b, a, 1000)
	if a.Epoch() <= 9 {
		t.Errorf("epoch of a is %d, want a later one than 9", a.Epoch())
	}
	expect(t, b, "net", "a/new=1")
	expect(t, a, "net", "a/new=1")
}

func TestLeaveNetworkAndComeBack(t *testing.T) {
	a, b, c := newTable(t, "a", 1, "net"), newTable(t, "b", 1, "net"), newTable(t, "c", 1, "net")
	put(t, a, "net", "old", "1")
	put(t, b, "net", "b", "1")
	sync(t, a, b, 1000)
	sync(t, a, c, 1000)
	_, gone, err := a.Subscribe(nil)
	if err != nil || len(gone) != 1 || gone[0].Record.Origin != "b" {
		t.Errorf("records that go with the network: %+v, %v", gone, err)
	}
	if _, err := a.Put("net", "k", nil); err == nil {
		t.Error("a record of a network without this node was taken")
	}
	sync(t, a, b, 1000)
	expect(t, b, "net", "b/b=1")
	if p := b.Participants("net"); len(p) != 1 || !has(p, "c") {
		t.Errorf("participants that b knows: %q, want c", p)
	}
	a.Subscribe([]string{"net"})
	put(t, a, "net", "new", "1")
	// c missed both, and gets first the network's records, then those that say who takes part.
	for _, n := range []string{"net", ""} {
		d := a.Compare(n, All, c.Heads(n, All))
		give(t, a, c, n, d.Offers, 1)
	}
	sync(t, a, b, 1)
	sync(t, b, c, 1)
	expect(t, b, "net", "a/new=1", "b/b=1")
	expect(t, c, "net", "a/new=1", "b/b=1")
	if p := c.Participants("net"); len(p) != 2 {
		t.Errorf("participants that c knows: %q", p)
	}
	tell, _ := a.Leave()
	for _, x := range tell {
		apply(t, b, x)
	}
	expect(t, b, "net", "b/b=1")
	if !b.Left("a") || b.Left("c") {
		t.Error("b does not know that a left")
	}
}

func TestForget(t *testing.T) {
	a, b, c := newTable(t, "a", 5, "net"), newTable(t, "b", 1, "net"), newTable(t, "c", 1, "net")
	put(t, a, "net", "k", "1")
	sync(t, a, b, 1000)
	sync(t, a, c, 1000)
	if gone := b.Forget("a"); len(gone) != 1 || gone[0].Kind != Delete {
		t.Errorf("forgotten: %+v", gone)
	}
	for _, n := range []string{"", "net"} {
		if d := b.Compare(n, All, c.Heads(n, All)); len(d.Wants) > 0 {
			b.Compare(n, All, c.Heads(n, All))
			for _, w := range d.Wants {
				if w.Origin == "a" {
					t.Error("it asks for what it has forgotten")
				}
			}
		}
	}
	give(t, c, b, "net", []Want{{Origin: "a"}}, 1000)
	expect(t, b, "net")
	b.Revive("a")
	sync(t, b, c, 1000)
	expect(t, b, "net", "a/k=1")
}

func TestForgeries(t *testing.T) {
	a, b := newTable(t, "a", 5, "net"), newTable(t, "b", 1, "net")
	put(t, a, "net", "k", "1")
	sync(t, a, b, 1000)
	good := put(t, a, "net", "l", "2")
	forge := func(what string, f func(*Chunk)) {
		c := recode(t, good)
		f(c)
		before := content(b, "net")
		r, err := b.Apply(c)
		if r.Fresh || r.Epoch != 0 || !slices.Equal(before, content(b, "net")) {
			t.Errorf("%s was taken: %+v, %v", what, r, err)
		}
	}
	forge("other data", func(c *Chunk) { c.Records[0].Data = []byte("3") })
	forge("another key", func(c *Chunk) { c.Records[0].Key = "m" })
	forge("a higher count", func(c *Chunk) { c.Records[0].Version.Count += 1000 })
	forge("a delete", func(c *Chunk) { c.Records[0].Deletes, c.Records[0].Data = 1, nil })
	forge("another epoch", func(c *Chunk) { c.Epoch, c.From, c.Records[0].Version.Epoch = 6, 0, 6 })
	forge("an empty epoch", func(c *Chunk) { c.Epoch, c.From, c.Records = 6, 0, nil })
	forge("a record of another", func(c *Chunk) { c.Records[0].Origin = "c" })
	forge("a record in another network", func(c *Chunk) { c.Network = "" })
	forge("an epoch of its own", func(c *Chunk) {
		c.Origin, c.Epoch, c.Records[0].Origin, c.Records[0].Version.Epoch = "b", 99, "b", 99
	})
	if r := apply(t, b, good); !r.Fresh {
		t.Error("the original was not taken")
	}
	bad := recode(t, good)
	bad.Records[0].Data, bad.Records[0].Version.Count = nil, 50
	if _, err := b.Apply(bad); !errors.Is(err, ErrForged) {
		t.Errorf("a forged record gives %v, want ErrForged", err)
	}
}

// A member that leaves something out of what it passes on is found out by the digest, and the origin puts it right.
func TestOmission(t *testing.T) {
	a, b := newTable(t, "a", 1, "net"), newTable(t, "b", 1, "net")
	sync(t, a, b, 1000)
	one, two := put(t, a, "net", "k", "1"), put(t, a, "net", "l", "2")
	two.From = one.From
	apply(t, b, two)
	expect(t, b, "net", "a/l=2")
	sync(t, b, a, 1000)
	expect(t, b, "net", "a/k=1", "a/l=2")
}

func TestLimits(t *testing.T) {
	a := newTable(t, "a", 1, "net")
	for _, bad := range []struct{ network, key, data string }{
		{"net", "", ""}, {"net", "\x00k", ""}, {"net", string(make([]byte, MaxKey+1)), ""}, {"no", "k", ""}, {"net", "k", string(make([]byte, MaxData+1))},
	} {
		if c, err := a.Put(bad.network, bad.key, []byte(bad.data)); err == nil {
			t.Errorf("Put(%q, %.10q, %d bytes) gives %+v", bad.network, bad.key, len(bad.data), c)
		}
	}
	if _, _, err := a.Subscribe([]string{""}); err == nil {
		t.Error("a network without a name was subscribed")
	}
	for _, bad := range []struct {
		name  string
		epoch uint64
	}{{"", 1}, {"a\x00", 1}, {"a", 0}, {"a", 1 << 62}} {
		if _, err := New(bad.name, bad.epoch, nil); err == nil {
			t.Errorf("New(%q, %d) gives no error", bad.name, bad.epoch)
		}
	}
}

// mirror is what a consumer has that believes every change.
type mirror map[string]string

func id(r Record) string { return r.Network + "/" + r.Origin + "/" + r.Key }

func (m mirror) load(x *Table) {
	clear(m)
	for _, n := range append(x.Networks(), "") {
		for _, r := range x.Records(n) {
			if r.Origin != x.name {
				m[id(r)] = string(r.Data)
			}
		}
	}
}

func (m mirror) apply(t testing.TB, all []Change) {
	t.Helper()
	for _, c := range all {
		k := id(c.Record)
		if c.Kind == Put {
			m[k] = string(c.Record.Data)
			continue
		}
		if _, ok := m[k]; !ok {
			t.Errorf("delete of %q, which was not there", k)
		}
		delete(m, k)
	}
}

// member is a node of the random test.
type member struct {
	*Table
	mirror mirror
	truth  map[string]string          // network/key → data: what it wants to be known
	nets   []string                   // that it takes part in
	seen   map[string]map[string]bool // network/origin/key → data that was replaced or deleted: it must not come back
	lost   []string                   // nodes that lost their disk: of these it may
}

type world struct {
	t     *testing.T
	rnd   *rand.Rand
	nodes []*member
	wire  []letter
	side  []int // of a cut
	serial,
	epoch int
}

type letter struct {
	to int
	c  *Chunk
}

func (w *world) send(from int, chunks ...*Chunk) {
	for _, c := range chunks {
		if c == nil {
			continue
		}
		for to := range w.nodes {
			if to != from && w.side[to] == w.side[from] {
				for n := w.rnd.IntN(3); n > 0; n-- { // lost, once or twice
					w.wire = append(w.wire, letter{to, recode(w.t, c)})
				}
			}
		}
	}
}

func (w *world) took(i int, r Result) {
	n := w.nodes[i]
	for _, c := range r.Changes {
		k := id(c.Record)
		if slices.Contains(n.lost, c.Record.Origin) {
			continue
		}
		if n.seen[k] == nil {
			n.seen[k] = map[string]bool{}
		}
		if c.Kind == Put {
			if n.seen[k][string(c.Record.Data)] {
				w.t.Errorf("%s: %q is %q again, which it was before", n.name, k, c.Record.Data)
			}
			if old, ok := n.mirror[k]; ok {
				n.seen[k][old] = true
			}
		} else {
			n.seen[k][string(c.Record.Data)] = true
		}
	}
	n.mirror.apply(w.t, r.Changes)
}

func (w *world) deliver(k int) {
	l := w.wire[k]
	w.wire = slices.Delete(w.wire, k, k+1)
	r, err := w.nodes[l.to].Apply(l.c)
	if err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	w.took(l.to, r)
	if r.Fresh && w.rnd.IntN(2) == 0 {
		w.send(l.to, l.c)
	}
}

func (w *world) meet(a, b, limit int) bool {
	any := false
	x, y := w.nodes[a], w.nodes[b]
	for _, n := range append(x.Networks(), "") {
		name, _, ok := y.Differ(x.Root(n))
		if !ok {
			continue
		}
		mask := y.Mask(name, x.Sums(name))
		d := x.Compare(name, mask, y.Heads(name, mask))
		for _, o := range d.Doubts {
			want := x.Doubt(name, o)
			if i := slices.IndexFunc(w.nodes, func(m *member) bool { return m.name == o }); w.side[i] == w.side[a] {
				any = w.hand(i, a, name, want, limit) || any
			}
		}
		for _, want := range d.Wants {
			any = w.hand(b, a, name, want, limit) || any
		}
		for _, want := range d.Offers {
			any = w.hand(a, b, name, want, limit) || any
		}
	}
	return any
}

func (w *world) hand(from, to int, name string, want Want, limit int) bool {
	c := w.nodes[from].Select(name, want, limit)
	if c == nil {
		return false
	}
	r, err := w.nodes[to].Apply(recode(w.t, c))
	if err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	w.took(to, r)
	return r.Fresh || r.Epoch != 0
}

func (w *world) start(i int, lost bool) {
	n := w.nodes[i]
	w.epoch++
	epoch := max(uint64(w.epoch), n.Epoch()+1)
	if lost {
		epoch -= 1000 // earlier than others, but never used
		// Who saw it and then hears of the epoch before the loss goes back to that, until the node knows and outdoes it.
		for _, o := range w.nodes {
			maps.DeleteFunc(o.seen, func(k string, _ map[string]bool) bool { return strings.Contains(k, "/"+n.name+"/") })
			o.lost = append(o.lost, n.name)
		}
	}
	n.Table = newTable(w.t, n.name, epoch, n.nets...)
	for _, k := range slices.Sorted(maps.Keys(n.truth)) {
		network, key, _ := cut(k)
		put(w.t, n.Table, network, key, n.truth[k])
	}
	n.mirror, n.seen = mirror{}, map[string]map[string]bool{}
}

func cut(k string) (string, string, bool) {
	i := slices.Index([]byte(k), '/')
	return k[:i], k[i+1:], true
}

func (w *world) step() {
	i := w.rnd.IntN(len(w.nodes))
	n := w.nodes[i]
	all := append(slices.Clone(n.nets), "")
	network := all[w.rnd.IntN(len(all))]
	key := fmt.Sprint("k", w.rnd.IntN(6))
	switch p := w.rnd.IntN(100); {
	case p < 25:
		w.serial++
		n.truth[network+"/"+key] = fmt.Sprint(w.serial)
		w.send(i, put(w.t, n.Table, network, key, fmt.Sprint(w.serial)))
	case p < 40:
		delete(n.truth, network+"/"+key)
		w.send(i, n.Delete(network, key))
	case p < 75:
		if len(w.wire) > 0 {
			w.deliver(w.rnd.IntN(len(w.wire)))
		}
	case p < 88:
		if j := w.rnd.IntN(len(w.nodes)); j != i && w.side[i] == w.side[j] {
			w.meet(i, j, 1+w.rnd.IntN(500))
		}
	case p < 91:
		n.Compact()
	case p < 93: // takes part in other networks
		n.nets = nil
		for _, x := range []string{"red", "blue"} {
			if w.rnd.IntN(3) > 0 {
				n.nets = append(n.nets, x)
			}
		}
		maps.DeleteFunc(n.truth, func(k, _ string) bool {
			network, _, _ := cut(k)
			return network != "" && !slices.Contains(n.nets, network)
		})
		for k := range n.seen { // what it forgets with a network it may learn anew
			if network, _, _ := cut(k); network != "" {
				delete(n.seen, k)
			}
		}
		tell, gone, err := n.Subscribe(n.nets)
		if err != nil {
			w.t.Fatal(err)
		}
		n.mirror.apply(w.t, gone)
		w.send(i, tell...)
	case p < 95:
		w.start(i, w.rnd.IntN(3) == 0)
	case p < 97:
		for j := range w.side {
			w.side[j] = w.rnd.IntN(2)
		}
	default:
		clear(w.side)
	}
}

// TestRandom lets nodes write, delete, restart, lose their disks, come and go while what they tell is lost, doubled and
// reordered, and holds what they know in the end against what the writers wanted to be known.
func TestRandom(t *testing.T) {
	runs := 500
	if testing.Short() {
		runs = 60
	}
	for seed := range runs {
		w := &world{t: t, rnd: rand.New(rand.NewPCG(uint64(seed), 1)), epoch: 2000}
		for i := range 2 + w.rnd.IntN(5) {
			w.nodes = append(w.nodes, &member{truth: map[string]string{}, nets: []string{"red"}})
			w.nodes[i].mirror, w.nodes[i].Table = mirror{}, &Table{name: fmt.Sprint("n", i)}
			w.nodes[i].Table = newTable(t, fmt.Sprint("n", i), 2000, "red")
			w.nodes[i].seen = map[string]map[string]bool{}
		}
		w.side = make([]int, len(w.nodes))
		for range 400 {
			w.step()
		}
		clear(w.side)
		w.settle()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func same(t testing.TB, what string, have, want mirror) {
	t.Helper()
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if x, ok := have[k]; !ok || x != want[k] {
			t.Errorf("%s %q: %q (%v), want %q", what, k, x, ok, want[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[k]; !ok {
			t.Errorf("%s %q: %q, want none", what, k, have[k])
		}
	}
}

func (w *world) settle() {
	for round := 0; ; round++ {
		any := false
		for i := range w.nodes {
			for j := range w.nodes {
				if i != j {
					any = w.meet(i, j, 100) || any
				}
			}
		}
		if !any {
			break
		}
		if round > 200 {
			w.t.Errorf("not settled after %d rounds", round)
			return
		}
	}
	for _, n := range w.nodes {
		want := mirror{}
		for _, o := range w.nodes {
			for k, data := range o.truth {
				network, key, _ := cut(k)
				if o != n && (network == "" || slices.Contains(n.nets, network)) {
					want[network+"/"+o.name+"/"+key] = data
				}
			}
		}
		have := mirror{}
		have.load(n.Table)
		same(w.t, n.name+" has", have, want)
		same(w.t, n.name+" told", n.mirror, have)
		for _, network := range n.nets {
			for _, o := range w.nodes {
				if in := has(n.Participants(network), o.name); o != n && in != slices.Contains(o.nets, network) {
					w.t.Errorf("%s: that %s takes part in %q is %v", n.name, o.name, network, in)
				}
			}
		}
	}
	for _, n := range w.nodes {
		for _, network := range append(slices.Clone(n.nets), "") {
			var sum uint64
			for _, h := range n.Heads(network, All) {
				b := binary.BigEndian.AppendUint64([]byte(h.Origin), h.Epoch)
				sum ^= digest(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, h.Have), h.Hash))
			}
			if r := n.Root(network); r.Sum != sum {
				w.t.Errorf("%s: the root of %q is %x, but of all heads %x", n.name, network, r.Sum, sum)
			}
		}
		for _, network := range n.nets {
			for _, h := range n.Heads(network, All) {
				for _, o := range w.nodes {
					if o.name == h.Origin && !slices.Contains(o.Heads(network, All), h) {
						w.t.Errorf("%s has in %q %v, but the origin has %v", n.name, network, h, o.Heads(network, All))
					}
				}
			}
		}
	}
	// All was told: nothing differs any more.
	for _, n := range w.nodes[1:] {
		if n.Root("") != w.nodes[0].Root("") {
			w.t.Errorf("%s and %s still differ: %v, %v", n.name, w.nodes[0].name, n.Heads("", All), w.nodes[0].Heads("", All))
		}
	}
}
