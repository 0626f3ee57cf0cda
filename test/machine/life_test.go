package machine_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

func TestKillChangesNothingAndTheNextStartAdopts(t *testing.T) {
	bothDrivers(t, func(r *rig) {
		b := r.attach("net", "b", api.Port{HostPort: 8080, ContainerPort: 80})
		r.serve("b", 80)
		r.attach("net", "a")
		r.attach("net", "doomed")
		doomed, _ := r.client.Endpoint(r.Context(), "net", "doomed")
		conn, err := r.container("a").Dial(r.Context(), "tcp", at(b.Addresses[0], 80).String())
		if err != nil {
			r.Fatal(err)
		}
		defer conn.Close()
		echo := func() {
			r.Helper()
			_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
			if _, err := conn.Write([]byte("still here\n")); err != nil {
				r.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 1000)); err != nil {
				r.Fatal(err)
			}
		}
		echo()
		r.kill(syscall.SIGKILL)
		echo()
		testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 8080))
		// Meanwhile: damage, a link that looks like ours and isn't wanted, and one of somebody else.
		for _, cmd := range []string{
			"ip link del " + doomed.Status.HostInterface,
			"nft flush chain inet seine forward",
			"nft flush map inet seine port4",
			"ip link add sn-stale type bridge", "ip link set sn-stale alias seine:network/stale",
			"ip link add mine type bridge", "ip link set mine alias nobody-elses-business",
		} {
			f := strings.Fields(cmd)
			if _, err := r.machine.Exec(r.Context(), f[0], f[1:]...); err != nil {
				r.Fatal(err)
			}
		}
		echo()
		r.start()
		echo()
		r.clean()
		testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 8080))
		testkit.Reach(r.T, r.container("doomed"), "tcp", at(b.Addresses[1], 80))
		links, _ := r.machine.Exec(r.Context(), "ip", "-br", "link")
		if strings.Contains(links, "sn-stale") || !strings.Contains(links, "mine") {
			r.Errorf("what is ours and unwanted has to go, what is not ours to stay:\n%s", links)
		}
	})
}

func TestDamageIsMendedWithinASecond(t *testing.T) {
	r := newRig(t, options{})
	r.network(api.Network{Name: "net"})
	r.network(api.Network{Name: "flat", Driver: "ptp"})
	b := r.attach("net", "b", api.Port{HostPort: 8080, ContainerPort: 80})
	r.serve("b", 80)
	r.attach("net", "a")
	f := r.attach("flat", "f")
	for _, cmd := range []string{
		"ip link del sn-net",
		"ip link set sn-net down",
		"ip addr flush dev sn-net",
		"ip link del " + b.Status.HostInterface,
		"ip link set " + b.Status.HostInterface + " nomaster",
		"nft delete table inet seine",
		"nft flush ruleset",
		"nft flush chain inet seine postrouting",
		"nft add rule inet seine forward drop",
		"nft flush map inet seine port4",
		"ip route del " + f.Addresses[0].String(),
		"ip link set " + f.Status.HostInterface + " down",
	} {
		args := strings.Fields(cmd)
		if _, err := r.machine.Exec(r.Context(), args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		r.eventually(3*time.Second, func() error {
			plan, err := r.client.Plan(r.Context(), "")
			if err == nil && len(plan.Changes) > 0 {
				err = fmt.Errorf("plan: %v", plan.Changes)
			}
			return err
		})
		t.Logf("%-50s mended after at most %s", cmd, time.Since(start).Round(time.Millisecond))
		testkit.Reach(t, r.outside.NS, "tcp", at(r.machine.V4, 8080))
		testkit.Reach(t, r.container("a"), "tcp", at(b.Addresses[1], 80))
	}
}

func TestResetLeavesTheMachineAsItWas(t *testing.T) {
	for _, filter := range []bool{false, true} {
		s := newRig(t, options{bridgeFilter: filter})
		// The state before the first start: reset once, then compare with a full life in between.
		if err := s.client.Reset(s.Context()); err != nil {
			t.Fatal(err)
		}
		s.calm()
		before := dump(t, s.machine.NS)
		if strings.Contains(before, "seine") {
			t.Fatalf("after a reset something of ours is there:\n%s", before)
		}
		s.network(api.Network{Name: "net"})
		s.network(api.Network{Name: "flat", Driver: "ptp"})
		s.attach("net", "a", api.Port{HostPort: 8080, ContainerPort: 80})
		s.attach("flat", "b", api.Port{Protocol: "udp", HostPort: 8080, ContainerPort: 80})
		forward, _ := s.machine.ReadSysctl("net/ipv4/ip_forward")
		if forward != "1" {
			t.Errorf("ip_forward is %s while there are networks", forward)
		}
		if err := s.client.Reset(s.Context()); err != nil {
			t.Fatal(err)
		}
		s.unchanged(before)
		if forward, _ = s.machine.ReadSysctl("net/ipv4/ip_forward"); forward != "0" {
			t.Errorf("ip_forward is %s after a reset, was 0", forward)
		}
		for _, c := range []string{"a", "b"} {
			if links, _ := s.container(c).Netlink().LinkList(); len(links) != 1 {
				t.Errorf("container %s has %d links after a reset, want only lo", c, len(links))
			}
		}
	}
}

// hostile are machines whose owner drops what he does not know.
var hostile = map[string][]string{
	"iptables": {"iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP", "iptables -P INPUT DROP", "ip6tables -P INPUT DROP",
		"iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "ip6tables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"ip6tables -A INPUT -p ipv6-icmp -i eth0 -j ACCEPT", "iptables -A INPUT -i lo -j ACCEPT", "ip6tables -A INPUT -i lo -j ACCEPT"},
	"nftables that rejects at the end": {"nft add table inet fw", "nft add chain inet fw passing { type filter hook forward priority 10 ; }",
		"nft add rule inet fw passing ct state established,related accept", "nft add rule inet fw passing reject with icmpx admin-prohibited"},
	"firewalld": {},
}

func TestMachineThatDropsForwardedPackets(t *testing.T) {
	for name, cmds := range hostile {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late=%v", name, late), func(t *testing.T) {
				if strings.HasPrefix(name, "iptables") {
					testkit.Need(t, "program:iptables")
				}
				r := newRig(t, options{bridgeFilter: true})
				apply := func() {
					if name == "firewalld" {
						testkit.Firewalld(t, r.machine.NS)
					}
					for _, cmd := range cmds {
						f := strings.Fields(cmd)
						if out, err := r.machine.Exec(r.Context(), f[0], f[1:]...); err != nil {
							t.Fatal(out, err)
						}
					}
				}
				if !late {
					apply()
				}
				r.network(api.Network{Name: "net"})
				b := r.attach("net", "b", api.Port{HostPort: 8080, ContainerPort: 80})
				a := r.attach("net", "a")
				r.serve("b", 80)
				if late {
					apply()
				}
				far := testkit.Serve(t, r.outside.NS, "tcp", "[::]:0")
				r.eventually(3*time.Second, func() error {
					for _, to := range []string{at(testkit.Far4, far.Port()).String(), at(testkit.Far6, far.Port()).String(), at(b.Addresses[0], 80).String(),
						at(b.Addresses[1], 80).String(), at(a.Status.DNS[0], 53).String()} {
						c, err := r.container("a").Dial(r.Context(), "tcp", to)
						if err != nil {
							return err
						}
						c.Close()
					}
					return nil
				})
				testkit.Reach(t, r.outside.NS, "tcp", at(r.machine.V4, 8080))
				testkit.Reach(t, r.outside.NS, "tcp", at(r.machine.V6, 8080))
				found, err := r.client.Doctor(r.Context())
				if err != nil || !strings.Contains(fmt.Sprint(found), "forward-chain") {
					t.Errorf("doctor says %v, %v", found, err)
				}
				if name == "iptables" {
					if out, err := r.machine.Exec(r.Context(), "iptables-save"); err != nil || strings.Contains(out, "incompatible") {
						t.Errorf("iptables-save does not understand the table any more: %v\n%s", err, out)
					}
				}
				if err := r.client.Reset(r.Context()); err != nil {
					t.Fatal(err)
				}
				if rules, _ := r.machine.Exec(r.Context(), "nft", "list", "ruleset"); strings.Contains(rules, "sn-") {
					t.Errorf("after a reset a rule of ours is left:\n%s", rules)
				}
			})
		}
	}
}

func TestOnlyOneDaemon(t *testing.T) {
	r := newRig(t, options{})
	dir, _ := bin()
	out, err := r.machine.Exec(r.Context(), dir+"/seined", "--quiet", "--state", r.dir+"/other.db", "--socket", r.dir+"/s")
	if err == nil || !strings.Contains(out, "another daemon") {
		t.Errorf("a second daemon on one socket: %v\n%s", err, out)
	}
	out, err = r.machine.Exec(r.Context(), dir+"/seined", "--quiet", "--state", r.dir+"/state.db", "--socket", r.dir+"/s2")
	if err == nil || !strings.Contains(out, "another daemon") {
		t.Errorf("a second daemon on one state file: %v\n%s", err, out)
	}
	if _, err := r.client.Node(r.Context()); err != nil {
		t.Errorf("the first daemon does not answer any more: %v", err)
	}
}

func TestVanishedNamespaceIsNoReasonToFail(t *testing.T) {
	r := newRig(t, options{})
	r.network(api.Network{Name: "net"})
	ns := testkit.Namespace(t, "gone")
	ep, err := r.client.PutEndpoint(r.Context(), api.Endpoint{Network: "net", Name: "gone", Sandbox: api.Sandbox{Netns: ns.Path()}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	r.eventually(5*time.Second, func() error {
		if out, _ := r.machine.Exec(r.Context(), "ip", "link", "show", ep.Status.HostInterface); !strings.Contains(out, "does not exist") {
			return errors.New("the link is still there")
		}
		return nil
	})
	if err := r.client.DeleteEndpoint(r.Context(), "net", "gone", 0); err != nil {
		t.Errorf("detach from a namespace that is gone: %v", err)
	}
	r.clean()
}

// TestReplacedNamespace: a namespace that was made under the path of one that is gone gets nothing that it did not ask for.
func TestReplacedNamespace(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon down=%v", down), func(t *testing.T) {
			r := newRig(t, options{})
			r.network(api.Network{Name: "net"})
			path := r.dir + "/web"
			name := func(ns *testkit.NS) {
				_ = os.Remove(path)
				if err := os.Symlink(ns.Path(), path); err != nil {
					t.Fatal(err)
				}
			}
			old := testkit.Namespace(t, "old")
			name(old)
			web := api.Endpoint{Network: "net", Name: "web", Sandbox: api.Sandbox{Netns: path}, Ports: []api.Port{{HostPort: 8080, ContainerPort: 80}}}
			if _, err := r.client.PutEndpoint(r.Context(), web, 0); err != nil {
				t.Fatal(err)
			}
			if down {
				r.kill(syscall.SIGKILL)
			}
			other := testkit.Namespace(t, "other")
			name(other)
			old.Close()
			if down {
				r.start()
			}
			r.eventually(5*time.Second, func() error {
				if _, err := r.client.Endpoint(r.Context(), "net", "web"); api.CodeOf(err) != api.NotFound {
					return fmt.Errorf("the endpoint is still there (%v)", err)
				}
				return nil
			})
			r.eventually(5*time.Second, func() error { // the daemon may have been about to mend what was gone
				if links, _ := other.Netlink().LinkList(); len(links) != 1 {
					return fmt.Errorf("the other namespace has %d links, want lo alone", len(links))
				}
				return nil
			})
			if _, err := r.client.PutEndpoint(r.Context(), web, 0); err != nil {
				t.Errorf("attach of the other namespace: %v", err)
			}
			r.detach("net", "web")
			r.clean()
		})
	}
}
