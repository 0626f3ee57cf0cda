package machine_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

var (
	loop4 = netip.MustParseAddr("127.0.0.1")
	loop6 = netip.IPv6Loopback()
)

func TestRunServesAndAsks(t *testing.T) {
	bothFilters(t, func(r *rig) {
		web := r.web("--name", "web", "--publish", "8080:80", "--alias", "www")
		ep := r.endpoint("default", "web")
		v4, v6 := ep.Address(true), ep.Address(false)
		// What is needed to reach it is said before it starts.
		said, _, _ := strings.Cut(web.String(), "serving [::]:80\n")
		r.matches(said, fmt.Sprintf("seine: web is on default at %s, %s; containers there reach it as web, www", v4, v6))
		r.matches(said, `seine: its port 80/tcp is at 127\.0\.0\.1:8080, \[::1\]:8080 and the machine's other addresses`)
		r.checkAsBothFamilies(ep, "web")
		r.checkAsBothFamilies(ep, "www")
		r.matches(r.ok("run", "-q", "--", r.peer(), "lookup", "web"), fmt.Sprintf("web %s %s", v4, v6))
		for family, a := range map[string]netip.Addr{"ahostsv4": v4, "ahostsv6": v6} { // the C library's way
			r.matches(r.ok("run", "-q", "--", "getent", family, "web"), a.String()+" STREAM web")
		}

		n, err := r.client.Network(r.Context(), "default")
		if err != nil {
			r.Fatal(err)
		}
		r.served(r.machine.NS, at(loop4, 8080), "web", n.Subnet4().Gateway)
		r.served(r.machine.NS, at(loop6, 8080), "web", n.Subnet6().Gateway)
		r.served(r.machine.NS, at(r.machine.V4, 8080), "web", r.machine.V4)
		r.served(r.machine.NS, at(r.machine.V6, 8080), "web", r.machine.V6)
		r.served(r.outside.NS, at(r.machine.V4, 8080), "web", r.outside.V4)
		r.served(r.outside.NS, at(r.machine.V6, 8080), "web", r.outside.V6)
		for family, a := range map[string]netip.Addr{"tcp4": r.machine.V4, "tcp6": r.machine.V6} {
			if got := r.ok("run", "-q", "--", r.peer(), "get", family, "http://"+at(a, 8080).String()); !strings.Contains(got, " web ") {
				r.Errorf("from the same network, by the machine's address: %q", got)
			}
		}
		r.checkTheWayOut()
		r.clean()
	})
}

// checkAsBothFamilies asks a server by name from a container of its own.
func (r *rig) checkAsBothFamilies(ep api.Endpoint, name string) {
	r.Helper()
	asker := r.ok("run", "-q", "--name", "asker", "--", r.peer(), "get", "tcp4,tcp6", "http://"+name+"/")
	for i, family := range []string{"tcp4", "tcp6"} {
		r.matches(asker, fmt.Sprintf("%s %s %s %s", family, ep.Addresses[i], ep.Name, ".*"))
	}
}

// checkTheWayOut: what is outside sees a container as the machine.
func (r *rig) checkTheWayOut() {
	r.Helper()
	l, err := r.outside.Listen("tcp", "[::]:80")
	if err != nil {
		r.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		from, _, _ := net.SplitHostPort(req.RemoteAddr)
		fmt.Fprintln(w, "outside", from)
	})}
	go func() { _ = server.Serve(l) }() // ends with Close
	defer server.Close()
	for family, a := range map[string][2]netip.Addr{"tcp4": {testkit.Far4, r.machine.V4}, "tcp6": {testkit.Far6, r.machine.V6}} {
		got := r.ok("run", "-q", "--", r.peer(), "get", family, "http://"+at(a[0], 80).String())
		r.matches(got, fmt.Sprintf(`%s %s outside %s`, family, a[0], a[1]))
	}
}

func TestRunHandsOnWhatItIsGiven(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	cmd := r.command("run", "-q", "--name", "c", "--hostname", "h", "--", "sh", "-c", "cat; hostname; tail -n 2 /etc/hosts; cat /etc/resolv.conf; echo to stderr >&2; exit 42")
	var out, errs screen
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("typed\n"), &out, &errs
	b := r.begin(&box{screen: &out}, cmd, "")
	if code := b.wait(); code != 42 {
		t.Errorf("exit code %d, want the program's own", code)
	}
	r.nothingLeft(before)
	n, err := r.client.Network(r.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	r.matches(out.String(), fmt.Sprintf(`typed
h
%s[0-9]+ h c
%s[0-9a-f]+ h c
# by seine run
nameserver 169\.254\.255\.53
nameserver %s
nameserver %s
(search .*
)?options ndots:0
`, strings.TrimSuffix(n.Subnet4().Prefix.Addr().String(), "0"), n.Subnet6().Prefix.Addr(), n.Subnet4().Gateway, n.Subnet6().Gateway))
	if errs.String() != "to stderr\n" {
		t.Errorf("standard error: %q", errs.String())
	}
}

func TestRunOnTheMachinesNetwork(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	web := r.run("serving", "--network", "host", "--", r.peer(), "serve", "[::]:8080")
	for i, a := range r.machine.Addrs() {
		r.served(r.outside.NS, at(a, 8080), host, r.outside.Addrs()[i])
	}
	if all, err := r.client.Endpoints(r.Context()); err != nil || len(all) > 0 {
		t.Errorf("endpoints: %v, %v", all, err)
	}
	web.ctrlC()
	if code := web.wait(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	r.nothingLeft(before)
	r.kill(9)
	if out := r.ok("run", "--network", "host", "--", "echo", "no daemon needed"); out != "no daemon needed\n" {
		t.Errorf("%q", out)
	}
}

func TestRunWithLoopbackOnly(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	out := r.ok("run", "--network", "none", "--", "ip", "-br", "address")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 1 {
		t.Errorf("more than a loopback interface: %s", out)
	}
	r.matches(out, `lo UNKNOWN 127.0.0.1/8 ::1/128 `)
	// What is loopback only has nothing to publish on.
	r.refused(2, []string{`"8080:80"`, `driver "null"`, "want none"}, "run", "--network", "none", "-p", "8080:80", "--", "true")
	r.nothingLeft(before)
}

func TestRunJoins(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	web := r.web("--name", "web")
	ep := r.endpoint("default", "web")
	ns := r.inside(ep.Sandbox.Netns)
	out := r.ok("run", "-q", "--network", "container:web", "--", "sh", "-c", r.peer()+" get tcp4 http://127.0.0.1/; "+r.peer()+" get tcp6 http://[::1]/; ip -br address; hostname; "+r.peer()+" lookup web")
	for _, line := range []string{`tcp4 127.0.0.1 web 127.0.0.1`, `tcp6 ::1 web ::1`, `eth0@\S+ UP ` + ep.Status.Prefixes[0].String() + ` ` + ep.Status.Prefixes[1].String() + ` fe80::.* `,
		"web", fmt.Sprintf("web %s %s", ep.Addresses[0], ep.Addresses[1])} {
		r.matches(out, line)
	}
	r.refused(3, []string{`container "nobody"`, "is on no network"}, "run", "--network", "container:nobody", "--", "true")
	// Who joined has no network of his own: when the container ends, he stays, without one.
	guest := r.run("up\n", "--network", "container:web", "--", "sh", "-c", "echo up; exec sleep 1000")
	web.ctrlC()
	if code := web.wait(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	if err := r.left(); err != nil {
		t.Error(err)
	}
	guest.ctrlC()
	guest.wait()
	r.nothingLeft(before, ns)
}

func TestRunOnTwoNetworks(t *testing.T) {
	r := newCLIRig(t, options{})
	r.ok("network", "create", "back", "--internal")
	r.atRest("back")
	before := dump(t, r.machine.NS)
	web := r.web("--name", "web", "--network", "default", "--network", "back", "-p", "8080:80", "--alias", "www")
	front, back := r.endpoint("default", "web"), r.endpoint("back", "web")
	said, _, _ := strings.Cut(web.String(), "serving [::]:80\n")
	for _, e := range []api.Endpoint{front, back} {
		r.matches(said, fmt.Sprintf("seine: web is on %s at %s, %s; containers there reach it as web, www", e.Network, e.Addresses[0], e.Addresses[1]))
		out := r.ok("run", "-q", "--network", e.Network, "--", r.peer(), "get", "tcp4,tcp6", "http://www/")
		r.matches(out, fmt.Sprintf("tcp4 %s web .*", e.Addresses[0]))
		r.matches(out, fmt.Sprintf("tcp6 %s web .*", e.Addresses[1]))
	}
	if front.Sandbox.Interface != "eth0" || back.Sandbox.Interface != "eth1" || front.Sandbox.Netns != back.Sandbox.Netns {
		t.Errorf("%+v, %+v", front.Sandbox, back.Sandbox)
	}
	r.served(r.outside.NS, at(r.machine.V4, 8080), "web", r.outside.V4)
	// The internal one has no way out, and none to the other network.
	out := r.ok("run", "-q", "--network", "back", "--", "sh", "-c", "ip route show default; ip -6 route show default")
	if out != "" {
		t.Errorf("an internal network has a default route: %s", out)
	}
	if got := r.seine("run", "-q", "--network", "back", "--", r.peer(), "get", "tcp4", "http://"+front.Addresses[0].String()); got.code != 1 || !strings.Contains(got.err, "unreachable") {
		t.Errorf("from an internal network to another one: %s", got)
	}
	ns := r.inside(front.Sandbox.Netns)
	web.ctrlC()
	web.wait()
	r.nothingLeft(before, ns)
}

func TestRunWithAddresses(t *testing.T) {
	r := newCLIRig(t, options{})
	r.ok("network", "create", "lab", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "--mtu", "1400")
	r.atRest("lab")
	before := dump(t, r.machine.NS)
	out := r.ok("run", "--network", "lab", "--ip", "10.77.0.9", "--ip6", "fd77::9", "--mac", "02:11:22:33:44:55", "--", "ip", "-o", "link", "show", "eth0")
	r.matches(out, `.* mtu 1400 .* link/ether 02:11:22:33:44:55 .*`)
	held := r.run("up\n", "--network", "lab", "--name", "held", "--ip", "10.77.0.9", "--ip6", "fd77::9", "-p", "8080:80", "--", "sh", "-c", "ip -br address show eth0; echo up; exec sleep 1000")
	r.matches(held.String(), `eth0@\S+ UP 10.77.0.9/24 fd77::9/64 .*`)
	for _, c := range []struct {
		code int
		says []string
		args []string
	}{
		{4, []string{`addresses[0] "10.77.0.9"`, "held", "want a free address of 10.77.0.0/24"}, []string{"--ip", "10.77.0.9"}},
		{4, []string{`addresses[0] "fd77::9"`, "held", "want a free address of fd77::/64"}, []string{"--ip6", "fd77::9"}},
		{2, []string{`addresses[0] "10.78.0.9"`, "want a free address of 10.77.0.0/24"}, []string{"--ip", "10.78.0.9"}},
		{2, []string{`addresses[0] "10.77.0.1"`, "want a free address of 10.77.0.0/24"}, []string{"--ip", "10.77.0.1"}},
		{2, []string{`--ip "fd77::8"`, "want an IPv4 address"}, []string{"--ip", "fd77::8"}},
		{2, []string{`mac "01:00:00:00:00:01"`, "want six bytes"}, []string{"--mac", "01:00:00:00:00:01"}},
		{4, []string{`ports[0].hostPort "8080"`, `endpoint "lab/held"`, "want a port that is free"}, []string{"--publish", "127.0.0.1:8080:81"}},
		{4, []string{`container "held"`, "--name"}, []string{"--name", "held"}},
	} {
		r.refused(c.code, c.says, append(append([]string{"run", "--network", "lab"}, c.args...), "--", "echo", "started")...)
	}
	held.ctrlC()
	held.wait()
	r.nothingLeft(before)
}

// TestRunManyAtOnce: names and addresses are drawn for each, and all of it is given back.
func TestRunManyAtOnce(t *testing.T) {
	r := newCLIRig(t, options{})
	before := dump(t, r.machine.NS)
	web := r.web("--name", "web")
	var wg sync.WaitGroup
	var answers screen
	const many = 12
	for range many {
		cmd := r.command("run", "-q", "--", r.peer(), "get", "tcp4,tcp6", "http://web/")
		cmd.Stdout, cmd.Stderr = &answers, &answers
		wg.Go(func() {
			if err := r.finish(cmd); err != nil {
				_, _ = io.WriteString(&answers, err.Error())
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for line := range strings.Lines(answers.String()) {
		if f := strings.Fields(line); len(f) == 4 && f[2] == "web" {
			seen[f[3]] = true
		}
	}
	if len(seen) != 2*many {
		t.Errorf("%d different askers, want %d:\n%s", len(seen), 2*many, &answers)
	}
	web.ctrlC()
	web.wait()
	r.nothingLeft(before)
}
