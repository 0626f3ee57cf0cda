package linux

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/kernel"
)

// far makes a link that has a carrier, and a nexthop on it.
func far(id uint32) []kernel.Object {
	return []kernel.Object{
		&kernel.Link{Name: "sx-a", Type: kernel.VXLAN, Alias: "seine:x", MAC: "02:00:00:00:00:01",
			Tunnel: &kernel.Tunnel{VNI: 4096, Port: kernel.VXLANPort, Local: addr("192.0.2.1")}},
		&kernel.LinkUp{Link: "sx-a"},
		&kernel.Nexthop{ID: id, V6: true, Via: addr("fe80::2"), Link: "sx-a", OnLink: true},
	}
}

// BenchmarkRoutes measures 100,000 routes to one peer: made, listed, moved to another gateway, and deleted.
func BenchmarkRoutes(b *testing.B) {
	const n = 100000
	k, _ := newKernel(b)
	id := uint32(1 << 31)
	base := far(id)
	apply(b, k, creations(base)...)
	routes := make([]kernel.Object, n)
	for i := range routes {
		routes[i] = &kernel.Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Nexthop: id}
	}
	var made, listed, moved, gone time.Duration
	rounds := 0
	for b.Loop() {
		add, del := creations(routes), deletions(routes)
		t := time.Now()
		apply(b, k, add...)
		made += time.Since(t)
		t = time.Now()
		if got := list(b, k, routes...); len(got) != n {
			b.Fatalf("%d routes are there", len(got))
		}
		listed += time.Since(t)
		old, to := base[2].(*kernel.Nexthop), &kernel.Nexthop{ID: id, V6: true, Via: addr("fe80::3"), Link: "sx-a", OnLink: true}
		t = time.Now()
		apply(b, k, kernel.Change{Op: kernel.Update, Old: old, New: to})
		moved += time.Since(t)
		apply(b, k, kernel.Change{Op: kernel.Update, Old: to, New: old})
		t = time.Now()
		apply(b, k, del...)
		gone += time.Since(t)
		rounds++
	}
	for what, d := range map[string]time.Duration{"ms/made": made, "ms/listed": listed, "ms/moved": moved, "ms/deleted": gone} {
		b.ReportMetric(float64(d.Milliseconds())/float64(rounds), what)
	}
}
