package cni

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

const firewall1 = `{"cniVersion": "1.1.0", "name": "net", "type": "firewall", "ingressPolicy": "isolated",
	"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "br1"}, {"name": "eth0", "sandbox": "/run/netns/c"}],
	"ips": [{"address": "10.1.0.2/24", "interface": 1}, {"address": "fd00:1::2/64", "interface": 1}]}}`

// zones is a firewalld without a bus.
type zones struct {
	of   map[string][]string
	fail error
}

func (z *zones) AddSource(_ context.Context, zone, source string) error {
	if z.fail != nil && strings.Contains(source, ":") {
		return z.fail
	}
	if !slices.Contains(z.of[zone], source) {
		z.of[zone] = append(z.of[zone], source)
	}
	return nil
}

func (z *zones) RemoveSource(_ context.Context, zone, source string) error {
	z.of[zone] = slices.DeleteFunc(z.of[zone], func(s string) bool { return s == source })
	return nil
}

func (z *zones) Sources(_ context.Context, zone string) ([]string, error) { return z.of[zone], nil }
func (z *zones) Close()                                                   {}

func (n *node) ok(plugin, verb, conf string, env ...string) {
	n.Helper()
	if out, code := n.call(plugin, verb, conf, env...); code != 0 {
		n.Fatalf("%s %s: %s", plugin, verb, out)
	}
}

func (n *node) holds(want bool, texts ...string) {
	n.Helper()
	dump := n.kernel.Dump()
	for _, text := range texts {
		if strings.Contains(dump, text) != want {
			n.Errorf("the kernel holds %q: %v, want %v\n%s", text, !want, want, dump)
		}
	}
}

// second is the configuration of another container on the same bridge.
func second(conf string) string {
	return strings.NewReplacer("10.1.0.2/", "10.1.0.3/", "fd00:1::2/", "fd00:1::3/", `"net"`, `"two"`).Replace(conf)
}

func gcConf(conf string, valid ...string) string {
	list := []map[string]string{}
	for _, id := range valid {
		list = append(list, map[string]string{"containerID": id, "ifname": "eth0"})
	}
	return with(conf, "cni.dev/valid-attachments", list)
}

// TestFirewallOpensOthersChains: one rule in each chain that would drop, however many containers there are, behind what
// the administrator has; the last GC takes all of it away.
func TestFirewallOpensOthersChains(t *testing.T) {
	n := newNode(t)
	n.kernel.AddForeignTarget("ip", "filter", "MY-ADMIN", "tcp dport 25 drop")
	n.kernel.AddForeignChain("ip", "filter", "FORWARD", "tcp dport 22 drop")
	n.kernel.AddForeignChain("ip6", "filter", "FORWARD")
	n.kernel.AddForeignChain("inet", "firewalld", "filter_FORWARD", "ct state established accept", "reject")
	n.kernel.AddForeignChain("inet", "mine", "f", "tcp dport 22 drop")
	conf := with(firewall1, "iptablesAdminChainName", "MY-ADMIN")
	is := func(family, table, chain string, want ...string) {
		t.Helper()
		if got := n.kernel.ForeignRules(family, table, chain); !slices.Equal(got, want) {
			t.Errorf("%s %s %s has %q, want %q", family, table, chain, got, want)
		}
	}
	n.ok("firewall", "ADD", conf)
	n.ok("firewall", "ADD", second(conf), "CNI_CONTAINERID=d")
	accept := passRule + " accept"
	is("ip", "filter", "FORWARD", "jump MY-ADMIN", accept, "tcp dport 22 drop")
	is("ip6", "filter", "FORWARD", accept)
	is("inet", "firewalld", "filter_FORWARD", accept, "ct state established accept", "reject")
	is("inet", "mine", "f", "tcp dport 22 drop") // it drops what it means to drop
	n.ok("firewall", "CHECK", conf)
	n.ok("firewall", "GC", gcConf(conf))
	n.ok("firewall", "CHECK", second(conf), "CNI_CONTAINERID=d")
	n.holds(false, "10.1.0.2")
	n.ok("bridge", "GC", gcConf(with(bridge1, "name", "two")))
	is("ip", "filter", "FORWARD", "tcp dport 22 drop")
	is("ip6", "filter", "FORWARD")
	is("inet", "firewalld", "filter_FORWARD", "ct state established accept", "reject")
	n.holds(false, "10.1.0.3", "samebridge {", "chain inet seine_cni pass", "chain inet seine_cni isolation")
}

// TestFirewallCheckSeesLoss: what ADD made and what is gone since. CHECK itself makes nothing.
func TestFirewallCheckSeesLoss(t *testing.T) {
	n := newNode(t)
	n.kernel.AddForeignChain("ip", "filter", "FORWARD", "drop")
	n.ok("firewall", "ADD", firewall1)
	for _, lost := range []kernel.Object{
		element(pass4, "10.1.0.2", "", ""), element(policied, "br1", "", ""), element(isolated, "br1 . br1", "", ""),
		&kernel.Accept{Family: "ip", Table: "filter", Chain: "FORWARD", Rule: passRule, Mark: markPrefix},
	} {
		if err := errors.Join(n.kernel.Apply(t.Context(), []kernel.Change{{Op: kernel.Delete, Old: lost}})...); err != nil {
			t.Fatal(err)
		}
		before := n.kernel.Snapshot()
		if out, code := n.call("firewall", "CHECK", firewall1); code == 0 || !strings.Contains(out, "differs from what ADD made") {
			t.Errorf("without %s: CHECK says %d %s", lost, code, out)
		}
		if d := before.Diff(n.kernel.Snapshot()); d != "" {
			t.Errorf("CHECK changes %s", d)
		}
		n.ok("firewall", "ADD", firewall1)
	}
}

// TestIsolationGoesWithTheLast: a bridge is policied as long as one of its containers wants that, and isolated likewise.
func TestIsolationGoesWithTheLast(t *testing.T) {
	n := newNode(t)
	same := with(second(firewall1), "ingressPolicy", "same-bridge")
	n.ok("firewall", "ADD", firewall1)
	n.ok("firewall", "ADD", same, "CNI_CONTAINERID=d")
	n.holds(true, "policied { br1 }", "samebridge { br1 . br1 }", "isolated { br1 . br1 }")
	n.ok("firewall", "DEL", with(firewall1, "prevResult", nil), "CNI_NETNS=")
	n.holds(true, "policied { br1 }", "samebridge { br1 . br1 }")
	n.holds(false, "isolated { br1 . br1 }", "10.1.0.2")
	n.ok("firewall", "DEL", with(same, "ingressPolicy", "nonsense"), "CNI_CONTAINERID=d")
	n.holds(false, "{ br1", "10.1.0.3")

	// prevResult of DEL may tell other addresses than ADD was told: more, fewer or others.
	for _, now := range []string{"10.1.0.9", "fd00:1::2"} {
		n.ok("firewall", "ADD", firewall1)
		n.ok("firewall", "DEL", strings.Replace(firewall1, "10.1.0.2", now, 1))
		n.holds(false, "{ br1", "10.1.0.2", "fd00:1::2")
	}
}

// With prevResult or, where it is lost, by the addresses that the container still has.
func TestFirewallDropsWhatTheReferenceMade(t *testing.T) {
	for _, conf := range []string{firewall1, with(firewall1, "prevResult", nil)} {
		dropsReference(t, conf)
	}
}

func dropsReference(t *testing.T, conf string) {
	n := newNode(t)
	n.kernel.AddForeign(&kernel.Link{NS: netns, Name: "eth0", Type: kernel.Veth, Peer: &kernel.Peer{Name: "veth1"}})
	for _, a := range []string{"10.1.0.2/24", "fd00:1::2/64", "fe80::1/64"} {
		n.kernel.AddForeign(&kernel.Addr{NS: netns, Link: "eth0", Prefix: netip.MustParsePrefix(a)})
	}
	mine := []string{"ip daddr 10.1.0.2 ct state established,related accept", "ip saddr 10.1.0.2 accept"}
	others := []string{"jump CNI-ADMIN", "ip saddr 10.1.0.22 accept"}
	n.kernel.AddForeignTarget("ip", "filter", "CNI-FORWARD", append(slices.Clone(mine), others...)...)
	n.kernel.AddForeignTarget("ip6", "filter", "CNI-FORWARD", "ip6 daddr fd00:1::2 ct state established,related accept", "ip6 saddr fd00:1::2 accept")
	n.ok("firewall", "CHECK", firewall1)
	n.ok("firewall", "DEL", conf)
	if got := n.kernel.ForeignRules("ip", "filter", "CNI-FORWARD"); !slices.Equal(got, others) {
		t.Errorf("left are %q, want %q", got, others)
	}
	if got := n.kernel.ForeignRules("ip6", "filter", "CNI-FORWARD"); len(got) > 0 {
		t.Errorf("left are %q", got)
	}
	if out, code := n.call("firewall", "CHECK", firewall1); code == 0 {
		t.Errorf("after DEL CHECK says %s", out)
	}
}

func TestFirewalldZones(t *testing.T) {
	n := newNode(t)
	z := &zones{of: map[string][]string{}}
	n.firewalld = z
	n.kernel.AddForeignChain("inet", "firewalld", "filter_FORWARD", "reject")
	n.kernel.AddForeignChain("ip", "filter", "FORWARD", "drop")
	sources := func(zone string, want ...string) {
		t.Helper()
		if !slices.Equal(z.of[zone], want) {
			t.Errorf("zone %q has %q, want %q", zone, z.of[zone], want)
		}
	}
	inner := with(firewall1, "firewalldZone", "internal")
	n.ok("firewall", "ADD", inner)
	n.ok("firewall", "ADD", second(firewall1), "CNI_CONTAINERID=d")
	sources("internal", "10.1.0.2/32", "fd00:1::2/128")
	sources("trusted", "10.1.0.3/32", "fd00:1::3/128")
	if got := n.kernel.ForeignRules("inet", "firewalld", "filter_FORWARD"); len(got) != 1 {
		t.Errorf("firewalld's own chain has %q: the zone decides there", got)
	}
	if got := n.kernel.ForeignRules("ip", "filter", "FORWARD"); len(got) != 2 {
		t.Errorf("beside firewalld: %q, want an accept", got)
	}
	n.ok("firewall", "CHECK", inner)

	clear(z.of) // a reload
	if out, code := n.call("firewall", "CHECK", inner); code == 0 || !strings.Contains(out, "internal") || !strings.Contains(out, "10.1.0.2/32") {
		t.Errorf("after a reload CHECK says %s", out)
	}
	n.ok("firewall", "ADD", second(firewall1), "CNI_CONTAINERID=d")
	sources("internal", "10.1.0.2/32", "fd00:1::2/128")

	// An address that is given out anew before the DEL of its last holder changes zones.
	n.ok("firewall", "ADD", firewall1, "CNI_CONTAINERID=e")
	n.ok("firewall", "DEL", inner)
	sources("internal")
	sources("trusted", "10.1.0.3/32", "fd00:1::3/128", "10.1.0.2/32", "fd00:1::2/128")

	n.ok("firewall", "DEL", with(with(firewall1, "prevResult", nil), "backend", "nonsense"), "CNI_CONTAINERID=e", "CNI_NETNS=")
	n.ok("bridge", "GC", gcConf(with(bridge1, "name", "two"))) // the chain's first plugin removes it all
	sources("trusted")
	n.holds(false, "10.1.0.2", "10.1.0.3")

	z.fail = errors.New("INVALID_ADDR")
	before := n.kernel.Dump()
	if out, code := n.call("firewall", "ADD", firewall1); code == 0 || !strings.Contains(out, "INVALID_ADDR") {
		t.Errorf("ADD says %s", out)
	}
	sources("trusted")
	for _, line := range strings.Split(n.kernel.Dump(), "\n") {
		if strings.Contains(line, markPrefix) && !strings.Contains(before, line) {
			t.Errorf("a failed ADD leaves %s", line)
		}
	}
}

// TestFirewalldIsChosen as the reference does.
func TestFirewalldIsChosen(t *testing.T) {
	for _, c := range []struct {
		backend string
		runs    bool
		used    bool
		code    int
	}{
		{"", false, false, 0}, {"", true, true, 0}, {"iptables", true, false, 0}, {"nftables", true, false, 0},
		{"firewalld", true, true, 0}, {"firewalld", false, false, 1},
	} {
		n := newNode(t)
		z := &zones{of: map[string][]string{}}
		if c.runs {
			n.firewalld = z
		}
		conf := with(firewall1, "backend", c.backend)
		out, code := n.call("firewall", "ADD", conf)
		if used := len(z.of["trusted"]) > 0; code != c.code || used != c.used {
			t.Errorf("backend %q, running %v: %d %s, used %v", c.backend, c.runs, code, out, used)
		}
		if out, code := n.call("firewall", "STATUS", conf); code != c.code || code != 0 && !strings.Contains(out, `"code": 50`) {
			t.Errorf("backend %q, running %v: STATUS %d %s", c.backend, c.runs, code, out)
		}
		n.ok("firewall", "DEL", conf)
	}
}

// TestFirewallDel: whatever DEL is told, it succeeds and leaves nothing, and spares the container beside.
func TestFirewallDel(t *testing.T) {
	none := with(firewall1, "prevResult", nil)
	for name, c := range map[string]struct {
		conf string
		env  []string
	}{
		"as added":          {firewall1, nil},
		"no namespace":      {firewall1, []string{"CNI_NETNS="}},
		"namespace gone":    {firewall1, []string{"CNI_NETNS=/gone"}},
		"no prevResult":     {none, nil},
		"nothing":           {none, []string{"CNI_NETNS="}},
		"wrong values":      {with(with(none, "backend", "pf"), "firewalldZone", "a b"), nil},
		"wrong types":       {with(with(firewall1, "ingressPolicy", 5), "iptablesAdminChainName", true), nil},
		"prevResult broken": {with(firewall1, "prevResult", map[string]any{"ips": "none"}), nil},
		"an old version":    {with(none, "cniVersion", "0.3.1"), nil},
	} {
		for _, z := range []*zones{nil, {of: map[string][]string{}}} {
			n := newNode(t)
			if z != nil {
				n.firewalld = z
			}
			n.ok("firewall", "DEL", c.conf, c.env...) // before there is anything
			n.ok("firewall", "ADD", second(firewall1), "CNI_CONTAINERID=d")
			before := n.kernel.Dump()
			n.ok("firewall", "ADD", firewall1)
			n.ok("firewall", "DEL", c.conf, c.env...)
			n.ok("firewall", "DEL", c.conf, c.env...)
			if after := n.kernel.Dump(); after != before {
				t.Errorf("%s: firewalld %v: DEL leaves\n%s\nwant\n%s", name, z != nil, after, before)
			}
			if z != nil && len(z.of["trusted"]) != 2 {
				t.Errorf("%s: DEL leaves the sources %q", name, z.of["trusted"])
			}
		}
	}
}
