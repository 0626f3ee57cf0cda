package dns

import (
	"context"
	"testing"

	miekg "github.com/miekg/dns"
)

func seeds(f *testing.F) {
	for _, m := range []*miekg.Msg{
		new(miekg.Msg).SetQuestion("web.", miekg.TypeA),
		new(miekg.Msg).SetQuestion("many.seine.internal.", miekg.TypeA).SetEdns0(4096, true),
		new(miekg.Msg).SetQuestion("2.0.1.10.in-addr.arpa.", miekg.TypePTR),
		new(miekg.Msg).SetQuestion("a.test.", miekg.TypeHTTPS),
		reply(askA("a.test"), 0, 15, record("a.test.", "192.0.2.1", 60)),
		says("192.0.2.1", 5)(new(miekg.Msg).SetQuestion("a.test.", miekg.TypeA), false)[0],
	} {
		m.Id = 1
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add(make([]byte, 12))
}

// FuzzPacket holds the server to what every answer must be, whatever comes in.
func FuzzPacket(f *testing.F) {
	seeds(f)
	s := New(Config{Zone: testZone(), Forwarder: NewForwarder(ForwarderConfig{ResolvConf: "/dev/null"})})
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, tcp := range []bool{false, true} {
			out, later := s.handle(ip(one), tcp, in)
			if later != nil {
				out = later(context.Background())
			}
			if out == nil {
				continue
			}
			m := new(miekg.Msg)
			if err := m.Unpack(out); err != nil {
				t.Fatalf("answer can't be read: %v", err)
			}
			if !m.Response || len(in) < 12 || in[0] != out[0] || in[1] != out[1] || in[2]&0x80 != 0 {
				t.Fatalf("%x is answered by %v", in, m)
			}
			if !tcp && len(out) > maxPayload {
				t.Fatalf("%d bytes by UDP", len(out))
			}
		}
	})
}

// FuzzUpstream takes whatever an upstream may send as the answer to a question.
func FuzzUpstream(f *testing.F) {
	seeds(f)
	q := askA("a.test")
	f.Fuzz(func(t *testing.T, in []byte) {
		out := new(upstream).query(q, true)
		if len(in) >= 2 {
			out.Id = uint16(in[0])<<8 | uint16(in[1]) // as one would who can see the question
		}
		m := accept(out, in)
		if m == nil || m.Truncated || len(m.Question) == 0 {
			return
		}
		c := cache{most: cacheBytes}
		clean(m, q)
		now := someTime
		c.put(q, m, now)
		r := &request{msg: new(miekg.Msg).SetQuestion("a.test.", miekg.TypeA)}
		for _, x := range []*miekg.Msg{m, c.get(q, now).msg} {
			if x == nil {
				continue
			}
			b := r.reply(x, nil)
			if new(miekg.Msg).Unpack(b) != nil || len(b) > miekg.MinMsgSize {
				t.Fatalf("%d bytes that a client can't read: %x", len(b), b)
			}
		}
	})
}

// FuzzResolvConf reads any text as a resolv.conf.
func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nnameserver ::1%lo\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range parseResolvConf(text, nil) {
			if !s.IsValid() || s.Port() != 53 || s.Addr().IsUnspecified() {
				t.Fatalf("%q gives %v", text, s)
			}
		}
	})
}

// FuzzReverse holds reverseAddr to miekg's own way of writing such names.
func FuzzReverse(f *testing.F) {
	f.Add("4.3.2.1.in-addr.arpa")
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := reverseAddr(name)
		if !ok {
			return
		}
		if back, err := miekg.ReverseAddr(a.String()); err != nil || fold(back) != name {
			t.Fatalf("%q gives %v, whose name is %q (%v)", name, a, back, err)
		}
	})
}
