package dhcp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
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

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store that outlives services.
type memory struct {
	mu sync.Mutex
	m  map[string]string
}

func (s *memory) Values(prefix string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.m)
}

func (s *memory) SetValue(name, value string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.m, name); value != "" {
		s.m[name] = value
	}
	return nil
}

// rig is a container with an interface whose other end a DHCP server is on:
//
//	c eth0 ───────────── eth0 server 10.66.0.1/24 fd66::1/64
type rig struct {
	*testing.T
	server, c *testkit.NS
	store     *memory
	dir       string
	opts      Options
	// end ends the service that runs.
	end    func()
	socket string
	svc    *Service
	log    *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const server4 = "10.66.0.1"

func newRig(t *testing.T, programs ...string) *rig {
	t.Helper()
	testkit.Need(t, "root", "veth", "ipv6")
	for _, p := range programs {
		testkit.Need(t, "program:"+p)
	}
	r := &rig{T: t, server: testkit.Namespace(t, "server"), store: &memory{m: map[string]string{}}, dir: t.TempDir(),
		opts: Options{Timeout: 3 * time.Second, ResendMax: time.Second, ResendTimeout: 8 * time.Second}, log: &syncBuffer{}}
	r.c = r.container("c")
	t.Cleanup(func() {
		if r.end != nil {
			r.end()
		}
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	return r
}

// container makes a namespace with an interface to the server's bridge.
func (r *rig) container(name string) *testkit.NS {
	r.Helper()
	must := func(err error) {
		if err != nil {
			r.Helper()
			r.Fatal(err)
		}
	}
	c := testkit.Namespace(r.T, name)
	nl := r.server.Netlink()
	br, err := nl.LinkByName("br0")
	if err != nil {
		a := netlink.NewLinkAttrs()
		a.Name = "br0"
		br = &netlink.Bridge{LinkAttrs: a}
		must(nl.LinkAdd(br))
		must(r.server.Sysctl("net/ipv6/conf/br0/accept_dad", "0"))
		must(nl.LinkSetUp(br))
		must(r.server.AddAddr("br0", netip.MustParsePrefix(server4+"/24")))
		must(r.server.AddAddr("br0", netip.MustParsePrefix("fd66::1/64")))
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.MasterIndex = "p-"+name, br.Attrs().Index
	must(nl.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "eth0", PeerNamespace: netlink.NsFd(c.Fd())}))
	p, err := nl.LinkByName("p-" + name)
	must(err)
	must(nl.LinkSetUp(p))
	must(c.Sysctl("net/ipv6/conf/eth0/accept_dad", "0"))
	return c
}

// start runs a program in the server's namespace and gives a function that kills it and waits.
func (r *rig) start(name string, env []string, args ...string) func() {
	r.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	out := &syncBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := r.server.Start(cmd); err != nil {
		r.Fatal(err)
	}
	var once sync.Once
	stop := func() { once.Do(func() { _ = cmd.Process.Signal(syscall.SIGKILL); _ = cmd.Wait() }) }
	r.Cleanup(func() {
		stop()
		if r.Failed() {
			r.Log(name + ": " + out.String())
		}
	})
	return stop
}

// dnsmasq serves leases of so many seconds; more are further options.
func (r *rig) dnsmasq(lease int, more ...string) func() {
	r.Helper()
	log := filepath.Join(r.dir, "dnsmasq.log")
	args := append([]string{"--no-daemon", "--conf-file=/dev/null", "--interface=br0", "--bind-interfaces", "--port=0", "--no-ping",
		"--dhcp-range=10.66.0.100,10.66.0.120,255.255.255.0," + fmt.Sprint(lease),
		"--dhcp-leasefile=" + filepath.Join(r.dir, "leases"), "--user=root", "--log-dhcp", "--log-facility=" + log,
		"--pid-file=" + filepath.Join(r.dir, "pid")}, more...)
	return r.start("dnsmasq", nil, args...)
}

// asked is what the server's log says.
func (r *rig) heard() string {
	b, _ := os.ReadFile(filepath.Join(r.dir, "dnsmasq.log"))
	return string(b)
}

// eventually waits for something that follows.
func (r *rig) eventually(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("%s: not within 20 s", what)
		}
	}
}

// run starts a service, the one before it having ended as if it had been killed.
func (r *rig) run() {
	r.Helper()
	if r.end != nil {
		r.end()
	}
	k := linux.New(linux.Options{})
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.svc = New(k, r.store, log, r.opts)
	r.socket = filepath.Join(r.dir, "s")
	_ = os.Remove(r.socket)
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.svc.Run(ctx, l) }()
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.Errorf("Run: %v", err)
		}
		k.Close()
	})
}

const conf4 = `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "dhcp"}}`

func (r *rig) args(conf, id string, ns *testkit.NS) *dhcprpc.Args {
	a := &dhcprpc.Args{ContainerID: id, IfName: "eth0", Path: "/opt/cni/bin", StdinData: []byte(conf)}
	if ns != nil {
		a.Netns = ns.Path()
	}
	return a
}

func (r *rig) call(method, conf, id string, ns *testkit.NS) (*dhcprpc.Result, error) {
	return dhcprpc.Call(r.Context(), r.socket, method, r.args(conf, id, ns))
}

func (r *rig) must(method, conf, id string, ns *testkit.NS) *dhcprpc.Result {
	r.Helper()
	res, err := r.call(method, conf, id, ns)
	if err != nil {
		r.Fatalf("%s: %v", method, err)
	}
	return res
}

// take asks for a lease and configures the interface as a CNI plugin does.
func (r *rig) take(conf, id string, ns *testkit.NS) *dhcprpc.Result {
	r.Helper()
	res := r.must(dhcprpc.Allocate, conf, id, ns)
	for _, ip := range res.IPs {
		if err := ns.AddAddr("eth0", ip.Address); err != nil {
			r.Fatal(err)
		}
	}
	return res
}

func (r *rig) up(ns *testkit.NS) bool {
	r.Helper()
	l, err := ns.Netlink().LinkByName("eth0")
	if err != nil {
		r.Fatal(err)
	}
	return l.Attrs().Flags&net.FlagUp != 0
}

func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func contains(r *rig, what, in string, want ...string) {
	r.Helper()
	for _, w := range want {
		if !strings.Contains(in, w) {
			r.Errorf("%s: has no %q:\n%s", what, w, in)
		}
	}
}

// kept are the leases that are kept.
func (s *Service) kept() []*lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*lease
	for _, p := range s.slots {
		if p.held != nil {
			out = append(out, p.held.lease)
		}
	}
	return out
}
