package state_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) *state.Store {
	t.Helper()
	s, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *state.Store, network string, endpoints ...string) uint64 {
	t.Helper()
	c := state.Change{PutNetworks: []api.Network{{Name: network, Status: &api.NetworkStatus{Endpoints: 9}}}}
	for _, e := range endpoints {
		c.PutEndpoints = append(c.PutEndpoints, api.Endpoint{Network: network, Name: e})
	}
	rev, err := s.Commit(&c)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestWhatIsCommittedIsThereAfterAReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "state.db")
	s := open(t, path)
	put(t, s, "a", "x", "y")
	rev := put(t, s, "b")
	if _, err := s.Commit(&state.Change{DeleteEndpoints: []string{"a/y"}, DeleteNetworks: []string{"b"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetValue("boot", "1"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path)
	n, ok := s.Network("a")
	if !ok || n.Revision == 0 || n.Created == "" || n.Status != nil {
		t.Errorf("network is %+v, %v", n, ok)
	}
	if _, ok := s.Network("b"); ok || len(s.Endpoints()) != 1 || s.Revision() != rev+1 || s.Value("boot") != "1" {
		t.Errorf("endpoints %v, revision %d, boot %q", s.Endpoints(), s.Revision(), s.Value("boot"))
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v", info.Mode())
	}
	if err := s.ForgetValues(); err != nil || s.Value("boot") != "" {
		t.Errorf("a forgotten value is still there: %v", err)
	}
}

func TestOneDaemonAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open(t, path)
	if _, err := state.Open(path); !errors.Is(err, state.ErrLocked) {
		t.Errorf("a second opening: %v", err)
	}
}

func TestUnreadableFilesAreRefusedNotEmptied(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.db")
	if err := os.WriteFile(junk, []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(junk); err == nil || !strings.Contains(err.Error(), junk) {
		t.Errorf("junk: %v", err)
	}
	record := filepath.Join(dir, "record.db")
	s := open(t, record)
	put(t, s, "a")
	s.Close()
	db, err := bbolt.Open(record, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("networks")).Put([]byte("a"), []byte("{")) }); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := state.Open(record); err == nil || !strings.Contains(err.Error(), `record "a"`) {
		t.Errorf("a broken record: %v", err)
	}
}

func events(t *testing.T, ch <-chan api.Event, n int) (out []string) {
	t.Helper()
	for range n {
		select {
		case e := <-ch:
			name := ""
			if e.Network != nil {
				name = e.Network.Name
			}
			if e.Endpoint != nil {
				name = e.Endpoint.Key()
			}
			out = append(out, e.Type+" "+name)
		case <-time.After(5 * time.Second):
			t.Fatalf("no event after %v", out)
		}
	}
	return out
}

func TestWatch(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	put(t, s, "z", "x")
	put(t, s, "a")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fresh, current, stale := s.Watch(ctx, 0), s.Watch(ctx, s.Revision()), s.Watch(ctx, 1)
	if _, err := s.Commit(&state.Change{DeleteEndpoints: []string{"z/x", "z/unknown"}}); err != nil {
		t.Fatal(err)
	}
	present := "put z,put z/x,put a,delete z/x"
	if got := strings.Join(events(t, fresh, 4), ","); got != present {
		t.Errorf("from the start: %s", got)
	}
	if got := strings.Join(events(t, current, 1), ","); got != "delete z/x" {
		t.Errorf("from now: %s", got)
	}
	if got := strings.Join(events(t, stale, 5), ","); got != "reset ,"+present {
		t.Errorf("from an old revision: %s", got)
	}
	cancel()
	for _, ch := range []<-chan api.Event{fresh, current, stale} {
		for range ch { // until it is closed
		}
	}
	last := s.Watch(context.Background(), s.Revision())
	s.Close()
	if _, ok := <-last; ok {
		t.Error("a watch goes on after Close")
	}
}
