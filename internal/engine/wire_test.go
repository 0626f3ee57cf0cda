package engine_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// wireRig is a rig whose machine has eth0 and eth1 on wires; its own address on eth0 is in a wire's range.
func wireRig(t *testing.T) *rig {
	r := newRig(t)
	r.stop()
	for _, name := range []string{"eth0", "eth1"} {
		r.kernel.AddForeign(&kernel.Link{Name: name, Type: kernel.Bridge})
		r.kernel.AddForeign(&kernel.LinkUp{Link: name})
		prefix := netip.MustParsePrefix(map[string]string{"eth0": "10.9.0.1/24", "eth1": "10.8.0.1/24"}[name])
		r.kernel.AddForeign(&kernel.Addr{Link: name, Prefix: prefix})
		r.facts.Links = append(r.facts.Links, kernel.LinkFact{Name: name, MTU: 1500, Up: true, Index: 7,
			Addrs: []netip.Prefix{prefix}})
	}
	r.start()
	return r
}

func on(name, driver string, pairs ...string) api.Network {
	n := api.Network{Name: name, Driver: driver, Options: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		n.Options[pairs[i]] = pairs[i+1]
	}
	return n
}

// What a network on a wire can't be is refused by its field, and changes nothing.
func TestWireNetworksAreChecked(t *testing.T) {
	r := wireRig(t)
	ctx := context.Background()
	r.network(on("mac", "macvlan", "parent", "eth0"))
	r.network(on("ip", "ipvlan", "parent", "eth1.5"))
	r.network(on("tag", "vlan", "parent", "eth1.6"))
	before := r.kernel.Dump()
	with := func(n api.Network, change func(*api.Network)) api.Network { change(&n); return n }
	yes, no := true, false
	subnet := func(gw string) func(*api.Network) {
		return func(n *api.Network) {
			n.Subnets = []api.Subnet{{Prefix: netip.MustParsePrefix("10.77.0.0/24")}}
			if gw != "" {
				n.Subnets[0].Gateway = netip.MustParseAddr(gw)
			}
		}
	}
	for _, tt := range []struct {
		name  string
		n     api.Network
		code  api.Code
		field string
	}{
		{"unknown parent", on("x", "macvlan", "parent", "eth9"), api.Invalid, "options.parent"},
		{"no name", on("x", "macvlan", "parent", "a/b"), api.Invalid, "options.parent"},
		{"name that is too long", on("x", "macvlan", "parent", "eth0.000000000050"), api.Invalid, "options.parent"},
		{"empty parent", on("x", "macvlan", "parent", ""), api.Invalid, "options.parent"},
		{"VLAN 4095", on("x", "macvlan", "parent", "eth0.4095"), api.Invalid, "options.parent"},
		{"vlan without a tag", on("x", "vlan", "parent", "eth0"), api.Invalid, "options.parent"},
		{"vlan without a parent", on("x", "vlan"), api.Invalid, "options.parent"},
		{"unknown mode", on("x", "macvlan", "parent", "eth0", "mode", "l2"), api.Invalid, "options.mode"},
		{"unknown ipvlan mode", on("x", "ipvlan", "parent", "eth1.7", "mode", "bridge"), api.Invalid, "options.mode"},
		{"unknown flag", on("x", "ipvlan", "parent", "eth1.7", "flag", "none"), api.Invalid, "options.flag"},
		{"unknown option", on("x", "macvlan", "parnt", "eth0"), api.Invalid, "options"},
		{"bridge without icc", with(on("x", "macvlan", "mode", "bridge"), func(n *api.Network) { n.ICC = &no }), api.Invalid, "icc"},
		{"masquerade", with(on("x", "macvlan", "parent", "eth0"), func(n *api.Network) { n.Masquerade = &yes }), api.Invalid, "masquerade"},
		{"large MTU", with(on("x", "macvlan", "parent", "eth0"), func(n *api.Network) { n.MTU = 9000 }), api.Invalid, "mtu"},
		{"interface", with(on("x", "macvlan", "parent", "eth0"), func(n *api.Network) { n.Interface = "br7" }), api.Invalid, "interface"},
		{"gateway in l3", with(on("x", "ipvlan", "parent", "eth0.7", "mode", "l3"), subnet("10.77.0.1")), api.Invalid, "subnets[0].gateway"},
		{"gateway of a dummy", with(on("x", "dummy"), subnet("10.77.0.1")), api.Invalid, "gateway"},
		{"host beside private", on("x", "macvlan", "parent", "eth0", "mode", "private", "host", "true"), api.Invalid, "options.host"},
		{"host elsewhere", with(on("x", "macvlan", "parent", "eth0", "host", "10.78.0.1"), subnet("")), api.Invalid, "options.host"},
		{"host twice", with(on("x", "macvlan", "parent", "eth0", "host", "10.77.0.2,10.77.0.3"), subnet("")), api.Invalid, "options.host"},
		{"other kind", on("x", "ipvlan", "parent", "eth0"), api.Conflict, "driver"},
		{"passthru beside bridge", on("x", "macvlan", "parent", "eth0", "mode", "passthru"), api.Conflict, "options.mode"},
		{"other ipvlan mode", on("x", "ipvlan", "parent", "eth1.5", "mode", "l3"), api.Conflict, "options.mode"},
		{"other ipvlan flag", on("x", "ipvlan", "parent", "eth1.5", "flag", "vepa"), api.Conflict, "options.flag"},
		{"VLAN that a sandbox has", on("x", "macvlan", "parent", "eth1.6"), api.Conflict, "driver"},
		{"VLAN twice", on("x", "vlan", "parent", "eth1.6"), api.Conflict, "options.parent"},
	} {
		_, err := r.PutNetwork(ctx, tt.n, 0)
		t.Run(tt.name, func(t *testing.T) { code(t, err, tt.code, tt.field) })
	}
	if after := r.kernel.Dump(); after != before {
		t.Errorf("changed:\n%s\nwas:\n%s", after, before)
	}
}

// A network on a wire is what was asked for, completed: again it is the same.
func TestWireNetworkIsCompleted(t *testing.T) {
	r := wireRig(t)
	ask := on("lan", "macvlan", "parent", "eth0", "host", "true")
	ask.Subnets = []api.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Gateway: netip.MustParseAddr("10.9.0.254")}}
	n := r.network(ask)
	if n.MTU != 0 || n.Options["mode"] != "bridge" || n.Options["host"] != "10.9.0.253" || len(n.Subnets[0].Reserved) != 2 {
		t.Errorf("it is %+v", n)
	}
	again := r.network(ask)
	if again.Revision != n.Revision {
		t.Errorf("the same again is another: %+v", again)
	}
	ask.Options["host"] = "10.9.0.5"
	_, err := r.PutNetwork(context.Background(), ask, 0)
	code(t, err, api.Conflict, "options")
	for range 251 { // all but the gateway and the two that the machine has
		ep, err := r.tryAttach("lan", "c")
		if err != nil {
			t.Fatal(err)
		}
		if a := ep.Addresses[0].String(); a == "10.9.0.1" || a == "10.9.0.253" || a == "10.9.0.254" {
			t.Fatalf("%s was given out", a)
		}
		if err := r.DeleteEndpoint(context.Background(), "lan", "c", 0); err != nil {
			t.Fatal(err)
		}
	}
	r.settled()
}

// Two networks want one VLAN: it is made once, and goes with the last. What somebody else made stays.
func TestVLANOnDemand(t *testing.T) {
	r := wireRig(t)
	before := r.kernel.Dump()
	r.network(on("a", "macvlan", "parent", "eth0.5"))
	r.network(on("b", "macvlan", "parent", "eth0.5"))
	r.attach("b", "web")
	r.settled()
	has := func() bool { return strings.Contains(r.kernel.Dump(), "link eth0.5 ") }
	if err := r.DeleteNetwork(context.Background(), "a", 0); err != nil || !has() {
		t.Fatalf("the first of two networks took the VLAN along (%v):\n%s", err, r.kernel.Dump())
	}
	r.restart()
	r.settled()
	for _, err := range []error{r.DeleteEndpoint(context.Background(), "b", "web", 0), r.DeleteNetwork(context.Background(), "b", 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.kernel.RemoveNamespace("/run/netns/web")
	if after := r.kernel.Dump(); after != before {
		t.Errorf("left:\n%s\nwas:\n%s", after, before)
	}
}

// An interface that Docker took is made once, whatever happens to the daemon, and its removal finds it where it came back.
func TestHandoffOnAWire(t *testing.T) {
	r := wireRig(t)
	ctx := context.Background()
	r.network(on("lan", "macvlan", "parent", "eth0", "host", "true"))
	before := r.kernel.Dump()
	ask := api.Endpoint{Network: "lan", Name: "web", Sandbox: api.Sandbox{Handoff: true}}
	ep, err := r.PutEndpoint(ctx, ask, 0)
	if err != nil || !ep.Sandbox.Taken {
		t.Fatalf("%v: endpoint is %+v", err, ep)
	}
	src, ns := ep.Sandbox.Interface, r.netns("taken")
	if !r.kernel.Move("", src, ns, "eth0") {
		t.Fatalf("%q is not there to be taken", src)
	}
	taken := r.kernel.Dump()
	again, err := r.PutEndpoint(ctx, ask, 0)
	if err != nil || again.Revision != ep.Revision {
		t.Errorf("the same again made revision %d of %d, %v", again.Revision, ep.Revision, err)
	}
	r.restart()
	r.settled()
	if now := r.kernel.Dump(); now != taken {
		t.Errorf("a restart changed what was handed over:\n%s\nwas:\n%s", now, taken)
	}
	if !r.kernel.Move(ns, "eth0", "", src) {
		t.Fatal("it can't be given back")
	}
	if err := r.DeleteEndpoint(ctx, "lan", "web", 0); err != nil {
		t.Fatal(err)
	}
	r.kernel.RemoveNamespace(ns)
	if after := r.kernel.Dump(); after != before {
		t.Errorf("left:\n%s\nwas:\n%s", after, before)
	}
}
