package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	device1 = `{"cniVersion": "1.1.0", "name": "net", "type": "host-device", "device": "eth3", "ipam": ` + dualIPAM + `}`
	device2 = `{"cniVersion": "1.1.0", "name": "two", "type": "host-device", "device": "eth4"}`
	tap1    = `{"cniVersion": "1.1.0", "name": "net", "type": "tap", "mtu": 1400, "mac": "02:00:00:00:00:07", "owner": 1000, "group": 0,
		"multiQueue": true, "ipam": ` + gatewayIPAM + `}`
	pci = "/sys/bus/pci/devices/"
)

// deviceNode is a machine with devices: eth3 to eth6, and one that a program drives.
func deviceNode(t testing.TB) *node {
	n := newNode(t)
	for i := 3; i <= 6; i++ {
		n.kernel.AddForeign(&kernel.Link{Name: fmt.Sprintf("eth%d", i), MAC: fmt.Sprintf("02:00:00:00:00:0%d", i)})
	}
	n.kernel.AddForeign(&kernel.LinkUp{Link: "eth3"})
	for _, dir := range []string{pci + "0000:03:00.0/net/eth3", pci + "0000:03:00.1/virtio3/net/eth4", pci + "0000:03:00.2",
		pci + "0000:03:00.3/net", "/sys/bus/auxiliary/devices/mlx5_core.sf.2/net/eth5", "/sys/devices/pci0000:00/0000:00:04.0/net/eth6",
		"/sys/bus/pci/drivers/vfio-pci", "/sys/bus/pci/drivers/mlx5_core"} {
		if err := os.MkdirAll(n.data+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for dev, driver := range map[string]string{"0000:03:00.0": "mlx5_core", "0000:03:00.2": "vfio-pci"} {
		if err := os.Symlink("../../drivers/"+driver, n.data+pci+dev+"/driver"); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// says is a call that succeeds.
func (n *node) says(plugin, verb, conf string, env ...string) string {
	n.Helper()
	out, code := n.call(plugin, verb, conf, env...)
	if code != 0 {
		n.Fatalf("%s %s %v: %s", verb, conf, env, out)
	}
	return out
}

// home wants a device to be the machine's, as it was, and nothing of it in a container.
func (n *node) home(what, name string) {
	n.Helper()
	dump := n.kernel.Dump()
	if strings.Contains(dump, "alias") || strings.Contains(dump, "link net1") {
		n.Errorf("%s: the device is not home:\n%s", what, dump)
	}
	if !strings.Contains(dump, "link "+name+" ") {
		n.Errorf("%s: there is no %s:\n%s", what, name, dump)
	}
}

func TestHostDevicePicks(t *testing.T) {
	conf := func(keys string) string {
		return `{"cniVersion": "1.1.0", "name": "net", "type": "host-device"` + keys + `}`
	}
	for keys, want := range map[string]string{
		`, "device": "eth3"`:                                                "eth3",
		`, "hwaddr": "02-00-00-00-00-05"`:                                   "eth5",
		`, "kernelpath": "/sys/devices/pci0000:00/0000:00:04.0"`:            "eth6",
		`, "pciBusID": "0000:03:00.0"`:                                      "eth3",
		`, "pciBusID": "0000:03:00.1"`:                                      "eth4",
		`, "device": "eth3", "hwaddr": "02:00:00:00:00:04"`:                 "eth3",
		`, "runtimeConfig": {"deviceID": "0000:03:00.1"}`:                   "eth4",
		`, "device": "eth3", "runtimeConfig": {"deviceID": "0000:03:00.1"}`: "eth4",
		`, "runtimeConfig": {"deviceID": "mlx5_core.sf.2"}`:                 "eth5",
	} {
		n := deviceNode(t)
		out := n.says("host-device", "ADD", conf(keys), "CNI_IFNAME=net1")
		mac := "02:00:00:00:00:0" + want[3:]
		if d := n.kernel.Dump(); !strings.Contains(d, "link net1 mtu 1500 address "+mac+" alias "+want+" netns") && !strings.Contains(d, "link net1 address "+mac+" alias "+want+" netns") ||
			strings.Contains(d, "link "+want+" ") || !strings.Contains(out, mac) {
			t.Errorf("%s: %s\n%s\nwant %s moved", keys, out, d, want)
		}
		n.says("host-device", "CHECK", with(conf(keys), "prevResult", decoded(t, out)), "CNI_IFNAME=net1")
		// The folder of a device that is in a container is empty.
		for _, dir := range []string{pci + "0000:03:00.0/net/eth3", pci + "0000:03:00.1/virtio3/net/eth4", "/sys/bus/auxiliary/devices/mlx5_core.sf.2/net/eth5", "/sys/devices/pci0000:00/0000:00:04.0/net/eth6"} {
			if strings.HasSuffix(dir, want) {
				os.Remove(n.data + dir)
			}
		}
		for range 2 {
			n.says("host-device", "DEL", conf(keys), "CNI_IFNAME=net1")
			n.home(keys, want)
		}
	}
}

func decoded(t testing.TB, out string) any {
	t.Helper()
	var v any
	if err := decode([]byte(out), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// A device that a program drives stays where it is; its addresses are the container's all the same.
func TestHostDeviceOfAProgram(t *testing.T) {
	conf := strings.Replace(device1, `"device": "eth3"`, `"pciBusID": "0000:03:00.2"`, 1)
	n := deviceNode(t)
	before := n.kernel.Dump()
	out := n.says("host-device", "ADD", conf, "CNI_IFNAME=net1")
	for text, want := range map[string]bool{"10.1.0.2/24": true, "fd00:1::2/64": true, `"net1"`: true, netns: true, `"mac"`: false} {
		if strings.Contains(out, text) != want {
			t.Errorf("%q in the result is %v, want %v: %s", text, !want, want, out)
		}
	}
	n.says("host-device", "CHECK", with(conf, "prevResult", decoded(t, out)), "CNI_IFNAME=net1")
	n.says("host-device", "STATUS", conf)
	n.says("host-device", "DEL", conf, "CNI_IFNAME=net1", "CNI_NETNS=")
	n.noAddresses("DEL")
	if n.kernel.Dump() != before {
		t.Errorf("the kernel was changed:\n%s", n.kernel.Dump())
	}
	if out := n.says("host-device", "ADD", strings.Split(conf, `, "ipam"`)[0]+"}", "CNI_IFNAME=net1"); !strings.Contains(out, `"net1"`) {
		t.Errorf("without addresses the result is %s", out)
	}
}

// noAddresses wants host-local to have given out nothing.
func (n *node) noAddresses(what string) {
	n.Helper()
	got, _ := filepath.Glob(n.data + "/net/[0-9f]*")
	if len(got) > 0 {
		n.Errorf("%s: still given out are %v", what, got)
	}
}

// What the kernel brings back from a namespace that ended gets its name again, whoever asks first.
func TestHostDeviceComesBack(t *testing.T) {
	for keys, dir := range map[string]string{`"device": "eth3"`: "", `"hwaddr": "02:00:00:00:00:03"`: "", `"pciBusID": "0000:03:00.0"`: pci + "0000:03:00.0/net/"} {
		conf := strings.Replace(device1, `"device": "eth3"`, keys, 1)
		for _, taken := range []bool{false, true} {
			for _, next := range []string{"DEL", "DEL without a path", "GC", "ADD"} {
				n := deviceNode(t)
				n.kernel.AddNamespace("/run/netns/other")
				n.says("host-device", "ADD", conf, "CNI_IFNAME=net1")
				back := "net1"
				if taken { // so that the kernel gives the device a name of its own
					n.kernel.AddForeign(&kernel.Link{Name: "net1", Type: kernel.Bridge})
					back = "dev0"
				}
				n.kernel.RemoveNamespace(netns)
				if !strings.Contains(n.kernel.Dump(), "link "+back+" ") {
					t.Fatalf("the kernel did not bring the device back as %s:\n%s", back, n.kernel.Dump())
				}
				if dir != "" {
					os.Rename(n.data+dir+"eth3", n.data+dir+back)
				}
				what := fmt.Sprintf("%s, back as %s, %s", keys, back, next)
				switch next {
				case "DEL":
					n.says("host-device", "DEL", conf, "CNI_IFNAME=net1", "CNI_NETNS=/run/netns/gone")
					n.noAddresses(what)
				case "DEL without a path":
					n.says("host-device", "DEL", conf, "CNI_IFNAME=net1", "CNI_NETNS=")
					n.noAddresses(what)
				case "GC":
					if !strings.Contains(keys, `"device"`) && back == "net1" {
						continue // a GC knows no interface's name
					}
					n.says("host-device", "GC", with(conf, "cni.dev/valid-attachments", []any{}))
					n.noAddresses(what)
				case "ADD":
					n.says("host-device", "ADD", conf, "CNI_IFNAME=net1", "CNI_NETNS=/run/netns/other", "CNI_CONTAINERID=d")
					n.says("host-device", "DEL", conf, "CNI_IFNAME=net1", "CNI_NETNS=/run/netns/other", "CNI_CONTAINERID=d")
				}
				d := n.kernel.Dump()
				if strings.Contains(d, "alias") || !strings.Contains(d, "link eth3 ") || strings.Contains(d, "link net1") != taken {
					t.Errorf("%s: the device is not home:\n%s", what, d)
				}
			}
		}
	}
}

// An alias that somebody gave a device says nothing.
func TestHostDeviceAliasOfOthers(t *testing.T) {
	for _, up := range []bool{true, false} {
		n := newNode(t)
		n.kernel.AddForeign(&kernel.Link{Name: "net1", MAC: "02:00:00:00:00:01", Alias: "uplink"})
		if up {
			n.kernel.AddForeign(&kernel.LinkUp{Link: "net1"})
		} else {
			n.kernel.AddForeign(&kernel.Link{Name: "uplink", Type: kernel.Bridge})
		}
		before := n.kernel.Dump()
		n.says("host-device", "DEL", `{"cniVersion": "1.1.0", "name": "net", "hwaddr": "02:00:00:00:00:01"}`, "CNI_IFNAME=net1", "CNI_NETNS=")
		if d := n.kernel.Dump(); d != before {
			t.Errorf("up %v: DEL changed\n%s\nto\n%s", up, before, d)
		}
	}
}

// After an ADD that failed the interface is another attachment's, or none.
func TestHostDeviceSparesOthers(t *testing.T) {
	n := deviceNode(t)
	n.says("host-device", "ADD", device1, "CNI_IFNAME=net1")
	held := n.kernel.Dump()
	for _, conf := range []string{device2, strings.Replace(device2, `"device": "eth4"`, `"hwaddr": "02:00:00:00:00:04"`, 1),
		strings.Replace(device2, `"device": "eth4"`, `"pciBusID": "0000:03:00.1"`, 1),
		strings.Replace(device1, `"net"`, `"three"`, 1)} {
		if out, code := n.call("host-device", "ADD", conf, "CNI_IFNAME=net1"); code == 0 {
			t.Errorf("%s: ADD over another's interface gives %s", conf, out)
		}
		n.says("host-device", "DEL", conf, "CNI_IFNAME=net1")
		if d := n.kernel.Dump(); d != held {
			t.Errorf("%s: after ADD and DEL there is\n%s\nwant\n%s", conf, d, held)
		}
	}
	// A device in one container is none for another.
	if out, code := n.call("host-device", "STATUS", device1); code == 0 || !strings.Contains(out, "eth3") {
		t.Errorf("STATUS: %s", out)
	}
	n.says("host-device", "STATUS", device2)
	n.says("host-device", "STATUS", `{"cniVersion": "1.1.0", "name": "net", "capabilities": {"deviceID": true}}`)
	n.says("host-device", "DEL", `{"cniVersion": "1.1.0", "name": "net", "device": 7}`, "CNI_IFNAME=net1")
	n.home("DEL with a broken configuration", "eth3")
}

// A failure at any change leaves the device on the machine, up as it was, and no TAP device.
func TestFailedAddOfDevices(t *testing.T) {
	for plugin, conf := range map[string]string{"host-device": device1, "tap": tap1} {
		for at := 1; ; at++ {
			n := deviceNode(t)
			before := n.kernel.Dump()
			done := 0
			n.kernel.FailIf(func(c kernel.Change) error {
				_, home := c.New.(*kernel.LinkUp)
				if done++; done >= at && c.Op != kernel.Delete && !(home && c.New.Key().NS == "") {
					return errors.New("no memory")
				}
				return nil
			})
			out, code := n.call(plugin, "ADD", conf, "CNI_IFNAME=net1")
			n.kernel.FailIf(nil)
			if code == 0 {
				if at < 8 {
					t.Errorf("%s: ADD succeeds though change %d fails", plugin, at)
				}
				break
			}
			after := strings.Split(n.kernel.Dump(), "\n")
			for _, line := range strings.Split(before, "\n") {
				if !slices.Contains(after, line) {
					t.Errorf("%s: change %d failed (%s): gone is %s", plugin, at, strings.TrimSpace(out), line)
				}
			}
			if d := strings.Join(after, "\n"); strings.Contains(d, "net1") {
				t.Errorf("%s: change %d failed: left behind in\n%s", plugin, at, d)
			}
			n.noAddresses(fmt.Sprintf("%s: change %d failed", plugin, at))
		}
	}
}

func TestTap(t *testing.T) {
	l2 := `{"cniVersion": "1.1.0", "name": "net", "type": "tap"`
	for _, c := range []struct {
		conf, env string
		want      string
	}{
		{l2 + "}", "", "link net1 type tap address MAC alias"},
		{tap1, "", "link net1 type tap mtu 1400 address 02:00:00:00:00:07 user 1000 group 0 multi_queue alias"},
		{tap1, "CNI_ARGS=MAC=02:00:00:00:00:08", "link net1 type tap mtu 1400 address 02:00:00:00:00:08 user 1000 group 0 multi_queue alias"},
		{with(tap1, "runtimeConfig", map[string]string{"mac": "02:00:00:00:00:09"}), "CNI_ARGS=MAC=02:00:00:00:00:08",
			"link net1 type tap mtu 1400 address 02:00:00:00:00:09 user 1000 group 0 multi_queue alias"},
		{l2 + `, "owner": 0}`, "", "link net1 type tap address MAC user 0 alias"},
		{l2 + `, "group": 107, "bridge": "br0"}`, "", "link net1 type tap address MAC master br0 group 107 alias"},
	} {
		n := newNode(t)
		n.kernel.AddForeign(&kernel.Link{NS: netns, Name: "br0", Type: kernel.Bridge})
		out := n.says("tap", "ADD", c.conf, "CNI_IFNAME=net1", c.env)
		res, err := decodeResult([]byte(out), newest)
		if err != nil || len(res.Interfaces) != 1 || res.Interfaces[0].Name != "net1" || res.Interfaces[0].Sandbox != netns {
			t.Fatalf("%s: the result is %s (%v)", c.conf, out, err)
		}
		d := n.kernel.Dump()
		if !strings.Contains(d, strings.Replace(c.want, "MAC", res.Interfaces[0].MAC, 1)) || !strings.Contains(d, "link net1 up") {
			t.Errorf("%s %s: made\n%s\nwant %s", c.conf, c.env, d, c.want)
		}
		check := with(c.conf, "prevResult", decoded(t, out))
		n.says("tap", "CHECK", check, "CNI_IFNAME=net1")
		n.says("tap", "DEL", c.conf, "CNI_IFNAME=net1")
		if out, code := n.call("tap", "CHECK", check, "CNI_IFNAME=net1"); code == 0 || !strings.Contains(out, "net1") {
			t.Errorf("CHECK after DEL: %s", out)
		}
		if d := n.kernel.Dump(); strings.Contains(d, "net1") {
			t.Errorf("%s: DEL leaves\n%s", c.conf, d)
		}
	}
	// A virtual machine's starter may have bridged the device: no alarm.
	n := newNode(t)
	n.kernel.AddForeign(&kernel.Link{NS: netns, Name: "br0", Type: kernel.Bridge})
	out := n.says("tap", "ADD", l2+"}", "CNI_IFNAME=net1")
	had := &kernel.Link{NS: netns, Name: "net1", Type: kernel.Tap}
	now := *had
	now.Master = "br0"
	if err := n.kernel.Apply(t.Context(), []kernel.Change{{Op: kernel.Update, Old: had, New: &now}})[0]; err != nil {
		t.Fatal(err)
	}
	n.says("tap", "CHECK", with(l2+"}", "prevResult", decoded(t, out)), "CNI_IFNAME=net1")
}
