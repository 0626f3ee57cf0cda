package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	miekg "github.com/miekg/dns"
)

const (
	// sickFor is how long an upstream that did not answer is asked only after the others.
	sickFor = 10 * time.Second
	// loopFor is how long an upstream that sent our questions back to us is not asked at all.
	loopFor = 5 * time.Minute
)

// upstream is one name server that we ask.
type upstream struct {
	addr     netip.AddrPort
	sickTill atomic.Int64 // Unix nanoseconds
	// Until loopTill (Unix nanoseconds), what we ask there is known to come back to us; probe is the name that is under
	// way to find out.
	loopTill atomic.Int64
	probe    atomic.Pointer[string]
}

func (u *upstream) sicken() { u.sickTill.Store(time.Now().Add(sickFor).UnixNano()) }

func (u *upstream) loops(now time.Time) bool { return now.UnixNano() < u.loopTill.Load() }

func (u *upstream) sick(now time.Time) int {
	if now.UnixNano() < u.sickTill.Load() {
		return 1
	}
	return 0
}

// noEDNSError says that an upstream does not understand EDNS.
type noEDNSError struct{ rcode int }

func (e noEDNSError) Error() string { return "answered " + miekg.RcodeToString[e.rcode] }

// ask puts a question to an upstream, once by UDP and, where the answer is cut short, by TCP. An answer that an
// upstream gives because it can't or won't (SERVFAIL, REFUSED) is an error: another one may know better.
func (u *upstream) ask(ctx context.Context, q question) (*miekg.Msg, error) {
	msg, err := u.try(ctx, "udp", q, true)
	var no noEDNSError
	if errors.As(err, &no) { // RFC 6891 section 6.2.2: once more, without
		msg, err = u.try(ctx, "udp", q, false)
	}
	if err == nil && msg.Truncated {
		msg, err = u.try(ctx, "tcp", q, true)
	}
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", u.addr, err)
	}
	return msg, nil
}

func (u *upstream) try(ctx context.Context, network string, q question, edns bool) (*miekg.Msg, error) {
	out := u.query(q, edns)
	packet, err := out.Pack()
	if err != nil {
		return nil, err
	}
	// A socket of its own for every try gives every try a random source port, against forged answers (RFC 5452).
	conn, err := new(net.Dialer).DialContext(ctx, network, u.addr.String())
	if err != nil {
		return nil, brief(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var in *miekg.Msg
	if network == "tcp" {
		in, err = overTCP(conn, out, packet)
	} else {
		in, err = overUDP(conn, out, packet)
	}
	if err != nil {
		return nil, brief(ctx, err)
	}
	switch in.Rcode {
	case miekg.RcodeFormatError, miekg.RcodeNotImplemented:
		if edns {
			return nil, noEDNSError{in.Rcode}
		}
		return nil, errors.New("answered " + miekg.RcodeToString[in.Rcode])
	case miekg.RcodeSuccess, miekg.RcodeNameError:
		return in, nil
	}
	return nil, errors.New("answered " + rcodeName(in.Rcode))
}

func rcodeName(rcode int) string {
	if s, ok := miekg.RcodeToString[rcode]; ok {
		return s
	}
	return fmt.Sprintf("rcode %d", rcode)
}

// brief makes an error of the network short enough to be shown to the one who asks, and says "no answer" for a time
// limit.
func brief(ctx context.Context, err error) error {
	var ne net.Error
	switch {
	case context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return context.Cause(ctx)
	case ctx.Err() != nil, errors.As(err, &ne) && ne.Timeout():
		return errNoAnswer
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

var errNoAnswer = errors.New("no answer in time")

func (u *upstream) query(q question, edns bool) *miekg.Msg {
	m := &miekg.Msg{Question: []miekg.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.class}}}
	m.Id = uint16(rand.Uint32())
	m.RecursionDesired, m.CheckingDisabled = true, q.cd
	m.AuthenticatedData = true // RFC 6840 section 5.7: tell us whether it was validated
	if edns {
		m.SetEdns0(PayloadSize, q.do)
	}
	return m
}

// overUDP sends the packet and waits for the answer to it. What is something else is passed over: it may be forged,
// and the true one still to come.
func overUDP(conn net.Conn, out *miekg.Msg, packet []byte) (*miekg.Msg, error) {
	if _, err := conn.Write(packet); err != nil {
		return nil, err
	}
	buf := make([]byte, maxPayload)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if in := accept(out, buf[:n]); in != nil {
			return in, nil
		}
	}
}

func overTCP(conn net.Conn, out *miekg.Msg, packet []byte) (*miekg.Msg, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	if in := accept(out, buf); in != nil && !in.Truncated {
		return in, nil
	}
	return nil, errors.New("answered another question")
}

// accept reads a packet as the answer to a question; nil if it is not.
func accept(out *miekg.Msg, packet []byte) *miekg.Msg {
	in := new(miekg.Msg)
	err := in.Unpack(packet)
	if !in.Response || in.Id != out.Id || in.Opcode != miekg.OpcodeQuery {
		return nil
	}
	if len(in.Question) == 0 && (in.Rcode == miekg.RcodeFormatError || in.Rcode == miekg.RcodeNotImplemented) {
		return in // some can't even read the question of a query with EDNS
	}
	if len(in.Question) != 1 {
		return nil
	}
	a, b := in.Question[0], out.Question[0]
	if a.Qtype != b.Qtype || a.Qclass != b.Qclass || !strings.EqualFold(a.Name, b.Name) {
		return nil
	}
	if in.Truncated {
		return in // maybe cut in the middle of a record; it comes whole by TCP
	}
	// A record that can be read and not be written again so that it can be read (one without data, say) is no answer
	// for anybody.
	if err == nil {
		packet, err = in.Pack()
	}
	if err != nil || new(miekg.Msg).Unpack(packet) != nil {
		return nil
	}
	return in
}
