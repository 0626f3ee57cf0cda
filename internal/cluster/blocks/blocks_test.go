package blocks_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/seine-net/seine/internal/cluster/agreed"
	"github.com/seine-net/seine/internal/cluster/blocks"
)

var prefix = netip.MustParsePrefix

func TestUnit(t *testing.T) {
	for subnet, want := range map[string]int{"10.0.0.0/8": 16, "10.0.0.0/16": 24, "10.0.0.0/20": 28, "10.0.0.0/24": 28, "10.0.0.0/26": 29,
		"10.0.0.0/28": 31, "10.0.0.0/30": 32, "fd00::/48": 64, "fd00::/64": 80, "fd00::/120": 128} {
		if got := blocks.Unit(prefix(subnet)); got != want {
			t.Errorf("blocks of %s are /%d, want /%d", subnet, got, want)
		}
	}
}

func TestLease(t *testing.T) {
	for _, subnet := range []string{"10.1.0.0/26", "fd00::/125"} {
		p := prefix(subnet)
		b := &blocks.Leases{Store: agreed.NewMem()}
		ctx := t.Context()
		lease := func(node string, n int, mine ...netip.Prefix) []netip.Prefix {
			t.Helper()
			got, err := b.Lease(ctx, "net", node, p, netip.Addr{}, n, mine)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		a := lease("a", 2)
		if len(a) != 2 || a[0] == a[1] || !p.Contains(a[0].Addr()) || a[0].Bits() != blocks.Unit(p) {
			t.Fatalf("got %v", a)
		}
		if again := lease("a", 1); !slices.Equal(sorted(again), sorted(a)) {
			t.Errorf("who forgot its blocks gets %v, want those again: %v", again, a)
		}
		rest := lease("b", 100)
		if len(rest) != 6 || slices.Contains(rest, a[0]) || slices.Contains(rest, a[1]) {
			t.Errorf("the rest is %v", rest)
		}
		if _, err := b.Lease(ctx, "net", "c", p, netip.Addr{}, 1, nil); !errors.Is(err, blocks.ErrFull) {
			t.Errorf("a full subnet gives %v", err)
		}
		if _, err := b.Lease(ctx, "net", "c", p, a[0].Addr(), 1, nil); !errors.Is(err, blocks.ErrTaken) {
			t.Errorf("an address in another's block gives %v", err)
		}
		if got, err := b.Lease(ctx, "net", "a", p, a[1].Addr(), 1, a); err != nil || !slices.Equal(got, a[1:]) {
			t.Errorf("an address of its own block gives %v, %v", got, err)
		}
		if _, err := b.Lease(ctx, "net", "a", p, netip.MustParseAddr("192.0.2.1"), 1, a); err == nil {
			t.Error("an address outside was leased")
		}
		if err := errors.Join(b.Return(ctx, "net", "b", a), b.Return(ctx, "net", "a", a[:1]), b.Return(ctx, "net", "a", a[:1])); err != nil {
			t.Fatal(err)
		}
		if got := lease("c", 5); !slices.Equal(got, a[:1]) {
			t.Errorf("after a return %v is free, want %v", got, a[:1])
		}
		if got, err := b.Lease(ctx, "other", "c", p, a[1].Addr(), 1, nil); err != nil || !slices.Equal(got, a[1:]) {
			t.Errorf("another network's blocks: %v, %v", got, err)
		}
		if err := b.Reclaim(ctx, "b"); err != nil {
			t.Fatal(err)
		}
		if all, err := b.List(ctx, ""); err != nil || len(all) != 3 {
			t.Errorf("left: %v, %v", all, err)
		}
		if err := b.Forget(ctx, "net"); err != nil {
			t.Fatal(err)
		}
		if all, err := b.List(ctx, ""); err != nil || len(all) != 1 || all[0].Network != "other" || all[0].Node != "c" {
			t.Errorf("left: %v, %v", all, err)
		}
	}
}

func sorted(p []netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(p), func(a, b netip.Prefix) int { return a.Compare(b) })
}

// TestForeignKeys: what is no lease is named, and does not keep leases from being given.
func TestForeignKeys(t *testing.T) {
	m := agreed.NewMem()
	for _, k := range []string{"blocks/x", "blocks/net/10.1.0.0", "blocks/net/10.1.0.1-28", "blocks/net/a-b"} {
		if _, err := m.Txn(t.Context(), nil, []agreed.Op{{Key: k, Value: []byte(`{"node":"z"}`)}}); err != nil {
			t.Fatal(err)
		}
	}
	b := &blocks.Leases{Store: m}
	if _, err := b.List(t.Context(), ""); err == nil {
		t.Error("keys that are no leases are not named")
	}
	_, _ = m.Txn(t.Context(), nil, []agreed.Op{{Key: "blocks/net/10.1.0.16-28", Value: []byte(`{"node":"b"}`)}})
	for range 3 {
		got, err := b.Lease(t.Context(), "net", "a", prefix("10.1.0.0/24"), netip.Addr{}, 100, nil)
		if err != nil || len(got) != 15 {
			t.Errorf("leased %d blocks, %v", len(got), err)
		}
	}
}

// node is what a node knows: the blocks that it keeps on disk, and those addresses that it gave to containers.
type node struct {
	name string
	kept []netip.Prefix
	used map[netip.Addr]bool
}

// TestHistory: nodes lease, use, give back, crash between any two steps, lose answers and the store, and are removed; every
// address that is given out is written down. None is ever with two nodes.
func TestHistory(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { history(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func history(t *testing.T, rnd *rand.Rand) {
	ctx := context.Background()
	m := agreed.NewMem()
	b := &blocks.Leases{Store: m}
	subnet := prefix("10.9.0.0/26")
	holder := map[netip.Addr]string{}
	var nodes []*node
	for i := range 5 {
		nodes = append(nodes, &node{name: fmt.Sprint("n", i), used: map[netip.Addr]bool{}})
	}
	grants, made := 0, 5
	for range 1500 {
		n := nodes[rnd.IntN(len(nodes))]
		m.SetDown(rnd.IntN(8) == 0)
		m.SetLose(func() bool { return rnd.IntN(5) == 0 })
		switch rnd.IntN(8) {
		case 0, 1: // lease; a crash before it is kept
			var want netip.Addr
			if rnd.IntN(2) == 0 {
				want = nth(subnet, rnd.IntN(64))
			}
			got, err := b.Lease(ctx, "net", n.name, subnet, want, 1+rnd.IntN(3), n.kept)
			if err == nil && rnd.IntN(4) > 0 {
				for _, p := range got {
					if !slices.Contains(n.kept, p) {
						n.kept = append(n.kept, p)
					}
				}
			}
		case 2, 3, 4: // use an address of its own blocks, asking nobody
			if len(n.kept) == 0 {
				continue
			}
			a := nth(n.kept[rnd.IntN(len(n.kept))], rnd.IntN(8))
			if n.used[a] {
				continue
			}
			if by := holder[a]; by != "" {
				t.Fatalf("%s is given to %s while %s has it", a, n.name, by)
			}
			n.used[a], holder[a] = true, n.name
			grants++
		case 5: // release
			for a := range n.used {
				delete(n.used, a)
				delete(holder, a)
				break
			}
		case 6: // give an empty block back: forget, then a crash, or return
			i := slices.IndexFunc(n.kept, func(p netip.Prefix) bool {
				for a := range n.used {
					if p.Contains(a) {
						return false
					}
				}
				return true
			})
			if i < 0 {
				continue
			}
			p := n.kept[i]
			n.kept = slices.Delete(n.kept, i, i+1)
			if rnd.IntN(3) > 0 {
				_ = b.Return(ctx, "net", n.name, []netip.Prefix{p})
			}
		case 7: // a node is removed: it is fenced, then its blocks are taken
			if rnd.IntN(6) > 0 {
				continue
			}
			for a := range n.used {
				delete(holder, a)
			}
			*n = node{name: n.name, used: map[netip.Addr]bool{}}
			if b.Reclaim(ctx, n.name) == nil {
				n.name = fmt.Sprint("n", made)
				made++
			}
		}
	}
	if grants < 100 {
		t.Errorf("only %d addresses were given out: the test shows little", grants)
	}
}

func nth(p netip.Prefix, i int) netip.Addr {
	a := p.Addr()
	for range i % (1 << (a.BitLen() - p.Bits())) {
		a = a.Next()
	}
	return a
}
