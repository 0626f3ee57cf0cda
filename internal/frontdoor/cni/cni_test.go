package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
)

const netns = "/run/netns/c"

// node is a machine without a kernel of its own.
type node struct {
	testing.TB
	kernel *fake.Kernel
	data   string
	// firewalld is nil where it does not run.
	firewalld Firewalld
}

func newNode(t testing.TB) *node {
	n := &node{TB: t, kernel: fake.New(), data: t.TempDir()}
	n.kernel.AddNamespace(netns)
	n.kernel.AddForeign(&kernel.Link{Name: "up0", Type: kernel.Bridge, MTU: 1500, MAC: "02:00:00:00:00:aa"}) // what interfaces are made on
	n.kernel.AddForeign(&kernel.LinkUp{Link: "up0"})
	return n
}

// call runs a plugin; in the configuration DATA stands for host-local's directory.
func (n *node) call(plugin, verb, conf string, env ...string) (string, int) {
	n.Helper()
	vars := map[string]string{"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_PATH": n.data}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		vars[k] = v
	}
	var out, stderr bytes.Buffer
	next := byte(0)
	h := &Host{
		Args: []string{"/opt/cni/bin/" + plugin}, Stdout: &out, Stderr: &stderr,
		Stdin:   strings.NewReader(strings.ReplaceAll(conf, "DATA", n.data)),
		Getenv:  func(k string) string { return vars[k] },
		Environ: func() []string { return nil },
		Kernel:  func() kernel.Kernel { return n.kernel },
		Netns: func(path string) (netnsKind, error) {
			if path == netns || path == "/run/netns/other" {
				return netnsOther, nil
			}
			return netnsGone, fmt.Errorf("there is no such file")
		},
		Namespaces: func() []string { return []string{netns, "/run/netns/other", "/run/netns/gone"} },
		Lock:       func(bool) (func(), error) { return func() {}, nil },
		LockNetns:  func(string) (func(), error) { return func() {}, nil },
		Allowlist:  filepath.Join(n.data, "allowlist.conf"),
		Daemon:     filepath.Join(n.data, "seine.sock"),
		Random:     func(b []byte) { next++; b[len(b)-1] = next },
		IPv6:       func() bool { return true },
		SELinux:    func() bool { return false },
		Sysfs:      n.data + "/sys",
		Firewalld:  func(context.Context) (Firewalld, error) { return n.firewalld, nil },
	}
	code := Main(n.Context(), h)
	return out.String(), code
}

// with gives a configuration with some keys set.
func with(conf, key string, value any) string {
	var c map[string]any
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		panic(err)
	}
	c = maps.Clone(c)
	c[key] = value
	b, _ := json.Marshal(c)
	return string(b)
}

const (
	dualIPAM = `{"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]}`
	bridge1  = `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br1", "isDefaultGateway": true, "ipMasq": true, "ipam": ` + dualIPAM + `}`
	ptp1     = `{"cniVersion": "1.1.0", "name": "net", "type": "ptp", "ipMasq": true, "ipam": ` + dualIPAM + `}`
	portmap1 = `{"cniVersion": "1.1.0", "name": "net", "type": "portmap", "runtimeConfig": {"portMappings": [
		{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"HostPort": 53, "ContainerPort": 53, "Protocol": "UDP", "HostIP": "192.0.2.1"}]},
		"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "br1"}, {"name": "eth0", "sandbox": "/run/netns/c"}],
		"ips": [{"address": "10.1.0.2/24", "interface": 1}, {"address": "fd00:1::2/64", "interface": 1}]}}`
)

// bandwidth1 is as CRI-O writes it: a burst as large as can be, and no limit for what the container sends; bandwidth2 has
// limits of both directions, in containerd's words.
const (
	bandwidth1 = `{"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "runtimeConfig": {"bandwidth": {
		"ingressRate": 1000000, "ingressBurst": 34359738359, "egressRate": 0, "egressBurst": 0}}, ` + bandwidthPrev + `}`
	bandwidth2 = `{"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "runtimeConfig": {"bandwidth": {
		"IngressRate": 1000000, "IngressBurst": 4294967295, "EgressRate": 2000000, "EgressBurst": 80000}}, ` + bandwidthPrev + `}`
	bandwidthPrev = `"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "br1"}, {"name": "calif00"}, {"name": "eth0", "sandbox": "/run/netns/c"}],
		"ips": [{"address": "10.1.0.2/24", "interface": 2}]}`
)

// limited gives a node a container with a veth that somebody else's plugin made.
func limited(n *node) *node {
	n.kernel.AddForeign(&kernel.Link{Name: "br1", Type: kernel.Bridge})
	n.kernel.AddForeign(&kernel.Link{Name: "calif00", Type: kernel.Veth, MTU: 1400, Peer: &kernel.Peer{NS: netns, Name: "eth0"}})
	return n
}

func TestBandwidthPlan(t *testing.T) {
	ifb := ident{"net", "c", "eth0"}.ifb()
	for _, c := range []struct {
		what, conf string
		want       []string
	}{
		{"CRI-O's", bandwidth1, []string{"qdisc dev calif00 root tbf rate 1000000bit burst 4294967294 limit 4294967295"}},
		{"containerd's", bandwidth2, []string{"qdisc dev calif00 root tbf rate 1000000bit burst 536870911 limit 536874036",
			"link " + ifb + " type ifb mtu 1400", "link " + ifb + " up", "qdisc dev " + ifb + " root tbf rate 2000000bit burst 10000 limit 16250",
			"qdisc dev calif00  ingress", "filter dev calif00 ingress redirect dev " + ifb}},
		{"the configuration wins", strings.Replace(bandwidth2, `"type"`, `"egressRate": 8000, "EGRESSBURST": 8000, "type"`, 1),
			[]string{"link " + ifb + " type ifb mtu 1400", "link " + ifb + " up", "qdisc dev " + ifb + " root tbf rate 8000bit burst 1000 limit 1025",
				"qdisc dev calif00  ingress", "filter dev calif00 ingress redirect dev " + ifb}},
		{"none in the configuration wins too", strings.Replace(bandwidth2, `"type"`, `"egressRate": 0, "type"`, 1), nil},
	} {
		n := limited(newNode(t))
		before := n.kernel.Dump()
		out, code := n.call("bandwidth", "ADD", c.conf)
		if code != 0 {
			t.Fatalf("%s: %s", c.what, out)
		}
		var got []string
		for _, line := range strings.Split(n.kernel.Dump(), "\n") {
			if !strings.Contains(before, line) {
				line, _, _ = strings.Cut(strings.TrimPrefix(line, "other's "), " address")
				line, _, _ = strings.Cut(line, " alias")
				got = append(got, line)
			}
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: made\n%s\nwant\n%s", c.what, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
		if strings.Contains(out, ifb) != strings.Contains(strings.Join(c.want, " "), ifb) {
			t.Errorf("%s: the result is %s", c.what, out)
		}
	}
}

// The ports of a veth of ours go with it: the DEL of portmap leaves them to the one that follows, which needs to know
// nothing about ports. Without prevResult they go at once.
func TestPortsGoWithTheLink(t *testing.T) {
	for plugin, conf := range map[string]string{"bridge": bridge1, "ptp": ptp1, "bridge without ipMasq": with(bridge1, "ipMasq", false)} {
		for _, prev := range []bool{true, false} {
			n := newNode(t)
			call := func(plugin, verb, conf string) string {
				plugin, _, _ = strings.Cut(plugin, " ")
				out, code := n.call(plugin, verb, conf)
				if code != 0 {
					t.Fatalf("%s %s: %s", plugin, verb, out)
				}
				return out
			}
			res := json.RawMessage(call(plugin, "ADD", conf))
			ports := with(with(portmap1, "prevResult", res), "conditionsV4", []string{"-s", "192.0.2.0/24"})
			call("portmap", "ADD", ports)
			// Another attachment, whose ports stay.
			other := strings.NewReplacer("10.1.0.2", "10.1.0.77", "fd00:1::2", "fd00:1::77", "8080", "8088", `"hostPort": 53`, `"hostPort": 54`, `"HostPort": 53`, `"HostPort": 54`).Replace(portmap1)
			if plugin != "ptp" {
				if out, code := n.call("portmap", "ADD", other, "CNI_CONTAINERID=d"); code != 0 {
					t.Fatal(out)
				}
			}
			if !prev {
				ports, conf = with(ports, "prevResult", nil), with(conf, "prevResult", nil)
			} else {
				conf = with(conf, "prevResult", res)
			}
			call("portmap", "DEL", ports)
			if got := strings.Contains(n.kernel.Dump(), "tcp . 8080"); got != prev {
				t.Errorf("%s: after the DEL of portmap with prevResult=%v the port is there=%v", plugin, prev, got)
			}
			call(plugin, "DEL", conf)
			for _, line := range strings.Split(n.kernel.Dump(), "\n") {
				if strings.Contains(line, "10.1.0.2 ") || strings.Contains(line, "fd00:1::2 ") || strings.Contains(line, "8080") || strings.Contains(line, "type veth") {
					t.Errorf("%s: left is %s", plugin, line)
				}
			}
			if got := strings.Contains(n.kernel.Dump(), "tcp . 8088"); got != (plugin != "ptp") {
				t.Errorf("%s: the other's port is there=%v", plugin, got)
			}
		}
	}
}

// A runtime asks for the same ports on each network of a container. Two containers can't have them.
func TestPortsOnTwoNetworks(t *testing.T) {
	n := newNode(t)
	n.kernel.AddForeign(&kernel.Link{Name: "br1", Type: kernel.Bridge})
	n.kernel.AddForeign(&kernel.LinkUp{Link: "br1"})
	const id, ifname = "CNI_CONTAINERID=889e8025ca5f3be9df494893d0a14360b6371f1a395145f02b60316c43ef165e", "CNI_IFNAME=eth1"
	// On the second network there is one port more. Its name leaves no room in a mark for all of the container's.
	long := strings.Repeat("n", 60)
	first := strings.Replace(portmap1, `"net"`, `"`+long+`"`, 1)
	two := strings.NewReplacer("eth0", "eth1", "10.1.0.", "10.2.0.", "fd00:1:", "fd00:2:", `"portMappings": [`,
		`"portMappings": [{"hostPort": 9090, "containerPort": 90, "protocol": "tcp"}, `).Replace(portmap1)
	n.ok("portmap", "ADD", first, id)
	before := n.kernel.Dump()
	n.ok("portmap", "ADD", two, id, ifname)
	n.ok("portmap", "CHECK", first, id)
	n.ok("portmap", "CHECK", two, id, ifname)
	n.holds(true, "tcp . 8080 : 10.1.0.2 . 80", "udp . 192.0.2.1 . 53 : 10.1.0.2 . 53", "tcp . 9090 : 10.2.0.2 . 90")
	n.holds(false, "10.2.0.2 . 80")
	for _, other := range []string{"CNI_CONTAINERID=c", "CNI_CONTAINERID=889e8025ca5f3be9000000000000000000000000000000000000000000000000"} {
		if out, code := n.call("portmap", "ADD", strings.Replace(two, "10.2.0.2", "10.2.0.3", 1), other, ifname); code == 0 || !strings.Contains(out, "8080") && !strings.Contains(out, "9090") {
			t.Errorf("ADD of the ports of another container ends with %d: %s", code, out)
		}
	}
	n.ok("portmap", "DEL", two, id, ifname)
	if dump := n.kernel.Dump(); !slices.Equal(attached(dump), attached(before)) {
		t.Errorf("after the DEL of the second:\n%s\nbefore:\n%s", dump, before)
	}
	n.ok("portmap", "ADD", two, id, ifname)
	n.ok("portmap", "DEL", first, id)
	n.holds(false, "8080", "10.1.0.2")
	n.holds(true, "tcp . 9090 : 10.2.0.2 . 90")
	n.ok("portmap", "DEL", with(two, "prevResult", nil), id, ifname)
	if left := attached(n.kernel.Dump()); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// attached gives the lines of a kernel's text that are a container's.
func attached(dump string) []string {
	return slices.DeleteFunc(strings.Split(dump, "\n"), func(line string) bool { return !strings.Contains(line, markPrefix) })
}

// The names that the reference plugins give chains and links, read off machines where they ran.
func TestReferenceNames(t *testing.T) {
	if got := (ident{"net", "one", "eth0"}).referenceChain("CNI-DN-"); got != "CNI-DN-872ac0255154bbcb7094c" {
		t.Errorf("got %s", got)
	}
}

// What the reference plugins left goes with the DEL of its attachment, and only that; CHECK takes it for what it is.
func TestReferenceRules(t *testing.T) {
	n := newNode(t)
	before := n.kernel.Dump()
	id, other := ident{"net", "c", "eth0"}, ident{"net", "d", "eth0"}
	top := map[string][]string{}
	for _, i := range []ident{id, other} {
		n.kernel.AddForeignTarget("ip", "nat", i.referenceChain("CNI-DN-"), "tcp dport 8080 dnat to 10.1.0.2:80")
		n.kernel.AddForeignTarget("ip", "nat", i.referenceChain("CNI-"), "ip daddr 10.1.0.0/24 accept")
		top["CNI-HOSTPORT-DNAT"] = append(top["CNI-HOSTPORT-DNAT"], "jump "+i.referenceChain("CNI-DN-"))
		top["POSTROUTING"] = append(top["POSTROUTING"], "ip saddr 10.1.0.2 jump "+i.referenceChain("CNI-"))
		top["hostports"] = append(top["hostports"], "tcp dport 80 dnat to 10.1.0.2:80 comment "+i.containerID, "tcp dport 80 dnat to 10.7.0.2:80 comment "+i.containerID)
	}
	n.kernel.AddForeignTarget("ip", "nat", "CNI-HOSTPORT-DNAT", top["CNI-HOSTPORT-DNAT"]...)
	n.kernel.AddForeignTarget("ip", "nat", "POSTROUTING", top["POSTROUTING"]...)
	n.kernel.AddForeignTarget("ip", "cni_hostport", "hostports", top["hostports"]...)
	if out, code := n.call("portmap", "CHECK", portmap1); code != 0 {
		t.Errorf("CHECK: %s", out)
	}
	prev := `"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c"}], "ips": [{"address": "10.1.0.2/24", "interface": 0}]}, `
	for plugin, conf := range map[string]string{"portmap": portmap1, "ptp": `{` + prev + ptp1[1:]} {
		for _, what := range []string{"DEL", "DEL again"} {
			if out, code := n.call(plugin, "DEL", conf); code != 0 {
				t.Errorf("%s of %s: %s", what, plugin, out)
			}
		}
	}
	want := []string{
		"chain ip cni_hostport hostports { tcp dport 80 dnat to 10.7.0.2:80 comment c; tcp dport 80 dnat to 10.1.0.2:80 comment d; tcp dport 80 dnat to 10.7.0.2:80 comment d }",
		"chain ip nat " + other.referenceChain("CNI-") + " { ip daddr 10.1.0.0/24 accept }",
		"chain ip nat " + other.referenceChain("CNI-DN-") + " { tcp dport 8080 dnat to 10.1.0.2:80 }",
		"chain ip nat CNI-HOSTPORT-DNAT { jump " + other.referenceChain("CNI-DN-") + " }",
		"chain ip nat POSTROUTING { ip saddr 10.1.0.2 jump " + other.referenceChain("CNI-") + " }",
	}
	var got []string
	for _, line := range strings.Split(n.kernel.Dump(), "\n") {
		if !strings.Contains(before, line) {
			got = append(got, strings.TrimPrefix(line, "other's "))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("left is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestReferenceIfb(t *testing.T) {
	if got := (ident{"bw", "id-c1", "eth0"}).referenceIfb(); got != "bwp6c26ef9234cb" {
		t.Errorf("got %s", got)
	}
	n := limited(newNode(t))
	n.kernel.AddForeign(&kernel.Link{Name: ident{"net", "c", "eth0"}.referenceIfb(), Type: kernel.IFB})
	before := n.kernel.Dump()
	// Another attachment of the container, by its prevResult.
	if out, code := n.call("bandwidth", "DEL", bandwidth2, "CNI_IFNAME=eth1"); code != 0 || n.kernel.Dump() != before {
		t.Errorf("DEL of another attachment: %s, leaves\n%s", out, n.kernel.Dump())
	}
	theirs := strings.Replace(bandwidth2, `{"name": "calif00"}`, `{"name": "calif00"}, {"name": "`+ident{"net", "c", "eth0"}.referenceIfb()+`"}`, 1)
	if out, code := n.call("bandwidth", "DEL", theirs); code != 0 || strings.Contains(n.kernel.Dump(), "type ifb") {
		t.Errorf("DEL of what the reference plugin made: %s, leaves\n%s", out, n.kernel.Dump())
	}
}

// What one plugin makes, the other's tests see in test/cni; here it is that DEL takes it back, and what has to be there.
func TestAddAndDel(t *testing.T) {
	for plugin, c := range map[string]struct {
		conf string
		want []string
	}{
		"bridge":    {bridge1, []string{"br1", "10.1.0.1/24", "fd00:1::1/64", "10.1.0.2/24", "fd00:1::2/64", "masq4", "masq6"}},
		"ptp":       {ptp1, []string{"10.1.0.1/32", "fd00:1::1/128", "10.1.0.2/24", "fd00:1::2/64", "masq4", "masq6"}},
		"portmap":   {portmap1, []string{"port4", "port6", "host4", "tcp . 8080", "udp . 192.0.2.1 . 53"}},
		"firewall":  {firewall1, []string{"pass4", "pass6", "isolated { br1 . br1 }"}},
		"bandwidth": {bandwidth2, []string{"type ifb", "redirect", "tbf rate 2000000bit"}},
		"macvlan":   {macvlan1, []string{"link eth0 type macvlan", "mode private", "bcqueuelen 7", "link up0 of the machine", "10.1.0.2/24", "fd00:1::2/64", "arp_notify", "ndisc_notify", "route default via 10.1.0.1"}},
		"ipvlan":    {ipvlan1, []string{"link eth0 type ipvlan", "mode l3", "link up0 of the machine", "10.1.0.2/24", "fd00:1::2/64"}},
		"vlan":      {vlan1, []string{"link eth0 type vlan", "id 7", "link up0 of the machine", "10.1.0.2/24", "fd00:1::2/64"}},
		"dummy":     {dummy1, []string{"link eth0 type dummy", "10.1.0.2/24", "fd00:1::2/64"}},
		"loopback":  {`{"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}`, []string{"lo"}},
	} {
		t.Run(plugin, func(t *testing.T) {
			n := newNode(t)
			if plugin == "portmap" {
				n.kernel.AddForeign(&kernel.Link{Name: "br1", Type: kernel.Bridge})
				n.kernel.AddForeign(&kernel.LinkUp{Link: "br1"})
			}
			if plugin == "bandwidth" {
				limited(n)
			}
			before := n.kernel.Dump()
			out, code := n.call(plugin, "ADD", c.conf)
			if code != 0 {
				t.Fatalf("ADD: %s", out)
			}
			dump := n.kernel.Dump()
			for _, w := range c.want {
				if !strings.Contains(dump, w) {
					t.Errorf("after ADD the kernel does not hold %q:\n%s", w, dump)
				}
			}
			if out, code := n.call(plugin, "DEL", c.conf); code != 0 || out != "" {
				t.Errorf("DEL: %d %s", code, out)
			}
			for _, line := range strings.Split(n.kernel.Dump(), "\n") {
				if !strings.Contains(before, line) && (strings.Contains(line, markPrefix) || strings.Contains(line, netns)) {
					t.Errorf("DEL leaves %s", line)
				}
			}
		})
	}
}

func TestResultOfEachVersion(t *testing.T) {
	for _, version := range versions {
		n := newNode(t)
		out, code := n.call("bridge", "ADD", with(bridge1, "cniVersion", version))
		if code != 0 {
			t.Fatalf("%s: %s", version, out)
		}
		old := version == "0.1.0" || version == "0.2.0"
		for text, want := range map[string]bool{
			fmt.Sprintf("%q: %q", "cniVersion", version): true,
			`"ip4"`:          old,
			`"ip6"`:          old,
			`"interfaces"`:   !old,
			`"ips"`:          !old,
			`"version": "6"`: version[0] == '0' && !old,
			`"dns": {}`:      version[0] == '0',
		} {
			if strings.Contains(out, text) != want {
				t.Errorf("%s: %s in the result is %v, want %v:\n%s", version, text, !want, want, out)
			}
		}
		res, err := decodeResult([]byte(out), version)
		if err != nil || len(res.IPs) != 2 || len(res.Routes) != 2 {
			t.Errorf("%s: read back %+v (%v)", version, res, err)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		plugin, verb, conf string
		env                string
		code               Code
		names              []string
	}{
		{"bridge", "ADD", `{`, "", CodeDecode, nil},
		{"bridge", "ADD", `{"cniVersion": "9.0.0", "name": "net"}`, "", CodeVersion, []string{"9.0.0", "1.1.0"}},
		{"bridge", "ADD", `{"cniVersion": "1.1.0"}`, "", CodeConfig, []string{"missing network name"}},
		{"bridge", "ADD", bridge1, "CNI_NETNS=", CodeEnvironment, []string{"required env variables [CNI_NETNS] missing"}},
		{"bridge", "ADD", bridge1, "CNI_NETNS=/gone", CodeNetns, []string{"/gone"}},
		{"bridge", "ADD", bridge1, "CNI_IFNAME=a/b", CodeEnvironment, []string{"CNI_IFNAME", "a/b"}},
		{"bridge", "ADD", bridge1, "CNI_ARGS=COLOUR=red", CodeEnvironment, []string{"CNI_ARGS", "COLOUR"}},
		{"bridge", "ADD", bridge1, "CNI_ARGS=MAC=01:00:00:00:00:00", CodeConfig, []string{"mac", "group"}},
		{"bridge", "ADD", bridge1, "CNI_ARGS=IP=10.9.0.1", CodeConfig, []string{"CNI_ARGS IP", "10.9.0.1", "10.1.0.1-10.1.0.254"}},
		{"bridge", "NOVERB", bridge1, "", CodeEnvironment, []string{"unknown CNI_COMMAND: NOVERB"}},
		{"bridge", "GC", with(bridge1, "cniVersion", "1.0.0"), "", CodeVersion, []string{"GC", "1.1.0"}},
		{"bridge", "GC", bridge1, "", CodeConfig, []string{"cni.dev/valid-attachments"}},
		{"bridge", "CHECK", bridge1, "", CodeConfig, []string{"prevResult"}},
		{"bridge", "ADD", with(bridge1, "mtu", 5), "", CodeConfig, []string{"mtu", "5", "68 to 65535"}},
		{"bridge", "ADD", with(bridge1, "mtu", "big"), "", CodeDecode, []string{"mtu", "number"}},
		{"bridge", "ADD", with(bridge1, "vlan", 5000), "", CodeConfig, []string{"vlan", "5000", "4094"}},
		{"bridge", "ADD", with(bridge1, "bridge", "lo"), "", CodeConfig, []string{"bridge", "lo"}},
		{"bridge", "ADD", `{"name": "net"}`, "", CodeConfig, []string{"0.1.0", "0.3.0"}},
		{"macvlan", "ADD", with(macvlan1, "master", "up9"), "", CodeConfig, []string{"master", "up9", "machine"}},
		{"macvlan", "ADD", with(macvlan1, "linkInContainer", true), "", CodeConfig, []string{"master", "up0", "container"}},
		{"macvlan", "ADD", with(macvlan1, "master", "a/b"), "", CodeConfig, []string{"master", "a/b"}},
		{"macvlan", "ADD", with(macvlan1, "master", nil), "", CodeConfig, []string{"master", "default route"}},
		{"macvlan", "ADD", with(macvlan1, "mtu", 1600), "", CodeConfig, []string{"mtu", "1600", "at most 1500", "up0"}},
		{"macvlan", "ADD", with(macvlan1, "mode", "tap"), "", CodeConfig, []string{"mode", "tap", "passthru"}},
		{"macvlan", "ADD", with(with(macvlan1, "mode", "passthru"), "mac", "02:00:00:00:00:05"), "", CodeConfig, []string{"mac", "passthru"}},
		{"macvlan", "ADD", with(macvlan1, "mac", "02:00"), "", CodeConfig, []string{"mac", "02:00"}},
		{"macvlan", "ADD", with(macvlan1, "bcqueuelen", -1), "", CodeDecode, []string{"bcqueuelen"}},
		{"macvlan", "ADD", macvlan1, "CNI_ARGS=MAC=01:00:00:00:00:00", CodeConfig, []string{"mac", "group"}},
		{"macvlan", "ADD", macvlan1, "CNI_ARGS=COLOUR=red", CodeEnvironment, []string{"CNI_ARGS", "COLOUR"}},
		{"macvlan", "ADD", macvlan1, "CNI_IFNAME=lo", CodeInternal, []string{"CNI_IFNAME", "lo", "already"}},
		{"macvlan", "CHECK", macvlan1, "", CodeConfig, []string{"prevResult"}},
		{"tap", "ADD", with(tap1, "mtu", 67), "", CodeConfig, []string{"mtu", "67"}},
		{"tap", "ADD", with(tap1, "mac", "02"), "", CodeConfig, []string{"mac", "02"}},
		{"tap", "ADD", with(tap1, "owner", "root"), "", CodeDecode, []string{"owner", "number"}},
		{"tap", "ADD", with(tap1, "group", -1), "", CodeDecode, []string{"group", "number"}},
		{"tap", "ADD", with(tap1, "owner", 1<<32-1), "", CodeConfig, []string{"owner", "4294967295"}},
		{"tap", "ADD", with(tap1, "bridge", "br0"), "", CodeConfig, []string{"bridge", "br0", "container"}},
		{"tap", "ADD", with(tap1, "bridge", "lo"), "", CodeConfig, []string{"bridge", "lo", "loopback"}},
		{"tap", "ADD", with(tap1, "bridge", "a b"), "", CodeConfig, []string{"bridge", "a b"}},
		{"tap", "ADD", with(tap1, "selinuxContext", "a:b:c:s0"), "", CodeUnsupported, []string{"selinuxContext", "a:b:c:s0", "SELinux"}},
		{"tap", "STATUS", with(tap1, "selinuxContext", "a:b:c:s0"), "", CodeUnavailable, []string{"selinuxContext"}},
		{"tap", "CHECK", tap1, "", CodeConfig, []string{"prevResult"}},
		{"tap", "ADD", tap1, "CNI_ARGS=COLOUR=red", CodeEnvironment, []string{"CNI_ARGS", "COLOUR"}},
		{"host-device", "ADD", device1, "", CodeConfig, []string{"device", "eth3", "machine"}},
		{"host-device", "ADD", with(device1, "device", "lo"), "", CodeConfig, []string{"device", "lo", "loopback"}},
		{"host-device", "ADD", with(device1, "device", "a/b"), "", CodeConfig, []string{"device", "a/b"}},
		{"host-device", "ADD", with(device1, "device", nil), "", CodeConfig, []string{"device", "hwaddr", "kernelpath", "pciBusID", "deviceID"}},
		{"host-device", "ADD", `{"cniVersion": "1.1.0", "name": "net", "hwaddr": "eth3"}`, "", CodeConfig, []string{"hwaddr", "eth3"}},
		{"host-device", "ADD", `{"cniVersion": "1.1.0", "name": "net", "hwaddr": "02:00:00:00:00:33"}`, "", CodeConfig, []string{"hwaddr", "02:00:00:00:00:33"}},
		{"host-device", "ADD", `{"cniVersion": "1.1.0", "name": "net", "kernelpath": "/etc"}`, "", CodeConfig, []string{"kernelpath", "/etc", "/sys/devices/"}},
		{"host-device", "ADD", `{"cniVersion": "1.1.0", "name": "net", "kernelpath": "/sys/devices/../../etc"}`, "", CodeConfig, []string{"kernelpath", "/sys/devices/"}},
		{"host-device", "ADD", `{"cniVersion": "1.1.0", "name": "net", "kernelpath": "/sys/devices/nope"}`, "", CodeConfig, []string{"kernelpath", "nope"}},
		{"host-device", "ADD", `{"cniVersion": "1.1.0", "name": "net", "pciBusID": "0000:00:00.9"}`, "", CodeConfig, []string{"pciBusID", "0000:00:00.9"}},
		{"host-device", "ADD", `{"cniVersion": "1.1.0", "name": "net", "pciBusID": "../../net"}`, "", CodeConfig, []string{"pciBusID", "../../net"}},
		{"host-device", "ADD", with(device1, "runtimeConfig", map[string]string{"deviceID": "vf7"}), "", CodeConfig, []string{"runtimeConfig.deviceID", "vf7"}},
		{"host-device", "STATUS", device1, "", CodeUnavailable, []string{"device", "eth3"}},
		{"host-device", "CHECK", device1, "", CodeConfig, []string{"prevResult"}},
		{"macvlan", "STATUS", with(macvlan1, "master", "up9"), "", CodeUnavailable, []string{"master", "up9"}},
		{"ipvlan", "ADD", with(ipvlan1, "mode", "bridge"), "", CodeConfig, []string{"mode", "bridge", "l3s"}},
		{"ipvlan", "ADD", with(ipvlan1, "ipam", nil), "", CodeConfig, []string{"ipam.type"}},
		{"ipvlan", "ADD", with(with(ipvlan1, "master", nil), "prevResult", map[string]any{"cniVersion": "1.1.0"}), "", CodeConfig, []string{"master", "prevResult"}},
		{"vlan", "ADD", with(vlan1, "vlanId", 4095), "", CodeConfig, []string{"vlanId", "4095", "0 to 4094"}},
		{"vlan", "ADD", with(vlan1, "master", nil), "", CodeConfig, []string{"master"}},
		{"vlan", "ADD", with(vlan1, "mtu", 1501), "", CodeConfig, []string{"mtu", "1501"}},
		{"vlan", "ADD", with(vlan1, "ipam", nil), "", CodeConfig, []string{"ipam.type"}},
		{"vlan", "STATUS", with(vlan1, "master", "lo"), "", CodeUnavailable, []string{"master", "lo", "down"}},
		{"dummy", "ADD", with(dummy1, "ipam", nil), "", CodeConfig, []string{"ipam.type"}},
		{"loopback", "ADD", `{"cniVersion": "0.2.0", "name": "lo", "prevResult": {"cniVersion": "1.0.0"}}`, "", CodeConfig, []string{"0.2.0", "0.3.0"}},
		{"ptp", "ADD", `{"cniVersion": "1.1.0", "name": "net"}`, "", CodeConfig, []string{"ipam.type"}},
		{"ptp", "ADD", with(ptp1, "ipMasqBackend", "pf"), "", CodeConfig, []string{"ipMasqBackend", "pf", "nftables"}},
		{"ptp", "ADD", with(ptp1, "ipam", map[string]any{"type": "nothere"}), "", CodeConfig, []string{"ipam.type", "nothere"}},
		{"portmap", "ADD", with(portmap1, "conditionsV4", []string{"-m", "set", "--match-set", "white", "src"}), "", CodeUnsupported, []string{"conditionsV4", "-m set", "multiport"}},
		{"portmap", "ADD", with(with(portmap1, "conditionsV6", []string{"-s", "fd00::1"}), "backend", "nftables"), "", CodeConfig, []string{"conditionsV6", "nftables"}},
		{"portmap", "ADD", with(with(portmap1, "externalSetMarkChain", "KUBE-MARK-MASQ"), "backend", "nftables"), "", CodeConfig, []string{"externalSetMarkChain", "iptables"}},
		{"bandwidth", "ADD", with(bandwidth1, "prevResult", nil), "", CodeConfig, []string{"prevResult"}},
		{"bandwidth", "CHECK", `{"cniVersion": "1.1.0", "name": "net"}`, "", CodeConfig, []string{"prevResult"}},
		{"bandwidth", "ADD", `{"cniVersion": "1.1.0", "name": "net"}`, "", CodeConfig, []string{"prevResult"}},
		{"bandwidth", "ADD", bandwidth1, "", CodeConfig, []string{"br1, calif00", "eth0", "veth"}},
		{"bandwidth", "ADD", with(bandwidth1, "ingressRate", 8000), "", CodeConfig, []string{"ingressBurst", "ingressRate 8000"}},
		{"bandwidth", "ADD", with(bandwidth1, "egressBurst", 8000), "", CodeConfig, []string{"egressRate", "egressBurst 8000"}},
		{"bandwidth", "ADD", with(bandwidth1, "egressRate", -1), "", CodeDecode, []string{"egressRate", "number"}},
		{"bandwidth", "ADD", strings.Replace(bandwidth1, "34359738359", "34359738360", 1), "", CodeConfig, []string{"runtimeConfig.bandwidth.ingressBurst", "34359738360", "34359738359"}},
		{"bandwidth", "ADD", strings.Replace(bandwidth1, "1000000", "7", 1), "", CodeConfig, []string{"ingressRate", "8 bit/s"}},
		{"firewall", "ADD", with(firewall1, "prevResult", nil), "", CodeConfig, []string{"prevResult"}},
		{"firewall", "ADD", with(firewall1, "cniVersion", "0.3.1"), "", CodeVersion, []string{"0.3.1", "0.4.0"}},
		{"firewall", "ADD", with(firewall1, "backend", "pf"), "", CodeConfig, []string{"backend", "pf", "iptables", "firewalld"}},
		{"firewall", "ADD", with(firewall1, "backend", "firewalld"), "", CodeTryAgain, []string{"backend", "firewalld", "does not run"}},
		{"firewall", "ADD", with(firewall1, "ingressPolicy", "nonsense"), "", CodeConfig, []string{"ingressPolicy", "nonsense", "same-bridge"}},
		{"firewall", "ADD", with(firewall1, "iptablesAdminChainName", "A B"), "", CodeConfig, []string{"iptablesAdminChainName", "A B", "letter"}},
		{"firewall", "ADD", with(firewall1, "firewalldZone", "a b"), "", CodeConfig, []string{"firewalldZone", "a b"}},
		{"firewall", "ADD", strings.Replace(firewall1, `{"name": "br1"}`, `{"name": "br1", "sandbox": "/x"}`, 1), "", CodeConfig, []string{"ingressPolicy", "isolated", "open"}},
		{"firewall", "CHECK", with(firewall1, "prevResult", nil), "", CodeConfig, []string{"prevResult"}},
		{"portmap", "ADD", with(portmap1, "prevResult", nil), "", CodeConfig, []string{"prevResult"}},
		{"portmap", "ADD", strings.Replace(portmap1, `"interface": 1`, `"interface": 9`, 1), "", CodeConfig, []string{"ips[0].interface", "9"}},
		{"portmap", "ADD", strings.Replace(portmap1, "8080", "80800", 1), "", CodeConfig, []string{"portMappings[0].hostPort", "80800", "1 to 65535"}},
		{"tuning", "ADD", with(tuning1, "prevResult", nil), "", CodeConfig, []string{"prevResult"}},
		{"tuning", "ADD", tuning1, "", CodeConfig, []string{"CNI_IFNAME", "eth0", "no such interface"}},
		{"tuning", "ADD", tuning1, "CNI_ARGS=COLOUR=red", CodeEnvironment, []string{"CNI_ARGS", "COLOUR"}},
		{"tuning", "ADD", with(tuning1, "sysctl", map[string]string{"kernel.shmmax": "1"}), "", CodeConfig, []string{"sysctl.kernel.shmmax", "no sysctl of the network", "net.core.somaxconn"}},
		{"tuning", "ADD", strings.Replace(tuning1, "net.core.somaxconn", "net.ipv4.conf.IFNAME.log_martians", 1), "", CodeConfig, []string{"log_martians", "twice"}},
		{"tuning", "ADD", with(tuning1, "sysctl", map[string]int{"net.core.somaxconn": 1}), "", CodeDecode, []string{"sysctl.net.core.somaxconn", "string"}},
		{"tuning", "ADD", with(tuning1, "sysctl", []string{"net.core.somaxconn"}), "", CodeDecode, []string{"sysctl", "object"}},
		{"tuning", "ADD", with(tuning1, "mtu", 1200), "", CodeConfig, []string{"mtu", "1200", "fd00:1::2/64", "1280"}},
		{"tuning", "ADD", with(tuning1, "mac", "01:00:00:00:00:00"), "", CodeConfig, []string{"mac", "group"}},
		{"tuning", "ADD", with(tuning1, "txQLen", -1), "", CodeConfig, []string{"txQLen", "-1"}},
		{"tuning", "ADD", with(tuning1, "dataDir", "here"), "", CodeConfig, []string{"dataDir", "here", "absolute"}},
		{"tuning", "ADD", `{"cniVersion": "1.1.0", "name": "net", "args": {"cni": {"sysctl": {"net.core.somaxconn": "1", "x": "2"}}}}`, "", CodeConfig, []string{"args.cni.sysctl.x"}},
		{"sbr", "ADD", with(sbr1, "prevResult", nil), "", CodeConfig, []string{"prevResult"}},
		{"sbr", "ADD", sbr1, "", CodeConfig, []string{"CNI_IFNAME", "eth0", "no such interface"}},
		{"sbr", "ADD", sbr1, "CNI_IFNAME=eth1", CodeConfig, []string{"prevResult", "eth1"}},
		{"sbr", "ADD", with(sbr1, "table", 0), "", CodeConfig, []string{"table", "0", "4294967295"}},
		{"sbr", "ADD", with(with(sbr1, "table", 7), "addSourceHints", true), "", CodeConfig, []string{"table", "addSourceHints"}},
		{"sbr", "ADD", with(sbr1, "gateways", []string{"10.1.0.1", "10.1.0.9"}), "", CodeConfig, []string{"gateways[1]", "10.1.0.9", "10.1.0.1"}},
		{"sbr", "ADD", with(sbr1, "gateways", []string{"fe80::1%eth0"}), "", CodeConfig, []string{"gateways[0]", "fe80::1%eth0"}},
		{"sbr", "GC", sbr1, "", CodeConfig, []string{"cni.dev/valid-attachments"}},
		{"vrf", "ADD", with(vrf1, "prevResult", nil), "", CodeConfig, []string{"prevResult"}},
		{"vrf", "ADD", with(vrf1, "vrfname", ""), "", CodeConfig, []string{"vrfname"}},
		{"vrf", "ADD", with(vrf1, "vrfname", "eth0"), "", CodeConfig, []string{"vrfname", "eth0"}},
		{"vrf", "ADD", with(vrf1, "vrfname", "lo"), "", CodeConfig, []string{"CNI_IFNAME", "eth0"}},
		{"vrf", "ADD", with(vrf1, "table", -1), "", CodeConfig, []string{"table", "-1"}},
		{"vrf", "STATUS", with(vrf1, "vrfname", nil), "", CodeConfig, []string{"vrfname"}},
	} {
		n := newNode(t)
		before := n.kernel.Snapshot()
		out, status := n.call(c.plugin, c.verb, c.conf, c.env)
		var got struct {
			Code Code
			Msg  string
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || status != 1 || got.Code != c.code {
			t.Errorf("%s %s %s %s: status %d, %s; want code %d", c.plugin, c.verb, c.conf, c.env, status, out, c.code)
		}
		for _, w := range c.names {
			if !strings.Contains(out, w) {
				t.Errorf("%s %s %s %s: %s does not name %q", c.plugin, c.verb, c.conf, c.env, out, w)
			}
		}
		if d := before.Diff(n.kernel.Snapshot()); d != "" {
			t.Errorf("%s %s %s %s: changed\n%s", c.plugin, c.verb, c.conf, c.env, d)
		}
	}
}

// A failure at any change takes back what is the attachment's and nothing of another's.
func TestFailedAddSparesOthers(t *testing.T) {
	for plugin, conf := range map[string]string{"bridge": bridge1, "ptp": ptp1, "firewall": firewall1, "macvlan": macvlan1, "ipvlan": ipvlan1, "vlan": vlan1, "dummy": dummy1, "tap": tap1} {
		for at := 1; ; at++ {
			n := newNode(t)
			n.kernel.AddNamespace("/run/netns/other")
			if out, code := n.call(plugin, "ADD", conf); code != 0 {
				t.Fatal(out)
			}
			// Another subnet, so that chains and addresses are to be made.
			second := strings.NewReplacer("10.1.", "10.2.", "fd00:1:", "fd00:2:", "br1", "br2", `"net"`, `"two"`, `"vlanId": 7`, `"vlanId": 8`).Replace(conf)
			before := n.kernel.Dump()
			done := 0 // from change at on everything fails but removals: a failure that passes is tried again
			n.kernel.FailIf(func(c kernel.Change) error {
				if done++; done >= at && c.Op != kernel.Delete {
					return errors.New("no memory")
				}
				return nil
			})
			out, code := n.call(plugin, "ADD", second, "CNI_IFNAME=eth1", "CNI_NETNS=/run/netns/other")
			n.kernel.FailIf(nil)
			if code == 0 {
				if at < 5 {
					t.Errorf("%s: ADD succeeds though change %d fails", plugin, at)
				}
				break
			}
			after := n.kernel.Dump()
			for _, line := range strings.Split(before, "\n") {
				if !strings.Contains(after, line) {
					t.Errorf("%s: change %d failed (%s): gone is %s", plugin, at, strings.TrimSpace(out), line)
				}
			}
			if strings.Contains(after, " two c eth1") || strings.Contains(after, "10.2.0.2") {
				t.Errorf("%s: change %d failed: left behind in\n%s", plugin, at, after)
			}
			if at > 100 {
				t.Fatal("no ADD succeeds")
			}
		}
	}
}

// askingIPAM is an address plugin that asks over the interface, in place of one with a server behind it.
type askingIPAM struct {
	ipam
	k    *fake.Kernel
	fail error
	said *[]string
}

func (i askingIPAM) asksOverLink() {}

func (i askingIPAM) hear(what string) {
	up := strings.Contains(i.k.Dump(), "link eth0 up netns "+netns)
	*i.said = append(*i.said, fmt.Sprintf("%s %v", what, up))
}

func (i askingIPAM) add(ctx context.Context) (*Result, func(context.Context) error, error) {
	i.hear("add")
	if i.fail != nil {
		return nil, nil, i.fail
	}
	res, _, err := i.ipam.add(ctx)
	return res, func(context.Context) error { i.hear("undo"); return nil }, err
}

func (i askingIPAM) del(context.Context) error { i.hear("del"); return nil }

// An address plugin that asks over the interface finds it up, whatever it is asked for.
func TestAddressesOverTheLink(t *testing.T) {
	n := newNode(t)
	var said []string
	var fail error
	ipams["asking"] = func(r *request) (ipam, error) {
		i, err := newStatic(r)
		return askingIPAM{i, n.kernel, fail, &said}, err
	}
	defer delete(ipams, "asking")
	conf := with(bridge1, "ipam", map[string]any{"type": "asking", "addresses": []map[string]string{{"address": "10.1.0.2/24"}}})
	hear := func(want ...string) {
		t.Helper()
		if fmt.Sprint(said) != fmt.Sprint(want) {
			t.Errorf("the address plugin was asked %v, want %v", said, want)
		}
		said = nil
	}
	gone := func() {
		t.Helper()
		if d := n.kernel.Dump(); strings.Contains(d, netns) || strings.Contains(d, markPrefix) {
			t.Errorf("left behind:\n%s", d)
		}
	}
	if out, code := n.call("bridge", "ADD", conf); code != 0 || !strings.Contains(out, "10.1.0.2/24") || !strings.Contains(n.kernel.Dump(), "addr 10.1.0.2/24 dev eth0") {
		t.Fatalf("ADD: %s\n%s", out, n.kernel.Dump())
	}
	hear("add true")
	if out, code := n.call("bridge", "DEL", conf); code != 0 {
		t.Fatalf("DEL: %s", out)
	}
	hear("del true")
	gone()
	fail = errors.New("no server answers")
	if out, code := n.call("bridge", "ADD", conf); code == 0 || !strings.Contains(out, "no server answers") {
		t.Errorf("ADD: %s", out)
	}
	hear("add true")
	gone()
	fail = nil
	n.kernel.FailIf(func(c kernel.Change) error {
		if a, ok := c.New.(*kernel.Addr); ok && a.NS == netns {
			return errors.New("no memory")
		}
		return nil
	})
	if out, code := n.call("bridge", "ADD", conf); code == 0 || !strings.Contains(out, "no memory") {
		t.Errorf("ADD: %s", out)
	}
	hear("add true", "undo true")
	gone()
	if out, code := n.call("ptp", "ADD", with(conf, "type", "ptp")); code == 0 || !strings.Contains(out, "ipam.type") {
		t.Errorf("ptp: ADD: %s", out)
	}
	hear()
}
