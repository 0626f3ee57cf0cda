package docker_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// publishedPorts: every form of -p, from everywhere it is to be reached from, and from nowhere else.
func publishedPorts(r *rig) {
	r.create("net", "--ipv6")
	r.create("other", "--ipv6")
	web := r.run("web", "net", "-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8081:80", "-p", "[::1]:8082:80", "-p", "0.0.0.0:8083:80",
		"-p", "[::]:8084:80", "-p", r.machine.V4.String()+":8085:80", "-p", "9000-9002:9000-9002", "-p", "8090-8095:80", "-p", "7000:7000/sctp")
	r.serveIn(web, 9000, 9002)
	near, away := r.run("near", "net"), r.run("away", "other")
	m4, m6 := r.machine.V4, r.machine.V6

	// Source addresses: kept from outside. From the same network, and from the container itself, the answer has to come
	// back the way it went, so the source is the network's gateway.
	none := netip.Addr{}
	for i, to := range []netip.Addr{m4, m6} {
		r.reach(r.outside.NS, to, 8080, "web", []netip.Addr{r.outside.V4, r.outside.V6}[i])
		for _, from := range []*testkit.NS{r.machine.NS, near, away, web} {
			r.reach(from, to, 8080, "web", none)
		}
		r.reach(r.machine.NS, local[i], 8080, "web", none)
	}
	tcp := func(from *testkit.NS, to netip.Addr, port uint16, want bool) {
		r.Helper()
		at := netip.AddrPortFrom(to, port)
		if !want {
			testkit.CantReach(r.T, from, "tcp", at, wait)
		} else if got := testkit.Reach(r.T, from, "tcp", at); got.Server != "web" {
			r.Errorf("%s asks %s: %q answers", from.Name, at, got.Server)
		}
	}
	for _, c := range []struct {
		port                       uint16
		local4, local6, out4, out6 bool
	}{
		{8081, true, false, false, false},
		{8082, false, true, false, false},
		{8083, true, false, true, false},
		{8084, false, true, false, true},
		{8085, false, false, true, false},
		{9000, true, true, true, true},
		{9002, true, true, true, true},
		{9001, false, false, false, false}, // nobody listens there
		{8090, true, true, true, true},     // the first of those that Docker leaves to us
		{8091, false, false, false, false},
	} {
		tcp(r.machine.NS, local[0], c.port, c.local4)
		tcp(r.machine.NS, local[1], c.port, c.local6)
		for _, from := range []*testkit.NS{r.outside.NS, near, web} {
			tcp(from, m4, c.port, c.out4)
			tcp(from, m6, c.port, c.out6)
		}
	}
	if got := r.published(); fmt.Sprint(got["7000/sctp"]) != "[7000]" || len(got["80/tcp"]) != 7 {
		r.Errorf("published are %v", got)
	}
	r.refused("is published already", "run", "--rm", "--network", "other", "-p", "9001:80", "bb", "sleep", "0")

	for i, to := range r.machine.Addrs() {
		if err := sctp(r.outside.NS, web, to, r.addr("web", "net")[i]); err != nil {
			r.Errorf("SCTP to %s: %v", to, err)
		}
	}
}

// sctp sends the first packet of an association (RFC 9260 section 3.3.2) to port 7000 of an address, and waits for it in
// the container at its own address. The kernel's SCTP, which it may not have, is not asked.
func sctp(from, container *testkit.NS, to, at netip.Addr) error {
	network := "ip4:132"
	if to.Is6() {
		network = "ip6:132"
	}
	in, err := container.ListenPacket(network, at.String())
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := from.Dial(context.Background(), network, to.String())
	if err != nil {
		return err
	}
	defer out.Close()
	p := make([]byte, 32)
	binary.BigEndian.PutUint16(p, 40000)      // source port
	binary.BigEndian.PutUint16(p[2:], 7000)   // destination port
	copy(p[12:], []byte{1, 0, 0, 20})         // chunk INIT, 20 bytes
	binary.BigEndian.PutUint32(p[16:], 1)     // initiate tag
	binary.BigEndian.PutUint32(p[20:], 65536) // receiver window
	copy(p[24:], []byte{0, 1, 0, 1})          // one stream each way
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	if _, err := out.Write(p); err != nil {
		return err
	}
	_ = in.SetReadDeadline(time.Now().Add(3 * time.Second))
	buf := make([]byte, 1500)
	n, _, err := in.ReadFrom(buf)
	if err == nil && !bytes.Equal(buf[:n], p) { // neither the ports nor the checksum of this one change
		err = fmt.Errorf("%x arrived, want %x", buf[:n], p)
	}
	return err
}

// allDoors: the containers of Docker, of a CNI runtime and of `seine run` on one network reach each other, and their
// published ports are reached alike.
func allDoors(r *rig) {
	r.seine("network", "create", "shop", "--subnet", "10.67.0.0/24", "--subnet", "fd00:67::/64")
	r.create("net", "--ipv6", "--subnet", "10.67.0.0/24", "--subnet", "fd00:67::/64", "-o", "seine.network=shop")
	docker := r.run("docker", "net", "-p", "8080:80", "-p", "8080:80/udp")
	cni := r.cni("cni", "shop", 8081)
	run, process := r.seineRun("run", "shop", 8082)
	none := netip.Addr{}
	all := []*testkit.NS{docker, cni, run}
	for _, a := range all {
		for _, b := range all {
			for _, to := range addresses(r, b) {
				if a != b {
					r.reach(a, to, 80, b.Name, none)
				}
			}
		}
	}
	for i, server := range all {
		port := uint16(8080 + i)
		for k, to := range r.machine.Addrs() {
			r.reach(r.outside.NS, to, port, server.Name, r.outside.Addrs()[k])
			for _, from := range append([]*testkit.NS{r.machine.NS}, all...) {
				r.reach(from, to, port, server.Name, none)
			}
			r.reach(r.machine.NS, local[k], port, server.Name, none)
		}
	}
	// A network that others are on outlives Docker's part of it.
	r.docker("rm", "-f", "docker")
	r.docker("network", "rm", "net")
	for _, to := range addresses(r, run) {
		r.reach(cni, to, 80, "run", none)
	}
	r.delCNI("cni", "shop", 8081)
	r.end(process, syscall.SIGTERM)
	r.seine("network", "rm", "shop")
}

// cni attaches a namespace as a CNI runtime does.
func (r *rig) cni(name, network string, port uint16) *testkit.NS {
	r.Helper()
	ns, _ := r.netns(name)
	r.plugin("ADD", name, network, port)
	r.serveIn(ns, 80)
	return ns
}

func (r *rig) delCNI(name, network string, port uint16) {
	r.Helper()
	r.plugin("DEL", name, network, port)
}

// plugin calls the CNI plugin of type seine.
func (r *rig) plugin(command, name, network string, port uint16) {
	r.Helper()
	cmd := r.node.Command(r.Context(), "env", "CNI_COMMAND="+command, "CNI_CONTAINERID="+name, "CNI_NETNS=/run/netns/"+name, "CNI_IFNAME=eth0", "CNI_PATH=/nonexistent",
		filepath.Join(r.bin, "cni", "seine"))
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "type": "seine", "socket": %q, "runtimeConfig": {"portMappings": [
		{"hostPort": %d, "containerPort": 80, "protocol": "tcp"}, {"hostPort": %[3]d, "containerPort": 80, "protocol": "udp"}]}}`, network, filepath.Join(r.dir, "s"), port))
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("CNI %s: %v: %s", command, err, out)
	}
}

// seineRun starts a program by `seine run`.
func (r *rig) seineRun(name, network string, port uint16) (*testkit.NS, *exec.Cmd) {
	r.Helper()
	cmd := r.start(filepath.Join(r.bin, "seine"), "--socket", filepath.Join(r.dir, "s"), "run", "--name", name, "--network", network,
		"-p", fmt.Sprintf("%d:80", port), "-p", fmt.Sprintf("%d:80/udp", port), "--", "sleep", "600")
	var ns *testkit.NS
	r.eventually(10*time.Second, func() error {
		ep, err := r.client.Endpoint(r.Context(), network, name)
		if err == nil && ep.Status.State != api.Attached {
			err = fmt.Errorf("%s is %s", name, ep.Status.State)
		}
		if err == nil {
			ns, err = testkit.OpenNS(name, r.node.Path(ep.Sandbox.Netns))
		}
		return err
	})
	r.Cleanup(ns.Close)
	r.serveIn(ns, 80)
	return ns, cmd
}

// addresses gives the addresses of a namespace's eth0 that others reach.
func addresses(r *rig, ns *testkit.NS) (out []netip.Addr) {
	r.Helper()
	l, err := ns.Netlink().LinkByName("eth0")
	if err != nil {
		r.Fatal(err)
	}
	all, err := ns.Netlink().AddrList(l, 0)
	if err != nil {
		r.Fatal(err)
	}
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.Unmap().IsLinkLocalUnicast() {
			out = append(out, ip.Unmap())
		}
	}
	if len(out) != 2 {
		r.Fatalf("%s has %v, want an address of each family", ns.Name, out)
	}
	return out
}
