package fabric_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
)

// TestNumbers: the numbers of nexthops are high, no two are the same, and a restart finds them again in whatever order it
// asks; of many thousands a few may clash.
func TestNumbers(t *testing.T) {
	var a, b fabric.Numbers
	const nets, peers = 20, 500
	seen := map[uint32]bool{}
	for n := range nets {
		for p := range peers {
			for _, v6 := range []bool{false, true} {
				id := a.Number(fmt.Sprint("n", n), fmt.Sprint("p", p), v6)
				if id < 1<<31 || seen[id] {
					t.Fatalf("number %d for network %d, peer %d", id, n, p)
				}
				seen[id] = true
			}
		}
	}
	moved := 0
	for n := nets - 1; n >= 0; n-- {
		for p := peers - 1; p >= 0; p-- {
			for _, v6 := range []bool{true, false} {
				if b.Number(fmt.Sprint("n", n), fmt.Sprint("p", p), v6) != a.Number(fmt.Sprint("n", n), fmt.Sprint("p", p), v6) {
					moved++
				}
			}
		}
	}
	if moved > 8 {
		t.Errorf("%d of %d numbers are others when they are asked for in another order", moved, len(seen))
	}
	first := a.Number("n1", "p1", false)
	a.Release("n1", "p1", false)
	a.Release("n1", "nobody", false)
	if again := a.Number("n1", "p1", false); again != first {
		t.Errorf("after it was given back the number is %d, was %d", again, first)
	}
}

func TestUnder(t *testing.T) {
	v4, v6, w4, w6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	node := func(a ...netip.Addr) api.Node { return api.Node{Name: "n", Addresses: a} }
	for _, c := range []struct {
		self, peer api.Node
		from, to   netip.Addr
	}{
		{node(v4, v6), node(w4, w6), v4, w4},
		{node(v6, v4), node(w6), v6, w6},
		{node(v4), node(w6, w4), v4, w4},
		{node(v4), node(w6), netip.Addr{}, netip.Addr{}},
		{node(v4), node(), netip.Addr{}, netip.Addr{}},
	} {
		from, to, err := fabric.Under(c.self, c.peer)
		if (err != nil) != !c.to.IsValid() || err == nil && (from != c.from || to != c.to) {
			t.Errorf("%v to %v: by %s and %s, %v", c.self.Addresses, c.peer.Addresses, from, to, err)
		}
	}
}

func TestRoutesNeedNumbers(t *testing.T) {
	n := fabric.Network{Network: api.Network{Name: "a"}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}
	if _, err := n.Routes(nil, nil); err == nil || !strings.Contains(err.Error(), `network "a"`) {
		t.Errorf("without a number: %v", err)
	}
}
