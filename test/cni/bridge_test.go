package cni_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/seine-net/seine/internal/testkit"
)

// guardedNet is a bridge network whose containers may send from their own hardware addresses only.
func guardedNet(r *rig, name string, n int) *libcni.NetworkConfigList {
	return r.network(name, strings.Replace(fmt.Sprintf(bridgeConf, n), `"ipMasq"`, `"macspoofchk": true, "ipMasq"`, 1), portmapConf)
}

func TestMACSpoofCheck(t *testing.T) {
	r := newRig(t)
	list, open := guardedNet(r, "net", 1), bridgeNet(r, "net", 1) // of one name, and so of one address store
	c, other := r.add(list, "c", "eth0"), r.add(list, "other", "eth0")
	r.add(open, "free", "eth0")
	for _, id := range []string{"c", "other", "free"} {
		r.serve(id, 80)
	}
	mac := func(id, address string) {
		if _, err := r.container(id).Exec(t.Context(), "ip", "link", "set", "eth0", "address", address); err != nil {
			t.Fatal(err)
		}
	}
	own, err := r.container("c").Exec(t.Context(), "sh", "-c", "ip -o link show eth0 | grep -o 'link/ether [0-9a-f:]*' | cut -d' ' -f2")
	if err != nil {
		t.Fatal(err)
	}
	for _, v4 := range []bool{true, false} {
		testkit.Reach(t, r.container("c"), "tcp", at(other.of(v4), 80))
		testkit.Reach(t, r.container("other"), "tcp", at(c.of(v4), 80))
	}
	mac("c", "02:00:00:00:66:01")
	mac("free", "02:00:00:00:66:02")
	for _, v4 := range []bool{true, false} {
		testkit.CantReach(t, r.container("c"), "tcp", at(other.of(v4), 80), 300*time.Millisecond)
		testkit.CantReach(t, r.machine.NS, "tcp", at(c.of(v4), 80), 300*time.Millisecond)
		testkit.Reach(t, r.container("free"), "tcp", at(other.of(v4), 80))
	}
	mac("c", strings.TrimSpace(own))
	for _, v4 := range []bool{true, false} {
		testkit.Reach(t, r.container("c"), "tcp", at(other.of(v4), 80))
	}
	if err := r.runtime.CheckNetworkList(t.Context(), list, r.conf("c", "eth0")); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	// Neither namespace nor prevResult tells the address.
	before := r.state()
	r.forget()
	rt := r.conf("c", "eth0")
	rt.NetNS = ""
	r.del(list, rt)
	after := r.state()
	if n := len(slices.DeleteFunc(before, func(s string) bool {
		return !strings.Contains(s, "nft: guarded") && !strings.Contains(s, "nft: source")
	})) -
		len(slices.DeleteFunc(after, func(s string) bool {
			return !strings.Contains(s, "nft: guarded") && !strings.Contains(s, "nft: source")
		})); n != 2 {
		t.Errorf("DEL removes %d elements of the guards, want 2", n)
	}
	testkit.Reach(t, r.container("other"), "tcp", at(c.gw4, testkit.Serve(t, r.machine.NS, "tcp", "[::]:7001").Port()))
}

// TestFlannel tells the story of a node: no subnet yet, then one, then containers with published ports.
func TestFlannel(t *testing.T) {
	r := newRig(t)
	list := r.network("cbr0", `{"type": "flannel", "subnetFile": "DATA/subnet.env", "dataDir": "DATA/flannel", "ipam": {"dataDir": "DATA"},
		"delegate": {"bridge": "br1", "hairpinMode": true, "isDefaultGateway": true}}`, portmapConf)
	before := r.state()
	if _, err := r.tryAdd(list, r.conf("c", "eth0", twoPorts...)); err == nil || !strings.Contains(err.Error(), "subnet.env") {
		t.Errorf("ADD without subnet.env: %v", err)
	}
	if err := r.runtime.GetStatusNetworkList(t.Context(), list); err == nil || !strings.Contains(err.Error(), "subnet.env") {
		t.Errorf("STATUS without subnet.env: %v", err)
	}
	r.del(list, r.conf("c", "eth0", twoPorts...))
	r.same("after an ADD that could not be", before)
	env := "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	if err := os.WriteFile(filepath.Join(r.data, "subnet.env"), []byte(env), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.runtime.GetStatusNetworkList(t.Context(), list); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	before = r.state()
	rt := r.conf("web", "eth0", port{8080, 80, "tcp", ""})
	web, err := r.tryAdd(list, rt)
	if err != nil {
		t.Fatal(err)
	}
	r.add(list, "a", "eth0")
	b := r.add(list, "a", "eth1") // a second of the same container
	r.serve("web", 80)
	for _, v4 := range []bool{true, false} {
		testkit.Reach(t, r.container("a"), "tcp", at(web.of(v4), 80))
		own := r.machine.V6
		if v4 {
			own = r.machine.V4
		}
		if got := testkit.Reach(t, r.outside.NS, "tcp", at(own, 8080)); got.Server != "web" {
			t.Errorf("port 8080 of %s is served by %q", own, got.Server)
		}
	}
	if err := r.runtime.CheckNetworkList(t.Context(), list, rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	var saved map[string]any
	data, err := os.ReadFile(filepath.Join(r.data, "flannel", "web"))
	if err == nil {
		err = json.Unmarshal(data, &saved)
	}
	if err != nil || saved["type"] != "bridge" {
		t.Errorf("saved is %s (%v)", data, err)
	}
	if err := os.Remove(filepath.Join(r.data, "subnet.env")); err != nil {
		t.Fatal(err)
	}
	r.del(list, r.conf("a", "eth0"))
	testkit.Reach(t, r.container("web"), "tcp", at(b.v4, testkit.Serve(t, r.container("a"), "tcp", "[::]:81").Port()))
	r.del(list, r.conf("a", "eth1"))
	r.del(list, rt)
	if err := os.WriteFile(filepath.Join(r.data, "subnet.env"), []byte(env), 0o600); err != nil {
		t.Fatal(err)
	}
	r.same("after all DELs", before)
}
