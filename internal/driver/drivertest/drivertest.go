// Package drivertest is the test that every driver passes: Run checks that it is pure, that its keys are unique and its
// links provably ours, that its objects can be made and leave nothing when they go, for IPv4, IPv6 and both, and
// compares them with goldens under testdata/.
package drivertest

import (
	"context"
	"flag"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/ruleset"
)

var update = flag.Bool("update", false, "write the goldens anew")

// Case is one network with one endpoint.
type Case struct {
	Name     string
	Network  api.Network
	Endpoint api.Endpoint
	Facts    kernel.Facts
}

// Cases gives the combinations that a driver has to cope with, as the engine completes them.
func Cases(uses driver.Uses, name string) []Case {
	no := false
	v4 := api.Subnet{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")}
	v6 := api.Subnet{Prefix: netip.MustParsePrefix("fd00:1::/64"), Gateway: netip.MustParseAddr("fd00:1::1")}
	a4, a6 := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")
	make := func(title string, subnets []api.Subnet, addrs []netip.Addr, change func(*Case)) Case {
		c := Case{Name: title, Network: api.Network{Name: "net", Driver: name, MTU: 1500, Subnets: subnets},
			Endpoint: api.Endpoint{Network: "net", Name: "web", Addresses: addrs, MAC: "02:5e:0a:01:00:02",
				Sandbox: api.Sandbox{Netns: "/run/netns/web", Interface: "eth0"}}}
		if change != nil {
			change(&c)
		}
		return c
	}
	if !uses.Subnets {
		return []Case{make("plain", nil, nil, func(c *Case) { c.Network.MTU, c.Endpoint.MAC = 0, "" })}
	}
	both, addrs := []api.Subnet{v4, v6}, []netip.Addr{a4, a6}
	cases := []Case{
		make("ipv4", []api.Subnet{v4}, addrs[:1], nil),
		make("ipv6", []api.Subnet{v6}, addrs[1:], nil),
		make("dual", both, addrs, nil),
		make("internal", both, addrs, func(c *Case) { c.Network.Internal = true }),
		make("no-icc", both, addrs, func(c *Case) { c.Network.ICC, c.Network.Masquerade = &no, &no }),
		make("second-interface", both, addrs, func(c *Case) { c.Endpoint.Index, c.Endpoint.Sandbox.Interface = 1, "eth1" }),
	}
	if uses.Ports {
		cases = append(cases, make("ports-with-bridge-netfilter", both, addrs, func(c *Case) {
			c.Endpoint.Ports = []api.Port{{HostPort: 8080, ContainerPort: 80}}
			c.Facts.BridgeFilter4, c.Facts.BridgeFilter6 = true, true
		}))
	}
	if uses.Handoff {
		cases = append(cases, make("handoff", both, addrs, func(c *Case) {
			c.Endpoint.Sandbox = api.Sandbox{Handoff: true, Interface: "sc-0123456789ab"}
		}))
	}
	return cases
}

// machine is what the cases' machine has beside what they ask for: a link to a wire, and one that carries a VLAN.
func machine(c *Case, k *fake.Kernel) {
	for _, name := range []string{"eth0", "eth1"} {
		c.Facts.Links = append(c.Facts.Links, kernel.LinkFact{Name: name, MTU: 1500, Up: true})
		k.AddForeign(&kernel.Link{Name: name, Type: kernel.Bridge})
		k.AddForeign(&kernel.LinkUp{Link: name})
	}
}

// Variant is a case that a driver has beside those that every driver has: a network of both families, changed. One
// without a Name changes every case.
type Variant struct {
	Name   string
	Change func(*Case)
}

// With gives a network options; pairs are keys and values.
func With(pairs ...string) func(*Case) {
	return func(c *Case) {
		c.Network.Options = maps.Clone(c.Network.Options)
		if c.Network.Options == nil {
			c.Network.Options = map[string]string{}
		}
		for i := 0; i < len(pairs); i += 2 {
			c.Network.Options[pairs[i]] = pairs[i+1]
		}
	}
}

// NoGateways takes the gateways out of a network.
func NoGateways(c *Case) {
	c.Network.Subnets = slices.Clone(c.Network.Subnets)
	for i := range c.Network.Subnets {
		c.Network.Subnets[i].Gateway = netip.Addr{}
	}
}

// Run is the test of a driver.
func Run(t *testing.T, name string, d driver.Driver, variants ...Variant) {
	cases := Cases(d.Uses(), name)
	for _, v := range variants {
		if v.Name == "" {
			for i := range cases {
				v.Change(&cases[i])
			}
			continue
		}
		i := slices.IndexFunc(cases, func(c Case) bool { return c.Name == "dual" })
		c := cases[i]
		c.Name = v.Name
		v.Change(&c)
		cases = append(cases, c)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			k := fake.New()
			machine(&c, k)
			if d, ok := d.(driver.Completer); ok {
				complete(t, d, &c)
			}
			network, endpoint := objects(t, d, c)
			again, endpoint2 := objects(t, d, c)
			if !reflect.DeepEqual(network, again) || !reflect.DeepEqual(endpoint, endpoint2) {
				t.Error("the same arguments gave other objects: the driver is not pure")
			}
			checkKeys(t, append(append([]kernel.Object(nil), network...), endpoint...))
			roundTrip(t, k, c, network, endpoint)
			golden(t, c.Name, network, endpoint)
		})
	}
}

// complete completes the network as the engine does, and wants what is complete to stay as it is.
func complete(t *testing.T, d driver.Completer, c *Case) {
	t.Helper()
	c.Network.Options = maps.Clone(c.Network.Options)
	if c.Network.Options == nil {
		c.Network.Options = map[string]string{}
	}
	if err := d.Complete(&c.Network, driver.Env{Facts: c.Facts, New: true}); err != nil {
		t.Fatal(err)
	}
	again := c.Network
	again.Options = maps.Clone(again.Options)
	if err := d.Complete(&again, driver.Env{Facts: c.Facts}); err != nil || !reflect.DeepEqual(again, c.Network) {
		t.Errorf("%v: completed again %+v is %+v", err, c.Network, again)
	}
}

func objects(t *testing.T, d driver.Driver, c Case) (network, endpoint []kernel.Object) {
	t.Helper()
	network, err := d.Network(c.Network, c.Facts)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err = d.Objects(c.Network, c.Endpoint, c.Facts)
	if err != nil {
		t.Fatal(err)
	}
	return network, endpoint
}

func checkKeys(t *testing.T, all []kernel.Object) {
	seen := map[kernel.Key]bool{}
	for _, o := range all {
		if seen[o.Key()] {
			t.Errorf("%s is wanted twice", o.Key())
		}
		seen[o.Key()] = true
		if l, ok := o.(*kernel.Link); ok && !strings.HasPrefix(l.Alias, kernel.AliasPrefix) {
			t.Errorf("%s has no alias that marks it as ours", l)
		}
	}
}

// roundTrip makes everything on a kernel and takes it away again.
func roundTrip(t *testing.T, k *fake.Kernel, c Case, network, endpoint []kernel.Object) {
	ctx := context.Background()
	k.AddNamespace(c.Endpoint.Sandbox.Netns)
	if err := reconcile.Apply(ctx, k, []kernel.Object{ruleset.Table(5380, false)}, nil); err != nil {
		t.Fatal(err)
	}
	bare := k.Dump()
	if err := reconcile.Apply(ctx, k, network, nil); err != nil {
		t.Fatalf("network: %v", err)
	}
	before := k.Dump()
	if err := reconcile.Apply(ctx, k, endpoint, nil); err != nil {
		t.Fatalf("endpoint: %v", err)
	}
	if diff, err := reconcile.Check(ctx, k, append(network, endpoint...)); err != nil || len(diff) > 0 {
		t.Errorf("after apply differs: %v, %v", diff, err)
	}
	if err := reconcile.Apply(ctx, k, nil, endpoint); err != nil {
		t.Fatalf("removal of the endpoint: %v", err)
	}
	if after := k.Dump(); strip(after) != strip(before) {
		t.Errorf("the endpoint left something:\n%s\nwas:\n%s", after, before)
	}
	if err := reconcile.Apply(ctx, k, nil, network); err != nil {
		t.Fatalf("removal of the network: %v", err)
	}
	if after := k.Dump(); strip(after) != strip(bare) {
		t.Errorf("the network left something:\n%s\nwas:\n%s", after, bare)
	}
}

// strip leaves out lo's state, which stays up when a sandbox was once attached.
func strip(dump string) string {
	var out []string
	for line := range strings.Lines(dump) {
		if !strings.HasPrefix(line, "link lo up") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func golden(t *testing.T, name string, network, endpoint []kernel.Object) {
	var b strings.Builder
	for _, part := range []struct {
		title string
		list  []kernel.Object
	}{{"network", network}, {"endpoint", endpoint}} {
		b.WriteString("# " + part.title + "\n")
		for _, o := range part.list {
			b.WriteString(o.String() + "\n")
		}
	}
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s differs (run with -update and read the diff):\n%s", path, b.String())
	}
}
