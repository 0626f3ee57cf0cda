package vm

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/app"
	"github.com/seine-net/seine/internal/ipam/dhcp"
	"github.com/seine-net/seine/internal/testkit"
)

const short = 300 * time.Millisecond // how long to wait for what must not come

// daemonMain is the daemon, in a folder.
func daemonMain(dir string) error {
	return app.Run(context.Background(), app.Options{State: filepath.Join(dir, "state.db"), Socket: filepath.Join(dir, "s"), Node: "n1",
		LogLevel: "info", DHCP: dhcp.DefaultOptions(), Quiet: true, Version: "test"})
}

// wired is a machine with a daemon and an interface up0 on a wire, at whose other end is far:
//
//	machine up0 (10.9.0.5, fd00:9::5) ═══ wire ═══ up0 far (10.9.0.1, fd00:9::1; 203.0.113.1 and 2001:db8:f::1 behind it)
type wired struct {
	*node
	far    *testkit.NS
	client *client.Client
	daemon *exec.Cmd
	// addrs are the same on every such wire.
	gateways []netip.Addr
}

const behind4, behind6 = "203.0.113.1", "2001:db8:f::1"

func newWired(t *testing.T) *wired {
	n := newNode(t)
	w := &wired{node: n, far: n.container("far"), gateways: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd00:9::1")}}
	w.plug()
	w.ip(w.far, "addr add "+behind4+"/32 dev lo", "addr add "+behind6+"/128 dev lo")
	w.start()
	t.Cleanup(func() {
		_ = w.daemon.Process.Signal(syscall.SIGTERM)
		_ = w.daemon.Wait()
	})
	return w
}

// plug makes the wire.
func (w *wired) plug() {
	w.Helper()
	w.ip(w.machine, "link add up0 type veth peer name up0 netns "+w.far.Path(), "link set up0 up", "addr add 10.9.0.5/24 dev up0",
		"addr add fd00:9::5/64 dev up0 nodad")
	w.ip(w.far, "link set up0 up")
	w.addrs(w.far, "up0")
}

func (w *wired) start() {
	w.Helper()
	w.daemon = exec.Command("/proc/self/exe")
	w.daemon.Env = append(os.Environ(), "SEINE_DAEMON="+w.data)
	w.daemon.Stdout, w.daemon.Stderr = os.Stderr, os.Stderr
	if err := w.machine.Start(w.daemon); err != nil {
		w.Fatal(err)
	}
	var err error
	if w.client, err = client.New(filepath.Join(w.data, "s")); err != nil {
		w.Fatal(err)
	}
	w.eventually(func() error { _, err := w.client.Node(w.Context()); return err })
}

func (w *wired) eventually(f func() error) {
	w.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	w.Fatalf("not within 30 s: %v", err)
}

// subnets are those of the wire; containers get addresses from .128 and ::8000 on.
func (w *wired) subnets(gateways bool) []api.Subnet {
	out := []api.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Range: netip.MustParsePrefix("10.9.0.128/25")},
		{Prefix: netip.MustParsePrefix("fd00:9::/64"), Range: netip.MustParsePrefix("fd00:9::8000/113")}}
	for i := range out {
		if gateways {
			out[i].Gateway = w.gateways[i]
		}
	}
	return out
}

func (w *wired) network(name, driver string, gateways bool, options ...string) api.Network {
	w.Helper()
	n := api.Network{Name: name, Driver: driver, Subnets: w.subnets(gateways), Options: map[string]string{}}
	for i := 0; i < len(options); i += 2 {
		n.Options[options[i]] = options[i+1]
	}
	n, err := w.client.PutNetwork(w.Context(), n, api.CreateOnly)
	if err != nil {
		w.Fatal(err)
	}
	return n
}

func (w *wired) attach(network, name string) api.Endpoint {
	w.Helper()
	ep, err := w.client.PutEndpoint(w.Context(), api.Endpoint{Network: network, Name: name, Sandbox: api.Sandbox{Netns: w.container(name).Path()}}, api.CreateOnly)
	if err != nil {
		w.Fatal(err)
	}
	return ep
}

func (w *wired) detach(network string, names ...string) {
	w.Helper()
	for _, name := range names {
		if err := w.client.DeleteEndpoint(w.Context(), network, name, 0); err != nil {
			w.Fatal(err)
		}
	}
	if err := w.client.DeleteNetwork(w.Context(), network, 0); err != nil {
		w.Fatal(err)
	}
}

// clean wants the daemon to see nothing to change.
func (w *wired) clean() {
	w.Helper()
	plan, err := w.client.Plan(w.Context(), "")
	if err != nil {
		w.Fatal(err)
	}
	for _, c := range plan.Changes {
		w.Errorf("plan: %s %s (was %s)", c.Op, c.Object, c.Was)
	}
}

// sees wants to be reached by from at every address of the endpoint, with from's own addresses as the source.
func (w *wired) sees(from *testkit.NS, own []netip.Addr, ep api.Endpoint) {
	w.Helper()
	for i, a := range ep.Addresses {
		for _, proto := range []string{"udp", "tcp"} {
			to := testkit.Serve(w.T, w.container(ep.Name), proto, netip.AddrPortFrom(a, 0).String())
			if got := testkit.Reach(w.T, from, proto, to); own != nil && got.Source.Addr() != own[i] {
				w.Errorf("%s: %s of %s sees %s, want %s", proto, to, ep.Name, got.Source, own[i])
			}
		}
	}
}

// goesOut wants a container to reach what is behind the far host by its own addresses.
func (w *wired) goesOut(ep api.Endpoint) {
	w.Helper()
	for i, far := range []string{behind4, behind6} {
		to := testkit.Serve(w.T, w.far, "tcp", netip.AddrPortFrom(netip.MustParseAddr(far), 0).String())
		if got := testkit.Reach(w.T, w.container(ep.Name), "tcp", to); got.Source.Addr() != ep.Addresses[i] {
			w.Errorf("%s sees %s, want %s", far, got.Source, ep.Addresses[i])
		}
	}
}

// neighbour gives the hardware address at which the far host found an address.
func (w *wired) neighbour(a netip.Addr) string {
	w.Helper()
	f := strings.Fields(w.ip(w.far, "neigh show "+a.String()))
	if i := slices.Index(f, "lladdr"); i >= 0 {
		return f[i+1]
	}
	return ""
}

func (w *wired) mac(where *testkit.NS, link string) string {
	w.Helper()
	f := strings.Fields(w.ip(where, "-o link show dev "+link))
	return f[slices.Index(f, "link/ether")+1]
}

// resolves wants a container to find a name by the name servers that its endpoint has.
func (w *wired) resolves(ep api.Endpoint, name string, want []netip.Addr) {
	w.Helper()
	if len(ep.Status.DNS) != 2 {
		w.Fatalf("%s has the name servers %v, want one of each family", ep.Key(), ep.Status.DNS)
	}
	for _, server := range ep.Status.DNS {
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return w.container(ep.Name).Dial(ctx, "udp", netip.AddrPortFrom(server, 53).String())
		}}
		got, err := r.LookupNetIP(w.Context(), "ip", name)
		for i := range got {
			got[i] = got[i].Unmap()
		}
		slices.SortFunc(got, netip.Addr.Compare)
		if err != nil || !slices.Equal(got, want) {
			w.Errorf("%s at %s is %v, %v, want %v", name, server, got, err, want)
		}
	}
}

func TestDriverMacvlan(t *testing.T) {
	lacking(t, "macvlan")
	w := newWired(t)
	w.network("lan", "macvlan", true, "parent", "up0")
	a, b := w.attach("lan", "a"), w.attach("lan", "b")
	w.sees(w.far, w.gateways, a)
	w.sees(w.container("b"), b.Addresses, a)
	w.goesOut(a)
	for _, x := range a.Addresses {
		if got := w.neighbour(x); got != a.MAC || got == w.mac(w.machine, "up0") {
			t.Errorf("the far host finds %s at %q, want the container's own %s", x, got, a.MAC)
		}
	}
	// The kernel keeps a parent and what is on it apart.
	to := testkit.Serve(t, w.container("a"), "udp", netip.AddrPortFrom(a.Addresses[0], 0).String())
	testkit.CantReach(t, w.machine, "udp", to, short)
	if len(a.Status.DNS) > 0 || a.Status.MTU != 1500 {
		t.Errorf("status is %+v, want no name server and the parent's MTU", a.Status)
	}
	_, err := w.client.PutEndpoint(t.Context(), api.Endpoint{Network: "lan", Name: "p", Sandbox: api.Sandbox{Netns: w.container("p").Path()},
		Ports: []api.Port{{HostPort: 80, ContainerPort: 80}}}, 0)
	if api.CodeOf(err) != api.Invalid || !strings.Contains(err.Error(), "at their own addresses") {
		t.Errorf("a published port: %v", err)
	}
	w.clean()
	w.detach("lan", "a", "b")
	if left := w.ip(w.machine, "-o link"); strings.Contains(left, "macvlan") || strings.Contains(left, "sn-lan") {
		t.Errorf("left: %s", left)
	}
}

// With the option host, the machine and its containers reach each other, and the name server is there.
func hostStory(t *testing.T, driver string, options ...string) {
	lacking(t, driver)
	w := newWired(t)
	l3 := slices.Contains(options, "l3")
	n := w.network("lan", driver, !l3, append(options, "parent", "up0", "host", "true")...)
	var own []netip.Addr
	for s := range strings.SplitSeq(n.Options["host"], ",") {
		own = append(own, netip.MustParseAddr(s))
	}
	a, b := w.attach("lan", "a"), w.attach("lan", "b")
	w.sees(w.machine, own, a)
	w.sees(w.container("b"), b.Addresses, a)
	for i, x := range own {
		to := testkit.Serve(t, w.machine, "tcp", netip.AddrPortFrom(x, 0).String())
		if got := testkit.Reach(t, w.container("a"), "tcp", to); got.Source.Addr() != a.Addresses[i] {
			t.Errorf("the machine sees %s, want %s", got.Source, a.Addresses[i])
		}
	}
	w.resolves(a, "b", b.Addresses)
	if !l3 {
		w.sees(w.far, w.gateways, a)
	}
	// The machine's own way to the wire is what it was.
	to := testkit.Serve(t, w.far, "udp", "10.9.0.1:0")
	if got := testkit.Reach(t, w.machine, "udp", to); got.Source.Addr() != netip.MustParseAddr("10.9.0.5") {
		t.Errorf("the far host sees the machine as %s", got.Source)
	}
	w.clean()
	w.detach("lan", "a", "b")
	if left := w.ip(w.machine, "-o link") + w.ip(w.machine, "route"); strings.Contains(left, "sn-lan") {
		t.Errorf("left: %s", left)
	}
}

func TestDriverMacvlanHost(t *testing.T) { hostStory(t, "macvlan") }

func TestDriverIpvlanHost(t *testing.T) {
	for _, mode := range []string{"l2", "l3"} {
		t.Run(mode, func(t *testing.T) { hostStory(t, "ipvlan", "mode", mode) })
	}
}

// TestDriverMacvlanModes: private keeps containers apart, but not from the wire; passthru has the parent's address.
func TestDriverMacvlanModes(t *testing.T) {
	lacking(t, "macvlan")
	w := newWired(t)
	no := false
	n := api.Network{Name: "lan", Driver: "macvlan", ICC: &no, Subnets: w.subnets(true), Options: map[string]string{"parent": "up0"}}
	n, err := w.client.PutNetwork(t.Context(), n, api.CreateOnly)
	if err != nil || n.Options["mode"] != "private" {
		t.Fatalf("%v: options are %v, want mode private", err, n.Options)
	}
	a := w.attach("lan", "a")
	w.attach("lan", "b")
	w.sees(w.far, w.gateways, a)
	testkit.CantReach(t, w.container("b"), "udp", testkit.Serve(t, w.container("a"), "udp", netip.AddrPortFrom(a.Addresses[0], 0).String()), short)
	w.detach("lan", "a", "b")

	w.network("one", "macvlan", true, "parent", "up0", "mode", "passthru")
	c := w.attach("one", "c")
	w.sees(w.far, w.gateways, c)
	if got, want := w.mac(w.container("c"), "eth0"), w.mac(w.machine, "up0"); got != want || c.MAC != "" {
		t.Errorf("in mode passthru the container has %s, and is said to have %q; the parent has %s", got, c.MAC, want)
	}
	_, err = w.client.PutEndpoint(t.Context(), api.Endpoint{Network: "one", Name: "d", Sandbox: api.Sandbox{Netns: w.container("d").Path()}}, 0)
	if api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), "passthru") {
		t.Errorf("a second one in mode passthru: %v", err)
	}
	w.clean()
}

// TestDriverParent: what happens to the parent, and back.
func TestDriverParent(t *testing.T) {
	lacking(t, "macvlan")
	w := newWired(t)
	w.network("lan", "macvlan", true, "parent", "up0")
	a := w.attach("lan", "a")
	status := func(want string) func() error {
		return func() error {
			n, err := w.client.Network(t.Context(), "lan")
			if err == nil && !(n.Status.Error == "" && want == "" || want != "" && strings.Contains(n.Status.Error, want)) {
				err = fmt.Errorf("the network's error is %q, want %q", n.Status.Error, want)
			}
			return err
		}
	}
	w.ip(w.machine, "link set up0 down")
	w.eventually(status(`parent "up0" is down`))
	w.attach("lan", "b") // it works once the parent is up
	w.ip(w.machine, "link set up0 up", "addr add fd00:9::5/64 dev up0 nodad")
	w.eventually(status(""))
	w.sees(w.far, w.gateways, a)

	w.ip(w.machine, "link set up0 down", "link set up0 name lan0", "link set lan0 up")
	w.eventually(status("no interface"))
	w.sees(w.far, w.gateways, a)
	_, err := w.client.PutEndpoint(t.Context(), api.Endpoint{Network: "lan", Name: "c", Sandbox: api.Sandbox{Netns: w.container("c").Path()}}, 0)
	if err == nil || !strings.Contains(err.Error(), `"up0"`) {
		t.Errorf("attached on a parent that has another name: %v", err)
	}
	w.ip(w.machine, "link set lan0 down", "link set lan0 name up0", "link set up0 up")
	w.eventually(status(""))
	w.clean()

	w.ip(w.machine, "link del up0")
	w.eventually(status("no interface"))
	w.eventually(func() error {
		ep, err := w.client.Endpoint(t.Context(), "lan", "a")
		if err == nil && ep.Status.State != api.Failed {
			err = fmt.Errorf("the endpoint is %+v", ep.Status)
		}
		return err
	})
	w.plug()
	w.eventually(func() error {
		ep, err := w.client.Endpoint(t.Context(), "lan", "a")
		if err == nil && ep.Status.State != api.Attached {
			err = fmt.Errorf("the endpoint is %+v", ep.Status)
		}
		return err
	})
	w.sees(w.far, w.gateways, a)
	w.goesOut(a)
	w.eventually(status(""))
	w.clean()
}

// TestDriverHandoff: somebody else moves the interface, as Docker does, and brings it back.
func TestDriverHandoff(t *testing.T) {
	for _, driver := range []string{"macvlan", "ipvlan"} {
		t.Run(driver, func(t *testing.T) {
			lacking(t, driver)
			w := newWired(t)
			w.network("lan", driver, true, "parent", "up0")
			ask := api.Endpoint{Network: "lan", Name: "a", Sandbox: api.Sandbox{Handoff: true}}
			ep, err := w.client.PutEndpoint(t.Context(), ask, 0)
			if err != nil || !ep.Sandbox.Taken {
				t.Fatalf("%v: %+v", err, ep.Sandbox)
			}
			src := ep.Sandbox.Interface
			in := w.container("a")
			w.ip(w.machine, "link set "+src+" netns "+in.Path())
			w.ip(in, "link set "+src+" name eth7", "link set eth7 up")
			for i, p := range ep.Status.Prefixes {
				w.ip(in, "addr add "+p.String()+" dev eth7"+[]string{"", " nodad"}[i])
			}
			w.sees(w.far, w.gateways, ep)
			// A restart makes no second one.
			_ = w.daemon.Process.Kill()
			_ = w.daemon.Wait()
			w.start()
			if links := w.ip(w.machine, "-o link"); strings.Contains(links, src) {
				t.Errorf("a restart makes what was taken again: %s", links)
			}
			w.clean()
			w.sees(w.far, w.gateways, ep)
			w.ip(in, "link set eth7 down", "link set eth7 name "+src, "link set "+src+" netns "+w.machine.Path())
			w.detach("lan", "a")
			if links := w.ip(w.machine, "-o link"); strings.Contains(links, src) {
				t.Errorf("left: %s", links)
			}
		})
	}
}

func TestDriverIpvlan(t *testing.T) {
	lacking(t, "ipvlan")
	for _, mode := range []string{"l2", "l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			w := newWired(t)
			w.network("lan", "ipvlan", mode == "l2", "parent", "up0", "mode", mode)
			a, b := w.attach("lan", "a"), w.attach("lan", "b")
			w.sees(w.container("b"), b.Addresses, a)
			if mode == "l2" {
				w.sees(w.far, w.gateways, a)
				w.goesOut(a)
				for _, x := range a.Addresses {
					if got, want := w.neighbour(x), w.mac(w.machine, "up0"); got != want {
						t.Errorf("the far host finds %s at %q, want the parent's %s", x, got, want)
					}
				}
			} else { // other hosts have a route by the machine, and the machine has the containers' way out
				w.ip(w.far, "addr del 10.9.0.1/24 dev up0", "addr del fd00:9::1/64 dev up0", "addr add 10.8.0.1/24 dev up0", "addr add fd00:8::1/64 dev up0 nodad",
					"route add 10.9.0.0/24 via 10.8.0.5", "-6 route add fd00:9::/64 via fd00:8::5")
				w.ip(w.machine, "addr add 10.8.0.5/24 dev up0", "addr add fd00:8::5/64 dev up0 nodad", "route add "+behind4+" via 10.8.0.1", "-6 route add "+behind6+" via fd00:8::1")
				w.sees(w.far, []netip.Addr{netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("fd00:8::1")}, a)
				w.goesOut(a)
			}
			other := api.Network{Name: "other", Driver: "ipvlan", Options: map[string]string{"parent": "up0", "mode": map[bool]string{true: "l3", false: "l2"}[mode == "l2"]}}
			if _, err := w.client.PutNetwork(t.Context(), other, 0); api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), "options.mode") {
				t.Errorf("a network of another mode on the parent: %v", err)
			}
			w.clean()
			w.detach("lan", "a", "b")
		})
	}
}

// TestDriverVLANs: two networks on one parent, of different VLANs, with different far ends.
func TestDriverVLANs(t *testing.T) {
	lacking(t, "vlan")
	for _, driver := range []string{"macvlan", "ipvlan", "vlan"} {
		t.Run(driver, func(t *testing.T) {
			lacking(t, driver)
			w := newWired(t)
			w.ip(w.machine, "link add link up0 name up0.9 type vlan id 9")
			for _, id := range []string{"7", "8"} {
				w.ip(w.far, "link add link up0 name up0."+id+" type vlan id "+id, "link set up0."+id+" up",
					"addr add 10.10"+id+".0.1/24 dev up0."+id, "addr add fd00:10"+id+"::1/64 dev up0."+id+" nodad")
				n := api.Network{Name: "v" + id, Driver: driver, Options: map[string]string{"parent": "up0." + id}, Subnets: []api.Subnet{
					{Prefix: netip.MustParsePrefix("10.10" + id + ".0.0/24"), Range: netip.MustParsePrefix("10.10" + id + ".0.128/25")}, {Prefix: netip.MustParsePrefix("fd00:10" + id + "::/64")}}}
				for i, gw := range []string{"10.10" + id + ".0.1", "fd00:10" + id + "::1"} {
					n.Subnets[i].Gateway = netip.MustParseAddr(gw)
				}
				if _, err := w.client.PutNetwork(t.Context(), n, api.CreateOnly); err != nil {
					t.Fatal(err)
				}
				ep := w.attach("v"+id, "c"+id)
				w.sees(w.far, []netip.Addr{n.Subnets[0].Gateway, n.Subnets[1].Gateway}, ep)
				w.goesOut(ep)
			}
			// The far end has the other tag's network, too: the frames of neither reach the other.
			w.clean()
			if driver == "vlan" {
				w.detach("v7", "c7")
				w.detach("v8", "c8")
				return
			}
			// A second network on a VLAN keeps it when the first one goes; so does whoever made it.
			for _, parent := range []string{"up0.7", "up0.9"} {
				if _, err := w.client.PutNetwork(t.Context(), api.Network{Name: "on-" + parent, Driver: driver, Options: map[string]string{"parent": parent}}, 0); err != nil {
					t.Fatal(err)
				}
			}
			w.detach("v7", "c7")
			has := func(link string, want bool) {
				t.Helper()
				if links := w.ip(w.machine, "-o link"); strings.Contains(links, link+"@") != want {
					t.Errorf("%s is there: %v, want %v", link, !want, want)
				}
			}
			has("up0.7", true)
			w.detach("on-up0.7")
			w.detach("on-up0.9")
			has("up0.7", false)
			has("up0.8", true)
			has("up0.9", true)
			other := api.Network{Name: "other", Driver: map[string]string{"macvlan": "ipvlan", "ipvlan": "macvlan"}[driver], Options: map[string]string{"parent": "up0.8"}}
			if _, err := w.client.PutNetwork(t.Context(), other, 0); api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), `network "v8"`) {
				t.Errorf("another kind on the same VLAN: %v", err)
			}
			w.ip(w.machine, "link set up0 down")
			w.ip(w.machine, "link set up0 up", "addr add fd00:9::5/64 dev up0 nodad")
			ep, err := w.client.Endpoint(t.Context(), "v8", "c8")
			if err != nil {
				t.Fatal(err)
			}
			w.eventually(func() error {
				n, err := w.client.Network(t.Context(), "v8")
				if err == nil && n.Status.Error != "" {
					err = fmt.Errorf("%s", n.Status.Error)
				}
				return err
			})
			w.sees(w.far, nil, ep)
			w.clean()
			w.detach("v8", "c8")
			has("up0.8", false)
		})
	}
}

// TestDriverNoParent: networks that lead nowhere.
func TestDriverNoParent(t *testing.T) {
	lacking(t, "dummy")
	for _, driver := range []string{"macvlan", "ipvlan", "dummy"} {
		t.Run(driver, func(t *testing.T) {
			lacking(t, driver)
			w := newWired(t)
			n, err := w.client.PutNetwork(t.Context(), api.Network{Name: "in", Driver: driver}, 0)
			if err != nil || !n.Internal {
				t.Fatalf("%v: %+v", err, n)
			}
			a, b := w.attach("in", "a"), w.attach("in", "b")
			w.sees(w.container("a"), a.Addresses, a)
			if driver == "dummy" {
				testkit.CantReach(t, w.container("b"), "udp", testkit.Serve(t, w.container("a"), "udp", netip.AddrPortFrom(a.Addresses[0], 0).String()), short)
			} else {
				w.sees(w.container("b"), b.Addresses, a)
			}
			if routes := w.ip(w.container("a"), "route"); strings.Contains(routes, "default") {
				t.Errorf("there is a way out: %s", routes)
			}
			w.clean()
			w.detach("in", "a", "b")
			if links := w.ip(w.machine, "-o link"); strings.Contains(links, "sd-") {
				t.Errorf("left: %s", links)
			}
		})
	}
}
