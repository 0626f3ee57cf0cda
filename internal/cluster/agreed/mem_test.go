package agreed_test

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/internal/cluster/agreed"
	"github.com/seine-net/seine/internal/cluster/agreed/agreedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMem(t *testing.T) {
	agreedtest.Run(t, func(*testing.T) agreed.Store { return agreed.NewMem() })
}

func TestFaults(t *testing.T) {
	m := agreed.NewMem()
	ctx, cancel := context.WithCancel(t.Context())
	events := m.Watch(ctx, "")
	if ev := <-events; !ev.Synced {
		t.Fatalf("%+v", ev)
	}
	put := func() error {
		_, err := m.Txn(ctx, nil, []agreed.Op{{Key: "a", Value: []byte("1")}})
		return err
	}
	m.SetDown(true)
	if err := put(); !errors.Is(err, agreed.ErrUnavailable) {
		t.Errorf("a store that is down says %v", err)
	}
	m.SetDown(false)
	if kv, _ := agreed.Get1(ctx, m, "a"); kv.Revision != 0 {
		t.Error("a store that is down took a change")
	}
	m.SetLose(func() bool { return true })
	if err := put(); !errors.Is(err, agreed.ErrUnavailable) {
		t.Errorf("a lost answer is %v", err)
	}
	if ev := <-events; ev.Key != "a" {
		t.Errorf("%+v, want the change whose answer was lost", ev)
	}
	m.Compact()
	for i, want := range []agreed.Event{{Reset: true}, {KV: agreed.KV{Key: "a"}}, {Synced: true}} {
		if ev := <-events; ev.Reset != want.Reset || ev.Key != want.Key || ev.Synced != want.Synced {
			t.Errorf("event %d after a compaction is %+v", i, ev)
		}
	}
	cancel()
	for range events { //nolint:revive // until it is closed
	}
}
