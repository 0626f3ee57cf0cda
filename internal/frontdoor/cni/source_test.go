package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

func prefixOf(format string, args ...any) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf(format, args...))
}

// tables gives the container's rules with a source and its routes over an interface, by table.
func (n *node) tables(ifname string) string {
	n.Helper()
	objs, err := n.kernel.List(n.Context(), kernel.Scope{Objects: []kernel.Object{&kernel.Rule{NS: netns}, &kernel.Route{NS: netns, Link: ifname}}})
	if err != nil {
		n.Fatal(err)
	}
	var out []string
	for _, o := range objs {
		switch o := o.(type) {
		case *kernel.Rule:
			out = append(out, strings.TrimSuffix(o.String(), " netns "+netns))
		case *kernel.Route:
			plain := *o
			plain.NS = ""
			out = append(out, plain.String())
		}
	}
	return strings.Join(out, "\n")
}

func (n *node) wantTables(what, ifname, want string) {
	n.Helper()
	if got := n.tables(ifname); got != strings.TrimSpace(want) {
		n.Errorf("%s:\n%s\nwant\n%s", what, got, strings.TrimSpace(want))
	}
}

// onEth1 gives the configuration of an attachment eth1 in subnet 2.
func onEth1(conf string) string {
	return strings.NewReplacer("10.1.", "10.2.", "fd00:1:", "fd00:2:", `"eth0"`, `"eth1"`).Replace(conf)
}

func TestSBR(t *testing.T) {
	n := newNode(t)
	n.inside("eth0", 1)
	n.inside("eth1", 2)
	// Made by hand, for somebody else.
	n.kernel.AddForeign(&kernel.Rule{NS: netns, Priority: 32000, From: prefixOf("10.9.0.1/32"), Table: 101})
	res := n.does("sbr", "ADD", sbr1)
	if !strings.Contains(res, "10.1.0.2/24") {
		t.Errorf("the result is %s", res)
	}
	n.wantTables("after ADD", "eth0", `
rule v4 priority 31999 from 10.1.0.2/32 lookup 100
rule v4 priority 32000 from 10.9.0.1/32 lookup 101 proto 4
rule v6 priority 32765 from fd00:1::2/128 lookup 102
route default via 10.1.0.1 dev eth0 table 100
route default via 10.1.0.1 dev eth0 table 100 metric 1
route 10.1.0.0/24 dev eth0 src 10.1.0.2 table 100
route default (v6) via fd00:1::1 dev eth0 table 102 metric 1024
route default (v6) via fd00:1::1 dev eth0 table 102 metric 1025
route fd00:1::/64 dev eth0 table 102 metric 256`)
	n.ok("sbr", "CHECK", sbr1)
	n.ok("sbr", "ADD", onEth1(sbr1), "CNI_IFNAME=eth1")
	for _, w := range []string{"from 10.2.0.2/32 lookup 103", "from fd00:2::2/128 lookup 104", "10.2.0.0/24 dev eth1 src 10.2.0.2 table 103"} {
		if got := n.tables("eth1"); !strings.Contains(got, w) {
			t.Errorf("the second attachment has no %q:\n%s", w, got)
		}
	}
	n.ok("sbr", "DEL", onEth1(sbr1), "CNI_IFNAME=eth1")
	n.ok("sbr", "CHECK", sbr1)
	for range 2 {
		n.ok("sbr", "DEL", sbr1)
	}
	after := n.kernel.Dump()
	if strings.Contains(after, "from 10.1") || strings.Contains(after, "table 1") || !strings.Contains(after, "from 10.9.0.1/32") {
		t.Errorf("DEL leaves\n%s", after)
	}
	if out, code := n.call("sbr", "CHECK", sbr1); code == 0 || !strings.Contains(out, "no rule from 10.1.0.2") || !strings.Contains(out, "no rule from fd00:1::2") {
		t.Errorf("CHECK after DEL: %s", out)
	}
}

func TestSBRTable(t *testing.T) {
	n := newNode(t)
	n.inside("eth0", 1)
	before := n.kernel.Snapshot()
	conf := with(sbr1, "table", 5000)
	n.ok("sbr", "ADD", conf)
	n.wantTables("after ADD", "eth0", `
rule v4 priority 32765 from 10.1.0.2/32 lookup 5000
rule v6 priority 32765 from fd00:1::2/128 lookup 5000
route default via 10.1.0.1 dev eth0 metric 1
route 10.1.0.0/24 dev eth0 src 10.1.0.2
route default (v6) via fd00:1::1 dev eth0 metric 1025
route fd00:1::/64 dev eth0 metric 256`)
	n.ok("sbr", "CHECK", conf)
	// Without prevResult, and with a configuration that is broken since.
	n.ok("sbr", "DEL", with(with(conf, "prevResult", nil), "gateways", 7))
	if d := before.Diff(n.kernel.Snapshot()); d != "" {
		t.Errorf("DEL leaves\n%s", d)
	}
}

func TestSBRHintsAndGateways(t *testing.T) {
	n := newNode(t)
	n.inside("eth0", 1)
	n.ok("sbr", "ADD", with(with(sbr1, "addSourceHints", true), "gateways", []string{"fd00:1::9", "10.1.0.9"}))
	n.wantTables("after ADD", "eth0", `
rule v4 priority 32765 from 10.1.0.2/32 lookup 100
rule v6 priority 32765 from fd00:1::2/128 lookup 101
route default via 10.1.0.9 dev eth0 table 100
route default via 10.1.0.1 dev eth0 table 100 metric 1
route 10.1.0.0/24 dev eth0 src 10.1.0.2 table 100
route default (v6) via fd00:1::9 dev eth0 table 101 metric 1024
route default (v6) via fd00:1::1 dev eth0 table 101 metric 1025
route fd00:1::/64 dev eth0 table 101 metric 256
route 10.1.0.0/24 dev eth0 src 10.1.0.2
route fd00:1::/64 dev eth0 src fd00:1::2 metric 1024`)
}

// Rules that the reference plugin made carry no protocol number; those of others with the same source carry one.
func TestSBRDelOfReference(t *testing.T) {
	n := newNode(t)
	n.inside("eth0", 1)
	theirs := &kernel.Rule{NS: netns, Priority: 32765, From: prefixOf("10.1.0.2/32"), Table: 100, Proto: kernel.NoProtocol}
	others := &kernel.Rule{NS: netns, Priority: 5, From: prefixOf("10.1.0.2/32"), Table: 7}
	n.kernel.AddForeign(theirs)
	n.kernel.AddForeign(others)
	n.ok("sbr", "DEL", sbr1)
	if got := n.tables("eth0"); strings.Contains(got, "lookup 100") || !strings.Contains(got, "lookup 7") {
		t.Errorf("after DEL there is\n%s", got)
	}
	for _, env := range []string{"CNI_NETNS=", "CNI_NETNS=/gone", "CNI_IFNAME=eth9"} {
		n.ok("sbr", "DEL", sbr1, env)
	}
}

func TestVRF(t *testing.T) {
	n := newNode(t)
	n.inside("eth0", 1)
	n.inside("eth1", 2)
	n.ok("vrf", "ADD", vrf1)
	for _, w := range []string{"link blue type vrf table 1 ", "link blue up", "addr 10.1.0.2/24 dev eth0", "addr fd00:1::2/64 dev eth0"} {
		if dump := n.kernel.Dump(); !strings.Contains(dump, w) {
			t.Errorf("after ADD the kernel does not hold %q:\n%s", w, dump)
		}
	}
	n.wantTables("after ADD", "eth0", `
route default via 10.1.0.1 dev eth0 table 1 metric 1
route 10.1.0.0/24 dev eth0 src 10.1.0.2 table 1
route default (v6) via fd00:1::1 dev eth0 table 1 metric 1025
route fd00:1::/64 dev eth0 table 1 metric 256`)
	n.ok("vrf", "CHECK", vrf1)
	if out, code := n.call("vrf", "ADD", vrf1); code == 0 || !strings.Contains(out, "blue") {
		t.Errorf("a second ADD: %s", out)
	}
	n.ok("vrf", "CHECK", vrf1)
	if out, code := n.call("vrf", "ADD", with(onEth1(vrf1), "table", 9), "CNI_IFNAME=eth1"); code == 0 || !strings.Contains(out, "differs from that of VRF") {
		t.Errorf("ADD with another table: %s", out)
	}
	n.ok("vrf", "ADD", onEth1(vrf1), "CNI_IFNAME=eth1")
	n.ok("vrf", "DEL", vrf1)
	n.ok("vrf", "CHECK", onEth1(vrf1), "CNI_IFNAME=eth1")
	if out, code := n.call("vrf", "CHECK", vrf1); code == 0 || !strings.Contains(out, "master blue") {
		t.Errorf("CHECK after DEL: %s", out)
	}
	n.ok("vrf", "DEL", with(onEth1(vrf1), "vrfname", 7), "CNI_IFNAME=eth1") // broken since
	n.ok("vrf", "DEL", vrf1)
	if dump := n.kernel.Dump(); strings.Contains(dump, "blue") {
		t.Errorf("DEL leaves\n%s", dump)
	}
	for _, env := range []string{"CNI_NETNS=", "CNI_NETNS=/gone", "CNI_IFNAME=eth9"} {
		n.ok("vrf", "DEL", vrf1, env)
	}
	n.ok("vrf", "ADD", with(onEth1(vrf1), "table", 1001), "CNI_IFNAME=eth1")
	if dump := n.kernel.Dump(); !strings.Contains(dump, "vrf table 1001") {
		t.Errorf("there is no VRF with table 1001:\n%s", dump)
	}
}

// What sbr and vrf move to other tables is no alarm of the plugin that made it.
func TestCheckBeforeChained(t *testing.T) {
	macvlan := `{"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "master": "up0", "ipam": {"type": "static",
		"addresses": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "fd00:1::2/64", "gateway": "fd00:1::1"}], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}`
	for plugin, conf := range map[string]string{"bridge": bridge1, "ptp": strings.Replace(ptp1, `"ranges"`, `"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}], "ranges"`, 1), "macvlan": macvlan} {
		for chained, second := range map[string]string{"sbr": sbr1, "vrf": vrf1} {
			n := newNode(t)
			n.kernel.AddForeign(&kernel.Link{Name: "up0", Type: kernel.Bridge})
			n.kernel.AddForeign(&kernel.LinkUp{Link: "up0"})
			result := json.RawMessage(n.does(plugin, "ADD", conf))
			n.ok(chained, "ADD", with(second, "prevResult", result))
			n.ok(plugin, "CHECK", with(conf, "prevResult", result))
			n.ok(chained, "CHECK", with(second, "prevResult", result))
			n.ok(chained, "DEL", with(second, "prevResult", result))
			if out, code := n.call(plugin, "CHECK", with(conf, "prevResult", result)); code == 0 {
				t.Errorf("%s behind %s: CHECK does not notice that the routes are gone: %s", chained, plugin, out)
			}
			n.ok(plugin, "DEL", with(conf, "prevResult", result))
			if dump := n.kernel.Dump(); strings.Contains(dump, netns) {
				t.Errorf("%s behind %s: DEL leaves\n%s", chained, plugin, dump)
			}
		}
	}
}
