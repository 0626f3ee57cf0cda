package linux

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/kernel"
)

func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skip: needs the program %s: %v", p, err)
		}
	}
}

// TestAcceptInIptables puts our rules into chains that the real iptables-nft made, and has it read them: it must go on
// to understand the table and print the rule as if it had written it.
func TestAcceptInIptables(t *testing.T) {
	needs(t, "iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft")
	k, ns := newKernel(t)
	for _, fam := range []struct{ name, tool string }{{"ip", "iptables-nft"}, {"ip6", "ip6tables-nft"}} {
		run(t, ns, fam.tool, "-P", "FORWARD", "DROP")
		run(t, ns, fam.tool, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
		run(t, ns, fam.tool, "-A", "INPUT", "-j", "REJECT")
		accept := func(chain, rule string) *kernel.Accept {
			return &kernel.Accept{Family: fam.name, Table: "filter", Chain: chain, Rule: rule}
		}
		want := []kernel.Object{
			accept("FORWARD", `iifname "sn-*"`), accept("FORWARD", `oifname "sn-*"`), accept("FORWARD", `iifname "br0"`),
			accept("INPUT", `iifname "sn-*" udp dport 53`), accept("INPUT", `iifname "sn-*" tcp dport 53`),
			accept("INPUT", `iifname "sn-*" meta l4proto ipv6-icmp`),
		}
		converge(t, k, want)
		saved := run(t, ns, fam.tool+"-save")
		for _, rule := range []string{
			`-A FORWARD -i sn-+ -m comment --comment "seine: iifname \"sn-*\"" -j ACCEPT`,
			`-A FORWARD -o sn-+ -m comment --comment "seine: oifname \"sn-*\"" -j ACCEPT`,
			`-A FORWARD -i br0 -m comment --comment "seine: iifname \"br0\"" -j ACCEPT`,
			`-A INPUT -i sn-+ -p udp -m udp --dport 53 `, `-A INPUT -i sn-+ -p tcp -m tcp --dport 53 `, `-A INPUT -i sn-+ -p ipv6-icmp `,
		} {
			if !strings.Contains(saved, rule) {
				t.Errorf("%s-save: want %s in\n%s", fam.tool, rule, saved)
			}
		}
		input := saved[strings.Index(saved, "-A INPUT"):]
		if last := input[strings.LastIndex(input, "-A INPUT"):]; !strings.HasPrefix(last, "-A INPUT -j REJECT") {
			t.Errorf("the REJECT is not the last rule: %s", saved)
		}
		listing := run(t, ns, fam.tool, "-L", "-n", "-v")
		if strings.Contains(listing, "incompatible") {
			t.Error(listing)
		}
		// What it saves it can load again, and we still find ours.
		cmd := exec.Command("nsenter", "--net="+ns, fam.tool+"-restore")
		cmd.Stdin = strings.NewReader(saved)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s-restore: %v: %s", fam.tool, err, out)
		}
		if got := list(t, k, want...); len(got) != len(want) {
			t.Errorf("after a restore: %v", got)
		}
		// A drop before ours makes it useless: then it counts as absent, and is put in the right place.
		run(t, ns, fam.tool, "-I", "FORWARD", "1", "-j", "DROP")
		if got := list(t, k, want[:3]...); len(got) != 0 {
			t.Errorf("behind a drop: %v", got)
		}
		run(t, ns, fam.tool, "-D", "FORWARD", "1")
		run(t, ns, fam.tool, "-A", "FORWARD", "-j", "DROP")
		converge(t, k, want)
		all, err := k.List(t.Context(), kernel.Scope{All: true})
		if err != nil || len(all) != len(want) {
			t.Errorf("all: %v %v", all, err)
		}
		apply(t, k, deletions(want)...)
		if saved := run(t, ns, fam.tool+"-save"); strings.Contains(saved, "seine") {
			t.Errorf("left behind: %s", saved)
		}
	}
}

func TestForeignChains(t *testing.T) {
	needs(t, "iptables-nft", "nft")
	k, ns := newKernel(t)
	facts := func() map[string]kernel.ForeignChain {
		f, err := k.Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]kernel.ForeignChain{}
		for _, c := range f.Chains {
			out[c.Family+" "+c.Table+" "+c.Chain] = c
		}
		return out
	}
	if got := facts(); len(got) != 0 {
		t.Errorf("in an empty namespace: %v", got)
	}
	run(t, ns, "iptables-nft", "-P", "FORWARD", "DROP")
	run(t, ns, "iptables-nft", "-N", "DOCKER-USER")
	run(t, ns, "iptables-nft", "-A", "FORWARD", "-j", "DOCKER-USER")
	run(t, ns, "iptables-nft", "-A", "INPUT", "-p", "tcp", "-j", "DROP")
	run(t, ns, "nft", `add table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; ct state established accept
		reject with icmpx admin-prohibited; }; chain filter_INPUT { type filter hook input priority 10; accept; }; }`)
	run(t, ns, "nft", `add table inet mine { chain f { type filter hook forward priority 0; log prefix "x" counter drop; }; chain o { type filter hook output priority 0; drop; }; }`)
	converge(t, k, []kernel.Object{testTable})
	run(t, ns, "nft", "add rule inet seine forward drop")
	want := map[string]kernel.ForeignChain{
		"ip filter FORWARD":             {Family: "ip", Table: "filter", Chain: "FORWARD", Hook: "forward", Why: "policy drop", Owner: "iptables (Docker)"},
		"inet firewalld filter_FORWARD": {Family: "inet", Table: "firewalld", Chain: "filter_FORWARD", Hook: "forward", Why: "last rule rejects", Owner: "firewalld"},
		"inet mine f":                   {Family: "inet", Table: "mine", Chain: "f", Hook: "forward", Why: "last rule rejects", Owner: "nftables table inet mine"},
	}
	got := facts()
	for k, w := range want {
		if got[k] != w {
			t.Errorf("%s: got %+v, want %+v", k, got[k], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	lock(t, ns)
	want["inet locked f"] = kernel.ForeignChain{Family: "inet", Table: "locked", Chain: "f", Hook: "forward", Why: "policy drop", Locked: true,
		Owner: "nftables table inet locked"}
	if got := facts()["inet locked f"]; got != want["inet locked f"] {
		t.Errorf("locked: got %+v", got)
	}
	all, err := k.ForeignChains(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open := kernel.ForeignChain{Family: "ip", Table: "filter", Chain: "INPUT", Hook: "input", Owner: "iptables (Docker, ufw)"}
	if len(all) != len(want)+2 || !slices.Contains(all, open) {
		t.Errorf("with those that drop nothing: %v", all)
	}
}

// lock has another program hold a table that nobody else may change, until the test ends.
func lock(t *testing.T, ns string) {
	t.Helper()
	cmd := exec.Command("nsenter", "--net="+ns, "nft", "-i")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	if _, err := in.Write([]byte("add table inet locked { flags owner; }\nadd chain inet locked f { type filter hook forward priority 0; policy drop; }\n")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); !strings.Contains(run(t, ns, "nft", "list", "chains"), "table inet locked {\n\tchain f"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Skip("skip: needs an nft that makes tables with an owner from its interactive mode")
		}
	}
}
