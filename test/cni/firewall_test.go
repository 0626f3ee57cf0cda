package cni_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/seine-net/seine/internal/testkit"
)

// refDir is where Debian's package has the reference plugins.
const refDir = "/usr/lib/cni"

func needPrograms(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skip: needs the program %s: %v", p, err)
		}
	}
}

// on runs a shell command on the machine.
func (r *rig) on(command string) string {
	r.Helper()
	out, err := r.machine.Exec(r.Context(), "sh", "-c", command)
	if err != nil {
		r.Fatalf("%s: %v: %s", command, err, out)
	}
	return out
}

// walled is a network whose chain ends in the plugin firewall with some keys.
func walled(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList, name string, n int, keys string) *libcni.NetworkConfigList {
	list := make(r, name, n)
	var plugins []string
	for _, p := range list.Plugins {
		plugins = append(plugins, string(p.Bytes))
	}
	return r.networkOf(name, "1.0.0", append(plugins, `{"type": "firewall"`+keys+`}`)...)
}

// TestForwardDrop: on machines that drop what they forward the containers get out, and nobody gets in.
func TestForwardDrop(t *testing.T) {
	needPrograms(t, "iptables-nft", "ip6tables-nft", "nft")
	both := func(args string) string { return "iptables-nft " + args + " && ip6tables-nft " + args + "\n" }
	for name, setup := range map[string]string{
		"policy": both("-P FORWARD DROP"),
		"rule":   both("-A FORWARD -j REJECT") + both("-A FORWARD -i nothing -j ACCEPT"),
		"nft": `nft 'add table inet mine; add chain inet mine f { type filter hook forward priority 0; policy drop; };
			add rule inet mine f iifname "nothing" accept'`,
		"all": both("-P FORWARD DROP") + `nft 'add table inet late; add chain inet late f { type filter hook forward priority 300; };
			add rule inet late f ct state invalid drop; add rule inet late f reject'`,
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
				r.on(setup)
				list := walled(r, make, "net", 1, "")
				before := r.state()
				a := r.add(list, "a", "eth0")
				r.serve("a", 80)
				rules := r.on("nft list ruleset | grep -c 'accept comment'")
				r.add(list, "b", "eth0")
				if now := r.on("nft list ruleset | grep -c 'accept comment'"); now != rules {
					r.Errorf("one more container: %s rules, were %s", now, rules)
				}
				for _, v4 := range []bool{true, false} {
					far := testkit.Far6
					if v4 {
						far = testkit.Far4
					}
					for _, network := range networks {
						server := testkit.Serve(r.T, r.outside.NS, network, at(far, 0).String())
						for _, id := range []string{"a", "b"} {
							testkit.Reach(r.T, r.container(id), network, at(far, server.Port()))
						}
					}
					r.route(a.of(v4))
					testkit.CantReach(r.T, r.outside.NS, "tcp", at(a.of(v4), 80), 300*time.Millisecond)
				}
				check := r.runtime.CheckNetworkList(r.Context(), list, r.conf("a", "eth0"))
				if check != nil {
					r.Errorf("CHECK: %v", check)
				}
				r.del(list, r.conf("a", "eth0"))
				r.del(list, r.conf("b", "eth0"))
				r.same("after DEL", before)
			})
		})
	}
}

// route lets the outside send straight to a container.
func (r *rig) route(a netip.Addr) {
	r.Helper()
	via := r.machine.V6
	if a.Is4() {
		via = r.machine.V4
	}
	if err := r.outside.AddRoute(netip.PrefixFrom(a, a.BitLen()), via); err != nil {
		r.Fatal(err)
	}
}

// TestAdminChain: what operators keep in CNI-ADMIN counts before what the plugin lets pass, whoever leads there.
func TestAdminChain(t *testing.T) {
	needPrograms(t, "iptables-nft", "iptables-nft-save")
	for name, more := range map[string]string{
		"ours":          "",
		"the reference": "iptables-nft -N CNI-FORWARD; iptables-nft -A CNI-FORWARD -j CNI-ADMIN; iptables-nft -I FORWARD -j CNI-FORWARD",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.on("iptables-nft -P FORWARD DROP; iptables-nft -N CNI-ADMIN; iptables-nft -A CNI-ADMIN -p tcp --dport 7001 -j REJECT; " + more)
			list := walled(r, bridgeNet, "net", 1, `, "backend": "iptables"`)
			r.add(list, "a", "eth0")
			testkit.Serve(t, r.outside.NS, "tcp", at(testkit.Far4, 7000).String())
			testkit.Serve(t, r.outside.NS, "tcp", at(testkit.Far4, 7001).String())
			testkit.Reach(t, r.container("a"), "tcp", at(testkit.Far4, 7000))
			testkit.CantReach(t, r.container("a"), "tcp", at(testkit.Far4, 7001), 300*time.Millisecond)
			saved := r.on("iptables-nft-save")
			if n := strings.Count(saved, "-j CNI-ADMIN"); n != 1 || !strings.Contains(saved, "--mark 0x1000/0x1000") {
				t.Errorf("%d rules lead to CNI-ADMIN, want one:\n%s", n, saved)
			}
			r.on("iptables-nft-save | iptables-nft-restore") // it still reads its own table
			testkit.Reach(t, r.container("a"), "tcp", at(testkit.Far4, 7000))
			if err := r.runtime.CheckNetworkList(r.Context(), list, r.conf("a", "eth0")); err != nil {
				t.Errorf("CHECK after a restore: %v", err)
			}
		})
	}
}

// TestIngressPolicy: who reaches whom on two bridges, as the reference has it where it is to be had.
func TestIngressPolicy(t *testing.T) {
	for _, c := range []struct {
		one, two string
		// near: within the first bridge; there and back: between the bridges, new connections.
		near, there, back bool
		debian            bool // the reference of Debian 12 knows these values
	}{
		{"open", "open", true, true, true, true},
		{"same-bridge", "same-bridge", true, false, false, true},
		{"same-bridge", "open", true, true, true, true},
		{"isolated", "same-bridge", false, false, false, false},
		{"isolated", "open", false, true, true, false},
	} {
		for _, kind := range []string{"ours", "reference"} {
			t.Run(c.one+" "+c.two+" "+kind, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				if kind == "reference" {
					needPrograms(t, refDir+"/firewall", "iptables")
					if !c.debian {
						t.Skip("skip: needs a reference plugin of release 1.5 or newer for \"isolated\"")
					}
					// Its own firewall behind our interfaces.
					dir := t.TempDir()
					for _, name := range []string{"bridge", "host-local", "portmap"} {
						if err := os.Symlink(filepath.Join(r.bin, name), filepath.Join(dir, name)); err != nil {
							t.Fatal(err)
						}
					}
					if err := os.Symlink(refDir+"/firewall", filepath.Join(dir, "firewall")); err != nil {
						t.Fatal(err)
					}
					r.runtime = r.runtimeOf(dir)
				}
				r.bridgeFilter("1")
				one := walled(r, bridgeNet, "one", 1, `, "ingressPolicy": "`+c.one+`"`)
				two := walled(r, bridgeNet, "two", 2, `, "ingressPolicy": "`+c.two+`"`)
				before := r.state()
				r.add(one, "a", "eth0")
				near, far := r.add(one, "near", "eth0"), r.add(two, "far", "eth0")
				a := r.addrsOf("a")
				for _, id := range []string{"a", "near", "far"} {
					r.serve(id, 80)
				}
				for _, v4 := range []bool{true, false} {
					for _, p := range []struct {
						from string
						to   netip.Addr
						want bool
					}{{"a", near.of(v4), c.near}, {"a", far.of(v4), c.there}, {"far", a.of(v4), c.back}, {"near", a.of(v4), c.near}} {
						if p.want {
							testkit.Reach(t, r.container(p.from), "tcp", at(p.to, 80))
						} else {
							testkit.CantReach(t, r.container(p.from), "tcp", at(p.to, 80), 300*time.Millisecond)
						}
					}
					outside := testkit.Far6
					if v4 {
						outside = testkit.Far4
					}
					server := testkit.Serve(t, r.outside.NS, "tcp", at(outside, 0).String())
					testkit.Reach(t, r.container("a"), "tcp", at(outside, server.Port()))
					testkit.Reach(t, r.machine.NS, "tcp", at(a.of(v4), 80))
				}
				r.del(one, r.conf("a", "eth0"))
				r.del(one, r.conf("near", "eth0"))
				r.del(two, r.conf("far", "eth0"))
				r.same("after DEL", before)
			})
		}
	}
}

// addrsOf reads the addresses that a container has.
func (r *rig) addrsOf(id string) (a addrs) {
	r.Helper()
	out, err := r.container(id).Exec(r.Context(), "ip", "-o", "addr", "show", "dev", "eth0", "scope", "global")
	if err != nil {
		r.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if f := strings.Fields(line); len(f) > 3 {
			if p, err := netip.ParsePrefix(f[3]); err == nil && p.Addr().Is4() {
				a.v4 = p.Addr()
			} else if err == nil {
				a.v6 = p.Addr()
			}
		}
	}
	return a
}

// TestFirewallTakesOver: containers that the reference attached are checked and detached by us.
func TestFirewallTakesOver(t *testing.T) {
	t.Parallel()
	needPrograms(t, refDir+"/firewall", refDir+"/bridge", "iptables-nft-save", "ip6tables-nft-save")
	r := newRig(t)
	list := r.networkOf("net", "1.0.0", fmt.Sprintf(bridgeConf, 1), `{"type": "firewall", "backend": "iptables"}`)
	rules := func() string { return r.on("iptables-nft-save -t filter; ip6tables-nft-save -t filter") }
	ours := r.runtime
	r.runtime = r.runtimeOf(refDir)
	first := r.add(list, "a", "eth0")
	second := r.add(list, "b", "eth0")
	r.runtime = ours
	if err := r.runtime.CheckNetworkList(r.Context(), list, r.conf("a", "eth0")); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	r.del(list, r.conf("a", "eth0"))
	saved := rules()
	for _, gone := range []netip.Addr{first.v4, first.v6} {
		if strings.Contains(saved, gone.String()+"/") {
			t.Errorf("left of %s:\n%s", gone, saved)
		}
	}
	for _, stays := range []netip.Addr{second.v4, second.v6} {
		if strings.Count(saved, stays.String()+"/") != 2 {
			t.Errorf("lost of %s:\n%s", stays, saved)
		}
	}
	third := r.add(list, "c", "eth0")
	if third.v4 == second.v4 {
		t.Errorf("%s is given twice", third.v4)
	}
	r.del(list, r.conf("b", "eth0"))
	r.del(list, r.conf("c", "eth0"))
}

// firewalld runs a firewalld of its own on the machine, on a bus of its own.
func (r *rig) firewalld() (cli func(args string) string) {
	r.Helper()
	r.exec.bus, cli = testkit.Firewalld(r.T, r.machine.NS)
	return cli
}

// TestFirewalld: a real firewalld lets nobody out but sources of a trusted zone.
func TestFirewalld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cmd := r.firewalld()
	out := func(id string) netip.AddrPort {
		t.Helper()
		server := testkit.Serve(t, r.outside.NS, "tcp", at(testkit.Far4, 0).String())
		testkit.Serve(t, r.outside.NS, "tcp", at(testkit.Far6, server.Port()).String())
		for _, far := range []netip.Addr{testkit.Far4, testkit.Far6} {
			testkit.Reach(t, r.container(id), "tcp", at(far, server.Port()))
		}
		return server
	}
	bare := bridgeNet(r, "bare", 3)
	r.add(bare, "bare", "eth0")
	server := testkit.Serve(t, r.outside.NS, "tcp", at(testkit.Far4, 0).String())
	testkit.CantReach(t, r.container("bare"), "tcp", server, 300*time.Millisecond)

	list := walled(r, bridgeNet, "net", 1, "")
	inner := walled(r, bridgeNet, "two", 2, `, "backend": "firewalld", "firewalldZone": "internal"`)
	before := r.state()
	a, b := r.add(list, "a", "eth0"), r.add(list, "b", "eth0")
	c := r.add(inner, "c", "eth0")
	sources := func(zone string, want ...netip.Addr) {
		t.Helper()
		var text []string
		for _, w := range want {
			text = append(text, netip.PrefixFrom(w, w.BitLen()).String())
		}
		got := strings.Fields(cmd("--zone=" + zone + " --list-sources"))
		slices.Sort(got)
		slices.Sort(text)
		if !slices.Equal(got, text) {
			t.Errorf("zone %q has the sources %q, want %q", zone, got, text)
		}
	}
	check := func(id string) error { return r.runtime.CheckNetworkList(r.Context(), list, r.conf(id, "eth0")) }
	sources("trusted", a.v4, a.v6, b.v4, b.v6)
	sources("internal", c.v4, c.v6)
	out("a")
	out("b")
	if err := check("a"); err != nil {
		t.Errorf("CHECK: %v", err)
	}

	cmd("--reload") // it forgets them
	if err := check("a"); err == nil || !strings.Contains(err.Error(), "trusted") {
		t.Errorf("CHECK after a reload: %v", err)
	}
	d := r.add(list, "d", "eth0")
	sources("trusted", a.v4, a.v6, b.v4, b.v6, d.v4, d.v6)
	sources("internal", c.v4, c.v6)
	out("a")
	if err := check("a"); err != nil {
		t.Errorf("CHECK after the next ADD: %v", err)
	}
	if err := r.runtime.DelNetworkList(r.Context(), list, r.conf("a", "eth0")); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"b", "d"} {
		r.del(list, r.conf(id, "eth0"))
	}
	r.del(inner, r.conf("c", "eth0"))
	sources("trusted")
	sources("internal")
	r.same("after DEL", before)

	// With another backend, firewalld's own chain is opened.
	nft := walled(r, bridgeNet, "net", 1, `, "backend": "nftables"`)
	r.add(nft, "e", "eth0")
	sources("trusted")
	out("e")
	r.del(nft, r.conf("e", "eth0"))
}
