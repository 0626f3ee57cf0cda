package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

// ids gives an entry of vlanTrunk.
func ids(kv ...any) map[string]any {
	out := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		out[kv[i].(string)] = kv[i+1]
	}
	return out
}

var (
	vlan100   = with(bridge1, "vlan", 100)
	spoofless = with(bridge1, "macspoofchk", true)
)

// left gives the lines of a dump that are an attachment's or a gateway's.
func left(dump string) []string {
	var out []string
	for line := range strings.Lines(dump) {
		if strings.Contains(line, markPrefix) || strings.Contains(line, netns) {
			out = append(out, line)
		}
	}
	return out
}

func TestBridgeKeys(t *testing.T) {
	for what, c := range map[string]struct {
		conf string
		want []string
	}{
		"vlan": {vlan100, []string{"vlan_filtering 1", "vid 100 pvid untagged\n", "peer br1.100", "addr 10.1.0.1/24 dev br1.100", "addr fd00:1::1/64 dev br1.100",
			"net/ipv6/conf/br1.100/accept_dad = 0"}},
		"vlan in its trunk": {with(vlan100, "vlanTrunk", []any{ids("minID", 200, "maxID", 299), ids("id", 100), ids("id", 300), ids("id", 7, "minID", 9, "maxID", 9)}),
			[]string{"vid 7, 9, 100 pvid untagged, 200-300\n"}},
		"trunk alone":               {with(bridge1, "vlanTrunk", []any{ids("id", 5)}), []string{"vlan_filtering 1", "vid 1 pvid untagged, 5\n", "addr 10.1.0.1/24 dev br1\n"}},
		"empty trunk":               {with(bridge1, "vlanTrunk", []any{}), []string{"vlan_filtering 1"}},
		"preserveDefaultVlan":       {with(vlan100, "preserveDefaultVlan", true), []string{"vid 1 untagged, 100 pvid untagged\n"}},
		"macspoofchk":               {spoofless, []string{"element bridge seine_cni guarded { veth", "element bridge seine_cni source { veth", " . 02:00:00:00:00:01 }"}},
		"hairpinMode":               {with(bridge1, "hairpinMode", true), []string{"hairpin on"}},
		"portIsolation":             {with(bridge1, "portIsolation", true), []string{"isolated on"}},
		"promiscMode":               {with(bridge1, "promiscMode", true), []string{"promisc on"}},
		"mtu":                       {with(bridge1, "mtu", 1400), []string{"br1 type bridge mtu 1400", "type veth mtu 1400", "peer eth0 mtu 1400"}},
		"enabledad":                 {with(bridge1, "enabledad", true), []string{"addr fd00:1::2/64 dev eth0"}},
		"disableContainerInterface": {with(with(bridge1, "ipam", nil), "disableContainerInterface", true), []string{"peer eth0"}},
		"mac":                       {with(with(bridge1, "args", ids("cni", ids("mac", "02:00:00:00:aa:01"))), "runtimeConfig", ids("mac", "02:00:00:00:aa:02")), []string{"02:00:00:00:aa:02"}},
		"dns":                       {with(bridge1, "dns", ids("nameservers", []string{"192.0.2.53"})), nil},
	} {
		t.Run(what, func(t *testing.T) {
			n := newNode(t)
			out, code := n.call("bridge", "ADD", c.conf)
			if code != 0 {
				t.Fatalf("ADD: %s", out)
			}
			dump := n.kernel.Dump()
			for _, w := range c.want {
				if !strings.Contains(dump, w) {
					t.Errorf("after ADD the kernel does not hold %q:\n%s", w, dump)
				}
			}
			if what == "disableContainerInterface" && strings.Contains(dump, "link eth0 up") {
				t.Errorf("the interface is up:\n%s", dump)
			}
			if what == "dns" && !strings.Contains(out, "192.0.2.53") {
				t.Errorf("no dns in %s", out)
			}
			var prev any
			if err := json.Unmarshal([]byte(out), &prev); err != nil {
				t.Fatal(err)
			}
			if out, code := n.call("bridge", "CHECK", with(c.conf, "prevResult", prev)); code != 0 {
				t.Errorf("CHECK: %s", out)
			}
			// Neither namespace nor prevResult, and twice.
			for range 2 {
				if out, code := n.call("bridge", "DEL", c.conf, "CNI_NETNS="); code != 0 || out != "" {
					t.Errorf("DEL: %d %s", code, out)
				}
			}
			// The container's lo stays as ADD found it useful.
			for _, line := range left(n.kernel.Dump()) {
				if !strings.Contains(line, "conf/lo/") {
					t.Errorf("DEL leaves %s", line)
				}
			}
		})
	}
}

func TestBridgeErrors(t *testing.T) {
	for _, c := range []struct {
		conf  string
		code  Code
		names []string
	}{
		{with(bridge1, "vlan", 4095), CodeConfig, []string{"vlan", "4095", "1 to 4094"}},
		{with(vlan100, "bridge", "br-of-a-lab0"), CodeConfig, []string{"bridge", "br-of-a-lab0.100", "15 bytes"}},
		{with(bridge1, "vlanTrunk", []any{ids("id", 5), ids("minID", 9, "maxID", 4095)}), CodeConfig, []string{"vlanTrunk[1].maxID", "4095", "1 to 4094"}},
		{with(bridge1, "vlanTrunk", []any{ids("minID", 9, "maxID", 8)}), CodeConfig, []string{"vlanTrunk[0].minID", "9", "at most 8"}},
		{with(bridge1, "vlanTrunk", []any{ids("minID", 9)}), CodeConfig, []string{"vlanTrunk[0].maxID", "missing"}},
		{with(bridge1, "vlanTrunk", []any{ids("maxID", 9)}), CodeConfig, []string{"vlanTrunk[0].minID", "missing"}},
		{with(bridge1, "vlanTrunk", []any{ids("id", 0)}), CodeConfig, []string{"vlanTrunk[0].id", "0"}},
		{with(bridge1, "vlanTrunk", 7), CodeDecode, []string{"vlanTrunk", "list"}},
		{with(with(bridge1, "hairpinMode", true), "promiscMode", true), CodeConfig, []string{"promiscMode", "hairpinMode"}},
		{with(bridge1, "disableContainerInterface", true), CodeConfig, []string{"disableContainerInterface"}},
	} {
		n := newNode(t)
		before := n.kernel.Snapshot()
		out, status := n.call("bridge", "ADD", c.conf)
		var got struct{ Code Code }
		if err := json.Unmarshal([]byte(out), &got); err != nil || status != 1 || got.Code != c.code {
			t.Errorf("%s: status %d, %s; want code %d", c.conf, status, out, c.code)
		}
		for _, w := range c.names {
			if !strings.Contains(out, w) {
				t.Errorf("%s: %s does not name %q", c.conf, out, w)
			}
		}
		if d := before.Diff(n.kernel.Snapshot()); d != "" {
			t.Errorf("%s: changed\n%s", c.conf, d)
		}
		if out, code := n.call("bridge", "DEL", c.conf); code != 0 {
			t.Errorf("%s: DEL: %s", c.conf, out)
		}
	}
}

// A kernel without the ability: the error says so, and nothing is left.
func TestNoVLANFiltering(t *testing.T) {
	n := newNode(t)
	n.kernel.FailIf(func(c kernel.Change) error {
		if l, ok := c.New.(*kernel.Link); ok && l.VLANFiltering {
			return fmt.Errorf("%s: %w", l, kernel.ErrUnsupported)
		}
		return nil
	})
	out, status := n.call("bridge", "ADD", vlan100)
	if status == 0 || !strings.Contains(out, `"code": 2`) || !strings.Contains(out, "vlan_filtering") {
		t.Errorf("ADD: %d %s", status, out)
	}
	if dump := n.kernel.Dump(); strings.Contains(dump, "br1") || len(left(dump)) > 0 {
		t.Errorf("left behind:\n%s", dump)
	}
}

// The gateway of a VLAN belongs to all ports in it, whichever network's.
func TestVLANGatewayGoesWithTheLast(t *testing.T) {
	n := newNode(t)
	other := strings.NewReplacer("10.1.", "10.2.", "fd00:1:", "fd00:2:", `"net"`, `"two"`).Replace(with(with(bridge1, "isDefaultGateway", false),
		"vlanTrunk", []any{ids("minID", 90, "maxID", 110)}))
	for _, c := range []struct{ verb, conf, ifname string }{{"ADD", vlan100, "eth0"}, {"ADD", vlan100, "eth1"}, {"ADD", other, "eth2"},
		{"ADD", with(vlan100, "vlan", 200), "eth3"}} {
		if out, code := n.call("bridge", c.verb, c.conf, "CNI_IFNAME="+c.ifname); code != 0 {
			t.Fatal(out)
		}
	}
	for _, c := range []struct {
		conf, ifname string
		stays        bool
	}{{vlan100, "eth0", true}, {vlan100, "eth1", true}, {with(vlan100, "vlan", 200), "eth3", true}, {other, "eth2", false}} {
		if out, code := n.call("bridge", "DEL", c.conf, "CNI_IFNAME="+c.ifname); code != 0 {
			t.Fatal(out)
		}
		if stays := strings.Contains(n.kernel.Dump(), "peer br1.100"); stays != c.stays {
			t.Errorf("after the DEL of %s the gateway is there: %v, want %v\n%s", c.ifname, stays, c.stays, n.kernel.Dump())
		}
	}
	if dump := n.kernel.Dump(); strings.Contains(dump, "br1.200") {
		t.Errorf("the gateway of the other VLAN is left:\n%s", dump)
	}
	// And with those that GC removes.
	if out, code := n.call("bridge", "ADD", vlan100); code != 0 {
		t.Fatal(out)
	}
	if out, code := n.call("bridge", "GC", with(vlan100, "cni.dev/valid-attachments", []any{})); code != 0 || strings.Contains(n.kernel.Dump(), "br1.100") {
		t.Errorf("GC: %d %s\n%s", code, out, n.kernel.Dump())
	}
}

// An interface BRIDGE.VLAN that is somebody else's is used and stays.
func TestVLANGatewayOfOthers(t *testing.T) {
	n := newNode(t)
	n.kernel.AddForeign(&kernel.Link{Name: "br1.100", Type: kernel.Dummy})
	if out, code := n.call("bridge", "ADD", vlan100); code != 0 || !strings.Contains(n.kernel.Dump(), "addr 10.1.0.1/24 dev br1.100") {
		t.Fatalf("%s\n%s", out, n.kernel.Dump())
	}
	if out, code := n.call("bridge", "DEL", vlan100); code != 0 || !strings.Contains(n.kernel.Dump(), "link br1.100 type dummy") {
		t.Errorf("%s\n%s", out, n.kernel.Dump())
	}
}

func TestFailedBridgeAdd(t *testing.T) {
	for _, conf := range []string{vlan100, spoofless} {
		for at := 1; ; at++ {
			n := newNode(t)
			if out, code := n.call("bridge", "ADD", with(spoofless, "name", "first")); code != 0 {
				t.Fatal(out)
			}
			before := n.kernel.Dump()
			done := 0
			n.kernel.FailIf(func(c kernel.Change) error {
				if done++; done >= at && c.Op != kernel.Delete {
					return errors.New("no memory")
				}
				return nil
			})
			conf := strings.NewReplacer("10.1.", "10.2.", "fd00:1:", "fd00:2:", "br1", "br2").Replace(conf)
			out, code := n.call("bridge", "ADD", conf, "CNI_IFNAME=eth1")
			n.kernel.FailIf(nil)
			if code == 0 {
				if at < 15 {
					t.Errorf("ADD succeeds though change %d fails", at)
				}
				break
			}
			after := n.kernel.Dump()
			for line := range strings.Lines(before) {
				if !strings.Contains(after, line) {
					t.Errorf("change %d failed (%s): gone is %s", at, out, line)
				}
			}
			for line := range strings.Lines(after) {
				if !strings.Contains(before, line) && !strings.Contains(line, "sysctl net/") && !strings.Contains(line, "table ") && !strings.Contains(line, "chain ") {
					t.Errorf("change %d failed (%s): left is %s", at, out, line)
				}
			}
			if at > 200 {
				t.Fatal("no ADD succeeds")
			}
		}
	}
}

func TestGCOfGuards(t *testing.T) {
	n := newNode(t)
	for i := range 4 {
		if out, code := n.call("bridge", "ADD", spoofless, fmt.Sprintf("CNI_IFNAME=eth%d", i)); code != 0 {
			t.Fatal(out)
		}
	}
	valid := []any{ids("containerID", "c", "ifname", "eth1"), ids("containerID", "c", "ifname", "eth3")}
	if out, code := n.call("bridge", "GC", with(spoofless, "cni.dev/valid-attachments", valid)); code != 0 {
		t.Fatal(out)
	}
	for _, set := range []string{"guarded", "source"} {
		if got := strings.Count(n.kernel.Dump(), "element bridge seine_cni "+set); got != 2 {
			t.Errorf("%d elements of %s are left, want 2:\n%s", got, set, n.kernel.Dump())
		}
	}
}
