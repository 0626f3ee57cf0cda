package loopback

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var hosts = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}

// free gives a port that is free for both protocols just now.
func free(t *testing.T, host netip.Addr) netip.AddrPort {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
		if err != nil {
			t.Skipf("skip: needs %s on the loopback interface: %v", host, err)
		}
		at := netip.MustParseAddrPort(l.Addr().String())
		_ = l.Close()
		if u, err := net.ListenPacket("udp", at.String()); err == nil {
			_ = u.Close()
			return at
		}
	}
	t.Fatal("no port is free for TCP and UDP")
	return netip.AddrPort{}
}

// running gives a Proxy that runs until the test ends.
func running(t *testing.T) *Proxy {
	t.Helper()
	p := New(nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("run does not end")
		}
	})
	return p
}

// tcpServer serves each connection with f until the test ends.
func tcpServer(t *testing.T, host netip.Addr, f func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	if err != nil {
		t.Skipf("skip: needs %s on the loopback interface: %v", host, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return netip.MustParseAddrPort(l.Addr().String())
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// udpServer answers each packet with its name and the packet.
func udpServer(t *testing.T, host netip.Addr, name string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
	if err != nil {
		t.Skipf("skip: needs %s on the loopback interface: %v", host, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, maxUDP)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(append([]byte(name), buf[:n]...), from)
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func dial(t *testing.T, network string, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, at.String(), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func set(t *testing.T, p *Proxy, key string, l ...Listener) {
	t.Helper()
	if err := p.Set(key, l); err != nil {
		t.Fatal(err)
	}
}

// says sends a line and gives what comes back.
func says(c net.Conn, line string) (string, error) {
	if _, err := c.Write([]byte(line)); err != nil {
		return "", err
	}
	b := make([]byte, 2000)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestTCPCarriesBothDirectionsAndHalfClose(t *testing.T) {
	for _, host := range hosts {
		// The server answers only when it has read all: that takes a half-close that goes through.
		to := tcpServer(t, host, func(c *net.TCPConn) {
			h := sha256.New()
			n, _ := io.Copy(h, c)
			fmt.Fprintf(c, "%d %x", n, h.Sum(nil))
		})
		p, at := running(t), free(t, host)
		set(t, p, "a", Listener{"tcp", at, to})
		data := make([]byte, 5<<20)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		c := dial(t, "tcp", at)
		if _, err := io.Copy(c, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if want := fmt.Sprintf("%d %x", len(data), sha256.Sum256(data)); err != nil || string(got) != want {
			t.Errorf("%s: got %q %v, want %q", host, got, err, want)
		}
	}
}

func TestTCPResetGoesThrough(t *testing.T) {
	to := tcpServer(t, hosts[0], func(c *net.TCPConn) { _ = c.SetLinger(0) })
	p, at := running(t), free(t, hosts[0])
	closed := free(t, hosts[0])
	set(t, p, "a", Listener{"tcp", at, to})
	for _, target := range []netip.AddrPort{to, closed} {
		set(t, p, "a", Listener{"tcp", at, target})
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, err = c.Read(make([]byte, 1))
			_ = c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("target %s: %v, want a reset", target, err)
		}
	}
}

func TestSetBeforeRun(t *testing.T) {
	to := tcpServer(t, hosts[0], echo)
	p, at := New(nil), free(t, hosts[0])
	set(t, p, "a", Listener{"tcp", at, to})
	c := dial(t, "tcp", at) // waits in the backlog
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	if got, err := says(c, "hello"); got != "hello" || err != nil {
		t.Errorf("got %q %v", got, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := says(c, "x"); err == nil {
		t.Error("a connection outlives the proxy")
	}
	if err := p.Set("b", []Listener{{"tcp", at, to}}); err == nil {
		t.Error("Set works after the end")
	}
	if err := p.Run(t.Context()); err == nil {
		t.Error("Run works twice")
	}
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatalf("the port was not given back: %v", err)
	}
	_ = l.Close()
}

func TestSetChangesTargetsAndKeepsConnections(t *testing.T) {
	for _, host := range hosts {
		name := func(s string) func(*net.TCPConn) {
			return func(c *net.TCPConn) {
				b := make([]byte, 100)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					_, _ = c.Write(append([]byte(s), b[:n]...))
				}
			}
		}
		one, two := tcpServer(t, host, name("1")), tcpServer(t, host, name("2"))
		u1, u2 := udpServer(t, host, "1"), udpServer(t, host, "2")
		p, at := running(t), free(t, host)
		set(t, p, "a", Listener{"tcp", at, one}, Listener{"udp", at, u1})
		old, oldUDP := dial(t, "tcp", at), dial(t, "udp", at)
		ask := func(c net.Conn, want string) {
			t.Helper()
			if got, err := says(c, "x"); got != want || err != nil {
				t.Errorf("%s: got %q %v, want %q", host, got, err, want)
			}
		}
		ask(old, "1x")
		ask(oldUDP, "1x")
		set(t, p, "a", Listener{"tcp", at, two}, Listener{"udp", at, u2})
		ask(old, "1x")
		ask(oldUDP, "2x")
		ask(dial(t, "tcp", at), "2x")
		p.Drop("a")
		p.Drop("a")
		ended := false
		for end := time.Now().Add(3 * time.Second); !ended && time.Now().Before(end); { // it is closed soon after, not before, Drop returns
			_, err := says(old, "x")
			ended = err != nil
		}
		if !ended {
			t.Error("a connection outlives its port")
		}
		if _, err := net.Dial("tcp", at.String()); err == nil {
			t.Error("a dropped port accepts")
		}
	}
}

func TestSetIsAllOrNothing(t *testing.T) {
	to := tcpServer(t, hosts[0], echo)
	p, at, taken := running(t), free(t, hosts[0]), free(t, hosts[0])
	other, err := net.Listen("tcp", taken.String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	set(t, p, "a", Listener{"tcp", at, to})
	next := free(t, hosts[0])
	for name, l := range map[string][]Listener{
		"taken by a program": {{"tcp", next, to}, {"tcp", taken, to}},
		"taken by a key":     {{"tcp", next, to}, {"tcp", at, to}},
	} {
		if err := p.Set("b", l); !errors.Is(err, kernel.ErrInUse) {
			t.Errorf("%s: %v, want ErrInUse", name, err)
		}
		if c, err := net.Dial("tcp", next.String()); err == nil {
			_ = c.Close()
			t.Errorf("%s: a port stayed open", name)
		}
	}
	if err := p.Set("a", []Listener{{"udp", at, to}, {"tcp", taken, to}}); !errors.Is(err, kernel.ErrInUse) {
		t.Errorf("got %v", err)
	}
	if got, err := says(dial(t, "tcp", at), "still"); got != "still" || err != nil {
		t.Errorf("after a Set that was refused: %q %v", got, err)
	}
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 80)
	for name, l := range map[string][]Listener{
		"protocol":       {{"sctp", next, to}},
		"no protocol":    {{"", next, to}},
		"no address":     {{"tcp", netip.AddrPort{}, to}},
		"any address":    {{"tcp", any4, to}},
		"no port":        {{"tcp", netip.AddrPortFrom(hosts[0], 0), to}},
		"no target":      {{"tcp", next, netip.AddrPort{}}},
		"twice the same": {{"tcp", next, to}, {"tcp", next, to}},
		"no such host":   {{"tcp", netip.MustParseAddrPort("192.0.2.1:80"), to}},
	} {
		if err := p.Set("b", l); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if len(p.ports) != 1 || len(p.keys) != 1 {
		t.Errorf("%d ports, %d keys", len(p.ports), len(p.keys))
	}
}

// TestSharesThePortWithItsOwnHold has the port kept from others by a bound socket of this process, on all addresses or
// on the very one; all that comes has to go to the proxy.
func TestSharesThePortWithItsOwnHold(t *testing.T) {
	for _, protocol := range []string{"tcp", "udp"} {
		for _, host := range []netip.Addr{netip.IPv6Unspecified(), netip.IPv6Loopback()} {
			at := free(t, netip.IPv6Loopback())
			kind := unix.SOCK_STREAM
			if protocol == "udp" {
				kind = unix.SOCK_DGRAM
			}
			fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
			sa := &unix.SockaddrInet6{Port: int(at.Port()), Addr: host.As16()}
			if err := unix.Bind(fd, sa); err != nil {
				t.Fatal(err)
			}
			if protocol == "udp" && host.IsLoopback() {
				if err := unix.Connect(fd, sa); err != nil {
					t.Fatal(err)
				}
			}
			p := running(t)
			to := udpServer(t, netip.IPv6Loopback(), "")
			if protocol == "tcp" {
				to = tcpServer(t, netip.IPv6Loopback(), echo)
			}
			set(t, p, "a", Listener{protocol, at, to})
			for range 30 { // from other ports, among which the kernel might share them out
				c := dial(t, protocol, at)
				_ = c.SetDeadline(time.Now().Add(2 * time.Second))
				if got, err := says(c, "hi"); got != "hi" || err != nil {
					t.Fatalf("%s, held on %s: %q %v", protocol, host, got, err)
				}
			}
		}
	}
}

func TestTCPIsBounded(t *testing.T) {
	to := tcpServer(t, hosts[0], echo)
	p, at := New(nil), free(t, hosts[0])
	p.places = make(chan struct{}, 2)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	set(t, p, "a", Listener{"tcp", at, to})
	// A connection too many is reset, which may be seen while it is being made or later.
	works := func() (net.Conn, bool) {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			return nil, false
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		got, err := says(c, "x")
		return c, err == nil && got == "x"
	}
	a, ok := works()
	if _, ok2 := works(); !ok || !ok2 {
		t.Fatal("two connections don't work")
	}
	if _, ok := works(); ok {
		t.Error("a third one works")
	}
	_ = a.Close()
	for range 200 {
		if _, ok := works(); ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a place is not given back")
}

func TestUDPKeepsClientsApart(t *testing.T) {
	for _, host := range hosts {
		p, at := running(t), free(t, host)
		set(t, p, "a", Listener{"udp", at, udpServer(t, host, "re:")})
		var wg sync.WaitGroup
		for i := range 20 {
			c := dial(t, "udp", at)
			wg.Go(func() {
				for n := range 20 {
					line := fmt.Sprintf("%d-%d", i, n)
					if got, err := says(c, line); got != "re:"+line || err != nil {
						t.Errorf("got %q %v, want %q", got, err, line)
						return
					}
				}
			})
		}
		wg.Wait()
		big := make([]byte, 40000)
		c := dial(t, "udp", at)
		if _, err := c.Write(big); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, maxUDP)
		if n, err := c.Read(b); n != len(big)+3 || err != nil {
			t.Errorf("a long packet came back with %d bytes, %v", n, err)
		}
	}
}

func TestUDPFlowsEndAndAreBounded(t *testing.T) {
	p, at := running(t), free(t, hosts[0])
	set(t, p, "a", Listener{"udp", at, udpServer(t, hosts[0], "")})
	p.mu.Lock()
	u := p.keys["a"][0].udp
	p.mu.Unlock()
	u.mu.Lock()
	u.most, u.idle = 3, 300*time.Millisecond
	u.mu.Unlock()
	flows := func() int {
		u.mu.Lock()
		defer u.mu.Unlock()
		return len(u.flows)
	}
	first := dial(t, "udp", at)
	for i := range 10 {
		for _, c := range []net.Conn{dial(t, "udp", at), first} {
			if got, err := says(c, "x"); got != "x" || err != nil {
				t.Fatalf("%d: got %q %v", i, got, err)
			}
		}
		if n := flows(); n > 3 {
			t.Fatalf("%d flows", n)
		}
	}
	// What is in use stays, beyond the idle time; the rest goes.
	u.mu.Lock()
	mine := u.flows[netip.MustParseAddrPort(first.LocalAddr().String())]
	u.mu.Unlock()
	for range 8 {
		time.Sleep(100 * time.Millisecond)
		if got, err := says(first, "x"); got != "x" || err != nil {
			t.Fatalf("got %q %v", got, err)
		}
	}
	u.mu.Lock()
	same := u.flows[mine.client] == mine
	u.mu.Unlock()
	if !same || flows() != 1 {
		t.Errorf("the flow in use stayed: %v; %d flows", same, flows())
	}
	for range 100 {
		if flows() == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d flows are left", flows())
}

func TestUDPSurvivesATargetThatComesLater(t *testing.T) {
	p, at, to := running(t), free(t, hosts[0]), free(t, hosts[0])
	set(t, p, "a", Listener{"udp", at, to})
	c := dial(t, "udp", at)
	for range 3 { // each of them is refused
		if _, err := c.Write([]byte("lost")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	s, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Skipf("skip: the port was taken meanwhile: %v", err)
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write([]byte("found")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := s.Read(b); string(b[:n]) != "found" {
		t.Errorf("got %q %v", b[:n], err)
	}
}

func TestConcurrentSetAndDrop(t *testing.T) {
	to := tcpServer(t, hosts[0], echo)
	p := running(t)
	var wg sync.WaitGroup
	for i := range 4 {
		at := free(t, netip.AddrFrom4([4]byte{127, 0, 0, byte(10 + i)}))
		wg.Go(func() {
			for range 50 {
				if err := p.Set(fmt.Sprint(i), []Listener{{"tcp", at, to}, {"udp", at, to}}); err != nil {
					t.Error(err)
					return
				}
				if c, err := net.Dial("tcp", at.String()); err == nil {
					_, _ = c.Write([]byte("x"))
					_ = c.Close()
				}
				if c, err := net.Dial("udp", at.String()); err == nil {
					_, _ = c.Write([]byte("x"))
					_ = c.Close()
				}
				p.Drop(fmt.Sprint(i))
			}
		})
	}
	wg.Wait()
}

func BenchmarkTCP(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() }()
		}
	}()
	p := New(nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	defer func() { _ = l.Close(); cancel(); <-done }()
	at := netip.MustParseAddrPort("127.0.0.1:45811")
	if err := p.Set("a", []Listener{{"tcp", at, netip.MustParseAddrPort(l.Addr().String())}}); err != nil {
		b.Fatal(err)
	}
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
