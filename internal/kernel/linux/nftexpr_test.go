package linux

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

// ruleSets are the sets that the rules below look into, once for us and once in nft's words.
var ruleSets = []*kernel.Set{
	{Name: "nets", Key: []kernel.Type{kernel.TypeGroup}},
	{Name: "same", Key: []kernel.Type{kernel.TypeGroup, kernel.TypeGroup}},
	{Name: "names", Key: []kernel.Type{kernel.TypeIfname}},
	{Name: "pairs", Key: []kernel.Type{kernel.TypeIfname, kernel.TypeIfname}},
	{Name: "protos", Key: []kernel.Type{kernel.TypeProto}},
	{Name: "ports", Key: []kernel.Type{kernel.TypeService}},
	{Name: "marks", Key: []kernel.Type{kernel.TypeMark}},
	{Name: "a4", Key: []kernel.Type{kernel.TypeIPv4}},
	{Name: "a6", Key: []kernel.Type{kernel.TypeIPv6}},
	{Name: "s4", Key: []kernel.Type{kernel.TypeIPv4}, Interval: true},
	{Name: "s6", Key: []kernel.Type{kernel.TypeIPv6}, Interval: true},
	{Name: "nameaddr", Key: []kernel.Type{kernel.TypeIfname, kernel.TypeIPv4, kernel.TypeProto, kernel.TypeService}},
	{Name: "nameaddr6", Key: []kernel.Type{kernel.TypeIPv6, kernel.TypeIfname, kernel.TypeMark}},
	{Name: "port4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService}, Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}},
	{Name: "port6", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService}, Data: []kernel.Type{kernel.TypeIPv6, kernel.TypeService}},
	{Name: "addrport4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeIPv4, kernel.TypeService}, Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}},
	{Name: "addrport6", Key: []kernel.Type{kernel.TypeProto, kernel.TypeIPv6, kernel.TypeService}, Data: []kernel.Type{kernel.TypeIPv6, kernel.TypeService}},
	{Name: "only4", Key: []kernel.Type{kernel.TypeIPv4}, Data: []kernel.Type{kernel.TypeIPv4}},
	{Name: "disp", Key: []kernel.Type{kernel.TypeIfname}, Data: []kernel.Type{kernel.TypeVerdict}},
	{Name: "disp2", Key: []kernel.Type{kernel.TypeIfname, kernel.TypeIPv6}, Data: []kernel.Type{kernel.TypeVerdict}},
}

// Every form of the grammar at ParseRule, by the chain type that takes it.
var ruleForms = map[string][]string{
	"filter": {
		`iifname "eth0" accept`, `iifname "abcdefghijklmno" drop`, `oifname != "lo" drop`, `iifname "sn-*" accept`, `oifname != "x*" return`,
		`iifname @names accept`, `oifname != @names drop`,
		`meta iifgroup 5 accept`, `meta oifgroup != 1073741824`, `meta iifgroup @nets drop`, `meta iifgroup . meta oifgroup @same accept`,
		`meta iifgroup != @nets udp dport 53 drop`,
		`ip saddr 10.0.0.1`, `ip daddr != 10.0.0.1`, `ip saddr 10.0.0.0/8`, `ip daddr 10.1.0.0/16 drop`, `ip saddr != 10.1.16.0/20`,
		`ip saddr 192.0.2.0/24 ip daddr 128.0.0.0/1 drop`, `ip saddr @a4 accept`, `ip daddr != @s4 drop`,
		`ip6 saddr fd00::1`, `ip6 daddr != fd00::1`, `ip6 saddr fd00::/8`, `ip6 daddr fe80::/10 drop`, `ip6 saddr != fd00:1:2:3::/64`,
		`ip6 saddr @a6`, `ip6 daddr @s6 drop`, `ip6 daddr ::1 accept`,
		`meta l4proto tcp`, `meta l4proto != udp drop`, `meta l4proto sctp accept`, `meta l4proto icmp`, `meta l4proto ipv6-icmp`, `meta l4proto 47`,
		`meta l4proto @protos drop`, `meta nfproto ipv4`, `meta nfproto != ipv6`, `meta nfproto ipv4 ip saddr 10.0.0.1 drop`,
		`tcp dport 80`, `udp sport != 53 drop`, `sctp dport 1000-2000`, `tcp sport != 1-1023`, `tcp dport @ports accept`, `udp dport != @ports`,
		`meta l4proto tcp tcp dport 80 tcp sport 1024-65535 accept`, `meta l4proto udp th dport 53`, `th dport 0x50`,
		`meta mark 0x10`, `meta mark != 5`, `meta mark and 0xff == 0x10`, `meta mark & 0xff00 != 0x100 drop`, `meta mark @marks drop`,
		`meta mark set 0x10`, `meta mark set ct mark`, `meta mark set meta mark or 0x1000`, `meta mark set meta mark and 0xffffefff`,
		`ct mark set ct mark and 0xf0`, `iifname . oifname @pairs drop`, `ct mark 7`, `ct mark and 0x8 == 0x8`, `ct mark set 0x10`, `ct mark set meta mark`,
		`ct state established,related accept`, `ct state new`, `ct state != new drop`, `ct state invalid,untracked drop`,
		`ct status dnat accept`, `ct status snat,dnat`, `ct status assured,confirmed,seen-reply,expected`,
		`ct status dnat meta iifgroup . meta oifgroup @same accept`,
		`fib daddr type local accept`, `fib daddr type != local drop`, `fib daddr type broadcast`,
		`iifname . ip saddr . meta l4proto . th dport @nameaddr accept`, `ip6 saddr . iifname . meta mark != @nameaddr6 drop`,
		`iifname vmap @disp`, `oifname . ip6 daddr vmap @disp2`,
		`counter`, `counter drop`, `counter accept`, `return`, `jump other`, `goto other`, `notrack`,
		`reject`, `ip saddr 10.0.0.1 reject`, `ip6 saddr fd00::1 reject`, `meta l4proto tcp reject with tcp reset`, `tcp dport 113 reject with tcp reset`,
	},
	"nat": {
		`dnat ip to meta l4proto . th dport map @port4`, `fib daddr type local dnat ip to meta l4proto . th dport map @port4`,
		`dnat ip6 to meta l4proto . th dport map @port6`,
		`dnat ip to meta l4proto . ip daddr . th dport map @addrport4`, `dnat ip6 to meta l4proto . ip6 daddr . th dport map @addrport6`,
		`dnat ip to ip daddr map @only4`,
		`dnat ip to 10.0.0.1`, `tcp dport 80 dnat ip to 10.0.0.1:8080`, `dnat ip6 to fd00::1`, `udp dport 53 dnat ip6 to [fd00::1]:5353`,
		`tcp dport 80 redirect to :8080`, `ip daddr @a4 udp dport 53 redirect to :1053`, `ip daddr 127.0.0.0/8 return`,
	},
	"snat": {
		`masquerade`, `masquerade random`, `ip saddr @s4 masquerade`, `ip6 saddr ::1 masquerade`, `meta oifgroup @nets ip saddr 127.0.0.0/8 masquerade`,
		`ip saddr 10.0.0.0/8 snat ip to 192.0.2.1`, `meta l4proto tcp snat ip to 192.0.2.1:1024`, `snat ip6 to fd00::1`,
	},
}

func typeText(types []kernel.Type) string {
	var out []string
	for _, t := range types {
		out = append(out, string(t))
	}
	return strings.Join(out, " . ")
}

// nftText is a table in nft's words.
func nftText(t *kernel.Table) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", t.Name)
	for _, s := range t.Sets {
		kind, data := "set", ""
		if len(s.Data) > 0 {
			kind, data = "map", " : "+typeText(s.Data)
		}
		fmt.Fprintf(&b, "\t%s %s {\n\t\ttype %s%s\n", kind, s.Name, typeText(s.Key), data)
		if s.Interval {
			b.WriteString("\t\tflags interval\n")
		}
		b.WriteString("\t}\n")
	}
	for _, c := range t.Chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Type, c.Hook, c.Priority)
		}
		for _, r := range c.Rules {
			b.WriteString("\t\t" + r + "\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func rulesTable(name string) *kernel.Table {
	return &kernel.Table{Name: name, Sets: ruleSets, Chains: []*kernel.Chain{
		{Name: "other"},
		{Name: "flt", Type: "filter", Hook: "prerouting", Priority: -300, Rules: ruleForms["filter"]},
		{Name: "pre", Type: "nat", Hook: "prerouting", Priority: -100, Rules: ruleForms["nat"]},
		{Name: "post", Type: "nat", Hook: "postrouting", Priority: 100, Rules: ruleForms["snat"]},
	}}
}

// listing is what nft prints of a table: with low, the expressions that the kernel has.
func listing(t *testing.T, ns, table string, low bool) string {
	args := []string{"nft", "-s", "list", "table", "inet", table}
	if low {
		args = append([]string{"nft", "--debug=netlink"}, args[1:]...)
	}
	out := run(t, ns, args...)
	out = regexp.MustCompile(` comment "h:[0-9a-f]{16}"`).ReplaceAllString(out, "")
	out = regexp.MustCompile(`(?m)^\s*userdata = .*$|\s+userdata = \{.*?\}| ?# handle \d+`).ReplaceAllString(out, "")
	out = regexp.MustCompile(`pkts \d+ bytes \d+`).ReplaceAllString(out, "")
	// The number that debugging shows behind a rule's chain is its handle.
	out = regexp.MustCompile(`(?m)^(inet \w+ \w+) \d+.*$`).ReplaceAllString(out, "$1")
	out = regexp.MustCompile(`\n\s*\n`).ReplaceAllString(out, "\n")
	return strings.ReplaceAll(out, "inet "+table, "inet T")
}

// TestRulesAsNft loads every form of rule by nft and by us, and compares what the kernel has then.
func TestRulesAsNft(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("skip: needs the program nft: ", err)
	}
	k, ns := newKernel(t)
	apply(t, k, kernel.Change{Op: kernel.Create, New: rulesTable("ours")})
	file := filepath.Join(t.TempDir(), "rules.nft")
	if err := os.WriteFile(file, []byte(nftText(rulesTable("theirs"))), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, ns, "nft", "-f", file)
	for _, low := range []bool{false, true} {
		ours, theirs := strings.Split(listing(t, ns, "ours", low), "\n"), strings.Split(listing(t, ns, "theirs", low), "\n")
		if len(ours) < 50 {
			t.Fatalf("short listing: %q", ours)
		}
		for i := range max(len(ours), len(theirs)) {
			a, b := at(ours, i), at(theirs, i)
			if a != b {
				t.Fatalf("line %d (expressions: %v):\n  ours %s\n  nft  %s\nours:\n%s\nnft's:\n%s", i, low, a, b, around(ours, i), around(theirs, i))
			}
		}
	}
}

func around(lines []string, i int) string {
	return strings.Join(lines[max(0, min(i-8, len(lines))):min(i+4, len(lines))], "\n")
}

func at(lines []string, i int) string {
	if i < 0 || i >= len(lines) {
		return ""
	}
	return strings.TrimSpace(lines[i])
}
