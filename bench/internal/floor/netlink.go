package floor

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// request is netlink messages under construction, one behind the other.
type request struct {
	b     []byte
	start int // of the last message
	seq   uint32
}

// begin begins a message with the fixed part of its family.
func (r *request) begin(typ, flags uint16, fixed ...byte) {
	r.end()
	r.start = len(r.b)
	r.seq++
	r.b = append(r.b, make([]byte, unix.NLMSG_HDRLEN)...)
	h := r.b[r.start:]
	native.PutUint16(h[4:], typ)
	native.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	native.PutUint32(h[8:], r.seq)
	r.b = append(r.b, fixed...)
}

// end writes the length of the last message.
func (r *request) end() {
	if len(r.b) > 0 {
		native.PutUint32(r.b[r.start:], uint32(len(r.b)-r.start))
	}
}

// ack has the last message acknowledged. The kernel answers one that fails in any case.
func (r *request) ack() {
	native.PutUint16(r.b[r.start+6:], native.Uint16(r.b[r.start+6:])|unix.NLM_F_ACK)
}

func (r *request) attr(typ uint16, data []byte) {
	r.b = native.AppendUint16(r.b, uint16(4+len(data)))
	r.b = native.AppendUint16(r.b, typ)
	r.b = append(r.b, data...)
	for len(r.b)%4 != 0 {
		r.b = append(r.b, 0)
	}
}

func (r *request) str(typ uint16, s string)  { r.attr(typ, append([]byte(s), 0)) }
func (r *request) u32(typ uint16, v uint32)  { r.attr(typ, native.AppendUint32(nil, v)) }
func (r *request) be32(typ uint16, v uint32) { r.attr(typ, binary.BigEndian.AppendUint32(nil, v)) }

func (r *request) nest(typ uint16, f func()) {
	at := len(r.b)
	r.attr(typ|unix.NLA_F_NESTED, nil)
	f()
	native.PutUint16(r.b[at:], uint16(len(r.b)-at))
}

// socket opens a netlink socket in the namespace of the calling thread. The kernel binds it with the first message.
func socket(protocol int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("netlink socket: %w", err)
	}
	return fd, nil
}

// Host keeps the netlink sockets of the machine's namespace, which is that of the thread that first uses each: closing one
// of nftables' has the kernel wait until all is freed that was deleted lately. The zero value is ready for use by one
// thread at a time.
type Host struct{ sockets map[int]int }

func (h *Host) socket(protocol int) (int, error) {
	if fd, ok := h.sockets[protocol]; ok {
		return fd, nil
	}
	fd, err := socket(protocol)
	if err != nil {
		return -1, err
	}
	if h.sockets == nil {
		h.sockets = map[int]int{}
	}
	h.sockets[protocol] = fd
	return fd, nil
}

// Close closes the sockets.
func (h *Host) Close() {
	for _, fd := range h.sockets {
		unix.Close(fd)
	}
	clear(h.sockets)
}

// do sends all messages at once, the last of them acknowledged, and takes the one answer: that acknowledgement, or the
// error of the first that failed.
func (r *request) do(fd int, what string) error {
	r.ack()
	return r.send(fd, what)
}

func (r *request) send(fd int, what string) error {
	r.end()
	if err := unix.Sendto(fd, r.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("%s: send: %w", what, err)
	}
	var buf [1024]byte
	n, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT)
	switch {
	case err != nil:
		return fmt.Errorf("%s: receive: %w", what, err)
	case n < unix.NLMSG_HDRLEN+4 || native.Uint16(buf[4:]) != unix.NLMSG_ERROR:
		return fmt.Errorf("%s: the kernel answers otherwise than by an acknowledgement", what)
	}
	if code := int32(native.Uint32(buf[unix.NLMSG_HDRLEN:])); code != 0 {
		return fmt.Errorf("%s: message %d: %w", what, native.Uint32(buf[8:]), unix.Errno(-code))
	}
	return nil
}

// index gives a link's number in the namespace of the socket.
func index(fd int, link string) (uint32, error) {
	ifr, err := unix.NewIfreq(link)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, fmt.Errorf("link %q: %w", link, err)
	}
	return ifr.Uint32(), nil
}
