package table

import (
	"encoding/binary"
	"slices"
)

// Buckets is into how many parts the streams of a network are divided, by a digest of the origin, to find out cheaply
// which of many differ.
const Buckets = 64

// All is the mask of all buckets.
const All = ^uint64(0)

// Bucket gives the bucket of a node's streams.
func Bucket(origin string) int { return int(digest([]byte(origin)) % Buckets) }

// Root stands for all that a node has of a network: equal roots, equal records.
type Root struct {
	ID  uint64 // digest of the network's name
	Sum uint64
}

// Head stands for a stream. A Hash of 0 is unknown.
type Head struct {
	Origin            string
	Epoch, Have, Hash uint64
}

// Want asks for a stream after a count, From 0 for a full copy. Who asks has seen all deletes up to Seen.
type Want struct {
	Origin            string
	Epoch, From, Seen uint64
}

// touch notes that a stream has changed, and so its bucket.
func (n *network) touch(origin string, s *stream) { n.touched[origin] = s }

// drop removes a stream.
func (n *network) drop(origin string) {
	if s := n.streams[origin]; s != nil {
		n.buckets[s.bucket] ^= s.digest
		delete(n.streams, origin)
		delete(n.touched, origin)
	}
}

// sums brings the buckets up to date.
func (n *network) sums() *[Buckets]uint64 {
	for origin, s := range n.touched {
		if s.main == nil {
			continue
		}
		b := binary.BigEndian.AppendUint64([]byte(origin), s.main.epoch)
		b = binary.BigEndian.AppendUint64(b, s.main.have)
		sum := digest(binary.BigEndian.AppendUint64(b, s.main.digest()))
		n.buckets[s.bucket] ^= s.digest ^ sum
		s.digest = sum
	}
	clear(n.touched)
	return &n.buckets
}

// Root sums up a network.
func (t *Table) Root(name string) Root {
	n := t.nets[name]
	if n == nil {
		return Root{}
	}
	r := Root{ID: n.id}
	for _, b := range n.sums() {
		r.Sum ^= b
	}
	return r
}

// Differ gives the network that a root is of, and how many streams this node has there. ok is false if the roots are
// the same or this node does not take part.
func (t *Table) Differ(r Root) (name string, streams int, ok bool) {
	name, ok = t.ids[r.ID]
	if !ok || t.Root(name) == r {
		return name, 0, false
	}
	return name, len(t.nets[name].streams), true
}

// Sums gives the buckets of a network, nil if this node does not take part.
func (t *Table) Sums(name string) []uint64 {
	if n := t.nets[name]; n != nil {
		return slices.Clone(n.sums()[:])
	}
	return nil
}

// Mask gives the buckets of a network that differ from a peer's.
func (t *Table) Mask(name string, theirs []uint64) uint64 {
	var mask uint64
	for i, b := range t.Sums(name) {
		if i < len(theirs) && theirs[i] != b {
			mask |= 1 << i
		}
	}
	return mask
}

// Heads gives the heads of the streams in some buckets of a network, by bucket.
func (t *Table) Heads(name string, mask uint64) []Head {
	n := t.nets[name]
	if n == nil {
		return nil
	}
	var in [Buckets][]Head
	for origin, s := range n.streams {
		if v := s.main; v != nil && mask&(1<<s.bucket) != 0 {
			in[s.bucket] = append(in[s.bucket], Head{origin, v.epoch, v.have, v.digest()})
		}
	}
	return slices.Concat(in[:]...)
}

// Difference is what two nodes have to tell each other about a network.
type Difference struct {
	Wants  []Want   // what the peer has and this node lacks
	Offers []Want   // what the peer lacks
	Doubts []string // origins of whose streams both have the same count but other records; see Doubt
}

// Compare holds the heads of a peer, all that it has in some buckets, against this node's.
func (t *Table) Compare(name string, mask uint64, heads []Head) Difference {
	var d Difference
	n := t.nets[name]
	if n == nil {
		return d
	}
	n.serial++
	for _, h := range heads {
		s := n.streams[h.Origin]
		if s != nil {
			s.seen = n.serial
		}
		if h.Epoch <= t.graves[h.Origin] {
			continue
		}
		if s == nil || s.main == nil {
			d.Wants = append(d.Wants, Want{Origin: h.Origin})
			continue
		}
		v := s.main
		switch mine, theirs := (Version{v.epoch, v.have}), (Version{h.Epoch, h.Have}); mine.Compare(theirs) {
		case -1:
			d.Wants = append(d.Wants, s.want(h))
		case 1:
			d.Offers = append(d.Offers, Want{h.Origin, h.Epoch, h.Have, h.Have})
		default:
			if mine := v.digest(); mine != h.Hash && mine != 0 && h.Hash != 0 && h.Origin != t.name {
				d.Doubts = append(d.Doubts, h.Origin)
			}
		}
	}
	for origin, s := range n.streams {
		if s.seen != n.serial && s.main != nil && mask&(1<<s.bucket) != 0 {
			d.Offers = append(d.Offers, Want{Origin: origin})
		}
	}
	return d
}

// want asks for what a peer with head h has: the rest of the full copy that is being built, or what follows the view.
func (s *stream) want(h Head) Want {
	if s.staged != nil && s.staged.epoch == h.Epoch {
		return Want{h.Origin, h.Epoch, s.staged.have, s.staged.seen()}
	}
	if s.main.epoch == h.Epoch {
		return Want{h.Origin, h.Epoch, s.main.have, s.main.seen()}
	}
	return Want{Origin: h.Origin}
}

// Doubt makes the table take the next full copy of a stream, although its count is known. It is asked of the origin
// itself: the two copies can't tell which is right.
func (t *Table) Doubt(name, origin string) Want {
	n := t.nets[name]
	if n == nil || n.streams[origin] == nil || n.streams[origin].main == nil {
		return Want{Origin: origin}
	}
	s := n.streams[origin]
	s.main.doubt = true
	if v := s.staged; v != nil && v.epoch == s.main.epoch {
		return Want{origin, v.epoch, v.have, v.seen()}
	}
	return Want{Origin: origin}
}

// Select gives what a peer wants of a stream, at most about limit bytes of it but at least one record. It is nil if this
// node has nothing to give.
func (t *Table) Select(name string, w Want, limit int) *Chunk {
	n := t.nets[name]
	if n == nil || n.streams[w.Origin] == nil || n.streams[w.Origin].main == nil {
		return nil
	}
	v := n.streams[w.Origin].main
	from := w.From
	if w.Epoch != v.epoch || w.Seen < v.floor {
		from = 0
	}
	c := &Chunk{Network: name, Origin: w.Origin, Epoch: v.epoch, From: from, Floor: v.floor, Seen: v.seen(), Last: max(v.have, v.target)}
	size := 0
	for _, e := range v.after(from) {
		if size += e.size(); size > limit && len(c.Records) > 0 {
			break
		}
		c.Records = append(c.Records, e.Record)
	}
	if len(c.Records) == 0 {
		return nil
	}
	return c
}
