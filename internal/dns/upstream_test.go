package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

// fake is a name server on loopback that answers as a test wants it to.
type fake struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int32 // questions seen
	mu       sync.Mutex
	last     *miekg.Msg
}

// upstreamFunc gives the answers to a question, in their order; it may block, and see whether TCP was used.
type upstreamFunc func(q *miekg.Msg, tcp bool) []*miekg.Msg

func (f *fake) lastQuery() *miekg.Msg {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

func newFake(t *testing.T, host string, answer upstreamFunc) *fake {
	t.Helper()
	socks, err := Open(netip.AddrPortFrom(ip(host), 0))
	if err != nil {
		t.Skipf("skip: needs %s on the loopback interface: %v", host, err)
	}
	f := &fake{addr: netip.AddrPortFrom(ip(host), socks.Port())}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = socks.Close(); wg.Wait() })
	handle := func(packet []byte, tcp bool) (out [][]byte) {
		q := new(miekg.Msg)
		if err := q.Unpack(packet); err != nil {
			t.Errorf("upstream got a packet that it can't read: %v", err)
			return nil
		}
		f.mu.Lock()
		f.last = q
		f.mu.Unlock()
		for _, m := range answer(q, tcp) {
			b, err := m.Pack()
			if err != nil {
				t.Errorf("upstream's answer: %v", err)
			}
			out = append(out, b)
		}
		return out
	}
	wg.Go(func() {
		for {
			buf := make([]byte, 4096)
			n, from, err := socks.UDP.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			f.udp.Add(1)
			wg.Go(func() {
				for _, b := range handle(buf[:n], false) {
					_, _ = socks.UDP.WriteToUDPAddrPort(b, from)
				}
			})
		}
	})
	wg.Go(func() {
		for {
			c, err := socks.TCP.Accept()
			if err != nil {
				return
			}
			f.tcp.Add(1)
			wg.Go(func() { defer c.Close(); serveFakeConn(c, handle) })
		}
	})
	return f
}

func serveFakeConn(c net.Conn, handle func([]byte, bool) [][]byte) {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return
	}
	for _, b := range handle(buf, true) {
		_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	}
}

// says answers every A question with an address and a TTL.
func says(addr string, ttl uint32) upstreamFunc {
	return func(q *miekg.Msg, _ bool) []*miekg.Msg {
		m := new(miekg.Msg).SetReply(q)
		m.RecursionAvailable = true
		m.Answer = []miekg.RR{record(q.Question[0].Name, addr, ttl)}
		return []*miekg.Msg{m}
	}
}

func record(name, addr string, ttl uint32) miekg.RR {
	return &miekg.A{Hdr: miekg.RR_Header{Name: name, Rrtype: miekg.TypeA, Class: miekg.ClassINET, Ttl: ttl}, A: net.ParseIP(addr)}
}

// fails answers everything with a code.
func fails(rcode int) upstreamFunc {
	return func(q *miekg.Msg, _ bool) []*miekg.Msg { return []*miekg.Msg{new(miekg.Msg).SetRcode(q, rcode)} }
}

// silent answers nothing.
func silent(*miekg.Msg, bool) []*miekg.Msg { return nil }

func askA(name string) question {
	return question{name: name + ".", qtype: miekg.TypeA, class: miekg.ClassINET}
}

func forwarder(servers ...*fake) *Forwarder {
	c := ForwarderConfig{}
	for _, s := range servers {
		c.Servers = append(c.Servers, s.addr)
	}
	return NewForwarder(c)
}

// first gives the address in an answer, or the reason why there is none.
func first(a answer) string {
	if a.msg == nil {
		return "none: " + a.note.ExtraText
	}
	for _, rr := range a.msg.Answer {
		if r, ok := rr.(*miekg.A); ok {
			return r.A.String()
		}
	}
	return miekg.RcodeToString[a.msg.Rcode]
}

func want(t *testing.T, a answer, addr string) {
	t.Helper()
	if got := first(a); got != addr {
		t.Errorf("got %s, want %s", got, addr)
	}
}

func TestForwardCachesAndCountsDown(t *testing.T) {
	up := newFake(t, "127.0.0.1", says("192.0.2.1", 60))
	f := forwarder(up)
	for range 3 {
		want(t, f.resolve(t.Context(), askA("a.test")), "192.0.2.1")
	}
	if n := up.udp.Load(); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
	f.Flush()
	want(t, f.resolve(t.Context(), askA("a.test")), "192.0.2.1")
	if n := up.udp.Load(); n != 2 {
		t.Errorf("upstream was asked %d times after a flush", n)
	}
	q := up.lastQuery()
	if o := q.IsEdns0(); o == nil || o.UDPSize() != PayloadSize || !q.RecursionDesired {
		t.Errorf("upstream was asked %v", q)
	}
}

func TestForwardOverIPv6(t *testing.T) {
	up := newFake(t, "::1", says("192.0.2.1", 60))
	want(t, forwarder(up).resolve(t.Context(), askA("a.test")), "192.0.2.1")
}

func TestForwardTakesTheNextServer(t *testing.T) {
	for name, bad := range map[string]upstreamFunc{
		"servfail": fails(miekg.RcodeServerFailure),
		"refused":  fails(miekg.RcodeRefused),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newFake(t, "127.0.0.1", bad), newFake(t, "127.0.0.1", says("192.0.2.2", 1))
			start := time.Now()
			want(t, forwarder(a, b).resolve(t.Context(), askA("a.test")), "192.0.2.2")
			if d := time.Since(start); d > hedgeAfter {
				t.Errorf("it took %v", d)
			}
			if a.udp.Load() != 1 {
				t.Errorf("the first one was asked %d times", a.udp.Load())
			}
		})
	}
}

func TestForwardRacesAndRemembersWhoIsSlow(t *testing.T) {
	a, b := newFake(t, "127.0.0.1", silent), newFake(t, "127.0.0.1", says("192.0.2.2", 1))
	f := forwarder(a, b)
	start := time.Now()
	want(t, f.resolve(t.Context(), askA("a.test")), "192.0.2.2")
	if d := time.Since(start); d < hedgeAfter || d > tryTimeout {
		t.Errorf("it took %v", d)
	}
	start = time.Now()
	want(t, f.resolve(t.Context(), askA("b.test")), "192.0.2.2")
	if d := time.Since(start); d >= hedgeAfter {
		t.Errorf("the second question waited for the silent server again: %v", d)
	}
}

func TestForwardRepeatsALostQuestion(t *testing.T) {
	var n atomic.Int32
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, tcp bool) []*miekg.Msg {
		if n.Add(1) == 1 {
			return nil
		}
		return says("192.0.2.1", 1)(q, tcp)
	})
	start := time.Now()
	want(t, forwarder(up).resolve(t.Context(), askA("a.test")), "192.0.2.1")
	if d := time.Since(start); d > tryTimeout {
		t.Errorf("it took %v", d)
	}
}

func TestForwardGivesUpInTime(t *testing.T) {
	up := newFake(t, "127.0.0.1", silent)
	f := forwarder(up)
	start := time.Now()
	a := f.resolve(t.Context(), askA("a.test"))
	if d := time.Since(start); a.msg != nil || d > lookupTimeout+time.Second {
		t.Errorf("got %v after %v", first(a), d)
	}
	start = time.Now()
	if a := f.resolve(t.Context(), askA("a.test")); a.msg != nil || time.Since(start) > failedFor/2 {
		t.Errorf("a question that failed was asked again at once: %v after %v", first(a), time.Since(start))
	}
}

func TestForwardWithoutUpstreamFailsAtOnce(t *testing.T) {
	start := time.Now()
	a := NewForwarder(ForwarderConfig{ResolvConf: t.TempDir() + "/none"}).resolve(t.Context(), askA("a.test"))
	if a.msg != nil || time.Since(start) > time.Second {
		t.Errorf("got %v after %v", first(a), time.Since(start))
	}
	closed := newFake(t, "127.0.0.1", silent)
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.addr = netip.MustParseAddrPort(c.LocalAddr().String())
	_ = c.Close()
	start = time.Now()
	if a := forwarder(closed).resolve(t.Context(), askA("a.test")); a.msg != nil || time.Since(start) > hedgeAfter {
		t.Errorf("a closed port: got %v after %v", first(a), time.Since(start))
	}
}

func TestForwardUsesTCPForWhatIsCutShort(t *testing.T) {
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, tcp bool) []*miekg.Msg {
		m := says("192.0.2.9", 60)(q, tcp)[0]
		if !tcp {
			m.Truncated, m.Answer = true, nil
		}
		return []*miekg.Msg{m}
	})
	f := forwarder(up)
	want(t, f.resolve(t.Context(), askA("a.test")), "192.0.2.9")
	if up.tcp.Load() != 1 {
		t.Errorf("asked %d times by TCP", up.tcp.Load())
	}
}

func TestForwardSpeaksToServersWithoutEDNS(t *testing.T) {
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, tcp bool) []*miekg.Msg {
		if q.IsEdns0() != nil {
			return []*miekg.Msg{{MsgHdr: miekg.MsgHdr{Id: q.Id, Response: true, Rcode: miekg.RcodeFormatError}}}
		}
		return says("192.0.2.1", 1)(q, tcp)
	})
	want(t, forwarder(up).resolve(t.Context(), askA("a.test")), "192.0.2.1")
}

// TestForwardIgnoresForgedAnswers sends wrong answers before the right one.
func TestForwardIgnoresForgedAnswers(t *testing.T) {
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, tcp bool) []*miekg.Msg {
		forged := func(change func(*miekg.Msg)) *miekg.Msg {
			m := says("203.0.113.66", 60)(q, tcp)[0]
			change(m)
			return m
		}
		return []*miekg.Msg{
			forged(func(m *miekg.Msg) { m.Id++ }),
			forged(func(m *miekg.Msg) { m.Response = false }),
			forged(func(m *miekg.Msg) { m.Question[0].Name = "other.test." }),
			forged(func(m *miekg.Msg) { m.Question[0].Qtype = miekg.TypeAAAA }),
			forged(func(m *miekg.Msg) { m.Question = nil }),
			says("192.0.2.1", 60)(q, tcp)[0],
		}
	})
	want(t, forwarder(up).resolve(t.Context(), askA("a.test")), "192.0.2.1")
}

func TestForwardAsksOnceForAll(t *testing.T) {
	open := make(chan struct{})
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, tcp bool) []*miekg.Msg { <-open; return says("192.0.2.1", 60)(q, tcp) })
	f := forwarder(up)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { want(t, f.resolve(t.Context(), askA("a.test")), "192.0.2.1") })
	}
	for up.udp.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(open)
	wg.Wait()
	if n := up.udp.Load(); n != 1 {
		t.Errorf("50 waiters, asked %d times", n)
	}
}

func TestForwardKeepsDenials(t *testing.T) {
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, _ bool) []*miekg.Msg {
		m := new(miekg.Msg).SetRcode(q, miekg.RcodeNameError)
		m.Ns = denial(0, "test.").Ns
		return []*miekg.Msg{m}
	})
	f := forwarder(up)
	for range 3 {
		want(t, f.resolve(t.Context(), askA("no.test")), "NXDOMAIN")
	}
	if n := up.udp.Load(); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
}

func TestForwardGivesOldAnswersWhileUpstreamFails(t *testing.T) {
	up := newFake(t, "127.0.0.1", fails(miekg.RcodeServerFailure))
	f := forwarder(up)
	old := func(q question, age time.Duration) {
		m := &miekg.Msg{Question: []miekg.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.class}}}
		m.Response = true
		m.Answer = []miekg.RR{record(q.name, "192.0.2.7", 10)}
		f.cache.put(q, m, time.Now().Add(-age))
	}
	old(askA("a.test"), 20*time.Second)
	old(askA("b.test"), 10*time.Second+StaleFor+time.Second)
	for range 2 { // the second one while the failure is remembered
		a := f.resolve(t.Context(), askA("a.test"))
		want(t, a, "192.0.2.7")
		if a.note == nil || a.note.InfoCode != miekg.ExtendedErrorCodeStaleAnswer || a.msg.Answer[0].Header().Ttl != staleTTL {
			t.Errorf("an old answer does not say so: %v %v", a.note, a.msg)
		}
	}
	if n := up.udp.Load(); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
	if a := f.resolve(t.Context(), askA("b.test")); a.msg != nil {
		t.Errorf("an answer that is too old was given: %v", a.msg)
	}
}

// TestForwardFindsLoops has an upstream that asks us what we ask it.
func TestForwardFindsLoops(t *testing.T) {
	var us atomic.Pointer[Server]
	up := newFake(t, "127.0.0.1", func(q *miekg.Msg, _ bool) []*miekg.Msg {
		b, _ := q.Pack()
		if _, later := us.Load().handle(ip("10.1.0.3"), false, b); later != nil {
			later(t.Context())
		}
		return fails(miekg.RcodeServerFailure)(q, false)
	})
	f := forwarder(up)
	us.Store(New(Config{Zone: world(), Forwarder: f}))
	start := time.Now()
	a := f.resolve(t.Context(), askA("a.test"))
	if d := time.Since(start); a.msg != nil || d > tryTimeout/2 {
		t.Errorf("got %v after %v", first(a), d)
	}
	if list, err := f.Servers(); len(list) != 0 || !errors.Is(err, errLoop) {
		t.Errorf("servers after a loop: %v %v", list, err)
	}
}

func TestForwardEndsWithItsContext(t *testing.T) {
	f := forwarder(newFake(t, "127.0.0.1", silent))
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	if a := f.resolve(ctx, askA("a.test")); a.msg != nil || time.Since(start) > time.Second {
		t.Errorf("got %v after %v", first(a), time.Since(start))
	}
	if f.cache.get(askA("a.test"), time.Now()).failed {
		t.Error("a name server that was stopped remembers a failure of the upstream")
	}
}
