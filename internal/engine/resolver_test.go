package engine_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// machineWithDocker is a machine with an uplink, Docker's bridge, a bridge that has a port outside, and one with the
// default route.
func machineWithDocker() kernel.Facts {
	link := func(name, addr string, inner bool) kernel.LinkFact {
		return kernel.LinkFact{Name: name, Up: true, Inner: inner, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}}
	}
	return kernel.Facts{Links: []kernel.LinkFact{link("lo", "127.0.0.1/8", false), link("eth0", "192.0.2.2/24", false), link("docker0", "172.17.0.1/16", true),
		link("lan", "192.0.2.129/25", false), link("br0", "198.51.100.2/24", true), {Name: "empty", Inner: true}}, Default4: "br0",
		Chains: []kernel.ForeignChain{{Family: "ip", Table: "filter", Chain: "INPUT", Hook: "input", Why: "policy drop"}}}
}

func TestFixedResolver(t *testing.T) {
	r := newRig(t)
	before := r.kernel.Snapshot()
	r.stop()
	r.fixed = []netip.Addr{netip.MustParseAddr("169.254.255.53"), netip.MustParseAddr("fd5c::53")}
	r.facts = machineWithDocker()
	r.facts.Chains = nil // the kernel in memory has none
	r.start()
	if d := before.Diff(r.kernel.Snapshot()); d != "" {
		t.Errorf("before the first network there is\n%s", d)
	}
	if err := r.DefaultNetwork(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.settled()
	want := []string{"addr 169.254.255.53/32 dev lo", "addr fd5c::53/128 dev lo", "dns4 { 169.254.255.53", "fixed6 { fd5c::53", "guests { docker0 }"}
	has(t, r, want...)
	if got := fmt.Sprint(*r.guests.Load()); got != "[169.254.255.53/32 fd5c::53/128 172.17.0.0/16]" {
		t.Errorf("who may ask: %s", got)
	}
	if n, err := r.Node(context.Background()); err != nil || fmt.Sprint(n.DNS) != "[169.254.255.53 fd5c::53]" {
		t.Errorf("node says %v, %v", n.DNS, err)
	}
	// Docker's containers go on asking when the last network goes, and after a crash.
	for _, n := range []string{"default", "host", "none"} {
		if err := r.DeleteNetwork(context.Background(), n, 0); err != nil {
			t.Fatal(err)
		}
	}
	r.restart()
	r.settled()
	has(t, r, want...)
	// The bridge gets a port that leads outside.
	f := machineWithDocker()
	f.Chains, f.Links[2].Inner = nil, false
	if err := r.SetFacts(context.Background(), f); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(*r.guests.Load()); strings.Contains(got, "172") {
		t.Errorf("who may ask from a bridge that leads outside: %s", got)
	}
	if err := r.Reset(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := r.SetFacts(context.Background(), f); err != nil { // whatever happens on the machine afterwards
		t.Fatal(err)
	}
	if d := before.Diff(r.kernel.Snapshot()); d != "" {
		t.Errorf("after reset the kernel differs:\n%s", d)
	}
}

// TestFixedResolverElsewhere: other addresses after a restart, and addresses that cannot be had.
func TestFixedResolverElsewhere(t *testing.T) {
	r := newRig(t)
	for _, fixed := range []string{"169.254.255.53", "169.254.0.9", ""} {
		r.stop()
		r.kernel.Restart()
		r.fixed = nil
		if fixed != "" {
			r.fixed = []netip.Addr{netip.MustParseAddr(fixed)}
		}
		r.start()
		if err := r.DefaultNetwork(context.Background()); err != nil {
			t.Fatal(err)
		}
		r.settled()
	}
	r.stop()
	r.fixed = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("fd5c::53")}
	r.facts = machineWithDocker()
	r.facts.NoIPv6, r.facts.Chains = true, nil
	r.start()
	if n, err := r.Node(context.Background()); err != nil || len(n.DNS) > 0 {
		t.Errorf("node says %v, %v", n.DNS, err)
	}
	found, err := r.Doctor(context.Background())
	if err != nil || !strings.Contains(fmt.Sprint(found), "eth0 has the address 192.0.2.2") {
		t.Errorf("doctor says %v, %v", found, err)
	}
	r.settled()
}

// TestGuestsPassFirewalls: what a firewall that drops all has to let in of guests is their questions, and nothing else.
func TestGuestsPassFirewalls(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.fixed = []netip.Addr{netip.MustParseAddr("169.254.255.53")}
	r.facts = machineWithDocker()
	r.kernel.AddForeignChain("ip", "filter", "INPUT", "drop")
	r.start()
	r.network(api.Network{Name: "a"})
	has(t, r, `INPUT iifname "docker0" udp dport 5380`, `INPUT iifname "docker0" tcp dport 5380`)
	for _, o := range r.want.Objects(r.want.Keys("machine")) {
		if s := o.String(); strings.Contains(s, "docker0") && !strings.Contains(s, "5380") && !strings.Contains(s, "guests") && !strings.Contains(s, "apart") {
			t.Errorf("wanted is %s", s)
		}
	}
}

// has checks that the machine's owner wants objects with all of these in them.
func has(t *testing.T, r *rig, parts ...string) {
	t.Helper()
	var all []string
	for _, o := range r.want.Objects(r.want.Keys("machine")) {
		all = append(all, o.String())
	}
	for _, p := range parts {
		if !strings.Contains(strings.Join(all, "\n"), p) {
			t.Errorf("%q is not in\n%s", p, strings.Join(all, "\n"))
		}
	}
}

// TestNetworkInPlaceOfAnother: Docker's bridge is gone, and nobody has looked since.
func TestNetworkInPlaceOfAnother(t *testing.T) {
	r := newRig(t)
	f := machineWithDocker()
	f.Chains = nil
	if err := r.SetFacts(context.Background(), f); err != nil {
		t.Fatal(err)
	}
	docker := api.Network{Name: "moved", Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("172.17.0.0/16")}}}
	asked := 0
	r.Refresh = func(context.Context) { asked++ }
	_, err := r.PutNetwork(context.Background(), docker, 0)
	code(t, err, api.Conflict, "subnets[0].prefix")
	r.Refresh = func(ctx context.Context) {
		asked++
		f.Links = slices.DeleteFunc(slices.Clone(f.Links), func(l kernel.LinkFact) bool { return l.Name == "docker0" })
		if err := r.SetFacts(ctx, f); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.PutNetwork(context.Background(), docker, 0); err != nil {
		t.Error(err)
	}
	r.network(api.Network{Name: "elsewhere", Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24")}}})
	if asked != 2 {
		t.Errorf("the machine was looked at %d times, want two", asked)
	}
	r.settled()
}
