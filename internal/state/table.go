package state

import "slices"

// table is a map whose keys are kept in order: lists are asked for at each verb, and with a thousand networks sorting took
// longer than what was looked for in them.
type table[T any] struct {
	by   map[string]T
	keys []string
}

func newTable[T any]() table[T] { return table[T]{by: map[string]T{}} }

func (t *table[T]) put(key string, x T) {
	if i, ok := slices.BinarySearch(t.keys, key); !ok {
		t.keys = slices.Insert(t.keys, i, key)
	}
	t.by[key] = x
}

func (t *table[T]) delete(key string) {
	if i, ok := slices.BinarySearch(t.keys, key); ok {
		t.keys = slices.Delete(t.keys, i, i+1)
	}
	delete(t.by, key)
}

// all gives everything, by key.
func (t *table[T]) all() []T {
	out := make([]T, 0, len(t.keys))
	for _, k := range t.keys {
		out = append(out, t.by[k])
	}
	return out
}

// count gives how many keys begin with prefix, which ends in an ASCII character.
func (t *table[T]) count(prefix string) int {
	last := len(prefix) - 1
	from, _ := slices.BinarySearch(t.keys, prefix)
	to, _ := slices.BinarySearch(t.keys, prefix[:last]+string(prefix[last]+1))
	return to - from
}
