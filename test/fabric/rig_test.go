// Package fabric_test has the stories about packets between machines: three namespaces that stand for hosts, each with the
// kernel objects that the pure functions of drivers and fabrics ask for, kept by the daemon's reconciler, and real packets
// between containers. There is no daemon and no cluster yet: what hosts know of each other the test tells them.
package fabric_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/driver/bridge"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/hostgw"
	"github.com/seine-net/seine/internal/fabric/vxlan"
	"github.com/seine-net/seine/internal/fabric/wireguard"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/ruleset"
	"github.com/seine-net/seine/internal/testkit"
)

// rig is three hosts on one underlay, and one more that is a stranger to them, or the router between them.
type rig struct {
	testing.TB
	lab   *testkit.Lab
	hosts []*host
	other *testkit.Host
	nets  []fabric.Network
}

// host is a machine of the cluster.
type host struct {
	*testkit.Host
	rig     *rig
	i       int // from 1
	node    api.Node
	facts   kernel.Facts
	fabrics map[string]fabric.Fabric
	kernel  *linux.Kernel
	want    *desired.Set
	loop    *reconcile.Reconciler
	numbers fabric.Numbers
	ends    map[string][]fabric.Endpoint // by network
}

// underlays: which addresses hosts know of each other, and whether there is a router between them.
type underlay struct {
	name   string
	v4, v6 bool
	routed bool
	// filter has frames on bridges pass the IP hooks (bridge netfilter), as Docker and Kubernetes ask for.
	filter bool
}

var (
	dual      = underlay{name: "dual", v4: true, v6: true}
	routed    = underlay{name: "routed", v4: true, v6: true, routed: true}
	underlays = []underlay{dual, {name: "ipv4", v4: true}, {name: "ipv6", v6: true}, routed, {name: "routed-ipv6", v6: true, routed: true},
		{name: "bridge-netfilter", v4: true, v6: true, filter: true}}
)

func newRig(t testing.TB, u underlay, networks ...fabric.Network) *rig {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6", "vxlan")
	r := &rig{TB: t, lab: testkit.NewLab(t, 4), nets: networks}
	r.other = r.lab.Hosts[3]
	for _, h := range r.lab.Hosts {
		// The kernel asks nobody for a forwarded packet's next hop while it tries whether its own address is anybody's.
		for end := time.Now().Add(5 * time.Second); strings.Contains(r.run(h.NS, "ip", "-6", "addr", "show", "tentative"), "inet6"); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: still tries its addresses", h.Name)
			}
		}
		if u.filter {
			testkit.Need(t, "bridge-netfilter")
		}
		for _, s := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
			if err := h.Sysctl(s, map[bool]string{true: "1", false: "0"}[u.filter]); u.filter {
				r.ok(err)
			}
		}
	}
	if u.routed {
		r.route()
	}
	for i, h := range r.lab.Hosts[:3] {
		n := &host{Host: h, rig: r, i: i + 1, want: desired.New(), ends: map[string][]fabric.Endpoint{},
			node: api.Node{ID: fmt.Sprintf("id-of-h%d", i+1), Name: h.Name}}
		if u.v4 {
			n.node.Addresses = append(n.node.Addresses, h.V4)
		}
		if u.v6 {
			n.node.Addresses = append(n.node.Addresses, h.V6)
		}
		n.fabrics = map[string]fabric.Fabric{hostgw.Name: hostgw.New(), vxlan.Name: vxlan.New(0),
			wireguard.Name: wireguard.New(kernel.NewSecret(kernel.WGKey{8 * byte(i+1), 7}, true), 0)}
		r.hosts = append(r.hosts, n)
		n.start()
	}
	for _, h := range r.hosts {
		h.set("machine", h.machine()...)
		for _, n := range networks {
			h.network(n)
		}
	}
	return r
}

// route puts the hosts on links of their own, as far as they know: all that they send goes by the fourth.
func (r *rig) route() {
	router := r.lab.Hosts[3]
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		r.ok(router.Sysctl(s, "1"))
	}
	r.ok(router.Sysctl("net/ipv4/conf/all/send_redirects", "0"))
	r.ok(router.Sysctl("net/ipv4/conf/eth0/send_redirects", "0"))
	for _, h := range r.lab.Hosts[:3] {
		for _, cmd := range [][]string{
			{"addr", "del", h.V4.String() + "/24", "dev", "eth0"}, {"addr", "add", h.V4.String() + "/32", "dev", "eth0"},
			{"route", "add", "default", "via", router.V4.String(), "dev", "eth0", "onlink"},
			{"addr", "del", h.V6.String() + "/64", "dev", "eth0"}, {"addr", "add", h.V6.String() + "/128", "dev", "eth0", "nodad"},
			{"route", "add", "default", "via", router.V6.String(), "dev", "eth0", "onlink"},
		} {
			r.run(h.NS, append([]string{"ip"}, cmd...)...)
		}
		r.ok(h.Sysctl("net/ipv6/conf/eth0/accept_redirects", "0"))
	}
}

func (r *rig) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) run(n *testkit.NS, args ...string) string {
	r.Helper()
	out, err := n.Exec(r.Context(), args[0], args[1:]...)
	r.ok(err)
	return out
}

// start runs the reconciler and what tells it of changes by hand, as the daemon does.
func (h *host) start() {
	r := h.rig
	h.kernel = linux.New(linux.Options{Netns: h.Path()})
	h.loop = reconcile.New(h.kernel, h.want, slog.New(slog.DiscardHandler))
	h.loop.Loaded()
	ctx, cancel := context.WithCancel(context.Background())
	events, err := h.kernel.Watch(ctx)
	r.ok(err)
	var running sync.WaitGroup
	running.Go(func() { h.loop.Run(ctx) })
	running.Go(func() {
		for ev := range events {
			wanted := func(keys []kernel.Key) (out []kernel.Key) {
				for _, k := range keys {
					if h.want.OwnerOf(k) != "" {
						out = append(out, k)
					}
				}
				return out
			}
			if ev.All || len(wanted(ev.Down)) > 0 {
				h.loop.Touch()
			} else if keys := wanted(ev.Keys); len(keys) > 0 {
				h.loop.Touch(keys...)
			}
		}
	})
	r.Cleanup(func() { cancel(); running.Wait(); h.kernel.Close() })
	h.look()
	for name, f := range h.fabrics {
		raw, err := f.Announce(h.node, h.facts)
		r.ok(err)
		if h.node.Fabrics == nil {
			h.node.Fabrics = map[string]json.RawMessage{}
		}
		h.node.Fabrics[name] = raw
	}
}

func (h *host) look() {
	f, err := h.kernel.Facts(h.rig.Context())
	h.rig.ok(err)
	h.facts = f
}

// set makes owner want just these objects, and waits until it is so.
func (h *host) set(owner string, objects ...kernel.Object) {
	h.rig.Helper()
	keys, err := h.want.Set(owner, objects...)
	h.rig.ok(err)
	if err := h.loop.Sync(h.rig.Context(), keys); err != nil {
		h.rig.Fatalf("%s: %s: %v", h.Name, owner, err)
	}
}

func (h *host) machine() []kernel.Object {
	return []kernel.Object{ruleset.Table(5380, false), &kernel.Sysctl{Name: "net/ipv4/ip_forward", Value: "1"},
		&kernel.Sysctl{Name: "net/ipv6/conf/all/forwarding", Value: "1"}}
}

func (h *host) network(n fabric.Network) {
	d := bridge.New()
	n.Link, _ = d.Interfaces(n.Network, api.Endpoint{})
	objects, err := d.Network(n.Network, h.facts)
	h.rig.ok(err)
	h.set(driver.NetworkOwner(n.Name), append(objects, fabric.Shared(n, driver.NetworkOwner(n.Name))...)...)
}

// cluster gives network number n (1 to 9).
func cluster(n int) fabric.Network {
	return fabric.Network{Network: api.Network{Name: fmt.Sprintf("net%d", n), VNI: uint32(4095 + n), Driver: "bridge", MTU: 1400, Subnets: []api.Subnet{
		{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.20%d.0.0/16", n)), Gateway: netip.MustParseAddr(fmt.Sprintf("10.20%d.0.1", n))},
		{Prefix: netip.MustParsePrefix(fmt.Sprintf("fd00:%d::/64", n)), Gateway: netip.MustParseAddr(fmt.Sprintf("fd00:%d::1", n))},
	}}}
}

// blocks are what host i holds of network n.
func blocks(n, i int) []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.20%d.%d.0/27", n, i)), netip.MustParsePrefix(fmt.Sprintf("fd00:%d::%d:0:0/96", n, i))}
}

// container is on one network.
type container struct {
	*testkit.NS
	host   *host
	v4, v6 netip.Addr
	mac    string
}

func (c *container) addrs() []netip.Addr { return []netip.Addr{c.v4, c.v6} }

// attach makes container number c of a host on network n, with echo servers at port 7.
func (h *host) attach(n, c int) *container {
	r := h.rig
	r.Helper()
	net := r.nets[n-1]
	out := &container{host: h, v4: netip.MustParseAddr(fmt.Sprintf("10.20%d.%d.%d", n, h.i, c)), v6: netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d:0:%x", n, h.i, c))}
	out.NS = testkit.Namespace(r, fmt.Sprintf("%s-%s-%d", net.Name, h.Name, c))
	out.mac = driver.MAC(out.v4)
	e := api.Endpoint{Network: net.Name, Name: fmt.Sprintf("c%d", c), Addresses: out.addrs(), MAC: out.mac,
		Sandbox: api.Sandbox{Netns: out.Path(), Interface: "eth0"}}
	objects, err := bridge.New().Objects(net.Network, e, h.facts)
	r.ok(err)
	net.Link, _ = bridge.New().Interfaces(net.Network, e)
	h.set(driver.EndpointOwner(net.Name, e.Name), append(objects, fabric.Local(net, e)...)...)
	for _, network := range []string{"tcp", "udp"} {
		for _, a := range out.addrs() {
			testkit.Serve(r, out.NS, network, netip.AddrPortFrom(a, 7).String())
		}
	}
	h.ends[net.Name] = append(h.ends[net.Name], fabric.Endpoint{Addresses: out.addrs(), MAC: out.mac})
	return out
}

// objects are those that lead from h to a peer by a fabric.
func (h *host) objects(peer *host, name string) ([]kernel.Object, error) {
	var networks []fabric.Network
	for i, n := range h.rig.nets {
		n.Link, _ = bridge.New().Interfaces(n.Network, api.Endpoint{})
		n.Blocks, n.Endpoints = blocks(i+1, peer.i), peer.ends[n.Name]
		n.Hop4, n.Hop6 = h.numbers.Number(n.Name, peer.node.ID, false), h.numbers.Number(n.Name, peer.node.ID, true)
		networks = append(networks, n)
	}
	return h.fabrics[name].Objects(h.node, peer.node, networks, h.facts)
}

// meet lets two hosts reach each other by a fabric.
func (r *rig) meet(a, b *host, name string) {
	r.Helper()
	for _, pair := range [][2]*host{{a, b}, {b, a}} {
		objects, err := pair[0].objects(pair[1], name)
		r.ok(err)
		pair[0].set(fabric.Owner(pair[1].node), objects...)
	}
}

func (r *rig) meetAll(name string) {
	r.Helper()
	for i, a := range r.hosts {
		for _, b := range r.hosts[i+1:] {
			r.meet(a, b, name)
		}
	}
}

// needs skips the test where the kernel lacks what a fabric is made of.
func needs(t testing.TB, name string) {
	if name == wireguard.Name {
		testkit.Need(t, "wireguard")
	}
}

// reach asks from one container to another by each protocol and family; the source must be the asker's own address.
func (r *rig) reach(from, to *container) {
	r.Helper()
	for i, a := range to.addrs() {
		for _, network := range []string{"tcp", "udp"} {
			if ans := testkit.Reach(r, from.NS, network, netip.AddrPortFrom(a, 7)); ans.Source.Addr() != from.addrs()[i] {
				r.Errorf("%s reaches %s as %s, want %s", from.Name, a, ans.Source, from.addrs()[i])
			}
		}
	}
}

// slow is how many times slower things are where the processor is emulated.
var slow = map[string]time.Duration{"": 1, "1": 10}[os.Getenv("SEINE_VM")]

// soon waits until f is true, and fails the test after a second: what is mended is mended within one.
func (r *rig) soon(what string, f func() bool) time.Duration {
	r.Helper()
	start := time.Now()
	for !f() {
		if time.Since(start) > slow*time.Second {
			r.Fatalf("not within %v: %s", slow*time.Second, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}
