package cni

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

// keyRow is one key of a plugin's configuration.
type keyRow struct {
	// path is the key's, its parts apart by dots; a number is an index of a list.
	path string
	// kind is the type that it takes: string, number, bool, list or object.
	kind string
	// wrong are values of that type that it does not take.
	wrong []any
}

var (
	badNames = []any{"a/b", "a name of more than 15 bytes", ".."}
	badMACs  = []any{"02:00", "01:00:00:00:00:00", "00:00:00:00:00:00", "nonsense"}
	badMTUs  = []any{-1, 67, 65536}
	badIPs   = []any{"nonsense", "10.1.0.300", "fe80::1%eth0"}
)

func rows(groups ...[]keyRow) []keyRow { return slices.Concat(groups...) }

// sharedKeys are what every plugin has.
var sharedKeys = []keyRow{
	{"cniVersion", "string", []any{"9.9.9", "nonsense"}},
	{"name", "string", []any{"", "a b", "../x"}},
	{"prevResult", "object", nil},
	{"prevResult.ips", "list", nil},
	{"prevResult.ips.0.address", "string", []any{"nonsense", "10.1.0.2"}},
	{"prevResult.ips.0.interface", "number", []any{777, -1}},
	{"prevResult.interfaces", "list", nil},
	{"prevResult.interfaces.0.name", "string", nil},
	{"prevResult.routes.0.dst", "string", []any{"nonsense"}},
	{"prevResult.dns.nameservers", "list", nil},
}

var macKeys = []keyRow{{"runtimeConfig.mac", "string", badMACs}, {"args.cni.mac", "string", badMACs}}

var hostLocalKeys = []keyRow{
	{"ipam", "object", nil},
	{"ipam.type", "string", []any{"nothere", "a/b"}},
	{"ipam.ranges", "list", []any{[]any{[]any{}}}},
	{"ipam.ranges.0.0.subnet", "string", []any{"nonsense", "10.1.0.5/24", "10.1.0.0/31", "10.1.0.0"}},
	{"ipam.ranges.0.0.rangeStart", "string", []any{"nonsense", "10.9.0.1", "fd00::1"}},
	{"ipam.ranges.0.0.rangeEnd", "string", []any{"nonsense", "10.9.0.1"}},
	{"ipam.ranges.0.0.gateway", "string", []any{"nonsense", "fd00::1"}},
	{"ipam.subnet", "string", []any{"nonsense", "10.7.0.5/24"}},
	{"ipam.routes", "list", nil},
	{"ipam.routes.0.dst", "string", []any{"nonsense", "10.7.0.5/24"}},
	{"ipam.routes.0.gw", "string", []any{"nonsense", "fd00::1"}},
	{"ipam.routes.0.mtu", "number", []any{-1, 65536}},
	{"ipam.routes.0.advmss", "number", []any{-1, 65536}},
	{"ipam.routes.0.priority", "number", []any{-1, 1 << 32}},
	{"ipam.routes.0.table", "number", []any{-1, 1 << 32}},
	{"ipam.routes.0.scope", "number", []any{-1, 256}},
	{"ipam.dataDir", "string", nil},
	{"ipam.resolvConf", "string", []any{"/nonexistent"}},
	{"runtimeConfig.ips", "list", []any{[]any{"nonsense"}, []any{"10.9.0.1"}}},
	{"runtimeConfig.ipRanges", "list", []any{[]any{[]any{map[string]any{"subnet": "nonsense"}}}}},
	{"args.cni.ips", "list", []any{[]any{"nonsense"}, []any{"10.9.0.1"}}},
}

var staticKeys = []keyRow{
	{"ipam.addresses", "list", nil},
	{"ipam.addresses.0.address", "string", []any{"nonsense", "10.1.0.2", "0.0.0.0/0"}},
	{"ipam.addresses.0.gateway", "string", badIPs},
	{"ipam.routes.0.dst", "string", []any{"nonsense"}},
	{"ipam.dns.nameservers", "list", nil},
	{"ipam.dns.search", "list", nil},
	{"ipam.dns.options", "list", nil},
	{"ipam.dns.domain", "string", nil},
	{"runtimeConfig.ips", "list", []any{[]any{"nonsense"}}},
	{"args.cni.ips", "list", []any{[]any{"nonsense"}}},
}

var masqKeys = []keyRow{{"ipMasq", "bool", nil}, {"ipMasqBackend", "string", []any{"pf"}}}

var upperKeys = []keyRow{{"master", "string", append([]any{"up9"}, badNames...)}, {"mtu", "number", badMTUs}, {"linkInContainer", "bool", nil}}

// pluginKeys are the keys of every plugin.
var pluginKeys = []struct {
	plugin, conf string
	node         func(*node)
	keys         []keyRow
}{
	{"bridge", bridge1, nil, rows(sharedKeys, macKeys, hostLocalKeys, masqKeys, []keyRow{
		{"bridge", "string", append([]any{"lo"}, badNames...)}, {"isGateway", "bool", nil}, {"isDefaultGateway", "bool", nil},
		{"forceAddress", "bool", nil}, {"mtu", "number", badMTUs}, {"hairpinMode", "bool", nil}, {"promiscMode", "bool", nil},
		{"vlan", "number", []any{-1, 4095}}, {"vlanTrunk", "list", nil}, {"vlanTrunk.0.id", "number", []any{-1, 4095}},
		{"vlanTrunk.0.minID", "number", []any{-1, 4095}}, {"vlanTrunk.0.maxID", "number", []any{-1, 4095}},
		{"preserveDefaultVlan", "bool", nil}, {"macspoofchk", "bool", nil}, {"enabledad", "bool", nil},
		{"disableContainerInterface", "bool", nil}, {"portIsolation", "bool", nil}, {"dns.nameservers", "list", nil}, {"dns", "object", nil},
	})},
	{"ptp", ptp1, nil, rows(sharedKeys, hostLocalKeys, masqKeys, []keyRow{{"mtu", "number", badMTUs}, {"dns", "object", nil}})},
	{"macvlan", macvlan1, nil, rows(sharedKeys, macKeys, upperKeys, hostLocalKeys, []keyRow{{"mode", "string", []any{"tap", "source"}},
		{"mac", "string", badMACs}, {"bcqueuelen", "number", []any{-1, 1 << 32}}})},
	{"ipvlan", ipvlan1, nil, rows(sharedKeys, upperKeys, hostLocalKeys, []keyRow{{"mode", "string", []any{"l4", "bridge"}}})},
	{"vlan", vlan1, nil, rows(sharedKeys, upperKeys, hostLocalKeys, []keyRow{{"vlanId", "number", []any{-1, 4095}}})},
	{"dummy", dummy1, nil, rows(sharedKeys, hostLocalKeys)},
	{"tap", tap1, nil, rows(sharedKeys, macKeys, hostLocalKeys, []keyRow{{"multiQueue", "bool", nil}, {"mtu", "number", badMTUs}, {"mac", "string", badMACs},
		{"owner", "number", []any{-1, 1 << 32, 1<<32 - 1}}, {"group", "number", []any{-1, 1 << 32, 1<<32 - 1}}, {"selinuxContext", "string", []any{"a:b:c:s0"}},
		{"bridge", "string", append([]any{"br9"}, badNames...)}})},
	{"host-device", device1, func(n *node) { n.kernel.AddForeign(&kernel.Link{Name: "eth3", MAC: "02:00:00:00:00:33"}) }, rows(sharedKeys, hostLocalKeys, []keyRow{
		{"device", "string", append([]any{"eth9", "lo"}, badNames...)}, {"hwaddr", "string", nil}, {"kernelpath", "string", nil},
		{"pciBusID", "string", nil}, {"runtimeConfig.deviceID", "string", []any{"vf7"}}})},
	{"loopback", `{"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}`, nil, sharedKeys},
	{"host-local", `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ` + dualIPAM + `}`, nil,
		rows(sharedKeys, slices.DeleteFunc(slices.Clone(hostLocalKeys), func(k keyRow) bool { return k.path == "ipam.type" }))},
	{"static", `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "static", "addresses": [{"address": "10.1.0.2/24"}]}}`, nil, rows(sharedKeys, staticKeys)},
	{"dhcp", `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "dhcp", "daemonSocketPath": "DATA/none"}}`, nil, rows(sharedKeys, []keyRow{
		{"ipam.daemonSocketPath", "string", nil}, {"ipam.provide", "list", nil}, {"ipam.provide.0.option", "string", []any{"nonsense", "999", "53"}},
		{"ipam.provide.0.value", "string", nil}, {"ipam.provide.0.fromArg", "string", nil}, {"ipam.request", "list", nil},
		{"ipam.request.0.option", "string", []any{"nonsense", "999"}}, {"ipam.request.0.skipDefault", "bool", nil},
		{"ipam.priority", "number", []any{-1, 1 << 32}}, {"ipam.families", "list", []any{[]any{"5"}, []any{}}}})},
	{"portmap", portmap1, nil, rows(sharedKeys, []keyRow{{"snat", "bool", nil}, {"masqAll", "bool", nil},
		{"conditionsV4", "list", []any{[]any{"--nonsense"}, []any{"-s", "fd00::1"}}}, {"conditionsV6", "list", []any{[]any{"--nonsense"}, []any{"-s", "10.1.0.1"}}},
		{"markMasqBit", "number", []any{-1, 32}}, {"externalSetMarkChain", "string", nil}, {"backend", "string", []any{"pf"}},
		{"runtimeConfig.portMappings", "list", nil}, {"runtimeConfig.portMappings.0.hostPort", "number", []any{-1, 0, 65536}},
		{"runtimeConfig.portMappings.0.containerPort", "number", []any{-1, 0, 65536}}, {"runtimeConfig.portMappings.0.protocol", "string", []any{"icmp"}},
		{"runtimeConfig.portMappings.0.hostIP", "string", []any{"nonsense", "224.0.0.1", "fe80::1%eth0"}}})},
	{"bandwidth", bandwidth2, func(n *node) { limited(n) }, rows(sharedKeys[:3], []keyRow{{"ingressRate", "number", []any{-1, 8000, 7}}, {"ingressBurst", "number", []any{-1, 8000}},
		{"egressRate", "number", []any{-1, 8000}}, {"egressBurst", "number", []any{-1, 8000}}, {"runtimeConfig.bandwidth.IngressRate", "number", []any{-1, 7}},
		{"runtimeConfig.bandwidth.IngressBurst", "number", []any{-1, 7, 34359738360}}, {"runtimeConfig.bandwidth.EgressRate", "number", []any{-1, 7}},
		{"runtimeConfig.bandwidth.EgressBurst", "number", []any{-1, 7}}, {"runtimeConfig.bandwidth", "object", nil}})},
	{"firewall", firewall1, nil, rows(sharedKeys, []keyRow{{"backend", "string", []any{"pf", "firewalld"}}, {"ingressPolicy", "string", []any{"shut"}},
		{"iptablesAdminChainName", "string", []any{"A B"}}, {"firewalldZone", "string", []any{"a b"}}})},
	{"tuning", tuning1, func(n *node) { n.inside("eth0", 1) }, rows(sharedKeys, macKeys, []keyRow{{"dataDir", "string", []any{"here"}}, {"sysctl", "object", nil},
		{"sysctl.net.core/somaxconn", "string", nil}, {"mac", "string", badMACs}, {"mtu", "number", []any{-1, 67, 65536, 1200}}, {"promisc", "bool", nil}, {"allmulti", "bool", nil},
		{"txQLen", "number", []any{-1}}, {"args.cni.sysctl", "object", nil}, {"args.cni.mtu", "number", []any{-1, 67}}, {"args.cni.promisc", "bool", nil},
		{"args.cni.allmulti", "bool", nil}, {"args.cni.txQLen", "number", []any{-1}}})},
	{"sbr", sbr1, func(n *node) { n.inside("eth0", 1) }, rows(sharedKeys, []keyRow{{"table", "number", []any{-1, 0, 255, 1 << 32}},
		{"gateways", "list", []any{[]any{"nonsense"}, []any{"0.0.0.0"}, []any{"10.1.0.1", "10.1.0.9"}}}, {"addSourceHints", "bool", nil}})},
	{"vrf", vrf1, func(n *node) { n.inside("eth0", 1) }, rows(sharedKeys, []keyRow{{"vrfname", "string", append([]any{"", "eth0"}, badNames...)},
		{"table", "number", []any{-1, 255, 1 << 32}}})},
	{"seine", seine1, nil, rows(sharedKeys[:3], macKeys, []keyRow{{"network", "string", []any{"a b", "-"}}, {"socket", "string", []any{"here"}},
		{"aliases", "list", []any{[]any{"a b"}}}, {"runtimeConfig.aliases", "list", []any{[]any{"a b"}}}, {"runtimeConfig.portMappings", "list", nil},
		{"runtimeConfig.portMappings.0.hostPort", "number", []any{-1, 0, 65536}}, {"runtimeConfig.ips", "list", []any{[]any{"nonsense"}, []any{"10.1.0.2", "10.1.0.3"}}},
		{"args.cni.ips", "list", []any{[]any{"nonsense"}}}, {"ipam.type", "string", []any{"host-local"}}})},
	{"flannel", flannel1, func(n *node) { n.flanneld(subnet1) }, rows(sharedKeys, []keyRow{{"subnetFile", "string", []any{"", "/nonexistent"}}, {"dataDir", "string", []any{""}},
		{"delegate", "object", nil}, {"delegate.type", "string", []any{"", "flannel", "nothere"}}, {"delegate.name", "any", []any{"x"}}, {"delegate.ipam", "any", []any{"x"}},
		{"delegate.mtu", "number", badMTUs}, {"delegate.bridge", "string", badNames}, {"ipam", "object", nil}, {"ipam.routes", "list", nil},
		{"ipam.routes.0.dst", "string", []any{"nonsense"}}, {"ipam.type", "string", []any{"nothere"}}, {"runtimeConfig", "object", nil}})},
}

// ofKind is a value of each type of JSON.
var ofKind = map[string]any{"string": "a string", "number": 77, "bool": true, "list": []any{[]any{"an entry"}}, "object": map[string]any{"akey": 1}}

// put sets a key of a configuration, with all that it takes on the way there.
func put(c any, path []string, value any) any {
	if len(path) == 0 {
		return value
	}
	if i, err := strconv.Atoi(path[0]); err == nil {
		list, _ := c.([]any)
		for len(list) <= i {
			list = append(list, nil)
		}
		list[i] = put(list[i], path[1:], value)
		return list
	}
	m, _ := c.(map[string]any)
	if m == nil {
		m = map[string]any{}
	}
	m[path[0]] = put(m[path[0]], path[1:], value)
	return m
}

// files are those in a node's folder.
func (n *node) files() (out []string) {
	_ = filepath.WalkDir(n.data, func(path string, d fs.DirEntry, err error) error {
		// An address that was taken and given back leaves its place in the order, and the lock.
		if err == nil && d.Type().IsRegular() && d.Name() != "lock" && !strings.HasPrefix(d.Name(), "last_reserved_ip.") {
			out = append(out, path)
		}
		return nil
	})
	return out
}

// TestKeys: a value of a wrong type, and one that is out of range, is an error of the specification that names key,
// value and what is wanted, before anything was changed.
func TestKeys(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range pluginKeys {
		seen[p.plugin] = true
		t.Run(p.plugin, func(t *testing.T) {
			for _, key := range p.keys {
				for kind, value := range ofKind {
					if kind != key.kind && key.kind != "any" {
						tryKey(t, p.plugin, p.conf, p.node, key.path, value, key.kind)
					}
				}
				for _, value := range key.wrong {
					tryKey(t, p.plugin, p.conf, p.node, key.path, value, "")
				}
			}
		})
	}
	for _, name := range Names() {
		if !seen[name] {
			t.Errorf("the keys of plugin %s are not in the table", name)
		}
	}
}

// tryKey has an ADD fail by one key; kind is the type that it should have, "" where only the value is wrong.
func tryKey(t *testing.T, plugin, base string, prepare func(*node), path string, value any, kind string) {
	t.Helper()
	var c any
	if err := json.Unmarshal([]byte(base), &c); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(path, ".")
	if i := slices.Index(parts, "net"); i >= 0 { // a sysctl's name
		parts = append(parts[:i], strings.Join(parts[i:], "."))
	}
	for at, with := range map[string]string{"ipam.routes.0.": `"dst": "10.7.0.0/24"`, "prevResult.ips.0.": `"address": "10.1.0.2/24"`,
		"ipam.ranges.0.0.": `"subnet": "10.1.0.0/24"`, "ipam.addresses.0.": `"address": "10.1.0.2/24"`, "vlanTrunk.0.m": `"minID": 5, "maxID": 6`,
		"ipam.provide.0.": `"option": "host-name"`} {
		if strings.HasPrefix(path, at) { // what has to be beside it
			var beside any
			if err := json.Unmarshal([]byte("{"+with+"}"), &beside); err != nil {
				t.Fatal(err)
			}
			c = put(c, parts[:len(parts)-1], beside)
		}
	}
	conf, _ := json.Marshal(put(c, parts, value))
	n := newNode(t)
	if prepare != nil {
		prepare(n)
	}
	before, files := n.kernel.Snapshot(), n.files()
	out, status := n.call(plugin, "ADD", string(conf))
	var got struct {
		Code Code
		Msg  string
	}
	said := fmt.Sprintf("%s with %s = %v: ", plugin, path, value)
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 1 {
		t.Errorf("%sstatus %d, %s", said, status, out)
		return
	}
	codes := []Code{CodeDecode}
	if kind == "" || strings.HasPrefix(path, "prevResult") || strings.HasPrefix(path, "delegate") || strings.HasPrefix(path, "sysctl") {
		codes = []Code{CodeVersion, CodeUnsupported, CodeDecode, CodeConfig, CodeTryAgain}
	}
	if !slices.Contains(codes, got.Code) {
		t.Errorf("%scode %d, want one of %v: %s", said, got.Code, codes, got.Msg)
	}
	words := []string{"want"}
	if got.Code == CodeVersion || path == "name" && value == "" { // the reference's words
		words = nil
	}
	named := parts[0]
	for _, part := range parts {
		if _, err := strconv.Atoi(part); err != nil && named != "prevResult" { // what a runtime makes is named as a whole
			named = part
		}
	}
	words = append(words, named)
	switch v := value.(type) {
	case string:
		words = append(words, v)
	case int, float64:
		words = append(words, fmt.Sprint(v))
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(got.Msg), strings.ToLower(w)) {
			t.Errorf("%s%q does not name %q", said, got.Msg, w)
		}
	}
	if d := before.Diff(n.kernel.Snapshot()); d != "" {
		t.Errorf("%schanged\n%s", said, d)
	}
	if now := n.files(); !slices.Equal(now, files) {
		t.Errorf("%sthere were the files %v and are %v", said, files, now)
	}
	_ = os.RemoveAll(n.data)
}
