// Package machine_test has the stories about one machine: the real daemon on a real kernel, in a namespace that stands
// for the machine, with an outside, containers and real packets.
package machine_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/testkit"
)

// bin builds the daemon and the command line once and gives their folder.
var bin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "seine-bin-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/seined", "./cmd/seine")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := bin(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// rig is a machine with a daemon.
type rig struct {
	*testing.T
	machine, outside *testkit.Host
	client           *client.Client
	dir              string
	daemon           *exec.Cmd
	log              *testkit.Log
	containers       map[string]*testkit.NS
	extra            []string // of the daemon's flags
}

// options are what a story wants of the machine.
type options struct {
	bridgeFilter bool
}

func newRig(t *testing.T, o options) *rig {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6")
	dir, err := bin()
	if err != nil {
		t.Fatal(err)
	}
	_ = dir
	s := testkit.NewSandbox(t)
	r := &rig{T: t, machine: s.Machine, outside: s.Outside, dir: t.TempDir(), containers: map[string]*testkit.NS{}}
	on := "0"
	if o.bridgeFilter {
		testkit.Need(t, "bridge-netfilter")
		on = "1"
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		// Without the module there is nothing to turn off.
		_ = s.Machine.Sysctl("net/bridge/bridge-nf-call-"+name, on)
	}
	r.start()
	t.Cleanup(func() {
		r.kill(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("daemon's log:\n%s", r.log)
		}
	})
	return r
}

// bothFilters runs a story with bridge netfilter off and on: packets take different ways.
func bothFilters(t *testing.T, story func(*rig)) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprintf("bridge-netfilter=%v", on), func(t *testing.T) { story(newRig(t, options{bridgeFilter: on})) })
	}
}

// bothDrivers runs a story on a bridge and a ptp network called "net".
func bothDrivers(t *testing.T, story func(*rig)) {
	for _, driver := range []string{"bridge", "ptp"} {
		t.Run(driver, func(t *testing.T) {
			bothFilters(t, func(r *rig) {
				r.network(api.Network{Name: "net", Driver: driver})
				story(r)
			})
		})
	}
}

func (r *rig) start() {
	r.Helper()
	dir, _ := bin()
	socket := filepath.Join(r.dir, "s")
	if r.log == nil {
		r.log = &testkit.Log{}
	}
	r.daemon = exec.Command(filepath.Join(dir, "seined"), "--state", filepath.Join(r.dir, "state.db"), "--socket", socket, "--docker-socket", "", "--quiet")
	r.daemon.Args = append(r.daemon.Args, r.extra...)
	r.daemon.Stdout, r.daemon.Stderr = r.log, r.log
	if err := r.machine.Start(r.daemon); err != nil {
		r.Fatal(err)
	}
	c, err := client.New(socket)
	if err != nil {
		r.Fatal(err)
	}
	r.client = c
	r.eventually(10*time.Second, func() error { _, err := c.Node(r.Context()); return err })
}

func (r *rig) kill(sig syscall.Signal) {
	if r.daemon == nil {
		return
	}
	_ = r.daemon.Process.Signal(sig)
	_ = r.daemon.Wait()
	r.daemon = nil
}

// eventually waits for something that becomes true by itself.
func (r *rig) eventually(limit time.Duration, f func() error) {
	r.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	r.Fatalf("not within %s: %v", limit, err)
}

func (r *rig) network(n api.Network) api.Network {
	r.Helper()
	n, err := r.client.PutNetwork(r.Context(), n, 0)
	if err != nil {
		r.Fatal(err)
	}
	return n
}

// container gives a container's namespace, made when it is first asked for.
func (r *rig) container(name string) *testkit.NS {
	r.Helper()
	if r.containers[name] == nil {
		r.containers[name] = testkit.Namespace(r.T, name)
	}
	return r.containers[name]
}

func (r *rig) attach(network, name string, ports ...api.Port) api.Endpoint {
	r.Helper()
	ep, err := r.tryAttach(api.Endpoint{Network: network, Name: name, Ports: ports})
	if err != nil {
		r.Fatal(err)
	}
	return ep
}

func (r *rig) tryAttach(ep api.Endpoint) (api.Endpoint, error) {
	ep.Sandbox.Netns = r.container(ep.Name).Path()
	return r.client.PutEndpoint(r.Context(), ep, 0)
}

func (r *rig) detach(network, name string) {
	r.Helper()
	if err := r.client.DeleteEndpoint(r.Context(), network, name, 0); err != nil {
		r.Fatal(err)
	}
}

// serve echoes TCP and UDP on a port of a container, both families.
func (r *rig) serve(name string, port int) {
	r.Helper()
	for _, network := range []string{"tcp", "udp"} {
		testkit.Serve(r.T, r.container(name), network, fmt.Sprintf("[::]:%d", port))
	}
}

// clean checks that the daemon sees nothing to change.
func (r *rig) clean() {
	r.Helper()
	plan, err := r.client.Plan(r.Context(), "")
	if err != nil {
		r.Fatal(err)
	}
	for _, c := range plan.Changes {
		r.Errorf("plan: %s %s (was %s)", c.Op, c.Object, c.Was)
	}
}

// calm waits until the machine's own link-local address has been tried out, so that dumps can be compared.
func (r *rig) calm() {
	r.Helper()
	r.eventually(5*time.Second, func() error {
		out, err := r.machine.Exec(r.Context(), "ip", "-6", "addr", "show", "dev", "eth0")
		if err == nil && (!strings.Contains(out, "fe80::") || strings.Contains(out, "tentative")) {
			err = errors.New("eth0 is not ready")
		}
		return err
	})
}

// at puts address and port together.
func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

var networks = []string{"tcp", "udp"}

// dump is the whole network state of a namespace as the machine's own tools print it.
func dump(t *testing.T, n *testkit.NS) string {
	var out string
	for _, cmd := range [][]string{{"ip", "-j", "-d", "link"}, {"ip", "-j", "-d", "addr"}, {"ip", "-j", "-d", "route", "show", "table", "all"},
		{"ip", "-6", "-j", "-d", "route", "show", "table", "all"}, {"ip", "-j", "-d", "rule"}, {"ip", "-6", "-j", "-d", "rule"}, {"nft", "-j", "list", "ruleset"}} {
		text, err := n.Exec(context.Background(), cmd[0], cmd[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		out += timers.ReplaceAllString(text, "") + "\n"
	}
	return out
}

// timers are what a bridge counts by itself.
var timers = regexp.MustCompile(`"[a-z_]+_timer":[0-9.]+,?`)

// unchanged waits until the machine's state is as it was before: some of what the kernel reports follows later.
func (r *rig) unchanged(before string) {
	r.Helper()
	r.eventually(3*time.Second, func() error {
		was, is := strings.Split(before, ","), strings.Split(dump(r.T, r.machine.NS), ",")
		for i := range was {
			if i >= len(is) || was[i] != is[i] {
				around := func(s []string) string { return strings.Join(s[max(0, min(i, len(s))-12):min(i+2, len(s))], ",") }
				return fmt.Errorf("the machine's state is not what it was:\n…%s…\nnow:\n…%s…", around(was), around(is))
			}
		}
		if len(is) > len(was) {
			return fmt.Errorf("more is there than was: %s", strings.Join(is[len(was):], ","))
		}
		return nil
	})
}
