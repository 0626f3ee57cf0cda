package pool_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/ipam/pool"
)

func subnet(p, rng string, reserved ...string) api.Subnet {
	s := api.Subnet{Prefix: netip.MustParsePrefix(p)}
	s.Gateway = api.FirstHost(s.Prefix)
	if rng != "" {
		s.Range = netip.MustParsePrefix(rng)
	}
	for _, r := range reserved {
		s.Reserved = append(s.Reserved, netip.MustParseAddr(r))
	}
	return s
}

func TestGivesOutEveryAddressOnceAndNoOther(t *testing.T) {
	for _, c := range []struct {
		subnet      api.Subnet
		first, last string
		n           int
	}{
		{subnet("10.1.0.0/29", ""), "10.1.0.2", "10.1.0.6", 5},
		{subnet("10.1.0.0/30", ""), "10.1.0.2", "10.1.0.2", 1},
		{subnet("10.1.0.0/24", "10.1.0.64/30"), "10.1.0.64", "10.1.0.67", 4},
		{subnet("10.1.0.0/24", "10.1.0.252/30"), "10.1.0.252", "10.1.0.254", 3},
		{subnet("10.1.0.0/29", "", "10.1.0.2", "10.1.0.4"), "10.1.0.3", "10.1.0.6", 3},
		{subnet("fd00::/125", ""), "fd00::2", "fd00::7", 6},
	} {
		p := pool.New(c.subnet)
		var got []netip.Addr
		seen := map[netip.Addr]bool{}
		for {
			a, err := p.Reserve(netip.Addr{}, fmt.Sprint(len(got)))
			if errors.Is(err, pool.ErrFull) {
				break
			}
			if err != nil || seen[a] || len(got) > 300 {
				t.Fatalf("%s: %s, %v after %v", c.subnet.Prefix, a, err, got)
			}
			seen[a] = true
			got = append(got, a)
		}
		if len(got) != c.n || got[0].String() != c.first || got[len(got)-1].String() != c.last {
			t.Errorf("%s range %s: gave %v", c.subnet.Prefix, c.subnet.Range, got)
		}
	}
}

func TestReleasedAddressRests(t *testing.T) {
	p := pool.New(subnet("10.1.0.0/28", ""))
	a, _ := p.Reserve(netip.Addr{}, "x")
	p.Release(a, "somebody else")
	if p.Len() != 1 {
		t.Error("an address was released by somebody who does not hold it")
	}
	p.Release(a, "x")
	for range 12 {
		b, err := p.Reserve(netip.Addr{}, "y")
		if err != nil || b == a {
			t.Fatalf("gave %s, %v while others never were in use", b, err)
		}
	}
	if b, err := p.Reserve(netip.Addr{}, "y"); err != nil || b != a {
		t.Errorf("the last free one is %s, %v, want %s", b, err, a)
	}
}

func TestRequestedAddress(t *testing.T) {
	p := pool.New(subnet("10.1.0.0/24", "10.1.0.64/26", "10.1.0.9"))
	for _, c := range []struct {
		addr string
		want error
	}{
		{"10.1.0.9", nil}, // reserved is for those who name it
		{"10.1.0.200", nil},
		{"10.1.0.1", pool.ErrUnfit},
		{"10.1.0.0", pool.ErrUnfit},
		{"10.1.0.255", pool.ErrUnfit},
		{"10.2.0.1", pool.ErrOutside},
	} {
		_, err := p.Reserve(netip.MustParseAddr(c.addr), "x")
		if !errors.Is(err, c.want) || err == nil != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.addr, err, c.want)
		}
		if _, err := p.Reserve(netip.MustParseAddr(c.addr), "x"); c.want == nil && err != nil {
			t.Errorf("%s again for its holder: %v", c.addr, err)
		}
		if _, err := p.Reserve(netip.MustParseAddr(c.addr), "y"); c.want == nil && !errors.Is(err, pool.ErrTaken) {
			t.Errorf("%s for another: %v", c.addr, err)
		}
	}
}

func TestRandomAgainstASet(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	p := pool.New(subnet("10.1.0.0/27", ""))
	held := map[netip.Addr]bool{}
	for range 20000 {
		if rnd.IntN(2) == 0 {
			a, err := p.Reserve(netip.Addr{}, "h")
			if err == nil && held[a] || err != nil && len(held) < 29 {
				t.Fatalf("%s, %v with %d held", a, err, len(held))
			}
			if err == nil {
				held[a] = true
			}
		} else {
			for a := range held {
				p.Release(a, "h")
				delete(held, a)
				break
			}
		}
		if p.Len() != len(held) {
			t.Fatalf("pool says %d, %d are held", p.Len(), len(held))
		}
	}
}

func TestChoose(t *testing.T) {
	s := pool.Subnets{{Prefix: netip.MustParsePrefix("10.0.0.0/22"), Bits: 24}, {Prefix: netip.MustParsePrefix("fd00::/62"), Bits: 64}}
	var taken []netip.Prefix
	for _, want := range []string{"10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24", ""} {
		p, ok := s.Choose(true, 0, taken)
		if ok != (want != "") || ok && p.String() != want {
			t.Errorf("chose %s, %v, want %q", p, ok, want)
		}
		taken = append(taken, p)
	}
	for _, c := range []struct {
		v4   bool
		bits int
		used string
		want string
	}{
		{true, 0, "10.0.1.7/32 10.0.0.0/32 fd00::/16", "10.0.2.0/24"},
		{true, 0, "10.0.0.0/23 10.0.2.128/25", "10.0.3.0/24"},
		{true, 0, "0.0.0.0/1", ""},
		{true, 0, "10.0.0.0/22", ""},
		{true, 28, "10.0.0.0/24 10.0.1.0/28", "10.0.1.16/28"},
		{true, 28, "10.0.0.3/24", "10.0.1.0/28"}, // an address of the machine's
		{true, 23, "10.0.1.0/28", "10.0.2.0/23"},
		{true, 22, "", "10.0.0.0/22"},
		{true, 21, "", ""},
		{false, 0, "fd00::/64", "fd00:0:0:1::/64"},
		{false, 0, "fd00::1/128 fd00:0:0:1::/63", "fd00:0:0:2::/64"},
		{false, 0, "::/0", ""},
		{false, 80, "fd00::/63", "fd00:0:0:2::/80"},
		{false, 0, "", "fd00::/64"},
	} {
		var used []netip.Prefix
		for _, u := range strings.Fields(c.used) {
			used = append(used, netip.MustParsePrefix(u))
		}
		if p, ok := s.Choose(c.v4, c.bits, used); ok != (c.want != "") || ok && p.String() != c.want {
			t.Errorf("beside %q with /%d chose %s, %v, want %q", c.used, c.bits, p, ok, c.want)
		}
	}
	a, b := pool.UniqueLocal("m1"), pool.UniqueLocal("m2")
	if a == b || a != pool.UniqueLocal("m1") || a.Bits() != 48 || a.Addr().As16()[0] != 0xfd {
		t.Errorf("unique local prefixes are %s and %s", a, b)
	}
}

// TestShared: only addresses of this machine's blocks are given out, all of them, and none that is the subnet's own.
func TestShared(t *testing.T) {
	s := subnet("10.1.0.0/24", "10.1.0.0/25", "10.1.0.18")
	p := pool.NewShared(s)
	if p.Free() {
		t.Error("there is something free without a block")
	}
	if _, err := p.Reserve(netip.Addr{}, "x"); !errors.Is(err, pool.ErrFull) {
		t.Errorf("gave something out without a block: %v", err)
	}
	if _, err := p.Reserve(netip.MustParseAddr("10.1.0.20"), "x"); !errors.Is(err, pool.ErrForeign) {
		t.Errorf("an address of no block: %v", err)
	}
	blocks := func(list ...string) {
		var all []netip.Prefix
		for _, b := range list {
			all = append(all, netip.MustParsePrefix(b))
		}
		p.SetBlocks(all)
	}
	blocks("10.1.0.16/29", "10.1.0.0/29", "10.1.0.240/29") // the last one is outside the range
	var got []string
	for p.Free() {
		a, err := p.Reserve(netip.Addr{}, "x")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String()[len("10.1.0."):])
	}
	if want := "[2 3 4 5 6 7 16 17 19 20 21 22 23]"; fmt.Sprint(got) != want {
		t.Errorf("gave out %v, want %s", got, want)
	}
	if _, err := p.Reserve(netip.MustParseAddr("10.1.0.241"), "x"); err != nil {
		t.Errorf("an address of its own block that is not given out by itself: %v", err)
	}
	blocks("10.1.0.16/29")
	if n := p.Used(netip.MustParsePrefix("10.1.0.0/29")); n != 6 || p.Len() != 14 {
		t.Errorf("%d and %d addresses are in use after their block is gone", n, p.Len())
	}
	if _, err := p.Reserve(netip.MustParseAddr("10.1.0.2"), "x"); err != nil {
		t.Errorf("an address in use, for its holder: %v", err)
	}
	if fmt.Sprint(p.Blocks()) != "[10.1.0.16/29]" {
		t.Errorf("blocks are %v", p.Blocks())
	}
}

// TestAdopt: after a restart the next address is behind those in use, not one that was released a moment ago.
func TestAdopt(t *testing.T) {
	p := pool.New(subnet("10.1.0.0/24", ""))
	for _, a := range []string{"10.1.0.9", "10.1.0.4"} {
		if err := p.Adopt(netip.MustParseAddr(a), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Adopt(netip.MustParseAddr("10.1.0.9"), "y"); !errors.Is(err, pool.ErrTaken) {
		t.Errorf("an address was taken up for two: %v", err)
	}
	if a, err := p.Reserve(netip.Addr{}, "z"); err != nil || a.String() != "10.1.0.10" {
		t.Errorf("the next one is %s, %v", a, err)
	}
}
