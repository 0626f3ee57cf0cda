// Package agreed is the truth that a cluster agrees on: definitions and leases that anybody may change, by
// compare-and-swap. It declares what such a store is; internal/cluster/etcd is one, Mem is one for tests. What belongs to
// one node alone (endpoints, addresses, keys) is not here: see internal/cluster/gossip.
package agreed

import (
	"context"
	"errors"
)

// The errors of a Store.
var (
	// ErrConflict says that a condition of a Txn does not hold: somebody else was first. Read again and decide anew.
	ErrConflict = errors.New("was changed by somebody else")
	// ErrUnavailable says that the store can't be reached or has no majority. What it was asked may have been done all the
	// same: the conditions of the next try tell.
	ErrUnavailable = errors.New("the cluster's store can't be reached")
)

// KV is a key with its value.
type KV struct {
	Key   string
	Value []byte
	// Revision is that of the last change of this key; it is never 0.
	Revision int64
}

// Cond is a condition of a Txn: the key was last changed at Revision; 0: there is no such key.
type Cond struct {
	Key      string
	Revision int64
}

// Op puts a value, or deletes a key where Value is nil. Deleting what is not there is no error.
type Op struct {
	Key   string
	Value []byte
}

// Event is a change of a key: the new value, or a nil Value for a key that was deleted.
type Event struct {
	KV
	// Reset, with all other fields empty, says that what happened since the last event can't be told: forget everything;
	// puts of all that is there follow, then Synced.
	Reset bool
	// Synced, with all other fields but Revision empty, follows the puts of the present state: from here on events are
	// changes.
	Synced bool
}

// Store holds keys and values. Keys are paths such as "networks/default". Its methods may be called from several
// goroutines; each gives up when its context ends.
type Store interface {
	// Get gives the keys that begin with prefix, sorted, and the store's revision at that moment.
	Get(ctx context.Context, prefix string) ([]KV, int64, error)
	// Txn makes all changes at once if all conditions hold, and gives the store's revision after it. ErrConflict if they
	// don't; then nothing was changed.
	Txn(ctx context.Context, conds []Cond, ops []Op) (int64, error)
	// Watch gives the present state of the keys that begin with prefix and then their changes in order, until ctx ends;
	// then the channel is closed. While the store can't be reached nothing comes, and the connection is tried again.
	Watch(ctx context.Context, prefix string) <-chan Event
}

// Get1 gives one key; its Revision is 0 where there is none.
func Get1(ctx context.Context, s Store, key string) (KV, error) {
	kvs, _, err := s.Get(ctx, key)
	if err != nil {
		return KV{Key: key}, err
	}
	for _, kv := range kvs {
		if kv.Key == key {
			return kv, nil
		}
	}
	return KV{Key: key}, nil
}
