package table

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const maxOrigins = 1 << 14 // nodes with a stream in one network

// Signer makes and checks signatures. Both have to be quick and are called with whatever lock protects the table.
type Signer interface {
	// Sign gives this node's signature of a message, at most MaxSig bytes.
	Sign(message []byte) []byte
	// Verify reports whether a signature of a message is origin's. An origin whose key is not known yet gives false;
	// what it wrote is asked for again later.
	Verify(origin string, message, sig []byte) bool
}

// Table holds this node's records and those of others, for the networks that it takes part in. It is not safe for
// concurrent use.
type Table struct {
	self   Version // epoch and count of this node's last write
	name   string
	signer Signer
	nets   map[string]*network
	ids    map[uint64]string // digest of its name → network
	graves map[string]uint64 // forgotten node → last epoch that was seen of it
	gen    uint32
}

type network struct {
	id      uint64
	streams map[string]*stream  // by origin
	parts   map[string]struct{} // other nodes that take part; unused for network ""
	buckets [Buckets]uint64
	touched map[string]*stream // by origin: those that buckets are to be brought up to date about
	serial  uint64             // of the last Compare
}

type stream struct {
	main   *view // what is told to the caller; nil until there is something
	staged *view // a full copy that is being built to take the place of main
	bucket int
	digest uint64 // what is in the bucket of it
	seen   uint64 // in which Compare it was
}

// New makes a table for a node. The epoch has to be greater than at any earlier start of the node; if it is not after
// all (a disk was lost or put back), the first peer that knows better makes the table choose another: see Result.Epoch.
func New(node string, epoch uint64, s Signer) (*Table, error) {
	if err := CheckName("node", node, false); err != nil {
		return nil, err
	}
	if epoch == 0 || epoch >= maxEpoch {
		return nil, fmt.Errorf("epoch %d: want 1 to 2^62-1", epoch)
	}
	t := &Table{self: Version{Epoch: epoch}, name: node, signer: s, nets: map[string]*network{}, ids: map[uint64]string{}, graves: map[string]uint64{}}
	t.carry("")
	t.write("", birthKey, nil, false)
	return t, nil
}

// Epoch gives the epoch of this node's writes.
func (t *Table) Epoch() uint64 { return t.self.Epoch }

func (t *Table) carry(name string) {
	n := &network{id: digest([]byte(name)), streams: map[string]*stream{}, parts: map[string]struct{}{}, touched: map[string]*stream{}}
	t.nets[name], t.ids[n.id] = n, name
}

// Put writes one of this node's records. It gives what peers have to be told, nil if the data is there already. The data
// is kept and must not be changed.
func (t *Table) Put(network, key string, data []byte) (*Chunk, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if t.nets[network] == nil {
		return nil, fmt.Errorf("record %q: network %q is not subscribed", key, network)
	}
	if len(data) > MaxData {
		return nil, fmt.Errorf("record %q in network %q: has %d bytes of data; want at most %d", key, network, len(data), MaxData)
	}
	entries := t.nets[network].streams[t.name].main.entries
	e := entries[key]
	if e != nil && e.Deletes == 0 && bytes.Equal(e.Data, data) {
		return nil, nil
	}
	if e == nil && len(entries) >= maxStream {
		return nil, fmt.Errorf("record %q in network %q: there are %d records, the most that a node can have there", key, network, len(entries))
	}
	return t.write(network, key, data, false), nil
}

// Delete removes one of this node's records. It gives what peers have to be told, nil if there is no such record.
func (t *Table) Delete(network, key string) *Chunk {
	n := t.nets[network]
	if n == nil || checkKey(key) != nil {
		return nil
	}
	if e := n.streams[t.name].main.entries[key]; e == nil || e.Deletes != 0 {
		return nil
	}
	return t.write(network, key, nil, true)
}

// write appends to one of this node's streams, and makes the stream where there is none.
func (t *Table) write(network, key string, data []byte, del bool) *Chunk {
	n := t.nets[network]
	s := n.streams[t.name]
	if s == nil {
		s = &stream{main: newView(t.self.Epoch, t.self.Count), bucket: Bucket(t.name)}
		n.streams[t.name] = s
	}
	v := s.main
	c := &Chunk{Network: network, Origin: t.name, Epoch: v.epoch, From: v.have, Floor: v.floor}
	t.self.Count++
	r := Record{Origin: t.name, Network: network, Key: key, Version: t.self, Data: data}
	if del {
		r.Deletes = v.entries[key].Version.Count
	}
	if t.signer != nil {
		r.Sig = t.signer.Sign(r.Message())
	}
	v.set(r, t.gen)
	v.have = t.self.Count
	n.touch(t.name, s)
	c.Seen, c.Last, c.Records = v.have, v.have, []Record{r}
	return c
}

// Networks gives the networks that this node takes part in, by name.
func (t *Table) Networks() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(t.nets)), func(n string) bool { return n == "" })
}

// Subscribe says which networks this node takes part in, all of them. It gives what peers have to be told, and a Delete
// for each record of other nodes that goes with a network. This node's own records in it go too.
func (t *Table) Subscribe(networks []string) ([]*Chunk, []Change, error) {
	for _, n := range networks {
		if err := CheckName("network", n, false); err != nil {
			return nil, nil, err
		}
	}
	var tell []*Chunk
	var gone []Change
	for _, name := range t.Networks() {
		if slices.Contains(networks, name) {
			continue
		}
		n := t.nets[name]
		for _, origin := range slices.Sorted(maps.Keys(n.streams)) {
			if origin != t.name {
				gone = append(gone, t.told(changes(n.streams[origin].main, nil))...)
			}
		}
		delete(t.ids, n.id)
		delete(t.nets, name)
		tell = append(tell, t.write("", partKey+name, nil, true))
	}
	for _, name := range networks {
		if t.nets[name] != nil {
			continue
		}
		t.carry(name)
		// The order matters: who knows of the second write, and that network "" is known beyond it, can tell that the
		// first was not simply missed.
		tell = append(tell, t.write("", partKey+name, nil, false), t.write(name, birthKey, nil, false))
		for origin := range t.nets[""].streams {
			t.recount(origin, name)
		}
	}
	return tell, gone, nil
}

// Leave deletes all that this node has announced and says that it leaves the cluster. It gives what peers have to be told.
func (t *Table) Leave() ([]*Chunk, []Change) {
	tell, gone, _ := t.Subscribe(nil)
	for _, e := range t.nets[""].streams[t.name].main.after(0) {
		if !e.own() && e.Deletes == 0 {
			tell = append(tell, t.write("", e.Key, nil, true))
		}
	}
	return append(tell, t.write("", leftKey, nil, false)), gone
}

// Left reports whether a node has said that it leaves, and has not come back since.
func (t *Table) Left(node string) bool {
	s := t.nets[""].streams[node]
	return s != nil && s.main != nil && s.main.entries[leftKey] != nil
}

// Participants gives the other nodes that take part in a network, in no order, as a map that is not to be changed. For
// network "" it gives none: that are all.
func (t *Table) Participants(network string) map[string]struct{} {
	if n := t.nets[network]; n != nil {
		return n.parts
	}
	return nil
}

// Shares reports whether another node takes part in a network that this node takes part in; in "" all do.
func (t *Table) Shares(network, node string) bool {
	n := t.nets[network]
	if n == nil || network == "" {
		return n != nil
	}
	_, ok := n.parts[node]
	return ok
}

// Records gives the records of a network, this node's own too, by origin and key.
func (t *Table) Records(network string) []Record {
	n := t.nets[network]
	if n == nil {
		return nil
	}
	var all []Record
	for _, s := range n.streams {
		if s.main != nil {
			for _, e := range s.main.entries {
				if e.Deletes == 0 && !e.own() {
					all = append(all, e.Record)
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b Record) int {
		if c := strings.Compare(a.Origin, b.Origin); c != 0 {
			return c
		}
		return strings.Compare(a.Key, b.Key)
	})
	return all
}

// Result says what came of a chunk.
type Result struct {
	Changes []Change // of other nodes' records
	Fresh   bool     // there was something new in it
	Gap     bool     // something before it is missing: ask the sender
	Epoch   uint64   // not 0: this node's own epoch was used up, this is the new one; the caller has to keep it
}

// ErrForged is the error of Apply for a record whose signature is not its origin's.
var ErrForged = errors.New("signature is not the origin's")

// Apply takes in what a peer sent. An error means that the chunk was no good, and nothing of it was taken.
func (t *Table) Apply(c *Chunk) (Result, error) {
	n := t.nets[c.Network]
	if n == nil || c.Epoch <= t.graves[c.Origin] {
		return Result{}, nil // this node does not take part any more, or has forgotten the origin
	}
	if err := c.check(); err != nil {
		return Result{}, err
	}
	if c.Origin == t.name {
		return t.outdone(c)
	}
	s := n.streams[c.Origin]
	if s == nil {
		if len(n.streams) >= maxOrigins {
			return Result{}, fmt.Errorf("network %q: %d nodes announce records, the most that there can be", c.Network, maxOrigins)
		}
		s = &stream{bucket: Bucket(c.Origin)}
	}
	// Where a node takes part is said in network "". Without that one could not tell when the stream is over.
	if a := t.nets[""].streams[c.Origin]; c.Network != "" && (a == nil || a.main == nil || a.main.epoch < c.Epoch) {
		return Result{Gap: true}, nil
	}
	if s.main != nil && c.Epoch < s.main.epoch || c.From == 0 && t.ended(c.Origin, c.Network, c.Records[0].Version) {
		return Result{}, nil
	}
	res, err := t.take(n, s, c)
	if err == nil && res.Fresh {
		n.streams[c.Origin] = s
		n.touch(c.Origin, s)
	}
	return res, err
}

// take decides whether a chunk goes on with the view that there is, or with a full copy aside.
func (t *Table) take(n *network, s *stream, c *Chunk) (Result, error) {
	if v := s.main; v != nil && v.epoch == c.Epoch && (v.fits(c) || c.From > 0) && !(v.doubt && c.From == 0) {
		if s.staged == nil || !s.staged.fits(c) {
			return t.extend(n, v, c)
		}
	}
	v := s.staged
	if v == nil || !v.fits(c) {
		if c.From > 0 {
			return Result{Gap: true}, nil
		}
		v = newView(c.Epoch, c.Floor)
	}
	news := v.news(c)
	if err := t.verify(v, news); err != nil || len(news) == 0 {
		return Result{}, err
	}
	for _, r := range news {
		v.set(*r, t.gen)
	}
	v.advance(c)
	v.target = c.Last
	old := s.main
	if old != nil && (v.have < v.target || old.epoch == v.epoch && v.have < old.have) {
		s.staged = v
		return Result{Fresh: true}, nil
	}
	s.main, s.staged, n.streams[c.Origin] = v, nil, s
	if old != nil {
		v.inherit(old)
	}
	all := changes(old, v)
	return Result{Fresh: true, Changes: append(t.told(all), t.recountAll(c)...)}, nil
}

// extend takes a chunk into the view that there is.
func (t *Table) extend(n *network, v *view, c *Chunk) (Result, error) {
	news := v.news(c)
	if err := t.verify(v, news); err != nil {
		return Result{}, err
	}
	res := Result{Fresh: len(news) > 0 || v.have < c.to() && v.fits(c)}
	var all []Change
	for _, r := range news {
		old := v.entries[r.Key]
		v.set(*r, t.gen)
		switch {
		case r.Deletes == 0 && (old == nil || old.Deletes != 0 || !bytes.Equal(old.Data, r.Data)):
			all = append(all, Change{Put, *r})
		case r.Deletes != 0 && old != nil && old.Deletes == 0:
			all = append(all, Change{Delete, old.Record})
		}
	}
	v.advance(c)
	if v.have < v.target && v.fits(c) {
		v.target = c.Last
	}
	res.Gap = v.have < c.to()
	res.Changes = append(t.told(all), t.recountAll(c)...)
	return res, nil
}

func (t *Table) verify(v *view, news []*Record) error {
	if most := 2 * maxStream; len(v.entries)+len(news) > most { // this node may have more deletes than the origin
		return fmt.Errorf("stream has more than %d records", most)
	}
	for _, r := range news {
		if t.signer != nil && !t.signer.Verify(r.Origin, r.Message(), r.Sig) {
			return fmt.Errorf("record %q of %q in network %q: %w", r.Key, r.Origin, r.Network, ErrForged)
		}
	}
	return nil
}

// told leaves out of changes what is the table's own.
func (t *Table) told(all []Change) []Change {
	return slices.DeleteFunc(all, func(c Change) bool { return c.Record.own() })
}

// ended reports whether a stream that began with a certain write is over: its origin takes part no more, or anew.
// Without it a peer that has not heard of that would bring the stream back.
func (t *Table) ended(origin, name string, birth Version) bool {
	s := t.nets[""].streams[origin]
	if name == "" || s == nil || s.main == nil {
		return false
	}
	part := s.main.entries[partKey+name]
	if part == nil { // it may still be on its way, if it is later than what is known
		return birth.Compare(Version{s.main.epoch, s.main.have}) < 0
	}
	return birth.Compare(part.Version) < 0 // before it left, or before it came back
}

// recountAll looks at what a chunk says about where its origin takes part. That nothing is said says something too.
func (t *Table) recountAll(c *Chunk) []Change {
	var all []Change
	if c.Network == "" {
		for name := range t.nets {
			all = append(all, t.recount(c.Origin, name)...)
		}
	}
	return all
}

// recount finds out anew whether a node takes part in a network, and drops its records there if it does not.
func (t *Table) recount(origin, name string) []Change {
	n, s := t.nets[name], t.nets[""].streams[origin]
	if name == "" || origin == t.name || n == nil || s == nil || s.main == nil {
		return nil
	}
	if part := s.main.entries[partKey+name]; part != nil && part.Deletes == 0 {
		n.parts[origin] = struct{}{}
		return nil // what it said before a restart holds until what it says now is there
	}
	delete(n.parts, origin)
	old := n.streams[origin]
	if old == nil || old.main == nil || !t.ended(origin, name, old.main.entries[birthKey].Version) {
		return nil
	}
	n.drop(origin)
	return t.told(changes(old.main, nil))
}

// outdone looks at what a peer has of this node. Nobody else could have written it: if it is later than what this node
// knows of itself, this node has lost its memory, and goes on in an epoch beyond.
func (t *Table) outdone(c *Chunk) (Result, error) {
	last := c.Records[len(c.Records)-1]
	if last.Version.Compare(Version{t.self.Epoch, t.nets[c.Network].streams[t.name].main.have}) <= 0 {
		return Result{}, nil
	}
	if t.signer != nil && !t.signer.Verify(t.name, last.Message(), last.Sig) {
		return Result{}, fmt.Errorf("record %q of this node: %w", last.Key, ErrForged)
	}
	// The very next epoch may have been used as well, and be known to others.
	next := c.Epoch + 1 + digest(fmt.Append(nil, t.name, t.self, last.Version))%1024
	if next >= maxEpoch {
		return Result{}, fmt.Errorf("epoch %d of this node is the last that there is", c.Epoch)
	}
	t.self = Version{Epoch: next}
	old := map[string][]*entry{}
	for name, n := range t.nets {
		old[name] = n.streams[t.name].main.after(0)
		n.drop(t.name)
	}
	// "" first: there it says in which networks it takes part.
	for _, name := range slices.Sorted(maps.Keys(t.nets)) {
		t.write(name, birthKey, nil, false)
		for _, e := range old[name] {
			if e.Key != birthKey && e.Deletes == 0 {
				t.write(name, e.Key, e.Data, false)
			}
		}
	}
	return Result{Epoch: t.self.Epoch}, nil
}

// Forget drops all records of a node that is gone, and takes none of the epochs seen so far until Revive.
func (t *Table) Forget(node string) []Change {
	var all []Change
	if node == t.name {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(t.nets)) {
		n := t.nets[name]
		delete(n.parts, node)
		if s := n.streams[node]; s != nil {
			if s.main != nil {
				t.graves[node] = max(t.graves[node], s.main.epoch)
			}
			n.drop(node)
			all = append(all, t.told(changes(s.main, nil))...)
		}
	}
	return all
}

// Revive takes records of a node again that was forgotten.
func (t *Table) Revive(node string) { delete(t.graves, node) }

// Compact forgets deletes that were there at the call before last: called every d, each is kept for d to 2 d. What is
// kept only makes it cheaper for a peer to catch up; none comes back without it.
func (t *Table) Compact() {
	t.gen++
	for _, n := range t.nets {
		for _, s := range n.streams {
			if s.main != nil && t.gen > 1 {
				s.main.compact(t.gen - 1)
			}
		}
	}
}
