package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// newNetns makes a namespace that lives as long as the test and gives a path to it.
func newNetns(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skip: needs root: network namespaces")
	}
	var fd int
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		var err error
		fd, err = unix.Open(ownNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal("new network namespace:", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
}

func newKernel(t testing.TB) (*Kernel, string) {
	t.Helper()
	ns := newNetns(t)
	k := New(Options{Netns: ns})
	t.Cleanup(func() { k.Close() })
	return k, ns
}

// run runs a program in a namespace and gives its output.
func run(t testing.TB, ns string, args ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + ns}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func apply(t testing.TB, k *Kernel, changes ...kernel.Change) {
	t.Helper()
	for i, err := range k.Apply(context.Background(), changes) {
		if err != nil {
			t.Fatalf("apply %s: %v", changes[i], err)
		}
	}
}

func list(t testing.TB, k *Kernel, objs ...kernel.Object) []kernel.Object {
	t.Helper()
	out, err := k.List(context.Background(), kernel.Scope{Objects: objs})
	if err != nil {
		t.Fatal("list:", err)
	}
	return out
}

// converge makes the kernel hold exactly the wanted objects of those in scope, in at most three passes.
func converge(t testing.TB, k *Kernel, want []kernel.Object, scope ...kernel.Object) {
	t.Helper()
	for range 3 {
		changes := kernel.Diff(want, list(t, k, append(scope, want...)...))
		if len(changes) == 0 {
			return
		}
		apply(t, k, changes...)
	}
	for _, c := range kernel.Diff(want, list(t, k, append(scope, want...)...)) {
		t.Errorf("still to do: %s", c)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// within runs f on a thread in a namespace.
func within(t testing.TB, ns string, f func() error) {
	t.Helper()
	fd, err := openNetns(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := inNetns(fd, f); err != nil {
		t.Fatal(err)
	}
}

// reach makes a TCP connection from one namespace to an address of another, at once.
func reach(t testing.TB, from, to, ip string) {
	t.Helper()
	var l net.Listener
	within(t, to, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(ip, "0"))
		return err
	})
	defer l.Close()
	within(t, from, func() error {
		// One address and no name: the dial stays on this thread.
		d := net.Dialer{Timeout: 2 * time.Second}
		start := time.Now()
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		t.Logf("reached %s after %v", ip, time.Since(start))
		return c.Close()
	})
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

var testTable = &kernel.Table{
	Name: "seine",
	Sets: []*kernel.Set{
		{Name: "port4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService}, Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}},
		{Name: "port6", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService}, Data: []kernel.Type{kernel.TypeIPv6, kernel.TypeService}},
		{Name: "masq4", Key: []kernel.Type{kernel.TypeIPv4}, Interval: true},
		{Name: "nets", Key: []kernel.Type{kernel.TypeGroup}},
		{Name: "disp", Key: []kernel.Type{kernel.TypeIfname}, Data: []kernel.Type{kernel.TypeVerdict}},
	},
	Chains: []*kernel.Chain{
		{Name: "c", Rules: []string{"counter accept"}},
		{Name: "pre", Type: "nat", Hook: "prerouting", Priority: -100, Rules: []string{
			"fib daddr type local dnat ip to meta l4proto . th dport map @port4",
			"fib daddr type local dnat ip6 to meta l4proto . th dport map @port6"}},
		{Name: "forward", Type: "filter", Hook: "forward", Priority: 0, Rules: []string{"ct state established,related accept", "iifname vmap @disp"}},
	},
}

// attachment is what one container needs: the objects of an endpoint on a bridge.
func attachment(br, ns string, i int) []kernel.Object {
	a4, a6 := fmt.Sprintf("10.9.%d.%d", i/250, i%250+2), fmt.Sprintf("fd00:9::%x", i+2)
	host := fmt.Sprintf("snv%d", i)
	el := func(set, item, data string) *kernel.Element {
		return &kernel.Element{Table: testTable.Name, Set: testTable.Set(set), Item: item, Data: data, Comment: "endpoint/x"}
	}
	return []kernel.Object{
		&kernel.Link{Name: host, Type: kernel.Veth, Alias: "seine:x", Master: br, Group: 77, MTU: 1400, Port: &kernel.Port{Hairpin: true, Isolated: true},
			Peer: &kernel.Peer{NS: ns, Name: "eth0", MTU: 1400, MAC: fmt.Sprintf("02:00:00:00:01:%02x", i), Alias: "seine:x"}},
		&kernel.Addr{NS: ns, Link: "eth0", Prefix: prefix(a4 + "/16")},
		&kernel.Addr{NS: ns, Link: "eth0", Prefix: prefix(a6 + "/64")},
		&kernel.LinkUp{NS: ns, Link: "eth0"},
		&kernel.LinkUp{NS: ns, Link: "lo", Keep: true},
		&kernel.LinkUp{Link: host},
		&kernel.Route{NS: ns, Dst: prefix("0.0.0.0/0"), Via: addr("10.9.0.1"), Link: "eth0"},
		&kernel.Route{NS: ns, Dst: prefix("::/0"), Via: addr("fd00:9::1"), Link: "eth0", Metric: 1024},
		el("port4", fmt.Sprintf("tcp . %d", 1000+i), a4+" . 80"),
		el("port6", fmt.Sprintf("tcp . %d", 1000+i), a6+" . 80"),
		el("port4", fmt.Sprintf("udp . %d", 1000+i), a4+" . 53"),
		el("disp", host, "jump c"),
	}
}

func bridge(name string) []kernel.Object {
	return []kernel.Object{
		testTable,
		&kernel.Link{Name: name, Type: kernel.Bridge, Alias: "seine:net", MTU: 1400, MAC: "02:00:00:00:00:01"},
		&kernel.Addr{Link: name, Prefix: prefix("10.9.0.1/16")},
		&kernel.Addr{Link: name, Prefix: prefix("fd00:9::1/64")},
		&kernel.LinkUp{Link: name},
		&kernel.Element{Table: testTable.Name, Set: testTable.Set("masq4"), Item: "10.9.0.0/16"},
		&kernel.Element{Table: testTable.Name, Set: testTable.Set("nets"), Item: "77"},
	}
}

func deletions(objs []kernel.Object) []kernel.Change {
	var del []kernel.Change
	for _, o := range objs {
		del = append(del, kernel.Change{Op: kernel.Delete, Old: o})
	}
	kernel.SortChanges(del)
	return del
}

func TestAttachment(t *testing.T) {
	k, ns := newKernel(t)
	converge(t, k, bridge("sn-br"))
	in := newNetns(t)
	want := attachment("sn-br", in, 0)
	converge(t, k, want)
	reach(t, in, ns, "10.9.0.1")
	reach(t, in, ns, "fd00:9::1")
	if got := run(t, ns, "nft", "list", "ruleset"); !strings.Contains(got, "tcp . 1000 comment \"endpoint/x\" : 10.9.0.2 . 80") {
		t.Error(got)
	}
	apply(t, k, deletions(want)...)
	for _, o := range list(t, k, want...) {
		if u, ok := o.(*kernel.LinkUp); !ok || u.Link != "lo" {
			t.Errorf("left behind: %s", o)
		}
	}
	apply(t, k, deletions(want)...) // absent is success
	gone := &kernel.LinkUp{NS: "/nonexistent", Link: "x"}
	if errs := k.Apply(t.Context(), []kernel.Change{{Op: kernel.Create, New: gone}}); !errors.Is(errs[0], kernel.ErrNamespaceGone) {
		t.Error(errs)
	}
}

func TestHostRoutes(t *testing.T) {
	k, ns := newKernel(t)
	run(t, ns, "ip", "link", "add", "br0", "type", "bridge")
	run(t, ns, "ip", "link", "set", "br0", "up")
	for _, dst := range []string{"10.1.0.2/32", "fd00::2/128"} {
		route := func(metric int) *kernel.Route {
			return &kernel.Route{Dst: prefix(dst), Link: "br0", Metric: metric, Scope: kernel.ScopeLink}
		}
		one, two := route(1024), route(2000)
		if got := list(t, k, one, two); len(got) != 0 {
			t.Errorf("listed %v", got)
		}
		converge(t, k, []kernel.Object{one})
		if got := list(t, k, two); len(got) != 0 {
			t.Errorf("%s: the other metric is listed as %v", two, got)
		}
		converge(t, k, []kernel.Object{one, two})
		if got := list(t, k, one, two); len(got) != 2 || !one.Holds(got[0]) || !two.Holds(got[1]) {
			t.Errorf("listed %v", got)
		}
		// A default route, a wider one, or an address of the machine hide nothing.
		apply(t, k, kernel.Change{Op: kernel.Delete, Old: one})
		wide := &kernel.Route{Dst: netip.PrefixFrom(one.Dst.Addr(), 8).Masked(), Link: "br0", Metric: 1024, Scope: kernel.ScopeLink}
		converge(t, k, []kernel.Object{wide})
		if got := list(t, k, one, two); len(got) != 1 || !two.Holds(got[0]) {
			t.Errorf("listed %v", got)
		}
		apply(t, k, kernel.Change{Op: kernel.Delete, Old: two})
		if got := list(t, k, one, two); len(got) != 0 {
			t.Errorf("listed %v", got)
		}
		converge(t, k, []kernel.Object{two, &kernel.Addr{Link: "br0", Prefix: one.Dst}})
		if got := list(t, k, two); len(got) != 1 {
			t.Errorf("listed %v", got)
		}
	}
}
