package fabric_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/hostgw"
	"github.com/seine-net/seine/internal/fabric/vxlan"
	"github.com/seine-net/seine/internal/fabric/wireguard"
	"github.com/seine-net/seine/internal/testkit"
)

// path is a way from one namespace to another on a host beside.
type path struct {
	name     string
	from, to *testkit.NS
	at       netip.Addr
}

// others gives what others make, on a lab of its own each: two hosts with a bridge and a container each, none of our rules,
// and connections that are tracked only where it is said.
func others(b *testing.B) []path {
	flannel := func(sh func(string, ...any), i, j int) {
		sh("ip link add flannel.1 address 02:00:00:00:aa:0%d type vxlan id 1 dstport 8472 nolearning local 192.0.2.%d dev eth0", i, i)
		sh("ip link set flannel.1 mtu 1400 up")
		sh("ip addr add 10.99.%d.0/32 dev flannel.1", i)
		sh("ip neigh add 10.99.%d.0 lladdr 02:00:00:00:aa:0%d dev flannel.1 nud permanent", j, j)
		sh("bridge fdb add 02:00:00:00:aa:0%d dev flannel.1 dst 192.0.2.%d", j, j)
		sh("ip route add 10.99.%d.0/24 via 10.99.%d.0 dev flannel.1 onlink", j, j)
	}
	// The rules that flannel makes: they have the kernel track connections.
	rules := func(sh func(string, ...any)) {
		sh("nft add table ip flannel")
		sh("nft add chain ip flannel forward { type filter hook forward priority 0 ; }")
		sh("nft add rule ip flannel forward ip saddr 10.99.0.0/16 accept")
		sh("nft add chain ip flannel postrouting { type nat hook postrouting priority 100 ; }")
		sh("nft add rule ip flannel postrouting ip saddr 10.99.0.0/16 ip daddr 10.99.0.0/16 return")
		sh("nft add rule ip flannel postrouting ip saddr 10.99.0.0/16 masquerade")
	}
	return []path{
		path{name: "by-hand-flannel-with-rules"}.made(b, func(sh func(string, ...any), i, j int) { flannel(sh, i, j); rules(sh) }),
		path{name: "by-hand-veth"}.made(b, nil),
		path{name: "by-hand-route"}.made(b, func(sh func(string, ...any), _, j int) { sh("ip route add 10.99.%d.0/24 via 192.0.2.%d", j, j) }),
		path{name: "by-hand-flannel"}.made(b, flannel),
		path{name: "by-hand-bridged-vxlan"}.made(b, func(sh func(string, ...any), i, j int) {
			sh("ip link add vx0 mtu 1400 master br0 type vxlan id 1 dstport 4789 local 192.0.2.%d dev eth0", i)
			sh("ip link set vx0 up")
			sh("bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.%d", j)
		}),
	}
}

// made connects two hosts by a function; nil for the hosts themselves.
func (p path) made(b *testing.B, connect func(sh func(string, ...any), i, j int)) path {
	r := &rig{TB: b, lab: testkit.NewLab(b, 2)}
	if connect == nil {
		p.from, p.to, p.at = r.lab.Hosts[0].NS, r.lab.Hosts[1].NS, r.lab.Hosts[1].V4
		return p
	}
	bits := 24
	if p.name == "by-hand-bridged-vxlan" {
		bits = 16
	}
	p.at = netip.MustParseAddr("10.99.2.2")
	for i, h := range r.lab.Hosts {
		i++
		sh := func(cmd string, args ...any) { r.run(h.NS, strings.Fields(fmt.Sprintf(cmd, args...))...) }
		c := testkit.Namespace(b, fmt.Sprintf("c%d", i))
		r.ok(h.Sysctl("net/ipv4/ip_forward", "1"))
		for _, s := range []string{"iptables", "ip6tables"} {
			_ = h.Sysctl("net/bridge/bridge-nf-call-"+s, "0")
		}
		sh("ip link add br0 mtu 1400 type bridge")
		sh("ip addr add 10.99.%d.1/%d dev br0", i, bits)
		sh("ip link set br0 up")
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0", MTU: 1400}, PeerName: "e0", PeerNamespace: netlink.NsFd(c.Fd()), PeerMTU: 1400}
		r.ok(h.Netlink().LinkAdd(veth))
		sh("ip link set v0 master br0 up")
		in := func(cmd string, args ...any) { r.run(c, strings.Fields(fmt.Sprintf(cmd, args...))...) }
		in("ip addr add 10.99.%d.2/%d dev e0", i, bits)
		in("ip link set e0 up")
		in("ip route add default via 10.99.%d.1", i)
		connect(sh, i, 3-i)
		if i == 1 {
			p.from = c
		} else {
			p.to = c
		}
	}
	return p
}

// BenchmarkTCP reads the throughput of TCP from container to container on two hosts: by each fabric, and by what others
// make. Each figure is the median of several runs in turn, in Gbit/s. It needs iperf3, which Debian has:
//
//	go test -run none -bench TCP -benchtime 9x ./test/fabric
func BenchmarkTCP(b *testing.B) {
	testkit.Need(b, "program:iperf3")
	var paths []path
	add := func(name string, n fabric.Network, by string) {
		r := newRig(b, underlay{name: "ipv4", v4: true}, n)
		one, two := r.hosts[0].attach(1, 2), r.hosts[1].attach(1, 2)
		r.meetAll(by)
		paths = append(paths, path{name, one.NS, two.NS, two.v4})
	}
	one := cluster(1)
	switched := one
	switched.Broadcast = true
	add("hostgw", one, hostgw.Name)
	add("vxlan", one, vxlan.Name)
	add("vxlan-broadcast", switched, vxlan.Name)
	if testkit.Lacks("wireguard") == nil {
		add("wireguard", one, wireguard.Name)
	}
	paths = append(paths, others(b)...)
	got := map[string][]float64{}
	for b.Loop() {
		for _, p := range paths {
			got[p.name] = append(got[p.name], p.tcp(b))
		}
	}
	for _, p := range paths {
		slices.Sort(got[p.name])
		n := len(got[p.name])
		b.ReportMetric(got[p.name][n/2], p.name)
		b.Logf("%-26s median %.2f, best %.2f Gbit/s", p.name, got[p.name][n/2], got[p.name][n-1])
	}
	b.ReportMetric(0, "ns/op")
}

// tcp measures one path for a second, in Gbit/s.
func (p path) tcp(b *testing.B) float64 {
	server := exec.CommandContext(b.Context(), "iperf3", "-s", "-1")
	if err := p.to.Start(server); err != nil {
		b.Fatal(err)
	}
	defer server.Wait()
	time.Sleep(150 * time.Millisecond)
	out, err := p.from.Exec(b.Context(), "iperf3", "-c", p.at.String(), "-t", "1", "-O", "0.3", "-J")
	if err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	var r struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		b.Fatal(err)
	}
	return r.End.Received.Rate / 1e9
}
