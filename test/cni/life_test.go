package cni_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/seine-net/seine/internal/testkit"
)

var twoPorts = []port{{8080, 80, "tcp", ""}, {8081, 81, "udp", ""}}

// forget makes the runtime lose what ADD gave: DEL gets no prevResult.
func (r *rig) forget() {
	r.Helper()
	if err := os.RemoveAll(filepath.Join(r.cache, "results")); err != nil {
		r.Fatal(err)
	}
}

// gone gives the path of a namespace that ended.
func gone(t *testing.T) string { return filepath.Join(t.TempDir(), "ended") }

func TestDelLeavesNothing(t *testing.T) {
	for what, del := range map[string]func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf){
		"twice": func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
			r.del(list, rt)
			r.del(list, rt)
		},
		"no CNI_NETNS": func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
			rt.NetNS = ""
			r.del(list, rt)
		},
		"namespace gone": func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
			r.containers[rt.ContainerID].Close()
			rt.NetNS = gone(r.T)
			r.del(list, rt)
		},
		"namespace gone and no prevResult": func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
			r.containers[rt.ContainerID].Close()
			rt.NetNS = gone(r.T)
			r.forget()
			r.del(list, rt)
		},
		"no prevResult": func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
			r.forget()
			r.del(list, rt)
		},
		"no runtimeConfig": func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
			rt.CapabilityArgs = nil
			r.del(list, rt)
		},
		"neither prevResult nor runtimeConfig nor CNI_NETNS": func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
			r.forget()
			rt.CapabilityArgs, rt.NetNS = nil, ""
			r.del(list, rt)
		},
		"broken configuration": func(r *rig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
			broken := *list
			broken.Plugins = nil
			for _, p := range list.Plugins {
				var c map[string]any
				if err := json.Unmarshal(p.Bytes, &c); err != nil {
					r.Fatal(err)
				}
				c["mtu"], c["vlan"], c["ipMasqBackend"] = "big", -1, "none"
				c["conditionsV4"], c["markMasqBit"], c["backend"] = []string{"!"}, 77, "none"
				data, _ := json.Marshal(c)
				p, err := libcni.NetworkPluginConfFromBytes(data)
				if err != nil {
					r.Fatal(err)
				}
				broken.Plugins = append(broken.Plugins, p)
			}
			rt.Args = [][2]string{{"NOBODY", "knows"}}
			r.del(&broken, rt)
		},
	} {
		t.Run(what, func(t *testing.T) {
			each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
				list := make(r, "net", 1)
				r.add(list, "other", "eth0", port{9090, 90, "tcp", ""}) // has to stay
				before := r.state()
				r.add(list, "c", "eth0", twoPorts...)
				del(r, list, r.conf("c", "eth0", twoPorts...))
				r.same("after DEL", before)
			})
		})
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		list := make(r, "net", 1)
		r.add(list, "holder", "eth0", twoPorts...)
		before := r.state()
		_, err := r.tryAdd(list, r.conf("late", "eth0", port{8080, 80, "tcp", ""}))
		if err == nil || !strings.Contains(err.Error(), "holder") || !strings.Contains(err.Error(), "8080") {
			r.Errorf("ADD with a port that is taken: got %v, want an error that names the port and its holder", err)
		}
		r.del(list, r.conf("late", "eth0", port{8080, 80, "tcp", ""}))
		r.same("after a port conflict and the DEL that follows", before)

		conf := map[string]string{"bridge": bridgeConf, "ptp": ptpConf}[list.Plugins[0].Network.Type]
		tight := r.network("tight", strings.Replace(fmt.Sprintf(conf, 3), `"10.3.0.0/24"`, `"10.3.0.0/24", "rangeEnd": "10.3.0.2"`, 1))
		r.add(tight, "first", "eth0")
		before = r.state()
		_, err = r.tryAdd(tight, r.conf("second", "eth0"))
		var said *types.Error
		if !errors.As(err, &said) || said.Code != types.ErrTryAgainLater {
			r.Errorf("ADD without a free address: got %v, want code %d", err, types.ErrTryAgainLater)
		}
		r.same("after a pool that ran out, with no DEL", before)
		if err := r.runtime.GetStatusNetworkList(r.Context(), tight); !errors.As(err, &said) || said.Code != 50 {
			r.Errorf("STATUS with a pool that ran out: got %v, want code 50", err)
		}

		// A container that has such an interface already, in a subnet whose chains and bridge have to be made first.
		before = r.state()
		if _, err := r.tryAdd(make(r, "fresh", 4), r.conf("holder", "lo")); err == nil {
			r.Errorf("ADD of an interface that exists succeeds")
		}
		r.same("after an interface name that is taken, with no DEL", before)
	})
}

func TestGC(t *testing.T) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		list, other := make(r, "net", 1), make(r, "other", 2)
		r.add(other, "elsewhere", "eth0", port{7000, 80, "tcp", ""})
		var valid []types.GCAttachment
		for i := range 10 {
			id := fmt.Sprintf("keep%d", i)
			r.add(list, id, "eth0", port{8000 + i, 80, "tcp", ""})
			valid = append(valid, types.GCAttachment{ContainerID: id, IfName: "eth0"})
		}
		before := r.state()
		for i := range 10 {
			r.add(list, fmt.Sprintf("drop%d", i), "eth0", port{9000 + i, 80, "udp", ""})
		}
		// The runtime has lost its cache too, so that GC has to do all by itself.
		r.forget()
		if err := r.runtime.GCNetworkList(r.Context(), list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			r.Errorf("GC: %v", err)
		}
		r.same("after GC", before)
	})
}

func TestParallelAdds(t *testing.T) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		list := make(r, "net", 1)
		var wg sync.WaitGroup
		var mu sync.Mutex
		seen := map[netip.Addr]string{}
		for i := range 8 {
			id := fmt.Sprintf("c%d", i)
			rt := r.conf(id, "eth0", port{8000 + i, 80, "tcp", ""})
			wg.Go(func() {
				a, err := r.tryAdd(list, rt)
				if err != nil {
					r.Errorf("ADD %s: %v", id, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				for _, v4 := range []bool{true, false} {
					if by := seen[a.of(v4)]; by != "" {
						r.Errorf("%s and %s both have %s", by, id, a.of(v4))
					}
					seen[a.of(v4)] = id
				}
			})
		}
		wg.Wait()
		if len(seen) != 16 {
			r.Errorf("8 ADDs gave %d addresses, want 16", len(seen))
		}
		r.serve("c7", 80)
		testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 8007))
	})
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		list := make(r, "net", 1)
		rt := r.conf("c", "eth0", twoPorts...)
		a := r.add(list, "c", "eth0", twoPorts...)
		if err := r.runtime.CheckNetworkList(r.Context(), list, rt); err != nil {
			r.Errorf("CHECK after ADD: %v", err)
		}
		for _, damage := range []struct {
			machine bool
			cmd     string
			names   string
		}{
			{true, "nft delete element inet seine_cni port4 { tcp . 8080 }", "8080"},
			{true, "nft delete element inet seine_cni masq6 { V6 }", "V6"},
			{false, "ip route del default", "route default via 10.1.0.1"},
			{false, "ip -6 addr del V6/64 dev eth0", "V6"},
			{false, "ip link set eth0 down", "eth0"},
		} {
			now := strings.NewReplacer("V6", a.v6.String())
			damage.cmd, damage.names = now.Replace(damage.cmd), now.Replace(damage.names)
			where := r.container("c")
			if damage.machine {
				where = r.machine.NS
			}
			words := strings.Fields(damage.cmd)
			if _, err := where.Exec(r.Context(), words[0], words[1:]...); err != nil {
				r.Fatal(err)
			}
			err := r.runtime.CheckNetworkList(r.Context(), list, rt)
			if err == nil || !strings.Contains(err.Error(), damage.names) {
				r.Errorf("CHECK after %q: got %v, want an error that names %q", damage.cmd, err, damage.names)
			}
			r.del(list, rt)
			a = r.add(list, "c", "eth0", twoPorts...)
			if err := r.runtime.CheckNetworkList(r.Context(), list, rt); err != nil {
				r.Errorf("CHECK after a new ADD: %v", err)
			}
		}
	})
}

func TestLoopbackAndStatic(t *testing.T) {
	r := newRig(t)
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		r.Run(version, func(t *testing.T) {
			r := &rig{T: t, machine: r.machine, outside: r.outside, runtime: r.runtime, bin: r.bin, data: r.data, cache: r.cache, containers: map[string]*testkit.NS{}}
			before := r.state()
			lo := r.networkOf("lo", version, `{"type": "loopback"}`)
			if got := r.add(lo, "c", "lo"); got.v4 != netip.MustParseAddr("127.0.0.1") || got.v6 != netip.IPv6Loopback() {
				r.Errorf("loopback gives %v", got)
			}
			r.del(lo, r.conf("c", "lo"))
			list := r.networkOf("static", version, `{"type": "bridge", "bridge": "br1", "isGateway": true, "ipam": {"type": "static", "addresses": [
				{"address": "10.7.0.2/24", "gateway": "10.7.0.1"}, {"address": "fd00:7::2/64", "gateway": "fd00:7::1"}]}}`)
			got := r.add(list, "c", "eth0")
			r.serve("c", 80)
			testkit.Reach(r.T, r.machine.NS, "tcp", at(got.v4, 80))
			testkit.Reach(r.T, r.machine.NS, "tcp", at(got.v6, 80))
			r.del(list, r.conf("c", "eth0"))
			r.same("after DEL", before)
		})
	}
}
