package cluster_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/testkit"
)

// built is the folder of programs, once they are there.
var built string

// programs are the real daemon and command line, built once.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "seine-bin-")
	for _, p := range []string{"seined", "seine"} {
		if err == nil {
			err = testkit.BuildProgram(dir, p)
		}
	}
	built = dir
	return dir, err
})

// patience is what anything may take that the story waits for.
const patience = 30 * time.Second

// station is a machine with a real daemon on a real kernel.
type station struct {
	*testing.T
	*testkit.Host
	name, dir, bin string
	client         *client.Client
	daemon         *exec.Cmd
	log            testkit.Log
	containers     map[string]*testkit.NS
}

func newStation(t *testing.T, name string, h *testkit.Host) *station {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	s := &station{T: t, Host: h, name: name, dir: t.TempDir(), bin: bin, containers: map[string]*testkit.NS{}}
	s.start()
	t.Cleanup(func() {
		s.end(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("the log of %s:\n%s", name, s.log.String())
		}
	})
	return s
}

func (s *station) start() {
	s.Helper()
	socket := filepath.Join(s.dir, "s")
	s.daemon = exec.Command(filepath.Join(s.bin, "seined"), "--state", filepath.Join(s.dir, "state.db"), "--socket", socket, "--node", s.name,
		"--docker-socket", "", "--docker-api", "", "--dhcp-socket", "", "--dns-upstream", "192.0.2.254", "--quiet")
	s.daemon.Stdout, s.daemon.Stderr = &s.log, &s.log
	if err := s.Start(s.daemon); err != nil {
		s.Fatal(err)
	}
	c, err := client.New(socket)
	if err != nil {
		s.Fatal(err)
	}
	s.client = c
	s.await("the daemon", func() error { _, err := c.Node(s.Context()); return err })
}

func (s *station) end(sig syscall.Signal) {
	if s.daemon != nil {
		_ = s.daemon.Process.Signal(sig)
		_ = s.daemon.Wait()
		s.daemon = nil
	}
}

// await waits for something that becomes true by itself.
func (s *station) await(what string, f func() error) {
	s.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	s.Fatalf("%s: %s not within %s: %v", s.name, what, patience, err)
}

// seine runs a command line that is to succeed, with a text for its standard input.
func (s *station) seine(in string, args ...string) string {
	s.Helper()
	out, errs, err := s.tries(in, args...)
	if err != nil {
		s.Fatalf("%s: seine %s: %v\n%s%s", s.name, strings.Join(args, " "), err, out, errs)
	}
	return out
}

// tries runs a command line.
func (s *station) tries(in string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(s.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "seine"), append([]string{"--socket", filepath.Join(s.dir, "s")}, args...)...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = s.dir, strings.NewReader(in), &out, &errs, patience
	if err = s.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	return out.String(), errs.String(), err
}

func (s *station) network(name string) api.Network {
	s.Helper()
	n, err := s.client.Network(s.Context(), name)
	if err != nil {
		s.Fatal(err)
	}
	return n
}

// attach puts a container on the network default, which answers on port 80.
func (s *station) attach(name string) api.Endpoint {
	s.Helper()
	n := testkit.Namespace(s.T, name)
	s.containers[name] = n
	ep, err := s.client.PutEndpoint(s.Context(), api.Endpoint{Network: "default", Name: name, Sandbox: api.Sandbox{Netns: n.Path()}}, 0)
	if err != nil {
		s.Fatal(err)
	}
	for _, proto := range []string{"tcp", "udp"} {
		testkit.Serve(s.T, n, proto, "[::]:80")
	}
	return ep
}

// reach has a container ask another one at each of its addresses.
func (s *station) reach(from string, to api.Endpoint) {
	s.Helper()
	if len(to.Addresses) != 2 {
		s.Fatalf("endpoint %s has the addresses %v, want both families", to.Name, to.Addresses)
	}
	for _, a := range to.Addresses {
		for _, proto := range []string{"tcp", "udp"} {
			s.await(fmt.Sprintf("%s asking %s %s", from, proto, a), func() error {
				ctx, cancel := context.WithTimeout(s.Context(), time.Second)
				defer cancel()
				_, err := s.containers[from].Ask(ctx, proto, netip.AddrPortFrom(a, 80), "hello")
				return err
			})
		}
	}
}

// finds has a container look a name up at its name server.
func (s *station) finds(from, network, name string, want api.Endpoint) {
	s.Helper()
	ep, err := s.client.Endpoint(s.Context(), network, from)
	if err != nil {
		s.Fatal(err)
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, proto, _ string) (net.Conn, error) {
		return s.containers[from].Dial(ctx, proto, netip.AddrPortFrom(ep.Status.DNS[0], 53).String())
	}}
	s.await("looking "+name+" up", func() error {
		got, err := r.LookupNetIP(s.Context(), "ip", name+".")
		for _, a := range want.Addresses {
			if err == nil && !strings.Contains(fmt.Sprint(got), a.String()) {
				err = fmt.Errorf("%s is %v, want %v", name, got, want.Addresses)
			}
		}
		return err
	})
}

// TestOneDaemonFounds: a machine founds a cluster, lives through a kill, and leaves; its containers notice nothing.
func TestOneDaemonFounds(t *testing.T) {
	a := newStation(t, "one", testkit.NewLab(t, 1).Hosts[0])
	before, after := a.attach("before"), api.Endpoint{}
	a.seine("", "cluster", "init", "--name", "lab", "--address", a.V4.String())
	was, err := a.client.Cluster(t.Context())
	if err != nil || was.Name != "lab" || was.StoreError != "" {
		t.Fatalf("%+v, %v", was, err)
	}
	if token := a.seine("", "cluster", "token"); len(strings.TrimSpace(token)) < 20 {
		t.Errorf("token is %q", token)
	} else if strings.Contains(a.log.String(), strings.TrimSpace(token)) {
		t.Error("the token is in the log")
	}
	n, err := a.client.Network(t.Context(), "default")
	if err != nil || n.Scope != api.ClusterScope || n.ID == "" {
		t.Errorf("default is %+v, %v", n, err)
	}
	after = a.attach("after")
	a.reach("before", after)
	a.finds("before", "default", "after", after)

	a.end(syscall.SIGKILL)
	a.reach("after", before)
	a.start()
	a.await("the store after a kill", func() error {
		is, err := a.client.Cluster(t.Context())
		if err == nil && (is.ID != was.ID || is.Node != was.Node) {
			t.Fatalf("after a kill the cluster is %+v, it was %+v", is, was)
		}
		if err == nil && is.StoreError != "" {
			err = fmt.Errorf("the store: %s", is.StoreError)
		}
		return err
	})
	a.reach("before", after)
	a.reach("after", a.attach("third"))
	if out := a.seine("", "doctor", "-o", "json"); !strings.Contains(out, `all 1 machines of cluster`) {
		t.Errorf("doctor says %s", out)
	}

	a.seine("", "cluster", "leave")
	if left, _ := filepath.Glob(filepath.Join(a.dir, "cluster", "*")); len(left) > 0 {
		t.Errorf("after leaving there is %v", left)
	}
	if _, err := a.client.Cluster(t.Context()); api.CodeOf(err) != api.Conflict {
		t.Errorf("after leaving: %v", err)
	}
	a.reach("before", after)
	a.seine("", "reset", "--yes")
}

// TestTwoDaemonsShare: two machines with real daemons share the network default: their containers reach each other by name
// and by address.
func TestTwoDaemonsShare(t *testing.T) {
	testkit.Need(t, "program:bash", "program:getent")
	lab := testkit.NewLab(t, 2)
	a, b := newStation(t, "one", lab.Hosts[0]), newStation(t, "two", lab.Hosts[1])
	a.seine("", "cluster", "init", "--address", a.V4.String())
	b.seine(a.seine("", "cluster", "token"), "cluster", "join", a.V4.String(), "--token", "-")
	na, nb := a.network("default"), b.network("default") // at once
	if na.ID == "" || nb.ID != na.ID {
		t.Errorf("the network default is %+v and %+v", na, nb)
	}
	for _, s := range []*station{a, b} {
		s.await("both machines being alive", func() error {
			all, err := s.client.Nodes(t.Context())
			if err == nil && (len(all) != 2 || all[0].Health != api.Alive || all[1].Health != api.Alive) {
				err = fmt.Errorf("%+v", all)
			}
			return err
		})
	}
	ea, eb := a.attach("left"), b.attach("right")
	a.reach("left", eb)
	b.reach("right", ea)
	a.finds("left", "default", "right", eb)
	b.finds("right", "default", "left", ea)
	for _, x := range []struct {
		s    *station
		name string
	}{{a, "right"}, {b, "left"}} {
		script := fmt.Sprintf("getent ahostsv4 %[1]s >&2 && getent ahostsv6 %[1]s >&2 && exec 3<>/dev/tcp/%[1]s/80 && echo hello >&3 && head -n 1 <&3", x.name)
		if out := x.s.seine("", "run", "-q", "--network", "default", "--", "bash", "-c", script); !strings.Contains(out, "hello") {
			t.Errorf("%s: a program of `seine run` asks %s: %q", x.s.name, x.name, out)
		}
	}
	if out := a.seine("", "fabric", "status"); !strings.Contains(out, "two") || strings.Contains(out, "no way") {
		t.Errorf("fabric status:\n%s", out)
	}
	if out := b.seine("", "doctor", "-o", "json"); !strings.Contains(out, "all 2 machines of cluster") {
		t.Errorf("doctor says %s", out)
	}
	b.seine("", "network", "set", "default", "--fabric", "vxlan")
	for _, s := range []*station{a, b} {
		s.await("the other fabric", func() error {
			all, err := s.client.Paths(t.Context())
			if err == nil && (len(all) != 1 || all[0].Fabric != "vxlan") {
				err = fmt.Errorf("%+v", all)
			}
			return err
		})
	}
	a.reach("left", eb)
	b.reach("right", ea)
	a.seine("", "node", "drain", "two")
	if out := a.seine("", "node", "ls"); !strings.Contains(out, "drained") {
		t.Errorf("a drained machine: %s", out)
	}
	if _, errs, err := a.tries("", "node", "rm", "two"); err == nil || !strings.Contains(errs, "answers") {
		t.Errorf("removing a machine that answers: %v %s", err, errs)
	}

	b.end(syscall.SIGKILL)
	a.reach("left", eb) // what was there goes on without the daemon
	b.start()
	b.reach("right", ea)
	a.reach("left", b.attach("late"))

	b.seine("", "cluster", "leave")
	a.await("being alone", func() error {
		all, err := a.client.Nodes(t.Context())
		if err == nil && len(all) != 1 {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
	a.attach("next")
	a.reach("next", ea)
	b.reach("right", eb) // itself
}

// TestResetWithoutStore: a machine whose cluster is gone can be reset, and is told what that means.
func TestResetWithoutStore(t *testing.T) {
	lab := testkit.NewLab(t, 2)
	a, b := newStation(t, "one", lab.Hosts[0]), newStation(t, "two", lab.Hosts[1])
	a.seine("", "cluster", "init", "--address", a.V4.String())
	b.seine("", "cluster", "join", a.V4.String(), "--token", strings.TrimSpace(a.seine("", "cluster", "token")))
	b.attach("left")
	next := b.attach("right")
	a.end(syscall.SIGKILL)
	b.reach("left", next)
	b.await("the doctor's finding", func() error {
		out, _, err := b.tries("", "doctor", "-o", "json")
		if err == nil || !strings.Contains(out, "does not answer") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	if _, errs, err := b.tries("", "cluster", "leave"); err == nil {
		t.Error("it left without force")
	} else if code := err.(*exec.ExitError).ExitCode(); code != api.Unavailable.ExitCode() {
		t.Errorf("leaving without the store: exit code %d: %s", code, errs)
	}
	b.reach("left", next)
	if _, errs, err := b.tries("", "reset", "--yes"); err != nil || !strings.Contains(errs, "can't be told") {
		t.Errorf("reset without the store: %v, %s", err, errs)
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "cluster", "*")); len(left) > 0 {
		t.Errorf("after a reset there is %v", left)
	}
	if _, err := b.client.Cluster(t.Context()); api.CodeOf(err) != api.Conflict {
		t.Errorf("after a reset: %v", err)
	}
}
