package cni_test

import (
	"fmt"
	"os"
	"path/filepath"
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
			if strings.Contains(line, name) && !strings.Contains(line, "CNI-HOSTPORT-") {
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

func migration(t *testing.T, backend string) {
	each(t, func(r *rig, make func(*rig, string, int) *libcni.NetworkConfigList) {
		testkit.Need(r.T, "program:iptables")
		kind := make(r, "net", 1).Plugins[0].Network.Type
		theirs := reference(r.T, kind, "host-local", "portmap", "bandwidth", "loopback")
		text := map[string]string{"bridge": bridgeConf, "ptp": ptpConf}[kind]
		// Releases before 1.7 don't know the keys and take iptables.
		list := r.networkOf("net", "1.0.0", strings.Replace(fmt.Sprintf(text, 1), `"ipMasq"`, `"ipMasqBackend": "`+backend+`", "ipMasq"`, 1),
			strings.Replace(portmapConf, `"cap`, `"backend": "`+backend+`", "cap`, 1), bandwidthConf)
		conf := func(id string, port int) *libcni.RuntimeConf {
			rt := limited(r, id, "eth0")
			rt.CapabilityArgs["portMappings"] = []map[string]any{{"hostPort": port, "containerPort": 80, "protocol": "tcp"},
				{"hostPort": port, "containerPort": 80, "protocol": "udp"}}
			return rt
		}
		ours := r.runtime
		r.runtime = libcni.NewCNIConfigWithCacheDir([]string{theirs}, r.cache, &inside{machine: r.machine.NS})
		before := r.state()
		for i, id := range []string{"one", "two", "three"} {
			if _, err := r.tryAdd(list, conf(id, 8081+i)); err != nil {
				r.Fatalf("ADD by the reference plugins: %v", err)
			}
		}
		r.runtime = ours

		r.serve("one", 80)
		r.serve("new", 80)
		if _, err := r.tryAdd(list, conf("new", 8090)); err != nil {
			r.Fatalf("ADD beside them: %v", err)
		}
		for _, port := range []uint16{8081, 8090} {
			testkit.Reach(r.T, r.outside.NS, "tcp", at(r.machine.V4, port))
		}
		for id, port := range map[string]int{"one": 8081, "two": 8082, "three": 8083, "new": 8090} {
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
		r.forget()
		r.del(list, conf("three", 8083)) // without prevResult
		r.del(list, conf("new", 8090))
		r.same("after all DELs", before)
		if left := r.foreign(); left != "" {
			r.Errorf("left behind of what the reference plugins made:\n%s", left)
		}
	})
}
