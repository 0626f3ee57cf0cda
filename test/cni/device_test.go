package cni_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/testkit"
)

// %[1]d is a number for the subnets, %[2]s what the plugin needs beside the addresses.
const deviceConf = `{%[2]s, "ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.%[1]d.0.0/24"}], [{"subnet": "fd00:%[1]d::/64"}]]}}`

func deviceNet(r *rig, name string, n int, keys string) *libcni.NetworkConfigList {
	return r.network(name, fmt.Sprintf(deviceConf, n, keys))
}

// sh runs commands in a namespace.
func sh(t *testing.T, ns *testkit.NS, commands ...string) string {
	t.Helper()
	out, err := ns.Exec(context.Background(), "sh", "-ec", strings.Join(commands, "\n"))
	if err != nil {
		t.Fatalf("%v: %v: %s", commands, err, out)
	}
	return out
}

// device gives the machine a device hd0: the end of a veth, as that is what every kernel has. Who is at the other end of
// its wire has the first addresses of the subnets.
func (r *rig) device(n int) (far *testkit.NS) {
	r.Helper()
	far = r.container("far")
	sh(r.T, far, "ip link add hd0p type veth peer name hd0 netns "+r.machine.Path())
	sh(r.T, far, "ip link set hd0p up", fmt.Sprintf("ip addr add 10.%d.0.1/24 dev hd0p", n), fmt.Sprintf("ip addr add fd00:%d::1/64 dev hd0p nodad", n))
	return far
}

func TestHostDevice(t *testing.T) {
	r := newRig(t)
	far := r.device(7)
	before := r.state()
	list := deviceNet(r, "hd", 7, `"type": "host-device", "device": "hd0"`)
	for _, del := range []func(rt *libcni.RuntimeConf){
		func(rt *libcni.RuntimeConf) { r.del(list, rt) },
		func(rt *libcni.RuntimeConf) { r.del(list, rt); r.del(list, rt) },
		func(rt *libcni.RuntimeConf) { r.forget(); r.del(list, rt) },
		func(rt *libcni.RuntimeConf) {
			broken := *list
			p, err := libcni.NetworkPluginConfFromBytes([]byte(strings.Replace(string(list.Plugins[0].Bytes), `"hd0"`, `7`, 1)))
			if err != nil {
				t.Fatal(err)
			}
			broken.Plugins = []*libcni.PluginConfig{p}
			r.del(&broken, rt)
		},
	} {
		a := r.add(list, "c", "net1")
		r.serve("c", 80)
		for _, to := range []netip.Addr{a.v4, a.v6} {
			testkit.Reach(t, far, "tcp", at(to, 80))
			testkit.Reach(t, far, "udp", at(to, 80))
		}
		if err := r.runtime.CheckNetworkList(t.Context(), list, r.conf("c", "net1")); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		if _, err := r.tryAdd(list, r.conf("d", "net1")); err == nil || !strings.Contains(err.Error(), "hd0") {
			t.Errorf("ADD of a device that another container has: got %v, want an error that names it", err)
		}
		if err := r.runtime.GetStatusNetworkList(t.Context(), list); err == nil || !strings.Contains(err.Error(), "hd0") {
			t.Errorf("STATUS while a container has the device: got %v, want an error that names it", err)
		}
		del(r.conf("c", "net1"))
		r.del(list, r.conf("d", "net1"))
		r.same("after DEL", before)
		r.containers["c"].Close()
		delete(r.containers, "c")
	}
	// Without the namespace's path the device can't be found, but the addresses are given back.
	r.add(list, "c", "net1")
	rt := r.conf("c", "net1")
	rt.NetNS = ""
	r.del(list, rt)
	if kept, _ := filepath.Glob(r.data + "/hd/[0-9f]*"); len(kept) > 0 {
		t.Errorf("after DEL without CNI_NETNS still given out are %v", kept)
	}
}

// A failed ADD leaves the device on the machine, up as it was.
func TestHostDeviceFailedAdd(t *testing.T) {
	r := newRig(t)
	r.device(7)
	sh(t, r.machine.NS, "ip link set hd0 up")
	before := r.state()
	sh(t, r.container("c"), "ip link add net1 type veth peer name net1p", "ip link add hd0 type bridge")
	list := deviceNet(r, "hd", 7, `"type": "host-device", "device": "hd0"`)
	if _, err := r.tryAdd(list, r.conf("c", "net1")); err == nil || !strings.Contains(err.Error(), "net1") {
		t.Errorf("ADD of an interface whose name is taken: got %v, want an error that names it", err)
	}
	r.del(list, r.conf("c", "net1"))
	r.same("a name that is taken", before)
	// A gateway that is nowhere: the failure comes after the move.
	far := r.network("far", `{"type": "host-device", "device": "hd0", "ipam": {"type": "static", "addresses": [{"address": "10.7.0.2/24"}],
		"routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}]}}`)
	if _, err := r.tryAdd(far, r.conf("d", "net1")); err == nil {
		t.Error("ADD with a route by a gateway that is nowhere succeeds")
	}
	if up := sh(t, r.machine.NS, "ip -o link show dev hd0 up"); up == "" {
		t.Error("the device that was up is down")
	}
	r.same("a failure after the move", before)
}

// What the reference plugin moved our DEL gives back, and the other way round.
func TestHostDeviceOfTheReference(t *testing.T) {
	reference := ""
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "host-device")); err == nil {
			reference = dir
		}
	}
	if reference == "" {
		t.Skip("skip: needs the reference plugins (Debian: containernetworking-plugins)")
	}
	r := newRig(t)
	r.device(7)
	before := r.state()
	theirs := libcni.NewCNIConfigWithCacheDir([]string{reference}, r.cache, &inside{machine: r.machine.NS})
	ours := r.runtime
	list := r.networkOf("hd", "1.0.0", fmt.Sprintf(deviceConf, 7, `"type": "host-device", "device": "hd0"`))
	for _, way := range []struct{ add, del *libcni.CNIConfig }{{theirs, ours}, {ours, theirs}} {
		r.runtime = way.add
		r.add(list, "c", "net1")
		r.runtime = way.del
		if err := way.del.CheckNetworkList(t.Context(), list, r.conf("c", "net1")); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		r.del(list, r.conf("c", "net1"))
		sh(t, r.machine.NS, `ip link set hd0 alias ""`) // older ones of the reference leave it
		r.same("after DEL", before)
		if out := sh(t, r.container("c"), "ip -o link"); strings.Contains(out, "net1") {
			t.Errorf("after DEL the container has %s", out)
		}
	}
}

// join carries frames between TAP devices of two containers, as a switch between two virtual machines does.
func join(t *testing.T, a, b *testkit.NS, name string) {
	t.Helper()
	open := func(ns *testkit.NS) *os.File {
		var f *os.File
		err := ns.Do(func() error {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			req, err := unix.NewIfreq(name)
			if err != nil {
				return err
			}
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
				return err
			}
			f = os.NewFile(uintptr(fd), name)
			return nil
		})
		if err != nil {
			t.Fatalf("open %s: %v", name, err)
		}
		return f
	}
	ends := [2]*os.File{open(a), open(b)}
	var done sync.WaitGroup
	for i := range ends {
		done.Go(func() {
			frame := make([]byte, 9000)
			for {
				n, err := ends[i].Read(frame)
				if err != nil {
					return
				}
				_, _ = ends[1-i].Write(frame[:n]) // a frame may be lost while the other end is down
			}
		})
	}
	t.Cleanup(func() {
		ends[0].Close()
		ends[1].Close()
		done.Wait()
	})
}

func TestTap(t *testing.T) {
	r := newRig(t)
	before := r.state()
	list := deviceNet(r, "tap", 8, `"type": "tap", "mtu": 1400, "mac": "02:00:00:00:08:01", "owner": 64999, "group": 64998`)
	plain := deviceNet(r, "tap2", 9, `"type": "tap", "bridge": "br0"`)
	r.add(list, "a", "tap0")
	out := sh(t, r.container("a"), "ip -d link show tap0")
	for _, want := range []string{"mtu 1400", "02:00:00:00:08:01", "user 64999", "group 64998", "persist on", "tun type tap"} {
		if !strings.Contains(out, want) {
			t.Errorf("the device has not %q: %s", want, out)
		}
	}
	// One device has one address in the configuration: another gets its own by a capability.
	second := deviceNet(r, "tap", 8, `"type": "tap", "mac": "02:00:00:00:08:01", "capabilities": {"mac": true}`)
	rt := r.conf("b", "tap0")
	rt.CapabilityArgs = map[string]any{"mac": "02:00:00:00:08:02"}
	b, err := r.tryAdd(second, rt)
	if err != nil {
		t.Fatal(err)
	}
	join(t, r.container("a"), r.container("b"), "tap0")
	r.serve("b", 80)
	for _, to := range []netip.Addr{b.v4, b.v6} {
		testkit.Reach(t, r.container("a"), "tcp", at(to, 80))
		testkit.Reach(t, r.container("a"), "udp", at(to, 80))
	}
	for id, net := range map[string]*libcni.NetworkConfigList{"a": list, "b": second} {
		if err := r.runtime.CheckNetworkList(t.Context(), net, r.conf(id, "tap0")); err != nil {
			t.Errorf("CHECK %s: %v", id, err)
		}
	}
	if _, err := r.tryAdd(list, r.conf("a", "tap0")); err == nil || !strings.Contains(err.Error(), "tap0") {
		t.Errorf("a second ADD: got %v, want an error that names the interface", err)
	}

	if _, err := r.tryAdd(plain, r.conf("a", "tap1")); err == nil || !strings.Contains(err.Error(), "br0") {
		t.Errorf("ADD to no bridge: got %v, want an error that names it", err)
	}
	sh(t, r.container("a"), "ip link add br0 type bridge")
	r.add(plain, "a", "tap1")
	if out := sh(t, r.container("a"), "ip -o link show dev tap1"); !strings.Contains(out, "master br0") {
		t.Errorf("the device is no port: %s", out)
	}

	r.del(plain, r.conf("a", "tap1"))
	r.del(list, r.conf("a", "tap0"))
	r.del(list, r.conf("a", "tap0"))
	if out := sh(t, r.container("a"), "ip -o link"); strings.Contains(out, "tap") {
		t.Errorf("after DEL the container has %s", out)
	}
	rt.NetNS = ""
	r.del(second, rt)
	r.same("after DEL", before)
}
