package cni_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// TestTwoOfEveryPlugin: one container is attached to a network twice, and to another one. When one attachment goes the
// others stay whole, and at the end nothing is left.
func TestTwoOfEveryPlugin(t *testing.T) {
	eachSubject(t, func(r *rig, s subject) {
		if s.single {
			r.Skip("skip: of this there can be one only")
		}
		net, two := s.list(r, "net", 1), s.list(r, "two", 1)
		s.share(r, net)
		before, inside := r.everything(), r.snapshot(r.container("c"))
		type one struct {
			list *libcni.NetworkConfigList
			rt   *libcni.RuntimeConf
		}
		var all []one
		lists := []*libcni.NetworkConfigList{net, net, two}
		if s.plugin == "flannel" {
			lists = lists[:2] // a node has one subnet
		}
		for i, list := range lists {
			rt := s.attachment(r, "c", i)
			rt.IfName = fmt.Sprint("eth", i)
			if list == two && strings.Contains(string(list.Plugins[0].Bytes), "host-local") { // of one subnet, from stores of their own
				rt.CapabilityArgs = merged(rt.CapabilityArgs, map[string]any{"ips": []string{"10.1.0.200", "fd00:1::200"}})
				list = capable(r, list)
			}
			r.must(list, rt)
			all = append(all, one{list, rt})
		}
		for len(all) > 0 {
			for _, a := range all {
				if err := r.runtime.CheckNetworkList(r.Context(), a.list, a.rt); err != nil {
					r.Errorf("CHECK of %s with %d attachments: %v", a.rt.IfName, len(all), err)
				}
			}
			r.del(all[0].list, all[0].rt)
			all = all[1:]
		}
		r.settles("the machine", before, r.everything)
		r.settles("the container", inside, func() []string { return r.snapshot(r.container("c")) })
	})
}

func merged(a, b map[string]any) map[string]any {
	out := map[string]any{}
	for _, m := range []map[string]any{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// capable gives a network whose first plugin takes addresses from the runtime.
func capable(r *rig, list *libcni.NetworkConfigList) *libcni.NetworkConfigList {
	r.Helper()
	out := *list
	out.Plugins = append([]*libcni.PluginConfig(nil), list.Plugins...)
	p, err := libcni.NetworkPluginConfFromBytes([]byte(strings.Replace(string(list.Plugins[0].Bytes), "{", `{"capabilities": {"ips": true}, `, 1)))
	if err != nil {
		r.Fatal(err)
	}
	out.Plugins[0] = p
	return &out
}

// TestGCOfEveryPlugin: GC removes the half of the attachments that is not valid, whichever plugin of the chain made it, and
// with none that is valid all of them.
func TestGCOfEveryPlugin(t *testing.T) {
	eachSubject(t, func(r *rig, s subject) {
		if s.single {
			r.Skip("skip: of this there can be one only")
		}
		many, each := 12, 3
		if s.plugin == "all" || s.plugin == "macvlan" {
			many, each = 200, 10
		}
		list, holder := s.list(r, "net", 1), s.list(r, "holder", 1)
		if s.plugin != "seine" && s.plugin != "flannel" && s.plugin != "dhcp" {
			rt := s.attachment(r, "other", 999)
			rt.CapabilityArgs = merged(rt.CapabilityArgs, map[string]any{"ips": []string{"10.1.0.250", "fd00:1::250"}})
			r.must(capable(r, holder), rt) // what is shared stays with it
		} else {
			gone := s
			gone.single = true
			gone.share(r, holder)
		}
		// Chains that nobody jumps to are GC's to remove; the kernel keeps the others.
		look := func() []string {
			return slices.DeleteFunc(r.everything(), func(line string) bool {
				return strings.HasPrefix(line, "nft chain ") || strings.HasPrefix(line, "nft rule ")
			})
		}
		before := look()
		var valid []types.GCAttachment
		var kept []string
		paths := map[string]string{}
		for _, keep := range []bool{true, false} {
			for i := range many {
				if (i%2 == 0) != keep {
					continue
				}
				rt := s.attachment(r, fmt.Sprintf("%s-%s-%02d", s.plugin, s.behind, i/each), i) // the namespace's name is the machine's
				rt.IfName = fmt.Sprint("eth", i%each)
				if s.inside {
					if rt.NetNS = paths[rt.ContainerID]; rt.NetNS == "" {
						rt.NetNS = r.named(rt.ContainerID)
						paths[rt.ContainerID] = rt.NetNS
					}
				}
				r.must(list, rt)
				if keep {
					valid = append(valid, types.GCAttachment{ContainerID: rt.ContainerID, IfName: rt.IfName})
				}
			}
			if keep {
				kept = look()
			}
		}
		for _, step := range []struct {
			what  string
			valid []types.GCAttachment
			want  []string
		}{{"half", valid, kept}, {"half again", valid, kept}, {"none", []types.GCAttachment{}, before}} {
			r.forget() // or libcni would call DEL itself
			if err := r.runtime.GCNetworkList(r.Context(), list, &libcni.GCArgs{ValidAttachments: step.valid}); err != nil {
				r.Errorf("GC with %s valid: %v", step.what, err)
			}
			r.settles("GC with "+step.what+" valid", step.want, look)
		}
	})
}

// TestStatusOfEveryPlugin: STATUS is an error of code 50 where no ADD can be served, 51 where containers that are there
// suffer too, and tells why.
func TestStatusOfEveryPlugin(t *testing.T) {
	eachSubject(t, func(r *rig, s subject) {
		list := s.list(r, "net", 1)
		if err := r.runtime.GetStatusNetworkList(r.Context(), list); err != nil {
			r.Errorf("STATUS: %v", err)
		}
		unavailable := func(list *libcni.NetworkConfigList, names string) {
			r.Helper()
			err := r.runtime.GetStatusNetworkList(r.Context(), list)
			var said *types.Error
			code := uint(50)
			if s.plugin == "seine" { // no daemon, no names
				code = 51
			}
			if !errors.As(err, &said) || said.Code != code || !strings.Contains(err.Error(), names) {
				r.Errorf("STATUS: got %v, want code %d and a message that names %q", err, code, names)
			}
		}
		with := func(old, new string) *libcni.NetworkConfigList {
			changed := s
			changed.conf = []string{strings.Replace(s.conf[0], old, new, 1)}
			return changed.list(r, "full", 1)
		}
		if strings.Contains(s.conf[0], `{"subnet": "10.NN.0.0/24"`) && !s.single {
			full := with(`{"subnet": "10.NN.0.0/24"`, `{"subnet": "10.NN.0.0/24", "rangeEnd": "10.NN.0.2"`)
			if strings.Contains(s.conf[0], "rangeStart") {
				full = with(`"rangeStart": "10.NN.0.10"`, `"rangeStart": "10.NN.0.10", "rangeEnd": "10.NN.0.10"`)
			}
			r.must(full, s.attachment(r, "c", 1))
			unavailable(full, "10.1.0")
			r.del(full, s.attachment(r, "c", 1))
			if err := r.runtime.GetStatusNetworkList(r.Context(), full); err != nil {
				r.Errorf("STATUS when the address is free again: %v", err)
			}
		}
		switch s.plugin {
		case "macvlan", "ipvlan", "vlan":
			unavailable(with(`"master": "eth0"`, `"master": "gone0"`), "gone0")
		case "host-device":
			unavailable(with(`"hdNN"`, `"gone0"`), "gone0")
		case "dhcp":
			unavailable(with("dhcp.sock", "none.sock"), "none.sock")
		case "seine":
			unavailable(with("seine.sock", "none.sock"), "none.sock")
		case "flannel":
			unavailable(with("subnet.env", "none.env"), "none.env")
		case "tuning":
			if err := os.WriteFile(filepath.Join(r.data, "file"), nil, 0o600); err != nil {
				r.Fatal(err)
			}
			unavailable(r.network("net", `{"type": "tuning", "mtu": 1400, "dataDir": "DATA/file"}`), "dataDir")
		}
	})
}
