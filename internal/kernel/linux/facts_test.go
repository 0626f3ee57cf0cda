package linux

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

func TestFacts(t *testing.T) {
	k, ns := newKernel(t)
	for _, cmd := range []string{
		"link add up0 type veth peer name up1", "link set up0 up mtu 1400", "link set up1 up", "addr add 192.0.2.2/24 dev up0",
		"addr add 2001:db8::2/64 dev up0 nodad", "route add default via 192.0.2.1 metric 100", "route add default via 192.0.2.9 dev up0 metric 50 onlink",
		"route add default via 2001:db8::1", "route add 10.77.0.0/16 via 192.0.2.1", "route add blackhole 10.78.0.0/16 table 200",
		"route add 2001:db8:7::/48 via 2001:db8::1", "route add 10.79.0.0/16 via 192.0.2.1 proto 83",
	} {
		args := append([]string{"ip"}, strings.Fields(cmd)...)
		run(t, ns, args...)
	}
	converge(t, k, []kernel.Object{
		&kernel.Link{Name: "sn-a", Type: kernel.Bridge, Alias: "seine:net"},
		&kernel.Addr{Link: "sn-a", Prefix: prefix("10.80.0.1/24")}, &kernel.LinkUp{Link: "sn-a"},
		&kernel.Sysctl{Name: forward4, Value: "1"}, &kernel.Sysctl{Name: forward6, Value: "1"},
		&kernel.Sysctl{Name: "net/ipv6/conf/up0/accept_ra", Value: "2"},
	})
	f, err := k.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f.Default4 != "up0" || f.Default6 != "up0" || f.PathMTU() != 1400 {
		t.Errorf("defaults %q %q, path MTU %d", f.Default4, f.Default6, f.PathMTU())
	}
	var want []netip.Prefix
	for _, p := range []string{"10.77.0.0/16", "10.78.0.0/16", "192.0.2.0/24", "2001:db8::/64", "2001:db8:7::/48"} {
		want = append(want, prefix(p))
	}
	if !slices.Equal(f.Routes, want) {
		t.Errorf("routes %v, want %v", f.Routes, want)
	}
	up, a := f.Link("up0"), f.Link("sn-a")
	if up == nil || a == nil || up.Ours || !a.Ours || !up.Up || up.MTU != 1400 || up.AcceptRA != 2 || !slices.Contains(up.Addrs, prefix("192.0.2.2/24")) {
		t.Errorf("links %+v", f.Links)
	}
	if f.Forward4 || f.Forward6 {
		t.Error("what we turned on counts as what the machine had on")
	}
	if f.NoIPv6 {
		t.Error("no IPv6")
	}
	if b, err := os.ReadFile("/etc/machine-id"); err == nil && f.MachineID != strings.TrimSpace(string(b)) {
		t.Errorf("machine id %q", f.MachineID)
	}
	apply(t, k, kernel.Change{Op: kernel.Delete, Old: &kernel.Sysctl{Name: forward4, Value: "1", Before: "0"}})
	run(t, ns, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	if f, err = k.Facts(t.Context()); err != nil || !f.Forward4 {
		t.Errorf("forwarding by others: %v %v", f.Forward4, err)
	}
	run(t, ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	if f, err = k.Facts(t.Context()); err != nil || !f.NoIPv6 {
		t.Errorf("IPv6 turned off: %v %v", f.NoIPv6, err)
	}
}

// TestInnerBridges: bridges that only containers are on are told from those that lead elsewhere.
func TestInnerBridges(t *testing.T) {
	k, ns := newKernel(t)
	for _, cmd := range []string{
		"link add empty type bridge", "link add inner type bridge", "link add outer type bridge", "link add joined type bridge", "link add far type bridge",
		"link add c0 type veth peer name c1", "link set c0 master inner", // its other end is on its way into a container
		"link add p0 type veth peer name p1", "link set p0 master joined", "link set p1 master far",
		"tuntap add t0 mode tap", "link set t0 master inner",
		"link add v0 type vxlan id 7 dstport 4789 remote 192.0.2.9", "link set v0 master outer",
	} {
		run(t, ns, append([]string{"ip"}, strings.Fields(cmd)...)...)
	}
	converge(t, k, []kernel.Object{&kernel.Link{Name: "sn-a", Type: kernel.Bridge, Alias: "seine:net"}})
	f, err := k.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"empty": true, "inner": true, "outer": false, "joined": false, "far": false, "c0": false, "lo": false, "sn-a": false} {
		if l := f.Link(name); l == nil || l.Inner != want {
			t.Errorf("%s: inner is not %v: %+v", name, want, l)
		}
	}
}
