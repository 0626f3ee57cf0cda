package cni

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	gatewayIPAM = `{"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
		"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}`
	macvlan1 = `{"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "master": "up0", "mode": "private", "bcqueuelen": 7, "ipam": ` + gatewayIPAM + `}`
	ipvlan1  = `{"cniVersion": "1.1.0", "name": "net", "type": "ipvlan", "master": "up0", "mode": "l3", "ipam": ` + gatewayIPAM + `}`
	vlan1    = `{"cniVersion": "1.1.0", "name": "net", "type": "vlan", "master": "up0", "vlanId": 7, "ipam": ` + gatewayIPAM + `}`
	dummy1   = `{"cniVersion": "1.1.0", "name": "net", "type": "dummy", "ipam": ` + gatewayIPAM + `}`
)

var inner = map[string]string{"macvlan": macvlan1, "ipvlan": ipvlan1, "vlan": vlan1, "dummy": dummy1, "tap": tap1}

// add is an ADD that succeeds; it gives the result and the configuration that later verbs get.
func (n *node) add(plugin, conf string, env ...string) (*Result, string) {
	n.Helper()
	out, code := n.call(plugin, "ADD", conf, env...)
	if code != 0 {
		n.Fatalf("%s: ADD: %s", plugin, out)
	}
	res, err := decodeResult([]byte(out), "1.1.0")
	if err != nil {
		n.Fatal(err)
	}
	return res, with(conf, "prevResult", json.RawMessage(out))
}

func (n *node) must(plugin, verb, conf string, env ...string) {
	n.Helper()
	if out, code := n.call(plugin, verb, conf, env...); code != 0 {
		n.Errorf("%s: %s %v: %s", plugin, verb, env, out)
	}
}

// reserved gives the addresses that are taken in host-local's store.
func (n *node) reserved() []string {
	files, _ := filepath.Glob(n.data + "/net/[1f]*")
	return files
}

func TestInnerLifecycle(t *testing.T) {
	for plugin, conf := range inner {
		n := newNode(t)
		before := n.kernel.Snapshot()
		clean := func(after string) {
			t.Helper()
			if d := before.Diff(n.kernel.Snapshot()); d != "" || len(n.reserved()) > 0 {
				t.Errorf("%s: after %s there is left %s%s", plugin, after, d, n.reserved())
			}
		}
		res, prev := n.add(plugin, conf)
		if len(res.Interfaces) != 1 || res.Interfaces[0].Name != "eth0" || res.Interfaces[0].Sandbox != netns || len(res.IPs) != 2 || *res.IPs[1].Interface != 0 {
			t.Errorf("%s: result %+v", plugin, res)
		}
		if mac := n.link("eth0").MAC; res.Interfaces[0].MAC != mac {
			t.Errorf("%s: the result has the address %s, the interface %s", plugin, res.Interfaces[0].MAC, mac)
		}
		n.must(plugin, "CHECK", prev)
		if out, code := n.call(plugin, "ADD", conf); code == 0 || !strings.Contains(out, "already") {
			t.Errorf("%s: ADD again: %s", plugin, out)
		}
		n.must(plugin, "CHECK", prev)
		n.must(plugin, "DEL", prev)
		clean("DEL")
		if out, code := n.call(plugin, "CHECK", prev); code == 0 {
			t.Errorf("%s: CHECK after DEL: %s", plugin, out)
		}
		for _, env := range []string{"", "CNI_NETNS=", "CNI_NETNS=/gone"} {
			n.must(plugin, "DEL", prev, env)
		}
		for key, value := range map[string]any{"master": "up9", "mode": 5, "mtu": 99999, "vlanId": 9999, "prevResult": nil, "mac": "x"} {
			n.add(plugin, conf)
			n.must(plugin, "DEL", with(prev, key, value), "CNI_ARGS=COLOUR=red")
			clean("DEL with a wrong " + key)
		}
		n.add(plugin, conf)
		n.kernel.RemoveNamespace(netns)
		n.must(plugin, "DEL", prev, "CNI_NETNS=")
		n.kernel.AddNamespace(netns)
		clean("DEL without its namespace")
		if plugin != "dummy" {
			n.add(plugin, conf)
			n.kernel.Break((&kernel.Link{Name: "up0"}).Key())
			n.must(plugin, "DEL", prev)
			n.kernel.AddForeign(&kernel.Link{Name: "up0", Type: kernel.Bridge, MTU: 1500, MAC: "02:00:00:00:00:aa"})
			n.kernel.AddForeign(&kernel.LinkUp{Link: "up0"})
			clean("DEL without its master")
		}
	}
}

// link gives an interface of the container.
func (n *node) link(name string) *kernel.Link {
	n.Helper()
	objs, err := n.kernel.List(n.Context(), kernel.Scope{Objects: []kernel.Object{&kernel.Link{NS: netns, Name: name}}})
	if err != nil || len(objs) != 1 {
		n.Fatalf("interface %s: %v %v", name, objs, err)
	}
	return objs[0].(*kernel.Link)
}

// What is somebody else's stays, and nothing is taken for an ADD that can't be.
func TestInnerNameTaken(t *testing.T) {
	for plugin, conf := range inner {
		for _, theirs := range []kernel.Link{{Type: kernel.Bridge}, {Type: kernel.Dummy}, {Type: kernel.Dummy, Alias: ident{"net", "other", "eth0"}.mark()}} {
			n := newNode(t)
			theirs.NS, theirs.Name = netns, "eth0"
			n.kernel.AddForeign(&theirs)
			before := n.kernel.Snapshot()
			if out, code := n.call(plugin, "ADD", conf); code == 0 || !strings.Contains(out, "CNI_IFNAME") {
				t.Errorf("%s: ADD over another's interface: %s", plugin, out)
			}
			n.must(plugin, "DEL", conf)
			if d := before.Diff(n.kernel.Snapshot()); d != "" || len(n.reserved()) > 0 {
				t.Errorf("%s: changed %s%s", plugin, d, n.reserved())
			}
		}
	}
}

// What another implementation of the plugin made has no mark: CHECK and DEL go by its result.
func TestInnerMadeByOthers(t *testing.T) {
	for plugin, typ := range map[string]kernel.LinkType{"macvlan": kernel.Macvlan, "ipvlan": kernel.Ipvlan, "vlan": kernel.VLAN, "dummy": kernel.Dummy, "tap": kernel.Tap} {
		n := newNode(t)
		before := n.kernel.Snapshot()
		l := &kernel.Link{NS: netns, Name: "eth0", Type: typ}
		conf := with(inner[plugin], "ipam", map[string]any{"type": "static", "addresses": []any{map[string]string{"address": "10.1.0.2/24"}}})
		if plugin != "dummy" && plugin != "tap" {
			l.Parent = &kernel.Parent{Name: "up0"}
		}
		switch plugin {
		case "vlan":
			l.VLAN = 7
		case "macvlan":
			l.Mode = "private"
		}
		n.kernel.AddForeign(l)
		n.kernel.AddForeign(&kernel.Addr{NS: netns, Link: "eth0", Prefix: netip.MustParsePrefix("10.1.0.2/24")})
		n.kernel.AddForeign(&kernel.LinkUp{NS: netns, Link: "eth0"})
		n.must(plugin, "DEL", conf)
		if n.link("eth0") == nil {
			t.Errorf("%s: DEL without a result removes another's interface", plugin)
		}
		prev := with(conf, "prevResult", map[string]any{"cniVersion": "1.1.0", "interfaces": []any{map[string]string{"name": "eth0", "sandbox": netns}},
			"ips": []any{map[string]any{"address": "10.1.0.2/24", "interface": 0}}})
		n.must(plugin, "CHECK", prev)
		n.must(plugin, "DEL", prev)
		if d := before.Diff(n.kernel.Snapshot()); d != "" {
			t.Errorf("%s: DEL leaves %s", plugin, d)
		}
	}
}

// CHECK tells what ADD made from what others may change.
func TestInnerCheck(t *testing.T) {
	n := newNode(t)
	_, prev := n.add("macvlan", macvlan1)
	l := n.link("eth0")
	changed := *l
	changed.MAC, changed.MTU, changed.Parent = "02:00:00:00:00:77", 1300, &kernel.Parent{Name: "up0"}
	if err := n.kernel.Apply(t.Context(), []kernel.Change{{Op: kernel.Update, Old: l, New: &changed}})[0]; err != nil {
		t.Fatal(err)
	}
	n.must("macvlan", "CHECK", prev)
	for key, value := range map[string]string{"mode": "vepa", "master": "up1"} {
		n.kernel.AddForeign(&kernel.Link{Name: "up1", Type: kernel.Bridge})
		if out, code := n.call("macvlan", "CHECK", with(prev, key, value)); code == 0 || !strings.Contains(out, "differs") {
			t.Errorf("CHECK with another %s: %s", key, out)
		}
	}
	n.kernel.Break((&kernel.Addr{NS: netns, Link: "eth0", Prefix: netip.MustParsePrefix("fd00:1::2/64")}).Key())
	if out, code := n.call("macvlan", "CHECK", prev); code == 0 || !strings.Contains(out, "fd00:1::2/64") {
		t.Errorf("CHECK without an address: %s", out)
	}
}

// GC finds attachments in the namespaces that are known.
func TestInnerGC(t *testing.T) {
	for plugin, conf := range inner {
		n := newNode(t)
		n.kernel.AddNamespace("/run/netns/other")
		n.kernel.AddForeign(&kernel.Link{NS: "/run/netns/other", Name: "mine", Type: kernel.Dummy})
		n.add(plugin, conf)
		second := "/run/netns/other"
		other := with(conf, "vlanId", 8)
		n.add(plugin, other, "CNI_CONTAINERID=d", "CNI_NETNS="+second)
		_, prev := n.add(plugin, strings.Replace(with(conf, "vlanId", 9), `"name":"net"`, `"name":"net2"`, 1), "CNI_IFNAME=eth1")
		gc := with(conf, "cni.dev/valid-attachments", []any{map[string]string{"containerID": "c", "ifname": "eth0"}})
		n.must(plugin, "GC", gc)
		dump := n.kernel.Dump()
		for text, want := range map[string]bool{" net c eth0": true, " net2 c eth1": true, " net d eth0": false, "link mine type dummy": true} {
			if strings.Contains(dump, text) != want {
				t.Errorf("%s: after GC %q is there: %v, want %v:\n%s", plugin, text, !want, want, dump)
			}
		}
		if got := len(n.reserved()); got != 2 {
			t.Errorf("%s: after GC %d addresses are taken, want 2", plugin, got)
		}
		n.must(plugin, "CHECK", prev, "CNI_IFNAME=eth1")
	}
}

func TestMacvlanMAC(t *testing.T) {
	conf := with(macvlan1, "mac", "02:00:00:00:00:01")
	arg := "CNI_ARGS=MAC=02:00:00:00:00:02"
	args := map[string]any{"cni": map[string]string{"mac": "02:00:00:00:00:03"}}
	capability := map[string]string{"mac": "02:00:00:00:00:04"}
	for _, c := range []struct{ conf, env, want string }{
		{macvlan1, "", "02:"}, {conf, "", "02:00:00:00:00:01"}, {conf, arg, "02:00:00:00:00:02"},
		{with(conf, "args", args), arg, "02:00:00:00:00:03"}, {with(with(conf, "args", args), "runtimeConfig", capability), arg, "02:00:00:00:00:04"},
		{with(macvlan1, "mode", "passthru"), "", "02:00:00:00:00:aa"},
	} {
		n := newNode(t)
		res, _ := n.add("macvlan", c.conf, c.env)
		if got := res.Interfaces[0].MAC; !strings.HasPrefix(got, c.want) || n.link("eth0").MAC != got {
			t.Errorf("%s %s: address %s, of the interface %s, want %s", c.conf, c.env, got, n.link("eth0").MAC, c.want)
		}
	}
}

func TestMasterOfDefaultRoute(t *testing.T) {
	for _, inside := range []bool{false, true} {
		for plugin, conf := range map[string]string{"macvlan": macvlan1, "ipvlan": ipvlan1} {
			n := newNode(t)
			ns := ""
			if inside {
				ns = netns
			}
			for i, name := range []string{"wan1", "wan2"} {
				addr := []string{"192.0.2.1/24", "198.51.100.1/24"}[i]
				n.kernel.AddForeign(&kernel.Link{NS: ns, Name: name, Type: kernel.Bridge})
				n.kernel.AddForeign(&kernel.LinkUp{NS: ns, Link: name})
				n.kernel.AddForeign(&kernel.Addr{NS: ns, Link: name, Prefix: netip.MustParsePrefix(addr)})
				n.kernel.AddForeign(&kernel.Route{NS: ns, Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: name, Metric: 9 - i,
					Via: netip.MustParsePrefix(addr).Addr().Next()})
			}
			_, prev := n.add(plugin, with(with(conf, "master", ""), "linkInContainer", inside))
			if p := n.parent("eth0"); !strings.Contains(n.kernel.Dump(), "link wan2") || p != nil && p.Name != "wan2" {
				t.Errorf("%s inside %v: made on %v, want wan2:\n%s", plugin, inside, p, n.kernel.Dump())
			}
			n.kernel.Break((&kernel.Route{NS: ns, Dst: netip.MustParsePrefix("0.0.0.0/0"), Metric: 8}).Key())
			n.must(plugin, "CHECK", prev)
			n.must(plugin, "DEL", prev)
		}
	}
}

func (n *node) parent(name string) *kernel.Parent { return n.link(name).Parent }

// An ipvlan after another plugin takes its interface and its addresses.
func TestIpvlanChained(t *testing.T) {
	n := newNode(t)
	conf := with(with(with(with(ipvlan1, "ipam", nil), "master", nil), "dns", map[string]any{"nameservers": []string{"192.0.2.53"}}), "prevResult", map[string]any{
		"cniVersion": "1.1.0", "interfaces": []any{map[string]string{"name": "up0"}},
		"ips":    []any{map[string]any{"address": "10.7.0.2/24", "gateway": "10.7.0.1", "interface": 0}, map[string]any{"address": "fd00:7::2/64"}},
		"routes": []any{map[string]string{"dst": "0.0.0.0/0"}}})
	res, prev := n.add("ipvlan", conf)
	if len(res.Interfaces) != 1 || res.Interfaces[0].Sandbox != netns || len(res.IPs) != 2 || *res.IPs[1].Interface != 0 || len(res.Routes) != 1 ||
		len(res.DNS.Nameservers) != 1 {
		t.Errorf("result %+v", res)
	}
	dump := n.kernel.Dump()
	for _, w := range []string{"link up0 of the machine", "addr 10.7.0.2/24 dev eth0", "addr fd00:7::2/64 dev eth0", "route default via 10.7.0.1 dev eth0"} {
		if !strings.Contains(dump, w) {
			t.Errorf("after ADD the kernel does not hold %q:\n%s", w, dump)
		}
	}
	n.must("ipvlan", "CHECK", prev)
	n.must("ipvlan", "DEL", with(prev, "prevResult", nil), "CNI_NETNS=")
	n.must("ipvlan", "DEL", prev)
	if strings.Contains(n.kernel.Dump(), "eth0") {
		t.Errorf("DEL leaves\n%s", n.kernel.Dump())
	}
}

// The address plugin's DNS gets into the result; the configuration's own comes before it.
func TestInnerDNS(t *testing.T) {
	for plugin, conf := range inner {
		n := newNode(t)
		if err := os.WriteFile(n.data+"/resolv", []byte("nameserver 192.0.2.53\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		conf = strings.Replace(conf, `"dataDir"`, `"resolvConf": "DATA/resolv", "dataDir"`, 1)
		res, prev := n.add(plugin, conf)
		if len(res.DNS.Nameservers) != 1 || res.DNS.Nameservers[0] != "192.0.2.53" {
			t.Errorf("%s: DNS %+v", plugin, res.DNS)
		}
		n.must(plugin, "DEL", prev)
		res, _ = n.add(plugin, with(conf, "dns", map[string]any{"nameservers": []string{"192.0.2.54"}}))
		if len(res.DNS.Nameservers) != 1 || res.DNS.Nameservers[0] != "192.0.2.54" {
			t.Errorf("%s: DNS %+v, want the configuration's", plugin, res.DNS)
		}
	}
}

func TestMacvlanWithoutAddresses(t *testing.T) {
	n := newNode(t)
	res, prev := n.add("macvlan", with(macvlan1, "ipam", nil))
	if len(res.Interfaces) != 1 || len(res.IPs) != 0 || !strings.Contains(n.kernel.Dump(), "link eth0 up netns") {
		t.Errorf("result %+v:\n%s", res, n.kernel.Dump())
	}
	n.must("macvlan", "CHECK", prev)
	n.must("macvlan", "STATUS", with(macvlan1, "ipam", nil))
	n.must("macvlan", "GC", with(with(macvlan1, "ipam", nil), "cni.dev/valid-attachments", []any{}))
	if strings.Contains(n.kernel.Dump(), "macvlan") {
		t.Errorf("GC leaves\n%s", n.kernel.Dump())
	}
	n.must("macvlan", "DEL", prev)
}

// An address plugin that asks over the interface, such as dhcp on a macvlan, finds it up; what fails takes it back.
func TestInnerAddressesOverTheLink(t *testing.T) {
	for plugin, conf := range inner {
		n := newNode(t)
		var said []string
		var fail error
		ipams["asking"] = func(r *request) (ipam, error) {
			i, err := newStatic(r)
			return askingIPAM{i, n.kernel, fail, &said}, err
		}
		conf = with(conf, "ipam", map[string]any{"type": "asking", "addresses": []map[string]string{{"address": "10.1.0.2/24"}}})
		before := n.kernel.Snapshot()
		res, prev := n.add(plugin, conf)
		if len(res.IPs) != 1 || !strings.Contains(n.kernel.Dump(), "addr 10.1.0.2/24 dev eth0") {
			t.Errorf("%s: result %+v\n%s", plugin, res, n.kernel.Dump())
		}
		n.must(plugin, "DEL", prev)
		if strings.Join(said, ", ") != "add true, del true" {
			t.Errorf("%s: the address plugin was asked %v", plugin, said)
		}
		fail = errors.New("no server")
		if out, code := n.call(plugin, "ADD", conf); code == 0 || !strings.Contains(out, "no server") {
			t.Errorf("%s: ADD without a server: %s", plugin, out)
		}
		fail = nil
		n.kernel.FailIf(func(c kernel.Change) error {
			if _, ok := c.New.(*kernel.Addr); ok {
				return errors.New("no memory")
			}
			return nil
		})
		if out, code := n.call(plugin, "ADD", conf); code == 0 || !strings.Contains(out, "no memory") {
			t.Errorf("%s: ADD without memory: %s", plugin, out)
		}
		n.kernel.FailIf(nil)
		if d := before.Diff(n.kernel.Snapshot()); d != "" {
			t.Errorf("%s: left behind %s", plugin, d)
		}
		delete(ipams, "asking")
	}
}
