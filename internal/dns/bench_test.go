package dns

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

var someTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func bigTable(n int) *Table {
	z := new(Table)
	for i := range n {
		z.Set(fmt.Sprint(i), Record{Names: []string{fmt.Sprintf("app-%d", i)}, Network: fmt.Sprint("net", i/500),
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{127, 9, byte(i >> 8), byte(i)})}, Container: fmt.Sprint(i)})
	}
	return z
}

// BenchmarkLocal is the answer to one packet, without the sockets.
func BenchmarkLocal(b *testing.B) {
	for _, n := range []int{10, 1000, 20000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(Config{Zone: bigTable(n)})
			p, _ := new(miekg.Msg).SetQuestion("app-7.", miekg.TypeA).Pack()
			from := ip("127.9.0.3")
			b.ReportAllocs()
			for b.Loop() {
				if out, _ := s.handle(from, false, p); len(out) < 40 {
					b.Fatalf("answer of %d bytes", len(out))
				}
			}
		})
	}
}

// BenchmarkKept is the answer from the cache.
func BenchmarkKept(b *testing.B) {
	s := New(Config{Zone: bigTable(10)})
	q := askA("a.test")
	s.forward.cache.put(q, reply(q, 0, 0, record(q.name, "192.0.2.1", 3600)), time.Now())
	p, _ := new(miekg.Msg).SetQuestion("a.test.", miekg.TypeA).Pack()
	b.ReportAllocs()
	for b.Loop() {
		if out, _ := s.handle(ip("127.9.0.3"), false, p); len(out) < 40 {
			b.Fatalf("answer of %d bytes", len(out))
		}
	}
}

// BenchmarkUDP is question and answer through the kernel, one at a time.
func BenchmarkUDP(b *testing.B) {
	socks, err := Open(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		b.Fatal(err)
	}
	s := New(Config{Zone: bigTable(1000), On: socks})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(b.Context()) }()
	b.Cleanup(func() { <-done })
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 9, 0, 3)}, socks.UDP.LocalAddr().(*net.UDPAddr))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p, _ := new(miekg.Msg).SetQuestion("app-7.", miekg.TypeA).Pack()
	buf := make([]byte, 512)
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSet is one endpoint that comes and goes among many.
func BenchmarkSet(b *testing.B) {
	z := bigTable(20000)
	rec := Record{Names: []string{"new", "alias"}, Network: "net3", Addrs: ips("10.1.1.1", "fd01::1"), Container: "x"}
	b.ReportAllocs()
	for b.Loop() {
		z.Set("new", rec)
		z.Drop("new")
	}
}
