package table

import (
	"bytes"
	"cmp"
	"slices"
)

// view is a copy of one stream, in one epoch.
type view struct {
	epoch, have, floor uint64
	target             uint64 // of a copy that is being built: complete when have is there
	entries            map[string]*entry
	ahead              []span // parts that arrived early, by from, none touching have
	doubt              bool   // another node has the same have but other records
	sum                uint64 // over the entries, 0 while parts are missing
	stale              bool   // sum has to be computed again
}

type entry struct {
	Record
	hash uint64
	gen  uint32 // when it came, in calls of Compact
}

type span struct{ from, to uint64 }

const mostSpans = 32 // of parts that arrived early; what is beyond is asked for again

func newView(epoch, floor uint64) *view {
	return &view{epoch: epoch, floor: floor, entries: map[string]*entry{}, stale: true}
}

// seen is the count up to which no delete can have been missed. In a full copy that is being built it is beyond have:
// what is there already was sorted out by the sender.
func (v *view) seen() uint64 { return max(v.have, v.floor) }

// fits reports whether a chunk continues the view without a hole: it begins where the view ends or before; no delete
// that the view has not seen was forgotten by the sender; and none that the view has seen is news to the sender, who
// would bring back what it removed.
func (v *view) fits(c *Chunk) bool {
	if v.epoch != c.Epoch || c.From > v.have {
		return false
	}
	return v.have == 0 && c.From == 0 || v.seen() >= c.Floor && (v.have >= v.floor || c.Seen >= v.floor)
}

// news gives the records of a chunk that the view lacks. Those that come early are true too, unless they are so old
// that the view may have forgotten their delete.
func (v *view) news(c *Chunk) []*Record {
	if v.epoch != c.Epoch {
		return nil
	}
	known := v.have
	if !v.fits(c) {
		known = v.seen()
	}
	var all []*Record
	for i := range c.Records {
		r := &c.Records[i]
		if e := v.entries[r.Key]; r.Version.Count > known && (e == nil || e.Version.Count < r.Version.Count) {
			all = append(all, r)
		}
	}
	return all
}

func (v *view) set(r Record, gen uint32) {
	v.entries[r.Key] = &entry{Record: r, hash: digest(r.Message()), gen: gen}
	v.stale = true
}

// advance notes that the part up to c.to() is known, now or once the hole before it is filled.
func (v *view) advance(c *Chunk) {
	v.stale = true
	if v.fits(c) {
		if v.have == 0 {
			v.floor = c.Floor
		}
		v.have = max(v.have, c.to())
		v.swallow()
	} else if c.From >= max(c.Floor, v.floor) && len(v.ahead) < mostSpans {
		s := span{c.From, c.to()}
		i, _ := slices.BinarySearchFunc(v.ahead, s, func(a, b span) int { return cmp.Compare(a.from, b.from) })
		v.ahead = slices.Insert(v.ahead, i, s)
	}
}

func (v *view) swallow() {
	for len(v.ahead) > 0 && v.ahead[0].from <= v.have {
		v.have = max(v.have, v.ahead[0].to)
		v.ahead = v.ahead[1:]
	}
}

// inherit takes from the view that this one replaces what came early there.
func (v *view) inherit(old *view) {
	if old.epoch != v.epoch {
		return
	}
	for k, e := range old.entries {
		if mine := v.entries[k]; e.Version.Count > v.have && (mine == nil || mine.Version.Count < e.Version.Count) {
			v.entries[k] = e
		}
	}
	v.ahead = old.ahead
	v.swallow()
}

// digest sums up the values up to have. Deletes are left out: nodes forget them at different times.
func (v *view) digest() uint64 {
	if v.stale {
		v.sum, v.stale = 0, false
		for _, e := range v.entries {
			if e.Version.Count > v.have {
				v.sum = 0 // unknown: the entry took the place of one that others may still have
				return 0
			}
			if e.Deletes == 0 {
				v.sum ^= e.hash
			}
		}
	}
	return v.sum
}

// after gives the entries after a count and up to have, by count.
func (v *view) after(from uint64) []*entry {
	var all []*entry
	for _, e := range v.entries {
		if e.Version.Count > from && e.Version.Count <= v.have {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *entry) int { return cmp.Compare(a.Version.Count, b.Version.Count) })
	return all
}

// compact forgets deletes that came before gen. The last write is kept whatever it is: have must be shown by a record.
func (v *view) compact(gen uint32) {
	for k, e := range v.entries {
		if e.Deletes != 0 && e.gen < gen && e.Version.Count < v.have {
			v.floor = max(v.floor, e.Version.Count)
			delete(v.entries, k)
		}
	}
}

// changes tells what it means to others that view old (nil: none) is replaced by v (nil: none).
func changes(old, v *view) []Change {
	var all []Change
	if old != nil {
		for k, e := range old.entries {
			if e.Deletes == 0 && (v == nil || v.entries[k] == nil || v.entries[k].Deletes != 0) {
				all = append(all, Change{Delete, e.Record})
			}
		}
	}
	if v != nil {
		for k, e := range v.entries {
			if e.Deletes != 0 {
				continue
			}
			if old != nil && old.entries[k] != nil && old.entries[k].Deletes == 0 && bytes.Equal(old.entries[k].Data, e.Data) {
				continue // the same under another number
			}
			all = append(all, Change{Put, e.Record})
		}
	}
	slices.SortFunc(all, func(a, b Change) int { return a.Record.Version.Compare(b.Record.Version) })
	return all
}
