package kernel_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

func lines(changes []kernel.Change) string {
	var b strings.Builder
	for _, c := range changes {
		b.WriteString(c.String() + "\n")
	}
	return b.String()
}

func TestDiff(t *testing.T) {
	br := &kernel.Link{Name: "br0", Type: kernel.Bridge, MTU: 1500}
	tests := []struct {
		name         string
		want, actual []kernel.Object
		diff         string
	}{
		{"nothing", nil, nil, ""},
		{"the same", []kernel.Object{br}, []kernel.Object{&kernel.Link{Name: "br0", Type: kernel.Bridge, MTU: 1500, MAC: "02:00:00:00:00:01"}}, ""},
		{"missing", []kernel.Object{br}, nil, "+ link br0 type bridge mtu 1500\n"},
		{"unwanted", nil, []kernel.Object{br}, "- link br0 type bridge mtu 1500\n"},
		{"different", []kernel.Object{br}, []kernel.Object{&kernel.Link{Name: "br0", Type: kernel.Bridge, MTU: 1400}},
			"~ link br0 type bridge mtu 1500  (was: link br0 type bridge mtu 1400)\n"},
		{"of another type", []kernel.Object{br}, []kernel.Object{&kernel.Link{Name: "br0", Type: kernel.Dummy, MTU: 1500}},
			"- link br0 type dummy mtu 1500\n+ link br0 type bridge mtu 1500\n"},
		{"with another peer", []kernel.Object{&kernel.Link{Name: "v", Type: kernel.Veth, Peer: &kernel.Peer{NS: "/a", Name: "eth0"}}},
			[]kernel.Object{&kernel.Link{Name: "v", Type: kernel.Veth, Peer: &kernel.Peer{NS: "/b", Name: "eth0"}}},
			"- link v type veth peer eth0 netns /b\n+ link v type veth peer eth0 netns /a\n"},
		{"the same name in two namespaces", []kernel.Object{&kernel.LinkUp{Link: "lo"}}, []kernel.Object{&kernel.LinkUp{NS: "/a", Link: "lo"}},
			"- link lo up netns /a\n+ link lo up\n"},
	}
	for _, tt := range tests {
		if got := lines(kernel.Diff(tt.want, tt.actual)); got != tt.diff {
			t.Errorf("%s: got\n%swant\n%s", tt.name, got, tt.diff)
		}
	}
}

// network is a set with something of every kind, in the order in which it has to be made.
func network() []kernel.Object {
	set := &kernel.Set{Name: "s", Key: []kernel.Type{kernel.TypeIPv4}}
	return []kernel.Object{
		&kernel.Table{Name: "seine", Sets: []*kernel.Set{set}},
		&kernel.TableChain{Table: "seine", Chain: kernel.Chain{Name: "extra"}},
		&kernel.Accept{Family: "ip", Table: "filter", Chain: "FORWARD", Rule: `iifname "sn-*"`},
		&kernel.Relic{Family: "ip", Table: "nat", Chain: "CNI-1", In: []string{"POSTROUTING"}},
		&kernel.Hold{Protocol: "tcp", Addr: addr("0.0.0.0"), Port: 80},
		&kernel.Link{Name: "sn-z", Type: kernel.Bridge},
		&kernel.Link{Name: "sn-a", Type: kernel.Veth, Master: "sn-z", Peer: &kernel.Peer{NS: "/a", Name: "eth0"}},
		&kernel.PortVLANs{Link: "sn-a", VLANs: []kernel.VLANRange{{First: 7, Last: 7, PVID: true, Untagged: true}}},
		&kernel.Attrs{NS: "/a", Link: "eth0", MTU: 1400},
		&kernel.Feature{Link: "sn-a", Name: "tx-checksum-ip-generic"},
		&kernel.WireGuard{Link: "sx-w", Port: 51820},
		&kernel.WGPeer{Link: "sx-w"},
		&kernel.Sysctl{Name: "net/ipv4/conf/sn-a/forwarding", Value: "1"},
		&kernel.Qdisc{Link: "sn-a", Type: "clsact"},
		&kernel.Redirect{Link: "sn-a", To: "sn-i"},
		&kernel.Addr{Link: "sn-z", Prefix: prefix("10.1.0.1/24")},
		&kernel.LinkUp{NS: "/a", Link: "eth0"},
		&kernel.LinkUp{Link: "sn-a"},
		&kernel.LinkUp{Link: "sn-z"},
		&kernel.Rule{Priority: 1, Table: 100},
		&kernel.Nexthop{ID: 1, Link: "sn-a"},
		&kernel.Route{NS: "/a", Dst: prefix("10.7.0.1/32"), Link: "eth0", Scope: kernel.ScopeLink},
		&kernel.Route{NS: "/a", Dst: prefix("0.0.0.0/0"), Via: addr("10.7.0.1"), Link: "eth0"},
		&kernel.Neigh{Link: "sn-z", Addr: addr("10.1.0.2"), MAC: "02:00:00:00:00:02"},
		&kernel.FDB{Link: "sn-a", MAC: "02:00:00:00:00:02"},
		&kernel.Element{Table: "seine", Set: set, Item: "10.1.0.2"},
	}
}

func TestOrder(t *testing.T) {
	objs := network()
	for seed := range uint64(50) {
		mixed := slices.Clone(objs)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })

		for i, c := range kernel.Diff(mixed, nil) {
			if c.Op != kernel.Create || c.New != objs[i] {
				t.Fatalf("seed %d: change %d is %s, want the creation of %s", seed, i, c, objs[i])
			}
		}
		for i, c := range kernel.Diff(nil, mixed) {
			if want := objs[len(objs)-1-i]; c.Op != kernel.Delete || c.Old != want {
				t.Fatalf("seed %d: change %d is %s, want the deletion of %s", seed, i, c, want)
			}
		}
		half := kernel.Diff(mixed[:9], mixed[9:])
		kind := func(i int) kernel.Kind { return half[i].Key().Kind }
		for i := 1; i < len(half); i++ {
			switch a, b := half[i-1].Op, half[i].Op; {
			case a == kernel.Delete && b == kernel.Delete && kind(i-1) < kind(i),
				a != kernel.Delete && (b == kernel.Delete || kind(i-1) > kind(i)):
				t.Fatalf("seed %d: %s comes before %s", seed, half[i-1], half[i])
			}
		}
	}
}

// TestTunnelsLast: what packets take at present goes after what they are to take has come.
func TestTunnelsLast(t *testing.T) {
	tunnel := func(name string) []kernel.Object {
		return []kernel.Object{&kernel.Link{Name: name, Type: kernel.VXLAN, Tunnel: &kernel.Tunnel{VNI: 1, Port: 1}}, &kernel.LinkUp{Link: name},
			&kernel.Neigh{Link: name, Addr: addr("fe80::1"), MAC: "02:00:00:00:00:01"}}
	}
	bridge := &kernel.Link{Name: "sn-old", Type: kernel.Bridge}
	old, now := &kernel.Nexthop{ID: 1, Link: "sx-a"}, &kernel.Nexthop{ID: 1, Link: "sx-b"}
	var got []string
	for _, c := range kernel.Diff(append(tunnel("sx-b"), now), append(tunnel("sx-a"), old, bridge)) {
		got = append(got, c.Op.String()+" "+c.Key().String())
	}
	want := []string{"- link sn-old", "+ link sx-b", "+ up sx-b", "~ nexthop 1", "+ neigh sx-b fe80::1", "- neigh sx-a fe80::1", "- up sx-a", "- link sx-a"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	other := tunnel("sx-a")
	other[0] = &kernel.Link{Name: "sx-a", Type: kernel.VXLAN, Tunnel: &kernel.Tunnel{VNI: 2, Port: 1}}
	if diff := kernel.Diff(other, tunnel("sx-a")); len(diff) != 2 || diff[0].Op != kernel.Delete || diff[1].Op != kernel.Create {
		t.Errorf("one that is made anew: %v", diff)
	}
}

func TestKindAndOpNames(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range network() {
		if w := o.Key().Kind.String(); seen[w] && w != "link" && w != "up" && w != "route" || w == "" || strings.HasPrefix(w, "kind(") {
			t.Errorf("%s: its kind is called %q", o, w)
		}
		seen[o.Key().Kind.String()] = true
	}
	if len(seen) != int(kernel.KindElement) {
		t.Errorf("there are objects of %d kinds here, and %d kinds", len(seen), kernel.KindElement)
	}
	for op, want := range map[kernel.Op]string{kernel.Create: "+", kernel.Update: "~", kernel.Delete: "-", 0: "?", 9: "?"} {
		if op < 9 && op.String() != want {
			t.Errorf("operation %d is shown as %q, want %q", op, op, want)
		}
	}
	if got := kernel.Kind(99).String(); got != "kind(99)" {
		t.Errorf("an unknown kind is shown as %q", got)
	}
}
