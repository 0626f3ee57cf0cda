package runtimes_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// podman is a rig with Podman 4 on it, the last that calls CNI plugins.
type podman struct{ *rig }

// newPodman skips the test where Podman has no CNI.
func newPodman(t *testing.T) *podman {
	r := newRig(t, "podman", "conmon", "runc")
	// The limits are what a machine allows whose root has no CAP_SYS_RESOURCE.
	r.write("containers.conf", fmt.Sprintf(`
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[network]
network_backend = "cni"
cni_plugin_dirs = [%q]
network_config_dir = "/run/nets"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
`, r.plugins))
	r.write("storage.conf", `
[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
`)
	t.Setenv("CONTAINERS_CONF", filepath.Join(r.dir, "containers.conf"))
	t.Setenv("CONTAINERS_STORAGE_CONF", filepath.Join(r.dir, "storage.conf"))
	t.Setenv("CONTAINERS_REGISTRIES_CONF", r.write("registries.conf", ""))
	p := &podman{r}
	if backend, err := p.try("podman", "info", "--format", "{{.Host.NetworkBackend}}"); err != nil || backend != "cni" {
		t.Skipf("skip: needs Podman with the network backend cni, such as 4.3: %q, %v", backend, err)
	}
	built, _ := bin()
	p.podman("load", "-q", "-i", filepath.Join(built, "image.tar"))
	return p
}

func (p *podman) podman(args ...string) string {
	p.Helper()
	return p.run("podman", args...)
}

// container is what Podman says of one.
type container struct {
	SandboxKey string
	Networks   map[string]struct {
		IPAddress, GlobalIPv6Address netip.Addr
		MacAddress                   string
	}
}

func (p *podman) inspect(name string) container {
	p.Helper()
	var info []struct{ NetworkSettings container }
	if err := json.Unmarshal([]byte(p.podman("inspect", name)), &info); err != nil || len(info) != 1 {
		p.Fatal(info, err)
	}
	return info[0].NetworkSettings
}

// serve starts a container that echoes at ports 80 and 81.
func (p *podman) serve(name string, args ...string) container {
	p.Helper()
	p.podman(slices.Concat([]string{"run", "-d", "--name", name, "--cgroup-parent", "/" + p.cgroup}, args, []string{imageName, "serve", name, "80", "81"})...)
	c := p.inspect(name)
	p.ask(c.SandboxKey, loopback, 80, name) // it has started
	return c
}

// attached checks that a command called ADD of Podman's whole chain for these interfaces.
func (p *podman) attached(what string, ifnames ...string) {
	p.Helper()
	var want []string
	for _, ifname := range ifnames {
		for _, plugin := range []string{"bridge", "portmap", "firewall", "tuning"} {
			want = append(want, plugin+" "+ifname)
		}
	}
	slices.Sort(want)
	if got := of(p.calls(), "ADD"); !slices.Equal(got, want) {
		p.Errorf("%s calls ADD of %q, want %q", what, got, want)
	}
}

// TestPodman: containers on networks as Podman writes them, published ports, a change of networks, a pod.
func TestPodman(t *testing.T) {
	p := newPodman(t)
	p.podman("network", "create", "--subnet", "10.91.0.0/24", "--label", "a=b", "one")
	p.podman("network", "create", "--subnet", "10.92.0.0/24", "--ipv6", "--subnet", "fd92::/64", "two")
	before := p.traces()
	p.calls()

	c1 := p.serve("c1", "--network", "one", "-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8081:81", "-p", "[::1]:8081:81",
		"--ip", "10.91.0.77", "--mac-address", "02:11:22:33:44:55")
	p.attached("run", "eth0")
	one := c1.Networks["one"]
	if one.IPAddress.String() != "10.91.0.77" || one.MacAddress != "02:11:22:33:44:55" {
		t.Errorf("--ip and --mac-address give %+v", one)
	}
	// A container is asked for its ports on each of its networks.
	c2 := p.serve("c2", "--network", "one,two", "-p", "8082:80", "-p", "8082:80/udp")
	p.attached("run", "eth0", "eth1")
	p.ask(c2.SandboxKey, one.IPAddress, 80, "c1")
	p.ask(c1.SandboxKey, c2.Networks["one"].IPAddress, 80, "c2")
	p.ask(c2.SandboxKey, p.machine.V4, 8080, "c1")
	p.reach(p.outside.NS, p.machine.V4, 8080, "c1")
	p.reach(p.outside.NS, p.machine.V4, 8082, "c2")
	p.reach(p.outside.NS, p.machine.V6, 8082, "c2")
	testkit.Reach(t, p.machine.NS, "tcp", netip.MustParseAddrPort("127.0.0.1:8081"))
	testkit.CantReach(t, p.outside.NS, "tcp", netip.AddrPortFrom(p.machine.V4, 8081), 300*time.Millisecond)

	p.podman("network", "connect", "two", "c1")
	p.attached("network connect", "eth1")
	two := p.inspect("c1").Networks["two"]
	p.ask(c2.SandboxKey, two.IPAddress, 80, "c1")
	p.ask(c2.SandboxKey, two.GlobalIPv6Address, 80, "c1")
	p.reach(p.outside.NS, p.machine.V4, 8080, "c1")
	p.reach(p.outside.NS, p.machine.V6, 8080, "c1")
	p.podman("network", "disconnect", "two", "c1")
	p.reach(p.outside.NS, p.machine.V4, 8080, "c1")
	p.podman("network", "reload", "c1")
	p.reach(p.outside.NS, p.machine.V4, 8080, "c1")
	p.calls()

	p.podman("pod", "create", "--name", "pod", "--network", "two", "-p", "8090:80", "-p", "8090:80/udp", "--cgroup-parent", "/"+p.cgroup,
		"--infra-image", imageName)
	p.podman("run", "-d", "--pod", "pod", "--name", "c3", imageName, "serve", "c3", "80")
	for _, c := range p.calls() {
		if c.Plugin == "bridge" && c.Command == "ADD" {
			p.ask(c.NetNS, loopback, 80, "c3") // it has started
		}
	}
	p.reach(p.outside.NS, p.machine.V4, 8090, "c3")
	p.reach(p.outside.NS, p.machine.V6, 8090, "c3")
	p.podman("pod", "rm", "-f", "-t", "0", "pod")

	p.podman("rm", "-f", "-t", "0", "c1", "c2")
	if dels, want := of(p.calls(), "DEL"), 4+4+8; len(dels) != want {
		t.Errorf("rm calls DEL of %q, want %d", dels, want)
	}
	p.same("after rm", before)
	p.podman("network", "rm", "one", "two")
}
