// Package agreedtest is the conformance suite of agreed.Store: it is run on the store in memory and on etcd.
package agreedtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/cluster/agreed"
)

// Run checks a store that open gives anew, empty, for each test.
func Run(t *testing.T, open func(t *testing.T) agreed.Store) {
	t.Run("Txn", func(t *testing.T) { txn(t, open(t)) })
	t.Run("Watch", func(t *testing.T) { watch(t, open(t)) })
	t.Run("Race", func(t *testing.T) { race(t, open(t)) })
	t.Run("Canceled", func(t *testing.T) { canceled(t, open(t)) })
}

func put(key, value string) agreed.Op { return agreed.Op{Key: key, Value: []byte(value)} }

func must(t *testing.T, s agreed.Store, conds []agreed.Cond, ops ...agreed.Op) int64 {
	t.Helper()
	rev, err := s.Txn(t.Context(), conds, ops)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func txn(t *testing.T, s agreed.Store) {
	ctx := t.Context()
	rev := must(t, s, []agreed.Cond{{Key: "a/1"}}, put("a/1", "x"), put("a/2", "y"), put("b/1", ""))
	kvs, at, err := s.Get(ctx, "a/")
	if err != nil || len(kvs) != 2 || kvs[0].Key != "a/1" || string(kvs[1].Value) != "y" || kvs[0].Revision != rev || at < rev {
		t.Fatalf("read %v at %d, %v", kvs, at, err)
	}
	if kv, err := agreed.Get1(ctx, s, "b/1"); err != nil || kv.Revision == 0 || kv.Value == nil || len(kv.Value) != 0 {
		t.Errorf("an empty value is read as %+v, %v", kv, err)
	}
	if kv, err := agreed.Get1(ctx, s, "a/"); err != nil || kv.Revision != 0 {
		t.Errorf("a key that is only a prefix is read as %+v, %v", kv, err)
	}
	for name, conds := range map[string][]agreed.Cond{
		"exists":           {{Key: "a/1"}},
		"other revision":   {{Key: "a/1", Revision: rev + 1000}},
		"absent":           {{Key: "a/3", Revision: rev}},
		"one of several":   {{Key: "a/1", Revision: rev}, {Key: "a/2"}},
		"later of several": {{Key: "a/3"}, {Key: "a/2", Revision: 1 << 40}},
	} {
		if _, err := s.Txn(ctx, conds, []agreed.Op{put("a/1", "no"), {Key: "a/2"}}); !errors.Is(err, agreed.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
	if kvs, _, _ := s.Get(ctx, "a/"); len(kvs) != 2 || string(kvs[0].Value) != "x" {
		t.Errorf("a refused change was made: %v", kvs)
	}
	must(t, s, []agreed.Cond{{Key: "a/1", Revision: rev}}, agreed.Op{Key: "a/1"}, agreed.Op{Key: "nothing"})
	if kv, _ := agreed.Get1(ctx, s, "a/1"); kv.Revision != 0 {
		t.Errorf("a deleted key is read as %+v", kv)
	}
	must(t, s, []agreed.Cond{{Key: "a/1"}}, put("a/1", "again"))
}

func watch(t *testing.T, s agreed.Store) {
	must(t, s, nil, put("w/1", "a"), put("w/2", "b"), put("x/1", "other"))
	ctx, cancel := context.WithCancel(t.Context())
	events := s.Watch(ctx, "w/")
	next := func() agreed.Event {
		t.Helper()
		select {
		case ev, ok := <-events:
			if !ok {
				t.Fatal("the watch ended")
			}
			return ev
		case <-time.After(10 * time.Second):
			t.Fatal("nothing came")
		}
		panic("not reached")
	}
	for _, want := range []string{"w/1=a", "w/2=b"} {
		if ev := next(); fmt.Sprintf("%s=%s", ev.Key, ev.Value) != want || ev.Synced || ev.Reset {
			t.Errorf("present state has %+v, want %s", ev, want)
		}
	}
	if ev := next(); !ev.Synced || ev.Key != "" {
		t.Errorf("%+v, want the end of the present state", ev)
	}
	must(t, s, nil, put("x/2", "other"), put("w/1", "c"), agreed.Op{Key: "w/2"})
	must(t, s, nil, put("w/3", ""))
	got := map[string]string{}
	for range 2 { // the order within one change is not said
		ev := next()
		got[ev.Key] = fmt.Sprintf("%s %v", ev.Value, ev.Value == nil)
	}
	if got["w/1"] != "c false" || got["w/2"] != " true" {
		t.Errorf("changes are %v", got)
	}
	if ev := next(); ev.Key != "w/3" || ev.Value == nil {
		t.Errorf("%+v, want the put of an empty value", ev)
	}
	cancel()
	for range events { //nolint:revive // until it is closed
	}
}

// race: of many that add to one number by compare-and-swap none is lost.
func race(t *testing.T, s agreed.Store) {
	const workers, each = 4, 10
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for done := 0; done < each; {
				kv, err := agreed.Get1(t.Context(), s, "n")
				if err != nil {
					t.Error(err)
					return
				}
				_, err = s.Txn(t.Context(), []agreed.Cond{{Key: "n", Revision: kv.Revision}}, []agreed.Op{put("n", string(kv.Value)+"x")})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, agreed.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if kv, err := agreed.Get1(t.Context(), s, "n"); err != nil || len(kv.Value) != workers*each {
		t.Errorf("%d of %d changes are there, %v", len(kv.Value), workers*each, err)
	}
}

func canceled(t *testing.T, s agreed.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Get(ctx, "a"); err == nil {
		t.Error("a Get with an ended context succeeded")
	}
	if _, err := s.Txn(ctx, nil, []agreed.Op{put("a", "b")}); err == nil {
		t.Error("a Txn with an ended context succeeded")
	}
	for range s.Watch(ctx, "a") { //nolint:revive // until it is closed
	}
}
