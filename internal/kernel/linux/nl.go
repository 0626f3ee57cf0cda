package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// native is the byte order of netlink headers and of most attributes; nfnetlink attributes are big-endian.
var native = binary.NativeEndian

// msg is a netlink message under construction: header, the family's fixed part, attributes.
type msg struct{ b []byte }

// newMsg begins a message with the fixed part of its family. NLM_F_REQUEST is always set.
func newMsg(typ, flags uint16, fixed []byte) *msg {
	m := &msg{b: make([]byte, unix.NLMSG_HDRLEN, 128)}
	native.PutUint16(m.b[4:], typ)
	native.PutUint16(m.b[6:], flags|unix.NLM_F_REQUEST)
	m.b = append(m.b, fixed...)
	m.pad()
	return m
}

func (m *msg) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *msg) flag(f uint16) { native.PutUint16(m.b[6:], native.Uint16(m.b[6:])|f) }

func (m *msg) attr(typ uint16, data []byte) {
	m.b = native.AppendUint16(m.b, uint16(4+len(data)))
	m.b = native.AppendUint16(m.b, typ)
	m.b = append(m.b, data...)
	m.pad()
}

func (m *msg) str(typ uint16, s string)    { m.attr(typ, append([]byte(s), 0)) }
func (m *msg) u8(typ uint16, v uint8)      { m.attr(typ, []byte{v}) }
func (m *msg) u32(typ uint16, v uint32)    { m.attr(typ, native.AppendUint32(nil, v)) }
func (m *msg) be32(typ uint16, v uint32)   { m.attr(typ, binary.BigEndian.AppendUint32(nil, v)) }
func (m *msg) be64(typ uint16, v uint64)   { m.attr(typ, binary.BigEndian.AppendUint64(nil, v)) }
func (m *msg) raw(b []byte)                { m.b = append(m.b, b...); m.pad() }
func (m *msg) nested(typ uint16, f func()) { m.nest(typ|unix.NLA_F_NESTED, f) }

// nest puts the attributes that f adds into one attribute, without the flag that newer families ask for.
func (m *msg) nest(typ uint16, f func()) {
	at := len(m.b)
	m.b = append(m.b, 0, 0, 0, 0)
	f()
	native.PutUint16(m.b[at:], uint16(len(m.b)-at))
	native.PutUint16(m.b[at+2:], typ)
}

// attrs gives the attributes in b, flags stripped from their types. It stops where b is malformed.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			n := int(native.Uint16(b))
			if n < 4 || n > len(b) {
				return
			}
			if !yield(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// attrOf gives one attribute of b, nil where it is absent.
func attrOf(b []byte, typ uint16) []byte {
	for t, v := range attrs(b) {
		if t == typ {
			return v
		}
	}
	return nil
}

func cstr(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func num32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

func num32be(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// reply is a message from the kernel; data begins with the fixed part of the family.
type reply struct {
	typ  uint16
	data []byte
}

// rest gives the attributes after a fixed part of n bytes.
func (r reply) rest(n int) []byte {
	if len(r.data) < n {
		return nil
	}
	return r.data[n:]
}

// nlError is an errno from the kernel with the text that the kernel gave along, if any.
type nlError struct {
	errno unix.Errno
	text  string
}

func (e *nlError) Error() string {
	if e.text == "" {
		return e.errno.Error()
	}
	return e.errno.Error() + " (" + e.text + ")"
}

func (e *nlError) Unwrap() error { return e.errno }

var (
	errNoAnswer  = errors.New("the kernel gave no answer")
	errDumpRaced = errors.New("the listing kept changing while it was read")
)

// sock is a netlink socket. The kernel answers within the send call, so nothing here ever waits.
type sock struct {
	fd  int
	seq uint32
	buf []byte
	// roomy says that the receive buffer has room for the answers of a batch.
	roomy bool
	// broken says that answers were lost or may be yet to come: the socket is good for no further session.
	broken bool
}

// openSock opens a socket in the namespace of the calling thread. port is its port id, 0 for one of the kernel's choice.
func openSock(proto int, port uint32) (*sock, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink bind: %w", err)
	}
	// Both are a help only: error texts (4.12), and filtering of dumps in the kernel (4.20).
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	if proto == unix.NETLINK_ROUTE {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	}
	return &sock{fd: fd}, nil
}

func (s *sock) close() { unix.Close(s.fd) }

// send puts messages with consecutive sequence numbers into one system call and gives the number of the first.
func (s *sock) send(msgs []*msg) (uint32, error) {
	first := s.seq + 1
	var all []byte
	if len(msgs) > 1 {
		size := 0
		for _, m := range msgs {
			size += len(m.b)
		}
		all = make([]byte, 0, size)
	}
	for _, m := range msgs {
		s.seq++
		native.PutUint32(m.b, uint32(len(m.b)))
		native.PutUint32(m.b[8:], s.seq)
		if len(msgs) == 1 {
			all = m.b
		} else {
			all = append(all, m.b...)
		}
	}
	err := unix.Sendto(s.fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	s.broken = s.broken || err != nil
	return first, err
}

// recv reads one datagram and calls f for each message in it until f returns false. The data is only good until the
// next recv.
func (s *sock) recv(f func(seq uint32, flags uint16, r reply) bool) error {
	if s.buf == nil {
		s.buf = make([]byte, 64<<10)
	}
	n, _, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT)
	for err == unix.EINTR {
		n, _, err = unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT)
	}
	if err == unix.EAGAIN {
		return errNoAnswer
	}
	if err != nil {
		s.broken = true
		return err
	}
	for b := s.buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
		l := int(native.Uint32(b))
		if l < unix.NLMSG_HDRLEN || l > len(b) {
			break
		}
		r := reply{typ: native.Uint16(b[4:]), data: b[unix.NLMSG_HDRLEN:l]}
		if !f(native.Uint32(b[8:]), native.Uint16(b[6:]), r) {
			return nil
		}
		b = b[min((l+3)&^3, len(b)):]
	}
	return nil
}

// ackError turns an NLMSG_ERROR (or the end of a dump) into an error, nil for an acknowledgement.
func ackError(flags uint16, data []byte) error {
	code := int32(num32(data))
	if code == 0 {
		return nil
	}
	e := &nlError{errno: unix.Errno(-code)}
	if flags&unix.NLM_F_ACK_TLVS == 0 {
		return e
	}
	rest := data[min(len(data), 4+unix.NLMSG_HDRLEN):]
	if flags&unix.NLM_F_CAPPED == 0 && len(data) >= 8 { // the whole request is in between
		rest = data[min(len(data), (4+int(native.Uint32(data[4:]))+3)&^3):]
	}
	e.text = cstr(attrOf(rest, unix.NLMSGERR_ATTR_MSG))
	return e
}

// Acknowledgements wait in the receive buffer: this many fit into the default one with room to spare.
const chunk = 64

// exec has the kernel carry out messages in order, going on past failures, and gives one error per message.
func (s *sock) exec(msgs ...*msg) []error {
	if len(msgs) > chunk/4 {
		return s.batch(msgs)
	}
	return s.execEach(msgs)
}

// execEach is exec with an acknowledgement for each message.
func (s *sock) execEach(msgs []*msg) []error {
	for _, m := range msgs {
		m.flag(unix.NLM_F_ACK)
	}
	_, errs := s.ask(msgs)
	return errs
}

// Of a batch only the last message is acknowledged; the others answer when they fail. All may fail, and then their
// answers have to fit into the receive buffer. (100,000 routes: 1.2 s with an acknowledgement each, 0.3 s so.)
const (
	batchMax   = 1024
	batchBytes = 128 << 10 // of messages; the send buffer has 208 KiB by default
	batchRoom  = 2 << 20   // bytes that the receive buffer has for it; the kernel counts some 800 per answer
)

// batch is exec for many messages.
func (s *sock) batch(msgs []*msg) []error {
	if !s.roomy {
		force(s.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, batchRoom)
		s.roomy = true
	}
	errs := make([]error, 0, len(msgs))
	for at := 0; at < len(msgs); at = len(errs) {
		n, bytes := 0, 0
		for at+n < len(msgs) && n < batchMax && bytes+len(msgs[at+n].b) <= batchBytes {
			bytes += len(msgs[at+n].b)
			n++
		}
		part := msgs[at : at+max(n, 1)]
		got, err := s.batchOnce(part)
		if err != nil {
			// Answers were lost. What was carried out already says so when it is asked for again.
			got = s.execEach(part)
		}
		errs = append(errs, got...)
	}
	return errs
}

func (s *sock) batchOnce(part []*msg) ([]error, error) {
	part[len(part)-1].flag(unix.NLM_F_ACK)
	errs := make([]error, len(part))
	first, err := s.send(part)
	for last := false; err == nil && !last; {
		err = s.recv(func(seq uint32, flags uint16, r reply) bool {
			i := int(seq - first)
			if i < 0 || i >= len(part) || r.typ != unix.NLMSG_ERROR {
				return true
			}
			errs[i] = ackError(flags, r.data)
			last = i == len(part)-1
			return !last
		})
	}
	return errs, err
}

// exec1 is exec for one message.
func (s *sock) exec1(m *msg) error { return s.exec(m)[0] }

// get asks for one object by one message.
func (s *sock) get(m *msg) (reply, error) {
	r, errs := s.ask([]*msg{m})
	return r[0], errs[0]
}

// ask sends messages of which each gives exactly one answer: an acknowledgement, an error, or an object.
func (s *sock) ask(msgs []*msg) ([]reply, []error) {
	replies, errs := make([]reply, len(msgs)), make([]error, len(msgs))
	for at := 0; at < len(msgs); at += chunk {
		part := msgs[at:min(at+chunk, len(msgs))]
		first, err := s.send(part)
		for got := 0; err == nil && got < len(part); {
			err = s.recv(func(seq uint32, flags uint16, r reply) bool {
				i := int(seq - first)
				if i < 0 || i >= len(part) { // late news of an earlier call that was given up
					return true
				}
				got++
				if r.typ == unix.NLMSG_ERROR {
					errs[at+i] = ackError(flags, r.data)
				} else {
					replies[at+i] = reply{r.typ, append([]byte(nil), r.data...)}
				}
				return true
			})
		}
		if err != nil {
			s.broken = true
			for i := range part {
				errs[at+i] = err
			}
		}
	}
	return replies, errs
}

// dump lists what a request with NLM_F_DUMP asks for. It starts over when the kernel says that what it listed changed
// meanwhile.
func (s *sock) dump(m *msg) ([]reply, error) {
	m.flag(unix.NLM_F_DUMP)
	for range 20 {
		out, torn, err := s.dumpOnce(m)
		if err != nil {
			return nil, err
		}
		if !torn {
			return out, nil
		}
	}
	return nil, errDumpRaced
}

func (s *sock) dumpOnce(m *msg) (out []reply, torn bool, err error) {
	first, err := s.send([]*msg{m})
	if err != nil {
		return nil, false, err
	}
	var fail error
	for done := false; !done; {
		err = s.recv(func(seq uint32, flags uint16, r reply) bool {
			if seq != first {
				return true
			}
			torn = torn || flags&unix.NLM_F_DUMP_INTR != 0
			switch r.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				fail = ackError(flags, r.data)
				done = true
				return false
			}
			out = append(out, reply{r.typ, append([]byte(nil), r.data...)})
			return true
		})
		if err != nil {
			s.broken = true
			return nil, false, err
		}
	}
	if errors.Is(fail, unix.EINTR) {
		return nil, true, nil
	}
	return out, torn, fail
}
