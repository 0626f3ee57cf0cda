package agreed

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Mem is a Store in memory, for tests: it can be cut off. The zero value is not usable; see NewMem.
type Mem struct {
	mu       sync.Mutex
	rev      int64
	keys     map[string]KV
	down     bool
	lose     func() bool
	watchers map[*memWatch]struct{}
}

type memWatch struct {
	prefix string
	queue  []Event
	wake   chan struct{}
}

// NewMem makes an empty store.
func NewMem() *Mem {
	return &Mem{keys: map[string]KV{}, watchers: map[*memWatch]struct{}{}}
}

// SetDown cuts the store off, or brings it back: meanwhile every call is ErrUnavailable and watches are silent.
func (m *Mem) SetDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
	for w := range m.watchers {
		w.poke()
	}
}

// SetLose has the answer of each Txn for which lose says true be lost on its way: what was asked is done, the caller gets
// ErrUnavailable.
func (m *Mem) SetLose(lose func() bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lose = lose
}

// Get implements Store.
func (m *Mem) Get(ctx context.Context, prefix string) ([]KV, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return nil, 0, err
	}
	return m.list(prefix), m.rev, nil
}

func (m *Mem) usable(ctx context.Context) error {
	if m.down {
		return ErrUnavailable
	}
	return ctx.Err()
}

func (m *Mem) list(prefix string) []KV {
	var out []KV
	for _, k := range slices.Sorted(maps.Keys(m.keys)) {
		if strings.HasPrefix(k, prefix) {
			out = append(out, m.keys[k])
		}
	}
	return out
}

func (m *Mem) present(prefix string) []Event {
	var out []Event
	for _, kv := range m.list(prefix) {
		out = append(out, Event{KV: kv})
	}
	return append(out, Event{KV: KV{Revision: m.rev}, Synced: true})
}

// Txn implements Store.
func (m *Mem) Txn(ctx context.Context, conds []Cond, ops []Op) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return 0, err
	}
	for _, c := range conds {
		if m.keys[c.Key].Revision != c.Revision {
			return 0, ErrConflict
		}
	}
	m.rev++
	for _, op := range ops {
		kv := KV{Key: op.Key, Value: slices.Clone(op.Value), Revision: m.rev}
		if op.Value == nil {
			if _, ok := m.keys[op.Key]; !ok {
				continue
			}
			delete(m.keys, op.Key)
		} else {
			m.keys[op.Key] = kv
		}
		for w := range m.watchers {
			if strings.HasPrefix(op.Key, w.prefix) {
				w.queue = append(w.queue, Event{KV: kv})
				w.poke()
			}
		}
	}
	if m.lose != nil && m.lose() {
		return 0, ErrUnavailable
	}
	return m.rev, nil
}

// Watch implements Store.
func (m *Mem) Watch(ctx context.Context, prefix string) <-chan Event {
	w := &memWatch{prefix: prefix, wake: make(chan struct{}, 1)}
	m.mu.Lock()
	w.queue = m.present(prefix)
	m.watchers[w] = struct{}{}
	m.mu.Unlock()
	out := make(chan Event)
	go func() { // ends with ctx, which the caller owns
		defer close(out)
		defer func() {
			m.mu.Lock()
			delete(m.watchers, w)
			m.mu.Unlock()
		}()
		for {
			m.mu.Lock()
			var send []Event
			if !m.down {
				send, w.queue = w.queue, nil
			}
			m.mu.Unlock()
			for _, ev := range send {
				select {
				case out <- ev:
				case <-ctx.Done():
					return
				}
			}
			if len(send) > 0 {
				continue
			}
			select {
			case <-w.wake:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (w *memWatch) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Compact has every watch begin anew, as a store does that has dropped the history that a watch needs.
func (m *Mem) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.watchers {
		w.queue = append([]Event{{Reset: true}}, m.present(w.prefix)...)
		w.poke()
	}
}
