package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestTable: what a table lists and counts is what a plain map would after the same changes.
func TestTable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	got, want := newTable[int](), map[string]int{}
	for i := range 5000 {
		key := fmt.Sprintf("%s/c%d", []string{"a", "a-b", "a0", "a.b", "b"}[rnd.IntN(5)], rnd.IntN(20))
		if rnd.IntN(2) == 0 {
			got.put(key, i)
			want[key] = i
		} else {
			got.delete(key)
			delete(want, key)
		}
		var all []int
		counts := map[string]int{}
		for _, k := range slices.Sorted(maps.Keys(want)) {
			all = append(all, want[k])
			network, _, _ := strings.Cut(k, "/")
			counts[network]++
		}
		if !slices.Equal(got.all(), all) {
			t.Fatalf("after %d changes: %v, want %v", i, got.all(), all)
		}
		for _, network := range []string{"a", "a-b", "a0", "a.b", "b", "none"} {
			if n := got.count(network + "/"); n != counts[network] {
				t.Fatalf("%q has %d, want %d", network, n, counts[network])
			}
		}
	}
}
