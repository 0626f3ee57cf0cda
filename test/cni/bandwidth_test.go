package cni_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/seine-net/seine/internal/testkit"
)

const bandwidthConf = `{"type": "bandwidth", "capabilities": {"bandwidth": true}}`

// limited is an attachment with limits: 8 Mbit/s to the container, 16 Mbit/s from it, as containerd writes them.
func limited(r *rig, id, ifname string) *libcni.RuntimeConf {
	rt := r.conf(id, ifname)
	rt.CapabilityArgs = map[string]any{"bandwidth": map[string]uint64{
		"IngressRate": 8e6, "IngressBurst": 160000, "EgressRate": 16e6, "EgressBurst": 160000}}
	return rt
}

// slow is a bridge or a ptp network with limits.
func slow(r *rig, list *libcni.NetworkConfigList) *libcni.NetworkConfigList {
	return r.network(list.Name, string(list.Plugins[0].Bytes), bandwidthConf)
}

// takes sends bytes over TCP and gives the time until all have arrived.
func takes(t *testing.T, from, to *testkit.NS, addr netip.Addr, bytes int) time.Duration {
	t.Helper()
	l, err := to.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, c)
			c.Close()
		}
		done <- err
	}()
	c, err := from.Dial(t.Context(), "tcp", l.Addr().(*net.TCPAddr).String())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, werr := c.Write(make([]byte, bytes))
	c.Close()
	if err := <-done; err != nil || werr != nil {
		t.Fatal(err, werr)
	}
	return time.Since(start)
}

func TestBandwidth(t *testing.T) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		list := slow(r, make(r, "net", 1))
		other := r.add(list, "other", "eth0")
		before := r.state()
		a, err := r.tryAdd(list, limited(r, "c", "eth0"))
		if err != nil {
			r.Fatal(err)
		}
		// half a megabyte, of which the burst (20 kB) and what is in queues need not wait
		const bytes = 500_000
		for _, c := range []struct {
			what      string
			from, to  *testkit.NS
			addr      netip.Addr
			min, most time.Duration
		}{
			{"to the container", r.machine.NS, r.container("c"), a.v4, 400 * time.Millisecond, 3 * time.Second},
			{"to the container", r.machine.NS, r.container("c"), a.v6, 400 * time.Millisecond, 3 * time.Second},
			{"from the container", r.container("c"), r.machine.NS, a.gw4, 200 * time.Millisecond, 3 * time.Second},
			{"from the container", r.container("c"), r.machine.NS, a.gw6, 200 * time.Millisecond, 3 * time.Second},
			{"to one without limits", r.machine.NS, r.container("other"), other.v4, 0, 200 * time.Millisecond},
		} {
			if took := takes(r.T, c.from, c.to, c.addr, bytes); took < c.min || took > c.most {
				r.Errorf("%d bytes %s %s take %s, want %s to %s", bytes, c.what, c.addr, took, c.min, c.most)
			}
		}
		if err := r.runtime.CheckNetworkList(r.Context(), list, limited(r, "c", "eth0")); err != nil {
			r.Errorf("CHECK: %v", err)
		}
		more := limited(r, "c", "eth0")
		more.CapabilityArgs["bandwidth"].(map[string]uint64)["EgressRate"] = 32e6
		if err := r.runtime.CheckNetworkList(r.Context(), list, more); err == nil || !strings.Contains(err.Error(), "16000000bit") {
			r.Errorf("CHECK with another rate: %v, want an error that names what there is", err)
		}
		if _, err := r.tryAdd(list, limited(r, "c", "eth1")); err != nil {
			r.Errorf("a second attachment: %v", err)
		}
		r.del(list, limited(r, "c", "eth1"))
		r.del(list, limited(r, "c", "eth0"))
		r.del(list, limited(r, "c", "eth0"))
		r.same("after DEL", before)
		for what, change := range map[string]func(*libcni.RuntimeConf){
			"no CNI_NETNS":                   func(rt *libcni.RuntimeConf) { rt.NetNS = "" },
			"neither limits nor prevResult":  func(rt *libcni.RuntimeConf) { rt.CapabilityArgs = nil; r.forget() },
			"none of the three, names alone": func(rt *libcni.RuntimeConf) { rt.CapabilityArgs, rt.NetNS = nil, ""; r.forget() },
		} {
			rt := limited(r, "c", "eth0")
			if _, err := r.tryAdd(list, rt); err != nil {
				r.Fatal(err)
			}
			change(rt)
			r.del(list, rt)
			r.same("after DEL with "+what, before)
		}
	})
}

func TestBandwidthGC(t *testing.T) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		list := slow(r, make(r, "net", 1))
		var valid []types.GCAttachment
		var before []string
		for i := range 6 {
			if i == 3 {
				before = r.state()
			}
			id := fmt.Sprintf("c%d", i)
			if _, err := r.tryAdd(list, limited(r, id, "eth0")); err != nil {
				r.Fatal(err)
			}
			if i < 3 {
				valid = append(valid, types.GCAttachment{ContainerID: id, IfName: "eth0"})
			}
		}
		r.forget() // or libcni would call DEL
		if err := r.runtime.GCNetworkList(r.Context(), list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			r.Fatal(err)
		}
		r.same("after GC", before)
	})
}
