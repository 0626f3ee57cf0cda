package machine_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// refusals are what TestNetworkCommands tries while there are the networks default, with the container web, and lab.
var refusals = []struct {
	code int
	says []string
	args string
}{
	{4, []string{`network "lab"`, "exists"}, "network create lab"},
	{2, []string{`name "a/b"`, "want 1 to 63 letters"}, "network create a/b"},
	{2, []string{`--subnet "10.0.0.0/40"`, "want a range such as"}, "network create x --subnet 10.0.0.0/40"},
	{2, []string{`subnets[0].prefix "10.0.0.1/24"`, "want 10.0.0.0/24"}, "network create x --subnet 10.0.0.1/24"},
	{4, []string{`subnets[0].prefix "10.9.0.0/16"`, `"lab"`}, "network create x --subnet 10.9.0.0/16"},
	{2, []string{`--gateway "10.1.0.1"`, "want an address in a --subnet"}, "network create x --gateway 10.1.0.1"},
	{2, []string{`mtu "12"`, "want 1280 to 65535"}, "network create x --mtu 12"},
	{2, []string{`driver "nope"`, "want ", "bridge"}, "network create x --driver nope"},
	{2, []string{"--mtu", "many"}, "network create x --mtu many"},
	{2, []string{`argument "y" is too much`}, "network create x y"},
	{2, []string{`command "seine netwrok" is not known; did you mean network?`}, "netwrok"},
	{3, []string{`network "nope"`, "does not exist"}, "network inspect nope"},
	{3, []string{`network "nope"`, "does not exist"}, "network rm nope"},
	{4, []string{`network "default"`, "endpoint", "web"}, "network rm default"},
	{3, []string{`container "nobody"`, "is on no network"}, "network connect lab nobody"},
	{3, []string{`network "nope" does not exist`}, "network connect nope web"},
	{4, []string{`endpoint "default/web"`, "exists"}, "network connect default web"},
	{3, []string{`endpoint "lab/web"`, "does not exist"}, "network disconnect lab web"},
	{3, []string{`endpoint "default/nobody"`, "does not exist"}, "endpoint inspect default/nobody"},
	{2, []string{`"web"`, "want NETWORK/NAME"}, "endpoint inspect web"},
	{2, []string{`"xml"`, "want one of table, json, yaml"}, "network ls -o xml"},
	{2, []string{"needs --yes"}, "reset"},
}

func TestNetworkCommands(t *testing.T) {
	r := newCLIRig(t, options{})
	var nets []api.Network
	r.read(&nets, "network", "ls")
	var names []string
	for _, n := range nets {
		names = append(names, n.Name+"="+n.Driver)
	}
	if want := []string{"default=bridge", "host=host", "none=null"}; !slices.Equal(names, want) {
		t.Errorf("networks of a first start: %s, want %s", names, want)
	}
	def := nets[0]
	if !def.MasqueradeOn() || def.Subnet4() == nil || def.Subnet6() == nil {
		t.Errorf("network default: %+v", def)
	}
	r.matches(r.ok("network", "create", "lab", "--subnet", "10.9.0.0/24", "--gateway", "10.9.0.254", "--subnet", "fd00:9::/64", "--mtu", "1400", "--internal", "--label", "a=b"),
		"network lab created: bridge, 10.9.0.0/24, fd00:9::/64, internal")
	var lab api.Network
	r.read(&lab, "network", "inspect", "lab")
	if lab.MTU != 1400 || !lab.Internal || lab.Subnet4().Gateway != netip.MustParseAddr("10.9.0.254") || lab.Labels["a"] != "b" || lab.Created == "" {
		t.Errorf("%+v", lab)
	}
	r.matches(r.ok("network", "ls"), "lab bridge 10.9.0.0/24, fd00:9::/64 0 internal")

	web := r.web("--name", "web", "-p", "8080:80")
	r.checkConnect()

	for _, c := range refusals {
		r.refused(c.code, c.says, strings.Fields(c.args)...)
	}
	web.ctrlC()
	web.wait()
	r.matches(r.ok("network", "rm", "lab"), "network lab removed")
	r.refused(3, nil, "network", "inspect", "lab")
	r.clean()
}

// checkConnect connects a running web server to the internal network lab, and takes it away again.
func (r *rig) checkConnect() {
	r.Helper()
	r.matches(r.ok("network", "connect", "lab", "web", "--ip", "10.9.0.80", "--alias", "store"), `endpoint lab/web attached as eth1: 10\.9\.0\.80, fd00:9::\S+`)
	var all []api.Endpoint
	r.read(&all, "endpoint", "ls")
	if len(all) != 2 || all[0].Key() != "default/web" || all[1].Key() != "lab/web" {
		r.Fatalf("%+v", all)
	}
	var one api.Endpoint
	r.read(&one, "endpoint", "inspect", "lab/web")
	if one.Addresses[0] != netip.MustParseAddr("10.9.0.80") || one.Status.State != api.Attached || one.Sandbox.PID != all[0].Sandbox.PID {
		r.Errorf("%+v", one)
	}
	r.matches(r.ok("endpoint", "ls"), fmt.Sprintf("default/web web attached %s, %s eth0 8080:80", all[0].Addresses[0], all[0].Addresses[1]))
	var ports []api.PublishedPort
	r.read(&ports, "ports")
	if len(ports) != 1 || ports[0].HostPort != 8080 || ports[0].ContainerPort != 80 || ports[0].Endpoint != "web" || ports[0].State != api.Attached {
		r.Errorf("%+v", ports)
	}
	r.matches(r.ok("ports"), `\*:8080 tcp default/web web 80 attached`)
	out := r.ok("run", "-q", "--network", "lab", "--", r.peer(), "get", "tcp4,tcp6", "http://store/")
	r.matches(out, `tcp4 10\.9\.0\.80 web .*`)
	var node api.Node
	r.read(&node, "status")
	if node.Endpoints != 2 || node.Networks != 4 || len(node.Problems) > 0 || node.Version == "" {
		r.Errorf("%+v", node)
	}
	r.matches(r.ok("status"), `Holds: 4 networks, 2 endpoints, \d+ kernel objects \(revision \d+\)`)
	r.matches(r.ok("network", "disconnect", "lab", "web"), "endpoint lab/web detached")
	if out := r.seine("run", "-q", "--network", "lab", "--", r.peer(), "lookup", "store"); out.code != 1 {
		r.Errorf("the name of who was disconnected is still known: %s", out)
	}
	r.served(r.outside.NS, at(r.machine.V6, 8080), "web", r.outside.V6)
}

// TestPlanAndCheck: what is damaged in a container's namespace is found when asked for; a start mends it.
func TestPlanAndCheck(t *testing.T) {
	r := newCLIRig(t, options{})
	r.ok("network", "create", "back", "--internal")
	web := r.web("--name", "web", "-p", "8080:80")
	back := r.run("up\n", "--name", "db", "--network", "back", "--", "sh", "-c", "echo up; exec sleep 1000")
	ep := r.endpoint("default", "web")
	for _, of := range []string{"", "default", "default/web", "back", "none"} {
		r.matches(r.ok(append([]string{"plan"}, strings.Fields(of)...)...), "nothing would change")
		r.matches(r.ok(append([]string{"check"}, strings.Fields(of)...)...), "ok: the kernel holds all that is wanted")
	}
	r.refused(3, []string{`network "nope"`, "does not exist"}, "check", "nope")
	r.refused(3, []string{`endpoint "default/nope"`, "does not exist"}, "plan", "default/nope")

	prefix := ep.Status.Prefixes[0].String()
	damage := []string{"run", "-q", "--network", "container:web", "--", "ip", "address", "del", prefix, "dev", "eth0"}
	r.ok(damage...)
	for _, of := range []string{"", "default", "default/web"} {
		got := r.seine(append([]string{"check"}, strings.Fields(of)...)...)
		if got.code != 7 || got.err != "" {
			t.Errorf("check %s after damage: %s", of, got)
		}
		r.matches(got.out, `\+ .*`+prefix+`.* \(endpoint/default/web\)`)
	}
	var plan api.Plan
	r.read(&plan, "plan", "default/web")
	if !slices.ContainsFunc(plan.Changes, func(c api.Change) bool {
		return c.Op == "+" && c.Owner == "endpoint/default/web" && strings.Contains(c.Object, prefix)
	}) {
		t.Errorf("%+v", plan)
	}
	r.matches(r.ok("check", "back"), "ok: .*")

	// The same while there is no daemon: its start mends it.
	r.kill(syscall.SIGKILL)
	r.refused(6, []string{"can't be reached", "start it with"}, "check")
	r.start()
	r.matches(r.ok("check"), "ok: .*")
	r.matches(r.ok("run", "-q", "--network", "container:web", "--", "ip", "-br", "address", "show", "eth0"), ".* "+prefix+" .*")
	r.checkAsBothFamilies(ep, "web")

	// What is damaged on the machine is mended by itself; what is not ours is no damage.
	for _, cmd := range []string{"ip link add other type bridge", "nft add table inet other", "ip link set sn-default down"} {
		f := strings.Fields(cmd)
		if _, err := r.machine.Exec(r.Context(), f[0], f[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually(3*time.Second, func() error {
		if got := r.seine("check"); got.code != 0 {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	r.served(r.outside.NS, at(r.machine.V4, 8080), "web", r.outside.V4)
	for _, b := range []*box{web, back} {
		b.ctrlC()
		b.wait()
	}
}

// TestResetFromTheCommandLine: the machine is as it was before the first start, down to the last setting; what runs
// goes on without a network, and ends cleanly.
func TestResetFromTheCommandLine(t *testing.T) {
	for _, filter := range []bool{false, true} {
		r := unstartedRig(t, options{bridgeFilter: filter})
		before := dump(t, r.machine.NS)
		settings := r.settings()
		r.start()
		r.ok("network", "create", "back", "--internal")
		r.ok("network", "create", "flat", "--driver", "ptp")
		web := r.web("--name", "web", "-p", "8080:80", "-p", "127.0.0.1:8081:80/udp", "--network", "default", "--network", "flat")
		db := r.run("up\n", "--name", "db", "--network", "back", "--", "sh", "-c", "echo up; exec sleep 1000")
		ns := r.inside(r.endpoint("default", "web").Sandbox.Netns)
		r.refused(2, []string{"needs --yes"}, "reset")
		r.served(r.outside.NS, at(r.machine.V4, 8080), "web", r.outside.V4)
		r.matches(r.ok("reset", "--yes"), "all that is Seine's is removed.*")
		r.unchanged(before)
		if now := r.settings(); now != settings {
			t.Errorf("settings were\n%s\nand are\n%s", settings, now)
		}
		for _, b := range []*box{web, db} {
			b.ctrlC()
			if code := b.wait(); code != 130 || strings.Contains(b.String(), "note:") {
				t.Errorf("exit code %d: %s", code, b)
			}
		}
		r.nothingLeft(before, ns)
		r.ok("reset", "--yes") // once more is no error
		r.unchanged(before)
		// The next start begins as the first one did.
		r.kill(syscall.SIGTERM)
		r.unchanged(before)
		r.start()
		r.ok("run", "--", "true")
		r.ok("reset", "-y")
		r.unchanged(before)
	}
}

// unstartedRig is a machine on which there never was a daemon; bridge netfilter is as newRig has it.
func unstartedRig(t *testing.T, o options) *rig {
	t.Helper()
	r := newRig(t, o)
	r.kill(syscall.SIGTERM)
	s := testkit.NewSandbox(t)
	for _, name := range []string{"iptables", "ip6tables"} {
		if value, err := r.machine.ReadSysctl("net/bridge/bridge-nf-call-" + name); err == nil {
			if err := s.Machine.Sysctl("net/bridge/bridge-nf-call-"+name, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.machine, r.outside, r.dir = s.Machine, s.Outside, t.TempDir()
	r.calm()
	return r
}

// settings are all settings of the machine's network, without those that the kernel changes by itself.
func (r *rig) settings() string {
	r.Helper()
	out, err := r.machine.Exec(r.Context(), "sh", "-c", "grep -r . /proc/sys/net 2>/dev/null | grep -v -e /random -e nf_conntrack_count -e stable_secret | sort")
	if err != nil {
		r.Fatal(err)
	}
	return out
}

func TestDoctorCommand(t *testing.T) {
	r := newRig(t, options{})
	var found []api.Finding
	r.read(&found, "doctor")
	topic := func(name string) (f api.Finding) {
		for _, x := range found {
			if x.Topic == name {
				f = x
			}
		}
		return f
	}
	if f := topic("forward-chain"); f.Level != "ok" {
		t.Errorf("%+v", found)
	}
	if f := topic("forwarding"); f.Level != "note" || !strings.Contains(f.Done, "seine reset") {
		t.Errorf("%+v", found)
	}
	for _, cmd := range [][]string{{"nft", "add", "table", "inet", "fw"}, {"nft", "add", "chain", "inet", "fw", "forward", "{ type filter hook forward priority 0; policy drop; }"}} {
		if _, err := r.machine.Exec(r.Context(), cmd[0], cmd[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually(3*time.Second, func() error {
		var err error
		if found, err = r.client.Doctor(r.Context()); err != nil {
			return err
		}
		if f := topic("forward-chain"); f.Level != "note" || !strings.Contains(f.Found, "inet fw forward") || f.Done == "" {
			return fmt.Errorf("%+v", found)
		}
		return nil
	})
	r.read(&found, "doctor")
	r.matches(r.ok("doctor"), "note forward-chain .*")
}

func TestCompletionAndVersion(t *testing.T) {
	r := newRig(t, options{})
	testkit.Need(t, "program:bash")
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(r.ok("completion", "bash"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bash -n: %v\n%s", err, out)
	}
	if out := r.ok("__complete", "network", "inspect", ""); !strings.HasPrefix(out, "default\nhost\nnone\n") {
		t.Errorf("networks to complete: %q", out)
	}
	r.kill(syscall.SIGTERM)
	r.matches(r.ok("version"), "seined does not answer at .*")
	r.refused(6, []string{"can't be reached at " + r.dir + "/s", "start it with"}, "status")
}
