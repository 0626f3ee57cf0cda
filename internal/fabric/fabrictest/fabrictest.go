// Package fabrictest is the test that every fabric passes: Run checks that it is pure, that its keys are unique and its
// links provably ours, that peers share what they share without a quarrel, that a change of one peer touches that peer's
// objects only, that its objects can be made and leave nothing when they go, for IPv4, IPv6 and both, above and below,
// and compares them with goldens under testdata/.
package fabrictest

import (
	"context"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/ruleset"
)

var update = flag.Bool("update", false, "write the goldens anew")

// Case is a node with two peers on some networks.
type Case struct {
	Name         string
	Self         api.Node
	One, Two     api.Node
	Facts        kernel.Facts
	ToOne, ToTwo []fabric.Network
}

// Nodes gives three nodes on one link, h1 and its peers h2 and h3, with what they tell of the fabrics, and what h1 knows
// about itself. peers has for each peer the fabric as that node runs it, by name.
func Nodes(v4, v6 bool, self map[string]fabric.Fabric, peers func(i int) map[string]fabric.Fabric) ([3]api.Node, kernel.Facts, error) {
	var nodes [3]api.Node
	var mine kernel.Facts
	for i := range nodes {
		d := string(rune('1' + i))
		n := &nodes[i]
		*n = api.Node{ID: "id-of-h" + d, Name: "h" + d}
		l := kernel.LinkFact{Name: "eth0", Index: 2, MTU: 1500, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("fe80::ff:fe00:" + d + "/64")}}
		if v4 {
			n.Addresses = append(n.Addresses, netip.MustParseAddr("192.0.2."+d))
			l.Addrs = append(l.Addrs, netip.MustParsePrefix("192.0.2."+d+"/24"))
		}
		if v6 {
			n.Addresses = append(n.Addresses, netip.MustParseAddr("2001:db8::"+d))
			l.Addrs = append(l.Addrs, netip.MustParsePrefix("2001:db8::"+d+"/64"))
		}
		facts, run := kernel.Facts{Links: []kernel.LinkFact{l}, Default4: "eth0"}, self
		if i == 0 {
			mine = facts
		} else {
			run = peers(i)
		}
		n.Fabrics = map[string]json.RawMessage{}
		for name, f := range run {
			raw, err := f.Announce(*n, facts)
			if err != nil {
				return nodes, mine, err
			}
			n.Fabrics[name] = raw
		}
	}
	return nodes, mine, nil
}

// Network gives network number n (1 to 9) as it concerns the peer number p (2 or 3): one endpoint, one block of each
// family and a single address.
func Network(n, p int, v4, v6, broadcast bool) fabric.Network {
	d, e := string(rune('0'+n)), string(rune('0'+p))
	out := fabric.Network{Network: api.Network{Name: "net" + d, MTU: 1400, VNI: uint32(4095 + n), Broadcast: broadcast}, Link: "sn-net" + d}
	end := fabric.Endpoint{MAC: "02:5e:0a:c8:0" + d + ":0" + e}
	if v4 {
		out.Subnets = append(out.Subnets, api.Subnet{Prefix: netip.MustParsePrefix("10.20" + d + ".0.0/16"), Gateway: netip.MustParseAddr("10.20" + d + ".0.1")})
		out.Blocks = append(out.Blocks, netip.MustParsePrefix("10.20"+d+"."+e+".0/24"), netip.MustParsePrefix("10.20"+d+".99."+e+"/32"))
		end.Addresses = append(end.Addresses, netip.MustParseAddr("10.20"+d+"."+e+".7"))
	}
	if v6 {
		out.Subnets = append(out.Subnets, api.Subnet{Prefix: netip.MustParsePrefix("fd00:" + d + "::/64"), Gateway: netip.MustParseAddr("fd00:" + d + "::1")})
		out.Blocks = append(out.Blocks, netip.MustParsePrefix("fd00:"+d+"::"+e+":0:0/96"), netip.MustParsePrefix("fd00:"+d+"::99:"+e+"/128"))
		end.Addresses = append(end.Addresses, netip.MustParseAddr("fd00:"+d+"::"+e+":0:7"))
	}
	out.Endpoints = []fabric.Endpoint{end}
	var numbers fabric.Numbers
	out.Hop4, out.Hop6 = numbers.Number(out.Name, "h"+e, false), numbers.Number(out.Name, "h"+e, true)
	return out
}

// Cases gives the combinations that a fabric has to cope with.
func Cases(t *testing.T, name string, self fabric.Fabric, peer func(i int) fabric.Fabric) []Case {
	t.Helper()
	var out []Case
	add := func(title string, under4, under6, over4, over6, broadcast bool, change func(*fabric.Network)) {
		nodes, facts, err := Nodes(under4, under6, map[string]fabric.Fabric{name: self},
			func(i int) map[string]fabric.Fabric { return map[string]fabric.Fabric{name: peer(i)} })
		if err != nil {
			t.Fatal(err)
		}
		c := Case{Name: title, Self: nodes[0], One: nodes[1], Two: nodes[2], Facts: facts}
		for i := 1; i <= 2; i++ {
			one, two := Network(i, 2, over4, over6, broadcast), Network(i, 3, over4, over6, broadcast)
			if change != nil {
				change(&one)
				change(&two)
			}
			c.ToOne, c.ToTwo = append(c.ToOne, one), append(c.ToTwo, two)
		}
		out = append(out, c)
	}
	no := false
	for _, under := range []struct {
		name   string
		v4, v6 bool
	}{{"ipv4", true, false}, {"ipv6", false, true}, {"dual", true, true}} {
		add("dual-over-"+under.name, under.v4, under.v6, true, true, false, nil)
		add("ipv4-over-"+under.name, under.v4, under.v6, true, false, false, nil)
		add("ipv6-over-"+under.name, under.v4, under.v6, false, true, false, nil)
	}
	add("no-icc", true, true, true, true, false, func(n *fabric.Network) { n.ICC = &no })
	if self.Traits().Broadcast {
		add("broadcast", true, false, true, true, true, nil)
		add("broadcast-over-ipv6", false, true, true, true, true, nil)
		add("broadcast-no-icc", true, false, true, true, true, func(n *fabric.Network) { n.ICC = &no })
	}
	return out
}

// Run is the test of a fabric: self as this node runs it, peer as the peers do.
func Run(t *testing.T, name string, self fabric.Fabric, peer func(i int) fabric.Fabric) {
	for _, c := range Cases(t, name, self, peer) {
		t.Run(c.Name, func(t *testing.T) {
			one, two := objects(t, self, c, 1), objects(t, self, c, 2)
			if !reflect.DeepEqual(one, objects(t, self, c, 1)) {
				t.Error("the same arguments gave other objects: the fabric is not pure")
			}
			checkKeys(t, one)
			roundTrip(t, c, one, two)
			touches(t, self, c, one, two)
			golden(t, c, one)
		})
	}
	nodes, facts, err := Nodes(true, true, map[string]fabric.Fabric{name: self}, func(i int) map[string]fabric.Fabric { return map[string]fabric.Fabric{name: peer(i)} })
	if err != nil {
		t.Fatal(err)
	}
	secret := Network(1, 2, true, true, false)
	secret.Encrypt = true
	if _, err := self.Objects(nodes[0], nodes[1], []fabric.Network{secret}, facts); (err == nil) != self.Traits().Encrypts {
		t.Errorf("a network that is to be encrypted: %v", err)
	}
	if !self.Traits().Broadcast {
		if _, err := self.Objects(nodes[0], nodes[1], []fabric.Network{Network(1, 2, true, true, true)}, facts); err == nil {
			t.Error("a network with broadcast is not refused")
		}
	}
	t.Run("hostile peers", func(t *testing.T) { hostile(t, name, self, peer) })
}

// hostile: what a peer tells may be anything.
func hostile(t *testing.T, name string, self fabric.Fabric, peer func(i int) fabric.Fabric) {
	nodes, facts, err := Nodes(true, true, map[string]fabric.Fabric{name: self}, func(i int) map[string]fabric.Fabric { return map[string]fabric.Fabric{name: peer(i)} })
	if err != nil {
		t.Fatal(err)
	}
	for _, told := range []string{"x", `"x"`, "[]", "7", `{"key":7,"port":"x","mac":7,"linkLocal":7}`} {
		p := nodes[1]
		p.Fabrics = map[string]json.RawMessage{name: json.RawMessage(told)}
		if _, err := self.Objects(nodes[0], p, []fabric.Network{Network(1, 2, true, true, false)}, facts); err == nil || !strings.Contains(err.Error(), `"h2"`) {
			t.Errorf("a peer that tells %s: %v", told, err)
		}
	}
	p := nodes[1]
	p.Addresses = nil
	if _, err := self.Objects(nodes[0], p, []fabric.Network{Network(1, 2, true, true, false)}, facts); err == nil || !strings.Contains(err.Error(), `"h2"`) {
		t.Errorf("a peer without an address: %v", err)
	}
}

func objects(t *testing.T, f fabric.Fabric, c Case, peer int) []kernel.Object {
	t.Helper()
	to, networks := c.One, c.ToOne
	if peer == 2 {
		to, networks = c.Two, c.ToTwo
	}
	all, err := f.Objects(c.Self, to, networks, c.Facts)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func checkKeys(t *testing.T, all []kernel.Object) {
	seen := map[kernel.Key]bool{}
	for _, o := range all {
		if seen[o.Key()] {
			t.Errorf("%s is wanted twice", o.Key())
		}
		seen[o.Key()] = true
		if l, ok := o.(*kernel.Link); ok && !strings.HasPrefix(l.Alias, kernel.AliasPrefix) {
			t.Errorf("%s has no alias that marks it as ours", l)
		}
		if l, ok := o.(*kernel.Link); ok && len(l.Name) > 15 {
			t.Errorf("%q is too long for a link's name", l.Name)
		}
	}
}

// base makes what is there before any peer: the underlay, the table and the networks' bridges.
func base(t *testing.T, k *fake.Kernel, c Case) []kernel.Object {
	t.Helper()
	for _, l := range c.Facts.Links {
		k.AddForeign(&kernel.Link{Name: l.Name})
		k.AddForeign(&kernel.LinkUp{Link: l.Name})
		for _, p := range l.Addrs {
			k.AddForeign(&kernel.Addr{Link: l.Name, Prefix: p})
		}
	}
	all := []kernel.Object{ruleset.Table(5380, false)}
	for _, n := range c.ToOne {
		all = append(all, &kernel.Link{Name: n.Link, Type: kernel.Bridge, MTU: n.MTU, Alias: "seine:network/" + n.Name, Group: ruleset.Group(n.Name)},
			&kernel.LinkUp{Link: n.Link})
		for _, s := range n.Subnets {
			all = append(all, &kernel.Addr{Link: n.Link, Prefix: netip.PrefixFrom(s.Gateway, s.Prefix.Bits())})
		}
		all = append(all, fabric.Shared(n, "network/"+n.Name)...)
	}
	if err := reconcile.Apply(context.Background(), k, all, nil); err != nil {
		t.Fatal(err)
	}
	return all
}

// roundTrip makes the way to both peers on a kernel and takes it away again, one after the other.
func roundTrip(t *testing.T, c Case, one, two []kernel.Object) {
	ctx := context.Background()
	k := fake.New()
	base(t, k, c)
	bare := k.Dump()
	want := desired.New()
	become := func(what string, peers map[string][]kernel.Object) string {
		t.Helper()
		before := want.Objects(want.Keys(""))
		for _, owner := range []string{"peer/1", "peer/2"} {
			if _, err := want.Set(owner, peers[owner]...); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		now := want.Objects(want.Keys(""))
		if err := reconcile.Apply(ctx, k, now, before); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff, err := reconcile.Check(ctx, k, now); err != nil || len(diff) > 0 {
			t.Errorf("%s: differs: %v, %v", what, diff, err)
		}
		return k.Dump()
	}
	become("both peers", map[string][]kernel.Object{"peer/1": one, "peer/2": two})
	only := become("the first peer", map[string][]kernel.Object{"peer/1": one})
	if after := become("none", nil); after != bare {
		t.Errorf("left something:\n%s\nwas:\n%s", after, bare)
	}
	if again := become("the first peer", map[string][]kernel.Object{"peer/1": one}); again != only {
		t.Errorf("the second peer left something:\n%s\nwant:\n%s", only, again)
	}
}

// touches: an endpoint and a block more on the first peer change nothing of the second's, and little of its own.
func touches(t *testing.T, f fabric.Fabric, c Case, one, two []kernel.Object) {
	more := c
	more.ToOne = append([]fabric.Network(nil), c.ToOne...)
	n := &more.ToOne[0]
	end := fabric.Endpoint{MAC: "02:5e:0a:c8:01:63"}
	for _, b := range n.Blocks {
		a := b.Addr()
		if b.IsSingleIP() {
			a = a.Next().Next()
			n.Blocks = append(n.Blocks[:len(n.Blocks):len(n.Blocks)], netip.PrefixFrom(a, a.BitLen()))
			end.Addresses = append(end.Addresses, a)
		}
	}
	n.Endpoints = append(n.Endpoints[:len(n.Endpoints):len(n.Endpoints)], end)
	diff := kernel.Diff(objects(t, f, more, 1), one)
	if len(diff) == 0 || len(diff) > 8 {
		t.Errorf("one endpoint more makes %d changes: %v", len(diff), diff)
	}
	others := map[kernel.Key]bool{}
	for _, o := range two {
		others[o.Key()] = true
	}
	for _, d := range diff {
		if d.Op == kernel.Delete || others[d.Key()] {
			t.Errorf("one endpoint more leads to %s", d)
		}
	}
}

func golden(t *testing.T, c Case, one []kernel.Object) {
	t.Helper()
	var b strings.Builder
	b.WriteString("# the network, on every node\n")
	for _, o := range fabric.Shared(c.ToOne[0], "network/"+c.ToOne[0].Name) {
		b.WriteString(o.String() + "\n")
	}
	b.WriteString("# peer h2\n")
	for _, o := range one {
		b.WriteString(o.String() + "\n")
	}
	path := filepath.Join("testdata", c.Name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s differs (run with -update and read the diff):\n%s", path, b.String())
	}
}
