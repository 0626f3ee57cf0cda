package cni_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/testkit"
)

// daemonRig is a rig with the daemon and its client.
type daemonRig struct {
	*rig
	client *client.Client
	kill   func()
	// netns has the containers' namespaces by name: the daemon outlives them, and the number of a descriptor is used anew.
	netns string
}

// conf gives a container's namespace a path of its own.
func (r *daemonRig) conf(id, ifname string, ports ...port) *libcni.RuntimeConf {
	r.Helper()
	rt := r.rig.conf(id, ifname, ports...)
	path := filepath.Join(r.netns, id)
	if err := os.Symlink(rt.NetNS, path); err != nil && !errors.Is(err, os.ErrExist) {
		r.Fatal(err)
	}
	rt.NetNS = path
	return rt
}

// end has a container's namespace end.
func (r *daemonRig) end(id string) {
	r.Helper()
	if err := os.Remove(filepath.Join(r.netns, id)); err != nil {
		r.Fatal(err)
	}
	r.containers[id].Close()
}

func (r *daemonRig) add(list *libcni.NetworkConfigList, id, ifname string, ports ...port) {
	r.Helper()
	if _, err := r.tryAdd(list, r.conf(id, ifname, ports...)); err != nil {
		r.Fatalf("ADD %s %s to %s: %v", id, ifname, list.Name, err)
	}
}

func newDaemonRig(t *testing.T) *daemonRig {
	r := &daemonRig{rig: newRig(t), netns: t.TempDir()}
	_, r.kill = r.seined()
	c, err := client.New(filepath.Join(r.cache, "seine.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r.client = c
	return r
}

func (r *daemonRig) seineNet(name, keys string) *libcni.NetworkConfigList {
	return r.network(name, fmt.Sprintf(`{"type": "seine", "socket": %q, "capabilities": {"portMappings": true, "aliases": true} %s}`,
		filepath.Join(r.cache, "seine.sock"), keys))
}

// resolves asks the name server as a container does, at its gateway.
func (r *daemonRig) resolves(from, name string, gateways []netip.Addr, want ...netip.Addr) {
	r.Helper()
	for _, gw := range gateways {
		res := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return r.container(from).Dial(ctx, network, at(gw, 53).String())
		}}
		got, err := res.LookupNetIP(r.Context(), "ip", name+".") // the machine's own search list is not the container's
		slices.SortFunc(got, netip.Addr.Compare)
		slices.SortFunc(want, netip.Addr.Compare)
		if err != nil || !slices.Equal(got, want) {
			r.Errorf("%s asks %s for %s: %v (%v), want %v", from, gw, name, got, err, want)
		}
	}
}

func (r *daemonRig) keys() []string {
	r.Helper()
	all, err := r.client.Endpoints(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	var out []string
	for _, e := range all {
		out = append(out, e.Key())
	}
	return out
}

// A container of a CNI runtime and one that was attached by the API are on one network: they reach each other by name
// and address, and the published port is there for the machine, for outside and for both; also after the daemon was
// killed, and while it is down.
func TestSeineStory(t *testing.T) {
	t.Parallel()
	r := newDaemonRig(t)
	list := r.seineNet("pods", "")
	plain, err := r.client.PutEndpoint(t.Context(), api.Endpoint{Network: "default", Name: "plain", Sandbox: api.Sandbox{Netns: r.conf("plain", "eth0").NetNS}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.serve("plain", 80)
	r.serve("web", 80)
	before := r.state()
	rt := r.conf("web", "eth0", port{8080, 80, "tcp", ""}, port{8080, 80, "udp", ""})
	rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "prod"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_INFRA_CONTAINER_ID", "web"}}
	rt.CapabilityArgs["aliases"] = []string{"www"}
	web, err := r.tryAdd(list, rt)
	if err != nil {
		t.Fatal(err)
	}
	packets := func(when string) {
		t.Helper()
		for _, v4 := range []bool{false, true} {
			own := r.machine.V6
			if v4 {
				own = r.machine.V4
			}
			for _, network := range networks {
				for _, c := range []struct {
					what   string
					from   *testkit.NS
					to     netip.AddrPort
					server string
				}{
					{"plain to the pod", r.container("plain"), at(web.of(v4), 80), "web"},
					{"the pod to plain", r.container("web"), at(plain.Address(v4), 80), "plain"},
					{"outside to the port", r.outside.NS, at(own, 8080), "web"},
					{"the machine to the port", r.machine.NS, at(own, 8080), "web"},
					{"plain to the port", r.container("plain"), at(own, 8080), "web"},
					{"the pod to its own port", r.container("web"), at(own, 8080), "web"},
				} {
					if got := testkit.Reach(t, c.from, network, c.to); got.Server != c.server {
						t.Errorf("%s: %s, %s: %q answers", when, c.what, network, got.Server)
					}
				}
			}
		}
	}
	names := func() {
		t.Helper()
		gws := []netip.Addr{web.gw4, web.gw6}
		for _, name := range []string{"web-0", "web-0.prod", "www", "WEB-0.default"} {
			r.resolves("plain", name, gws, web.v4, web.v6)
		}
		r.resolves("web", "plain", gws, plain.Addresses...)
	}
	packets("after ADD")
	names()
	check := func(when string) {
		t.Helper()
		if err := r.runtime.CheckNetworkList(t.Context(), list, rt); err != nil {
			t.Errorf("%s: CHECK: %v", when, err)
		}
	}
	check("after ADD")
	if err := r.runtime.GetStatusNetworkList(t.Context(), list); err != nil {
		t.Errorf("STATUS: %v", err)
	}

	r.kill()
	packets("while the daemon is down")
	var said *types.Error
	if err := r.runtime.DelNetworkList(t.Context(), list, rt); !errors.As(err, &said) || said.Code != types.ErrTryAgainLater {
		t.Errorf("DEL while the daemon is down: %v, want code %d", err, types.ErrTryAgainLater)
	}
	if err := r.runtime.GetStatusNetworkList(t.Context(), list); !errors.As(err, &said) || said.Code != 51 {
		t.Errorf("STATUS while the daemon is down: %v, want code 51", err)
	}
	_, r.kill = r.seined()
	packets("after the daemon was killed and came back")
	names()
	check("after the daemon was killed and came back")

	if _, err := r.container("web").Exec(t.Context(), "ip", "addr", "flush", "dev", "eth0", "scope", "global"); err != nil {
		t.Fatal(err)
	}
	if err := r.runtime.CheckNetworkList(t.Context(), list, rt); err == nil {
		t.Error("CHECK does not see that the addresses are gone")
	}
	for range 2 {
		r.del(list, rt)
	}
	if got := r.keys(); !slices.Equal(got, []string{"default/plain"}) {
		t.Errorf("after DEL: endpoints %q", got)
	}
	r.same("after DEL", before)
}

// A failed ADD leaves nothing: a port that is taken, an interface that is there, a network that is full.
func TestSeineFailedAdd(t *testing.T) {
	t.Parallel()
	r := newDaemonRig(t)
	list := r.seineNet("pods", "")
	r.add(list, "a", "eth0", port{8080, 80, "tcp", ""})
	before, keys := r.state(), r.keys()
	if _, err := r.tryAdd(list, r.conf("b", "eth0", port{8080, 80, "tcp", ""})); err == nil {
		t.Error("ADD with a port that is taken succeeds")
	}
	if _, err := r.tryAdd(list, r.conf("a", "eth0")); err == nil {
		t.Error("ADD twice succeeds")
	}
	if _, err := r.container("b").Exec(t.Context(), "ip", "link", "add", "eth7", "type", "veth", "peer", "eth8"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.tryAdd(list, r.conf("b", "eth7")); err == nil {
		t.Error("ADD with an interface that is there succeeds")
	}
	if _, err := r.container("b").Netlink().LinkByName("eth7"); err != nil {
		t.Errorf("the container's own interface is gone: %v", err)
	}
	r.same("after ADDs that failed", before)
	if got := r.keys(); !slices.Equal(got, keys) {
		t.Errorf("endpoints %q, want %q", got, keys)
	}

	tight := api.Network{Name: "tight", Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.77.0.0/30")}}}
	if _, err := r.client.PutNetwork(t.Context(), tight, 0); err != nil {
		t.Fatal(err)
	}
	full := r.seineNet("tight", "")
	r.add(full, "c", "eth0")
	var said *types.Error
	if _, err := r.tryAdd(full, r.conf("d", "eth0")); !errors.As(err, &said) || said.Code != types.ErrTryAgainLater {
		t.Errorf("ADD to a full network: %v", err)
	}
	if err := r.runtime.GetStatusNetworkList(t.Context(), full); !errors.As(err, &said) || said.Code != 50 {
		t.Errorf("STATUS of a full network: %v, want code 50", err)
	}
}

// What is not valid goes, whatever became of its container, and a container that ends with its namespace while the
// daemon is down is dropped when it is back.
func TestSeineGCAndLost(t *testing.T) {
	t.Parallel()
	r := newDaemonRig(t)
	list := r.seineNet("pods", "")
	r.add(r.seineNet("others", ""), "x", "eth0")
	keep := r.conf("keep", "eth0")
	r.add(list, "keep", "eth0")
	before := r.state()
	for i := range 4 {
		id := fmt.Sprintf("drop%d", i)
		r.add(list, id, "eth0", port{9000 + i, 80, "tcp", ""})
		if i == 0 {
			r.end(id)
		}
	}
	r.add(list, "keep", "eth1")
	r.forget()
	valid := []types.GCAttachment{{ContainerID: keep.ContainerID, IfName: "eth0"}}
	if err := r.runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		t.Errorf("GC: %v", err)
	}
	r.same("after GC", before)

	ended := r.conf("ended", "eth0", port{9100, 80, "tcp", ""})
	r.add(list, "ended", "eth0", port{9100, 80, "tcp", ""})
	r.kill()
	r.end("ended")
	ended.NetNS = ""
	r.del(list, ended) // succeeds
	_, r.kill = r.seined()
	for end := time.Now().Add(10 * time.Second); len(r.keys()) > 2 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	if got := r.keys(); len(got) != 2 {
		t.Errorf("the endpoint of a container that ended is still there: %q", got)
	}
	r.same("after the daemon dropped it", before)
}

// Plugins behind it in the list that leave the interface alone work on what it made.
func TestSeineChained(t *testing.T) {
	t.Parallel()
	r := newDaemonRig(t)
	list := r.network("pods", fmt.Sprintf(`{"type": "seine", "socket": %q}`, filepath.Join(r.cache, "seine.sock")),
		`{"type": "firewall"}`, `{"type": "bandwidth", "ingressRate": 80000000, "ingressBurst": 8000000, "egressRate": 80000000, "egressBurst": 8000000}`)
	r.add(r.seineNet("pods", ""), "keep", "eth0") // keeps the bridge busy
	r.serve("web", 80)
	before := r.state()
	rt := r.conf("web", "eth0")
	web, err := r.tryAdd(list, rt)
	if err != nil {
		t.Fatal(err)
	}
	for _, v4 := range []bool{false, true} {
		testkit.Reach(t, r.machine.NS, "tcp", at(web.of(v4), 80))
	}
	if err := r.runtime.CheckNetworkList(t.Context(), list, rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	r.del(list, rt)
	r.same("after DEL", before)
}
