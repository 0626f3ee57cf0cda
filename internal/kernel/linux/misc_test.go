package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// TestNoNamespace: whatever lies where a namespace should be, nothing hangs, and it counts as gone.
func TestNoNamespace(t *testing.T) {
	k, _ := newKernel(t)
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, file, fifo, file + "/below", filepath.Join(dir, "missing"), "/proc/self/ns/mnt", "/proc/self/ns", "/dev/null",
		"/proc/999999999/ns/net"} {
		o := &kernel.Addr{NS: path, Link: "lo", Prefix: prefix("10.0.0.1/32")}
		sys := &kernel.Sysctl{NS: path, Name: "net/ipv4/ip_forward", Value: "1", Before: "0"}
		errs := k.Apply(t.Context(), []kernel.Change{{Op: kernel.Create, New: o}, {Op: kernel.Create, New: sys}, {Op: kernel.Delete, Old: o},
			{Op: kernel.Delete, Old: sys}})
		if !errors.Is(errs[0], kernel.ErrNamespaceGone) || !errors.Is(errs[1], kernel.ErrNamespaceGone) || errs[2] != nil || errs[3] != nil {
			t.Errorf("%s: %v", path, errs)
		}
		if got := list(t, k, o, sys); len(got) != 0 {
			t.Errorf("%s: listed %v", path, got)
		}
	}
}

func TestHoldNamesUser(t *testing.T) {
	defer func(d time.Duration) { userTime = d }(userTime)
	userTime = 10 * time.Second // the machine may be busy
	k, ns := newKernel(t)
	run(t, ns, "ip", "link", "set", "lo", "up")
	var l net.Listener
	within(t, ns, func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:8080")
		return err
	})
	defer l.Close()
	name, _ := os.ReadFile("/proc/self/comm")
	h := &kernel.Hold{Protocol: "tcp", Addr: addr("0.0.0.0"), Port: 8080}
	err := k.Apply(t.Context(), []kernel.Change{{Op: kernel.Create, New: h}})[0]
	if !errors.Is(err, kernel.ErrInUse) || !strings.Contains(err.Error(), "8080/tcp") ||
		!strings.Contains(err.Error(), fmt.Sprintf("(%s, process %d)", strings.TrimSpace(string(name)), os.Getpid())) {
		t.Error(err)
	}
	err = k.Apply(t.Context(), []kernel.Change{{Op: kernel.Create, New: &kernel.Hold{Protocol: "udp", Addr: addr("192.0.2.1"), Port: 1}}})[0]
	if err == nil || !strings.Contains(err.Error(), "no address 192.0.2.1") {
		t.Error(err)
	}
	sctp := &kernel.Hold{Protocol: "sctp", Addr: addr("::"), Port: 9}
	apply(t, k, kernel.Change{Op: kernel.Create, New: sctp})
	if got := list(t, k, sctp); len(got) != 1 {
		t.Error(got)
	}
	apply(t, k, kernel.Change{Op: kernel.Delete, Old: sctp})
}

// TestFlush: a UDP flow that goes on keeps its conntrack entry alive; the new element counts for it all the same.
func TestFlush(t *testing.T) {
	k, ns := newKernel(t)
	in, from := newNetns(t), newNetns(t)
	two := append(attachment("sn-br", in, 0)[:8], attachment("sn-br", from, 1)[:8]...)
	for _, i := range []int{0, 8} { // isolated ports would keep the two apart
		two[i].(*kernel.Link).Port = &kernel.Port{Hairpin: true}
	}
	// Without that the bridge's link-local address is tentative at first, and the kernel asks for no neighbour on behalf
	// of what it forwards.
	dad := &kernel.Sysctl{Name: "net/ipv6/conf/sn-br/accept_dad", Value: "0"}
	converge(t, k, append(append(bridge("sn-br"), dad), two...))
	for _, c := range []string{forward4 + "=1", forward6 + "=1"} {
		run(t, ns, "sysctl", "-qw", c)
	}
	run(t, ns, "ip", "link", "set", "lo", "up")
	for _, a := range []string{"10.9.0.2", "fd00:9::2"} {
		var server, client net.PacketConn
		within(t, in, func() (err error) {
			server, err = net.ListenPacket("udp", netip.AddrPortFrom(addr(a), 53).String())
			return err
		})
		defer server.Close()
		host, set, network := "10.9.0.1", "port4", "udp4"
		if addr(a).Is6() {
			host, set, network = "fd00:9::1", "port6", "udp6"
		}
		within(t, from, func() (err error) {
			client, err = net.ListenPacket(network, ":0")
			return err
		})
		defer client.Close()
		arrives := func() bool {
			t.Helper()
			if _, err := client.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(host), 5353))); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatal(err)
			}
			server.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			_, _, err := server.ReadFrom(make([]byte, 10))
			return err == nil
		}
		// Before the port is published, the entry says: to the machine itself. The table is there, so that entries are made.
		if arrives() {
			t.Fatalf("%s: an unpublished port is reached", a)
		}
		e := &kernel.Element{Table: "seine", Set: testTable.Set(set), Item: "udp . 5353", Data: a + " . 53"}
		apply(t, k, kernel.Change{Op: kernel.Create, New: e})
		if arrives() {
			t.Errorf("%s: without a flush the old flow should go past the new element; this test shows nothing", a)
		}
		apply(t, k, kernel.Change{Op: kernel.Delete, Old: e})
		e.Flush = &kernel.Flow{Protocol: "udp", Port: 5353}
		apply(t, k, kernel.Change{Op: kernel.Create, New: e})
		if !arrives() {
			t.Errorf("%s: the old flow goes past the new element", a)
		}
		apply(t, k, kernel.Change{Op: kernel.Delete, Old: e})
		if arrives() {
			t.Errorf("%s: the old flow goes past the deletion", a)
		}
	}
}

// TestCulprit: one bad change of a transaction does not keep the others from holding.
func TestCulprit(t *testing.T) {
	k, _ := newKernel(t)
	converge(t, k, []kernel.Object{testTable})
	var changes []kernel.Change
	for i := range 200 {
		e := &kernel.Element{Table: "seine", Set: testTable.Set("port4"), Item: fmt.Sprintf("tcp . %d", i+1), Data: "10.0.0.1 . 80"}
		if i%50 == 7 {
			e.Set = &kernel.Set{Name: "nope", Key: e.Set.Key, Data: e.Set.Data}
		}
		changes = append(changes, kernel.Change{Op: kernel.Create, New: e})
	}
	for i, err := range k.Apply(t.Context(), changes) {
		if bad := i%50 == 7; bad != errors.Is(err, kernel.ErrAbsent) || !bad && err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	if got := list(t, k, changes[0].New, changes[7].New, changes[199].New); len(got) != 2 {
		t.Error(got)
	}
}

// TestBigTransaction: many elements go in one transaction, and come back in one listing.
func TestBigTransaction(t *testing.T) {
	k, _ := newKernel(t)
	converge(t, k, []kernel.Object{testTable})
	var objs []kernel.Object
	for i := range 20000 {
		objs = append(objs, &kernel.Element{Table: "seine", Set: testTable.Set("port4"), Item: fmt.Sprintf("tcp . %d", i+1),
			Data: fmt.Sprintf("10.0.%d.%d . 80", i/250, i%250), Comment: "endpoint/some-network/some-endpoint"})
	}
	start := time.Now()
	apply(t, k, creations(objs)...)
	t.Log("made in", time.Since(start))
	start = time.Now()
	if got := list(t, k, objs...); len(got) != len(objs) {
		t.Errorf("%d of %d are listed", len(got), len(objs))
	}
	t.Log("listed in", time.Since(start))
	start = time.Now()
	apply(t, k, deletions(objs)...)
	t.Log("deleted in", time.Since(start))
	if got := list(t, k, objs...); len(got) != 0 {
		t.Errorf("%d are left", len(got))
	}
}

// TestHalfMade: a process that ends between making a link and marking it leaves one that is still ours.
func TestHalfMade(t *testing.T) {
	k, ns := newKernel(t)
	run(t, ns, "ip", "link", "add", "sn-a", "group", fmt.Sprint(halfMade), "type", "bridge")
	run(t, ns, "ip", "link", "add", "sn-b", "type", "bridge")
	ours := &kernel.Link{Name: "sn-a", Type: kernel.Bridge, Alias: "seine:net", Group: 9}
	all, err := k.List(t.Context(), kernel.Scope{All: true})
	if err != nil || len(all) != 1 || all[0].Key() != ours.Key() {
		t.Fatalf("listed %v, %v", all, err)
	}
	converge(t, k, []kernel.Object{ours})
	got := list(t, k, ours)[0].(*kernel.Link)
	if got.Alias != ours.Alias || got.Group != 9 {
		t.Errorf("got %s", got)
	}
	// Somebody else's link is left alone, whatever is asked for.
	theirs := &kernel.Link{Name: "sn-b", Type: kernel.Bridge, Alias: "seine:net"}
	errs := k.Apply(t.Context(), []kernel.Change{{Op: kernel.Create, New: theirs}, {Op: kernel.Update, Old: theirs, New: theirs}, {Op: kernel.Delete, Old: theirs}})
	if !errors.Is(errs[0], kernel.ErrExists) || !errors.Is(errs[1], kernel.ErrExists) || errs[2] != nil {
		t.Error(errs)
	}
	run(t, ns, "ip", "link", "show", "sn-b")
}

// TestManyNamespaces: more namespaces than file descriptors that a session takes at once.
func TestManyNamespaces(t *testing.T) {
	k, ns := newKernel(t)
	want := bridge("sn-br")
	for i := range 3 * maxOpen {
		want = append(want, attachment("sn-br", newNetns(t), i)...)
	}
	before := openFiles(t)
	start := time.Now()
	converge(t, k, want)
	t.Log("attached in", time.Since(start))
	start = time.Now()
	if left := kernel.Diff(want, list(t, k, want...)); len(left) != 0 {
		t.Errorf("still to do: %v", left)
	}
	t.Log("listed in", time.Since(start))
	if now := openFiles(t); now > before+2*maxIdle {
		t.Errorf("%d open files, were %d", now, before)
	}
	reach(t, want[len(want)-1-11].(*kernel.Link).Peer.NS, ns, "10.9.0.1")
	start = time.Now()
	converge(t, k, bridge("sn-br"), want...)
	t.Log("detached in", time.Since(start))
}

// TestBrief: what was opened of a namespace stays open for the next call, which the path is not needed for any more, while
// every thread stays at home; Close lets go of all of it.
func TestBrief(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.Symlink(newNetns(t), path); err != nil {
		t.Fatal(err)
	}
	home, err := os.Readlink(ownNetns)
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	k, lasting := New(Options{Brief: true}), New(Options{})
	want := &kernel.Addr{NS: path, Link: "lo", Prefix: prefix("10.0.0.1/32")}
	sys := &kernel.Sysctl{NS: path, Name: "net/ipv4/conf/lo/arp_notify", Value: "1"}
	apply(t, k, creations([]kernel.Object{want, sys})...)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// The machine's lo stands for its namespace, and is only looked at.
	machine := &kernel.Link{Name: "lo", Type: kernel.Loopback}
	for _, tt := range []struct {
		k    *Kernel
		want int
	}{{k, 3}, {lasting, 1}, {k, 3}} {
		if got := list(t, tt.k, want, sys, machine); len(got) != tt.want {
			t.Errorf("lists %v, want %d objects", got, tt.want)
		}
	}
	if now, err := os.Readlink(ownNetns); now != home {
		t.Errorf("the thread is in %s, was in %s (%v)", now, home, err)
	}
	for _, k := range []*Kernel{k, lasting} {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	if now := openFiles(t); now != before {
		t.Errorf("%d open files after Close, were %d", now, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// TestParallel: several goroutines attach and detach at once.
func TestParallel(t *testing.T) {
	k, _ := newKernel(t)
	converge(t, k, bridge("sn-br"))
	var wg sync.WaitGroup
	for g := range 8 {
		ns := newNetns(t)
		wg.Go(func() {
			for range 5 {
				want := attachment("sn-br", ns, g)
				changes := kernel.Diff(want, nil)
				for i, err := range k.Apply(t.Context(), changes) {
					if err != nil {
						t.Errorf("%s: %v", changes[i], err)
					}
				}
				if got, err := k.List(t.Context(), kernel.Scope{Objects: want}); err != nil || len(got) != len(want) {
					t.Errorf("%d of %d are listed, %v", len(got), len(want), err)
				}
				for _, err := range k.Apply(t.Context(), deletions(want)) {
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestListOfMany: namespaces that are visited by several goroutines, and links that are asked for at once, are listed
// as they are one by one.
func TestListOfMany(t *testing.T) {
	k, _ := newKernel(t)
	objs := bridge("sn-br")
	for i := range 2*crowd + 3 {
		in := newNetns(t)
		host := fmt.Sprint("sv-", i)
		objs = append(objs, &kernel.Link{Name: host, Type: kernel.Veth, Alias: kernel.AliasPrefix + host, Master: "sn-br", Peer: &kernel.Peer{NS: in, Name: "eth0"}},
			&kernel.LinkUp{Link: host}, &kernel.LinkUp{NS: in, Link: "eth0"},
			&kernel.Addr{NS: in, Link: "eth0", Prefix: netip.MustParsePrefix(fmt.Sprintf("10.9.1.%d/16", i))})
	}
	converge(t, k, objs)
	at := kernel.Scope{Objects: objs, All: true}
	have, err := k.List(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	if d := kernel.Diff(objs, have); len(d) > 0 {
		t.Errorf("listed at once: %v", d)
	}
	// One that is taken away is missed, and no other.
	del := kernel.Change{Op: kernel.Delete, Old: objs[len(objs)-4]}
	apply(t, k, del)
	if have, err = k.List(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if d := kernel.Diff(objs, have); len(d) != 4 {
		t.Errorf("one link is gone, but there differ %d objects: %v", len(d), d)
	}
}
