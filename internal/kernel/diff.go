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
	del, late := tunnelsLast(del, add)
	return append(append(del, add...), late...)
}

// tunnelsLast takes the deletions of tunnels, and of what hangs on them, out of del. One that is made anew stays: its name
// is needed.
func tunnelsLast(del, add []Change) (early, late []Change) {
	going := map[[2]string]bool{}
	for _, c := range del {
		if l, ok := c.Old.(*Link); ok && (l.Type == VXLAN || l.Type == WG) {
			going[[2]string{l.NS, l.Name}] = true
		}
	}
	if len(going) == 0 {
		return del, nil
	}
	for _, c := range add {
		if l, ok := c.New.(*Link); ok {
			delete(going, [2]string{l.NS, l.Name})
		}
	}
	for _, c := range del {
		ns, name := HangsOn(c.Old)
		if l, ok := c.Old.(*Link); ok {
			ns, name = l.NS, l.Name
		}
		if going[[2]string{ns, name}] {
			late = append(late, c)
		} else {
			early = append(early, c)
		}
	}
	return early, late
}

func mustReplace(want, actual Object) bool {
	w, ok1 := want.(*Link)
	a, ok2 := actual.(*Link)
	return ok1 && ok2 && w.Replace(a)
}

// SortChanges puts changes into the order in which they can be applied: deletions first and from the last Kind to the
// first, then the others from the first Kind to the last. Within a kind, a link comes after its master and its parent, a route after
// the routes that its gateway is reached by, and otherwise the key decides, so that the order is always the same.
func SortChanges(changes []Change) {
	type item struct {
		change Change
		key    Key
		rank   int
	}
	items := make([]item, len(changes))
	for i, c := range changes {
		o := subject(c)
		items[i] = item{c, o.Key(), rank(o)}
	}
	slices.SortFunc(items, func(a, b item) int {
		if (a.change.Op == Delete) != (b.change.Op == Delete) {
			if a.change.Op == Delete {
				return -1
			}
			return 1
		}
		c := cmp.Or(cmp.Compare(a.key.Kind, b.key.Kind), cmp.Compare(a.rank, b.rank), cmp.Compare(a.key.NS, b.key.NS),
			cmp.Compare(a.key.Name, b.key.Name))
		if a.change.Op == Delete {
			return -c
		}
		return c
	})
	for i := range items {
		changes[i] = items[i].change
	}
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
		switch {
		case o.Parent != nil:
			return 2
		case o.Master != "":
			return 1
		}
	case *Route:
		if o.Via.IsValid() {
			return 1
		}
	case *LinkUp:
		if o.NS == "" {
			return 1
		}
	}
	return 0
}
