package cni_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/seine-net/seine/internal/testkit"
)

// referencePlugins is where distributions put the reference plugins.
var referencePlugins = []string{"/opt/cni/reference", "/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// reference gives the folder of the reference plugins.
func reference(t *testing.T, plugins ...string) string {
	for _, dir := range append([]string{os.Getenv("SEINE_REFERENCE_CNI")}, referencePlugins...) {
		here := dir != ""
		for _, p := range plugins {
			path, err := filepath.EvalSymlinks(filepath.Join(dir, p))
			here = here && err == nil && filepath.Base(path) != "seine-cni"
		}
		if here {
			return dir
		}
	}
	t.Skipf("skip: needs the reference CNI plugins %s (package containernetworking-plugins), looked in $SEINE_REFERENCE_CNI and %s",
		strings.Join(plugins, ", "), strings.Join(referencePlugins, ", "))
	return ""
}

var sharedChain = regexp.MustCompile(`CNI-(HOSTPORT-|FORWARD|ADMIN)`)

// foreign is what others have of nftables' chains and rules that is a container's.
func (r *rig) foreign() string {
	r.Helper()
	text, err := r.machine.Exec(r.Context(), "nft", "list", "ruleset")
	if err != nil {
		r.Fatal(err)
	}
	var out []string
	for _, line := range strings.Split(text, "\n") {
		for _, name := range []string{"CNI-DN-", "chain CNI-", "jump CNI-", "id: ", "comment \"one\"", "comment \"two\""} {
			// The chains that all containers share stay.
			if strings.Contains(line, name) && !sharedChain.MatchString(line) {
				out = append(out, line)
				break
			}
		}
	}
	return strings.Join(out, "\n")
}

// TestMigration: the reference plugins attach, their programs are replaced, and this one does the rest.
func TestMigration(t *testing.T) {
	for _, backend := range []string{"iptables", "nftables"} {
		t.Run(backend, func(t *testing.T) { migration(t, backend) })
	}
}

// tunedConf changes what the container has; TUNED is the folder where it is kept what it had before.
const tunedConf = `{"type": "tuning", "capabilities": {"mac": true}, "mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.accept_redirects": "0"}, "dataDir": "TUNED"}`

func migration(t *testing.T, backend string) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		testkit.Need(r.T, "program:iptables")
		kind := make(r, "net", 1).Plugins[0].Network.Type
		theirs := reference(r.T, kind, "host-local", "portmap", "bandwidth", "firewall", "tuning", "loopback")
		text := map[string]string{"bridge": bridgeConf, "ptp": ptpConf}[kind]
		tuned := filepath.Join(t.TempDir(), "tuning")
		// Releases before 1.7 don't know the keys and take iptables.
		list := r.networkOf("net", "1.0.0", strings.Replace(fmt.Sprintf(text, 1), `"ipMasq"`, `"ipMasqBackend": "`+backend+`", "ipMasq"`, 1),
			strings.Replace(portmapConf, `"cap`, `"backend": "`+backend+`", "cap`, 1), bandwidthConf, `{"type": "firewall", "backend": "iptables"}`,
			strings.Replace(tunedConf, "TUNED", tuned, 1))
		conf := func(id string, port int) *libcni.RuntimeConf {
			rt := limited(r, id, "eth0")
			rt.CapabilityArgs["portMappings"] = []map[string]any{{"hostPort": port, "containerPort": 80, "protocol": "tcp"},
				{"hostPort": port, "containerPort": 80, "protocol": "udp"}}
			rt.CapabilityArgs["mac"] = fmt.Sprintf("02:00:00:00:10:%02x", port-8000)
			return rt
		}
		has := map[netip.Addr]string{}
		add := func(id string, port int) {
			a, err := r.tryAdd(list, conf(id, port))
			if err != nil {
				r.Fatalf("ADD %s: %v", id, err)
			}
			for _, addr := range []netip.Addr{a.v4, a.v6} {
				if by, twice := has[addr]; twice {
					r.Errorf("%s and %s both have %s", by, id, addr)
				}
				has[addr] = id
			}
		}
		ours := r.runtime
		r.runtime = libcni.NewCNIConfigWithCacheDir([]string{theirs}, r.cache, &inside{machine: r.machine.NS})
		before := r.state()
		for i, id := range []string{"one", "two", "three"} {
			add(id, 8081+i)
		}
		r.runtime = ours

		r.serve("one", 80)
		r.serve("new", 80)
		add("new", 8090)
		add("newer", 8091)
		for _, port := range []uint16{8081, 8090} {
			testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V4, port))
		}
		for id, port := range map[string]int{"one": 8081, "two": 8082, "three": 8083, "new": 8090, "newer": 8091} {
			if err := r.runtime.CheckNetworkList(r.Context(), list, conf(id, port)); err != nil {
				r.Errorf("CHECK %s: %v", id, err)
			}
		}
		if r.foreign() == "" {
			r.Fatal("the reference plugins left no rules to look for")
		}
		r.del(list, conf("one", 8081))
		testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V4, 8090))
		rt := conf("two", 8082) // the namespace is gone already
		rt.NetNS = ""
		r.del(list, rt)
		r.containers["two"].Close()
		add("again", 8082) // an address and a port that were theirs
		r.forget()
		for id, port := range map[string]int{"three": 8083, "new": 8090, "newer": 8091, "again": 8082} {
			r.del(list, conf(id, port)) // without prevResult
		}
		r.same("after all DELs", before)
		left := r.foreign()
		for line := range strings.Lines(r.on("nft list ruleset")) {
			for addr, id := range has {
				if slices.Contains(strings.Fields(line), addr.String()) {
					left += "\n" + id + ": " + line
				}
			}
		}
		if left != "" {
			r.Errorf("left behind of what the reference plugins made:\n%s", left)
		}
		if files, _ := os.ReadDir(tuned); len(files) > 0 {
			r.Errorf("left behind of what tuning keeps: %s", files)
		}
	})
}
