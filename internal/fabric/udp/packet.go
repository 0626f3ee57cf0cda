package udp

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"net/netip"
)

// vnetLen is the length of struct virtio_net_hdr, which goes before each packet on the device (IFF_VNET_HDR).
const vnetLen = 10

// Of struct virtio_net_hdr (include/uapi/linux/virtio_net.h).
const (
	vnetPartial = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM: of the transport's checksum there is only the pseudo header's part
	gsoNone     = 0
	gsoTCP4     = 1
	gsoTCP6     = 4
	gsoUDP      = 5 // VIRTIO_NET_HDR_GSO_UDP_L4, kernel 6.2
	gsoECN      = 0x80
)

// vnet is struct virtio_net_hdr, in the machine's byte order.
type vnet struct {
	flags, gso                           uint8
	headLen, gsoSize, csumStart, csumOff uint16
}

func parseVnet(b []byte) vnet {
	n := binary.NativeEndian
	return vnet{b[0], b[1], n.Uint16(b[2:]), n.Uint16(b[4:]), n.Uint16(b[6:]), n.Uint16(b[8:])}
}

func (v vnet) put(b []byte) {
	n := binary.NativeEndian
	b[0], b[1] = v.flags, v.gso
	n.PutUint16(b[2:], v.headLen)
	n.PutUint16(b[4:], v.gsoSize)
	n.PutUint16(b[6:], v.csumStart)
	n.PutUint16(b[8:], v.csumOff)
}

const (
	protoTCP = 6
	protoUDP = 17

	// Of a TCP header: where the flags are, and which.
	tcpFlags = 13
	tcpFIN   = 0x01
	tcpPSH   = 0x08
	tcpACK   = 0x10
	tcpCWR   = 0x80
)

var errMalformed = errors.New("is no packet")

// packet is what can be told of an IP packet.
type packet struct {
	v6 bool
	// ipLen is the length of the IP header; of IPv6 without extensions.
	ipLen int
	// transport is protoTCP or protoUDP where such a header follows at once, whole and not in a fragment; else 0.
	transport byte
	// headLen is ipLen with the transport's header.
	headLen int
}

// parse looks at a packet that must be as long as it says.
func parse(b []byte) (packet, error) {
	p := packet{ipLen: 20}
	if len(b) < 20 {
		return p, errMalformed
	}
	var proto byte
	switch b[0] >> 4 {
	case 4:
		p.ipLen = int(b[0]&15) * 4
		if p.ipLen < 20 || p.ipLen > len(b) || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
			return p, errMalformed
		}
		if binary.BigEndian.Uint16(b[6:])&0x3fff == 0 { // no fragment
			proto = b[9]
		}
	case 6:
		p.v6, p.ipLen = true, 40
		if len(b) < 40 || int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) {
			return p, errMalformed
		}
		proto = b[6]
	default:
		return p, errMalformed
	}
	if n := transportLen(proto, b[p.ipLen:]); n > 0 {
		p.transport, p.headLen = proto, p.ipLen+n
	}
	return p, nil
}

// transportLen is the length of a whole TCP or UDP header at the beginning of b; 0 where there is none.
func transportLen(proto byte, b []byte) int {
	n := 0
	switch {
	case proto == protoTCP && len(b) >= 20:
		if n = int(b[12]>>4) * 4; n < 20 {
			n = 0
		}
	case proto == protoUDP && len(b) >= 8 && int(binary.BigEndian.Uint16(b[4:])) == len(b):
		n = 8
	}
	if n > len(b) {
		return 0
	}
	return n
}

// csumAt is where the checksum is in the header of a transport.
func csumAt(transport byte) int {
	if transport == protoTCP {
		return 16
	}
	return 6
}

// source and destination are the addresses of a packet that parse knows.
func (p packet) source(b []byte) netip.Addr {
	if p.v6 {
		return netip.AddrFrom16([16]byte(b[8:24]))
	}
	return netip.AddrFrom4([4]byte(b[12:16]))
}

func (p packet) destination(b []byte) netip.Addr {
	if p.v6 {
		return netip.AddrFrom16([16]byte(b[24:40]))
	}
	return netip.AddrFrom4([4]byte(b[16:20]))
}

// sum adds b to a ones' complement sum (RFC 1071), folded to 16 bits. What comes before b must be of even length.
func sum(b []byte, start uint16) uint16 {
	s, carry := uint64(start), uint64(0)
	for len(b) >= 32 {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), carry)
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	var last [8]byte
	copy(last[:], b)
	s, carry = bits.Add64(s, binary.BigEndian.Uint64(last[:]), carry)
	s, carry = bits.Add64(s, carry, 0)
	s += carry
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// add16 is the ones' complement sum of two numbers.
func add16(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s>>16 + s&0xffff)
}

// resum puts another number into what b, a sum, was made of.
func resum(b []byte, was, now int) {
	s := add16(binary.BigEndian.Uint16(b), ^uint16(was))
	binary.BigEndian.PutUint16(b, add16(s, uint16(now)))
}

// resize gives an IP header the length of its packet, with an identification that is id more.
func resize(head []byte, v6 bool, ipLen, length, id int) {
	if v6 {
		binary.BigEndian.PutUint16(head[4:], uint16(length-40))
		return
	}
	binary.BigEndian.PutUint16(head[2:], uint16(length))
	binary.BigEndian.PutUint16(head[4:], binary.BigEndian.Uint16(head[4:])+uint16(id))
	head[10], head[11] = 0, 0
	binary.BigEndian.PutUint16(head[10:], ^sum(head[:ipLen], 0))
}

// complete finishes a checksum, in the header head at start+off, that has only the pseudo header's part; body is what
// follows the header. What comes before body from start on is of even length.
func complete(head, body []byte, start, off int) {
	at := head[start+off:]
	c := ^sum(body, sum(head[start:], 0))
	if c == 0 && off == csumAt(protoUDP) {
		c = 0xffff // 0 would say that there is none
	}
	binary.BigEndian.PutUint16(at, c)
}
