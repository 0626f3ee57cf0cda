package docker_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// connects: a running container is put on further networks and taken from them; its gateway and its published ports go
// where Docker leads them.
func connects(r *rig) {
	r.create("n1", "--ipv6", "--subnet", "10.71.0.0/24", "--subnet", "fd00:71::/64")
	r.create("n2", "--ipv6", "--subnet", "10.72.0.0/24", "--subnet", "fd00:72::/64")
	r.create("n3", "--internal", "--ipv6")
	web := r.run("web", "n1", "-p", "8080:80", "-p", "8080:80/udp")
	one, two, three := r.run("one", "n1"), r.run("two", "n2"), r.run("three", "n3")
	out := testkit.Serve(r.T, r.outside.NS, "tcp", "[::]:0")
	none := netip.Addr{}
	// is checks which networks web is on, by which of them it leaves, and that its ports work.
	is := func(gateway string, on ...string) {
		r.Helper()
		for name, peer := range map[string]*testkit.NS{"n1": one, "n2": two, "n3": three} {
			if strings.Contains(strings.Join(on, " "), name) {
				r.mutual(name, web, peer)
				continue
			}
			for _, to := range r.addr(peer.Name, name) {
				r.cantReach(web, to, 80)
			}
		}
		if got := gateways(r.T, web); got != gateway {
			r.Errorf("on %s, gateways are %q, want %q", on, got, gateway)
		}
		for _, to := range far(true) {
			at := netip.AddrPortFrom(to, out.Port())
			if gateway == "" {
				testkit.CantReach(r.T, web, "tcp", at, wait)
			} else {
				testkit.Reach(r.T, web, "tcp", at)
			}
		}
		for i, to := range r.machine.Addrs() {
			if gateway == "" {
				r.cantReach(r.outside.NS, to, 8080)
				continue
			}
			r.reach(r.outside.NS, to, 8080, "web", r.outside.Addrs()[i])
			r.reach(r.machine.NS, local[i], 8080, "web", none)
			r.reach(one, to, 8080, "web", none)
		}
	}
	const gw1, gw2 = "10.71.0.1 fd00:71::1", "10.72.0.1 fd00:72::1"
	is(gw1, "n1")
	r.docker("network", "connect", "--ip", "10.72.0.99", "--ip6", "fd00:72::99", "--alias", "www", "n2", "web")
	if got := r.addr("web", "n2"); got[0] != netip.MustParseAddr("10.72.0.99") || got[1] != netip.MustParseAddr("fd00:72::99") {
		r.Errorf("on n2, web has %s", got)
	}
	r.docker("exec", "two", "ping", "-c", "1", "-W", "3", "www")
	is(gw1, "n1", "n2")
	r.docker("network", "connect", "n3", "web")
	is(gw1, "n1", "n2", "n3")
	r.docker("network", "disconnect", "n1", "web")
	is(gw2, "n2", "n3")
	r.docker("network", "connect", "n1", "web")
	is(gw1, "n1", "n2", "n3")
	r.docker("network", "disconnect", "n2", "web")
	r.docker("network", "disconnect", "n1", "web")
	is("", "n3")
	r.docker("network", "connect", "n2", "web")
	is(gw2, "n2", "n3")
}

// life: containers are stopped, started and removed, and networks while they are in use.
func life(r *rig) {
	r.create("net", "--ipv6")
	web := []string{"run", "-d", "--name", "web", "--network", "net", "-p", "8080:80", "-p", "8080:80/udp", "bb", "sleep", "600"}
	r.docker(web...)
	r.docker("run", "-d", "--name", "near", "--network", "net", "bb", "sleep", "600")
	works := func() {
		r.Helper()
		r.Run("works", func(t *testing.T) { // the namespaces are let go of at its end
			r := r.with(t)
			web, near := r.serve("web", 80), r.serve("near", 81)
			for i, to := range r.addr("web", "net") {
				r.reach(near, to, 80, "web", r.addr("near", "net")[i])
			}
			r.works(web, 8080)
		})
	}
	gone := func() {
		r.Helper()
		for _, to := range r.machine.Addrs() {
			r.cantReach(r.outside.NS, to, 8080)
		}
		if got := r.published(); len(got) != 0 {
			r.Errorf("published are %v, want none", got)
		}
	}
	r.docker("restart", "-t", "0", "web")
	works()
	r.refused("has active endpoints", "network", "rm", "net")
	works()
	for range 2 {
		r.docker("stop", "-t", "0", "web")
		gone()
		r.docker("start", "web")
		works()
	}
	r.docker("kill", "web")
	gone()
	r.docker("start", "web")
	works()
	r.docker("rm", "-f", "web")
	gone()
	// The name and the ports are free again.
	r.docker(web...)
	works()
	r.docker("stop", "-t", "0", "web", "near")
	r.docker("network", "rm", "net")
	r.refused("not found", "start", "web")
}

const composeFile = `
version: "2.4"
services:
  web:
    image: bb
    command: httpd -f -p 80 -h /www
    stop_grace_period: 0s
    ports: ["8080:80", "127.0.0.1:8081:80"]
    networks:
      front: {aliases: [www], ipv4_address: 10.73.0.80, ipv6_address: "fd00:73::80"}
      back:
  db:
    image: bb
    command: sleep 600
    stop_grace_period: 0s
    networks: [back]
networks:
  front:
    driver: seine
    enable_ipv6: true
    driver_opts: {seine.name: front}
    ipam: {driver: seine, config: [{subnet: 10.73.0.0/24, gateway: 10.73.0.1}, {subnet: "fd00:73::/64"}]}
  back:
    driver: seine
    internal: true
    ipam: {driver: seine}
`

// compose: a file that says "driver: seine" is brought up, changed and taken down.
func compose(r *rig) {
	program := r.composeProgram()
	file := filepath.Join(r.dir, "compose.yaml")
	up := func(content string) {
		r.Helper()
		write(r, file, content)
		r.compose(program, file, "up", "-d", "-t", "0", "--remove-orphans")
	}
	up(composeFile)
	for _, to := range []netip.Addr{r.machine.V4, r.machine.V6} {
		r.get(r.outside.NS, netip.AddrPortFrom(to, 8080).String())
	}
	r.get(r.machine.NS, "127.0.0.1:8081")
	page := func(name string) {
		r.Helper()
		db := r.service("db")[0]
		r.eventually(5*time.Second, func() error { // it may not serve yet
			out, err := r.try(nil, "exec", db, "wget", "-q", "-O", "-", "http://"+name+"/")
			if err != nil || out != "hello" {
				err = fmt.Errorf("db asks %s: %q, %w", name, out, err)
			}
			return err
		})
	}
	page("web")
	page(r.service("web")[0])
	if n, err := r.client.Network(r.Context(), "front"); err != nil || n.Status.Endpoints != 1 {
		r.Errorf("network is %+v, %v; want one endpoint", n, err)
	}
	// A port moves: compose makes the container anew, with the same addresses.
	up(strings.Replace(composeFile, "8080:80", "8082:80", 1))
	r.get(r.outside.NS, netip.AddrPortFrom(r.machine.V4, 8082).String())
	testkit.CantReach(r.T, r.outside.NS, "tcp", netip.AddrPortFrom(r.machine.V4, 8080), wait)
	// A service goes, and another comes in several copies.
	up(strings.NewReplacer("  web:", "  page:", "ports:", "# ", "[www]", "[page]", "ipv4_address: 10.73.0.80, ipv6_address: \"fd00:73::80\"", "").Replace(composeFile))
	r.compose(program, file, "up", "-d", "-t", "0", "--scale", "page=3")
	pages := r.service("page")
	if len(pages) != 3 {
		r.Errorf("containers of service page are %q, want three", pages)
	}
	for _, name := range pages {
		page(name)
	}
	r.compose(program, file, "restart", "-t", "0")
	page("page")
	r.compose(program, file, "down", "-t", "0")
}

// composeProgram is the compose beside the daemon, or else Debian's, which is as old as its dockerd.
func (r *rig) composeProgram() string {
	r.Helper()
	if path := os.Getenv("SEINE_TEST_DOCKERD"); path != "" {
		near := filepath.Join(filepath.Dir(path), "docker-compose")
		if !exists(near) {
			r.Skipf("skip: needs %s: Debian's 1.29 does not understand newer daemons", near)
		}
		return near
	}
	testkit.Need(r.T, "program:docker-compose")
	return "docker-compose"
}

func (r *rig) compose(program, file string, args ...string) {
	r.Helper()
	cmd := exec.CommandContext(r.Context(), program, append([]string{"-p", "shop", "-f", file}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(r.dir, "d"))
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
	}
}

// service gives the names of the containers of a service.
func (r *rig) service(name string) []string {
	r.Helper()
	names := strings.Fields(r.docker("ps", "--format", "{{.Names}}", "--filter", "label=com.docker.compose.service="+name))
	if len(names) == 0 {
		r.Fatalf("no container of service %s runs", name)
	}
	return names
}

func write(r *rig, path, content string) {
	r.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		r.Fatal(err)
	}
}
