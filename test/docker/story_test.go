package docker_test

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/seine-net/seine/api"
)

// TestDocker: a network of ours in Docker's hands, from its making to its end, with both of its IPAM drivers.
func TestDocker(t *testing.T) {
	r := newRig(t)
	before := r.traces()
	r.docker("network", "create", "-d", driver, "--ipam-driver", driver, "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd00:77::/64",
		"-o", "seine.name=shop", "net1")
	r.docker("network", "create", "-d", driver, "--ipam-driver", driver, "--ip-range", "10.78.0.128/25", "--subnet", "10.78.0.0/24",
		"--gateway", "10.78.0.254", "--aux-address", "x=10.78.0.129", "net2")
	r.docker("network", "create", "-d", driver, "--ipv6", "--subnet", "10.79.0.0/24", "--subnet", "fd00:79::/64", "net3")
	r.docker("network", "create", "-d", driver, "--ipam-driver", driver, "--internal", "net4")

	r.docker("run", "-d", "--name", "web", "--network", "net1", "--ip", "10.77.0.80", "--ip6", "fd00:77::80", "--mac-address", "02:aa:bb:cc:dd:ee",
		"-p", "8080:80", "-p", "127.0.0.1::80", "bb", "httpd", "-f", "-p", "80", "-h", "/www")
	r.docker("run", "-d", "--name", "other", "--network", "net1", "bb", "sleep", "600")
	for _, to := range []string{"10.77.0.80", "fd00:77::80", "web"} {
		r.docker("exec", "other", "ping", "-c", "1", "-W", "3", to)
	}
	for _, to := range []string{"10.77.0.80", "[fd00:77::80]", "web"} {
		if out := r.docker("exec", "other", "wget", "-q", "-O", "-", "http://"+to+"/"); out != "hello" {
			t.Errorf("http://%s/ gave %q", to, out)
		}
	}
	if out := r.docker("exec", "web", "ip", "addr", "show", "eth0"); !strings.Contains(out, "02:aa:bb:cc:dd:ee") || !strings.Contains(out, "fd00:77::80/64") {
		t.Errorf("web's interface is:\n%s", out)
	}
	published := func() {
		t.Helper()
		r.get(r.outside.NS, net.JoinHostPort(r.machine.V4.String(), "8080"))
		r.get(r.outside.NS, net.JoinHostPort(r.machine.V6.String(), "8080"))
		for _, host := range []string{"127.0.0.1", "::1", r.machine.V4.String()} {
			r.get(r.machine.NS, net.JoinHostPort(host, "8080"))
		}
	}
	published()
	plain(r)

	// The driver's end: containers go on, and Docker's next calls are answered as if nothing had been.
	r.end(r.seined, syscall.SIGKILL)
	r.startSeined()
	published()
	r.docker("network", "connect", "net3", "other")
	r.docker("network", "connect", "--ip", "10.78.0.200", "net2", "other")
	r.docker("network", "connect", "net4", "other")
	r.docker("run", "--rm", "--network", "net2", "bb", "ping", "-c", "1", "-W", "3", "10.78.0.200")
	r.docker("run", "--rm", "--network", "net3", "bb", "ping", "-c", "1", "-W", "3", "other")
	if out := r.docker("exec", "other", "ip", "route"); !strings.Contains(out, "default via 10.77.0.1 dev eth0") {
		t.Errorf("other's routes are:\n%s", out)
	}
	for _, n := range []string{"net2", "net3", "net4"} {
		r.docker("network", "disconnect", n, "other")
	}
	if out, err := r.try(nil, "run", "--rm", "--network", "net2", "-p", "8080:80", "bb", "sleep", "1"); err == nil || !strings.Contains(out, "is published already") {
		t.Errorf("a port that is taken gave %v: %s", err, out)
	}
	r.docker("restart", "-t", "0", "web")
	published()

	r.docker("rm", "-f", "web", "other")
	r.docker("network", "rm", "net1", "net2", "net3", "net4")
	r.same(before)
	r.end(r.dockerd, syscall.SIGTERM)
	r.end(r.seined, syscall.SIGTERM)
	if _, err := os.Lstat(r.socket()); err == nil {
		t.Errorf("socket %s is left", r.socket())
	}
}

// plain: a container that has nothing to do with Docker, on Docker's network.
func plain(r *rig) {
	r.Helper()
	ns, path := r.netns("plain")
	ep, err := r.client.PutEndpoint(r.Context(), api.Endpoint{Network: "shop", Name: "plain", Sandbox: api.Sandbox{Netns: path}}, 0)
	if err != nil {
		r.Fatal(err)
	}
	r.get(ns, "10.77.0.80")
	r.get(ns, "[fd00:77::80]")
	for _, a := range ep.Addresses {
		r.docker("exec", "other", "ping", "-c", "1", "-W", "3", a.String())
	}
	// Docker is not given what somebody else has.
	if out, err := r.try(nil, "run", "--rm", "--network", "net1", "--ip", ep.Address(true).String(), "bb", "sleep", "0"); err == nil {
		r.Errorf("Docker got the address of %s: %s", ep.Key(), out)
	}
	if err := r.client.DeleteEndpoint(r.Context(), "shop", "plain", 0); err != nil {
		r.Fatal(err)
	}
}
