package cni

import (
	"fmt"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

const dhcp1 = `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br1", "ipam": {"type": "dhcp", "daemonSocketPath": "DATA/absent"}}`

// What is wrong with the configuration is found before anything is made; and without a daemon an ADD leaves nothing, a
// DEL and GC succeed, and STATUS says that an ADD can't be served.
func TestDHCPWithoutDaemon(t *testing.T) {
	edit := func(ipam string) string {
		return strings.Replace(dhcp1, `"type": "dhcp",`, `"type": "dhcp", `+ipam+`,`, 1)
	}
	prev := strings.TrimSuffix(dhcp1, "}") + `, "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "br1"}, {"name": "eth0", "sandbox": "/run/netns/c"}],
		"ips": [{"address": "10.1.0.2/24", "interface": 1}]}}`
	for _, c := range []struct {
		plugin, verb, conf string
		code               Code // 0: success
		names              string
	}{
		{"bridge", "ADD", dhcp1, CodeTryAgain, "absent no DHCP daemon answers seined"},
		{"bridge", "DEL", dhcp1, 0, ""},
		{"bridge", "DEL", edit(`"families": ["7"]`), 0, ""},
		{"bridge", "DEL", edit(`"provide": 5`), 0, ""},
		{"bridge", "CHECK", dhcp1, CodeConfig, "prevResult"},
		{"bridge", "CHECK", prev, CodeInternal, "no DHCP daemon answers"},
		{"bridge", "STATUS", dhcp1, CodeUnavailable, "no DHCP daemon answers"},
		{"bridge", "GC", strings.Replace(dhcp1, "{", `{"cni.dev/valid-attachments": [],`, 1), 0, ""},
		{"dhcp", "ADD", dhcp1, CodeTryAgain, "no DHCP daemon answers"},
		{"dhcp", "DEL", dhcp1, 0, ""},
		{"dhcp", "STATUS", dhcp1, CodeUnavailable, "no DHCP daemon answers"},
		{"bridge", "ADD", edit(`"families": ["7"]`), CodeConfig, "ipam.families[0] 7"},
		{"bridge", "STATUS", edit(`"families": ["7"]`), CodeConfig, "ipam.families[0] 7"},
		{"bridge", "ADD", edit(`"request": [{"option": "colour"}]`), CodeConfig, "ipam.request[0].option colour"},
		{"bridge", "ADD", edit(`"provide": [{"option": "53", "value": "1"}]`), CodeConfig, "ipam.provide[0].option 53"},
		{"bridge", "ADD", edit(`"provide": 5`), CodeDecode, "provide"},
		{"bridge", "ADD", edit(`"priority": -3`), CodeConfig, "ipam.priority -3"},
		{"ptp", "ADD", strings.Replace(dhcp1, "bridge", "ptp", 1), CodeConfig, "ipam.type dhcp host-local"},
	} {
		n := newNode(t)
		n.kernel.AddForeign(&kernel.Link{Name: "br1", Type: kernel.Bridge})
		n.kernel.AddForeign(&kernel.LinkUp{Link: "br1"})
		before := n.kernel.Snapshot()
		out, status := n.call(c.plugin, c.verb, c.conf)
		if c.code == 0 {
			if status != 0 || out != "" {
				t.Errorf("%s %s %s: %d %s", c.plugin, c.verb, c.conf, status, out)
			}
			continue
		}
		if !strings.Contains(out, fmt.Sprintf(`"code": %d,`, c.code)) || status == 0 {
			t.Errorf("%s %s %s: status %d, %s; want code %d", c.plugin, c.verb, c.conf, status, out, c.code)
		}
		for _, w := range strings.Fields(c.names) {
			if !strings.Contains(out, w) {
				t.Errorf("%s %s %s: %s does not name %q", c.plugin, c.verb, c.conf, out, w)
			}
		}
		if d := before.Diff(n.kernel.Snapshot()); d != "" {
			t.Errorf("%s %s %s: changed\n%s", c.plugin, c.verb, c.conf, d)
		}
	}
}
