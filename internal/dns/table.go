package dns

import (
	"iter"
	"net/netip"
	"slices"
	"sync"
)

// Record is what one endpoint brings into a Table.
type Record struct {
	// Names are the endpoint's name and its aliases; a reverse look-up gives the first one. Case does not matter.
	Names []string
	// Network is the network that the names are seen in.
	Network string
	// Aliases are further names of that network in "name.network"; the last record of the network has them right.
	Aliases []string
	// Addrs are the endpoint's addresses in that network.
	Addrs []netip.Addr
	// Container ties the endpoints of one container together: it sees the networks of all of them, whichever of its
	// addresses it asks from. "" is a container with this endpoint only.
	Container string
	// Internal says that the network has no way out, so nothing is forwarded on behalf of this endpoint.
	Internal bool
}

// Table is a Zone made of Records: a pure index that somebody feeds. It is safe for use by several goroutines; its
// cost in memory is measured by a test. The zero value is an empty Table.
//
// A name is looked for, in this order, as "name.network", with the network's own name and then with its aliases, and as
// a name or alias in every network of the asker; all also below Domain. Several owners of a name are all answered, in the order of their addresses.
type Table struct {
	mu         sync.RWMutex
	entries    map[string]*entry
	networks   map[string]*network
	addrs      index[rawAddr]
	containers index[string]
	guests     []netip.Prefix
}

var (
	_ Zone   = (*Table)(nil)
	_ Scoped = (*Table)(nil)
)

// NewTable makes an empty Table.
func NewTable() *Table { return new(Table) }

type entry struct {
	names     []string
	addrs     []rawAddr
	container string
	network   *network
	internal  bool
}

type network struct {
	name    string   // folded
	aliases []string // folded
	entries int
	names   index[string]
}

// rawAddr is an address of either family, IPv4 mapped: two thirds of a netip.Addr, which counts at two of them in
// every endpoint and its index.
type rawAddr [16]byte

func raw(a netip.Addr) rawAddr { return a.As16() }

// index finds entries. Most keys have one, which is kept without a slice around it.
type index[K comparable] struct {
	one  map[K]*entry
	more map[K][]*entry
}

func (x *index[K]) add(k K, e *entry) {
	switch {
	case x.one == nil:
		x.one = map[K]*entry{k: e}
	case x.one[k] == nil:
		x.one[k] = e
	default:
		if x.more == nil {
			x.more = map[K][]*entry{}
		}
		x.more[k] = append(x.more[k], e)
	}
}

func (x *index[K]) remove(k K, e *entry) {
	rest := x.more[k]
	if x.one[k] != e {
		rest = slices.DeleteFunc(rest, func(o *entry) bool { return o == e })
	} else if last := len(rest) - 1; last >= 0 {
		x.one[k], rest[last], rest = rest[last], nil, rest[:last]
	} else {
		delete(x.one, k)
	}
	if len(rest) == 0 {
		delete(x.more, k)
	} else {
		x.more[k] = rest
	}
}

// all goes through the entries under k.
func (x *index[K]) all(k K) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		e := x.one[k]
		if e == nil || !yield(e) {
			return
		}
		for _, e := range x.more[k] {
			if !yield(e) {
				return
			}
		}
	}
}

// Set puts a record in place of the one under the same key, at once for all readers. The record's slices are copied.
func (t *Table) Set(key string, rec Record) {
	e := &entry{container: rec.Container, internal: rec.Internal}
	e.names = make([]string, 0, len(rec.Names))
	for _, n := range rec.Names {
		if n = fold(n); n != "" && !slices.Contains(e.names, n) {
			e.names = append(e.names, n)
		}
	}
	e.addrs = make([]rawAddr, 0, len(rec.Addrs))
	for _, a := range rec.Addrs {
		if a.IsValid() && !slices.Contains(e.addrs, raw(a)) {
			e.addrs = append(e.addrs, raw(a))
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(key)
	t.addLocked(key, fold(rec.Network), e)
	if len(e.network.aliases)+len(rec.Aliases) > 0 {
		e.network.aliases = make([]string, len(rec.Aliases))
		for i, a := range rec.Aliases {
			e.network.aliases[i] = fold(a)
		}
	}
}

// Drop takes the record under key away. There need not be one.
func (t *Table) Drop(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(key)
}

func (t *Table) addLocked(key, name string, e *entry) {
	if t.entries == nil {
		t.entries, t.networks = map[string]*entry{}, map[string]*network{}
	}
	n := t.networks[name]
	if n == nil {
		n = &network{name: name}
		t.networks[name] = n
	}
	n.entries++
	e.network = n
	t.entries[key] = e
	for _, s := range e.names {
		n.names.add(s, e)
	}
	for _, a := range e.addrs {
		t.addrs.add(a, e)
	}
	if e.container != "" {
		t.containers.add(e.container, e)
	}
}

func (t *Table) dropLocked(key string) {
	e := t.entries[key]
	if e == nil {
		return
	}
	delete(t.entries, key)
	for _, s := range e.names {
		e.network.names.remove(s, e)
	}
	for _, a := range e.addrs {
		t.addrs.remove(a, e)
	}
	if e.container != "" {
		t.containers.remove(e.container, e)
	}
	if e.network.entries--; e.network.entries == 0 {
		delete(t.networks, e.network.name)
	}
}

// ofLocked gives the entries of the container (or containers, while an address changes hands) at an address.
func (t *Table) ofLocked(from netip.Addr) []*entry {
	var out []*entry
	for e := range t.addrs.all(raw(from)) {
		if e.container == "" {
			out = append(out, e)
			continue
		}
		for c := range t.containers.all(e.container) {
			if !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	return out
}

// Lookup implements Zone.
func (t *Table) Lookup(from netip.Addr, name string) (addrs []netip.Addr, known bool) {
	name = fold(name)
	short, below := cutLabel(name, Domain)
	t.mu.RLock()
	defer t.mu.RUnlock()
	mine := t.ofLocked(from)
	if len(mine) == 0 {
		return nil, false
	}
	known = name == Domain
	collect := func(n *network, name string) {
		for o := range n.names.all(name) {
			known = true
			for _, a := range o.addrs {
				addrs = append(addrs, netip.AddrFrom16(a).Unmap())
			}
		}
	}
	for _, e := range mine {
		if s, ok := cutLabel(short, e.network.name); ok {
			collect(e.network, s)
		}
		// A name that has names below it exists, even if it has no address (RFC 8020).
		known = known || below && (short == e.network.name || slices.Contains(e.network.aliases, short))
	}
	if len(addrs) == 0 {
		for _, e := range mine {
			for _, alias := range e.network.aliases {
				if s, ok := cutLabel(short, alias); ok {
					collect(e.network, s)
				}
			}
		}
	}
	if len(addrs) == 0 {
		for _, e := range mine {
			collect(e.network, short)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), known
}

// Reverse implements Zone: it gives "name.network" of the address's owner.
func (t *Table) Reverse(from, addr netip.Addr) (name string, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	mine := t.ofLocked(from)
	for o := range t.addrs.all(raw(addr)) {
		seen := slices.ContainsFunc(mine, func(e *entry) bool { return e.network == o.network })
		if seen && len(o.names) > 0 {
			return o.names[0] + "." + o.network.name, true
		}
	}
	return "", false
}

// SetGuests says who may ask, besides those who have an address in the table: for what is outside, while no name of the
// table's exists for them.
func (t *Table) SetGuests(from []netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.guests = slices.Clone(from)
}

func (t *Table) guestLocked(from netip.Addr) bool {
	return slices.ContainsFunc(t.guests, func(p netip.Prefix) bool { return p.Contains(from) })
}

// AllowForward implements Zone: one network with a way out is enough.
func (t *Table) AllowForward(from netip.Addr) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if mine := t.ofLocked(from); len(mine) > 0 {
		return slices.ContainsFunc(mine, func(e *entry) bool { return !e.internal })
	}
	return t.guestLocked(from)
}

// Serves implements Scoped: whoever has an address in the table may ask, and guests.
func (t *Table) Serves(from netip.Addr) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.addrs.one[raw(from)] != nil || t.guestLocked(from)
}

// Len is the number of records.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.entries)
}
