package dns

import (
	"net/netip"
	"time"

	miekg "github.com/miekg/dns"
)

// request is one question of a client.
type request struct {
	from netip.Addr
	tcp  bool
	msg  *miekg.Msg
	opt  *miekg.OPT // nil for a client without EDNS
}

func (r *request) name() string { return fold(r.msg.Question[0].Name) }

func (r *request) question() question {
	q := r.msg.Question[0]
	return question{name: fold(q.Name) + ".", qtype: q.Qtype, class: q.Qclass,
		do: r.opt != nil && r.opt.Do(), cd: r.msg.CheckingDisabled}
}

// parse reads a packet. It gives a request, or the reply to a packet that is none, or nothing for a packet that is
// not to be answered.
func parse(from netip.Addr, tcp bool, packet []byte) (*request, *miekg.Msg) {
	m := new(miekg.Msg)
	err := m.Unpack(packet)
	if len(packet) < 12 || m.Response {
		return nil, nil // an answer to an answer could go on for ever
	}
	bad := func(rcode int) (*request, *miekg.Msg) {
		out := &miekg.Msg{MsgHdr: miekg.MsgHdr{Id: m.Id, Response: true, Opcode: m.Opcode, Rcode: rcode,
			RecursionDesired: m.RecursionDesired}}
		return nil, out
	}
	switch {
	case m.Opcode != miekg.OpcodeQuery:
		return bad(miekg.RcodeNotImplemented)
	case err != nil, len(m.Question) != 1, len(m.Answer) > 0:
		return bad(miekg.RcodeFormatError)
	}
	r := &request{from: from, tcp: tcp, msg: m}
	for _, rr := range m.Extra {
		o, ok := rr.(*miekg.OPT)
		if ok && r.opt != nil {
			return bad(miekg.RcodeFormatError) // RFC 6891 section 6.1.1
		}
		if ok {
			r.opt = o
		}
	}
	return r, nil
}

// reply turns what was found into the packet for the client: as long as he takes, or marked as cut short.
func (r *request) reply(out *miekg.Msg, note *miekg.EDNS0_EDE) []byte {
	out.Id, out.Response, out.Opcode = r.msg.Id, true, miekg.OpcodeQuery
	out.Question = r.msg.Question // in the client's own letters
	out.RecursionDesired, out.RecursionAvailable = r.msg.RecursionDesired, true
	out.CheckingDisabled, out.Zero = r.msg.CheckingDisabled, false
	out.AuthenticatedData = out.AuthenticatedData && (r.msg.AuthenticatedData || r.opt != nil && r.opt.Do())
	size := miekg.MinMsgSize
	if r.opt != nil {
		size = min(max(size, int(r.opt.UDPSize())), maxPayload)
		o := &miekg.OPT{Hdr: miekg.RR_Header{Name: ".", Rrtype: miekg.TypeOPT}}
		o.SetUDPSize(PayloadSize)
		if r.opt.Do() {
			o.SetDo()
		}
		if note != nil {
			o.Option = append(o.Option, note)
		}
		out.Extra = append(out.Extra, o)
	}
	if r.tcp {
		size = miekg.MaxMsgSize
	}
	out.Truncate(size)
	b, err := out.Pack()
	if err != nil {
		// An upstream's record that can be read and not be written.
		b, _ = (&miekg.Msg{MsgHdr: miekg.MsgHdr{Id: r.msg.Id, Response: true, Rcode: miekg.RcodeServerFailure},
			Question: r.msg.Question}).Pack()
	}
	return b
}

// local answers what needs nobody else; nil says that the question is to be forwarded. turn rotates the addresses.
func local(z Zone, r *request, turn uint32) (*miekg.Msg, *miekg.EDNS0_EDE) {
	refuse := func(why string) (*miekg.Msg, *miekg.EDNS0_EDE) {
		return &miekg.Msg{MsgHdr: miekg.MsgHdr{Rcode: miekg.RcodeRefused}}, ede(miekg.ExtendedErrorCodeProhibited, why)
	}
	if s, ok := z.(Scoped); ok && !s.Serves(r.from) {
		return refuse("not a container's address")
	}
	q := r.msg.Question[0]
	switch {
	case r.opt != nil && r.opt.Version() != 0:
		return &miekg.Msg{MsgHdr: miekg.MsgHdr{Rcode: miekg.RcodeBadVers}}, nil
	case q.Qtype == miekg.TypeANY, q.Qtype == miekg.TypeAXFR, q.Qtype == miekg.TypeIXFR,
		q.Qtype == miekg.TypeOPT, q.Qtype == miekg.TypeTSIG, q.Qtype == miekg.TypeTKEY:
		return refuse("this type is not answered") // RFC 8482
	case q.Qclass != miekg.ClassINET:
		return refuse("this class is not answered")
	}
	name := r.name()
	if addr, ok := reverseAddr(name); ok {
		if host, ok := z.Reverse(r.from, addr); ok {
			return ptr(q, host), nil
		}
	} else if addrs, known := z.Lookup(r.from, name); known {
		return addresses(q, addrs, turn), nil
	}
	if inDomain(name) {
		return denial(miekg.RcodeNameError, Domain+"."), nil
	}
	if !z.AllowForward(r.from) {
		// Not REFUSED: resolvers take that for a server that is broken, and wait for another one.
		return denial(miekg.RcodeNameError, "."), ede(miekg.ExtendedErrorCodeFiltered, "only internal networks: nothing is asked outside")
	}
	return nil, nil
}

func header(q miekg.Question) miekg.RR_Header {
	return miekg.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: miekg.ClassINET, Ttl: uint32(AnswerTTL / time.Second)}
}

func addresses(q miekg.Question, addrs []netip.Addr, turn uint32) *miekg.Msg {
	out := &miekg.Msg{MsgHdr: miekg.MsgHdr{Authoritative: true}}
	for _, a := range addrs {
		switch {
		case q.Qtype == miekg.TypeA && a.Is4():
			out.Answer = append(out.Answer, &miekg.A{Hdr: header(q), A: a.AsSlice()})
		case q.Qtype == miekg.TypeAAAA && a.Is6():
			out.Answer = append(out.Answer, &miekg.AAAA{Hdr: header(q), AAAA: a.AsSlice()})
		}
	}
	n := len(out.Answer)
	if n == 0 {
		return denial(miekg.RcodeSuccess, q.Name)
	}
	if first := int(turn % uint32(n)); first > 0 {
		out.Answer = append(out.Answer[first:n:n], out.Answer[:first]...)
	}
	return out
}

func ptr(q miekg.Question, host string) *miekg.Msg {
	if q.Qtype != miekg.TypePTR {
		return denial(miekg.RcodeSuccess, q.Name)
	}
	return &miekg.Msg{MsgHdr: miekg.MsgHdr{Authoritative: true},
		Answer: []miekg.RR{&miekg.PTR{Hdr: header(q), Ptr: miekg.Fqdn(host)}}}
}

// denial says that there is no such name, or no such type under it, in a form that may be kept (RFC 2308).
func denial(rcode int, zone string) *miekg.Msg {
	ttl := uint32(AbsentTTL / time.Second)
	return &miekg.Msg{
		MsgHdr: miekg.MsgHdr{Authoritative: true, Rcode: rcode},
		Ns: []miekg.RR{&miekg.SOA{
			Hdr: miekg.RR_Header{Name: zone, Rrtype: miekg.TypeSOA, Class: miekg.ClassINET, Ttl: ttl},
			Ns:  "ns." + Domain + ".", Mbox: "hostmaster." + Domain + ".",
			Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
		}},
	}
}
