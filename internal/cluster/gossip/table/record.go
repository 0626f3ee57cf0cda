// Package table holds what nodes announce about themselves, and says what two nodes have to tell each other. It computes
// only: no clock, no chance, no socket, no lock; package gossip gives it those.
//
// Each node is the only writer of its records. What one node (the origin) says about one network is a stream: its writes
// are numbered, and a copy of the stream is told by one number, the count up to which every write is known. So a digest
// is one number per stream, and what a peer lacks is "all after that number".
//
//	epoch   grows with each start of the origin: a stream of a later epoch replaces an earlier one as a whole
//	have    every write up to this count is known
//	floor   deletes up to this count may have been forgotten, so who has less needs a full copy
//
//	writes   1 2 3 4 5 6 7 8 9        a copy with have=6, which got 9 early: it asks for all after 6,
//	         . . . . . .     9        and what it got of 9 is used at once
//
// A delete is a write too (a tombstone, which names the version that it deletes). Tombstones may be forgotten at any
// time: the floor rises, and who is below it gets a full copy, which is built aside and then put in place of the old one.
// So a delete can't be undone by a node that was away, however long.
package table

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
)

// Limits of what is taken from callers and from the wire.
const (
	MaxName   = 253      // bytes of a node's or a network's name
	MaxKey    = 512      // bytes of a record's key
	MaxData   = 32 << 10 // bytes of a record's data
	MaxSig    = 128      // bytes of a signature
	maxEpoch  = 1 << 62  // so that there is always a later one
	maxStream = 1 << 16  // records, deleted ones included, of one node in one network
)

// Keys that begin with a zero byte are the table's own.
const (
	birthKey = "\x00"  // the first write of every stream: it shows that the epoch is the origin's own
	partKey  = "\x00+" // + network, in the stream of network "": the origin takes part in the network
	leftKey  = "\x00-" // in the stream of network "": the origin has left the cluster
)

// Version orders the writes of one origin, over all its networks.
type Version struct {
	Epoch uint64 // grows with each start of the origin
	Count uint64 // grows with each write; the first is 1
}

// Compare gives -1, 0 or 1: v is older than, the same as, or newer than w.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Epoch, w.Epoch), cmp.Compare(v.Count, w.Count))
}

// String gives epoch and count.
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Epoch, v.Count) }

// Record is one thing that a node announces.
type Record struct {
	Origin  string // the node that wrote it, and that it is about
	Network string // only nodes that take part in it hold the record; "" goes to all
	Key     string // unique for an origin in a network
	Version Version
	Data    []byte // opaque here; nil in a tombstone
	Deletes uint64 // not 0 in a tombstone: the count of the version that it deletes
	Sig     []byte // of the origin, over Message; nil in a cluster without signatures
}

// own reports whether the record is the table's own and nothing that the caller put.
func (r *Record) own() bool { return strings.HasPrefix(r.Key, "\x00") }

// Message gives the bytes that the origin signs: every field of the record, and what kind of message it is.
func (r *Record) Message() []byte {
	b := append(make([]byte, 0, 96+len(r.Key)+len(r.Data)), "seine gossip record 1\n"...)
	b = appendString(b, r.Network)
	b = appendString(b, r.Origin)
	b = binary.BigEndian.AppendUint64(b, r.Version.Epoch)
	b = binary.BigEndian.AppendUint64(b, r.Version.Count)
	b = binary.BigEndian.AppendUint64(b, r.Deletes)
	b = appendString(b, r.Key)
	return append(b, r.Data...)
}

// Chunk is a part of a stream: of all writes after From and up to its last record, these are the ones that still count.
type Chunk struct {
	Network, Origin string
	Epoch           uint64
	From            uint64   // the part begins after this count; 0: it is the beginning of a full copy
	Floor           uint64   // deletes up to here may be missing in it
	Seen            uint64   // no write up to here is in it that a delete up to here has undone
	Last            uint64   // the count up to which the sender knows the stream to go
	Records         []Record // by ascending count; at least one
}

// to is the count up to which the chunk says everything. It is no field: it would be a claim that nobody signed.
func (c *Chunk) to() uint64 { return c.Records[len(c.Records)-1].Version.Count }

// check says what is wrong with a chunk whatever a table holds. Lengths were checked when it was decoded.
func (c *Chunk) check() error {
	if c.Origin == "" || c.Epoch == 0 || c.Epoch > maxEpoch || len(c.Records) == 0 {
		return fmt.Errorf("chunk of %q in network %q: epoch %d with %d records; want an origin, an epoch of 1 to 2^62 and a record",
			c.Origin, c.Network, c.Epoch, len(c.Records))
	}
	last := c.From
	for i := range c.Records {
		r := &c.Records[i]
		if r.Origin != c.Origin || r.Network != c.Network || r.Version.Epoch != c.Epoch {
			return fmt.Errorf("record %q of %q in network %q, version %v: is in a chunk of %q in network %q, epoch %d", r.Key, r.Origin, r.Network, r.Version, c.Origin, c.Network, c.Epoch)
		}
		if r.Version.Count <= last || r.Deletes >= r.Version.Count || r.Key == "" || r.Deletes != 0 && len(r.Data) != 0 {
			return fmt.Errorf("record %q of %q in network %q: count %d after %d, deletes %d; want a key, a rising count, and no data in a delete of an earlier count",
				r.Key, c.Origin, c.Network, r.Version.Count, last, r.Deletes)
		}
		last = r.Version.Count
	}
	if c.From == 0 && c.Records[0].Key != birthKey {
		return fmt.Errorf("chunk of %q in network %q begins with record %q; want a full copy to begin with the stream's first", c.Origin, c.Network, c.Records[0].Key)
	}
	return nil
}

// Kind says what happened to a record.
type Kind uint8

const (
	Put    Kind = iota // it is new or has other data
	Delete             // it is gone: deleted, or its origin left the network, or was forgotten
)

// String gives the kind in one word.
func (k Kind) String() string { return [...]string{"put", "delete"}[k] }

// Change is what a table tells about the record of another node.
type Change struct {
	Kind   Kind
	Record Record // as it is now; for Delete as it was, so that Version is the version that was deleted
}

// CheckName says what is wrong with the name of a node or, with empty allowed, of a network.
func CheckName(what, name string, empty bool) error {
	if len(name) > MaxName || name == "" && !empty || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%s %q: has %d bytes; want 1 to %d and no zero byte", what, name, len(name), MaxName)
	}
	return nil
}

func checkKey(key string) error {
	if key == "" || len(key) > MaxKey || key[0] == 0 {
		return fmt.Errorf("key %q: has %d bytes; want 1 to %d, the first not zero", key, len(key), MaxKey)
	}
	return nil
}

// digest shortens a SHA-256 to what two nodes compare. Who could make two records with one digest could only make his
// own records differ from node to node, until the next write.
func digest(b []byte) uint64 {
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}
