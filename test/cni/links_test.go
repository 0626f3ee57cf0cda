package cni_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/testkit"
)

// Where the kernel has them, the other three of these plugins are told about in test/vm.
const macvlanConf = `{"type": "macvlan", "master": "eth0", "capabilities": {"mac": true, "ips": true}, "ipam": {"type": "host-local", "dataDir": "DATA",
	"ranges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.2"}], [{"subnet": "fd00:9::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}`

// newMacvlan is a rig whose outside is on the macvlans' subnets, as their gateway.
func newMacvlan(t *testing.T) (*rig, *libcni.NetworkConfigList) {
	testkit.Need(t, "macvlan")
	r := newRig(t)
	for _, p := range []string{"10.9.0.1/24", "fd00:9::1/64"} {
		if err := r.outside.AddAddr(testkit.Interface, netip.MustParsePrefix(p)); err != nil {
			t.Fatal(err)
		}
	}
	return r, r.network("lan", macvlanConf)
}

// links are the interfaces of a container but lo.
func (r *rig) links(id string) string {
	r.Helper()
	out, err := r.container(id).Exec(context.Background(), "sh", "-c", "ip -o link | grep -v ': lo:' || true")
	if err != nil {
		r.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestMacvlanTraffic(t *testing.T) {
	t.Parallel()
	r, list := newMacvlan(t)
	before := r.state()
	rt := r.conf("web", "eth0") // a name that the machine's master has, too
	rt.CapabilityArgs = map[string]any{"mac": "02:00:00:00:09:09", "ips": []string{"10.9.0.77", "fd00:9::77"}}
	web, err := r.tryAdd(list, rt)
	if err != nil {
		t.Fatal(err)
	}
	if web.v4.String() != "10.9.0.77" || web.v6.String() != "fd00:9::77" || !strings.Contains(r.links("web"), "02:00:00:00:09:09") {
		t.Errorf("asked for 10.9.0.77, fd00:9::77, 02:00:00:00:09:09; got %v, %v, %s", web.v4, web.v6, r.links("web"))
	}
	// The first packet works when ADD returns, IPv6 first.
	for _, a := range []netip.Addr{web.gw6, web.gw4} {
		server := testkit.Serve(t, r.outside.NS, "udp", at(a, 0).String())
		if got := testkit.Reach(t, r.container("web"), "udp", server); got.Source.Addr() != web.of(a.Is4()) {
			t.Errorf("outside sees %s, want %s", got.Source, web.of(a.Is4()))
		}
	}
	a := r.add(list, "a", "net1")
	r.serve("web", 80)
	for _, v4 := range []bool{false, true} {
		for _, network := range networks {
			if got := testkit.Reach(t, r.container("a"), network, at(web.of(v4), 80)); got.Source.Addr() != a.of(v4) {
				t.Errorf("%s between containers: server sees %s, want %s", network, got.Source, a.of(v4))
			}
			testkit.Reach(t, r.outside.NS, network, at(web.of(v4), 80))
			far := testkit.Far6
			if v4 {
				far = testkit.Far4
			}
			server := testkit.Serve(t, r.outside.NS, network, at(far, 0).String())
			testkit.Reach(t, r.container("a"), network, server) // by the default route
		}
	}
	for id, ifname := range map[string]string{"web": "eth0", "a": "net1"} {
		if err := r.runtime.CheckNetworkList(t.Context(), list, r.conf(id, ifname)); err != nil {
			t.Errorf("CHECK of %s: %v", id, err)
		}
		r.del(list, r.conf(id, ifname))
		if left := r.links(id); left != "" {
			t.Errorf("DEL leaves %s", left)
		}
	}
	r.same("after DEL", before)
	testkit.CantReach(t, r.outside.NS, "tcp", at(web.v4, 80), 300*time.Millisecond)
}

// A macvlan on an interface that another network gave the container.
func TestMacvlanInContainer(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "macvlan")
	r := newRig(t)
	base := bridgeNet(r, "base", 1)
	first := r.add(base, "c", "eth0")
	inner := func(master string, host int) *libcni.NetworkConfigList {
		return r.network("inner", fmt.Sprintf(`{"type": "macvlan", %s"linkInContainer": true, "ipam": {"type": "static", "addresses": [{"address": "10.1.0.%d/24"}]}}`, master, host))
	}
	named, byRoute := inner(`"master": "eth0", `, 91), inner("", 92) // the container's default route leaves by eth0
	r.add(named, "c", "net1")
	r.add(byRoute, "c", "net2")
	server := testkit.Serve(t, r.machine.NS, "udp", at(first.gw4, 0).String())
	if _, err := r.container("c").AskFrom(t.Context(), netip.MustParseAddr("10.1.0.91"), "udp", server, "hello"); err != nil {
		t.Error(err)
	}
	for ifname, list := range map[string]*libcni.NetworkConfigList{"net1": named, "net2": byRoute} {
		if err := r.runtime.CheckNetworkList(t.Context(), list, r.conf("c", ifname)); err != nil {
			t.Errorf("CHECK of %s: %v", ifname, err)
		}
		r.del(list, r.conf("c", ifname))
	}
	if links := r.links("c"); strings.Contains(links, " net") || !strings.Contains(links, "eth0") {
		t.Errorf("after DEL the container has %s", links)
	}
	r.add(named, "c", "net1")
	r.del(base, r.conf("c", "eth0"))
	if links := r.links("c"); links != "" {
		t.Errorf("the master went and the macvlan on it stayed: %s", links)
	}
	r.del(named, r.conf("c", "net1"))
}

func TestMacvlanDelLeavesNothing(t *testing.T) {
	t.Parallel()
	r, list := newMacvlan(t)
	r.add(list, "other", "eth0") // has to stay
	before := r.state()
	for what, del := range map[string]func(rt *libcni.RuntimeConf){
		"twice":        func(rt *libcni.RuntimeConf) { r.del(list, rt); r.del(list, rt) },
		"no CNI_NETNS": func(rt *libcni.RuntimeConf) { rt.NetNS = ""; r.del(list, rt); r.containers[rt.ContainerID].Close() },
		"namespace gone": func(rt *libcni.RuntimeConf) {
			r.containers[rt.ContainerID].Close()
			rt.NetNS = gone(t)
			r.del(list, rt)
		},
		"no prevResult": func(rt *libcni.RuntimeConf) { r.forget(); r.del(list, rt) },
		"broken configuration": func(rt *libcni.RuntimeConf) {
			rt.Args = [][2]string{{"NOBODY", "knows"}}
			r.del(r.network("lan", strings.Replace(macvlanConf, `"master": "eth0"`, `"master": "gone0", "mode": "none", "mtu": -1, "mac": "x", "bcqueuelen": "many"`, 1)), rt)
		},
	} {
		id := strings.ReplaceAll(what, " ", "-")
		r.add(list, id, "eth0")
		del(r.conf(id, "eth0"))
		r.same("after DEL: "+what, before)
		if what != "no CNI_NETNS" && what != "namespace gone" {
			if left := r.links(id); left != "" {
				t.Errorf("DEL, %s: leaves %s", what, left)
			}
		}
	}
	// What fails leaves nothing either, nor takes what is another's.
	r.container("taken")
	if _, err := r.container("taken").Exec(t.Context(), "ip", "link", "add", "eth0", "type", "bridge"); err != nil {
		t.Fatal(err)
	}
	there := r.links("taken")
	_, err := r.tryAdd(list, r.conf("taken", "eth0"))
	if err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("ADD under a taken name: %v", err)
	}
	r.del(list, r.conf("taken", "eth0"))
	if now := r.links("taken"); now != there {
		t.Errorf("the container had %s and has %s", there, now)
	}
	r.same("after an ADD that failed", before)
	full := r.network("full", strings.NewReplacer(`"rangeStart": "10.9.0.2"`, `"rangeStart": "10.9.0.5", "rangeEnd": "10.9.0.5"`).Replace(macvlanConf))
	r.add(full, "one", "eth0")
	if _, err := r.tryAdd(full, r.conf("two", "eth0")); err == nil || r.links("two") != "" {
		t.Errorf("ADD without an address: %v, and the container has %s", err, r.links("two"))
	}
}

// named gives a namespace a place where runtimes keep them.
func (r *rig) named(id string) string {
	r.Helper()
	dir := "/run/netns"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.Skipf("skip: needs %s: %v", dir, err)
	}
	path := filepath.Join(dir, fmt.Sprintf("seine-test-%d-%s", os.Getpid(), id))
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		r.Skipf("skip: needs a place for namespaces: %v", err)
	}
	r.Cleanup(func() {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	})
	if err := unix.Mount(r.container(id).Path(), path, "", unix.MS_BIND, ""); err != nil {
		r.Skipf("skip: needs to mount namespaces: %v", err)
	}
	return path
}

// GC removes the attachments that are not valid from containers that live, with nothing but the marks to go by.
func TestMacvlanGC(t *testing.T) {
	t.Parallel()
	r, list := newMacvlan(t)
	const n = 20
	type attachment struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	}
	var valid []attachment
	for i := range n {
		id := fmt.Sprintf("c%02d", i)
		rt := r.conf(id, "eth0")
		rt.NetNS = r.named(id)
		if _, err := r.tryAdd(list, rt); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			valid = append(valid, attachment{id, "eth0"})
		}
	}
	r.forget() // or libcni would call DEL itself
	conf := map[string]any{}
	if err := json.Unmarshal(list.Plugins[0].Bytes, &conf); err != nil {
		t.Fatal(err)
	}
	conf["cniVersion"], conf["name"], conf["cni.dev/valid-attachments"] = "1.1.0", "lan", valid
	text, _ := json.Marshal(conf)
	env := append(os.Environ(), "CNI_COMMAND=GC", "CNI_PATH="+r.bin)
	if _, err := (&inside{machine: r.machine.NS}).ExecPlugin(t.Context(), filepath.Join(r.bin, "macvlan"), text, env); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		id := fmt.Sprintf("c%02d", i)
		if has := r.links(id) != ""; has != (i%2 == 0) {
			t.Errorf("after GC %s has %q", id, r.links(id))
		}
	}
	if taken, _ := filepath.Glob(r.data + "/lan/[1f]*"); len(taken) != n {
		t.Errorf("after GC %d addresses are taken, want %d", len(taken), n)
	}
}

func TestMacvlanStatus(t *testing.T) {
	t.Parallel()
	r, list := newMacvlan(t)
	if err := r.runtime.GetStatusNetworkList(t.Context(), list); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	none := r.network("lan", strings.Replace(macvlanConf, `"master": "eth0"`, `"master": "gone0"`, 1))
	if err := r.runtime.GetStatusNetworkList(t.Context(), none); err == nil || !strings.Contains(err.Error(), "gone0") {
		t.Errorf("STATUS without the master: %v", err)
	}
}
