package testkit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reachAll asks each host from each other one, by all of its addresses, and gives the pairs that work, as "h1>h2 ".
func reachAll(t *testing.T, l *Lab, port uint16) string {
	t.Helper()
	var mu sync.Mutex
	works := map[string]bool{}
	var wg sync.WaitGroup
	for _, a := range l.Hosts {
		for _, b := range l.Peers(a) {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
				defer cancel()
				ok := true
				for _, to := range b.Addrs() {
					got, err := a.Ask(ctx, "tcp", netip.AddrPortFrom(to, port), "x")
					ok = ok && err == nil && got.Server == b.Name
				}
				mu.Lock()
				works[a.Name+">"+b.Name] = ok
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	var out strings.Builder
	for _, a := range l.Hosts {
		for _, b := range l.Peers(a) {
			if works[a.Name+">"+b.Name] {
				fmt.Fprintf(&out, "%s>%s ", a.Name, b.Name)
			}
		}
	}
	return out.String()
}

func TestLabReachesAndCuts(t *testing.T) {
	l := NewLab(t, 3)
	h := l.Hosts
	for _, x := range h {
		Serve(t, x.NS, "tcp", "[::]:80")
	}
	const all = "h1>h2 h1>h3 h2>h1 h2>h3 h3>h1 h3>h2 "
	step := func(what string, err error, want string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := reachAll(t, l, 80); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	step("new", nil, all)
	step("h1-h2 cut", l.Cut(h[0], h[1]), "h1>h3 h2>h3 h3>h1 h3>h2 ")
	step("cut again, the other way round", l.Cut(h[1], h[0]), "h1>h3 h2>h3 h3>h1 h3>h2 ")
	step("h1-h3 cut", l.Cut(h[0], h[2]), "h2>h3 h3>h2 ")
	step("h1-h2 healed", l.Heal(h[0], h[1]), "h1>h2 h2>h1 h2>h3 h3>h2 ")
	step("all healed", l.HealAll(), all)
	step("h3 alone", l.Partition(h[2]), "h1>h2 h2>h1 ")
	step("all healed", l.HealAll(), all)
	for name, err := range map[string]error{
		"itself":       l.Cut(h[0], h[0]),
		"nobody":       l.Cut(h[0], nil),
		"stranger":     l.Delay(h[0], new(Host), time.Second),
		"loss of 101":  l.Loss(h[0], h[1], 101),
		"loss of -1":   l.Loss(h[0], h[1], -1),
		"time machine": l.Delay(h[0], h[1], -time.Second),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Build(0); err == nil {
		t.Error("a lab of no hosts")
	}
}

// TestLabCutsWhatIsRouted has a container behind h2: what h1 routes there by way of h2 is cut too.
func TestLabCutsWhatIsRouted(t *testing.T) {
	l := NewLab(t, 2)
	a, b := l.Hosts[0], l.Hosts[1]
	for _, p := range []string{"10.9.0.1/32", "fd09::1/128"} {
		prefix := netip.MustParsePrefix(p)
		via := b.V4
		if prefix.Addr().Is6() {
			if via = b.V6; !via.IsValid() {
				continue
			}
		}
		if err := errors.Join(b.AddAddr("lo", prefix), a.AddRoute(prefix, via)); err != nil {
			t.Fatal(err)
		}
		at := Serve(t, b.NS, "udp", netip.AddrPortFrom(prefix.Addr(), 0).String())
		Reach(t, a.NS, "udp", at)
		if err := l.Cut(a, b); err != nil {
			t.Fatal(err)
		}
		CantReach(t, a.NS, "udp", at, 200*time.Millisecond)
		if err := l.Heal(a, b); err != nil {
			t.Fatal(err)
		}
		Reach(t, a.NS, "udp", at)
	}
}

// lost sends packets one way and gives the percentage that did not arrive.
func lost(t *testing.T, from, to *Host, n int) float64 {
	t.Helper()
	in, err := to.ListenPacket("udp", netip.AddrPortFrom(to.V4, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	_ = in.(*net.UDPConn).SetReadBuffer(4 << 20)
	got := make(chan int)
	go func() {
		seen, buf := 0, make([]byte, 100)
		for {
			k, _, err := in.ReadFrom(buf)
			if err != nil || string(buf[:k]) == "end" {
				got <- seen
				return
			}
			seen++
		}
	}()
	out, err := from.Dial(t.Context(), "udp", in.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for i := range n {
		if _, err := out.Write([]byte("packet")); err != nil {
			t.Fatalf("a sender sees the loss: %v", err)
		}
		if i%50 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	for {
		_, _ = out.Write([]byte("end"))
		select {
		case seen := <-got:
			return 100 * float64(n-seen) / float64(n)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestLabLoses(t *testing.T) {
	l := NewLab(t, 3)
	a, b, c := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	for _, percent := range []float64{20, 60, 0} {
		if err := l.Loss(a, b, percent); err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			from, to *Host
			want     float64
		}{{a, b, percent}, {b, a, percent}, {a, c, 0}, {c, b, 0}} {
			got := lost(t, x.from, x.to, 4000)
			t.Logf("%s to %s: %.1f %% lost of %.0f", x.from.Name, x.to.Name, got, x.want)
			// The deviation of 4,000 throws is at most 0.8.
			if got < x.want-4 || got > x.want+4 || x.want == 0 && got > 0.5 {
				t.Errorf("%s to %s: %.1f %% lost, want %.0f", x.from.Name, x.to.Name, got, x.want)
			}
		}
	}
	if err := l.Loss(a, b, 100); err != nil {
		t.Fatal(err)
	}
	Serve(t, b.NS, "udp", "[::]:9")
	CantReach(t, a.NS, "udp", netip.AddrPortFrom(b.V4, 9), 100*time.Millisecond)
}

// roundTrip gives the least of several round trips.
func roundTrip(t *testing.T, from *Host, to netip.AddrPort) time.Duration {
	t.Helper()
	least := time.Hour
	for range 5 {
		least = min(least, Reach(t, from.NS, "udp", to).Took)
	}
	return least
}

func TestLabDelays(t *testing.T) {
	l := NewLab(t, 3)
	a, b, c := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	for _, h := range l.Hosts {
		Serve(t, h.NS, "udp", "[::]:9")
	}
	check := func(what string, from, to *Host, least, most time.Duration) {
		t.Helper()
		for _, addr := range to.Addrs() {
			got := roundTrip(t, from, netip.AddrPortFrom(addr, 9))
			t.Logf("%s: %s to %s: %v", what, from.Name, addr, got)
			if got < least || got > most {
				t.Errorf("%s: %s to %s takes %v, want %v to %v", what, from.Name, addr, got, least, most)
			}
		}
	}
	const ms = time.Millisecond
	check("plain", a, b, 0, 15*ms)
	for _, d := range []time.Duration{25 * ms, 60 * ms} {
		if err := l.Delay(a, b, d); err != nil {
			t.Fatal(err)
		}
		check(d.String(), a, b, 2*d, 2*d+20*ms)
		check(d.String(), b, a, 2*d, 2*d+20*ms)
		check("beside "+d.String(), a, c, 0, 15*ms)
		check("beside "+d.String(), c, b, 0, 15*ms)
	}
	if err := errors.Join(l.Delay(a, b, 40*ms), l.Loss(a, b, 50), l.Cut(a, b)); err != nil {
		t.Fatal(err)
	}
	CantReach(t, a.NS, "udp", netip.AddrPortFrom(b.V4, 9), 300*ms)
	if err := l.Heal(a, b); err != nil {
		t.Fatal(err)
	}
	check("healed", a, b, 0, 15*ms)
}

// TestLabDelaysWhatIsLarge sends a lot by TCP, whose segments the kernel joins to large ones.
func TestLabDelaysWhatIsLarge(t *testing.T) {
	l := NewLab(t, 2)
	a, b := l.Hosts[0], l.Hosts[1]
	if err := l.Delay(a, b, 3*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for _, to := range b.Addrs() {
		ln, err := b.Listen("tcp", netip.AddrPortFrom(to, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		sum := make(chan [32]byte, 1)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				close(sum)
				return
			}
			defer c.Close()
			h := sha256.New()
			_, _ = io.Copy(h, c)
			sum <- [32]byte(h.Sum(nil))
		}()
		c, err := a.Dial(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 30<<20)
		for i := range data {
			data[i] = byte(i * i >> 8)
		}
		start := time.Now()
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if got := <-sum; got != sha256.Sum256(data) {
			t.Errorf("%s: what came is not what was sent", to)
		}
		took := time.Since(start)
		t.Logf("%s: %.1f Gbit/s with 6 ms", to, float64(len(data))*8/1e9/took.Seconds())
	}
}

func TestSandbox(t *testing.T) {
	s := NewSandbox(t)
	for _, network := range []string{"tcp", "udp"} {
		for _, far := range []netip.Addr{Far4, Far6} {
			if far.Is6() && Lacks("ipv6") != nil {
				continue
			}
			at := Serve(t, s.Outside.NS, network, netip.AddrPortFrom(far, 0).String())
			a := Reach(t, s.Machine.NS, network, at)
			if want := s.Machine.Addrs(); a.Source.Addr() != want[0] && a.Source.Addr() != want[len(want)-1] || a.Source != a.Local || a.Server != "outside" {
				t.Errorf("%s: %+v", far, a)
			}
		}
		for _, addr := range s.Machine.Addrs() {
			at := Serve(t, s.Machine.NS, network, netip.AddrPortFrom(addr, 0).String())
			if a := Reach(t, s.Outside.NS, network, at); a.Server != "machine" {
				t.Errorf("%s: %+v", addr, a)
			}
		}
	}
	at := Serve(t, s.Outside.NS, "tcp", "[::]:0")
	if err := s.Machine.AddAddr(Interface, netip.MustParsePrefix("192.0.2.77/24")); err != nil {
		t.Fatal(err)
	}
	a, err := s.Machine.AskFrom(t.Context(), netip.MustParseAddr("192.0.2.77"), "tcp", netip.AddrPortFrom(s.Outside.V4, at.Port()), "x")
	if err != nil || a.Source.Addr().String() != "192.0.2.77" {
		t.Errorf("from another address: %+v %v", a, err)
	}
}

func TestNamespace(t *testing.T) {
	n := Namespace(t, "box")
	var links []net.Interface
	if err := n.Do(func() (err error) { links, err = net.Interfaces(); return err }); err != nil || len(links) != 1 || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("links %v, %v", links, err)
	}
	if err := n.Do(func() error { return io.EOF }); err != io.EOF {
		t.Errorf("Do gives %v", err)
	}
	if err := n.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that ends its goroutine gives no error")
	}
	if out, err := n.Exec(t.Context(), "cat", "/proc/net/dev"); err != nil || strings.Contains(out, "eth") || !strings.Contains(out, "lo:") {
		t.Errorf("links seen by a program: %q %v", out, err)
	}
	if _, err := n.Exec(t.Context(), "sh", "-c", "echo bad luck; exit 3"); err == nil || !strings.Contains(err.Error(), "bad luck") {
		t.Errorf("a program that fails: %v", err)
	}
	mine, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	its, err := os.Stat(n.Path())
	if err != nil || os.SameFile(mine, its) {
		t.Errorf("path %q: %v, the test's own: %v", n.Path(), err, os.SameFile(mine, its))
	}
	if err := n.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	if v, err := n.ReadSysctl("net/ipv4/ip_forward"); v != "1" || err != nil {
		t.Errorf("sysctl %q %v", v, err)
	}
	at := Serve(t, n, "tcp", "127.0.0.1:0")
	if a := Reach(t, n, "tcp", at); a.Server != "box" {
		t.Errorf("%+v", a)
	}
	CantReach(t, Namespace(t, "other"), "tcp", at, 100*time.Millisecond)
}

// heard is a test that takes notes.
type heard struct {
	*testing.T
	skipped string
}

func (h *heard) Skipf(format string, args ...any) { h.skipped += fmt.Sprintf(format, args...) + "\n" }

func TestNeed(t *testing.T) {
	h := &heard{T: t}
	Need(h, "program:sh")
	if h.skipped != "" {
		t.Errorf("skipped: %s", h.skipped)
	}
	Need(h, "program:no-such-program")
	if !strings.HasPrefix(h.skipped, "skip: needs program:no-such-program: ") {
		t.Errorf("skipped with %q", h.skipped)
	}
	if err := Lacks("flux capacitor"); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("an ability that nobody knows: %v", err)
	}
	for name := range probes {
		t.Logf("%-18s %v", name, Lacks(name))
	}
	if os.Geteuid() == 0 && Lacks("root") == nil && Lacks("veth") == nil && Lacks("dummy") == nil {
		n := Namespace(t, "x") // a probe leaves nothing behind in the process
		if _, err := n.Netlink().LinkByName("probe0"); err == nil {
			t.Error("a probe left a link")
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	Need(b, "root", "bridge", "veth")
	for b.Loop() {
		l, err := Build(10)
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}
