package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/builtin"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/frontdoor/docker"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/state"
)

// desk is the door with the engine behind it on a kernel in memory, that can be killed and started again.
type desk struct {
	*testing.T
	kernel *fake.Kernel
	real   kernel.Kernel // in its place, if not nil
	path   string
	store  *state.Store
	loop   *reconcile.Reconciler
	engine *engine.Engine
	door   *docker.Door
	mortal *mortal // nil but in tests that kill the daemon within a call
	stop   func()
}

func newDesk(t *testing.T) *desk { return newDeskOn(t, nil) }

func newDeskOn(t *testing.T, k kernel.Kernel) *desk {
	// The tests write thousands of transactions: not to a disk, where there is a choice.
	dir, err := os.MkdirTemp("/dev/shm", "seine-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &desk{T: t, kernel: fake.New(), real: k, path: filepath.Join(dir, "state.db")}
	d.start()
	t.Cleanup(func() { d.stop() })
	// A machine has a network from its first start on. With it, forwarding and the table are there all the time.
	if _, err := d.engine.PutNetwork(t.Context(), api.Network{Name: "default", Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("192.168.200.0/24")}}}, 0); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *desk) start() {
	d.Helper()
	var err error
	if d.store, err = state.Open(d.path); err != nil {
		d.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	want := desired.New()
	var k kernel.Kernel = d.kernel
	if d.real != nil {
		k = d.real
	}
	loop := reconcile.New(k, want, log)
	d.loop = loop
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { loop.Run(ctx) })
	d.stop = func() {
		cancel()
		running.Wait()
		d.store.Close()
	}
	d.engine = engine.New(engine.Config{Store: d.store, Want: want, Loop: loop, Drivers: builtin.Drivers(), Addons: builtin.Addons(),
		Machine: noMachine{}, Log: log, DNSPort: 5380, Node: "n1", Version: "test", Boot: "boot",
		Pools: pool.Subnets{{Prefix: netip.MustParsePrefix("10.200.0.0/13"), Bits: 24}, {Prefix: netip.MustParsePrefix("fd00:5e::/48"), Bits: 64}},
	}, kernel.Facts{})
	if err := d.engine.Load(ctx); err != nil {
		d.Fatal(err)
	}
	if d.mortal == nil {
		d.door = docker.New(d.engine, d.store, log)
	} else {
		d.door = docker.New(mortalEngine{d.engine, d.mortal}, mortalBook{d.store, d.mortal}, log)
	}
}

// restart is what SIGKILL and a new start are.
func (d *desk) restart() {
	d.Helper()
	d.stop()
	d.kernel.Restart()
	d.start()
}

// noMachine knows no namespace and no process.
type noMachine struct{}

func (noMachine) CheckNetns(string) (uint64, error) { return 0, nil }
func (noMachine) ProcessStart(int) (uint64, error)  { return 0, errors.New("no such process") }
func (noMachine) CheckMovable(string) error         { return nil }
func (noMachine) WatchProcess(int, uint64, func())  {}

// ask makes one call, and checks that an error is one in the words of both drivers.
func (d *desk) ask(name, body string) (map[string]any, error) {
	d.Helper()
	w := httptest.NewRecorder()
	d.door.ServeHTTP(w, httptest.NewRequest("POST", "/"+name, strings.NewReader(body)))
	var out map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		d.Fatalf("%s %s: answer %q is no JSON: %v", name, body, w.Body, err)
	}
	if w.Code == 200 {
		return out, nil
	}
	text, _ := out["Err"].(string)
	if w.Code != 500 || text == "" || out["Error"] != text || strings.Contains(text, "met a bug") {
		d.Fatalf("%s %s: status %d, %v", name, body, w.Code, out)
	}
	return out, errors.New(text)
}

func (d *desk) ok(name, body string, args ...any) map[string]any {
	d.Helper()
	out, err := d.ask(name, fmt.Sprintf(body, args...))
	if err != nil {
		d.Fatalf("%s: %v", name, err)
	}
	return out
}

// is compares an answer with JSON.
func (d *desk) is(got map[string]any, want string) {
	d.Helper()
	b, _ := json.Marshal(got)
	var w map[string]any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		d.Fatal(err)
	}
	if c, _ := json.Marshal(w); string(b) != string(c) {
		d.Errorf("answer is %s, want %s", b, c)
	}
}

func (d *desk) state() string {
	d.Helper()
	if err := d.loop.Flush(context.Background()); err != nil {
		d.Fatal(err)
	}
	nets, _ := d.engine.Networks(d.Context())
	eps, _ := d.engine.Endpoints(d.Context())
	nouns, err := json.Marshal([]any{nets, eps, d.store.Values("docker/")})
	if err != nil {
		d.Fatal(err)
	}
	return d.kernel.Dump() + string(nouns)
}

const (
	netID = "5b4ab9ce8cd3c2a4e7dd1d0db4fdaa8df2d3c5a1e0f65c8d3f0ad3e2b1c0d9e8"
	epID  = "aa5f3e0b9d7c1f2e4a6b8c0d2e4f6a8b0c2d4e6f8a0b2c4d6e8f0a2b4c6d8e0f"
	ids   = `"NetworkID":"` + netID + `","EndpointID":"` + epID + `"`
)

// TestLife: a network and an endpoint in the words of dockerd 20.10, as its calls were recorded; each call comes twice,
// and the daemon is killed before each.
func TestLife(t *testing.T) {
	for _, hard := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", hard), func(t *testing.T) {
			d := newDesk(t)
			empty := d.state()
			call := func(name, body string, args ...any) map[string]any {
				t.Helper()
				out := d.ok(name, body, args...)
				if hard {
					d.restart()
					if name != "IpamDriver.RequestPool" && name != "IpamDriver.RequestAddress" {
						d.ok(name, body, args...)
					}
				}
				return out
			}
			d.is(call("Plugin.Activate", ""), `{"Implements":["NetworkDriver","IpamDriver"]}`)
			d.is(call("NetworkDriver.GetCapabilities", ""), `{"Scope":"local","ConnectivityScope":"local","GwAllocChecker":true}`)
			d.is(call("IpamDriver.GetDefaultAddressSpaces", ""), `{"LocalDefaultAddressSpace":"seine","GlobalDefaultAddressSpace":"seine"}`)
			p4 := call("IpamDriver.RequestPool", `{"AddressSpace":"seine","Pool":"","SubPool":"","Options":null,"V6":false}`)
			p6 := call("IpamDriver.RequestPool", `{"AddressSpace":"seine","Pool":"fd00:7::/64","SubPool":"","Options":{},"V6":true}`)
			if p4["Pool"] != "10.200.0.0/24" || p6["Pool"] != "fd00:7::/64" {
				t.Fatalf("pools are %v and %v", p4, p6)
			}
			gw := call("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"","Options":{"RequestAddressType":"com.docker.network.gateway"}}`, p4["PoolID"])
			d.is(gw, `{"Address":"10.200.0.1/24","Data":{}}`)
			d.is(call("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"10.200.0.2","Options":null}`, p4["PoolID"]), `{"Address":"10.200.0.2/24","Data":{}}`)
			call("NetworkDriver.CreateNetwork", `{"NetworkID":%q,"Options":{"com.docker.network.enable_ipv6":true,"com.docker.network.generic":{"seine.name":"shop"}},
				"IPv4Data":[{"AddressSpace":"seine","Pool":"10.200.0.0/24","Gateway":"10.200.0.1/24","AuxAddresses":{"host1":"10.200.0.2/24"}}],
				"IPv6Data":[{"AddressSpace":"seine","Pool":"fd00:7::/64","Gateway":"fd00:7::1/64"}]}`, netID)

			a4 := call("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"","Options":null}`, p4["PoolID"])
			d.is(a4, `{"Address":"10.200.0.3/24","Data":{}}`)
			made := call("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"10.200.0.3/24","AddressIPv6":"fd00:7::9/64","MacAddress":""},"Options":{}}`)
			d.is(made, `{"Interface":{"MacAddress":"02:5e:0a:c8:00:03"}}`)
			join := call("NetworkDriver.Join", `{`+ids+`,"SandboxKey":"/var/run/docker/netns/0123456789ab","Options":{}}`)
			src := join["InterfaceName"].(map[string]any)["SrcName"].(string)
			if join["Gateway"] != "10.200.0.1" || join["GatewayIPv6"] != "fd00:7::1" {
				t.Errorf("Join answers %v", join)
			}
			d.kernel.AddNamespace("/run/docker/netns/0123456789ab")
			if !d.kernel.Move("", src, "/run/docker/netns/0123456789ab", "eth0") {
				t.Fatalf("%q is not there to be taken", src)
			}
			call("NetworkDriver.ProgramExternalConnectivity", `{`+ids+`,"Options":{"com.docker.network.portmap":[
				{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080},
				{"Proto":17,"IP":"","Port":53,"HostIP":"127.0.0.1","HostPort":0,"HostPortEnd":0},
				{"Proto":6,"IP":"","Port":81,"HostIP":"","HostPort":8080,"HostPortEnd":8090}]}}`)
			ep, err := d.engine.Endpoint(t.Context(), "shop", "docker-"+epID[:12])
			if err != nil || len(ep.Ports) != 3 || ep.Ports[0].HostPort != 8080 || ep.Ports[1].HostPort < 49152 || ep.Ports[2].HostPort != 8081 {
				t.Fatalf("endpoint is %+v, %v", ep, err)
			}
			call("NetworkDriver.EndpointOperInfo", `{`+ids+`}`)
			if plan, err := d.engine.Plan(t.Context(), ""); err != nil || len(plan.Changes) > 0 {
				t.Errorf("damaged: %v, %v", plan, err)
			}

			call("NetworkDriver.RevokeExternalConnectivity", `{`+ids+`}`)
			call("NetworkDriver.Leave", `{`+ids+`}`)
			call("NetworkDriver.DeleteEndpoint", `{`+ids+`}`)
			for _, a := range []string{"10.200.0.3", "10.200.0.1", "10.200.0.2"} {
				call("IpamDriver.ReleaseAddress", `{"PoolID":%q,"Address":%q}`, p4["PoolID"], a)
			}
			call("IpamDriver.ReleasePool", `{"PoolID":%q}`, p4["PoolID"])
			call("IpamDriver.ReleasePool", `{"PoolID":%q}`, p6["PoolID"])
			call("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, netID)
			d.kernel.RemoveNamespace("/run/docker/netns/0123456789ab")
			if now := d.state(); now != empty {
				t.Errorf("left:\n%s\nwas:\n%s", now, empty)
			}
		})
	}
}

func (d *desk) network(id, subnet, options string) {
	d.Helper()
	d.ok("NetworkDriver.CreateNetwork", `{"NetworkID":%q,"Options":{"com.docker.network.generic":{%s}},"IPv4Data":[{"Pool":%q}],"IPv6Data":[]}`, id, options, subnet)
}

// TestRefused: what is wrong is refused with a reason, and nothing is changed by it.
func TestRefused(t *testing.T) {
	d := newDesk(t)
	if _, err := d.engine.PutNetwork(t.Context(), api.Network{Name: "mine", Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24")}}}, 0); err != nil {
		t.Fatal(err)
	}
	d.network(netID, "10.8.0.0/24", "")
	d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"10.8.0.7/24"}}`)
	d.ok("NetworkDriver.Join", `{`+ids+`,"SandboxKey":%q}`, d.path) // a file that is there: it is alive
	p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.8.0.0/24"}`)["PoolID"]
	other := `"NetworkID":"` + strings.Repeat("b", 64) + `"`
	before := d.state()
	for _, c := range []struct{ name, body, want string }{
		{"NetworkDriver.CreateNetwork", ``, "the body is empty"},
		{"NetworkDriver.CreateNetwork", `[`, "the body is not"},
		{"NetworkDriver.CreateNetwork", `{}{}`, "it goes on after its end"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"` + strings.Repeat("b", 1<<20) + `"}`, "too large"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"../../etc/passwd"}`, `NetworkID "../../etc/passwd": is no identity`},
		{"NetworkDriver.CreateNetwork", `{` + other + `}`, "no subnet"},
		{"NetworkDriver.CreateNetwork", `{` + other + `,"IPv4Data":[{"Pool":"10.8.0.0/16"}]}`, `10.8.0.0/24 of network`},
		{"NetworkDriver.CreateNetwork", `{` + other + `,"IPv4Data":[{"Pool":"10.7.0.0/24"}],"Options":{"com.docker.network.generic":{"parent":"eth0"}}}`, `options "parent": is no option of driver "bridge"`},
		{"NetworkDriver.CreateNetwork", `{` + other + `,"IPv4Data":[{"Pool":"10.7.0.0/24"}],"Options":{"com.docker.network.generic":{"seine.name":"mine"}}}`, "exists already"},
		{"NetworkDriver.CreateNetwork", `{` + other + `,"IPv4Data":[{"Pool":"10.7.0.0/24"}],"Options":{"com.docker.network.generic":{"seine.network":"mine"}}}`, "has not the subnet 10.7.0.0/24"},
		{"NetworkDriver.CreateNetwork", `{` + other + `,"IPv4Data":[{"Pool":"10.9.0.0/24","Gateway":"10.9.0.5/24"}],"Options":{"com.docker.network.generic":{"seine.network":"mine"}}}`, "has gateway 10.9.0.1, not 10.9.0.5"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"10.7.0.0/24"}]}`, "has not the subnet"},
		{"NetworkDriver.CreateEndpoint", `{` + other + `,"EndpointID":"` + epID + `"}`, "is not known here"},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"` + netID + `","EndpointID":"x"}`, "is no identity"},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"` + netID + `","EndpointID":"` + strings.Repeat("c", 64) + `","Interface":{"Address":"10.8.0.7/24"}}`, "in use"},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"` + netID + `","EndpointID":"` + strings.Repeat("c", 64) + `","Interface":{"MacAddress":"zz"}}`, "no hardware address"},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"` + netID + `","EndpointID":"` + epID[:12] + strings.Repeat("0", 52) + `"}`, "has the name of Docker's endpoint"},
		{"NetworkDriver.Join", `{"NetworkID":"` + netID + `","EndpointID":"` + strings.Repeat("c", 64) + `"}`, "does not exist"},
		{"NetworkDriver.ProgramExternalConnectivity", `{` + ids + `,"Options":{"com.docker.network.portmap":[{"Proto":1,"Port":80,"HostPort":80}]}}`, "protocol 1 has no ports"},
		{"NetworkDriver.ProgramExternalConnectivity", `{` + ids + `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":80,"HostIP":"x"}]}}`, `"x" is no address`},
		{"NetworkDriver.ProgramExternalConnectivity", `{` + ids + `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":0,"HostPort":0}]}}`, "out of range"},
		{"NetworkDriver.AllocateNetwork", `{` + other + `}`, "scope of driver seine is local"},
		{"NetworkDriver.FreeNetwork", `{` + other + `}`, "scope of driver seine is local"},
		{"IpamDriver.RequestPool", `{"Pool":"10.0.0.0/24","V6":true}`, "of the family that is asked for"},
		{"IpamDriver.RequestPool", `{"Pool":"0.0.0.0/0"}`, "can't be used"},
		{"IpamDriver.RequestPool", `{"Pool":"10.1.0.0/24","SubPool":"10.2.0.0/25"}`, "is no part of the pool"},
		{"IpamDriver.RequestPool", `{"Options":{"a":"b"}}`, `--ipam-opt "a": is not known`},
		{"IpamDriver.RequestAddress", `{"PoolID":"../x"}`, `pool "../x": is no pool of this driver`},
		{"IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Address":"10.8.0.7"}`, p), "is in use by " + `docker-` + netID[:12] + "/docker-" + epID[:12]},
		{"IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Address":"10.8.1.7"}`, p), "is no address to give out of pool 10.8.0.0/24"},
		{"IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":%q,"Address":"x"}`, p), "is no address"},
	} {
		if _, err := d.ask(c.name, c.body); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.120s: error %v, want %q", c.name, c.body, err, c.want)
		}
		if now := d.state(); now != before {
			t.Fatalf("%s %.120s changed:\n%s\nwas:\n%s", c.name, c.body, now, before)
		}
	}
	for _, name := range []string{"Leave", "DeleteEndpoint", "RevokeExternalConnectivity", "DeleteNetwork"} {
		d.ok("NetworkDriver."+name, `{%s,"EndpointID":%q}`, other, epID) // what is not there is gone
	}
}

// TestShared: a network that others use, before Docker or beside it, outlives Docker's part.
func TestShared(t *testing.T) {
	d := newDesk(t)
	mine, err := d.engine.PutNetwork(t.Context(), api.Network{Name: "mine", Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24")}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	d.network(netID, "10.9.0.0/24", `"seine.network":"mine"`)
	d.network(netID, "10.9.0.0/24", `"seine.network":"mine"`)
	if _, err := d.ask("NetworkDriver.CreateNetwork", `{"NetworkID":"`+strings.Repeat("b", 64)+`","Options":{"com.docker.network.generic":{"seine.network":"mine"}},"IPv4Data":[{"Pool":"10.9.0.0/24"}]}`); err == nil {
		t.Error("two networks of Docker's share one of ours")
	}
	d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{}}`)
	d.restart()
	d.ok("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, netID) // Docker forgot the endpoint
	now, err := d.engine.Network(t.Context(), "mine")
	if err != nil || now.Labels[docker.LabelNetwork] != "" || now.Status.Endpoints != 0 || now.Interface != mine.Interface {
		t.Errorf("after Docker it is %+v, %v", now, err)
	}

	other := strings.Repeat("b", 64)
	d.network(other, "10.8.0.0/24", "")
	d.kernel.AddNamespace("/run/netns/x")
	if _, err := d.engine.PutEndpoint(t.Context(), api.Endpoint{Network: "docker-bbbbbbbbbbbb", Name: "x", Sandbox: api.Sandbox{Netns: "/run/netns/x"}}, 0); err != nil {
		t.Fatal(err)
	}
	d.ok("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, other)
	if now, err := d.engine.Network(t.Context(), "docker-bbbbbbbbbbbb"); err != nil || len(now.Labels) != 0 || now.Status.Endpoints != 1 {
		t.Errorf("what others use is %+v, %v", now, err)
	}
}

// TestAddresses: addresses are given out one after the other, of the part that was asked for, until none is left.
func TestAddresses(t *testing.T) {
	d := newDesk(t)
	p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.8.0.0/24","SubPool":"10.8.0.0/29"}`)["PoolID"]
	var got []string
	for {
		out, err := d.ask("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q}`, p))
		if err != nil {
			break
		}
		got = append(got, out["Address"].(string))
		if len(got) == 3 {
			d.ok("IpamDriver.ReleaseAddress", `{"PoolID":%q,"Address":"10.8.0.1"}`, p)
			d.restart()
		}
	}
	if s := strings.Join(got, " "); s != "10.8.0.1/24 10.8.0.2/24 10.8.0.3/24 10.8.0.1/24 10.8.0.4/24 10.8.0.5/24 10.8.0.6/24 10.8.0.7/24" {
		t.Errorf("addresses are %s", s)
	}
	d.ok("IpamDriver.ReleasePool", `{"PoolID":%q}`, p)
	d.ok("IpamDriver.ReleasePool", `{"PoolID":%q}`, p)
	if left := d.store.Values("docker/"); len(left) > 0 {
		t.Errorf("left in the book: %v", left)
	}
	for range 2 { // no range is given out twice
		out := d.ok("IpamDriver.RequestPool", `{}`)
		if out["Pool"] == got[0] {
			t.Errorf("pool %v", out)
		}
		got[0] = out["Pool"].(string)
		d.restart()
	}
}
