package cni_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/seine-net/seine/internal/frontdoor/cni"
	"github.com/seine-net/seine/internal/testkit"
)

// subject is a plugin in a network as it is used; the stories that every plugin has to stand are told about each.
type subject struct {
	// plugin is whom it is about, behind may tell whom it follows.
	plugin, behind string
	needs          []string
	// conf are the plugins of the network; NN is a number for its subnets.
	conf []string
	// caps is what the runtime fills in, given a number of the attachment.
	caps func(i int) map[string]any
	// ifname is the interface's name; "" for eth0.
	ifname string
	// prepare makes of a machine one on which the plugin can work.
	prepare func(r *rig)
	// refresh makes again what the kernel takes along when it ends a container's namespace.
	refresh func(r *rig)
	// single says that there can be one attachment only.
	single bool
	// inside says that some of what it makes is in the container, where a DEL that is told of none can't find it.
	inside bool
}

const (
	rangesNN  = `"ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.NN.0.0/24"}], [{"subnet": "fd00:NN::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}`
	bridgeNN  = `{"type": "bridge", "bridge": "brNN", "isDefaultGateway": true, "ipMasq": true, ` + rangesNN + `}`
	ptpNN     = `{"type": "ptp", "ipMasq": true, ` + rangesNN + `}`
	limitConf = `{"type": "bandwidth", "ingressRate": 80000000, "ingressBurst": 800000, "egressRate": 80000000, "egressBurst": 800000}`
	wallConf  = `{"type": "firewall", "ingressPolicy": "same-bridge"}`
	upperNN   = `"ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.NN.0.0/24", "rangeStart": "10.NN.0.10"}], [{"subnet": "fd00:NN::/64"}]]}`
)

// tunedNN is tuning without a hardware address of its own: two interfaces are to have different ones.
var tunedNN = strings.Replace(tuningConf, `"mac": "02:00:5e:00:00:77", `, "", 1)

func portsOf(i int) map[string]any {
	return map[string]any{"portMappings": []port{{8000 + i, 80, "tcp", ""}, {8000 + i, 81, "udp", ""}}}
}

// subjects has a row for every plugin.
func subjects() []subject {
	rows := []subject{
		{plugin: "bridge", conf: []string{strings.Replace(bridgeNN, `"ipMasq"`, `"mtu": 1400, "hairpinMode": true, "portIsolation": true, "macspoofchk": true, "ipMasq"`, 1)}},
		{plugin: "bridge", behind: "VLANs", needs: []string{"vlan"}, conf: []string{strings.Replace(bridgeNN, `"ipMasq"`, `"vlan": 100, "macspoofchk": true, "ipMasq"`, 1)}},
		{plugin: "ptp", conf: []string{ptpNN}},
		{plugin: "macvlan", needs: []string{"macvlan"}, inside: true, conf: []string{`{"type": "macvlan", "master": "eth0", "mode": "bridge", "mtu": 1400, ` + upperNN + `}`}},
		{plugin: "ipvlan", needs: []string{"ipvlan"}, inside: true, conf: []string{`{"type": "ipvlan", "master": "eth0", "mode": "l2", "mtu": 1400, ` + upperNN + `}`}},
		{plugin: "vlan", needs: []string{"vlan"}, inside: true, single: true, conf: []string{`{"type": "vlan", "master": "eth0", "vlanId": NN, "mtu": 1400, ` + upperNN + `}`}},
		{plugin: "dummy", needs: []string{"dummy"}, inside: true, conf: []string{`{"type": "dummy", ` + upperNN + `}`}},
		{plugin: "tap", needs: []string{"tun"}, inside: true, conf: []string{`{"type": "tap", "mtu": 1400, "owner": 64999, "group": 64998, ` + upperNN + `}`}},
		{plugin: "host-device", inside: true, single: true, prepare: handDevice, refresh: handDevice, conf: []string{`{"type": "host-device", "device": "hdNN", ` + upperNN + `}`}},
		{plugin: "loopback", inside: true, single: true, ifname: "lo", conf: []string{`{"type": "loopback"}`}},
		{plugin: "host-local", conf: []string{`{"type": "host-local", ` + rangesNN + `}`}},
		{plugin: "static", behind: "bridge", single: true, conf: []string{`{"type": "bridge", "bridge": "brNN", "isGateway": true, "ipMasq": true, "ipam": {"type": "static",
			"addresses": [{"address": "10.NN.0.7/24", "gateway": "10.NN.0.1"}, {"address": "fd00:NN::7/64"}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.NN.0.1"]}}}`}},
		{plugin: "dhcp", behind: "bridge", needs: []string{"program:dnsmasq", "program:go"}, prepare: leases,
			conf: []string{`{"type": "bridge", "bridge": "brNN", "ipam": {"type": "dhcp", "daemonSocketPath": "DATA/dhcp.sock"}}`}},
		{plugin: "flannel", prepare: subnetEnv, conf: []string{`{"type": "flannel", "subnetFile": "DATA/../subnet.env", "dataDir": "DATA/flannel", "ipam": {"dataDir": "DATA"},
			"delegate": {"bridge": "brNN", "hairpinMode": true, "isDefaultGateway": true}}`}},
	}
	rows = append(rows, subject{plugin: "seine", needs: []string{"program:go"}, caps: portsOf,
		prepare: func(r *rig) { r.seined(); r.toData("seine.sock") },
		conf:    []string{`{"type": "seine", "network": "default", "socket": "DATA/seine.sock", "capabilities": {"portMappings": true}}`}})
	for _, first := range []struct{ name, conf string }{{"bridge", bridgeNN}, {"ptp", ptpNN}} {
		wall := wallConf
		if first.name == "ptp" {
			wall = strings.Replace(wall, "same-bridge", "open", 1)
		}
		ports := `{"type": "portmap", "capabilities": {"portMappings": true}, "conditionsV4": ["-s", "192.0.2.0/24"], "masqAll": true}`
		for plugin, conf := range map[string]string{"portmap": ports, "bandwidth": limitConf, "firewall": wall, "tuning": tuningConf, "sbr": sbrConf,
			"vrf": `{"type": "vrf", "vrfname": "blue", "table": NN00}`} {
			s := subject{plugin: plugin, behind: first.name, conf: []string{first.conf, conf}}
			switch plugin {
			case "portmap":
				s.caps = portsOf
			case "vrf":
				s.needs, s.inside = []string{"vrf"}, true
			case "sbr":
				s.inside = true
			case "tuning":
				s.single = true // of one hardware address
			}
			rows = append(rows, s)
		}
		rows = append(rows, subject{plugin: "all", behind: first.name, inside: true, caps: portsOf, conf: []string{first.conf, portmapConf, limitConf, wall, tunedNN, sbrConf}})
	}
	return rows
}

// handDevice gives the machine the device hd1, unless it has it.
func handDevice(r *rig) {
	sh(r.T, r.machine.NS, "for i in $(seq 200); do ip link show hd1 && exit; ip link add hd1 address 02:00:00:00:0d:01 type veth peer name hd1p address 02:00:00:00:0d:02 && exit; sleep 0.05; done 2>&1; exit 1")
}

// subnetEnv is what flanneld writes.
func subnetEnv(r *rig) {
	env := "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.3.1/24\nFLANNEL_IPV6_NETWORK=fd00:1::/56\nFLANNEL_IPV6_SUBNET=fd00:1:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	if err := os.WriteFile(filepath.Join(filepath.Dir(r.data), "subnet.env"), []byte(env), 0o600); err != nil {
		r.Fatal(err)
	}
}

// leases starts the daemon and a DHCP server on the bridge br1.
func leases(r *rig) {
	socket, _ := r.seined()
	dhcpNets["bridge"](r, socket)
	r.toData("dhcp.sock")
}

// toData gives a socket of the daemon's a name among the folders of the plugins.
func (r *rig) toData(name string) {
	if err := os.Symlink(filepath.Join(r.cache, name), filepath.Join(r.data, name)); err != nil {
		r.Fatal(err)
	}
}

// TestSubjects: no plugin is without a row.
func TestSubjects(t *testing.T) {
	have := map[string]bool{}
	for _, s := range subjects() {
		have[s.plugin] = true
	}
	for _, name := range cni.Names() {
		if !have[name] {
			t.Errorf("plugin %s has no row in subjects", name)
		}
	}
}

// rare are abilities that a container's host often lacks.
var rare = []string{"vlan", "ipvlan", "dummy", "vrf"}

// eachSubject tells a story about every plugin. In the VM lab it is about those that other kernels lack alone.
func eachSubject(t *testing.T, story func(r *rig, s subject)) {
	for _, s := range subjects() {
		t.Run(strings.TrimSuffix(s.plugin+"-"+s.behind, "-"), func(t *testing.T) {
			t.Parallel()
			if os.Getenv("SEINE_VM") == "1" && !slices.ContainsFunc(s.needs, func(need string) bool { return slices.Contains(rare, need) }) {
				t.Skip("skip: what most kernels can needs no lab")
			}
			testkit.Need(t, s.needs...)
			r := newRig(t)
			if s.prepare != nil {
				s.prepare(r)
			}
			story(r, s)
		})
	}
}

// list gives the subject's network number n, with more plugins behind.
func (s subject) list(r *rig, name string, n int, more ...string) *libcni.NetworkConfigList {
	r.Helper()
	return r.network(name, strings.Split(strings.ReplaceAll(strings.Join(append(append([]string{}, s.conf...), more...), "\x00"), "NN", fmt.Sprint(n)), "\x00")...)
}

// attachment gives the runtime's part of the attachment number i of a container.
func (s subject) attachment(r *rig, id string, i int) *libcni.RuntimeConf {
	r.Helper()
	if r.containers[id] == nil && s.ifname == "lo" {
		sh(r.T, r.container(id), "ip link set lo down") // as runtimes make it
	}
	rt := r.conf(id, s.ifname)
	if s.ifname == "" {
		rt.IfName = "eth0"
	}
	if s.caps != nil {
		rt.CapabilityArgs = s.caps(i)
	}
	return rt
}

func (r *rig) must(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	r.Helper()
	if _, err := r.runtime.AddNetworkList(r.Context(), list, rt); err != nil {
		r.Fatalf("ADD %s %s to %s: %v", rt.ContainerID, rt.IfName, list.Name, err)
	}
}

// share makes what attachments share: by another that stays or, where there can be one only, has gone.
func (s subject) share(r *rig, list *libcni.NetworkConfigList) {
	r.Helper()
	rt := s.attachment(r, "other", 99)
	r.must(list, rt)
	if s.single {
		r.del(list, rt)
	}
}

// kept are the keys that say where something is: without them nothing of it can be found.
var kept = []string{"type", "name", "cniVersion", "dataDir", "daemonSocketPath", "socket", "capabilities"}

// broken gives a network with every value of every key turned into another.
func broken(r *rig, list *libcni.NetworkConfigList, turn func(any) any) *libcni.NetworkConfigList {
	r.Helper()
	out := *list
	out.Plugins = nil
	for _, p := range list.Plugins {
		var c map[string]any
		if err := json.Unmarshal(p.Bytes, &c); err != nil {
			r.Fatal(err)
		}
		c["noSuchKey"] = map[string]any{"a": 1}
		turnKeys(c, turn)
		data, err := json.Marshal(c)
		if err != nil {
			r.Fatal(err)
		}
		q, err := libcni.NetworkPluginConfFromBytes(data)
		if err != nil {
			r.Fatal(err)
		}
		out.Plugins = append(out.Plugins, q)
	}
	return &out
}

func turnKeys(c map[string]any, turn func(any) any) {
	for k, v := range c {
		if sub, ok := v.(map[string]any); ok && k == "ipam" {
			turnKeys(sub, turn)
			continue
		}
		if !slices.Contains(kept, k) {
			c[k] = turn(v)
		}
	}
}

// ofAnotherType gives a value that no key takes in place of one.
func ofAnotherType(v any) any {
	if _, ok := v.(string); ok {
		return 7
	}
	return "nonsense"
}

// outOfRange gives a value of the same type that few keys take.
func outOfRange(v any) any {
	switch v := v.(type) {
	case string:
		return "nonsense"
	case float64:
		return -1
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = outOfRange(v[i])
		}
		return out
	case map[string]any:
		out := maps.Clone(v)
		for k := range out {
			out[k] = outOfRange(out[k])
		}
		return out
	}
	return v
}

// wrongChain are plugins that take none of their values.
var wrongChain = []string{
	`{"type": "portmap", "markMasqBit": 77, "conditionsV4": ["!"], "backend": 7}`, `{"type": "firewall", "backend": "none", "ingressPolicy": 7}`,
	`{"type": "bandwidth", "ingressRate": "much"}`, `{"type": "tuning", "sysctl": [], "mtu": -1, "dataDir": "DATA/tuning"}`,
	`{"type": "sbr", "table": "x", "gateways": "y"}`, `{"type": "vrf", "vrfname": 7, "table": -1}`,
}

// deletions are the ways in which a DEL may come. ended says that the container's namespace ends.
var deletions = []struct {
	what          string
	ended, closed bool
	del           func(r *rig, s subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf)
}{
	{"twice", false, false, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		r.del(list, rt)
		r.del(list, rt)
	}},
	{"no CNI_NETNS", false, true, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		rt.NetNS = ""
		r.del(list, rt)
	}},
	{"namespace gone", true, true, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) { r.del(list, rt) }},
	{"namespace gone, no prevResult", true, true, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		r.forget()
		r.del(list, rt)
	}},
	{"no prevResult", false, false, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		r.forget()
		r.del(list, rt)
	}},
	{"no runtimeConfig", false, false, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		rt.CapabilityArgs = nil
		r.del(list, rt)
	}},
	{"neither of the three", false, true, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		r.forget()
		rt.CapabilityArgs, rt.NetNS = nil, ""
		r.del(list, rt)
	}},
	{"keys of another type", false, false, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		rt.Args = [][2]string{{"NOBODY", "knows"}}
		r.del(broken(r, list, ofAnotherType), rt)
	}},
	{"values out of range", false, false, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		rt.Args = [][2]string{{"NOBODY", "knows"}}
		r.del(broken(r, list, outOfRange), rt)
	}},
	{"keys of another type, no prevResult", false, false, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		r.forget()
		rt.CapabilityArgs = nil
		r.del(broken(r, list, ofAnotherType), rt)
	}},
	{"keys of another type, no prevResult, namespace gone", true, true, func(r *rig, _ subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		r.forget()
		r.del(broken(r, list, ofAnotherType), rt)
	}},
	{"invalid plugins behind", false, false, func(r *rig, s subject, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
		r.del(s.list(r, list.Name, 1, wrongChain...), rt)
	}},
}

// TestDelOfEveryPlugin: however DEL comes, it succeeds, and machine, folders and container are as they were before ADD.
func TestDelOfEveryPlugin(t *testing.T) {
	eachSubject(t, func(r *rig, s subject) {
		list := s.list(r, "net", 1)
		s.share(r, list)
		before, sysctls := r.everything(), r.sysctls()
		for i, d := range deletions {
			id := fmt.Sprintf("c%d", i)
			rt := s.attachment(r, id, i)
			inside := r.snapshot(r.container(id))
			r.must(list, rt)
			if d.ended {
				r.containers[id].Close()
				rt.NetNS = gone(r.T)
			}
			d.del(r, s, list, rt)
			if d.closed && !d.ended && s.inside {
				r.containers[id].Close()
			} else if !d.ended {
				r.settles(d.what+": the container", inside, func() []string { return r.snapshot(r.container(id)) })
			}
			if s.refresh != nil {
				s.refresh(r)
			}
			r.settles(d.what+": the machine", before, r.everything)
			if r.Failed() {
				return
			}
		}
		r.settles("sysctls", sysctls, r.sysctls)
	})
}

// TestFailedAddOfEveryPlugin: an ADD that fails in the last plugin of the chain, or in the first, and the DEL that follows
// leave everything as it was.
func TestFailedAddOfEveryPlugin(t *testing.T) {
	eachSubject(t, func(r *rig, s subject) {
		s.share(r, s.list(r, "net", 1))
		before, sysctls := r.everything(), r.sysctls()
		for i, last := range append([]string{`{"type": "tuning", "dataDir": "DATA/tuning", "mtu": 1300, "sysctl": {"net.core.nothere": "1"}}`}, wrongChain...) {
			id := fmt.Sprintf("c%d", i)
			list, rt := s.list(r, "net", 1, last), s.attachment(r, id, i)
			inside := r.snapshot(r.container(id))
			if _, err := r.runtime.AddNetworkList(r.Context(), list, rt); err == nil {
				r.Errorf("ADD with %s succeeds", last)
			}
			r.del(list, rt)
			r.del(list, rt)
			r.settles("the container, "+last, inside, func() []string { return r.snapshot(r.container(id)) })
			r.settles("the machine, "+last, before, r.everything)
		}
		r.settles("sysctls", sysctls, r.sysctls)
		if s.ifname != "" || s.plugin == "host-local" {
			return // lo is always there, and addresses are given for any name
		}
		sh(r.T, r.container("taken"), "ip link add eth0 type bridge", "ip addr add 10.99.0.1/24 dev eth0", "ip link set eth0 up")
		inside := r.snapshot(r.container("taken"))
		list, rt := s.list(r, "net", 1), s.attachment(r, "taken", 50)
		if _, err := r.runtime.AddNetworkList(r.Context(), list, rt); err == nil || !strings.Contains(err.Error(), "eth0") {
			r.Errorf("ADD under a name that is taken: got %v, want an error that names it", err)
		}
		for _, when := range []string{"no DEL", "DEL", "a second DEL"} {
			r.settles("a name that is taken, "+when+": the container", inside, func() []string { return r.snapshot(r.container("taken")) })
			r.settles("a name that is taken, "+when+": the machine", before, r.everything)
			r.del(list, rt)
		}
	})
}
