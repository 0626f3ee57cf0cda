package cni_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/seine-net/seine/internal/testkit"
)

// seinedProgram builds the daemon once.
var seinedProgram = sync.OnceValues(func() (string, error) {
	dir, err := bin()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "seined"), "./cmd/seined")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return filepath.Join(dir, "seined"), nil
})

// background runs a program in a namespace until it is killed, by the function or with the test.
func (r *rig) background(ns *testkit.NS, program string, args ...string) func() {
	r.Helper()
	cmd := exec.Command(program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Start(cmd); err != nil {
		r.Fatal(err)
	}
	kill := sync.OnceFunc(func() { _ = cmd.Process.Signal(syscall.SIGKILL); _ = cmd.Wait() })
	r.Cleanup(func() {
		kill()
		if r.Failed() {
			r.Logf("%s: %s", filepath.Base(program), out.String())
		}
	})
	return kill
}

// seined starts the daemon on a socket of its own and gives a function that kills it.
func (r *rig) seined() (socket string, kill func()) {
	r.Helper()
	program, err := seinedProgram()
	if err != nil {
		r.Fatal(err)
	}
	socket = filepath.Join(r.cache, "dhcp.sock")
	kill = r.background(r.machine.NS, program, "-state", filepath.Join(r.cache, "state.db"), "-socket", filepath.Join(r.cache, "seine.sock"),
		"-dns-port", "0", "-quiet", "-docker-socket", "", "-dns-fixed", "", "-dns-fixed6", "", "-dhcp-socket", socket, "-dhcp-resend-timeout", "5s", "-dhcp-timeout", "2s", "-log-level", "debug")
	for _, path := range []string{socket, filepath.Join(r.cache, "seine.sock")} { // the latter comes last
		r.wait("the daemon", func() bool {
			c, err := net.Dial("unix", path)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
	return socket, kill
}

func (r *rig) wait(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("%s: not within 20 s", what)
		}
	}
}

// dnsmasq serves DHCP on an interface that has an address.1 of a /24.
func (r *rig) dnsmasq(ns *testkit.NS, link, subnet string, more ...string) (heard func() string) {
	r.Helper()
	log := filepath.Join(r.T.TempDir(), "log")
	r.background(ns, "dnsmasq", append(more, "--no-daemon", "--conf-file=/dev/null", "--interface="+link, "--bind-interfaces", "--port=0", "--no-ping",
		"--dhcp-authoritative", "--dhcp-range="+subnet+".100,"+subnet+".120,255.255.255.0,120", "--dhcp-option=option:dns-server,"+subnet+".1",
		"--dhcp-option=option:router,"+subnet+".1", "--dhcp-leasefile="+log+".leases", "--user=root", "--log-dhcp", "--log-facility="+log, "--pid-file=")...)
	return func() string {
		b, _ := os.ReadFile(log)
		return string(b)
	}
}

// dhcpNet is a network with a server on it, and the server's log.
type dhcpNet struct {
	list   *libcni.NetworkConfigList
	heard  func() string
	server netip.Addr
	subnet netip.Prefix
}

var dhcpNets = map[string]func(r *rig, socket string) dhcpNet{
	"bridge": func(r *rig, socket string) dhcpNet {
		for _, c := range []string{"ip link add br1 type bridge", "ip link set br1 up", "ip addr add 10.66.0.1/24 dev br1"} {
			if _, err := r.machine.Exec(r.Context(), "sh", "-c", c); err != nil {
				r.Fatal(err)
			}
		}
		return dhcpNet{r.network("lan", fmt.Sprintf(`{"type": "bridge", "bridge": "br1", "ipam": {"type": "dhcp", "daemonSocketPath": %q}}`, socket)),
			r.dnsmasq(r.machine.NS, "br1", "10.66.0"), netip.MustParseAddr("10.66.0.1"), netip.MustParsePrefix("10.66.0.0/24")}
	},
	"macvlan": func(r *rig, socket string) dhcpNet {
		testkit.Need(r.T, "macvlan")
		return dhcpNet{r.network("lan", fmt.Sprintf(`{"type": "macvlan", "master": "eth0", "ipam": {"type": "dhcp", "daemonSocketPath": %q}}`, socket)),
			r.dnsmasq(r.outside.NS, "eth0", "192.0.2"), r.outside.V4, netip.MustParsePrefix("192.0.2.0/24")}
	},
}

// ADD, packets, CHECK, a daemon that is killed, DEL with and without it.
func TestDHCP(t *testing.T) {
	for kind, make := range dhcpNets {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			testkit.Need(t, "program:dnsmasq")
			r := newRig(t)
			socket, kill := r.seined()
			n := make(r, socket)
			before := r.state()
			rt := r.conf("web", "eth0")
			res, err := r.runtime.AddNetworkList(t.Context(), n.list, rt)
			if err != nil {
				t.Fatal(err)
			}
			out, err := types100.NewResultFromResult(res)
			if err != nil || len(out.IPs) != 1 || len(out.DNS.Nameservers) != 1 || out.DNS.Nameservers[0] != n.server.String() {
				t.Fatalf("result %+v (%v)", res, err)
			}
			addr, _ := netip.AddrFromSlice(out.IPs[0].Address.IP)
			if addr = addr.Unmap(); !n.subnet.Contains(addr) {
				t.Errorf("address %s is not of %s", addr, n.subnet)
			}
			r.serve("web", 80)
			from := r.machine.NS
			if kind == "macvlan" { // the machine's own master can't be spoken to
				from = r.outside.NS
			}
			testkit.Reach(t, from, "tcp", at(addr, 80))
			routes, err := r.container("web").Exec(t.Context(), "ip", "-4", "route")
			if err != nil || !strings.Contains(routes, "default via "+n.server.String()+" dev eth0") {
				t.Errorf("routes %q (%v)", routes, err)
			}
			check := func() {
				t.Helper()
				if err := r.runtime.CheckNetworkList(t.Context(), n.list, rt); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			check()
			if err := r.runtime.GetStatusNetworkList(t.Context(), n.list); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			kill()
			if err := r.runtime.GetStatusNetworkList(t.Context(), n.list); err == nil {
				t.Error("STATUS succeeds without a daemon")
			}
			if _, err := r.runtime.AddNetworkList(t.Context(), n.list, r.conf("late", "eth0")); err == nil || !strings.Contains(err.Error(), "no DHCP daemon") {
				t.Errorf("ADD without a daemon: %v", err)
			}
			_, kill = r.seined()
			check()
			r.add(n.list, "b", "eth0")
			for range 2 {
				r.del(n.list, rt)
			}
			r.wait("RELEASE", func() bool {
				return strings.Contains(n.heard(), "DHCPRELEASE") && strings.Contains(n.heard(), addr.String())
			})
			kill()
			r.del(n.list, r.conf("b", "eth0")) // the daemon finds it gone when it is back
			r.del(n.list, r.conf("late", "eth0"))
			if kind == "bridge" {
				r.same("after all DELs", before)
			}
		})
	}
}

// Both families: IPv6 works when ADD returns, the way out is the router that advertises itself, and CHECK agrees.
func TestDHCPDual(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "program:dnsmasq")
	r := newRig(t)
	socket, _ := r.seined()
	for _, c := range []string{"ip link add br1 type bridge", "sysctl -qw net.ipv6.conf.br1.accept_dad=0", "ip link set br1 up",
		"ip addr add 10.66.0.1/24 dev br1", "ip addr add fd66::1/64 dev br1 nodad"} {
		if _, err := r.machine.Exec(t.Context(), "sh", "-c", c); err != nil {
			t.Fatal(err)
		}
	}
	heard := r.dnsmasq(r.machine.NS, "br1", "10.66.0", "--dhcp-range=fd66::100,fd66::200,64,120", "--enable-ra", "--dhcp-option=option6:dns-server,[fd66::1]")
	list := r.network("lan", fmt.Sprintf(`{"type": "bridge", "bridge": "br1", "ipam": {"type": "dhcp", "daemonSocketPath": %q, "families": ["4", "6"]}}`, socket))
	before := r.state()
	a := r.add(list, "web", "eth0")
	if !netip.MustParsePrefix("10.66.0.0/24").Contains(a.v4) || !netip.MustParsePrefix("fd66::/64").Contains(a.v6) || !a.gw6.IsLinkLocalUnicast() {
		t.Errorf("addresses %+v", a)
	}
	gateway := testkit.Serve(t, r.machine.NS, "udp", "[::]:7000")
	testkit.Reach(t, r.container("web"), "udp", netip.AddrPortFrom(netip.MustParseAddr("fd66::1"), gateway.Port()))
	r.serve("web", 80)
	for _, v4 := range []bool{true, false} {
		testkit.Reach(t, r.machine.NS, "tcp", at(a.of(v4), 80))
	}
	routes, err := r.container("web").Exec(t.Context(), "ip", "-6", "route")
	if err != nil || !strings.Contains(routes, "default via "+a.gw6.String()+" dev eth0") || !strings.Contains(routes, "fd66::/64 dev eth0") {
		t.Errorf("routes %q (%v)", routes, err)
	}
	if err := r.runtime.CheckNetworkList(t.Context(), list, r.conf("web", "eth0")); err != nil {
		t.Errorf("CHECK: %v; routes %s", err, routes)
	}
	r.del(list, r.conf("web", "eth0"))
	r.wait("both RELEASEs", func() bool { return strings.Count(heard(), "DHCPRELEASE(br1)") == 2 })
	r.same("after DEL", before)
}

// Without a server ADD fails in time and leaves nothing, and so it does when the runtime gives up before.
func TestDHCPWithoutServer(t *testing.T) {
	for kind, conf := range map[string]string{"bridge": `"bridge": "br1"`, "macvlan": `"master": "eth0"`} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			testkit.Need(t, kind)
			r := newRig(t)
			socket, _ := r.seined()
			list := r.network("lan", fmt.Sprintf(`{"type": %q, %s, "ipam": {"type": "dhcp", "daemonSocketPath": %q}}`, kind, conf, socket))
			before := r.state()
			_, err := r.runtime.AddNetworkList(t.Context(), list, r.conf("web", "eth0"))
			if err == nil || !strings.Contains(err.Error(), "no server answers") {
				t.Errorf("ADD: %v", err)
			}
			r.same("after an ADD that failed", before)
			if _, err := r.container("web").Netlink().LinkByName("eth0"); err == nil {
				t.Error("the container keeps its interface")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if _, err := r.runtime.AddNetworkList(ctx, list, r.conf("web", "eth0")); err == nil {
				t.Error("a runtime that gives up gets a lease")
			}
			r.del(list, r.conf("web", "eth0"))
			r.same("after an ADD that was killed, and DEL", before)
		})
	}
}

// Either plugin works with either daemon.
func TestDHCPWithTheReference(t *testing.T) {
	folder := reference(t, "dhcp", "bridge")
	for name, ours := range map[string]struct{ plugin, daemon bool }{
		"its plugin, our daemon": {false, true}, "our plugin, its daemon": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testkit.Need(t, "program:dnsmasq")
			r := newRig(t)
			var socket string
			if ours.daemon {
				socket, _ = r.seined()
			} else {
				socket = filepath.Join(r.cache, "theirs")
				r.background(r.machine.NS, folder+"/dhcp", "daemon", "-socketpath", socket)
				r.wait("its daemon", func() bool { _, err := os.Stat(socket); return err == nil })
			}
			if !ours.plugin {
				r.runtime = libcni.NewCNIConfigWithCacheDir([]string{folder}, r.cache, &inside{machine: r.machine.NS})
			}
			n := dhcpNets["bridge"](r, socket)
			n.list = r.networkOf("lan", "1.0.0", fmt.Sprintf(`{"type": "bridge", "bridge": "br1", "ipam": {"type": "dhcp", "daemonSocketPath": %q,
				"request": [{"option": "121"}], "provide": [{"option": "host-name", "value": "web"}]}}`, socket))
			before := r.state()
			a := r.add(n.list, "web", "eth0")
			if !n.subnet.Contains(a.v4) || a.gw4 != n.server {
				t.Errorf("address %s by %s", a.v4, a.gw4)
			}
			r.serve("web", 80)
			testkit.Reach(t, r.machine.NS, "tcp", at(a.v4, 80))
			if err := r.runtime.CheckNetworkList(t.Context(), n.list, r.conf("web", "eth0")); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if log := n.heard(); !strings.Contains(log, "client provides name: web") {
				t.Errorf("the server was not told the name:\n%s", log)
			}
			r.del(n.list, r.conf("web", "eth0"))
			r.wait("RELEASE", func() bool { return strings.Contains(n.heard(), "DHCPRELEASE") })
			if ours.plugin {
				r.same("after DEL", before)
			}
		})
	}
}
