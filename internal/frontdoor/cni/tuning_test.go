package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

// chained is a prevResult of an interface eth0 with an address of each family.
const chained = `"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "br1"}, {"name": "eth0", "mac": "02:00:00:00:00:0a", "mtu": 1500, "sandbox": "/run/netns/c"}],
	"ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1}, {"address": "fd00:1::2/64", "gateway": "fd00:1::1", "interface": 1}]}`

const (
	tuning1 = `{"cniVersion": "1.1.0", "name": "net", "type": "tuning", "dataDir": "DATA/tuning", "sysctl": {"net.core.somaxconn": "500", "net/ipv4/conf/IFNAME/log_martians": "1"},
		"mac": "02:00:00:00:00:0B", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 2000, ` + chained + `}`
	sbr1 = `{"cniVersion": "1.1.0", "name": "net", "type": "sbr", ` + chained + `}`
	vrf1 = `{"cniVersion": "1.1.0", "name": "net", "type": "vrf", "vrfname": "blue", ` + chained + `}`
)

// inside makes what another plugin has made: an interface in the container with addresses, and routes by them.
func (n *node) inside(ifname string, net int) {
	n.Helper()
	host := "h" + ifname
	for _, o := range []kernel.Object{
		&kernel.Link{Name: host, Type: kernel.Veth, Peer: &kernel.Peer{NS: netns, Name: ifname, MAC: "02:00:00:00:00:0a"}},
		&kernel.LinkUp{Link: host},
		&kernel.LinkUp{NS: netns, Link: ifname},
		&kernel.Addr{NS: netns, Link: ifname, Prefix: prefixOf("10.%d.0.2/24", net)},
		&kernel.Addr{NS: netns, Link: ifname, Prefix: prefixOf("fd00:%d::2/64", net)},
		&kernel.Route{NS: netns, Dst: prefixOf("0.0.0.0/0"), Via: prefixOf("10.%d.0.1/32", net).Addr(), Link: ifname, Metric: net},
		&kernel.Route{NS: netns, Dst: prefixOf("::/0"), Via: prefixOf("fd00:%d::1/128", net).Addr(), Link: ifname, Metric: 1024 + net},
	} {
		n.kernel.AddForeign(o)
	}
}

func (n *node) does(plugin, verb, conf string, env ...string) string {
	n.Helper()
	out, code := n.call(plugin, verb, conf, env...)
	if code != 0 {
		n.Fatalf("%s %s: %s", plugin, verb, out)
	}
	return out
}

func (n *node) backups() string {
	n.Helper()
	var out []string
	files, _ := os.ReadDir(filepath.Join(n.data, "tuning"))
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(n.data, "tuning", f.Name()))
		if err != nil {
			n.Fatal(err)
		}
		out = append(out, f.Name()+" "+strings.Join(strings.Fields(string(b)), ""))
	}
	return strings.Join(out, "\n")
}

func TestTuning(t *testing.T) {
	n := newNode(t)
	n.inside("eth0", 1)
	before := n.kernel.Snapshot()
	out := n.does("tuning", "ADD", tuning1)
	var res struct{ Interfaces []Interface }
	if err := json.Unmarshal([]byte(out), &res); err != nil || res.Interfaces[1].MAC != "02:00:00:00:00:0b" || res.Interfaces[1].MTU != 1400 || res.Interfaces[0].MAC != "" {
		t.Errorf("the result is %s (%v)", out, err)
	}
	dump := n.kernel.Dump()
	for _, w := range []string{"sysctl net/core/somaxconn = 500 netns /run/netns/c", "sysctl net/ipv4/conf/eth0/log_martians = 1",
		"peer eth0 mtu 1400 address 02:00:00:00:00:0b", "eth0 txqueuelen 2000 allmulticast on"} {
		if !strings.Contains(dump, w) {
			t.Errorf("after ADD the kernel does not hold %q:\n%s", w, dump)
		}
	}
	want := `c_eth0.json {"mac":"02:00:00:00:00:0a","promisc":false,"mtu":1500,"allmulti":false,"txQLen":1000,"network":"net","sandbox":"/run/netns/c"}`
	if got := n.backups(); got != want {
		t.Errorf("kept is %s\nwant %s", got, want)
	}
	after := strings.NewReplacer("02:00:00:00:00:0a", "02:00:00:00:00:0b", `"mtu": 1500`, `"mtu": 1400`).Replace(tuning1)
	n.ok("tuning", "CHECK", after)
	// A plugin later in the chain changed them.
	n.ok("tuning", "CHECK", strings.NewReplacer("02:00:00:00:00:0a", "02:00:00:00:00:0c", `"mtu": 1500`, `"mtu": 1350`).Replace(tuning1))
	n.ok("tuning", "STATUS", tuning1)
	for _, o := range []kernel.Object{&kernel.Attrs{NS: netns, Link: "eth0", MTU: 1450}, &kernel.Sysctl{NS: netns, Name: "net/core/somaxconn", Value: "7"}} {
		was, _ := n.kernel.List(t.Context(), kernel.Scope{Objects: []kernel.Object{o}})
		n.kernel.Apply(t.Context(), creations(o))
		if out, code := n.call("tuning", "CHECK", after); code == 0 || !strings.Contains(out, o.String()) && !strings.Contains(out, "eth0 mtu 1400") && !strings.Contains(out, "somaxconn = 500") {
			t.Errorf("CHECK after %s: %s", o, out)
		}
		n.kernel.Apply(t.Context(), creations(was...))
	}
	for range 2 {
		n.ok("tuning", "DEL", after)
	}
	if got := n.backups(); got != "" {
		t.Errorf("DEL leaves %s", got)
	}
	if d := before.Diff(n.kernel.Snapshot()); d != "+ sysctl net/core/somaxconn = 500 netns /run/netns/c\n+ sysctl net/ipv4/conf/eth0/log_martians = 1 netns /run/netns/c" {
		t.Errorf("ADD and DEL change more than sysctls:\n%s", d)
	}
}

// Each source of a value goes before those above it.
func TestTuningPrecedence(t *testing.T) {
	mac := func(i int) string { return fmt.Sprintf("02:00:00:00:01:%02d", i) }
	conf := `{"cniVersion": "1.1.0", "name": "net", "dataDir": "DATA/tuning", ` + chained + `}`
	for i, c := range []struct {
		key   string
		value any
		env   string
	}{
		{"mac", mac(0), ""},
		{"type", "tuning", "CNI_ARGS=MAC=" + mac(1)},
		{"runtimeConfig", map[string]string{"mac": mac(2)}, ""},
		{"args", map[string]any{"cni": map[string]any{"mac": mac(3), "mtu": 1300, "promisc": false, "allmulti": true, "txQLen": 7, "sysctl": map[string]string{"net/core/somaxconn": "9"}}}, ""},
	} {
		conf = with(conf, c.key, c.value)
		env := c.env
		if i > 1 {
			env = "CNI_ARGS=MAC=" + mac(1)
		}
		n := newNode(t)
		n.inside("eth0", 1)
		n.ok("tuning", "ADD", conf, env)
		if got := n.kernel.Dump(); !strings.Contains(got, mac(i)) {
			t.Errorf("%s: want %s in\n%s", c.key, mac(i), got)
		}
	}
	n := newNode(t)
	n.inside("eth0", 1)
	n.ok("tuning", "ADD", with(with(with(conf, "mtu", 1400), "promisc", true), "sysctl", map[string]string{"net.core.somaxconn": "5", "net.ipv4.tcp_syncookies": "0"}))
	for _, w := range []string{"mtu 1300", "txqueuelen 7 allmulticast on", "somaxconn = 9", "tcp_syncookies = 0"} {
		if got := n.kernel.Dump(); !strings.Contains(got, w) || strings.Contains(got, "promisc on") {
			t.Errorf("want %q and no promisc in\n%s", w, got)
		}
	}
}

func TestSysctlNames(t *testing.T) {
	for key, want := range map[string]string{
		"net.core.somaxconn":                "net/core/somaxconn",
		"net/core/somaxconn":                "net/core/somaxconn",
		"/net/core/somaxconn":               "net/core/somaxconn",
		"net.ipv4.conf.IFNAME.arp_notify":   "net/ipv4/conf/eth0.7/arp_notify",
		"net/ipv4/conf/IFNAME/arp_notify":   "net/ipv4/conf/eth0.7/arp_notify",
		"net.ipv4.conf.eth1/100.arp_notify": "net/ipv4/conf/eth1.100/arp_notify",
		"net/ipv4/conf/eth1.100/arp_notify": "net/ipv4/conf/eth1.100/arp_notify",
		"kernel.shmmax":                     "",
		"net":                               "",
		"":                                  "",
		"network.x":                         "",
		"net/../kernel/shmmax":              "",
		"net/core/../ipv4/ip_forward":       "",
		"net..core":                         "",
		"net/core/":                         "",
		"net/\x00":                          "",
	} {
		got, err := mergeSysctls(sysctlConf{{key: key, value: "1"}}, nil, "eth0.7")
		switch {
		case want == "" && err == nil:
			t.Errorf("%q gives %v, want an error", key, got)
		case want != "" && (err != nil || got[0].path != want):
			t.Errorf("%q gives %v (%v), want %s", key, got, err, want)
		}
	}
}

func TestAllowlist(t *testing.T) {
	for list, ok := range map[string]bool{
		"":                       false,
		"^net.core.somaxconn$\n": false,
		"\n^net\\.core\\.\n ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$ \n": true,
		"net.core\nlog_martians": true,
		"(":                      false,
	} {
		n := newNode(t)
		n.inside("eth0", 1)
		if err := os.WriteFile(filepath.Join(n.data, "allowlist.conf"), []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
		before := n.kernel.Dump()
		for _, verb := range []string{"STATUS", "ADD"} {
			if out, code := n.call("tuning", verb, tuning1); code == 0 != ok {
				t.Errorf("%q: %s: %s", list, verb, out)
			}
		}
		if !ok && n.kernel.Dump() != before || !ok && n.backups() != "" {
			t.Errorf("%q: changed something", list)
		}
	}
}

// Two of them in a chain: what was before the first is what is put back.
func TestTuningTwice(t *testing.T) {
	n := newNode(t)
	n.inside("eth0", 1)
	before := n.kernel.Snapshot()
	first := with(with(tuning1, "sysctl", nil), "mtu", 0)
	second := `{"cniVersion": "1.1.0", "name": "net", "dataDir": "DATA/tuning", "mtu": 1300, "mac": "02:00:00:00:00:0c", ` + chained + `}`
	n.ok("tuning", "ADD", first)
	kept := n.backups()
	n.kernel.FailIf(func(c kernel.Change) error {
		if c.Op == kernel.Create {
			return errors.New("no memory")
		}
		return nil
	})
	if out, code := n.call("tuning", "ADD", second); code == 0 || n.backups() != kept {
		t.Errorf("a failed ADD: %s leaves %s", out, n.backups())
	}
	n.kernel.FailIf(nil)
	n.ok("tuning", "ADD", second)
	n.ok("tuning", "DEL", second)
	n.ok("tuning", "DEL", first)
	if d := before.Diff(n.kernel.Snapshot()); d != "" || n.backups() != "" {
		t.Errorf("left are %s and\n%s", n.backups(), d)
	}
}

func TestTuningDelAndGC(t *testing.T) {
	for what, c := range map[string]struct {
		conf string
		env  []string
		left bool
	}{
		"namespace gone":  {tuning1, []string{"CNI_NETNS=/gone"}, false},
		"no namespace":    {tuning1, []string{"CNI_NETNS="}, false},
		"broken":          {with(with(with(tuning1, "mtu", "big"), "sysctl", []int{1}), "prevResult", 7), nil, false},
		"unknown args":    {tuning1, []string{"CNI_ARGS=COLOUR=red"}, false},
		"another network": {with(tuning1, "name", "two"), nil, true},
		"another name":    {tuning1, []string{"CNI_IFNAME=eth1"}, true},
	} {
		n := newNode(t)
		n.inside("eth0", 1)
		n.ok("tuning", "ADD", tuning1)
		n.ok("tuning", "DEL", c.conf, c.env...)
		if (n.backups() != "") != c.left {
			t.Errorf("%s: DEL leaves %q", what, n.backups())
		}
	}
	n := newNode(t)
	n.inside("eth0", 1)
	n.ok("tuning", "ADD", tuning1)
	n.ok("tuning", "ADD", tuning1, "CNI_CONTAINERID=d")
	n.ok("tuning", "ADD", with(tuning1, "name", "two"), "CNI_CONTAINERID=e")
	if err := os.WriteFile(filepath.Join(n.data, "tuning", "f_eth0.json"), []byte(`{"mtu": 1500}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.ok("tuning", "GC", with(tuning1, "cni.dev/valid-attachments", []attachment{{"d", "eth0"}, {"c", "eth1"}}))
	got := n.backups()
	for name, want := range map[string]bool{"c_eth0": false, "d_eth0": true, "e_eth0": true, "f_eth0": true} {
		if strings.Contains(got, name) != want {
			t.Errorf("after GC there is %s: %v, want %v", name, !want, want)
		}
	}
	// What the reference plugin kept is put back.
	n.ok("tuning", "DEL", tuning1, "CNI_CONTAINERID=f")
	if strings.Contains(n.backups(), "f_eth0") || strings.Contains(n.kernel.Dump(), "mtu 1400") {
		t.Errorf("DEL of the reference's leaves %s and\n%s", n.backups(), n.kernel.Dump())
	}
}

// eachFailure lets one change of an ADD after the other fail, until it succeeds.
func eachFailure(t *testing.T, plugin, conf string, prepare func(*node)) {
	for at := 1; ; at++ {
		n := newNode(t)
		prepare(n)
		before := n.kernel.Snapshot()
		n.kernel.FailAt(at, errors.New("no memory"))
		out, code := n.call(plugin, "ADD", conf)
		n.kernel.FailAt(0, nil)
		if code == 0 {
			if at < 2 {
				t.Errorf("%s: ADD succeeds though change %d fails", plugin, at)
			}
			return
		}
		if d := before.Diff(n.kernel.Snapshot()); d != "" || n.backups() != "" {
			t.Errorf("%s: change %d failed (%s): left are %s and\n%s", plugin, at, strings.TrimSpace(out), n.backups(), d)
		}
		if at > 100 {
			t.Fatal("no ADD succeeds")
		}
	}
}

func TestFailedChainedAdd(t *testing.T) {
	for plugin, conf := range map[string]string{"tuning": tuning1, "sbr": sbr1, "vrf": vrf1} {
		eachFailure(t, plugin, conf, func(n *node) { n.inside("eth0", 1) })
	}
	eachFailure(t, "sbr", with(with(sbr1, "addSourceHints", true), "gateways", []string{"10.1.0.9"}), func(n *node) { n.inside("eth0", 1); n.inside("eth1", 2) })
}
