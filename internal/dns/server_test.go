package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

// The containers of the tests live at loopback addresses.
const (
	one  = "127.0.0.11" // on "net", with the world outside
	cell = "127.0.0.12" // on "in", which is internal
)

func testZone() *Table {
	z := new(Table)
	z.Set("one", Record{Names: []string{"one"}, Network: "net", Addrs: ips(one, "::1"), Container: "1"})
	z.Set("web", Record{Names: []string{"web", "all"}, Network: "net", Addrs: ips("10.1.0.2", "fd01::2"), Container: "2"})
	z.Set("web2", Record{Names: []string{"four", "all"}, Network: "net", Addrs: ips("10.1.0.3"), Container: "3"})
	z.Set("cell", Record{Names: []string{"cell"}, Network: "in", Addrs: ips(cell), Container: "4", Internal: true})
	for i := range 200 {
		z.Set(fmt.Sprint(i), Record{Names: []string{"many"}, Network: "net", Addrs: ips(fmt.Sprintf("10.2.0.%d", i+1))})
	}
	return z
}

// run serves a zone on loopback until the test ends.
func run(t *testing.T, c Config) (*Server, uint16) {
	t.Helper()
	socks, err := Open(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	c.On = socks
	s := New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("serve does not end")
		}
	})
	return s, socks.Port()
}

// client asks from one address at another; the answer has to come from there.
type client struct {
	from, at string
	port     uint16
	net      string
	size     uint16 // EDNS; 0 for a client without
}

func (c client) ask(t *testing.T, name string, qtype uint16) *miekg.Msg {
	t.Helper()
	m, err := c.try(new(miekg.Msg).SetQuestion(miekg.Fqdn(name), qtype))
	if err != nil {
		t.Fatalf("%s asks %s for %s: %v", c.from, c.at, name, err)
	}
	return m
}

func (c client) try(m *miekg.Msg) (*miekg.Msg, error) {
	if c.size > 0 {
		m.SetEdns0(c.size, false)
	}
	d := &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(c.from)}}
	if c.net == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(c.from)}
	}
	x := miekg.Client{Net: c.net, Timeout: 6 * time.Second, Dialer: d, UDPSize: max(c.size, 512)}
	// The client's UDP socket is connected: what comes from another address than was asked does not reach it.
	out, _, err := x.Exchange(m, netip.AddrPortFrom(ip(c.at), c.port).String())
	return out, err
}

// rrs gives what a message answers, one word for each record, sorted.
func rrs(m *miekg.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		f := strings.Fields(rr.String())
		out = append(out, f[len(f)-1])
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestServerAnswersNames(t *testing.T) {
	_, port := run(t, Config{Zone: testZone()})
	for _, network := range []string{"udp", "tcp"} {
		for _, via := range [][2]string{{one, "127.0.0.1"}, {one, "127.0.0.77"}, {"::1", "::1"}} {
			c := client{from: via[0], at: via[1], port: port, net: network, size: 1232}
			for _, q := range []struct {
				name  string
				qtype uint16
				rcode int
				want  string
			}{
				{"web", miekg.TypeA, 0, "10.1.0.2"},
				{"WeB", miekg.TypeAAAA, 0, "fd01::2"},
				{"web.net", miekg.TypeA, 0, "10.1.0.2"},
				{"web.seine.internal", miekg.TypeA, 0, "10.1.0.2"},
				{"web.net.seine.internal", miekg.TypeAAAA, 0, "fd01::2"},
				{"all", miekg.TypeA, 0, "10.1.0.2 10.1.0.3"},
				{"four", miekg.TypeAAAA, 0, ""},
				{"web", miekg.TypeMX, 0, ""},
				{"web", miekg.TypeHTTPS, 0, ""},
				{"nobody.seine.internal", miekg.TypeA, miekg.RcodeNameError, ""},
				{"cell", miekg.TypeA, miekg.RcodeServerFailure, ""}, // another network's, and there is no upstream
				{"2.0.1.10.in-addr.arpa", miekg.TypePTR, 0, "web.net."},
				{"2.0.1.10.in-addr.arpa", miekg.TypeA, 0, ""},
				{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa", miekg.TypePTR, 0, "web.net."},
				{"web", miekg.TypeANY, miekg.RcodeRefused, ""},
			} {
				m := c.ask(t, q.name, q.qtype)
				if got := rrs(m); m.Rcode != q.rcode || got != q.want {
					t.Errorf("%s %v %s %s: %s %q, want %s %q", network, via, q.name, miekg.TypeToString[q.qtype],
						miekg.RcodeToString[m.Rcode], got, miekg.RcodeToString[q.rcode], q.want)
				}
				negative := q.want == "" && (q.rcode == 0 || q.rcode == miekg.RcodeNameError)
				if soa := soaOf(m); negative != (soa != nil) {
					t.Errorf("%s %s: authority %v", q.name, miekg.TypeToString[q.qtype], m.Ns)
				}
				for _, rr := range m.Answer {
					if h := rr.Header(); h.Ttl != 5 || h.Name != miekg.Fqdn(q.name) {
						t.Errorf("%s: TTL %d, owner %q", q.name, h.Ttl, h.Name)
					}
				}
				if !m.RecursionAvailable || m.IsEdns0() == nil {
					t.Errorf("%s: no RA or no EDNS: %v", q.name, m)
				}
			}
		}
	}
}

func TestServerRotates(t *testing.T) {
	_, port := run(t, Config{Zone: testZone()})
	seen := map[string]int{}
	for range 40 {
		m := client{from: one, at: "127.0.0.1", port: port}.ask(t, "all", miekg.TypeA)
		seen[m.Answer[0].(*miekg.A).A.String()]++
		if len(m.Answer) != 2 {
			t.Fatalf("got %v", m.Answer)
		}
	}
	if seen["10.1.0.2"] != 20 || seen["10.1.0.3"] != 20 {
		t.Errorf("first answers: %v", seen)
	}
}

func TestServerCutsShortAndGivesAllByTCP(t *testing.T) {
	_, port := run(t, Config{Zone: testZone()})
	for _, c := range []struct {
		net  string
		size uint16
		most int
		all  bool
	}{{"udp", 0, 512, false}, {"udp", 1232, 1232, false}, {"udp", 4096, 4096, true}, {"udp", 65000, 4096, true}, {"udp", 100, 512, false}, {"tcp", 0, 65535, true}} {
		m := client{from: one, at: "127.0.0.1", port: port, net: c.net, size: c.size}.ask(t, "many", miekg.TypeA)
		b, _ := m.Pack()
		m.Compress = true
		if b2, _ := m.Pack(); len(b2) < len(b) {
			b = b2
		}
		if m.Truncated == c.all || (len(m.Answer) == 200) != c.all || len(b) > c.most || len(m.Answer) == 0 {
			t.Errorf("%s %d: %d records, %d bytes, TC %v", c.net, c.size, len(m.Answer), len(b), m.Truncated)
		}
	}
}

func TestServerKeepsStrangersAndPrisonersIn(t *testing.T) {
	up := newFake(t, "127.0.0.1", says("192.0.2.1", 60))
	s, port := run(t, Config{Zone: testZone(), Forwarder: forwarder(up)})
	stranger := client{from: "127.0.0.99", at: "127.0.0.1", port: port, size: 1232}
	for _, name := range []string{"web", "a.test", "web.seine.internal", "2.0.1.10.in-addr.arpa"} {
		if m := stranger.ask(t, name, miekg.TypeA); m.Rcode != miekg.RcodeRefused || len(m.Answer) > 0 {
			t.Errorf("a stranger asks for %s: %v", name, m)
		}
	}
	prisoner := client{from: cell, at: "127.0.0.1", port: port, size: 1232}
	if m := prisoner.ask(t, "a.test", miekg.TypeA); m.Rcode != miekg.RcodeNameError || soaOf(m) == nil {
		t.Errorf("an internal container asks outside: %v", m)
	}
	if m := prisoner.ask(t, "1.2.0.192.in-addr.arpa", miekg.TypePTR); m.Rcode != miekg.RcodeNameError {
		t.Errorf("an internal container asks outside: %v", m)
	}
	if got := rrs(prisoner.ask(t, "cell", miekg.TypeA)); got != cell {
		t.Errorf("an internal container finds %q", got)
	}
	if up.udp.Load() != 0 {
		t.Error("upstream was asked")
	}
	if got := rrs(client{from: one, at: "127.0.0.1", port: port}.ask(t, "a.test", miekg.TypeA)); got != "192.0.2.1" {
		t.Errorf("a container asks outside: %q", got)
	}
	if m := (client{from: one, at: "127.0.0.1", port: port}).ask(t, "x.loop.seine.internal", miekg.TypeTXT); m.Rcode != miekg.RcodeNameError {
		t.Errorf("a name below our domain: %v", m)
	}
	if up.udp.Load() != 1 || s.Stats().Forwarded != 1 {
		t.Errorf("upstream was asked %d times, %+v", up.udp.Load(), s.Stats())
	}
}

func TestServerForwards(t *testing.T) {
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, tcp bool) []*miekg.Msg {
		m := says("192.0.2.1", 60)(q, tcp)[0]
		m.Authoritative, m.AuthenticatedData = true, true
		m.SetEdns0(4096, false)
		return []*miekg.Msg{m}
	})
	s, port := run(t, Config{Zone: testZone(), Forwarder: forwarder(up)})
	for i, network := range []string{"udp", "tcp", "udp"} {
		q := new(miekg.Msg).SetQuestion("WwW.a.Test.", miekg.TypeA)
		q.AuthenticatedData = i == 2
		m, err := client{from: one, at: "127.0.0.1", port: port, net: network}.try(q)
		if err != nil {
			t.Fatal(err)
		}
		if rrs(m) != "192.0.2.1" || m.Question[0].Name != "WwW.a.Test." || m.Authoritative || m.IsEdns0() != nil || m.AuthenticatedData != (i == 2) {
			t.Errorf("%s: %v", network, m)
		}
	}
	if st := s.Stats(); up.udp.Load() != 1 || st.Forwarded != 1 || st.Kept != 2 || st.Queries != 3 {
		t.Errorf("upstream was asked %d times, %+v", up.udp.Load(), st)
	}
	// A single label that is nobody's is asked outside too.
	if got := rrs(client{from: one, at: "127.0.0.1", port: port}.ask(t, "printer", miekg.TypeA)); got != "192.0.2.1" {
		t.Errorf("printer: %q", got)
	}
}

func TestServerSaysWhyItFails(t *testing.T) {
	up := newFake(t, "127.0.0.1", fails(miekg.RcodeRefused))
	_, port := run(t, Config{Zone: testZone(), Forwarder: forwarder(up)})
	m := client{from: one, at: "127.0.0.1", port: port, size: 1232}.ask(t, "a.test", miekg.TypeA)
	o := m.IsEdns0()
	if m.Rcode != miekg.RcodeServerFailure || o == nil || len(o.Option) != 1 || !strings.Contains(o.Option[0].String(), "REFUSED") {
		t.Errorf("got %v", m)
	}
}

// TestServerBoundsWhatIsUnderWay has an upstream that does not answer and more questions than may wait.
func TestServerBoundsWhatIsUnderWay(t *testing.T) {
	var held atomic.Int32
	open := make(chan struct{})
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, tcp bool) []*miekg.Msg {
		held.Add(1)
		<-open
		return says("192.0.2.1", 60)(q, tcp)
	})
	s := New(Config{Zone: testZone(), Forwarder: forwarder(up)})
	s.forwards = gate{most: 10, each: 4}
	var wg sync.WaitGroup
	ask := func(from, name string) (full bool) {
		b, _ := new(miekg.Msg).SetQuestion(name, miekg.TypeA).Pack()
		reply, later := s.handle(ip(from), false, b)
		if later != nil {
			wg.Go(func() { later(t.Context()) })
			return false
		}
		m := new(miekg.Msg)
		if err := m.Unpack(reply); err != nil || m.Rcode != miekg.RcodeServerFailure {
			t.Errorf("full, and the answer is %v %v", m, err)
		}
		return true
	}
	for i := range 6 {
		if full := ask(one, fmt.Sprintf("a%d.test.", i)); full != (i >= 4) {
			t.Errorf("question %d of one container: full %v", i, full)
		}
	}
	if ask("::1", "b.test.") {
		t.Error("another container is turned away too")
	}
	close(open)
	wg.Wait()
	if ask(one, "c.test.") {
		t.Error("still full")
	}
	wg.Wait()
	if s.Stats().Full != 2 || len(s.forwards.by) != 0 || s.forwards.in != 0 {
		t.Errorf("%+v, gate %+v", s.Stats(), &s.forwards)
	}
}

func TestServerBoundsConnections(t *testing.T) {
	socks, err := Open(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Zone: testZone(), On: socks})
	s.conns = gate{most: 3, each: 2}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ctx) }()
	defer func() { cancel(); <-done }()
	dial := func(from string) (net.Conn, bool) {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", socks.TCP.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		x := &miekg.Conn{Conn: c}
		for range 3 { // several questions on one connection
			if err := x.WriteMsg(new(miekg.Msg).SetQuestion("web.", miekg.TypeA)); err != nil {
				return c, false
			}
			if _, err := x.ReadMsg(); err != nil {
				return c, false
			}
		}
		return c, true
	}
	first, ok1 := dial(one)
	_, ok2 := dial(one)
	_, ok3 := dial(one)
	_, ok4 := dial(cell)
	_, ok5 := dial(cell)
	if !ok1 || !ok2 || ok3 || !ok4 || ok5 {
		t.Errorf("connections served: %v %v %v %v %v", ok1, ok2, ok3, ok4, ok5)
	}
	_ = first.Close()
	for range 100 {
		if _, ok := dial(one); ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a place is not given back")
}

func TestServerOddMessages(t *testing.T) {
	s, port := run(t, Config{Zone: testZone()})
	to := netip.AddrPortFrom(ip("127.0.0.1"), port)
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(one)}, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	query := func(change func(*miekg.Msg)) []byte {
		m := new(miekg.Msg).SetQuestion("web.", miekg.TypeA)
		m.Id = 4711
		change(m)
		b, _ := m.Pack()
		return b
	}
	good := query(func(*miekg.Msg) {})
	for name, x := range map[string]struct {
		packet []byte
		rcode  int // -1 for no answer
	}{
		"empty":         {[]byte{}, -1},
		"short":         {good[:8], -1},
		"answer":        {query(func(m *miekg.Msg) { m.Response = true }), -1},
		"cut":           {good[:16], miekg.RcodeFormatError},
		"no question":   {good[:12], miekg.RcodeFormatError},
		"notify":        {query(func(m *miekg.Msg) { m.Opcode = miekg.OpcodeNotify }), miekg.RcodeNotImplemented},
		"update":        {query(func(m *miekg.Msg) { m.Opcode = miekg.OpcodeUpdate }), miekg.RcodeNotImplemented},
		"chaos":         {query(func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }), miekg.RcodeRefused},
		"transfer":      {query(func(m *miekg.Msg) { m.Question[0].Qtype = miekg.TypeAXFR }), miekg.RcodeRefused},
		"two questions": {query(func(m *miekg.Msg) { m.Question = append(m.Question, m.Question[0]) }), miekg.RcodeFormatError},
		"two OPT":       {query(func(m *miekg.Msg) { m.SetEdns0(1232, false).SetEdns0(1232, false) }), miekg.RcodeFormatError},
		"EDNS 1":        {query(func(m *miekg.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), miekg.RcodeBadVers},
		"no recursion":  {query(func(m *miekg.Msg) { m.RecursionDesired = false }), miekg.RcodeSuccess},
	} {
		if _, err := c.Write(x.packet); err != nil {
			t.Fatal(err)
		}
		// What is asked afterwards shows that nothing came before, and that the server lives.
		if x.rcode < 0 {
			if _, err := c.Write(query(func(m *miekg.Msg) { m.Id = 1 })); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 4096)
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		m := new(miekg.Msg)
		if err := m.Unpack(buf[:n]); err != nil || !m.Response {
			t.Fatalf("%s: %v %v", name, m, err)
		}
		if x.rcode < 0 && m.Id != 1 || x.rcode >= 0 && (m.Id != 4711 || m.Rcode != x.rcode) {
			t.Errorf("%s: got %d %s", name, m.Id, miekg.RcodeToString[m.Rcode])
		}
	}
	if s.Stats().Bad == 0 {
		t.Error("nothing was counted as bad")
	}
}

func TestServerEndsWithConnectionsOpen(t *testing.T) {
	up := newFake(t, "127.0.0.1", silent)
	socks, err := Open(netip.MustParseAddrPort("127.0.83.1:0")) // where nobody else takes the port when it is free
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Zone: testZone(), On: socks, Forwarder: forwarder(up)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(one)}}
	c, err := d.Dial("tcp", socks.TCP.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, _ := new(miekg.Msg).SetQuestion("a.test.", miekg.TypeA).Pack()
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
		t.Fatal(err)
	}
	for up.udp.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	cancel()
	if err := <-done; err != nil || time.Since(start) > time.Second {
		t.Errorf("ended with %v after %v", err, time.Since(start))
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := io.ReadAll(c); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("the connection was left open")
	}
	// From another address: a connection from the very port to itself would succeed.
	if _, err := d.Dial("tcp", socks.TCP.Addr().String()); err == nil {
		t.Error("the port is still open")
	}
}

func TestListen(t *testing.T) {
	a, err := Listen(0, testZone(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer a.on.Close()
	if b, err := Listen(a.Port(), testZone(), nil); !errors.Is(err, syscall.EADDRINUSE) {
		if b != nil {
			_ = b.on.Close()
		}
		t.Errorf("port %d was opened twice: %v", a.Port(), err)
	}
}
