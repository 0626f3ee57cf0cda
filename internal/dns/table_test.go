package dns

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func ips(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, ip(a))
	}
	return out
}

// world is a table with two containers on "blue", one on "red", one on both, and one on "cell", which is internal.
func world() *Table {
	t := new(Table)
	t.Set("blue/web", Record{Names: []string{"Web", "www"}, Network: "Blue", Addrs: ips("10.1.0.2", "fd01::2"), Container: "c1"})
	t.Set("blue/db", Record{Names: []string{"db", "store"}, Network: "Blue", Addrs: ips("10.1.0.3"), Container: "c2"})
	t.Set("red/web", Record{Names: []string{"web"}, Network: "red", Addrs: ips("10.2.0.2", "fd02::2"), Container: "c3"})
	t.Set("blue/both", Record{Names: []string{"both", "store"}, Network: "Blue", Addrs: ips("10.1.0.4", "fd01::4"), Container: "c4"})
	t.Set("red/both", Record{Names: []string{"both", "Store"}, Network: "red", Addrs: ips("10.2.0.4", "fd02::4"), Container: "c4"})
	t.Set("cell/web", Record{Names: []string{"web"}, Network: "cell", Addrs: ips("10.3.0.2"), Container: "c5", Internal: true})
	t.Set("cell/both", Record{Names: []string{"two"}, Network: "cell", Addrs: ips("10.3.0.3"), Container: "c6", Internal: true})
	t.Set("red/two", Record{Names: []string{"two"}, Network: "red", Addrs: ips("10.2.0.6"), Container: "c6"})
	t.Set("lone", Record{Names: []string{"lone"}, Network: "blue", Addrs: ips("10.1.0.9")})
	return t
}

func TestTableLookup(t *testing.T) {
	z := world()
	for _, c := range []struct {
		from, name string
		want       []netip.Addr
		known      bool
	}{
		{"10.1.0.3", "web", ips("10.1.0.2", "fd01::2"), true},
		{"10.1.0.3", "WEB.", ips("10.1.0.2", "fd01::2"), true},
		{"10.1.0.3", "www", ips("10.1.0.2", "fd01::2"), true},
		{"10.1.0.3", "web.blue", ips("10.1.0.2", "fd01::2"), true},
		{"10.1.0.3", "web.Blue.Seine.Internal", ips("10.1.0.2", "fd01::2"), true},
		{"10.1.0.3", "web.seine.internal", ips("10.1.0.2", "fd01::2"), true},
		{"10.1.0.3", "web.red", nil, false},
		{"10.1.0.3", "two", nil, false},
		{"10.1.0.3", "webb", nil, false},
		{"10.1.0.3", "", nil, false},
		{"10.1.0.3", ".blue", nil, false},
		{"10.1.0.3", "seine.internal", nil, true},
		{"10.1.0.3", "blue.seine.internal", nil, true},
		{"10.1.0.3", "red.seine.internal", nil, false},
		{"10.1.0.3", "blue", nil, false},
		{"::ffff:10.1.0.3", "web", ips("10.1.0.2", "fd01::2"), true},
		// By whichever of its addresses it asks, a container sees all of its networks.
		{"10.1.0.4", "web", ips("10.1.0.2", "10.2.0.2", "fd01::2", "fd02::2"), true},
		{"fd02::4", "web", ips("10.1.0.2", "10.2.0.2", "fd01::2", "fd02::2"), true},
		{"fd02::4", "web.blue", ips("10.1.0.2", "fd01::2"), true},
		{"fd02::4", "web.red", ips("10.2.0.2", "fd02::2"), true},
		// One alias, two owners.
		{"10.1.0.2", "store", ips("10.1.0.3", "10.1.0.4", "fd01::4"), true},
		{"10.1.0.9", "lone", ips("10.1.0.9"), true},
		{"10.1.0.9", "web", ips("10.1.0.2", "fd01::2"), true},
		// Who is nobody sees nothing.
		{"192.0.2.1", "web", nil, false},
		{"192.0.2.1", "seine.internal", nil, false},
	} {
		got, known := z.Lookup(ip(c.from), c.name)
		if known != c.known || !slices.Equal(got, c.want) {
			t.Errorf("%s asks %q: %v %v, want %v %v", c.from, c.name, got, known, c.want, c.known)
		}
	}
}

func TestTableReverseAndForward(t *testing.T) {
	z := world()
	for _, c := range []struct {
		from, addr, want string
	}{
		{"10.1.0.3", "10.1.0.2", "web.blue"},
		{"10.1.0.3", "fd01::2", "web.blue"},
		{"10.1.0.3", "10.1.0.3", "db.blue"},
		{"10.1.0.3", "10.2.0.2", ""},
		{"10.1.0.4", "10.2.0.2", "web.red"},
		{"192.0.2.1", "10.1.0.2", ""},
		{"10.1.0.3", "192.0.2.1", ""},
	} {
		got, ok := z.Reverse(ip(c.from), ip(c.addr))
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s asks for %s: %q %v, want %q", c.from, c.addr, got, ok, c.want)
		}
	}
	for from, want := range map[string]bool{"10.1.0.2": true, "10.3.0.2": false, "10.3.0.3": true, "10.2.0.6": true, "192.0.2.1": false} {
		if got := z.AllowForward(ip(from)); got != want {
			t.Errorf("AllowForward(%s) = %v", from, got)
		}
	}
	z.SetGuests([]netip.Prefix{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParsePrefix("172.17.0.0/16")})
	for from, want := range map[string]bool{"172.17.0.2": true, "172.18.0.2": false, "10.3.0.2": false, "10.3.0.99": true} {
		if got := z.AllowForward(ip(from)); got != want { // an internal container stays one where a guest's range has its address
			t.Errorf("AllowForward(%s) = %v", from, got)
		}
	}
	if _, known := z.Lookup(ip("172.17.0.2"), "web.blue"); known || !z.Serves(ip("172.17.0.2")) || z.Serves(ip("172.18.0.2")) {
		t.Error("a guest is served wrongly")
	}
	if z.Serves(ip("192.0.2.1")) || !z.Serves(ip("::ffff:10.3.0.2")) {
		t.Error("Serves is wrong")
	}
}

// TestTableAgainstScan compares the index with a scan of all records after random changes.
func TestTableAgainstScan(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	z, all := new(Table), map[string]Record{}
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	for step := range 3000 {
		key := fmt.Sprint(r.IntN(12))
		if r.IntN(3) == 0 {
			z.Drop(key)
			delete(all, key)
		} else {
			rec := Record{Network: pick("x", "y", "a.b"), Container: pick("", "p", "q", "r"), Internal: r.IntN(2) == 0}
			for range r.IntN(3) {
				rec.Names = append(rec.Names, pick("a", "b", "A", "a.x", "c", "a.a"))
			}
			for range r.IntN(3) {
				rec.Addrs = append(rec.Addrs, ip(fmt.Sprintf("10.0.0.%d", r.IntN(6))))
			}
			z.Set(key, rec)
			all[key] = rec
		}
		for range 5 {
			from, name := ip(fmt.Sprintf("10.0.0.%d", r.IntN(6))), pick("a", "b", "c", "a.x", "a.y", "a.a.b", "a.a", "b.x", "x")
			name += pick("", "."+Domain)
			got, known := z.Lookup(from, name)
			want, wantKnown := scan(all, from, name)
			if known != wantKnown || !slices.Equal(got, want) {
				t.Fatalf("step %d: %s asks %q: %v %v, want %v %v\n%v", step, from, name, got, known, want, wantKnown, all)
			}
		}
	}
	for key := range all {
		z.Drop(key)
	}
	if n := len(z.entries) + len(z.networks) + len(z.addrs.one) + len(z.addrs.more) + len(z.containers.one) + len(z.containers.more); n != 0 {
		t.Errorf("an empty table keeps %d entries", n)
	}
}

// scan is the slow and obvious Lookup.
func scan(all map[string]Record, from netip.Addr, name string) (out []netip.Addr, known bool) {
	var nets []string
	for _, rec := range all {
		if !slices.Contains(rec.Addrs, from) {
			continue
		}
		nets = append(nets, rec.Network)
		for _, other := range all {
			if rec.Container != "" && other.Container == rec.Container {
				nets = append(nets, other.Network)
			}
		}
	}
	short, below := strings.CutSuffix(name, "."+Domain)
	set := map[netip.Addr]bool{}
	find := func(owned func(n, network string) bool) {
		for _, rec := range all {
			for _, n := range rec.Names {
				if slices.Contains(nets, rec.Network) && owned(strings.ToLower(n), rec.Network) {
					known = true
					for _, a := range rec.Addrs {
						set[a] = true
					}
				}
			}
		}
	}
	find(func(n, network string) bool { return n+"."+network == short })
	if len(set) == 0 {
		find(func(n, _ string) bool { return n == short })
	}
	known = known || below && slices.Contains(nets, short)
	return slices.SortedFunc(maps.Keys(set), netip.Addr.Compare), known
}

func TestTableConcurrently(t *testing.T) {
	z := world()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 500 {
				key := fmt.Sprintf("blue/%d-%d", i, n%10)
				z.Set(key, Record{Names: []string{"many"}, Network: "blue", Addrs: ips(fmt.Sprintf("10.1.%d.%d", i+1, n%10))})
				z.Lookup(ip("10.1.0.3"), "many")
				if got, _ := z.Lookup(ip("10.1.0.3"), "web"); len(got) != 2 {
					t.Errorf("web has %v", got)
				}
				z.Drop(key)
			}
		})
	}
	wg.Wait()
	if z.Len() != world().Len() {
		t.Errorf("%d records are left", z.Len())
	}
}

// TestTableMemory counts all that an endpoint costs, its strings included.
func TestTableMemory(t *testing.T) {
	const n, most = 10000, 550 // about 500; maps grow in steps
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	z := new(Table)
	for i := range n {
		z.Set(fmt.Sprintf("endpoint/net%d/app-%d", i/1000, i), Record{
			Names:     []string{fmt.Sprintf("app-%d", i), fmt.Sprintf("alias-%d", i)},
			Network:   fmt.Sprintf("net%d", i/1000),
			Addrs:     []netip.Addr{netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})},
			Container: fmt.Sprintf("%016x", i),
		})
	}
	each := (heap() - before) / n
	t.Logf("%d bytes per endpoint with two addresses and two names", each)
	if each > most {
		t.Errorf("an endpoint costs %d bytes, more than %d", each, most)
	}
	runtime.KeepAlive(z)
}

func TestReverseAddr(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa":                         "1.2.3.4",
		"3.2.1.in-addr.arpa":                           "",
		"5.4.3.2.1.in-addr.arpa":                       "",
		"256.3.2.1.in-addr.arpa":                       "",
		"01.3.2.1.in-addr.arpa":                        "",
		"4.3.2.1.in-addr.arpa.x":                       "",
		"in-addr.arpa":                                 "",
		strings.Repeat("0.", 31) + "1.ip6.arpa":        "1000::",
		"f." + strings.Repeat("0.", 31) + "ip6.arpa":   "::f",
		strings.Repeat("0.", 31) + "ip6.arpa":          "",
		strings.Repeat("0.", 31) + "g.ip6.arpa":        "",
		strings.Repeat("0-", 31) + "1.ip6.arpa":        "",
		"0." + strings.Repeat("0.", 31) + "1.ip6.arpa": "",
	} {
		got, ok := reverseAddr(name)
		if ok != (want != "") || ok && got != ip(want) {
			t.Errorf("%q: %v %v, want %q", name, got, ok, want)
		}
	}
}

// TestTableAliases: a network's aliases stand for its name, after the names of other networks.
func TestTableAliases(t *testing.T) {
	z := world()
	look := func(from, name string, want ...string) {
		t.Helper()
		if got, known := z.Lookup(ip(from), name); !slices.Equal(got, ips(want...)) || !known {
			t.Errorf("%s asks %q: %v %v, want %v", from, name, got, known, want)
		}
	}
	gone := func(from, name string) {
		t.Helper()
		if got, known := z.Lookup(ip(from), name); known {
			t.Errorf("%s asks %q: %v, want nothing", from, name, got)
		}
	}
	gone("10.1.0.3", "web.sea.side")
	rec := Record{Names: []string{"db", "store"}, Network: "blue", Aliases: []string{"Sea.Side", "red"}, Addrs: ips("10.1.0.3"), Container: "c2"}
	z.Set("blue/db", rec)
	look("10.1.0.3", "web.sea.side", "10.1.0.2", "fd01::2")
	look("10.1.0.2", "WWW.sea.SIDE.seine.internal.", "10.1.0.2", "fd01::2")
	look("10.1.0.2", "sea.side.seine.internal")
	look("10.1.0.3", "web.red", "10.1.0.2", "fd01::2")
	look("10.1.0.4", "web.red", "10.2.0.2", "fd02::2") // a name is more than an alias
	gone("10.2.0.2", "web.sea.side")
	if name, _ := z.Reverse(ip("10.1.0.3"), ip("10.1.0.2")); name != "web.blue" {
		t.Errorf("10.1.0.2 is %q", name)
	}
	rec.Aliases = nil
	z.Set("blue/db", rec)
	gone("10.1.0.3", "web.sea.side")
}
