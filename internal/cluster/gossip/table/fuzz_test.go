package table

import (
	"bytes"
	"reflect"
	"testing"
)

func messages(t testing.TB) []*Message {
	a := newTable(t, "a", 3, "net")
	put(t, a, "net", "k", "v")
	put(t, a, "", "addr", "192.0.2.1")
	del := a.Delete("net", "k")
	return []*Message{
		{Type: Push, From: "a", Chunks: []Chunk{*del, *a.Select("", Want{Origin: "a"}, 1000)}},
		{Type: Deltas, From: "a", Chunks: []Chunk{*a.Select("net", Want{Origin: "a"}, 1000)}, More: true},
		{Type: Deltas, From: "a", End: true},
		{Type: Roots, From: "a", Roots: []Root{a.Root(""), a.Root("net")}},
		{Type: Sums, From: "a", Network: "net", Sums: a.Sums("net")},
		{Type: Heads, From: "a", Network: "net", Mask: All, Heads: a.Heads("net", All)},
		{Type: Offer, From: "a", Network: "net", Mask: 5, Heads: a.Heads("net", All)},
		{Type: Pull, From: "a", Network: "net", Wants: []Want{{Origin: "b"}, {"a", 3, 2, 1}}},
	}
}

func TestWire(t *testing.T) {
	for _, m := range messages(t) {
		b := m.Encode(nil)
		got, err := Decode(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: %+v, %v; want %+v", m.Type, got, err, m)
		}
		size := 3 + len(m.From) + 1
		for _, c := range m.Chunks {
			size += c.Size()
		}
		if m.Chunks != nil && len(b) > size {
			t.Errorf("%s has %d bytes, more than the %d that Size promises", m.Type, len(b), size)
		}
		for i := range b { // cut short it is refused, or it is a shorter list
			if short, err := Decode(b[:i]); err == nil && reflect.DeepEqual(short, m) {
				t.Errorf("%s cut at %d of %d is the same", m.Type, i, len(b))
			}
		}
	}
	for _, bad := range [][]byte{nil, {1}, {2, 1, 1, 'a'}, {1, 0, 1, 'a'}, {1, 99, 1, 'a'}, {1, 1, 0, 0}, {1, 3, 1, 0},
		bytes.Repeat([]byte{1}, MaxMessage+1), {1, 2, 1, 'a', 0, 0, 1, 'b', 1, 0, 0, 0, 0, 255, 255, 255, 255, 15}} {
		if m, err := Decode(bad); err == nil {
			t.Errorf("Decode(% x) gives %+v", bad[:min(len(bad), 20)], m)
		}
	}
}

// FuzzDecode takes whatever comes over the wire as far as it goes: into a table.
func FuzzDecode(f *testing.F) {
	for _, m := range messages(f) {
		f.Add(m.Encode(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Decode(m.Encode(nil))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v is read again as %+v, %v", m, again, err)
		}
		x, err := New("b", 1, nil) // without signatures, so that more gets in
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := x.Subscribe([]string{"net"}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for i := range m.Chunks {
				_, _ = x.Apply(&m.Chunks[i])
			}
			x.Compact()
		}
		x.Mask(m.Network, m.Sums)
		x.Compare(m.Network, m.Mask, m.Heads)
		for _, r := range m.Roots {
			x.Differ(r)
		}
		for _, w := range m.Wants {
			x.Doubt(m.Network, w.Origin)
			x.Select(m.Network, w, 1000)
		}
		x.Forget("a")
		if c, err := x.Put("net", "k", nil); c == nil || err != nil {
			t.Fatalf("afterwards this node's own record is not taken: %v", err)
		}
	})
}
