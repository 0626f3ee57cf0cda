package udp

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxTrain is the most that a system call sends to one peer as segments of one datagram: what fits one of IPv4.
	maxTrain = 65507
	// maxSegments of a train: what kernels before 6.9 take (UDP_MAX_SEGMENTS).
	maxSegments = 64
	// maxPieces of a packet that is written or a train that is sent (UIO_MAXIOV allows 1024).
	maxPieces = 2 * maxSegments
)

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control makes a control message (cmsg(3)).
func control(level, kind int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// train is datagrams of one size, of which the last may be shorter, to one peer: the kernel takes them as one
// (UDP_SEGMENT, kernel 4.18) and a card or the last step before it cuts them up.
type train struct {
	to     *peer
	size   int
	length int
	from   int // its first datagram
	count  int
	closed bool
}

// sender collects datagrams and sends them by as few system calls as possible, in their order.
type sender struct {
	fd        int
	segment   bool // the kernel has UDP_SEGMENT, as far as is known
	datagrams []datagram
	trains    []train
	msgs      []mmsghdr
	iovs      []unix.Iovec
	controls  []byte
	stats     *counters
}

var segmentSpace = unix.CmsgSpace(2)

func newSender(fd int, stats *counters) *sender { return &sender{fd: fd, segment: true, stats: stats} }

// add takes a datagram; its memory is used until flush.
func (s *sender) add(to *peer, d datagram) {
	s.datagrams = append(s.datagrams, d)
	n := d.len()
	if len(s.trains) > 0 && s.segment {
		t := &s.trains[len(s.trains)-1]
		if t.to == to && !t.closed && n <= t.size && t.length+n <= maxTrain && t.count < maxSegments {
			t.length += n
			t.count++
			t.closed = n < t.size
			return
		}
	}
	s.trains = append(s.trains, train{to: to, size: n, length: n, from: len(s.datagrams) - 1, count: 1})
}

// flush sends all. What can't be sent is dropped, as packets are.
func (s *sender) flush() {
	s.build()
	for at := 0; at < len(s.msgs); {
		n, err := sendmmsg(s.fd, s.msgs[at:])
		for i := range n {
			s.stats.sent.Add(uint64(s.trains[at+i].count))
		}
		at += n
		if err == nil || at >= len(s.msgs) || errors.Is(err, unix.EINTR) {
			continue
		}
		t := &s.trains[at]
		at++
		if t.count == 1 {
			s.stats.unsent.Add(1)
			continue
		}
		// EIO: the way out has no checksum offload. EINVAL, EMSGSIZE: segments are larger than its MTU and need to be cut,
		// which the kernel does with single datagrams only.
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOPROTOOPT) {
			s.segment = false
		}
		s.single(t)
	}
	clear(s.datagrams)
	s.datagrams, s.trains = s.datagrams[:0], s.trains[:0]
}

// single sends the datagrams of a train one by one.
func (s *sender) single(t *train) {
	one := sender{fd: s.fd, stats: s.stats, datagrams: s.datagrams[t.from : t.from+t.count]}
	for i := range one.datagrams {
		one.trains = append(one.trains, train{to: t.to, from: i, count: 1})
	}
	one.flush()
}

func (s *sender) build() {
	s.msgs, s.iovs, s.controls = s.msgs[:0], s.iovs[:0], s.controls[:0]
	for _, d := range s.datagrams {
		s.iovs = appendIovec(appendIovec(s.iovs, d.a), d.b)
	}
	// The slices may have moved while they grew: point into them when they are whole.
	for i := range s.trains {
		t := &s.trains[i]
		s.controls = append(s.controls, t.to.source...)
		if t.count > 1 {
			c := segmentControl
			*(*uint16)(unsafe.Pointer(&c[unix.CmsgLen(0)])) = uint16(t.size)
			s.controls = append(s.controls, c[:segmentSpace]...)
		}
	}
	iov, ctl := 0, 0
	for i := range s.trains {
		t := &s.trains[i]
		var m mmsghdr
		m.hdr.Name, m.hdr.Namelen = &t.to.name[0], uint32(len(t.to.name))
		n := 0
		for _, d := range s.datagrams[t.from : t.from+t.count] {
			n++
			if len(d.b) > 0 {
				n++
			}
		}
		m.hdr.Iov = &s.iovs[iov]
		m.hdr.SetIovlen(n)
		iov += n
		size := len(t.to.source)
		if t.count > 1 {
			size += segmentSpace
		}
		m.hdr.Control = &s.controls[ctl]
		m.hdr.SetControllen(size)
		ctl += size
		s.msgs = append(s.msgs, m)
	}
}

// segmentControl is the control message UDP_SEGMENT, for a size to be put in.
var segmentControl = [32]byte(append(control(unix.IPPROTO_UDP, unix.UDP_SEGMENT, make([]byte, 2)), make([]byte, 32)...))

func appendIovec(to []unix.Iovec, b []byte) []unix.Iovec {
	if len(b) == 0 {
		return to
	}
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return append(to, v)
}

// sendmmsg gives how many of the messages were taken, and the error of the first that was not.
func sendmmsg(fd int, msgs []mmsghdr) (int, error) {
	n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
