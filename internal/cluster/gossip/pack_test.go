package gossip

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/cluster/gossip/table"
)

// TestPack joins and divides chunks by chance: no part is too large, and the records and their order stay.
func TestPack(t *testing.T) {
	for range 500 {
		var all []hot
		want := map[string][]table.Record{}
		have := map[string]uint64{}
		for range rand.IntN(60) {
			o := fmt.Sprint("n", rand.IntN(4))
			from := have[o] + uint64(rand.IntN(2)) // now and then with a hole
			r := table.Record{Origin: o, Network: "net", Key: "k", Version: table.Version{Epoch: 1, Count: from + 1}, Data: make([]byte, rand.IntN(500))}
			have[o] = from + 1
			want[o] = append(want[o], r)
			all = append(all, hot{chunk: table.Chunk{Network: "net", Origin: o, Epoch: 1, From: from, Seen: from + 1, Last: from + 1, Records: []table.Record{r}}})
		}
		var chunks []table.Chunk
		for _, h := range merge(all) {
			chunks = append(chunks, h.chunk)
		}
		room := 700 + rand.IntN(2000)
		got := map[string][]table.Record{}
		for _, part := range pack(chunks, room) {
			m := table.Message{Type: table.Push, From: "x", Chunks: part}
			if n := len(m.Encode(nil)); n > room+5 {
				t.Fatalf("a part has %d bytes, want at most %d", n, room+5)
			}
			for _, c := range part {
				if first := c.Records[0].Version.Count; c.From >= first || c.From+2 < first {
					t.Fatalf("a chunk after %d begins with %d", c.From, first)
				}
				got[c.Origin] = append(got[c.Origin], c.Records...)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("packed %v, want %v", got, want)
		}
	}
}

// FuzzHandle gives a node whatever a member may send.
func FuzzHandle(f *testing.F) {
	for _, m := range []table.Message{
		{Type: table.Roots, From: "b", Roots: []table.Root{{ID: 1, Sum: 2}}},
		{Type: table.Sums, From: "b", Network: "net", Sums: make([]uint64, table.Buckets)},
		{Type: table.Heads, From: "b", Network: "net", Mask: table.All, Heads: []table.Head{{Origin: "b", Epoch: 1, Have: 9}, {Origin: "a", Epoch: 1, Have: 2, Hash: 7}}},
		{Type: table.Pull, From: "b", Network: "net", Wants: []table.Want{{Origin: "a"}}},
		{Type: table.Deltas, From: "b", More: true, End: true},
	} {
		f.Add(m.Encode(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := table.Decode(b)
		if err != nil {
			return
		}
		g, err := New(Config{Node: "a", Epoch: 1, Keys: [][]byte{testKey}, Transport: new(noTransport)})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Subscribe([]string{"net"}); err != nil {
			t.Fatal(err)
		}
		g.members["b"] = &member{Member: Member{Node: "b", Since: time.Now()}}
		g.setState(g.members["b"], Up)
		for range 2 {
			for _, p := range g.handle(m) {
				if n := len(p.message.Encode(nil)); n > table.MaxMessage {
					t.Fatalf("the answer has %d bytes, more than anybody takes", n)
				}
			}
		}
		g.roots()
		g.age()
	})
}

// noTransport is one that is never used.
type noTransport struct{ Transport }
