// Package desired keeps who wants which kernel objects: owner → objects, as one union. It also keeps what the kernel
// is believed to hold of them, so that the next change can be computed without asking the kernel.
//
// It is pure bookkeeping: it never touches a kernel and never waits. internal/reconcile drives it.
package desired

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/seine-net/seine/internal/kernel"
)

// ErrConflict says that another owner wants something else under the same key.
var ErrConflict = errors.New("conflicts with what another owner wants")

// Set is the union of what all owners want. Its methods may be called from several goroutines.
type Set struct {
	mu     sync.Mutex
	owners map[string][]kernel.Key
	table  map[kernel.Key]*entry
}

// entry is one object: who wants it in which form, and in which form the kernel is believed to have it.
type entry struct {
	want   kernel.Object // nil: nobody wants it (any more)
	have   kernel.Object // nil: believed absent
	owners []string
}

// New makes an empty Set.
func New() *Set {
	return &Set{owners: map[string][]kernel.Key{}, table: map[kernel.Key]*entry{}}
}

// Set says that these are all the objects that owner wants; what it wanted before and does not any more is dropped.
// It returns the keys whose state may have to change. With ErrConflict nothing was changed.
func (s *Set) Set(owner string, objects ...kernel.Object) ([]kernel.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[kernel.Key]kernel.Object, len(objects))
	for _, o := range objects {
		k := o.Key()
		if other, ok := next[k]; ok && !same(o, other) {
			return nil, fmt.Errorf("%s: wanted twice in different forms by %q", k, owner)
		}
		next[k] = o
		e := s.table[k]
		if e == nil || e.want == nil || same(e.want, o) {
			continue
		}
		for _, w := range e.owners {
			if w != owner {
				return nil, fmt.Errorf("%s: %w: %q has it as %q", o, ErrConflict, w, e.want)
			}
		}
	}
	dirty := s.release(owner, next)
	keys := make([]kernel.Key, 0, len(next))
	for k, o := range next {
		keys = append(keys, k)
		e := s.table[k]
		if e == nil {
			e = &entry{}
			s.table[k] = e
		}
		if e.want == nil || !same(e.want, o) {
			e.want = o
		}
		if !slices.Contains(e.owners, owner) {
			e.owners = append(e.owners, owner)
		}
		if e.have == nil || !e.want.Holds(e.have) {
			dirty = append(dirty, k)
		}
	}
	if len(keys) > 0 {
		s.owners[owner] = keys
	} else {
		delete(s.owners, owner)
	}
	return dirty, nil
}

// Drop says that owner wants nothing any more. It returns the keys that nobody wants now.
func (s *Set) Drop(owner string) []kernel.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	dirty := s.release(owner, nil)
	delete(s.owners, owner)
	return dirty
}

// release takes owner off all of its objects that are not in keep.
func (s *Set) release(owner string, keep map[kernel.Key]kernel.Object) (dirty []kernel.Key) {
	for _, k := range s.owners[owner] {
		if _, ok := keep[k]; ok {
			continue
		}
		e := s.table[k]
		e.owners = slices.DeleteFunc(e.owners, func(o string) bool { return o == owner })
		if len(e.owners) == 0 {
			e.want = nil
			dirty = append(dirty, k)
			s.forget(k, e)
		}
	}
	return dirty
}

// forget removes an entry that says nothing.
func (s *Set) forget(k kernel.Key, e *entry) {
	if e.want == nil && e.have == nil {
		delete(s.table, k)
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
func (s *Set) Keys(owner string) []kernel.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	if owner != "" {
		return slices.Clone(s.owners[owner])
	}
	keys := make([]kernel.Key, 0, len(s.table))
	for k, e := range s.table {
		if e.want != nil {
			keys = append(keys, k)
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
	if e := s.table[k]; e != nil && len(e.owners) > 0 {
		return e.owners[0]
	}
	return ""
}

// Objects gives, for listing, the wanted form of each key, or the believed one where nobody wants it any more.
func (s *Set) Objects(keys []kernel.Key) []kernel.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]kernel.Object, 0, len(keys))
	for _, k := range keys {
		switch e := s.table[k]; {
		case e == nil:
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
	seen := make(map[kernel.Key]bool, len(keys))
	for _, k := range keys {
		e := s.table[k]
		if e == nil || seen[k] {
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

func (s *Set) see(k kernel.Key, have kernel.Object) {
	e := s.table[k]
	if e == nil {
		if have == nil {
			return
		}
		e = &entry{}
		s.table[k] = e
	}
	switch {
	case have == nil:
	case e.want != nil && e.want.Holds(have):
		have = e.want // one object instead of two equal ones
	case e.want == nil && e.have != nil && e.have.Holds(have):
		have = e.have // it also knows what a listing does not say, such as a sysctl's value of before
	}
	e.have = have
	s.forget(k, e)
}

// Believed gives the keys that the kernel is believed to hold.
func (s *Set) Believed() []kernel.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]kernel.Key, 0, len(s.table))
	for k, e := range s.table {
		if e.have != nil {
			keys = append(keys, k)
		}
	}
	return keys
}
