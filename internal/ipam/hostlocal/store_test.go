package hostlocal

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func sets(t *testing.T, confs ...[]RangeConfig) []RangeSet {
	t.Helper()
	out, err := ParseSets("ranges", confs)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func reserve(t *testing.T, s *Store, o Owner, sets []RangeSet, want ...string) []string {
	t.Helper()
	var asked []netip.Addr
	for _, w := range want {
		asked = append(asked, netip.MustParseAddr(w))
	}
	leases, err := s.Reserve(o, sets, asked, true)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range leases {
		out = append(out, l.Address.String()+" "+l.Gateway.String())
	}
	return out
}

// files gives the content of all files of a store.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

var dual = [][]RangeConfig{{{Subnet: "10.1.0.0/24"}}, {{Subnet: "fd00:1::/64"}}}

func TestFilesAreTheReferences(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, "net")
	got := reserve(t, s, Owner{"abc", "eth0"}, sets(t, dual...))
	if want := []string{"10.1.0.2/24 10.1.0.1", "fd00:1::2/64 fd00:1::1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	want := map[string]string{"10.1.0.2": "abc\r\neth0", "fd00:1::2": "abc\r\neth0", "last_reserved_ip.0": "10.1.0.2", "last_reserved_ip.1": "fd00:1::2", "lock": ""}
	have := files(t, filepath.Join(dir, "net"))
	if fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("store is %q, want %q", have, want)
	}
	st, err := os.Stat(filepath.Join(dir, "net", "10.1.0.2"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v (%v), want 0600", st.Mode(), err)
	}
}

func TestRoundRobin(t *testing.T) {
	s := New(t.TempDir(), "net")
	set := sets(t, []RangeConfig{{Subnet: "10.1.0.0/29"}}) // .1 is the gateway, .2 to .6 are left
	var got []string
	for i := range 12 {
		o := Owner{fmt.Sprint("c", i), "eth0"}
		got = append(got, reserve(t, s, o, set)[0][:8])
		if err := s.Release(o, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range got {
		if want := fmt.Sprintf("10.1.0.%d", 2+i%5); a != want {
			t.Errorf("address %d is %s, want %s", i, a, want)
		}
	}
}

func TestRequested(t *testing.T) {
	s, all := New(t.TempDir(), "net"), sets(t, dual...)
	got := reserve(t, s, Owner{"a", "eth0"}, all, "fd00:1::77", "10.1.0.9")
	if want := []string{"10.1.0.9/24 10.1.0.1", "fd00:1::77/64 fd00:1::1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range []string{"10.1.0.1", "10.1.0.9", "10.2.0.2", "fd00:1::77"} {
		if l, err := s.Reserve(Owner{"b", "eth0"}, all, []netip.Addr{netip.MustParseAddr(bad)}, true); err == nil {
			t.Errorf("%s is given out: %v", bad, l)
		}
		held, err := s.Held(Owner{"b", "eth0"}, nil)
		if err != nil || len(held) != 0 {
			t.Errorf("after the failed request for %s, %v is held (%v)", bad, held, err)
		}
	}
	if l, err := s.Reserve(Owner{"a", "eth0"}, all, nil, true); err == nil {
		t.Errorf("a second ADD of the same attachment gets %v", l)
	}
}

func TestExhausted(t *testing.T) {
	s := New(t.TempDir(), "net")
	all := sets(t, []RangeConfig{{Subnet: "fd00:1::/64"}}, []RangeConfig{{Subnet: "10.1.0.0/30"}})
	reserve(t, s, Owner{"a", "eth0"}, all)
	if err := s.Free(all); !errors.Is(err, ErrExhausted) {
		t.Errorf("Free: %v, want ErrExhausted", err)
	}
	if _, err := s.Reserve(Owner{"b", "eth0"}, all, nil, true); !errors.Is(err, ErrExhausted) {
		t.Errorf("Reserve: %v, want ErrExhausted", err)
	}
	if held, err := s.Held(Owner{"b", "eth0"}, nil); err != nil || len(held) != 0 {
		t.Errorf("a failed Reserve keeps %v (%v)", held, err)
	}
	for range 2 { // the second release finds nothing
		if err := s.Release(Owner{"a", "eth0"}, nil); err != nil {
			t.Errorf("Release: %v", err)
		}
	}
	if err := s.Free(all); err != nil {
		t.Errorf("Free after Release: %v", err)
	}
	reserve(t, s, Owner{"b", "eth0"}, all)
}

func TestEmptyFilesAreFree(t *testing.T) {
	dir := t.TempDir()
	s, set := New(dir, "net"), sets(t, []RangeConfig{{Subnet: "10.1.0.0/30"}})
	if err := os.MkdirAll(filepath.Join(dir, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "net", "10.1.0.2"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := reserve(t, s, Owner{"a", "eth0"}, set); got[0] != "10.1.0.2/30 10.1.0.1" {
		t.Errorf("got %q", got)
	}
}

func TestReleaseTouchesNothingElse(t *testing.T) {
	s, all := New(t.TempDir(), "net"), sets(t, dual...)
	reserve(t, s, Owner{"a", "eth0"}, all)
	reserve(t, s, Owner{"a", "eth1"}, all)
	// A hint that is another attachment's is not followed.
	if err := s.Release(Owner{"a", "eth0"}, []netip.Addr{netip.MustParseAddr("10.1.0.3")}); err != nil {
		t.Fatal(err)
	}
	for ifname, want := range map[string]int{"eth0": 0, "eth1": 2} {
		if held, err := s.Held(Owner{"a", ifname}, nil); err != nil || len(held) != want {
			t.Errorf("%s holds %v (%v), want %d addresses", ifname, held, err, want)
		}
	}
	if err := s.Collect([]Owner{{"b", "eth0"}}); err != nil {
		t.Fatal(err)
	}
	if owners, err := s.Owners(); err != nil || len(owners) != 0 {
		t.Errorf("after Collect, %v still hold addresses (%v)", owners, err)
	}
}

func TestNoStoreIsNoError(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, "net")
	if err := errors.Join(s.Release(Owner{"a", "eth0"}, nil), s.Collect(nil), s.Free(nil)); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("giving back made %v", entries)
	}
}

func TestConcurrentReserves(t *testing.T) {
	dir := t.TempDir()
	set := sets(t, []RangeConfig{{Subnet: "10.1.0.0/26"}}) // 61 addresses
	var wg sync.WaitGroup
	var mu sync.Mutex
	by := map[string]int{}
	for i := range 61 {
		wg.Go(func() {
			leases, err := New(dir, "net").Reserve(Owner{fmt.Sprint("c", i), "eth0"}, set, nil, false)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			by[leases[0].Address.String()]++
		})
	}
	wg.Wait()
	if len(by) != 61 {
		t.Errorf("61 owners got %d addresses: %v", len(by), by)
	}
}

func TestParseSetsRefuses(t *testing.T) {
	for _, c := range []struct {
		conf  RangeConfig
		field string
	}{
		{RangeConfig{Subnet: "10.1.0.0"}, "r[0][0].subnet"},
		{RangeConfig{Subnet: "10.1.0.1/24"}, "r[0][0].subnet"},
		{RangeConfig{Subnet: "10.1.0.0/31"}, "r[0][0].subnet"},
		{RangeConfig{Subnet: "fd00::/127"}, "r[0][0].subnet"},
		{RangeConfig{Subnet: "10.1.0.0/24", RangeStart: "10.2.0.1"}, "r[0][0].rangeStart"},
		{RangeConfig{Subnet: "10.1.0.0/24", RangeEnd: "x"}, "r[0][0].rangeEnd"},
		{RangeConfig{Subnet: "10.1.0.0/24", RangeStart: "10.1.0.9", RangeEnd: "10.1.0.3"}, "r[0][0].rangeEnd"},
		{RangeConfig{Subnet: "10.1.0.0/24", Gateway: "fd00::1"}, "r[0][0].gateway"},
	} {
		_, err := ParseSets("r", [][]RangeConfig{{c.conf}})
		if err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%+v: got %v, want an error that names %s", c.conf, err, c.field)
		}
	}
	if _, err := ParseSets("r", [][]RangeConfig{{{Subnet: "10.1.0.0/24"}}, {{Subnet: "10.1.0.0/16"}}}); err == nil {
		t.Error("ranges that overlap are accepted")
	}
}
