package machine_test

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// TestDefaultRestricted: the network that is made when it is first asked for reaches the machine, and nothing beyond:
// not even for a container that adds a default route itself.
func TestDefaultRestricted(t *testing.T) {
	bothFilters(t, func(r *rig) {
		a, b, c := r.attach("default-restricted", "a"), r.attach("default-restricted", "b"), r.attach("default", "c")
		n, err := r.client.Network(r.Context(), "default-restricted")
		if err != nil || !n.Internal || n.ICCOn() || n.Driver != "ptp" {
			t.Fatalf("%+v, %v", n, err)
		}
		in := r.container("a")
		for _, routed := range []bool{false, true} {
			for _, s := range n.Subnets {
				i := 0
				if s.Prefix.Addr().Is6() {
					i = 1
				}
				if routed {
					family := []string{"-4", "-6"}[i]
					if _, err := in.Exec(r.Context(), "ip", family, "route", "add", "default", "via", s.Gateway.String(), "dev", "eth0"); err != nil {
						t.Fatal(err)
					}
				}
				for _, proto := range networks {
					to := testkit.Serve(r.T, r.machine.NS, proto, at(s.Gateway, 0).String())
					if got := testkit.Reach(r.T, in, proto, to); got.Source.Addr() != a.Addresses[i] {
						r.Errorf("the machine sees %s, want %s", got.Source, a.Addresses[i])
					}
				}
				beyond := map[*testkit.NS]netip.Addr{r.outside.NS: r.outside.Addrs()[i], r.container("b"): b.Addresses[i], r.container("c"): c.Addresses[i]}
				for where, addr := range beyond {
					testkit.CantReach(r.T, in, "udp", testkit.Serve(r.T, where, "udp", at(addr, 0).String()), short)
				}
				testkit.CantReach(r.T, r.container("c"), "udp", testkit.Serve(r.T, in, "udp", at(a.Addresses[i], 0).String()), short)
			}
		}
		r.clean()
		out := r.ok("run", "--quiet", "--network", "default-restricted", "--", "sh", "-c", "ip -o addr show eth0; ip route; ip -6 route")
		if strings.Contains(out, "default") || !strings.Contains(out, n.Subnet4().Gateway.String()) {
			r.Errorf("a program there has:\n%s", out)
		}
		r.detach("default-restricted", "a")
		r.detach("default-restricted", "b")
		if err := r.client.DeleteNetwork(r.Context(), "default-restricted", 0); err != nil {
			t.Fatal(err)
		}
		r.ok("run", "--quiet", "--network", "default-restricted", "--network", "default", "--", "true") // it is made again
	})
}

// TestDefaultNetwork: the operator chooses the network of those who name none.
func TestDefaultNetwork(t *testing.T) {
	r := newRig(t, options{})
	r.network(api.Network{Name: "own", Driver: "ptp"})
	inode := func(args ...string) string {
		r.Helper()
		return strings.TrimSpace(r.ok(append(append([]string{"run", "--quiet"}, args...), "--", "readlink", "/proc/self/ns/net")...))
	}
	machine := inode("--network", "host")
	for _, name := range []string{"host", "none", "own", "default"} {
		r.kill(syscall.SIGTERM)
		r.extra = []string{"--default-network", name}
		r.start()
		node, err := r.client.Node(r.Context())
		if err != nil || node.DefaultNetwork != name {
			t.Fatalf("the node's default network is %q, want %q (%v)", node.DefaultNetwork, name, err)
		}
		if got := inode(); (got == machine) != (name == "host") {
			t.Errorf("with the default %q a program is in %s, the machine's is %s", name, got, machine)
		}
		out := r.ok("run", "--quiet", "--", "ip", "-o", "link")
		if has := strings.Contains(out, "eth0"); has != (name != "none") {
			t.Errorf("with the default %q a program has:\n%s", name, out)
		}
		ep := api.Endpoint{Name: "api", Sandbox: api.Sandbox{Netns: r.container("api").Path()}}
		if name == "host" {
			ep.Sandbox = api.Sandbox{}
			r.refused(2, []string{"--network", "host"}, "run", "-p", "80:80", "true")
		}
		got, err := r.client.PutEndpoint(r.Context(), ep, api.CreateOnly)
		if err != nil || got.Network != name {
			t.Errorf("attached by the API: %+v, %v, want network %q", got, err, name)
		}
		r.detach(name, "api")
	}
	r.kill(syscall.SIGTERM)
	dir, _ := bin()
	out, err := r.machine.Exec(r.Context(), dir+"/seined", "--state", r.dir+"/x", "--default-network", "a/b")
	if err == nil || !strings.Contains(fmt.Sprint(err), `default-network "a/b"`) {
		t.Errorf("%v %s", err, out)
	}
	r.start()
}
