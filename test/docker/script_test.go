package docker_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// TestScript is Docker's commands one after the other, on a machine that drops what it does not know and has the frames
// of bridges pass its firewall, as Docker itself configures machines. What each story makes is gone when it ends.
func TestScript(t *testing.T) {
	r := newRig(t)
	r.hostile()
	before := r.traces()
	for _, s := range []struct {
		name string
		long bool
		f    func(*rig)
	}{
		{"network options", false, networkOptions},
		{"run options", false, runOptions},
		{"published ports", false, publishedPorts},
		{"ports of all doors", false, allDoors},
		{"connect and disconnect", false, connects},
		{"stop, start and remove", true, life},
		{"compose", true, compose},
		{"beside Docker's bridge", false, neighbours},
		{"driver killed", false, driverKilled},
		{"driver killed under a run", true, killedUnderRun},
		{"dockerd restarted", true, dockerRestarted},
		{"dockerd restarted with live restore", false, liveRestore},
	} {
		t.Run(s.name, func(t *testing.T) {
			if s.long && testing.Short() {
				t.Skip("skip: -short")
			}
			r := r.with(t)
			defer r.remove() // also after a failure: the next story is about something else
			s.f(r)
			r.remove()
			r.same(before)
		})
	}
}

// hostile drops what no rule knows, and has bridged frames pass the rules: dockerd does the former on a machine that did not forward before, and
// the latter for networks without icc.
func (r *rig) hostile() {
	r.Helper()
	testkit.Need(r.T, "program:iptables", "bridge-netfilter")
	for _, name := range []string{"iptables", "ip6tables"} {
		if err := r.machine.Sysctl("net/bridge/bridge-nf-call-"+name, "1"); err != nil {
			r.Fatal(err)
		}
		if out, err := r.machine.Exec(r.Context(), name, "-P", "FORWARD", "DROP"); err != nil {
			r.Fatal(out, err)
		}
	}
	// The daemon looks at the firewall when it changes; wait until it has.
	r.eventually(5*time.Second, func() error {
		out, err := r.machine.Exec(r.Context(), "iptables", "-S", "FORWARD")
		if err == nil && !strings.Contains(out, "sn-+") {
			err = fmt.Errorf("the chain FORWARD is:\n%s", out)
		}
		return err
	})
}

// remove removes all containers and all networks that were made.
func (r *rig) remove() {
	r.Helper()
	if ids := strings.Fields(r.docker("ps", "-aq")); len(ids) > 0 {
		r.docker(append([]string{"rm", "-f", "-v"}, ids...)...)
	}
	if ids := strings.Fields(r.docker("network", "ls", "-q", "--filter", "type=custom")); len(ids) > 0 {
		r.docker(append([]string{"network", "rm"}, ids...)...)
	}
}

// traces are what a network or a container leaves if nobody takes it away: links, elements of our sets, networks and
// endpoints.
func (r *rig) traces() []string {
	r.Helper()
	out := testkit.Elements(r.T, r.machine.NS)
	all, err := r.machine.Netlink().LinkList()
	if err != nil {
		r.Fatal(err)
	}
	for _, l := range all {
		out = append(out, "link "+l.Attrs().Name)
	}
	nets, err := r.client.Networks(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	for _, n := range nets {
		out = append(out, "network "+n.Name)
	}
	eps, err := r.client.Endpoints(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	for _, e := range eps {
		out = append(out, "endpoint "+e.Key())
	}
	slices.Sort(out)
	return out
}

// same waits until the traces are what they were: some of what the kernel reports follows later.
func (r *rig) same(before []string) {
	r.Helper()
	var now []string
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if now = r.traces(); slices.Equal(now, before) {
			return
		}
	}
	r.Errorf("the machine is not as before:\n%s\nwas:\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
}

// create makes a network with our drivers for interfaces and addresses.
func (r *rig) create(name string, args ...string) {
	r.Helper()
	r.docker(append(append([]string{"network", "create", "-d", driver, "--ipam-driver", driver}, args...), name)...)
}

// run starts a container that does nothing, and gives its namespace, in which servers answer with its name at port 80,
// over TCP and UDP.
func (r *rig) run(name, network string, args ...string) *testkit.NS {
	r.Helper()
	r.docker(slices.Concat([]string{"run", "-d", "--name", name, "--network", network, "--stop-timeout", "0"}, args, []string{"bb", "sleep", "600"})...)
	return r.serve(name, 80)
}

// serve has a container serve ports.
func (r *rig) serve(name string, ports ...uint16) *testkit.NS {
	r.Helper()
	ns := r.inside(name)
	r.serveIn(ns, ports...)
	return ns
}

func (r *rig) serveIn(ns *testkit.NS, ports ...uint16) {
	r.Helper()
	for _, port := range ports {
		for _, network := range []string{"tcp", "udp"} {
			testkit.Serve(r.T, ns, network, fmt.Sprintf("[::]:%d", port))
		}
	}
}

// reach checks that a server answers, over TCP and UDP, and that it sees the source, where that is a valid one.
func (r *rig) reach(from *testkit.NS, to netip.Addr, port uint16, server string, source netip.Addr) {
	r.Helper()
	for _, network := range []string{"tcp", "udp"} {
		got := testkit.Reach(r.T, from, network, netip.AddrPortFrom(to, port))
		if got.Server != server {
			r.Errorf("%s asks %s %s port %d: %q answers, want %q", from.Name, network, to, port, got.Server, server)
		}
		if source.IsValid() && got.Source.Addr() != source {
			r.Errorf("%s asks %s %s port %d: the server sees %s, want %s", from.Name, network, to, port, got.Source.Addr(), source)
		}
	}
}

// wait is how long a server that is not to answer is waited for.
const wait = 150 * time.Millisecond

func (r *rig) cantReach(from *testkit.NS, to netip.Addr, port uint16) {
	r.Helper()
	for _, network := range []string{"tcp", "udp"} {
		testkit.CantReach(r.T, from, network, netip.AddrPortFrom(to, port), wait)
	}
}

// far are addresses outside, which are reached by the default routes only.
func far(v6 bool) []netip.Addr {
	if v6 {
		return []netip.Addr{testkit.Far4, testkit.Far6}
	}
	return []netip.Addr{testkit.Far4}
}

// mutual checks that containers of one network reach each other, in both directions, with their own addresses.
func (r *rig) mutual(network string, a, b *testkit.NS) {
	r.Helper()
	toA, toB := r.addr(a.Name, network), r.addr(b.Name, network)
	for i := range toB {
		r.reach(a, toB[i], 80, b.Name, toA[i])
		r.reach(b, toA[i], 80, a.Name, toB[i])
	}
}

var local = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
