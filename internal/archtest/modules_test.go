package archtest

import (
	"slices"
	"testing"
)

// pin says which folders may import a third-party module. Tests may where inTests says so.
type pin struct {
	module  string
	folders []string
	inTests bool
	planned bool
	why     string
}

var (
	lab  = []string{"internal/testkit", "bench/...", "test/..."}
	pins = []pin{
		{module: "github.com/vishvananda/netlink", folders: lab, inTests: true, why: "a second opinion on what kernel/linux made, which speaks netlink itself"},
		{module: "github.com/vishvananda/netns", folders: lab, inTests: true, why: "it comes with netlink"},
		{module: "github.com/google/nftables", folders: lab, inTests: true, why: "a second opinion on what kernel/linux made, which speaks nfnetlink itself"},
		{module: "go.etcd.io/bbolt", folders: []string{"internal/state"}, why: "the store can be another file format"},
		{module: "go.etcd.io/etcd/client/v3", folders: []string{"internal/cluster/etcd"}, why: "what a cluster agrees on can be kept by another store"},
		{module: "go.etcd.io/etcd/server/v3", folders: []string{"internal/cluster/etcd"}, why: "as its client; only the process of a member runs it"},
		{module: "go.etcd.io/etcd/client/pkg/v3", folders: []string{"internal/cluster/etcd"}, why: "the server's TLS settings"},
		{module: "go.etcd.io/etcd/api/v3", folders: []string{"internal/cluster/etcd"}, why: "the client's errors and members"},
		{module: "go.uber.org/zap", folders: []string{"internal/cluster/etcd"}, why: "etcd's log, which it can't do without"},
		{module: "github.com/miekg/dns", folders: []string{"internal/dns"}, inTests: true, why: "tests ask the name server questions"},
		{module: "github.com/containernetworking/cni", folders: lab, inTests: true, why: "its libcni plays the runtime; our plugins must not be bound to it"},
		{module: "github.com/godbus/dbus/v5", folders: []string{"internal/frontdoor/cni"}, why: "three calls of firewalld could be written by hand"},
		{module: "github.com/spf13/cobra", folders: []string{"internal/cli"}, why: "the command line can be parsed by something else"},
		{module: "sigs.k8s.io/yaml", folders: []string{"internal/cli"}, inTests: true, why: "YAML is a form of output, JSON is the truth"},
		{module: "golang.org/x/sys", folders: with(lab, "internal/kernel/linux", "internal/cli/...", "internal/app", "internal/handover", "internal/loopback",
			"internal/ipam/hostlocal", "internal/ipam/dhcp", "internal/fabric/udp", "internal/frontdoor/cni", "internal/kernel/kerneltest"), inTests: true, why: "system calls are made at the edges"},
		{module: "k8s.io/cri-api", folders: []string{"test/runtimes"}, why: "the messages of the CRI, for a test that plays kubelet"},
		{module: "google.golang.org/grpc", folders: []string{"test/runtimes"}, why: "what the CRI is spoken over; our own interfaces are HTTP"},
		{module: "github.com/hashicorp/memberlist", folders: []string{"internal/cluster/gossip", "internal/cluster/gossip/gossiptest"}, why: "who is up can be found out by something else"},
		{module: "go.uber.org/goleak", inTests: true, why: "it finds goroutines that nobody waited for"},
	}
)

func TestModules(t *testing.T) {
	used := map[string]bool{}
	modules := moduleOf(t)
	check := func(p pkg, imports []string, test bool) {
		for _, imp := range imports {
			m := modules[imp]
			if m == "" {
				continue
			}
			i := slices.IndexFunc(pins, func(x pin) bool { return x.module == m })
			if i < 0 {
				t.Errorf("package %q imports %q of module %q, which has no row in pins: a new module needs a folder and a reason", p.rel, imp, m)
				continue
			}
			used[m] = true
			if x := pins[i]; !matches(p.rel, x.folders) && !(test && x.inTests) {
				t.Errorf("package %q imports %q; only %q may: %s", p.rel, imp, x.folders, x.why)
			}
		}
	}
	for _, p := range ours(t) {
		check(p, p.Imports, false)
		check(p, slices.Concat(p.TestImports, p.XTestImports), true)
	}
	for _, x := range pins {
		switch {
		case !used[x.module] && !x.planned:
			t.Errorf("nothing imports module %q: remove its row, and the module", x.module)
		case used[x.module] && x.planned:
			t.Errorf("module %q is marked as planned but imported: remove the mark", x.module)
		}
	}
}
