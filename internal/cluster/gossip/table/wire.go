package table

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxMessage is the most bytes that a message may have on the wire.
const MaxMessage = 256 << 10

// Type says what a message is for.
type Type uint8

const (
	Push    Type = iota + 1 // chunks of what has just changed: to be passed on
	Deltas                  // chunks that the receiver lacked
	Roots                   // what the sender has of some networks; who has something else answers
	Sums                    // the buckets of a network, in answer to Roots
	Heads                   // the streams in some buckets, in answer to Roots or Sums
	Offer                   // the same as Heads, in answer to Heads: it is to be asked for what it has, and is not answered with more
	Pull                    // asks for streams, in answer to Heads or Offer
	numType = int(Pull) + 1
)

// String gives the type in one word.
func (t Type) String() string {
	return [...]string{"", "push", "deltas", "roots", "sums", "heads", "offer", "pull"}[t]
}

// Message is what nodes send to each other.
type Message struct {
	Type    Type
	From    string  // the node that sends it
	Chunks  []Chunk // Push, Deltas
	More    bool    // Deltas: there is more where this came from
	End     bool    // Deltas: this is the last message in answer to a Pull
	Roots   []Root  // Roots
	Network string  // Sums, Heads, Offer, Pull
	Sums    []uint64
	Mask    uint64 // Heads, Offer: the buckets that they are all of
	Heads   []Head
	Wants   []Want
}

const wireVersion = 1

// Encode appends a message.
//
//	message  version(1) type(1) from …
//	string   length(uvarint) bytes
//	chunk    network origin epoch from floor seen last n record*   numbers are uvarints
//	record   count-from-the-one-before deletes key sig [data]      no data in a delete; digests have 8 bytes
func (m *Message) Encode(b []byte) []byte {
	b = append(b, wireVersion, byte(m.Type))
	b = appendString(b, m.From)
	switch m.Type {
	case Push, Deltas:
		b = append(b, flag(m.More)|flag(m.End)<<1)
		for i := range m.Chunks {
			b = m.Chunks[i].append(b)
		}
	case Roots:
		for _, r := range m.Roots {
			b = binary.BigEndian.AppendUint64(b, r.ID)
			b = binary.BigEndian.AppendUint64(b, r.Sum)
		}
	case Sums:
		b = appendString(b, m.Network)
		for _, s := range m.Sums {
			b = binary.BigEndian.AppendUint64(b, s)
		}
	case Heads, Offer:
		b = binary.BigEndian.AppendUint64(appendString(b, m.Network), m.Mask)
		for _, h := range m.Heads {
			b = binary.AppendUvarint(appendString(b, h.Origin), h.Epoch)
			b = binary.BigEndian.AppendUint64(binary.AppendUvarint(b, h.Have), h.Hash)
		}
	case Pull:
		b = appendString(b, m.Network)
		for _, w := range m.Wants {
			b = binary.AppendUvarint(binary.AppendUvarint(appendString(b, w.Origin), w.Epoch), w.From)
			b = binary.AppendUvarint(b, w.Seen)
		}
	}
	return b
}

func (c *Chunk) append(b []byte) []byte {
	b = appendString(appendString(b, c.Network), c.Origin)
	for _, x := range []uint64{c.Epoch, c.From, c.Floor, c.Seen, c.Last, uint64(len(c.Records))} {
		b = binary.AppendUvarint(b, x)
	}
	last := c.From
	for i := range c.Records {
		r := &c.Records[i]
		b = binary.AppendUvarint(b, r.Version.Count-last)
		b = binary.AppendUvarint(b, r.Deletes)
		b = appendString(b, r.Key)
		b = appendString(b, string(r.Sig))
		if r.Deletes == 0 {
			b = appendString(b, string(r.Data))
		}
		last = r.Version.Count
	}
	return b
}

// Size gives about how many bytes a chunk takes on the wire, never less than it does.
func (c *Chunk) Size() int {
	n := len(c.Network) + len(c.Origin) + 4 + 6*binary.MaxVarintLen64
	for i := range c.Records {
		n += c.Records[i].size()
	}
	return n
}

func (r *Record) size() int { return len(r.Key) + len(r.Data) + len(r.Sig) + 5*4 + 4 }

// Decode reads a message. Whatever is in b, it does not panic, and what it allocates is bounded by MaxMessage. What it
// gives has no part of b in it.
func Decode(b []byte) (*Message, error) {
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("message of %d bytes; want at most %d", len(b), MaxMessage)
	}
	if len(b) < 2 || b[0] != wireVersion || b[1] == 0 || int(b[1]) >= numType {
		return nil, fmt.Errorf("message begins with % x; want version %d and a type of 1 to %d", b[:min(2, len(b))], wireVersion, numType-1)
	}
	m := &Message{Type: Type(b[1])}
	r := &reader{b: b[2:]}
	m.From = r.string(MaxName)
	switch m.Type {
	case Push, Deltas:
		f := r.byte()
		m.More, m.End = f&1 != 0, f&2 != 0
		for r.more() {
			m.Chunks = append(m.Chunks, r.chunk())
		}
	case Roots:
		for r.more() {
			m.Roots = append(m.Roots, Root{r.fixed(), r.fixed()})
		}
	case Sums:
		m.Network = r.string(MaxName)
		for r.more() {
			m.Sums = append(m.Sums, r.fixed())
		}
		if r.err == nil && len(m.Sums) != Buckets {
			r.err = fmt.Errorf("%d buckets; want %d", len(m.Sums), Buckets)
		}
	case Heads, Offer:
		m.Network, m.Mask = r.string(MaxName), r.fixed()
		for r.more() {
			m.Heads = append(m.Heads, Head{r.string(MaxName), r.uvarint(), r.uvarint(), r.fixed()})
		}
	case Pull:
		m.Network = r.string(MaxName)
		for r.more() {
			m.Wants = append(m.Wants, Want{r.string(MaxName), r.uvarint(), r.uvarint(), r.uvarint()})
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("message %s: %w", m.Type, r.err)
	}
	if err := CheckName("message: sender", m.From, false); err != nil {
		return nil, err
	}
	return m, nil
}

// reader takes fields off the front of a message. After an error all it gives is zero.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("ends in the middle of a field")

func (r *reader) more() bool { return r.err == nil && len(r.b) > 0 }

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) < 1 {
		r.fail(errShort)
		return 0
	}
	x := r.b[0]
	r.b = r.b[1:]
	return x
}

func (r *reader) fixed() uint64 {
	if len(r.b) < 8 {
		r.fail(errShort)
		return 0
	}
	x := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return x
}

func (r *reader) uvarint() uint64 {
	x, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(errShort)
		return 0
	}
	r.b = r.b[n:]
	return x
}

func (r *reader) string(most int) string {
	n := r.uvarint()
	if n > uint64(most) {
		r.fail(fmt.Errorf("a field of %d bytes; want at most %d", n, most))
		return ""
	}
	if n > uint64(len(r.b)) {
		r.fail(errShort)
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *reader) chunk() Chunk {
	c := Chunk{Network: r.string(MaxName), Origin: r.string(MaxName), Epoch: r.uvarint(), From: r.uvarint(), Floor: r.uvarint(), Seen: r.uvarint(), Last: r.uvarint()}
	n, count := r.uvarint(), c.From
	if n > uint64(len(r.b)/4) { // a record takes at least 4 bytes
		r.fail(errShort)
		return c
	}
	c.Records = make([]Record, 0, n)
	for range n {
		step := r.uvarint()
		if step == 0 || count+step < count {
			r.fail(fmt.Errorf("a count that does not rise after %d", count))
			return c
		}
		count += step
		rec := Record{Network: c.Network, Origin: c.Origin, Version: Version{c.Epoch, count}, Deletes: r.uvarint(), Key: r.string(MaxKey)}
		if s := r.string(MaxSig); s != "" {
			rec.Sig = []byte(s)
		}
		if rec.Deletes == 0 {
			if d := r.string(MaxData); d != "" {
				rec.Data = []byte(d)
			}
		}
		c.Records = append(c.Records, rec)
	}
	return c
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// Fit gives how many of a chunk's records fit into so many bytes on the wire.
func (c *Chunk) Fit(room int) int {
	empty := Chunk{Network: c.Network, Origin: c.Origin}
	room -= empty.Size()
	for i := range c.Records {
		if room -= c.Records[i].size(); room < 0 {
			return i
		}
	}
	return len(c.Records)
}

// Cut divides a chunk after n records, n at least 1.
func (c *Chunk) Cut(n int) (head, tail Chunk) {
	head, tail = *c, *c
	head.Records, tail.Records = c.Records[:n:n], c.Records[n:]
	tail.From = head.to()
	return head, tail
}
