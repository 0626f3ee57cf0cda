// Package desired keeps who wants which kernel objects: owner → objects, as one union. It also keeps what the kernel
// is believed to hold of them, so that the next change can be computed without asking the kernel.
//
// It is pure bookkeeping: it never touches a kernel and never waits. internal/reconcile drives it.
package desired

import (
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"sync"

	"github.com/seine-net/seine/internal/kernel"
)

// ErrConflict says that another owner wants something else under the same key.
var ErrConflict = errors.New("conflicts with what another owner wants")

// Set is the union of what all owners want. Its methods may be called from several goroutines.
//
// There are a dozen objects per endpoint, so entries are kept small: keys as hashes of 128 bits, owners as pointers.
type Set struct {
	seeds [2]maphash.Seed

	mu     sync.Mutex
	owners map[string]*owner
	table  map[id]entry
	// shared has the owners beyond the first of objects that several want.
	shared map[id][]*owner
}

// id stands for a kernel.Key.
type id [2]uint64

// entry is one object: in which form it is wanted, in which the kernel is believed to have it, and for whom.
type entry struct {
	want  kernel.Object // nil: nobody wants it (any more)
	have  kernel.Object // nil: believed absent
	owner *owner
}

// key is the entry's key; an entry that says nothing is not kept, so there is one.
func (e entry) key() kernel.Key {
	if e.want != nil {
		return e.want.Key()
	}
	return e.have.Key()
}

type owner struct {
	name string
	ids  []id
}

// New makes an empty Set.
func New() *Set {
	return &Set{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, owners: map[string]*owner{},
		table: map[id]entry{}, shared: map[id][]*owner{}}
}

func (s *Set) id(k kernel.Key) id {
	return id{maphash.Comparable(s.seeds[0], k), maphash.Comparable(s.seeds[1], k)}
}

// Set says that these are all the objects that owner wants; what it wanted before and does not any more is dropped.
// It returns the keys whose state may have to change. With ErrConflict nothing was changed.
func (s *Set) Set(name string, objects ...kernel.Object) ([]kernel.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[id]kernel.Object, len(objects))
	for _, o := range objects {
		k := s.id(o.Key())
		if other, ok := next[k]; ok && !same(o, other) {
			return nil, fmt.Errorf("%s: wanted twice in different forms by %q", o.Key(), name)
		}
		next[k] = o
		if e := s.table[k]; e.want != nil && !same(e.want, o) {
			if by := s.otherOwner(k, e, name); by != "" {
				return nil, fmt.Errorf("%s: %w: %q has it as %q", o, ErrConflict, by, e.want)
			}
		}
	}
	w := s.owners[name]
	if w == nil {
		w = &owner{name: name}
	}
	dirty := s.release(w, next)
	w.ids = make([]id, 0, len(next))
	for k, o := range next {
		w.ids = append(w.ids, k)
		e := s.table[k]
		if e.want == nil || !same(e.want, o) {
			e.want = o
		}
		switch {
		case e.owner == nil:
			e.owner = w
		case e.owner != w && !slices.Contains(s.shared[k], w):
			s.shared[k] = append(s.shared[k], w)
		}
		s.table[k] = e
		if e.have == nil || !e.want.Holds(e.have) {
			dirty = append(dirty, o.Key())
		}
	}
	if len(w.ids) > 0 {
		s.owners[name] = w
	} else {
		delete(s.owners, name)
	}
	return dirty, nil
}

// otherOwner names an owner of an object who is not name.
func (s *Set) otherOwner(k id, e entry, name string) string {
	if e.owner.name != name {
		return e.owner.name
	}
	for _, w := range s.shared[k] {
		return w.name
	}
	return ""
}

// Drop says that owner wants nothing any more. It returns the keys that nobody wants now.
func (s *Set) Drop(name string) []kernel.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.owners[name]
	if w == nil {
		return nil
	}
	delete(s.owners, name)
	return s.release(w, nil)
}

// release takes an owner off all of its objects that are not in keep.
func (s *Set) release(w *owner, keep map[id]kernel.Object) (dirty []kernel.Key) {
	for _, k := range w.ids {
		if _, ok := keep[k]; ok {
			continue
		}
		e, more := s.table[k], s.shared[k]
		switch {
		case e.owner != w:
			s.share(k, slices.DeleteFunc(more, func(o *owner) bool { return o == w }))
			continue
		case len(more) > 0:
			e.owner = more[0]
			s.share(k, more[1:])
		default:
			dirty = append(dirty, e.key())
			e.owner, e.want = nil, nil
		}
		s.keep(k, e)
	}
	return dirty
}

func (s *Set) share(k id, owners []*owner) {
	if s.shared[k] = owners; len(owners) == 0 {
		delete(s.shared, k)
	}
}

// keep stores an entry, unless it says nothing.
func (s *Set) keep(k id, e entry) {
	if e.want == nil && e.have == nil {
		delete(s.table, k)
	} else {
		s.table[k] = e
	}
}

func same(a, b kernel.Object) bool { return a == b || a.Holds(b) && b.Holds(a) }

// Owners gives the names of all owners, sorted.
func (s *Set) Owners() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.owners))
}

// Keys gives the keys that owner wants; those of all owners for "".
func (s *Set) Keys(name string) []kernel.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "" {
		w := s.owners[name]
		if w == nil {
			return nil
		}
		keys := make([]kernel.Key, len(w.ids))
		for i, k := range w.ids {
			keys[i] = s.table[k].key()
		}
		return keys
	}
	keys := make([]kernel.Key, 0, len(s.table))
	for _, e := range s.table {
		if e.want != nil {
			keys = append(keys, e.key())
		}
	}
	return keys
}

// Len is how many objects are wanted.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.table {
		if e.want != nil {
			n++
		}
	}
	return n
}

// OwnerOf names an owner of the key, "" where nobody wants it.
func (s *Set) OwnerOf(k kernel.Key) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.table[s.id(k)].owner; w != nil {
		return w.name
	}
	return ""
}

// Objects gives, for listing, the wanted form of each key, or the believed one where nobody wants it any more.
func (s *Set) Objects(keys []kernel.Key) []kernel.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]kernel.Object, 0, len(keys))
	for _, k := range keys {
		switch e := s.table[s.id(k)]; {
		case e.want != nil:
			out = append(out, e.want)
		case e.have != nil:
			out = append(out, e.have)
		}
	}
	return out
}

// Changes gives the changes that the keys need, going by what the kernel is believed to hold.
func (s *Set) Changes(keys []kernel.Key) []kernel.Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	var want, have []kernel.Object
	seen := make(map[id]bool, len(keys))
	for _, key := range keys {
		k := s.id(key)
		e := s.table[k]
		if seen[k] {
			continue
		}
		seen[k] = true
		if e.want != nil {
			want = append(want, e.want)
		}
		if e.have != nil {
			have = append(have, e.have)
		}
	}
	return kernel.Diff(want, have)
}

// Applied notes that the kernel carried a change out.
func (s *Set) Applied(c kernel.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.see(c.Key(), c.New)
}

// Seen notes what a listing found under the keys: found has those that exist, all others are absent.
func (s *Set) Seen(keys []kernel.Key, found map[kernel.Key]kernel.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.see(k, found[k])
	}
}

func (s *Set) see(key kernel.Key, have kernel.Object) {
	k := s.id(key)
	e := s.table[k]
	switch {
	case have == nil:
	case e.want != nil && e.want.Holds(have):
		have = e.want // one object instead of two equal ones
	case e.want == nil && e.have != nil && e.have.Holds(have):
		have = e.have // it also knows what a listing does not say, such as a sysctl's value of before
	}
	e.have = have
	s.keep(k, e)
}

// Believed gives the keys that the kernel is believed to hold.
func (s *Set) Believed() []kernel.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]kernel.Key, 0, len(s.table))
	for _, e := range s.table {
		if e.have != nil {
			keys = append(keys, e.key())
		}
	}
	return keys
}
