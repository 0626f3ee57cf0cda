// Package cni_test has the stories about the CNI plugins: the real program on a real kernel, called by the real libcni
// in a namespace that stands for the machine, with an outside, containers and real packets.
package cni_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/seine-net/seine/internal/frontdoor/cni"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/testkit"
)

// bin gives a folder with the plugins, as on a node.
var bin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "seine-cni-")
	if err != nil {
		return "", err
	}
	if os.Getenv("SEINE_VM") != "1" {
		return dir, testkit.BuildCNI(dir, cni.Names()...)
	}
	for _, name := range cni.Names() { // there is no compiler in the VM lab
		if err := os.Symlink(os.Args[0], filepath.Join(dir, name)); err != nil {
			return dir, err
		}
	}
	return dir, nil
})

// TestMain lets the test program be the plugins, too, as test/vm's does: in the VM lab there is no other program.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(cni.Main(context.Background(), cni.SystemHost(func() kernel.Kernel { return linux.New(linux.Options{}) })))
	}
	code := m.Run()
	if dir, _ := bin(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// inside is libcni's way to run plugins, in the machine's namespace.
type inside struct {
	version.PluginDecoder
	machine *testkit.NS
	// bus is the address of the machine's system bus, "" for none: never the bus of the machine that the test runs on.
	bus string
}

// ExecPlugin implements invoke.Exec.
func (i *inside) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	var out, stderr bytes.Buffer
	bus := i.bus
	if bus == "" {
		bus = "unix:path=/nonexistent"
	}
	cmd.Env = append(env, "DBUS_SYSTEM_BUS_ADDRESS="+bus)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &stderr
	err := i.machine.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		return out.Bytes(), nil
	}
	said := &types.Error{}
	if out.Len() == 0 {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(path), err, stderr.String())
	}
	if jerr := json.Unmarshal(out.Bytes(), said); jerr != nil {
		return nil, fmt.Errorf("%s: %w: prints no error of the specification: %q: %w", filepath.Base(path), err, out.String(), jerr)
	}
	return nil, said
}

// FindInPath implements invoke.Exec.
func (i *inside) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// rig is a machine and a runtime on it.
type rig struct {
	*testing.T
	machine, outside *testkit.Host
	runtime          *libcni.CNIConfig
	exec             *inside
	bin, data, cache string
	mu               sync.Mutex
	containers       map[string]*testkit.NS
}

func newRig(t *testing.T) *rig {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6")
	dir, err := bin()
	if err != nil {
		t.Fatal(err)
	}
	s := testkit.NewSandbox(t)
	r := &rig{T: t, machine: s.Machine, outside: s.Outside, bin: dir, data: t.TempDir(), cache: t.TempDir(), containers: map[string]*testkit.NS{}}
	r.exec = &inside{machine: s.Machine.NS}
	r.runtime = r.runtimeOf(dir)
	r.bridgeFilter("0")
	return r
}

// runtimeOf gives a runtime that finds its plugins in these directories.
func (r *rig) runtimeOf(dirs ...string) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(dirs, r.cache, r.exec)
}

// bridgeFilter turns on ("1") or off whether packets between ports of a bridge pass the machine's IP hooks.
func (r *rig) bridgeFilter(on string) {
	for _, name := range []string{"iptables", "ip6tables"} {
		err := r.machine.Sysctl("net/bridge/bridge-nf-call-"+name, on)
		if err != nil && on == "1" {
			r.Skipf("skip: needs bridge-netfilter: %v", err)
		}
	}
}

// network gives a configuration list of one or more plugins; in the text DATA stands for host-local's directory.
func (r *rig) network(name string, plugins ...string) *libcni.NetworkConfigList {
	r.Helper()
	return r.networkOf(name, "1.1.0", plugins...)
}

func (r *rig) networkOf(name, version string, plugins ...string) *libcni.NetworkConfigList {
	r.Helper()
	text := fmt.Sprintf(`{"cniVersion": %q, "name": %q, "plugins": [%s]}`, version, name, strings.Join(plugins, ","))
	list, err := libcni.NetworkConfFromBytes([]byte(strings.ReplaceAll(text, "DATA", r.data)))
	if err != nil {
		r.Fatal(err)
	}
	return list
}

const portmapConf = `{"type": "portmap", "capabilities": {"portMappings": true}}`

// bridgeConf and ptpConf are dual stack and masqueraded; %[1]d is a number for the subnets.
const (
	bridgeConf = `{"type": "bridge", "bridge": "br%[1]d", "isDefaultGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "DATA",
		"ranges": [[{"subnet": "10.%[1]d.0.0/24"}], [{"subnet": "fd00:%[1]d::/64"}]]}}`
	ptpConf = `{"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "DATA",
		"ranges": [[{"subnet": "10.%[1]d.0.0/24"}], [{"subnet": "fd00:%[1]d::/64"}]],
		"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}`
)

func bridgeNet(r *rig, name string, n int) *libcni.NetworkConfigList {
	return r.network(name, fmt.Sprintf(bridgeConf, n), portmapConf)
}

func ptpNet(r *rig, name string, n int) *libcni.NetworkConfigList {
	return r.network(name, fmt.Sprintf(ptpConf, n), portmapConf)
}

// makers are the two kinds of network that every story is told on.
var makers = map[string]func(*rig, string, int) *libcni.NetworkConfigList{"bridge": bridgeNet, "ptp": ptpNet}

// each runs a story on a bridge and a ptp network.
func each(t *testing.T, story func(r *rig, make func(r *rig, name string, n int) *libcni.NetworkConfigList)) {
	for kind, make := range makers {
		t.Run(kind, func(t *testing.T) { t.Parallel(); story(newRig(t), make) })
	}
}

// container gives a container's namespace, made when it is first asked for.
func (r *rig) container(id string) *testkit.NS {
	r.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[id] == nil {
		r.containers[id] = testkit.Namespace(r.T, id)
	}
	return r.containers[id]
}

// port is an entry of portMappings.
type port struct {
	Host     int    `json:"hostPort"`
	To       int    `json:"containerPort"`
	Protocol string `json:"protocol"`
	HostIP   string `json:"hostIP,omitempty"`
}

func (r *rig) conf(id, ifname string, ports ...port) *libcni.RuntimeConf {
	r.Helper()
	rt := &libcni.RuntimeConf{ContainerID: id, NetNS: r.container(id).Path(), IfName: ifname}
	if len(ports) > 0 {
		rt.CapabilityArgs = map[string]any{"portMappings": ports}
	}
	return rt
}

// addrs are the addresses of an attachment, IPv4 first.
type addrs struct{ v4, v6, gw4, gw6 netip.Addr }

func (a addrs) of(v4 bool) netip.Addr {
	if v4 {
		return a.v4
	}
	return a.v6
}

func (r *rig) tryAdd(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (addrs, error) {
	var a addrs
	res, err := r.runtime.AddNetworkList(r.Context(), list, rt)
	if err != nil {
		return a, err
	}
	out, err := types100.NewResultFromResult(res)
	if err != nil {
		return a, err
	}
	for _, ip := range out.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		if addr = addr.Unmap(); addr.Is4() {
			a.v4, a.gw4 = addr, gw.Unmap()
		} else {
			a.v6, a.gw6 = addr, gw
		}
	}
	return a, nil
}

func (r *rig) add(list *libcni.NetworkConfigList, id, ifname string, ports ...port) addrs {
	r.Helper()
	a, err := r.tryAdd(list, r.conf(id, ifname, ports...))
	if err != nil {
		r.Fatalf("ADD %s %s to %s: %v", id, ifname, list.Name, err)
	}
	return a
}

func (r *rig) del(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	r.Helper()
	if err := r.runtime.DelNetworkList(r.Context(), list, rt); err != nil {
		r.Errorf("DEL %s %s from %s: %v", rt.ContainerID, rt.IfName, list.Name, err)
	}
}

// serve echoes TCP and UDP on a port of a container, both families.
func (r *rig) serve(id string, port int) {
	r.Helper()
	for _, network := range networks {
		testkit.Serve(r.T, r.container(id), network, fmt.Sprintf("[::]:%d", port))
	}
}

var networks = []string{"tcp", "udp"}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// state is what an ADD can change on the machine and a DEL has to take back: addresses, routes, nftables' elements and
// the address store, one thing per line. What is shared (bridges, chains, sysctls) stays by design and is not in it.
func (r *rig) state() []string {
	r.Helper()
	var out []string
	for _, cmd := range []string{"ip -o -d link", "ip -o addr", "ip -4 route show table all", "ip -6 route show table all"} {
		text, err := r.machine.Exec(context.Background(), "sh", "-c", cmd)
		if err != nil {
			r.Fatal(err)
		}
		for _, line := range strings.Split(text, "\n") {
			if line = strings.TrimSpace(volatile.ReplaceAllString(line, "")); line != "" && !shared.MatchString(line) {
				out = append(out, cmd+": "+line)
			}
		}
	}
	out = append(out, r.elements()...)
	err := filepath.WalkDir(r.data, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "lock" || strings.HasPrefix(d.Name(), "last_reserved_ip.") {
			return err
		}
		content, err := os.ReadFile(path)
		out = append(out, fmt.Sprintf("store: %s %q", strings.TrimPrefix(path, r.data), content))
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	slices.Sort(out)
	return out
}

var (
	// volatile are counters and what depends on when a link's address was tried out. shared is what stays, and what ip says of
	// a veth whose other end is just going with its namespace.
	volatile = regexp.MustCompile(`[a-z_]+_timer +[0-9.]+|^[0-9]+: |(valid|preferred)_lft \S+|expires \S+|tentative|linkdown|fe80\S+`)
	shared   = regexp.MustCompile(`^Error: Peer netns|\bbr[0-9]\b|\beth0\b.*(kernel_ra|fe80)|^eth0@|dev eth0.* proto kernel|^anycast|^multicast|^broadcast|^local.*dev eth0|scope link`)
)

// elements are the elements of the plugins' sets, without those that are a bridge's.
func (r *rig) elements() []string {
	r.Helper()
	var out []string
	for _, e := range testkit.Elements(r.T, r.machine.NS) {
		if !strings.HasPrefix(e, `localnet "br`) {
			out = append(out, "nft: "+e)
		}
	}
	return out
}

// same waits until the machine's state is what it was: some of what the kernel reports follows later.
func (r *rig) same(what string, before []string) {
	r.Helper()
	var more, less []string
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		now := r.state()
		more = slices.DeleteFunc(slices.Clone(now), func(s string) bool { return slices.Contains(before, s) })
		less = slices.DeleteFunc(slices.Clone(before), func(s string) bool { return slices.Contains(now, s) })
		if len(more)+len(less) == 0 {
			return
		}
	}
	r.Errorf("%s: the machine is not as before:\nleft behind: %s\ngone: %s", what, strings.Join(more, "\n\t"), strings.Join(less, "\n\t"))
}
