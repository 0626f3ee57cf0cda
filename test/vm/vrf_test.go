package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/testkit"
)

// chain calls plugins of a configuration list one after the other as a runtime does, on DEL the other way round. It gives
// the last result.
func (n *node) chain(verb, id, ifname, prev string, confs ...string) (string, error) {
	n.Helper()
	if verb == "DEL" {
		confs = slices.Clone(confs)
		slices.Reverse(confs)
	}
	for _, conf := range confs {
		var c map[string]any
		if err := json.Unmarshal([]byte(conf), &c); err != nil {
			n.Fatal(err)
		}
		if prev != "" {
			c["prevResult"] = json.RawMessage(prev)
		}
		text, err := json.Marshal(c)
		if err != nil {
			n.Fatal(err)
		}
		cmd := exec.CommandContext(n.Context(), "/proc/self/exe")
		cmd.Args = []string{filepath.Join("/opt/cni/bin", c["type"].(string))}
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_NETNS="+n.container(id).Path(), "CNI_IFNAME="+ifname, "CNI_PATH="+n.data)
		var out strings.Builder
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(text)), &out, os.Stderr
		if err = n.machine.Start(cmd); err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			return out.String(), err
		}
		if verb == "ADD" {
			prev = out.String()
		}
	}
	return prev, nil
}

// who asks an Echo server from within a VRF and gives its name.
func (n *node) who(id, vrf, at string) (string, error) {
	d := net.Dialer{Timeout: 2 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, vrf) }); cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := n.container(id).DialWith(n.Context(), d, "tcp", at)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := fmt.Fprintln(c, "x"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	name, _, _ := strings.Cut(line, " ")
	return name, err
}

// TestCNIVRF: a container is on two networks that have the same subnets, each in a VRF of its own.
func TestCNIVRF(t *testing.T) {
	testkit.Need(t, "root", "veth", "bridge", "vrf")
	n := newNode(t)
	conf := func(net string, last int, routes string) string {
		return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": %q, "type": "bridge", "bridge": "br-%s", "ipam": {"type": "static",
			"addresses": [{"address": "10.5.0.%d/24"}, {"address": "fd00:5::%d/64"}], "routes": [%s]}}`, net, net, last, last, routes)
	}
	far := `{"dst": "10.77.0.0/16", "gw": "10.5.0.1"}, {"dst": "fd00:77::/64", "gw": "fd00:5::1"}`
	vrf := func(name string) string {
		return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": %q, "type": "vrf", "vrfname": "vrf-%s"}`, name, name)
	}
	results := map[string]string{}
	nets := map[string]string{"red": "eth0", "blue": "eth1"}
	for net, ifname := range nets {
		peer := "peer-" + net
		n.must("ADD", peer, conf(net, 1, ""))
		n.run(n.container(peer), "ip addr add 10.77.0.1/32 dev lo && ip addr add fd00:77::1/128 dev lo && ip link set lo up")
		testkit.Serve(t, n.container(peer), "tcp", "[::]:80")
		out, err := n.chain("ADD", "c", ifname, "", conf(net, 2, far), vrf(net))
		if err != nil {
			t.Fatalf("ADD to %s: %v: %s", net, err, out)
		}
		results[net] = out
	}
	reach := func(net, want string) {
		t.Helper()
		for _, at := range []string{"10.5.0.1:80", "[fd00:5::1]:80", "10.77.0.1:80", "[fd00:77::1]:80"} {
			if got, err := n.who("c", "vrf-"+net, at); err != nil || got != want {
				t.Errorf("in VRF %s %s is answered by %q (%v), want %s", net, at, got, err, want)
			}
		}
	}
	reach("red", "peer-red")
	reach("blue", "peer-blue")
	for net, ifname := range nets {
		if out, err := n.chain("CHECK", "c", ifname, results[net], conf(net, 2, far), vrf(net)); err != nil {
			t.Errorf("CHECK of %s: %s", net, out)
		}
	}
	if got, err := n.who("c", "lo", "10.77.0.1:80"); err == nil {
		t.Errorf("outside of the VRFs %s answers", got)
	}

	for range 2 {
		if out, err := n.chain("DEL", "c", "eth0", results["red"], conf("red", 2, far), vrf("red")); err != nil {
			t.Fatalf("DEL: %v: %s", err, out)
		}
	}
	reach("blue", "peer-blue")
	if links := n.run(n.container("c"), "ip -o link"); strings.Contains(links, "vrf-red") || strings.Contains(links, "eth0") || !strings.Contains(links, "vrf-blue") {
		t.Errorf("after the DEL of red the container has %s", links)
	}
	if out, err := n.chain("DEL", "c", "eth1", results["blue"], conf("blue", 2, far), vrf("blue")); err != nil {
		t.Fatalf("DEL: %v: %s", err, out)
	}
	if links := n.run(n.container("c"), "ip -o link"); strings.Contains(links, "vrf-") {
		t.Errorf("after all DELs the container has %s", links)
	}
}

// TestCNIVRFTaken: what is in the way is an error that changes nothing.
func TestCNIVRFTaken(t *testing.T) {
	testkit.Need(t, "root", "veth", "bridge", "vrf")
	n := newNode(t)
	bridge := `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br-net", "ipam": {"type": "static", "addresses": [{"address": "10.5.0.2/24"}, {"address": "fd00:5::2/64"}],
		"routes": [{"dst": "0.0.0.0/0", "gw": "10.5.0.1"}, {"dst": "::/0", "gw": "fd00:5::1"}]}}`
	result, err := n.chain("ADD", "c", "eth0", "", bridge)
	if err != nil {
		t.Fatalf("ADD: %s", result)
	}
	if err := n.container("c").Netlink().LinkAdd(&netlink.Vrf{LinkAttrs: attrs("other", nil), Table: 7}); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		return n.run(n.container("c"), "ip -o addr show dev eth0; ip route show table all dev eth0; ip -6 route show table all dev eth0; ip -o link")
	}
	before := state()
	for conf, want := range map[string]string{
		`{"cniVersion": "1.1.0", "name": "net", "type": "vrf", "vrfname": "other", "table": 8}`: "differs from that of VRF",
		`{"cniVersion": "1.1.0", "name": "net", "type": "vrf", "vrfname": "lo"}`:                "type loopback",
	} {
		if out, err := n.chain("ADD", "c", "eth0", result, conf); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v: %s; want an error about %q", conf, err, out, want)
		}
		if after := state(); after != before {
			t.Errorf("%s: changed\n%s\nto\n%s", conf, before, after)
		}
	}
}
