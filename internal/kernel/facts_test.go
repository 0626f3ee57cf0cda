package kernel_test

import (
	"net/netip"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

func TestPathMTU(t *testing.T) {
	links := []kernel.LinkFact{{Name: "eth0", MTU: 1500}, {Name: "wg0", MTU: 1420}, {Name: "odd"}}
	for _, tt := range []struct {
		v4, v6 string
		want   int
	}{
		{"", "", 1500}, {"eth0", "", 1500}, {"wg0", "", 1420}, {"", "wg0", 1420}, {"eth0", "wg0", 1420}, {"wg0", "eth0", 1420},
		{"gone", "", 1500}, {"odd", "", 1500}, {"odd", "wg0", 1420},
	} {
		f := kernel.Facts{Links: links, Default4: tt.v4, Default6: tt.v6}
		if got := f.PathMTU(); got != tt.want {
			t.Errorf("with default routes over %q and %q the MTU is %d, want %d", tt.v4, tt.v6, got, tt.want)
		}
	}
}

func TestOverlapping(t *testing.T) {
	f := kernel.Facts{
		Routes: []netip.Prefix{prefix("10.0.0.0/16"), prefix("fd00:1::/48")},
		Links: []kernel.LinkFact{
			{Name: "eth0", Addrs: []netip.Prefix{prefix("192.168.1.7/24"), prefix("2001:db8::7/64")}},
			{Name: "sn-a", Ours: true, Addrs: []netip.Prefix{prefix("10.1.0.1/24")}},
		},
	}
	for p, want := range map[string]string{
		"10.0.7.0/24": "10.0.0.0/16", "10.0.0.0/8": "10.0.0.0/16", "192.168.1.128/25": "192.168.1.7/24", "fd00:1:0:5::/64": "fd00:1::/48",
		"2001:db8::/32": "2001:db8::7/64", "10.1.0.0/24": "", "192.168.2.0/24": "", "fd00:2::/64": "",
	} {
		got, ok := f.Overlapping(prefix(p))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s overlaps %v (%v), want %q", p, got, ok, want)
		}
	}
}

func TestFactsLink(t *testing.T) {
	f := kernel.Facts{Links: []kernel.LinkFact{{Name: "lo"}, {Name: "eth0", Index: 2}}}
	if l := f.Link("eth0"); l == nil || l.Index != 2 {
		t.Errorf("eth0 is %v", l)
	}
	if l := f.Link("eth1"); l != nil {
		t.Errorf("eth1 is %v", l)
	}
}
