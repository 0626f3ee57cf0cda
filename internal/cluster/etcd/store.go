// Package etcd is the store of agreed truth on etcd (v3 API): a client of any etcd cluster, a member of our own that runs
// as a process of its own, and what adds and removes members. A member is a process of its own because etcd ends its
// process when its disk is full or broken; the daemon goes on without.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/seine-net/seine/internal/cluster/agreed"
)

// The time limits of the client. A call that gets no answer for that long is agreed.ErrUnavailable.
const (
	callTimeout = 5 * time.Second
	dialTimeout = 3 * time.Second
	keepAlive   = 5 * time.Second
	watchPause  = 500 * time.Millisecond // between two tries of a watch
)

// Store is an agreed.Store on etcd.
type Store struct {
	client *clientv3.Client
	prefix string
	tls    *tls.Config
}

// Open makes a Store of the etcd at the endpoints (https://HOST:PORT). All keys get the prefix, such as "/seine/". It
// connects when it is first used; which endpoints there are may be changed later.
func Open(endpoints []string, prefix string, t *tls.Config) (*Store, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: t, DialTimeout: dialTimeout,
		DialKeepAliveTime: keepAlive, DialKeepAliveTimeout: keepAlive, Logger: zap.NewNop()})
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return &Store{c, prefix, t}, nil
}

// SetEndpoints tells where the members are now.
func (s *Store) SetEndpoints(endpoints []string) { s.client.SetEndpoints(endpoints...) }

// Close ends all watches and connections.
func (s *Store) Close() error { return s.client.Close() }

// Get implements agreed.Store.
func (s *Store) Get(ctx context.Context, prefix string) ([]agreed.KV, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := s.client.Get(ctx, s.prefix+prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
	if err != nil {
		return nil, 0, unavailable(err)
	}
	out := make([]agreed.KV, 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		out = append(out, s.kv(string(kv.Key), kv.Value, kv.ModRevision))
	}
	return out, r.Header.Revision, nil
}

// kv makes an empty value distinct from none.
func (s *Store) kv(key string, value []byte, revision int64) agreed.KV {
	if value == nil {
		value = []byte{}
	}
	return agreed.KV{Key: key[len(s.prefix):], Value: value, Revision: revision}
}

// Txn implements agreed.Store.
func (s *Store) Txn(ctx context.Context, conds []agreed.Cond, ops []agreed.Op) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cmps := make([]clientv3.Cmp, 0, len(conds))
	for _, c := range conds {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(s.prefix+c.Key), "=", c.Revision))
	}
	todo := make([]clientv3.Op, 0, len(ops))
	for _, op := range ops {
		if op.Value == nil {
			todo = append(todo, clientv3.OpDelete(s.prefix+op.Key))
		} else {
			todo = append(todo, clientv3.OpPut(s.prefix+op.Key, string(op.Value)))
		}
	}
	r, err := s.client.Txn(ctx).If(cmps...).Then(todo...).Commit()
	if err != nil {
		return 0, unavailable(err)
	}
	if !r.Succeeded {
		return 0, agreed.ErrConflict
	}
	return r.Header.Revision, nil
}

// unavailable keeps errors that say that we asked something wrong, and makes all others agreed.ErrUnavailable.
func unavailable(err error) error {
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		switch {
		case errors.Is(known, rpctypes.ErrRequestTooLarge), errors.Is(known, rpctypes.ErrTooManyOps), errors.Is(known, rpctypes.ErrPermissionDenied):
			return fmt.Errorf("etcd: %w", err)
		}
	}
	return fmt.Errorf("%w: etcd: %w", agreed.ErrUnavailable, err)
}

// Watch implements agreed.Store. Only an etcd with a majority is listened to.
func (s *Store) Watch(ctx context.Context, prefix string) <-chan agreed.Event {
	out := make(chan agreed.Event)
	go func() { // ends with ctx, which the caller owns
		defer close(out)
		for again := false; ctx.Err() == nil; again = true {
			if again {
				select {
				case <-time.After(watchPause):
				case <-ctx.Done():
					return
				}
			}
			kvs, rev, err := s.Get(ctx, prefix)
			if err != nil {
				continue
			}
			var present []agreed.Event
			if again {
				present = append(present, agreed.Event{Reset: true})
			}
			for _, kv := range kvs {
				present = append(present, agreed.Event{KV: kv})
			}
			present = append(present, agreed.Event{KV: agreed.KV{Revision: rev}, Synced: true})
			if send(ctx, out, present) {
				s.follow(ctx, prefix, rev, out)
			}
		}
	}()
	return out
}

// follow sends the changes after a revision until etcd can't tell them any more.
func (s *Store) follow(ctx context.Context, prefix string, after int64, out chan<- agreed.Event) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for r := range s.client.Watch(ctx, s.prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(after+1)) {
		if r.Err() != nil {
			return
		}
		events := make([]agreed.Event, 0, len(r.Events))
		for _, ev := range r.Events {
			e := agreed.Event{KV: s.kv(string(ev.Kv.Key), ev.Kv.Value, ev.Kv.ModRevision)}
			if ev.Type == clientv3.EventTypeDelete {
				e.Value = nil
			}
			events = append(events, e)
		}
		if !send(ctx, out, events) {
			return
		}
	}
}

func send(ctx context.Context, out chan<- agreed.Event, events []agreed.Event) bool {
	for _, ev := range events {
		select {
		case out <- ev:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
