package cni_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/seine-net/seine/internal/testkit"
)

// TestConditions: who may come is said in iptables' words for IPv4 and in nft's for IPv6.
func TestConditions(t *testing.T) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		plain := make(r, "net", 1)
		second := netip.MustParsePrefix("198.18.0.77/32") // of the machine, and not to publish at
		if err := r.machine.AddAddr("lo", second); err != nil {
			r.Fatal(err)
		}
		var out map[string]any
		_ = json.Unmarshal([]byte(portmapConf), &out)
		out["conditionsV4"] = []string{"!", "-d", second.String(), "-s", r.outside.V4.String() + ",127.0.0.0/8"}
		out["conditionsV6"] = []string{"ip6 saddr", "!=", "{ " + r.outside.V6.String() + " }"}
		conf, _ := json.Marshal(out)
		list := r.network("net", string(plain.Plugins[0].Bytes), string(conf))
		before := r.state()
		r.serve("web", 80)
		ports := []port{{8080, 80, "tcp", ""}, {8080, 80, "udp", ""}, {8082, 80, "tcp", r.machine.V4.String()}}
		web := r.add(list, "web", "eth0", ports...)
		free := r.add(plain, "free", "eth0", port{9090, 80, "tcp", ""})
		r.serve("free", 80)
		_, _ = web, free
		for _, network := range networks {
			testkit.Reach(r.T, r.outside.NS, network, at(r.machine.V4, 8080))
			testkit.Reach(r.T, r.machine.NS, network, at(r.machine.V6, 8080))
			testkit.CantReach(r.T, r.machine.NS, network, at(r.machine.V4, 8080), 200*time.Millisecond) // not one of the sources
			testkit.CantReach(r.T, r.outside.NS, network, at(r.machine.V6, 8080), 200*time.Millisecond)
		}
		testkit.Reach(r.T, r.machine.NS, "tcp", at(netip.MustParseAddr("127.0.0.1"), 8080))
		testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 8082))
		testkit.CantReach(r.T, r.machine.NS, "tcp", at(r.machine.V4, 8082), 200*time.Millisecond)
		testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 9090)) // conditions are the attachment's alone
		testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V6, 9090))
		if err := r.outside.AddRoute(second, r.machine.V4); err != nil {
			r.Fatal(err)
		}
		testkit.CantReach(r.T, r.outside.NS, "tcp", at(second.Addr(), 8080), 200*time.Millisecond)
		testkit.Reach(r.T, r.outside.NS, "tcp", at(second.Addr(), 9090))

		if err := r.runtime.CheckNetworkList(r.Context(), list, r.conf("web", "eth0", ports...)); err != nil {
			r.Errorf("CHECK: %v", err)
		}
		r.del(plain, r.conf("free", "eth0", port{9090, 80, "tcp", ""}))
		r.del(list, r.conf("web", "eth0")) // the runtime forgot the ports
		r.same("after DEL", before)

		if _, err := r.tryAdd(r.network("net", string(plain.Plugins[0].Bytes),
			strings.Replace(string(conf), `"-s"`, `"-m","set","-s"`, 1)), r.conf("web", "eth0", ports...)); err == nil || !strings.Contains(err.Error(), "-m set") {
			r.Errorf("ADD with a condition that can't be translated: %v, want an error that names it", err)
		}
	})
}
