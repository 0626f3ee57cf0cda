package linux

import (
	"fmt"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

func creations(objs []kernel.Object) []kernel.Change {
	var out []kernel.Change
	for _, o := range objs {
		out = append(out, kernel.Change{Op: kernel.Create, New: o})
	}
	kernel.SortChanges(out)
	return out
}

// BenchmarkAttach measures one Apply that gives a container its network, and the one that takes it away, in
// namespaces that exist already.
func BenchmarkAttach(b *testing.B) {
	for _, others := range []int{0, 100} {
		b.Run(fmt.Sprintf("beside=%d", others), func(b *testing.B) {
			k, _ := newKernel(b)
			converge(b, k, bridge("sn-br"))
			for i := range others {
				apply(b, k, creations(attachment("sn-br", newNetns(b), i+1))...)
			}
			want := attachment("sn-br", newNetns(b), 0)
			add, del := creations(want), deletions(want)
			b.Run("list", func(b *testing.B) {
				for b.Loop() {
					list(b, k, want...)
				}
			})
			var up, down, n float64
			b.Run("apply", func(b *testing.B) {
				for b.Loop() {
					start := b.Elapsed()
					apply(b, k, add...)
					middle := b.Elapsed()
					apply(b, k, del...)
					up += float64((middle - start).Microseconds())
					down += float64((b.Elapsed() - middle).Microseconds())
					n++
				}
				b.ReportMetric(up/n, "µs/add")
				b.ReportMetric(down/n, "µs/del")
			})
		})
	}
}

// BenchmarkDetachMany measures the removal of many links in one Apply.
func BenchmarkDetachMany(b *testing.B) {
	const n = 50
	k, _ := newKernel(b)
	converge(b, k, bridge("sn-br"))
	in := newNetns(b)
	var links []kernel.Object
	for i := range n {
		links = append(links, &kernel.Link{Name: fmt.Sprintf("snv%d", i), Type: kernel.Veth, Alias: "seine:x", Master: "sn-br",
			Peer: &kernel.Peer{NS: in, Name: fmt.Sprintf("eth%d", i)}})
	}
	var down float64
	var rounds float64
	for b.Loop() {
		apply(b, k, creations(links)...)
		start := b.Elapsed()
		apply(b, k, deletions(links)...)
		down += float64((b.Elapsed() - start).Microseconds())
		rounds++
	}
	b.ReportMetric(down/rounds/n, "µs/link")
}
