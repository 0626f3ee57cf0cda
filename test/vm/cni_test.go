package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/frontdoor/cni"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/testkit"
)

// TestMain lets the test program be the daemon and the CNI plugins too: in the VM lab there is no other program.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SEINE_DAEMON"); dir != "" {
		if err := daemonMain(dir); err != nil {
			fmt.Fprintln(os.Stderr, "seined:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(cni.Main(context.Background(), cni.SystemHost(func() kernel.Kernel { return linux.New(linux.Options{Brief: true}) })))
	}
	os.Exit(m.Run())
}

// node is a machine that CNI plugins run on.
type node struct {
	*testing.T
	machine    *testkit.NS
	data       string
	containers map[string]*testkit.NS
}

func newNode(t *testing.T) *node {
	return &node{T: t, machine: testkit.Namespace(t, "machine"), data: t.TempDir(), containers: map[string]*testkit.NS{}}
}

func (n *node) container(id string) *testkit.NS {
	if n.containers[id] == nil {
		n.containers[id] = testkit.Namespace(n.T, id)
	}
	return n.containers[id]
}

// call runs a plugin; in the configuration DATA stands for a folder of the test's.
func (n *node) call(verb, id, conf string) (string, error) {
	var c struct{ Type string }
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		n.Fatal(err)
	}
	cmd := exec.CommandContext(n.Context(), "/proc/self/exe")
	cmd.Args = []string{filepath.Join("/opt/cni/bin", c.Type)}
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_NETNS="+n.container(id).Path(), "CNI_IFNAME=eth0", "CNI_PATH="+n.data)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(strings.ReplaceAll(conf, "DATA", n.data)), &out, os.Stderr
	err := n.machine.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

func (n *node) must(verb, id, conf string) string {
	n.Helper()
	out, err := n.call(verb, id, conf)
	if err != nil {
		n.Fatalf("%s of %s: %v: %s", verb, id, err, out)
	}
	return out
}

func (n *node) run(where *testkit.NS, command string) string {
	n.Helper()
	out, err := where.Exec(n.Context(), "sh", "-c", command)
	if err != nil {
		n.Fatal(err)
	}
	return out
}

// TestCNIBridgeVLANs: the plugin bridge keeps VLANs of one bridge apart, lets containers of one reach each other and the
// VLAN's gateway, and gives a trunk the tags.
func TestCNIBridgeVLANs(t *testing.T) {
	n := newNode(t)
	conf := func(name, more string) string {
		return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": %q, "type": "bridge", "bridge": "brv", %s}`, name, more)
	}
	red := conf("red", `"vlan": 100, "isDefaultGateway": true, "ipam": {"type": "host-local", "dataDir": "DATA",
		"ranges": [[{"subnet": "10.100.0.0/24"}], [{"subnet": "fd00:100::/64"}]]}`)
	// Of the same subnet, and without a gateway: only VLANs stand in between.
	blue := func(last int) string {
		return conf("blue", fmt.Sprintf(`"vlan": 200, "ipam": {"type": "static", "addresses": [{"address": "10.100.0.%d/24"}, {"address": "fd00:100::%d/64"}]}`, last, last))
	}
	trunk := conf("trunk", `"vlanTrunk": [{"id": 100}, {"minID": 200, "maxID": 201}]`)
	out, err := n.call("ADD", "red1", red)
	if err != nil && strings.Contains(out, "not supported by this kernel") && !inLab {
		if links := n.run(n.machine, "ip -o link"); strings.Contains(links, "brv") {
			t.Errorf("the failed ADD leaves a bridge: %s", links)
		}
		t.Skipf("skip: this kernel lacks VLAN filtering of bridges (the VM lab has it: make vm): %s", out)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(out, `"brv.100"`) {
		t.Errorf("the result has no interface brv.100: %s", out)
	}
	n.must("ADD", "red2", red)
	n.must("ADD", "blue1", blue(51))
	n.must("ADD", "blue2", blue(52))
	n.must("ADD", "trunk", trunk)
	for _, id := range []string{"red1", "red2", "blue1", "blue2"} {
		testkit.Serve(t, n.container(id), "tcp", "[::]:80")
	}
	n.run(n.container("trunk"), `ip link add link eth0 name eth0.100 type vlan id 100 && ip addr add 10.100.0.61/24 dev eth0.100 && ip link set eth0.100 up &&
		ip link add link eth0 name eth0.200 type vlan id 200 && ip addr add 10.100.7.62/24 dev eth0.200 && ip link set eth0.200 up && ip route add 10.100.0.51 dev eth0.200`)
	testkit.Serve(t, n.machine, "tcp", "[::]:7000")
	at := func(addr string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
	}
	// The first packet to the gateway goes through.
	testkit.Reach(t, n.container("red1"), "tcp", at("fd00:100::1", 7000))
	testkit.Reach(t, n.container("red1"), "tcp", at("10.100.0.1", 7000))
	for _, a := range []string{"10.100.0.3", "fd00:100::3"} {
		testkit.Reach(t, n.container("red1"), "tcp", at(a, 80))
		testkit.Reach(t, n.machine, "tcp", at(a, 80))
		testkit.CantReach(t, n.container("blue1"), "tcp", at(a, 80), 300*time.Millisecond)
	}
	for _, a := range []string{"10.100.0.52", "fd00:100::52"} {
		testkit.Reach(t, n.container("blue1"), "tcp", at(a, 80))
		testkit.CantReach(t, n.container("red1"), "tcp", at(a, 80), 300*time.Millisecond)
		testkit.CantReach(t, n.machine, "tcp", at(a, 80), 300*time.Millisecond)
	}
	testkit.Reach(t, n.container("trunk"), "tcp", at("10.100.0.2", 80))
	n.run(n.container("blue1"), "ip route add 10.100.7.62 dev eth0")
	testkit.Reach(t, n.container("trunk"), "tcp", at("10.100.0.51", 80))
	n.run(n.container("trunk"), "ip link set eth0.100 down; ip addr add 10.100.0.63/24 dev eth0")
	testkit.CantReach(t, n.container("trunk"), "tcp", at("10.100.0.2", 80), 300*time.Millisecond)

	var result struct{ Interfaces []struct{ Name string } }
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.Interfaces) != 4 {
		t.Fatalf("%v: %s", err, out)
	}
	check := strings.Replace(red, `"type": "bridge"`, `"type": "bridge", "prevResult": `+out, 1)
	n.must("CHECK", "red1", check)
	n.run(n.machine, "bridge vlan add vid 300 dev "+result.Interfaces[1].Name)
	if out, err := n.call("CHECK", "red1", check); err == nil || !strings.Contains(out, "vid 100 pvid untagged") {
		t.Errorf("CHECK of a port in a further VLAN: %v, %s; want an error that names the VLANs", err, out)
	}
	for id, conf := range map[string]string{"red1": red, "red2": red, "blue1": blue(51), "blue2": blue(52)} {
		n.must("DEL", id, conf)
	}
	if links := n.run(n.machine, "ip -o link"); !strings.Contains(links, "brv.100") {
		t.Errorf("the gateway of VLAN 100 is gone while a trunk is in it: %s", links)
	}
	n.must("DEL", "trunk", trunk)
	if links := n.run(n.machine, "ip -o link"); strings.Contains(links, "veth") || strings.Contains(links, "brv.100") {
		t.Errorf("left behind: %s", links)
	}
}
