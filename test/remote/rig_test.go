// Package remote_test has the stories about plugins of others that attach containers for Seine: CNI plugins, and Docker's
// network and IPAM plugins, with the real daemon on a real kernel and real packets.
package remote_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/testkit"
)

// bin builds the programs once and gives their folder.
var bin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "seine-remote-")
	if err == nil {
		err = testkit.BuildProgram(dir, "seined")
	}
	return dir, err
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
	log              *bytes.Buffer
	containers       map[string]*testkit.NS
}

func newRig(t *testing.T, needs ...string) *rig {
	testkit.Need(t, append([]string{"root", "bridge", "veth", "nft", "ipv6"}, needs...)...)
	if _, err := bin(); err != nil {
		t.Fatal(err)
	}
	s := testkit.NewSandbox(t)
	r := &rig{T: t, machine: s.Machine, outside: s.Outside, dir: t.TempDir(), containers: map[string]*testkit.NS{}, log: &bytes.Buffer{}}
	for _, name := range []string{"iptables", "ip6tables"} {
		_ = s.Machine.Sysctl("net/bridge/bridge-nf-call-"+name, "0") // without the module there is nothing to turn off
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

func (r *rig) start() {
	r.Helper()
	dir, _ := bin()
	socket := filepath.Join(r.dir, "s")
	r.daemon = exec.Command(filepath.Join(dir, "seined"), "--state", filepath.Join(r.dir, "state.db"), "--socket", socket,
		"--docker-socket", "", "--dhcp-socket", "", "--quiet")
	r.daemon.Stdout, r.daemon.Stderr = r.log, r.log
	if err := r.machine.Start(r.daemon); err != nil {
		r.Fatal(err)
	}
	var err error
	if r.client, err = client.New(socket); err != nil {
		r.Fatal(err)
	}
	r.eventually(10*time.Second, func() error { _, err := r.client.Node(r.Context()); return err })
}

func (r *rig) kill(sig syscall.Signal) {
	if r.daemon != nil {
		_ = r.daemon.Process.Signal(sig)
		_ = r.daemon.Wait()
		r.daemon = nil
	}
}

// eventually waits for something that becomes true by itself.
func (r *rig) eventually(limit time.Duration, f func() error) {
	r.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
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

func (r *rig) try(network, name string, ports ...api.Port) (api.Endpoint, error) {
	return r.client.PutEndpoint(r.Context(), api.Endpoint{Network: network, Name: name, Ports: ports,
		Sandbox: api.Sandbox{Netns: r.container(name).Path()}}, 0)
}

func (r *rig) attach(network, name string, ports ...api.Port) api.Endpoint {
	r.Helper()
	ep, err := r.try(network, name, ports...)
	if err != nil {
		r.Fatal(err)
	}
	if ep.Status.State != api.Attached || len(ep.Status.Prefixes) == 0 {
		r.Fatalf("endpoint is %+v with status %+v", ep, ep.Status)
	}
	return ep
}

func (r *rig) detach(network, name string) {
	r.Helper()
	if err := r.client.DeleteEndpoint(r.Context(), network, name, 0); err != nil {
		r.Fatal(err)
	}
}

// calm fails unless nothing is left to do.
func (r *rig) calm() {
	r.Helper()
	n, err := r.client.Node(r.Context())
	if err != nil || len(n.Problems) > 0 {
		r.Errorf("problems: %v, %v", n.Problems, err)
	}
	plan, err := r.client.Plan(r.Context(), "")
	if err != nil || len(plan.Changes) > 0 {
		r.Errorf("plan: %v, %v", plan.Changes, err)
	}
}

// links gives the names of a namespace's interfaces.
func (r *rig) links(n *testkit.NS) []string {
	r.Helper()
	all, err := n.Netlink().LinkList()
	if err != nil {
		r.Fatal(err)
	}
	var out []string
	for _, l := range all {
		out = append(out, l.Attrs().Name)
	}
	return out
}

// asBefore fails unless the machine has these interfaces; the plugin clears up behind its answers.
func (r *rig) asBefore(links []string) func() error {
	return func() error {
		if now := r.links(r.machine.NS); !slices.Equal(now, links) {
			return fmt.Errorf("the machine has %v, had %v", now, links)
		}
		return nil
	}
}

// talk has somebody reach a TCP and UDP server. Plugins leave IPv6's duplicate address detection on, so it is tried again.
func (r *rig) talk(from *testkit.NS, to netip.Addr, port uint16) {
	r.Helper()
	for _, network := range []string{"tcp", "udp"} {
		r.eventually(10*time.Second, func() error {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			_, err := from.Ask(ctx, network, netip.AddrPortFrom(to, port), "hello")
			return err
		})
	}
}

func (r *rig) serve(name string, port int) {
	r.Helper()
	for _, network := range []string{"tcp", "udp"} {
		testkit.Serve(r.T, r.container(name), network, fmt.Sprintf("[::]:%d", port))
	}
}

func (r *rig) write(name, text string) string {
	r.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		r.Fatal(err)
	}
	return path
}
