package udp

import (
	"encoding/binary"
	"fmt"
)

// The header that goes before each packet between nodes: a byte of version and flags, a zero byte, and the tag.
const (
	headerLen = 8
	version   = 1 << 4
	// flagPartial says that of the packet's TCP or UDP checksum there is only the pseudo header's part. The outer
	// checksum covers the rest, so nobody has to read the payload for it but a network card.
	flagPartial = 1
)

// tag tells packets for a node from what else may come in at its port.
type tag [6]byte

func putHeader(b []byte, flags byte, t tag) {
	b[0], b[1] = version|flags, 0
	copy(b[2:headerLen], t[:])
}

// openHeader takes the header off a datagram; ok is false where it is not for who has the tag.
func openHeader(b []byte, t tag) (pkt []byte, partial, ok bool) {
	if len(b) < headerLen || b[0]&^flagPartial != version || b[1] != 0 || tag(b[2:headerLen]) != t {
		return nil, false, false
	}
	return b[headerLen:], b[0]&flagPartial != 0, true
}

// datagram is one packet with its header before it, in two pieces of which the second may be empty.
type datagram struct{ a, b []byte }

func (d datagram) len() int { return len(d.a) + len(d.b) }

// splitter turns what the device gives into datagrams: each is a packet of its own, so that one that is lost costs one
// segment. Payloads stay where they are, headers of all but the first go into a buffer.
type splitter struct{ heads []byte }

// maxHeads is enough for the headers of the largest packet in the smallest usual segments; what needs more is dropped.
const maxHeads = 64 << 10

func newSplitter() *splitter { return &splitter{make([]byte, 0, 2*maxHeads)} }

// reset forgets the datagrams that were made.
func (s *splitter) reset() { s.heads = s.heads[:0] }

// full reports whether there may be no room for another packet's headers.
func (s *splitter) full() bool { return cap(s.heads)-len(s.heads) < maxHeads }

// split appends the datagrams of what was read from the device: a virtio header and the packet p, which it changes.
func (s *splitter) split(buf []byte, p packet, t tag, out []datagram) ([]datagram, error) {
	v, pkt := parseVnet(buf), buf[vnetLen:]
	start, off := int(v.csumStart), int(v.csumOff)
	partial := v.flags&vnetPartial != 0
	if partial && (start < p.ipLen || start+off+2 > len(pkt)) {
		return out, errMalformed
	}
	// Whether the other side can tell where the checksum is.
	plain := p.transport != 0 && start == p.ipLen && off == csumAt(p.transport)
	if v.gso&^gsoECN == gsoNone {
		var flags byte
		if partial && plain {
			flags = flagPartial
		} else if partial {
			complete(pkt, nil, start, off)
		}
		putHeader(buf[vnetLen-headerLen:], flags, t)
		return append(out, datagram{a: buf[vnetLen-headerLen:]}), nil
	}
	proto := byte(protoTCP)
	switch v.gso &^ gsoECN {
	case gsoTCP4, gsoTCP6:
	case gsoUDP:
		proto = protoUDP
	default:
		return out, fmt.Errorf("segmentation of kind %d is not known", v.gso)
	}
	n := 0
	if partial {
		n = transportLen(proto, pkt[start:])
	}
	if n == 0 || off != csumAt(proto) || v.gsoSize == 0 {
		return out, errMalformed
	}
	g := gso{p: p, proto: proto, start: start, head: start + n, size: int(v.gsoSize), plain: plain, tag: t}
	return s.segments(buf, g, out)
}

// gso is a packet that is to be cut up.
type gso struct {
	p           packet
	proto       byte
	start, head int // where the transport's header begins and ends
	size        int // of a segment's payload
	plain       bool
	tag         tag
}

func (s *splitter) segments(buf []byte, g gso, out []datagram) ([]datagram, error) {
	pkt := buf[vnetLen:]
	payload := len(pkt) - g.head
	count := max(1, (payload+g.size-1)/g.size)
	if (count-1)*(headerLen+g.head) > cap(s.heads)-len(s.heads) {
		return out, fmt.Errorf("%d segments with headers of %d bytes are too many", count, g.head)
	}
	first := len(out)
	out = append(out, datagram{}) // made last, as the others copy its header
	for i := 1; i < count; i++ {
		at := len(s.heads)
		s.heads = append(s.heads[:at+headerLen], pkt[:g.head]...)
		d := datagram{s.heads[at:len(s.heads):len(s.heads)], pkt[g.head+i*g.size : g.head+min((i+1)*g.size, payload)]}
		g.segment(d.a, d.b, i, i == count-1, len(pkt))
		out = append(out, d)
	}
	end := vnetLen + g.head + min(g.size, payload)
	whole := buf[vnetLen-headerLen : end]
	g.segment(whole[:headerLen+g.head], whole[headerLen+g.head:], 0, count == 1, len(pkt))
	out[first] = datagram{a: whole}
	return out, nil
}

// segment makes the headers of segment number i of a packet that was length bytes long.
func (g *gso) segment(head, body []byte, i int, last bool, length int) {
	var flags byte
	if g.plain {
		flags = flagPartial
	}
	putHeader(head, flags, g.tag)
	head = head[headerLen:]
	resize(head, g.p.v6, g.p.ipLen, len(head)+len(body), i)
	t := head[g.start:]
	if g.proto == protoTCP {
		binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(i*g.size))
		if !last {
			t[tcpFlags] &^= tcpFIN | tcpPSH
		}
		if i > 0 {
			t[tcpFlags] &^= tcpCWR // said once (RFC 3168 section 6.1.2)
		}
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)+len(body)))
	}
	resum(t[csumAt(g.proto):], length-g.start, len(t)+len(body))
	if !g.plain {
		complete(head, body, g.start, csumAt(g.proto))
	}
}
