package kernel

import (
	"cmp"
	"slices"
)

// Diff gives the changes that turn actual into want, in an order that can be applied: first the deletions, last made
// first, then creations and updates by Kind. Objects of want that actual holds (Object.Holds) give no change; objects
// of actual that are not wanted are deleted. A link that can't be changed in place is deleted and made anew, which
// takes its addresses and routes with it: after such a change a second Diff is needed.
func Diff(want, actual []Object) []Change {
	have := make(map[Key]Object, len(actual))
	for _, o := range actual {
		have[o.Key()] = o
	}
	var del, add []Change
	for _, w := range want {
		k := w.Key()
		a, ok := have[k]
		delete(have, k)
		switch {
		case !ok:
			add = append(add, Change{Op: Create, New: w})
		case w.Holds(a):
		case mustReplace(w, a):
			del = append(del, Change{Op: Delete, Old: a})
			add = append(add, Change{Op: Create, New: w})
		default:
			add = append(add, Change{Op: Update, Old: a, New: w})
		}
	}
	for _, a := range have {
		del = append(del, Change{Op: Delete, Old: a})
	}
	SortChanges(add)
	SortChanges(del)
	return append(del, add...)
}

func mustReplace(want, actual Object) bool {
	w, ok1 := want.(*Link)
	a, ok2 := actual.(*Link)
	return ok1 && ok2 && w.Replace(a)
}

// SortChanges puts changes into the order in which they can be applied: deletions first and from the last Kind to the
// first, then the others from the first Kind to the last. Within a kind, a link comes after its master, a route after
// the routes that its gateway is reached by, and otherwise the key decides, so that the order is always the same.
func SortChanges(changes []Change) {
	slices.SortStableFunc(changes, func(a, b Change) int {
		if (a.Op == Delete) != (b.Op == Delete) {
			if a.Op == Delete {
				return -1
			}
			return 1
		}
		c := order(a, b)
		if a.Op == Delete {
			return -c
		}
		return c
	})
}

func order(a, b Change) int {
	x, y := subject(a), subject(b)
	kx, ky := x.Key(), y.Key()
	return cmp.Or(cmp.Compare(kx.Kind, ky.Kind), cmp.Compare(rank(x), rank(y)), cmp.Compare(kx.NS, ky.NS),
		cmp.Compare(kx.Name, ky.Name))
}

func subject(c Change) Object {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

// rank orders objects of one kind that hang on each other.
func rank(o Object) int {
	switch o := o.(type) {
	case *Link:
		if o.Master != "" {
			return 1
		}
	case *Route:
		if o.Via.IsValid() {
			return 1
		}
	}
	return 0
}
