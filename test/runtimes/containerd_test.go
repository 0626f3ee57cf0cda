package runtimes_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seine-net/seine/internal/testkit"
)

const containerdSocket = "/run/containerd/containerd.sock"

// containerdConf has what Kubernetes' documentation has of it, and what a machine needs whose root has no
// CAP_SYS_RESOURCE (restrict_oom_score_adj) or no AppArmor.
const containerdConf = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + imageName + `"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`

// conflist is the one of Kubernetes' documentation ("Network Plugins"), with both families, and with the bandwidth of
// the same page.
const conflist = `{
  "cniVersion": "1.0.0",
  "name": "containerd-net",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:db8:4860::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}, "externalSetMarkChain": "KUBE-MARK-MASQ"},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}`

// containerd is a rig with containerd on it, and a client of its CRI, as kubelet is one.
type containerd struct {
	*rig
	runtime cri.RuntimeServiceClient
}

func newContainerd(t *testing.T) *containerd {
	r := newRig(t, "containerd", "containerd-shim-runc-v2", "ctr", "runc")
	nets := filepath.Join(r.dir, "net.d")
	if err := os.Mkdir(nets, 0o755); err != nil {
		t.Fatal(err)
	}
	r.write("net.d/10-containerd-net.conflist", conflist)
	r.background("containerd", "-c", r.write("config.toml", fmt.Sprintf(containerdConf, r.plugins, nets)))
	c, err := grpc.NewClient("unix://"+r.node.Path(containerdSocket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	out := &containerd{r, cri.NewRuntimeServiceClient(c)}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := out.ready()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("containerd is not ready: %v", err)
		}
	}
	built, _ := bin()
	r.run("ctr", "-a", containerdSocket, "-n", "k8s.io", "images", "import", filepath.Join(built, "image.tar"))
	return out
}

// ready asks for containerd's own conditions, of which one is about its network.
func (c *containerd) ready() error {
	ctx, cancel := context.WithTimeout(c.Context(), time.Second)
	defer cancel()
	got, err := c.runtime.Status(ctx, &cri.StatusRequest{})
	for _, cond := range got.GetStatus().GetConditions() {
		if !cond.Status {
			return fmt.Errorf("%s: %s: %s", cond.Type, cond.Reason, cond.Message)
		}
	}
	return err
}

// pod is a sandbox.
type pod struct {
	name, id, netns string
	config          *cri.PodSandboxConfig
	addrs           []netip.Addr
}

// run starts a pod with a container that echoes at port 80.
func (c *containerd) run(name string, annotations map[string]string, ports ...*cri.PortMapping) *pod {
	c.Helper()
	p := &pod{name: name, config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "default"}, Hostname: name,
		LogDirectory: c.dir, DnsConfig: &cri.DNSConfig{}, Annotations: annotations, PortMappings: ports,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + c.cgroup, SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{}}}}}
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	made, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		c.Fatal(err)
	}
	p.id = made.PodSandboxId
	container, err := c.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: imageName},
			Args: []string{"serve", name, "80"}, LogPath: name + ".log", Linux: &cri.LinuxContainerConfig{}}})
	if err != nil {
		c.Fatal(err)
	}
	if _, err := c.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container.ContainerId}); err != nil {
		c.Fatal(err)
	}
	got, err := c.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		c.Fatal(err)
	}
	n := got.Status.Network
	for _, ip := range append([]*cri.PodIP{{Ip: n.Ip}}, n.AdditionalIps...) {
		a, err := netip.ParseAddr(ip.Ip)
		if err != nil {
			c.Fatalf("status of %s: %v: %v", name, n, err)
		}
		p.addrs = append(p.addrs, a)
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(got.Info["info"]), &info); err != nil {
		c.Fatal(err)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" {
			p.netns = ns.Path
		}
	}
	c.ask(p.netns, loopback, 80, name) // it has started
	return p
}

// end does what kubelet does when a pod ends: it stops it, stops it once more, and removes it.
func (c *containerd) end(p *pod) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	for range 2 {
		if _, err := c.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			c.Errorf("stop %s: %v", p.name, err)
		}
	}
	if _, err := c.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		c.Errorf("remove %s: %v", p.name, err)
	}
}

// TestContainerd: pods with ports and limits, by what kubelet asks of a runtime.
func TestContainerd(t *testing.T) {
	c := newContainerd(t)
	c.calls()
	before := c.traces()
	a := c.run("a", map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "5M"},
		&cri.PortMapping{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 8080},
		&cri.PortMapping{Protocol: cri.Protocol_UDP, ContainerPort: 80, HostPort: 8080},
		&cri.PortMapping{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 8081, HostIp: "127.0.0.1"})
	calls := c.calls()
	if got, want := of(calls, "ADD"), []string{"bandwidth eth0", "bridge eth0", "loopback lo", "portmap eth0"}; !slices.Equal(got, want) {
		t.Errorf("RunPodSandbox calls ADD of %q, want %q", got, want)
	}
	for key, plugin := range map[string]string{`"HostPort":8080`: "portmap", `"IngressRate":10000000`: "bandwidth"} {
		if !slices.ContainsFunc(calls, func(x call) bool { return x.Plugin == plugin && strings.Contains(x.Stdin, key) }) {
			t.Errorf("no ADD of %s with %s: %+v", plugin, key, calls)
		}
	}
	b := c.run("b", nil)
	c.calls()
	if len(a.addrs) != 2 || len(b.addrs) != 2 {
		t.Fatalf("pods have the addresses %v and %v, want two each", a.addrs, b.addrs)
	}
	for i, machine := range []netip.Addr{c.machine.V4, c.machine.V6} {
		c.reach(c.outside.NS, machine, 8080, "a")
		c.ask(b.netns, a.addrs[i], 80, "a")
		c.ask(a.netns, b.addrs[i], 80, "b")
		c.ask(b.netns, machine, 8080, "a")
	}
	testkit.Reach(t, c.machine.NS, "tcp", netip.MustParseAddrPort("127.0.0.1:8081"))
	for netns, want := range map[string]bool{a.netns: true, b.netns: false} {
		// What the pod receives is limited by its end of the veth on the machine.
		if got := strings.Contains(c.limits(netns), "tbf"); got != want {
			t.Errorf("pod %s is limited: %v, want %v", netns, got, want)
		}
	}
	server := testkit.Serve(t, c.outside.NS, "tcp", netip.AddrPortFrom(testkit.Far4, 0).String())
	if out, err := c.try("nsenter", "--net="+a.netns, c.peer(), "ask", "tcp", server.String()); err != nil || !strings.Contains(out, " "+c.machine.V4.String()+":") {
		t.Errorf("the outside sees pod a as %q, %v; want %s", out, err, c.machine.V4)
	}

	c.end(a)
	var with, without int
	calls = c.calls()
	for _, x := range calls {
		if x.Command == "DEL" && x.Plugin == "bridge" {
			if x.NetNS != "" {
				with++
			} else {
				without++
			}
		}
	}
	if with != 1 || without != 2 {
		t.Errorf("stop, stop and remove call DEL %d times with a namespace and %d times without, want 1 and 2: %q", with, without, of(calls, "DEL"))
	}
	c.end(b)
	c.calls()
	c.same("after all pods", before)
}
