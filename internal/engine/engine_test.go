package engine_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

func off() *bool { return new(bool) }

func TestDefaultsAreDualStackAndAvoidTheMachine(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.facts.Routes = []netip.Prefix{netip.MustParsePrefix("10.200.0.0/23")}
	r.start()
	if err := r.DefaultNetwork(context.Background()); err != nil {
		t.Fatal(err)
	}
	n, err := r.Network(context.Background(), "default")
	if err != nil {
		t.Fatal(err)
	}
	if got := n.Subnet4().Prefix.String(); got != "10.200.2.0/24" {
		t.Errorf("IPv4 subnet is %s, want the first that the machine has no route for", got)
	}
	if n.Subnet6() == nil || n.MTU != 1500 || n.Driver != "bridge" {
		t.Errorf("default network is %+v", n)
	}
	r.settled()
	if err := r.DeleteNetwork(context.Background(), "default", 0); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if err := r.DefaultNetwork(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Network(context.Background(), "default"); api.CodeOf(err) != api.NotFound {
		t.Errorf("a default network that was removed came back: %v", err)
	}
}

func TestAttachDetachLeavesNothing(t *testing.T) {
	for _, driver := range []string{"bridge", "ptp"} {
		t.Run(driver, func(t *testing.T) {
			r := newRig(t)
			before := r.kernel.Dump()
			r.network(api.Network{Name: "a", Driver: driver})
			ep := r.attach("a", "web", api.Port{HostPort: 8080, ContainerPort: 80}, api.Port{Protocol: "udp", HostPort: 53, ContainerPort: 53, HostIP: netip.MustParseAddr("127.0.0.1")})
			if ep.Status.State != api.Attached || len(ep.Addresses) != 2 || ep.Sandbox.Interface != "eth0" {
				t.Fatalf("endpoint is %+v", ep)
			}
			r.settled()
			again := r.attach("a", "web", ep.Ports...)
			if again.Revision != ep.Revision {
				t.Errorf("attaching the same again made revision %d of %d", again.Revision, ep.Revision)
			}
			if err := r.DeleteEndpoint(context.Background(), "a", "web", 0); err != nil {
				t.Fatal(err)
			}
			r.settled()
			if err := r.DeleteNetwork(context.Background(), "a", 0); err != nil {
				t.Fatal(err)
			}
			r.settled()
			r.kernel.RemoveNamespace("/run/netns/web")
			if after := r.kernel.Dump(); after != before {
				t.Errorf("kernel before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

func TestResetPutsTheMachineBack(t *testing.T) {
	r := newRig(t)
	before := r.kernel.Snapshot()
	if err := r.DefaultNetwork(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.attach("default", "web", api.Port{HostPort: 8080, ContainerPort: 80})
	if err := r.Reset(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.kernel.RemoveNamespace("/run/netns/web")
	if d := before.Diff(r.kernel.Snapshot()); d != "" {
		t.Errorf("after reset the kernel differs:\n%s", d)
	}
	r.restart()
	if err := r.DefaultNetwork(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Network(context.Background(), "default"); err != nil {
		t.Errorf("the first start after a reset has no default network: %v", err)
	}
}

func TestSeveralNetworksInOneSandbox(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a"})
	r.network(api.Network{Name: "b", Driver: "ptp"})
	ns := r.netns("c")
	put := func(network string) api.Endpoint {
		ep, err := r.PutEndpoint(context.Background(), api.Endpoint{Network: network, Name: "c", Sandbox: api.Sandbox{Netns: ns}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return ep
	}
	if a, b := put("a"), put("b"); a.Sandbox.Interface != "eth0" || b.Sandbox.Interface != "eth1" || b.Index != 1 {
		t.Fatalf("interfaces are %q and %q", a.Sandbox.Interface, b.Sandbox.Interface)
	}
	r.settled()
	if err := r.DeleteEndpoint(context.Background(), "a", "c", 0); err != nil {
		t.Fatal(err)
	}
	r.settled()
	if a := put("a"); a.Sandbox.Interface != "eth0" {
		t.Errorf("the free name is not taken again: %q", a.Sandbox.Interface)
	}
	r.settled()
}

func TestNetworkOptionsTakeEffectWhileUsed(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a"})
	r.attach("a", "web")
	r.network(api.Network{Name: "a", ICC: off(), Masquerade: off()})
	r.settled()
	dump := r.kernel.Dump()
	if strings.Contains(dump, "element inet seine masq") || !strings.Contains(dump, "isolated on") {
		t.Errorf("icc=false, masquerade=false has not taken effect:\n%s", dump)
	}
	_, err := r.PutNetwork(context.Background(), api.Network{Name: "a", MTU: 1400}, 0)
	code(t, err, api.Conflict, "mtu")
	err = r.DeleteNetwork(context.Background(), "a", 0)
	code(t, err, api.InUse, "")
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	r.facts.Routes = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
	r.restart()
	ctx := context.Background()
	a := r.network(api.Network{Name: "a", Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/29")}}})
	r.network(api.Network{Name: "in", Internal: true})
	r.network(api.Network{Name: "h", Driver: "host"})
	web := r.attach("a", "web", api.Port{HostPort: 8080, ContainerPort: 80})
	dump := r.kernel.Dump()
	net := func(n api.Network) error { _, err := r.PutNetwork(ctx, n, 0); return err }
	end := func(e api.Endpoint) error {
		if e.Name == "" {
			e.Name = "x"
		}
		if e.Sandbox.Netns == "" && e.Network != "h" {
			e.Sandbox.Netns = "/run/netns/web"
		}
		_, err := r.PutEndpoint(ctx, e, 0)
		return err
	}
	sub := func(s string) []api.Subnet { return []api.Subnet{{Prefix: netip.MustParsePrefix(s)}} }
	ip := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	for _, c := range []struct {
		name  string
		err   error
		code  api.Code
		field string
	}{
		{"overlap with a network", net(api.Network{Name: "b", Subnets: sub("10.1.0.0/16")}), api.Conflict, "subnets[0].prefix"},
		{"overlap with the machine", net(api.Network{Name: "b", Subnets: sub("10.9.1.0/24")}), api.Conflict, "subnets[0].prefix"},
		{"driver", net(api.Network{Name: "b", Driver: "vxlan"}), api.Invalid, "driver"},
		{"option", net(api.Network{Name: "b", Options: map[string]string{"x": "y"}}), api.Invalid, "options"},
		{"subnet of host", net(api.Network{Name: "b", Driver: "host", Subnets: sub("10.1.0.0/16")}), api.Invalid, "subnets"},
		{"case", net(api.Network{Name: "A"}), api.Conflict, ""},
		{"interface", net(api.Network{Name: "b", Interface: "sn-a"}), api.Conflict, "interface"},
		{"name", net(api.Network{Name: "a b"}), api.Invalid, "name"},
		{"no such network", end(api.Endpoint{Network: "nope"}), api.NotFound, ""},
		{"no such namespace", end(api.Endpoint{Network: "a", Sandbox: api.Sandbox{Netns: "/run/netns/nope"}}), api.Invalid, "sandbox.netns"},
		{"no such process", end(api.Endpoint{Network: "a", Sandbox: api.Sandbox{PID: 2000}}), api.Invalid, "sandbox.pid"},
		{"address taken", end(api.Endpoint{Network: "a", Addresses: web.Addresses[:1]}), api.Conflict, "addresses[0]"},
		{"address outside", end(api.Endpoint{Network: "a", Addresses: ip("10.2.0.1")}), api.Invalid, "addresses[0]"},
		{"gateway", end(api.Endpoint{Network: "a", Addresses: ip("10.1.0.1")}), api.Invalid, "addresses[0]"},
		{"broadcast", end(api.Endpoint{Network: "a", Addresses: ip("10.1.0.7")}), api.Invalid, "addresses[0]"},
		{"family", end(api.Endpoint{Network: "a", Addresses: ip("fd00::1")}), api.Invalid, "addresses[0]"},
		{"port taken", end(api.Endpoint{Network: "a", Ports: []api.Port{{HostPort: 8080, ContainerPort: 1}}}), api.Conflict, "ports[0].hostPort"},
		{"port on internal", end(api.Endpoint{Network: "in", Ports: []api.Port{{HostPort: 81, ContainerPort: 1}}}), api.Invalid, "ports"},
		{"port on host", end(api.Endpoint{Network: "h", Ports: []api.Port{{HostPort: 81, ContainerPort: 1}}}), api.Invalid, "ports"},
		{"sandbox on host", end(api.Endpoint{Network: "h", Sandbox: api.Sandbox{Netns: "/run/netns/web"}}), api.Invalid, "sandbox.netns"},
		{"interface taken", end(api.Endpoint{Network: "a", Sandbox: api.Sandbox{Interface: "eth0"}}), api.Conflict, "sandbox.interface"},
	} {
		t.Run(c.name, func(t *testing.T) { code(t, c.err, c.code, c.field) })
	}
	if after := r.kernel.Dump(); after != dump {
		t.Errorf("refusals changed the kernel:\n%s\nwas:\n%s", after, dump)
	}
	_, err := r.PutNetwork(ctx, api.Network{Name: "a"}, a.Revision+7)
	code(t, err, api.Stale, "")
	_, err = r.PutNetwork(ctx, api.Network{Name: "a"}, api.CreateOnly)
	code(t, err, api.Conflict, "")
	for i := range 4 {
		r.attach("a", fmt.Sprint("c", i))
	}
	_, err = r.tryAttach("a", "one-too-many")
	code(t, err, api.Exhausted, "")
	r.settled()
}

func TestPortOfAnotherProgramIsRefusedAtOnce(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a"})
	before := r.kernel.Dump()
	at := netip.MustParseAddrPort("0.0.0.0:8080")
	r.kernel.Occupy("tcp", at)
	_, err := r.tryAttach("a", "web", api.Port{HostPort: 81, ContainerPort: 80}, api.Port{HostPort: 8080, ContainerPort: 80})
	code(t, err, api.Conflict, "ports[1].hostPort")
	r.settled()
	r.kernel.RemoveNamespace("/run/netns/web")
	if after := r.kernel.Dump(); after != before {
		t.Errorf("half of the attach is left:\n%s\nwas:\n%s", after, before)
	}
	r.kernel.Vacate("tcp", at)
	r.attach("a", "web", api.Port{HostPort: 81, ContainerPort: 80}, api.Port{HostPort: 8080, ContainerPort: 80})
	r.settled()
}

func TestEndOfTheProcessDetaches(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a"})
	if _, err := r.PutEndpoint(context.Background(), api.Endpoint{Network: "a", Name: "x", Sandbox: api.Sandbox{Netns: r.netns("x"), PID: 7}}, 0); err != nil {
		t.Fatal(err)
	}
	r.procs.end(7)
	if _, err := r.Endpoint(context.Background(), "a", "x"); api.CodeOf(err) != api.NotFound {
		t.Errorf("endpoint is still there: %v", err)
	}
	r.settled()
}

func TestLostNamespaceIsCollected(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a"})
	ep := r.attach("a", "x")
	r.kernel.RemoveNamespace(ep.Sandbox.Netns)
	r.restart()
	got, err := r.Endpoint(context.Background(), "a", "x")
	if err != nil || got.Status.State != api.Lost {
		t.Fatalf("endpoint is %+v, %v; want it lost", got.Status, err)
	}
	if err := r.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.settled()
	if n, _ := r.Network(context.Background(), "a"); n.Status.Endpoints != 0 {
		t.Errorf("network still has %d endpoints", n.Status.Endpoints)
	}
}

func TestRebootForgetsEndpoints(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a"})
	r.attach("a", "x")
	if err := r.store.SetValue("boot", "an earlier one"); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if n, err := r.Network(context.Background(), "a"); err != nil || n.Status.Endpoints != 0 {
		t.Errorf("network is %+v, %v; want it without endpoints", n.Status, err)
	}
	r.settled()
}

func TestDamageIsRepaired(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a"})
	r.network(api.Network{Name: "p", Driver: "ptp"})
	r.attach("a", "web", api.Port{HostPort: 8080, ContainerPort: 80})
	r.attach("p", "web2", api.Port{HostPort: 8081, ContainerPort: 80})
	for _, key := range r.want.Keys("") {
		if !r.kernel.Break(key) {
			continue // a sysctl can't be removed
		}
		r.restart()
		r.settled()
	}
	plan, err := r.Plan(context.Background(), "")
	if err != nil || len(plan.Changes) != 0 {
		t.Errorf("plan is %v, %v; want it empty", plan, err)
	}
	if ks := r.want.Keys("endpoint/a/web"); len(ks) > 0 {
		r.kernel.Break(kernel.Key{Kind: kernel.KindAddr, NS: "/run/netns/web", Name: "eth0 " + r.address("a", "web")})
		plan, err = r.Plan(context.Background(), "endpoint/a/web")
		if err != nil || len(plan.Changes) == 0 || plan.Changes[0].Op != "+" || plan.Changes[0].Owner != "endpoint/a/web" {
			t.Errorf("plan is %v, %v; want the address", plan, err)
		}
	}
}

func (r *rig) address(network, name string) string {
	ep, err := r.Endpoint(context.Background(), network, name)
	if err != nil {
		r.t.Fatal(err)
	}
	return ep.Status.Prefixes[0].String()
}
