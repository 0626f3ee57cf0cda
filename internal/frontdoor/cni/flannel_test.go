package cni

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	flannel1 = `{"cniVersion": "1.1.0", "name": "cbr0", "type": "flannel", "subnetFile": "DATA/subnet.env", "dataDir": "DATA/flannel",
		"ipam": {"dataDir": "DATA/networks", "routes": [{"dst": "192.0.2.0/24"}]}, "delegate": {"isDefaultGateway": true, "hairpinMode": true}}`
	subnet1 = "FLANNEL_NETWORK=10.42.0.0/16,10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\n" +
		"FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\nFURTHER=1\n"
)

// flanneld writes the subnet file.
func (n *node) flanneld(text string) {
	if err := os.WriteFile(filepath.Join(n.data, "subnet.env"), []byte(text), 0o600); err != nil {
		n.Fatal(err)
	}
}

// saved gives the names of the saved configurations.
func (n *node) saved() []string {
	var out []string
	entries, _ := os.ReadDir(filepath.Join(n.data, "flannel"))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// taken gives the addresses that are taken.
func (n *node) taken() (out []string) {
	entries, _ := os.ReadDir(filepath.Join(n.data, "networks", "cbr0"))
	for _, e := range entries {
		if strings.Contains(e.Name(), "10.") {
			out = append(out, e.Name())
		}
	}
	return out
}

// The form is the reference's: other versions of the plugin read the file.
func TestFlannelDelegateFile(t *testing.T) {
	n := newNode(t)
	n.flanneld(subnet1)
	if out, code := n.call("flannel", "ADD", with(flannel1, "runtimeConfig", ids("mac", "02:00:00:00:aa:01"))); code != 0 {
		t.Fatal(out)
	}
	data, err := os.ReadFile(filepath.Join(n.data, "flannel", "c"))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cniVersion":"1.1.0","hairpinMode":true,"ipMasq":true,"ipam":{"dataDir":"DATA/networks","ranges":[[{"subnet":"10.42.3.0/24"}],[{"subnet":"fd00:42:0:3::/64"}]],` +
		`"routes":[{"dst":"192.0.2.0/24"},{"dst":"10.42.0.0/16"},{"dst":"fd00:42::/56"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0",` +
		`"runtimeConfig":{"mac":"02:00:00:00:aa:01"},"seine.ifname":"eth0","type":"bridge"}`
	if got := strings.ReplaceAll(string(data), n.data, "DATA"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	dump := n.kernel.Dump()
	for _, w := range []string{"cni0 type bridge mtu 1450", "hairpin on", "addr 10.42.3.1/24 dev cni0", "addr fd00:42:0:3::1/64 dev cni0", "peer eth0 mtu 1450 address 02:00:00:00:aa:01",
		"route 10.42.0.0/16 via 10.42.3.1 dev eth0", "route fd00:42::/56 via fd00:42:0:3::1", "route default via 10.42.3.1", "masq4"} {
		if !strings.Contains(dump, w) {
			t.Errorf("the kernel does not hold %q:\n%s", w, dump)
		}
	}
}

func TestFlannelLife(t *testing.T) {
	for what, harm := range map[string]func(*node) string{
		"":                func(*node) string { return flannel1 },
		"no file":         func(n *node) string { os.RemoveAll(filepath.Join(n.data, "flannel")); return flannel1 },
		"no subnet.env":   func(n *node) string { os.Remove(filepath.Join(n.data, "subnet.env")); return flannel1 },
		"neither of both": func(n *node) string { os.RemoveAll(filepath.Join(n.data, "flannel")); n.flanneld("?"); return flannel1 },
		"broken file": func(n *node) string {
			os.WriteFile(filepath.Join(n.data, "flannel", "c"), []byte(`{"name": "cbr0", "cniVersion": 7}`), 0o600)
			return flannel1
		},
		"broken configuration": func(*node) string {
			return with(with(flannel1, "delegate", ids("type", 7, "name", "x", "mtu", "big")), "subnetFile", 5)
		},
		"reference's file": func(n *node) string { // has no ifname
			path := filepath.Join(n.data, "flannel", "c")
			data, _ := os.ReadFile(path)
			os.WriteFile(path, []byte(strings.Replace(string(data), `"seine.ifname":"eth0",`, "", 1)), 0o600)
			return with(flannel1, "delegate", nil)
		},
	} {
		t.Run(what, func(t *testing.T) {
			n := newNode(t)
			n.flanneld(subnet1)
			if out, code := n.call("flannel", "ADD", flannel1, "CNI_CONTAINERID=other", "CNI_IFNAME=eth7"); code != 0 {
				t.Fatal(out)
			}
			before := n.kernel.Dump()
			out, code := n.call("flannel", "ADD", flannel1)
			if code != 0 {
				t.Fatal(out)
			}
			var prev any
			if err := json.Unmarshal([]byte(out), &prev); err != nil {
				t.Fatal(err)
			}
			if out, code := n.call("flannel", "CHECK", with(flannel1, "prevResult", prev)); code != 0 {
				t.Errorf("CHECK: %s", out)
			}
			if out, code := n.call("flannel", "ADD", flannel1); code == 0 {
				t.Errorf("a second ADD of the same: %s", out)
			}
			if got := n.saved(); len(got) != 2 {
				t.Errorf("after an ADD that failed as it was there already the files are %q", got)
			}
			conf := harm(n)
			for range 2 {
				if out, code := n.call("flannel", "DEL", conf, "CNI_NETNS="); code != 0 {
					t.Errorf("DEL: %s", out)
				}
			}
			after := n.kernel.Dump()
			for line := range strings.Lines(after) {
				if !strings.Contains(before, line) && !strings.Contains(line, "conf/lo/") {
					t.Errorf("DEL leaves %s", line)
				}
			}
			for line := range strings.Lines(before) {
				if !strings.Contains(after, line) {
					t.Errorf("DEL took the other's %s", line)
				}
			}
			if got := n.taken(); len(got) != 1 {
				t.Errorf("addresses taken: %q, want the other's", got)
			}
			if got := n.saved(); what != "no file" && what != "neither of both" && what != "broken file" && (len(got) != 1 || got[0] != "other") {
				t.Errorf("saved: %q, want the other's", got)
			}
		})
	}
}

// Two interfaces of one container: each DEL takes its own.
func TestFlannelTwoAttachments(t *testing.T) {
	n := newNode(t)
	n.flanneld(subnet1)
	for _, ifname := range []string{"eth0", "eth1"} {
		if out, code := n.call("flannel", "ADD", flannel1, "CNI_IFNAME="+ifname); code != 0 {
			t.Fatal(out)
		}
	}
	if got := n.saved(); len(got) != 2 || got[0] != "c" || !strings.HasPrefix(got[1], "c@") {
		t.Errorf("saved: %q", got)
	}
	changed := with(flannel1, "delegate", ids("type", "ptp")) // the files tell what was made
	for left, ifname := range map[int]string{1: "eth0"} {
		for range 2 {
			if out, code := n.call("flannel", "DEL", changed, "CNI_IFNAME="+ifname); code != 0 {
				t.Error(out)
			}
		}
		if got := n.taken(); len(got) != left || len(n.saved()) != left || !strings.Contains(n.kernel.Dump(), " c eth1 ") {
			t.Errorf("after the DEL of %s: %q taken, %q saved, want %d\n%s", ifname, got, n.saved(), left, n.kernel.Dump())
		}
	}
	if out, code := n.call("flannel", "DEL", changed, "CNI_IFNAME=eth1"); code != 0 || len(n.saved())+len(n.taken()) != 0 {
		t.Errorf("%s: left %q %q", out, n.saved(), n.taken())
	}
	if dump := n.kernel.Dump(); strings.Contains(dump, " c eth") {
		t.Errorf("left:\n%s", dump)
	}
}

func TestFlannelGC(t *testing.T) {
	n := newNode(t)
	n.flanneld(subnet1)
	for _, id := range []string{"a", "b", "c"} {
		if out, code := n.call("flannel", "ADD", flannel1, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth"+id); code != 0 {
			t.Fatal(out)
		}
	}
	valid := []any{ids("containerID", "b", "ifname", "ethb"), ids("containerID", "c", "ifname", "eth9")}
	if out, code := n.call("flannel", "GC", with(flannel1, "cni.dev/valid-attachments", valid)); code != 0 {
		t.Fatal(out)
	}
	if got := n.saved(); len(got) != 1 || got[0] != "b" || len(n.taken()) != 1 || !strings.Contains(n.kernel.Dump(), " b ethb ") || strings.Contains(n.kernel.Dump(), " c ethc ") {
		t.Errorf("saved %q, taken %q:\n%s", got, n.taken(), n.kernel.Dump())
	}
}

func TestFlannelErrors(t *testing.T) {
	env := func(old, with string) string { return strings.Replace(subnet1, old, with, 1) }
	for _, c := range []struct {
		env, conf string
		code      Code
		names     []string
	}{
		{"", flannel1, CodeTryAgain, []string{"subnet.env", "flanneld"}},
		{env("10.42.3.1/24", "10.42.3.1"), flannel1, CodeConfig, []string{"subnet.env", "FLANNEL_SUBNET", "10.42.3.1"}},
		{env("10.42.0.0/16", "fd00::/16"), flannel1, CodeConfig, []string{"FLANNEL_NETWORK", "fd00::/16", "10.42.0.0/16"}},
		{env("1450", "x"), flannel1, CodeConfig, []string{"FLANNEL_MTU", "x", "68 to 65535"}},
		{env("=false", ""), flannel1, CodeConfig, []string{"FLANNEL_IPMASQ", "KEY=VALUE"}},
		{env("FLANNEL_IPMASQ=false", ""), flannel1, CodeConfig, []string{"FLANNEL_IPMASQ", "true or false"}},
		{"FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", flannel1, CodeConfig, []string{"FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK", "missing"}},
		{"FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", flannel1, CodeConfig, []string{"FLANNEL_SUBNET", "missing"}},
		{subnet1, with(flannel1, "delegate", ids("name", "x")), CodeConfig, []string{"delegate.name", "x"}},
		{subnet1, with(flannel1, "delegate", ids("ipam", ids())), CodeConfig, []string{"delegate.ipam"}},
		{subnet1, with(flannel1, "delegate", ids("type", 5)), CodeConfig, []string{"delegate.type", "5"}},
		{subnet1, with(flannel1, "delegate", ids("type", "flannel")), CodeConfig, []string{"delegate.type", "flannel"}},
		{subnet1, with(flannel1, "delegate", ids("type", "nothere")), CodeConfig, []string{"delegate.type", "nothere", "CNI_PATH"}},
		{subnet1, with(flannel1, "delegate", ids("vlan", 5000)), CodeConfig, []string{"vlan", "5000"}},
		{subnet1, with(flannel1, "ipam", ids("routes", 5)), CodeDecode, []string{"ipam.routes"}},
		{subnet1, with(flannel1, "subnetFile", ""), CodeConfig, []string{"subnetFile"}},
		{subnet1, with(flannel1, "dataDir", ""), CodeConfig, []string{"dataDir"}},
	} {
		n := newNode(t)
		if c.env != "" {
			n.flanneld(c.env)
		}
		before := n.kernel.Snapshot()
		out, status := n.call("flannel", "ADD", c.conf)
		var got struct{ Code Code }
		if err := json.Unmarshal([]byte(out), &got); err != nil || status != 1 || got.Code != c.code {
			t.Errorf("%s: status %d, %s; want code %d", c.conf, status, out, c.code)
		}
		for _, w := range c.names {
			if !strings.Contains(out, w) {
				t.Errorf("%s: %s does not name %q", c.conf, out, w)
			}
		}
		if d := before.Diff(n.kernel.Snapshot()); d != "" || len(n.saved()) > 0 {
			t.Errorf("%s: changed %q\n%s", c.conf, n.saved(), d)
		}
		want := `"code": 50`
		if c.env == subnet1 {
			want = `"code": `
		}
		if out, status := n.call("flannel", "STATUS", c.conf); status == 0 || !strings.Contains(out, want) {
			t.Errorf("%s: STATUS: %s, want %s", c.conf, out, want)
		}
	}
	n := newNode(t)
	n.flanneld(subnet1)
	if out, status := n.call("flannel", "STATUS", flannel1); status != 0 {
		t.Errorf("STATUS: %s", out)
	}
}

// A delegate that is somebody else's program gets the configuration, and the verbs.
func TestFlannelForeignDelegate(t *testing.T) {
	n := newNode(t)
	n.flanneld(subnet1)
	script := "#!/bin/sh\ncat >>\"$LOG\"\necho \" $CNI_COMMAND\" >>\"$LOG\"\n[ $CNI_COMMAND != ADD ] || echo '{\"cniVersion\": \"1.1.0\", \"ips\": [{\"address\": \"10.42.3.9/24\"}]}'\n"
	if err := os.WriteFile(filepath.Join(n.data, "mine"), []byte(strings.ReplaceAll(script, "$LOG", filepath.Join(n.data, "log"))), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := with(flannel1, "delegate", ids("type", "mine"))
	if out, status := n.call("flannel", "ADD", conf); status != 0 || !strings.Contains(out, "10.42.3.9/24") {
		t.Fatal(out)
	}
	if out, status := n.call("flannel", "DEL", flannel1); status != 0 {
		t.Fatal(out)
	}
	log, _ := os.ReadFile(filepath.Join(n.data, "log"))
	if lines := strings.Split(strings.TrimSpace(string(log)), "\n"); len(lines) != 2 || !strings.HasSuffix(lines[0], " ADD") || !strings.HasSuffix(lines[1], " DEL") ||
		!strings.Contains(lines[1], `"subnet":"10.42.3.0/24"`) || strings.Contains(string(log), "seine") {
		t.Errorf("the delegate was called with %s", log)
	}
}

func FuzzSubnetEnv(f *testing.F) {
	f.Add(subnet1)
	f.Add("FLANNEL_SUBNET")
	f.Fuzz(func(t *testing.T, text string) {
		env, err := parseSubnetEnv([]byte(text))
		if err == nil && (len(env.subnets) == 0 || len(env.networks) == 0 || env.mtu < 0) {
			t.Errorf("%q gives %+v", text, env)
		}
	})
}

func FuzzFlannel(f *testing.F) {
	f.Add(flannel1)
	f.Add(`{"cniVersion": "0.3.1", "name": "n", "delegate": {"type": "ptp", "mtu": 1}, "ipam": {"routes": [{}]}, "runtimeConfig": 5}`)
	f.Fuzz(func(t *testing.T, conf string) {
		var c struct{ IPAM, Delegate map[string]any }
		if json.Unmarshal([]byte(conf), &c) != nil || json.Unmarshal([]byte(conf), &map[string]any{}) != nil || strings.Contains(conf, `\`) {
			return
		}
		if c.IPAM == nil {
			c.IPAM = map[string]any{}
		}
		c.IPAM["dataDir"] = "DATA/networks"
		if !strings.Contains(strings.ToLower(conf), "datadir") {
			conf = with(with(with(conf, "ipam", c.IPAM), "dataDir", "DATA/flannel"), "subnetFile", "DATA/subnet.env")
		} else if conf != flannel1 {
			return // of any case and anywhere: nothing is to be written outside
		}
		n := newNode(t)
		n.flanneld(subnet1)
		for _, verb := range []string{"ADD", "CHECK", "DEL", "GC", "STATUS"} {
			out, code := n.call("flannel", verb, conf)
			var e struct{ Code Code }
			if code != 0 && (json.Unmarshal([]byte(out), &e) != nil || e.Code == 0) {
				t.Fatalf("%s: %q is no error of the specification", verb, out)
			}
		}
	})
}
