package docker_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/testkit"
)

// counted is a kernel that counts what is asked of it.
type counted struct {
	kernel.Kernel
	mu sync.Mutex
	counts
}

// counts are what the engine asks a kernel for, and what the answers to lists hold.
type counts struct{ applies, changes, lists, listed int }

func (c *counted) Apply(ctx context.Context, changes []kernel.Change) []error {
	c.mu.Lock()
	c.applies++
	c.changes += len(changes)
	c.mu.Unlock()
	return c.Kernel.Apply(ctx, changes)
}

func (c *counted) List(ctx context.Context, s kernel.Scope) ([]kernel.Object, error) {
	out, err := c.Kernel.List(ctx, s)
	c.mu.Lock()
	c.lists++
	c.listed += len(out)
	c.mu.Unlock()
	return out, err
}

// lap gives what was counted since the last one.
func (c *counted) lap() counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.counts
	c.counts = counts{}
	return out
}

// TestScale: a thousand networks and endpoints on the kernel. The last hundred asks of it what the first did, and nothing
// is left of them.
func TestScale(t *testing.T) {
	testkit.Need(t, "root", "bridge", "veth", "nft")
	total := 400
	if os.Getenv("SEINE_BENCH") != "" { // make bench
		total = 1000
	}
	if testing.Short() {
		total = 50
	}
	ns := testkit.Namespace(t, "scale")
	real := linux.New(linux.Options{Netns: ns.Path(), PrivateProc: true})
	t.Cleanup(func() { real.Close() })
	k := &counted{Kernel: real}
	d := newDeskOn(t, k)
	before := machine(t, ns)
	k.lap()

	pools, part := make([]string, total), total/10
	made := d.laps(k, "made", total, part, func(i int) { pools[i] = d.make(i) })
	if links := len(strings.Fields(machine(t, ns))); links < 2*total {
		t.Errorf("the machine has %d links and elements with %d networks and endpoints", links, total)
	}
	removed := d.laps(k, "removed", total, part, func(i int) { d.remove(i, pools[i]) })
	for _, laps := range [][]counts{made, removed} {
		// What goes in the background is applied together, in however many pieces.
		first, last := laps[0], laps[len(laps)-1]
		if last.changes > first.changes+first.changes/20 || last.lists > first.lists || last.listed > first.listed {
			t.Errorf("the first %d asked the kernel for %+v, the last for %+v", part, first, last)
		}
	}
	if made[len(made)-1].applies > made[0].applies+made[0].applies/20 {
		t.Errorf("the first %d were made in %d steps, the last in %d", part, made[0].applies, made[len(made)-1].applies)
	}
	if after := machine(t, ns); after != before {
		t.Errorf("left:\n%.2000s\nwas:\n%.2000s", after, before)
	}
	nets, _ := d.engine.Networks(t.Context())
	eps, _ := d.engine.Endpoints(t.Context())
	if left := d.store.Values("docker/"); len(left) > 0 || len(nets) != 1 || len(eps) > 0 {
		t.Errorf("left: %d networks, %d endpoints, %d records of addresses", len(nets), len(eps), len(left))
	}
}

// laps does something for each of total, and tells what each part of them asked of the kernel, and in what time.
func (d *desk) laps(k *counted, what string, total, part int, do func(i int)) (laps []counts) {
	d.Helper()
	start := time.Now()
	for i := range total {
		do(i)
		if (i+1)%part != 0 {
			continue
		}
		if err := d.loop.Flush(d.Context()); err != nil {
			d.Fatal(err)
		}
		laps = append(laps, k.lap())
		d.Logf("%4d to %4d %s in %s: %+v", i+1-part, i+1, what, time.Since(start).Round(time.Millisecond), laps[len(laps)-1])
		start = time.Now()
	}
	return laps
}

// machine is the links and elements that the machine has.
func machine(t *testing.T, ns *testkit.NS) string {
	t.Helper()
	links, err := ns.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range links {
		out = append(out, l.Attrs().Name)
	}
	return strings.Join(append(out, testkit.Elements(t, ns)...), "\n")
}

func scaleIDs(i int) string {
	return fmt.Sprintf(`"NetworkID":"%s","EndpointID":"%s"`, scaleID("a", i), scaleID("b", i))
}

func scaleID(kind string, i int) string { return fmt.Sprintf("%s%011x%052x", kind, i, i) }

// make makes a network with an endpoint that publishes a port, as dockerd does, and gives its pool.
func (d *desk) make(i int) string {
	d.Helper()
	p := d.ok("IpamDriver.RequestPool", noPool)
	gw := d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"","Options":{"RequestAddressType":"com.docker.network.gateway"}}`, p["PoolID"])
	d.ok("NetworkDriver.CreateNetwork", `{"NetworkID":%q,"Options":{},"IPv4Data":[{"AddressSpace":"seine","Pool":%q,"Gateway":%q}],"IPv6Data":[]}`, scaleID("a", i), p["Pool"], gw["Address"])
	a := d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"","Options":null}`, p["PoolID"])
	d.ok("NetworkDriver.CreateEndpoint", `{%s,"Interface":{"Address":%q,"AddressIPv6":"","MacAddress":""},"Options":{}}`, scaleIDs(i), a["Address"])
	d.ok("NetworkDriver.Join", `{%s,"SandboxKey":"/run/docker/netns/%d","Options":{}}`, scaleIDs(i), i)
	d.ok("NetworkDriver.ProgramExternalConnectivity", `{%s,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":%d,"HostPortEnd":%d}]}}`, scaleIDs(i), 10000+i, 10000+i)
	return p["PoolID"].(string)
}

func (d *desk) remove(i int, pool string) {
	d.Helper()
	for _, name := range []string{"RevokeExternalConnectivity", "Leave", "DeleteEndpoint"} {
		d.ok("NetworkDriver."+name, `{%s}`, scaleIDs(i))
	}
	for name := range d.store.Values("docker/ipam/" + pool + " ") {
		d.ok("IpamDriver.ReleaseAddress", `{"PoolID":%q,"Address":%q}`, pool, name[strings.LastIndexByte(name, ' ')+1:])
	}
	d.ok("IpamDriver.ReleasePool", `{"PoolID":%q}`, pool)
	d.ok("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, scaleID("a", i))
}
