package vm

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

const linksIPAM = `"ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.10"}], [{"subnet": "fd00:9::/64", "rangeStart": "fd00:9::10"}]]}`

// lacking skips the test where the kernel lacks links of a type; in the lab it has all of them.
func lacking(t *testing.T, kind string) {
	t.Helper()
	if err := testkit.Lacks(kind); err != nil {
		if inLab {
			t.Fatalf("%s: %v", kind, err)
		}
		t.Skipf("skip: this kernel lacks links of type %s (the VM lab has them: make vm): %v", kind, err)
	}
}

// wire is a node with an interface up0 on a wire, and what is at its other end.
func wire(t *testing.T) (*node, *testkit.NS) {
	n := newNode(t)
	far := n.container("far")
	n.ip(n.machine, "link add up0 type veth peer name up0 netns "+far.Path(), "link set up0 up", "link add eth0 type bridge")
	n.ip(far, "link set up0 up")
	return n, far
}

// ip runs ip(8) for each line; the shell would take busybox's.
func (n *node) ip(where *testkit.NS, lines ...string) (out string) {
	n.Helper()
	for _, l := range lines {
		text, err := where.Exec(n.Context(), "ip", strings.Fields(l)...)
		if err != nil {
			n.Fatal(err)
		}
		out += text
	}
	return out
}

// attach attaches two containers and gives their addresses, IPv4 and IPv6 of each.
func (n *node) attach(conf ...string) (out [2][2]netip.Addr, results [2]string) {
	n.Helper()
	for i, id := range []string{"a", "b"} {
		results[i] = n.must("ADD", id, conf[min(i, len(conf)-1)])
		var res struct {
			Interfaces []struct{ Name, MAC, Sandbox string }
			IPs        []struct{ Address string }
		}
		if err := json.Unmarshal([]byte(results[i]), &res); err != nil || len(res.IPs) != 2 || len(res.Interfaces) != 1 {
			n.Fatalf("%v: %s", err, results[i])
		}
		if have := n.ip(n.container(id), "-o link show eth0"); !strings.Contains(have, res.Interfaces[0].MAC) {
			n.Errorf("the result has the address %s, the interface is %s", res.Interfaces[0].MAC, have)
		}
		for j := range res.IPs {
			out[i][j] = netip.MustParsePrefix(res.IPs[j].Address).Addr()
		}
	}
	return out, results
}

// finish has CHECK content, then other things in the way of it, and DEL leave nothing.
func (n *node) finish(results [2]string, conf ...string) {
	n.Helper()
	for i, id := range []string{"a", "b"} {
		c := conf[min(i, len(conf)-1)]
		check := strings.Replace(c, `"type"`, `"prevResult": `+results[i]+`, "type"`, 1)
		n.must("CHECK", id, check)
		n.ip(n.container(id), "-4 addr flush dev eth0")
		if out, err := n.call("CHECK", id, check); err == nil || !strings.Contains(out, "addr 10.") {
			n.Errorf("CHECK without the address: %v, %s", err, out)
		}
		if out, err := n.call("ADD", id, c); err == nil || !strings.Contains(out, "already") {
			n.Errorf("ADD again: %v, %s", err, out)
		}
		// What was right at the ADD may be wrong now.
		n.must("DEL", id, strings.NewReplacer(`"up0"`, `"gone0"`, `"mode": "`, `"mode": "no`, `"vlanId": `, `"vlanId": 9`).Replace(check))
		n.must("DEL", id, c)
		if links := n.ip(n.container(id), "-o link"); strings.Contains(links, "eth0") {
			n.Errorf("DEL leaves %s", links)
		}
	}
	if taken := n.run(n.machine, "ls "+n.data+"/net"); strings.Contains(taken, "10.9") || strings.Contains(taken, "fd00") {
		n.Errorf("DEL leaves addresses taken: %s", taken)
	}
}

// reach wants both families of a and b to reach each other, and what is far, which knows them by their own addresses.
func (n *node) reach(addrs [2][2]netip.Addr, far *testkit.NS) {
	n.Helper()
	for j := range 2 {
		to := testkit.Serve(n.T, n.container("b"), "udp", netip.AddrPortFrom(addrs[1][j], 0).String())
		if got := testkit.Reach(n.T, n.container("a"), "udp", to); got.Source.Addr() != addrs[0][j] {
			n.Errorf("%s sees %s, want %s", to, got.Source, addrs[0][j])
		}
		if far == nil {
			continue
		}
		at := []string{"10.9.0.1", "fd00:9::1"}[j]
		server := testkit.Serve(n.T, far, "udp", netip.AddrPortFrom(netip.MustParseAddr(at), 0).String())
		if got := testkit.Reach(n.T, n.container("a"), "udp", server); got.Source.Addr() != addrs[0][j] {
			n.Errorf("far sees %s, want %s", got.Source, addrs[0][j])
		}
		testkit.Reach(n.T, far, "udp", to)
	}
}

// addrs gives a link at the far end the addresses that it is reached by.
func (n *node) addrs(far *testkit.NS, link string) {
	n.Helper()
	n.ip(far, "addr add 10.9.0.1/24 dev "+link, "addr add fd00:9::1/64 dev "+link+" nodad")
}

func TestCNIMacvlan(t *testing.T) {
	lacking(t, "macvlan")
	n, far := wire(t)
	n.addrs(far, "up0")
	conf := `{"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "master": "up0", "bcqueuelen": 500, ` + linksIPAM + `}`
	addrs, results := n.attach(conf)
	n.reach(addrs, far)
	n.finish(results, conf)
}

func TestCNIIpvlan(t *testing.T) {
	lacking(t, "ipvlan")
	for _, mode := range []string{"l2", "l3", "l3s"} {
		n, far := wire(t)
		conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "net", "type": "ipvlan", "master": "up0", "mode": %q, %s}`, mode, linksIPAM)
		addrs, results := n.attach(conf)
		if have := n.ip(n.container("b"), "-d -o link show eth0"); !strings.Contains(have, "ipvlan  mode "+mode+" ") {
			t.Errorf("the interface is %s, want mode %s", have, mode)
		}
		if mode == "l2" {
			n.addrs(far, "up0")
			n.reach(addrs, far)
		} else {
			n.reach(addrs, nil) // in the other modes nobody answers for the addresses on the wire
		}
		n.finish(results, conf)
	}
}

// An ipvlan after another plugin: on its interface, with its addresses.
func TestCNIIpvlanChained(t *testing.T) {
	lacking(t, "ipvlan")
	n, far := wire(t)
	n.addrs(far, "up0")
	conf := func(last int) string {
		return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "net", "type": "ipvlan", "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "up0"}],
			"ips": [{"address": "10.9.0.%[1]d/24", "interface": 0}, {"address": "fd00:9::%[1]d/64", "interface": 0}]}}`, last)
	}
	addrs, results := n.attach(conf(21), conf(22))
	n.reach(addrs, far)
	for i, id := range []string{"a", "b"} {
		n.must("CHECK", id, fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "net", "type": "ipvlan", "prevResult": %s}`, results[i]))
		n.must("DEL", id, `{"cniVersion": "1.1.0", "name": "net", "type": "ipvlan"}`)
		if links := n.ip(n.container(id), "-o link"); strings.Contains(links, "eth0") {
			t.Errorf("DEL leaves %s", links)
		}
	}
}

func TestCNIVLAN(t *testing.T) {
	lacking(t, "vlan")
	n, far := wire(t)
	conf := func(id int) string {
		return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "net", "type": "vlan", "master": "up0", "vlanId": %d, "mtu": 1400, %s}`, id, linksIPAM)
	}
	// Two tags, at whose far ends two have the same addresses: the tag tells who answers.
	addrs, results := n.attach(conf(7), conf(8))
	for i, id := range []int{7, 8} {
		end := n.container(fmt.Sprintf("far%d", id))
		link := fmt.Sprintf("up0.%d", id)
		n.ip(far, fmt.Sprintf("link add link up0 name %s type vlan id %d", link, id), "link set "+link+" netns "+end.Path())
		n.ip(end, "link set "+link+" up")
		n.addrs(end, link)
		for j, at := range []string{"10.9.0.1:9", "[fd00:9::1]:9"} {
			server := testkit.Serve(t, end, "udp", at)
			got := testkit.Reach(t, n.container([]string{"a", "b"}[i]), "udp", server)
			if got.Server != end.Name || got.Source.Addr() != addrs[i][j] {
				t.Errorf("%s: server %q sees %s, want %q and %s", at, got.Server, got.Source, end.Name, addrs[i][j])
			}
		}
	}
	if out, err := n.call("ADD", "c", conf(7)); err == nil || !strings.Contains(out, "exists") {
		t.Errorf("ADD of a tag that is taken: %v, %s", err, out)
	}
	if links := n.ip(n.container("c"), "-o link"); strings.Contains(links, "eth0") || strings.Contains(links, "new") {
		t.Errorf("a failed ADD leaves %s", links)
	}
	n.must("DEL", "c", conf(7))
	// Without the tag there is nobody.
	n.ip(far, "addr add 10.9.0.200/24 dev up0")
	testkit.CantReach(t, n.container("a"), "udp", netip.MustParseAddrPort("10.9.0.200:9"), 300*time.Millisecond)
	n.finish(results, conf(7), conf(8))
	n.ip(n.machine, "link set up0 down")
	if out, err := n.call("ADD", "c", conf(7)); err == nil || !strings.Contains(out, "down") {
		t.Errorf("ADD on a master that is down: %v, %s", err, out)
	}
	n.must("ADD", "d", strings.Replace(`{"cniVersion": "1.1.0", "name": "net", "type": "dummy", X}`, "X", linksIPAM, 1))
	n.ip(n.machine, "link set up0 up")
	n.must("ADD", "c", conf(0))
	n.ip(n.machine, "link del up0")
	n.must("DEL", "c", conf(0)) // the reference fails here, for good
}

func TestCNIDummy(t *testing.T) {
	lacking(t, "dummy")
	n := newNode(t)
	conf := `{"cniVersion": "1.1.0", "name": "net", "type": "dummy", ` + linksIPAM + `}`
	addrs, results := n.attach(conf)
	for j, a := range addrs[0] {
		server := testkit.Serve(t, n.container("a"), "udp", netip.AddrPortFrom(a, 0).String())
		testkit.Reach(t, n.container("a"), "udp", server)
		testkit.CantReach(t, n.container("b"), "udp", netip.AddrPortFrom(addrs[0][j], server.Port()), 200*time.Millisecond)
	}
	n.finish(results, conf)
}
