package udp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	receiveBatch = 8
	// largest is the most that a datagram, or several that the kernel put together, can be.
	largest = 65536
)

// receiver takes datagrams from one socket and writes what is in them to the device.
type receiver struct {
	runner  *Runner
	fd      int
	tun     int
	merge   merger
	msgs    [receiveBatch]mmsghdr
	iovs    [receiveBatch]unix.Iovec
	names   [receiveBatch]unix.RawSockaddrInet6
	control [receiveBatch][64]byte
	buffers []byte
	out     []unix.Iovec
	failed  error // of the device
}

func newReceiver(r *Runner, fd int, dev *device) *receiver {
	in := &receiver{runner: r, fd: fd, tun: dev.fd, buffers: make([]byte, receiveBatch*largest)}
	in.merge.emit, in.merge.udp = in.write, dev.udp
	for i := range in.msgs {
		in.iovs[i].Base = &in.buffers[i*largest]
		in.iovs[i].SetLen(largest)
		h := &in.msgs[i].hdr
		h.Iov = &in.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&in.names[i]))
		h.Control = &in.control[i][0]
	}
	return in
}

// run takes what comes until stop can be read.
func (in *receiver) run(stop int) error {
	for {
		n, err := in.recv()
		switch {
		case errors.Is(err, unix.EAGAIN):
			if stopped, err := await(in.fd, stop); stopped || err != nil {
				return err
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		t := in.runner.table.Load()
		for i := range n {
			in.take(t, i)
		}
		in.merge.flush()
		if in.failed != nil {
			return in.failed
		}
	}
}

func (in *receiver) recv() (int, error) {
	for i := range in.msgs {
		h := &in.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(len(in.control[i]))
	}
	n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(in.fd), uintptr(unsafe.Pointer(&in.msgs[0])), receiveBatch, unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// take goes through the datagrams of one message.
func (in *receiver) take(t *table, i int) {
	b := in.buffers[i*largest:][:in.msgs[i].n]
	from := t.at[addrPort(&in.names[i])]
	if from == nil {
		in.runner.stats.strangers.Add(1)
		return
	}
	size := in.segmentSize(i)
	if size <= 0 {
		size = max(len(b), 1)
	}
	for len(b) > 0 {
		n := min(size, len(b))
		if pkt, p, partial, ok := admit(b[:n:n], from, t, in.runner.tag); ok {
			in.runner.stats.received.Add(1)
			in.merge.add(pkt, p, partial)
		} else {
			in.runner.stats.refused.Add(1)
		}
		b = b[n:]
	}
}

// admit takes the packet out of a datagram that a peer sent: it is for us, it is one, and it comes from the peer's blocks.
func admit(b []byte, from *peer, t *table, mine tag) (pkt []byte, p packet, partial, ok bool) {
	pkt, partial, ok = openHeader(b, mine)
	if !ok {
		return nil, p, false, false
	}
	p, err := parse(pkt)
	if err != nil || partial && p.transport == 0 || t.find(p.source(pkt)) != from {
		return nil, p, false, false
	}
	return pkt, p, partial, true
}

// segmentSize is the size of the datagrams that the kernel put together (UDP_GRO, kernel 5.0); 0 for a single one.
func (in *receiver) segmentSize(i int) int {
	b := in.control[i][:in.msgs[i].hdr.Controllen]
	for len(b) >= unix.CmsgLen(4) {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO {
			return int(int32(binary.NativeEndian.Uint32(b[unix.CmsgLen(0):])))
		}
		n := unix.CmsgSpace(int(h.Len) - unix.CmsgLen(0))
		if n <= 0 || n > len(b) {
			break
		}
		b = b[n:]
	}
	return 0
}

// addrPort is where a message came from.
func addrPort(name *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&name.Port))
	p := binary.BigEndian.Uint16(port[:])
	if name.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), p)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), p)
}

// write gives the device one packet.
func (in *receiver) write(head []byte, pieces [][]byte) {
	in.out = appendIovec(in.out[:0], head)
	for _, b := range pieces {
		in.out = appendIovec(in.out, b)
	}
	for {
		_, _, e := unix.Syscall(unix.SYS_WRITEV, uintptr(in.tun), uintptr(unsafe.Pointer(&in.out[0])), uintptr(len(in.out)))
		switch e {
		case 0:
			return
		case unix.EINTR:
			continue
		case unix.EBADFD:
			in.failed = errGone
		}
		in.runner.stats.unwritten.Add(uint64(len(pieces)))
		return
	}
}
