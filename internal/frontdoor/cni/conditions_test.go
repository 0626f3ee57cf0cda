package cni

import (
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

func TestConditions(t *testing.T) {
	for _, c := range []struct {
		words string // one per line or, without a line's end, per space
		v6    bool
		want  []string // alternatives, or what an error has to name after "!"
	}{
		{"! -d 192.0.2.0/24", false, []string{"ip daddr != 192.0.2.0/24"}},
		{"! -d fc00::/7", true, []string{"ip6 daddr != fc00::/7"}},
		{"-d 192.0.2.1/32,10.1.2.3/8", false, []string{"ip daddr 10.0.0.0/8", "ip daddr 192.0.2.1"}},
		{"! -s 192.0.2.1,192.0.2.2 -i eth+", false, []string{`ip saddr != 192.0.2.1 ip saddr != 192.0.2.2 iifname "eth*"`}},
		{"-s 10.0.0.0/255.255.0.0 ! -i lo", false, []string{`ip saddr 10.0.0.0/16 iifname != "lo"`}},
		{"-s 0.0.0.0/0", false, nil},
		{"--source=10.0.0.1", false, []string{"ip saddr 10.0.0.1"}},
		{"-m multiport --sports 1024:,53 -m comment --comment x", false, []string{"th sport 1024-65535", "th sport 53"}},
		{"-p tcp --dport :80", false, []string{"meta l4proto tcp th dport 0-80"}},
		{"-m iprange --src-range 10.0.0.1-10.0.0.6", false, []string{"ip saddr 10.0.0.1", "ip saddr 10.0.0.2/31", "ip saddr 10.0.0.4/31", "ip saddr 10.0.0.6"}},
		{"-m iprange ! --dst-range fd00::-fd00::3", true, []string{"ip6 daddr != fd00::/126"}},
		{"-m iprange --dst-range 255.255.255.254-255.255.255.255", false, []string{"ip daddr 255.255.255.254/31"}},
		{"-m mark ! --mark 0x10/0xf0", false, []string{"meta mark and 0xf0 != 0x10"}},
		{"-m conntrack --ctstate NEW,RELATED", false, []string{"ct state new,related"}},
		{"-m addrtype ! --dst-type LOCAL", false, []string{"fib daddr type != local"}},
		{"-s 10.0.0.1,10.0.0.2 -d 10.0.0.3,10.0.0.4", false, []string{"ip saddr 10.0.0.1 ip daddr 10.0.0.3", "ip saddr 10.0.0.1 ip daddr 10.0.0.4",
			"ip saddr 10.0.0.2 ip daddr 10.0.0.3", "ip saddr 10.0.0.2 ip daddr 10.0.0.4"}},

		{"ip saddr 1.2.3.4", false, []string{"ip saddr 1.2.3.4"}},
		{"ip6 saddr != 12::34", true, []string{"ip6 saddr != 12::34"}},
		{"ip daddr != { 127.0.0.0/8, 198.19.254.254 }", false, []string{"ip daddr != 127.0.0.0/8 ip daddr != 198.19.254.254"}},
		{"iifname {eth0,\"eth1\"} ip protocol tcp", false, []string{`iifname "eth0" meta l4proto tcp`, `iifname "eth1" meta l4proto tcp`}},
		{"meta mark and 0xf0 == 0x10 ct state new,related", false, []string{"meta mark and 0xf0 == 0x10 ct state new,related"}},
		{"fib daddr type local tcp sport 1-2", false, []string{"fib daddr type local tcp sport 1-2"}},

		{"! -s 0.0.0.0/0", false, []string{"!never"}},
		{"-m set --match-set white src", false, []string{"!-m set"}},
		{"-s fd00::1", false, []string{"!fd00::1"}},
		{"-s example.org", false, []string{"!example.org"}},
		{"-s 10.0.0.0/255.0.255.0", false, []string{"!255.0.255.0"}},
		{"-o eth0", false, []string{"!-o"}},
		{"-j ACCEPT", false, []string{"!-j"}},
		{"!", false, []string{"!after !"}},
		{"-s", false, []string{"!want a value"}},
		{"--dport 70000", false, []string{"!70000"}},
		{"-m iprange --src-range 10.0.0.9-10.0.0.1", false, []string{"!10.0.0.9-10.0.0.1"}},
		{"ip6 saddr fd00::1", false, []string{"!family"}},
		{"oifname eth0", false, []string{"!oifname"}},
		{"ip saddr @white", false, []string{"!@white"}},
		{"ip saddr 1.2.3.4 accept", false, []string{"!accept"}},
		{"ip saddr { 1.2.3.4", false, []string{"!brace"}},
		{"ip saddr { }", false, []string{"!no value"}},
		{"ip saddr", false, []string{"!want a value"}},
		{"tcp flags syn", false, []string{"!tcp flags syn"}},
		{"-m multiport --sports " + strings.TrimSuffix(strings.Repeat("1,", 300), ","), false, []string{"!256"}},
	} {
		words := strings.Split(c.words, " ")
		got, _, err := parseConditions("conditionsVx", &words, c.v6)
		if len(c.want) == 1 && c.want[0][0] == '!' {
			if err == nil || !strings.Contains(err.Error(), c.want[0][1:]) || !strings.Contains(err.Error(), "conditionsVx") || asError(err).Code != CodeUnsupported {
				t.Errorf("%s: got %q, %v; want an error about %q", c.words, got, err, c.want[0][1:])
			}
			continue
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, %v; want %q", c.words, got, err, c.want)
		}
	}
	// One word with spaces is how nft's are written too.
	if got, native, err := parseConditions("k", &[]string{"ip saddr", "{1.2.3.4,", "1.2.3.5}"}, false); err != nil || !native || len(got) != 2 {
		t.Errorf("got %q, %v, %v", got, native, err)
	}
}

func FuzzConditions(f *testing.F) {
	for _, s := range []string{"! -d 192.0.2.0/24", "-m iprange --src-range ::-ffff::", "ip daddr != { 127.0.0.0/8, 198.19.254.254 }", "meta mark and 1 == 1"} {
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, text string, v6 bool) {
		words := strings.Split(text, " ")
		alts, _, err := parseConditions("k", &words, v6)
		if len(alts) > maxAlternatives || err != nil && alts != nil {
			t.Fatalf("%q gives %d alternatives, %v", text, len(alts), err)
		}
	})
}

// Two attachments with the same conditions share a chain; DEL and GC leave nothing of what either has.
func TestConditionsPlan(t *testing.T) {
	n := newNode(t)
	limited(n).kernel.AddForeign(&kernel.LinkUp{Link: "br1"})
	conf := with(with(portmap1, "conditionsV4", []string{"-s", "192.0.2.0/24,198.51.100.0/24"}), "conditionsV6", []string{"ip6", "saddr", "fd00:9::/64"})
	other := strings.NewReplacer("8080", "8081", "10.1.0.2", "10.1.0.3", "fd00:1::2", "fd00:1::3", `"hostPort":53`, `"hostPort":54`, `"HostPort":53`, `"HostPort":54`).Replace(conf)
	for i, c := range []string{conf, other} {
		if out, code := n.call("portmap", "ADD", c, "CNI_IFNAME=eth0", "CNI_CONTAINERID="+[]string{"c", "d"}[i]); code != 0 {
			t.Fatal(out)
		}
	}
	dump := n.kernel.Dump()
	if got := strings.Count(dump, "chain inet seine_cni when-"); got != 2 {
		t.Errorf("%d chains of conditions, want one for each family:\n%s", got, dump)
	}
	if got := strings.Count(dump, "goto when-"); got != 6 { // two families of tcp, one of the udp port's address; twice
		t.Errorf("%d elements lead to them, want 6:\n%s", got, dump)
	}
	if out, code := n.call("portmap", "CHECK", conf); code != 0 {
		t.Errorf("CHECK: %s", out)
	}
	// Neither the conditions nor the ports are known any more.
	bare := with(with(with(conf, "conditionsV4", nil), "conditionsV6", []string{"what"}), "runtimeConfig", nil)
	if out, code := n.call("portmap", "DEL", bare); code != 0 {
		t.Errorf("DEL: %s", out)
	}
	gc := with(with(portmap1, "prevResult", nil), "cni.dev/valid-attachments", []any{})
	if got := strings.Count(n.kernel.Dump(), "element inet"); got != 9 { // three ports, as many conditions, two addresses, the bridge
		t.Errorf("%d elements are left, want 9:\n%s", got, n.kernel.Dump())
	}
	if out, code := n.call("portmap", "GC", gc); code != 0 {
		t.Errorf("GC: %s", out)
	}
	if dump := n.kernel.Dump(); strings.Count(dump, "element inet") != 1 || strings.Contains(dump, "when-") {
		t.Errorf("GC leaves\n%s", dump)
	}
}
