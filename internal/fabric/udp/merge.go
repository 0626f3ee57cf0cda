package udp

import (
	"bytes"
	"encoding/binary"
)

// maxRun is the largest packet that is made from several.
const maxRun = 65535

// merger puts consecutive packets of one flow together again, for one write to the device. It keeps one run of packets at
// a time, so that no packet overtakes another, and uses their memory until it is flushed.
type merger struct {
	// emit writes one packet: the virtio header and then the pieces.
	emit func(head []byte, pieces [][]byte)
	// udp says that the device takes UDP packets of several segments (TUN_F_USO4).
	udp bool

	p      packet
	pieces [][]byte // the first packet, and then payloads
	length int      // of the packet that they make
	size   int      // of the first payload, and so of all but the last
	last   byte     // TCP flags that the last one brought
	closed bool     // the last payload is shorter, or ends something: nothing can follow
	vnet   [vnetLen]byte
}

// add takes a packet; partial says that its checksum is (see flagPartial).
func (m *merger) add(b []byte, p packet, partial bool) {
	if len(m.pieces) > 0 && partial && !m.closed && m.follows(b, p) {
		payload := b[p.headLen:]
		m.pieces = append(m.pieces, payload)
		m.length += len(payload)
		m.note(b, p)
		return
	}
	m.flush()
	if !partial {
		clear(m.vnet[:])
		m.pieces = append(m.pieces, b)
		m.write()
		return
	}
	m.p, m.length, m.size, m.last, m.closed = p, len(b), len(b)-p.headLen, 0, false
	m.pieces = append(m.pieces, b)
	if m.size == 0 || p.transport == protoUDP && !m.udp || p.transport == protoTCP && b[p.ipLen+tcpFlags]&^(tcpPSH|tcpFIN) != tcpACK {
		m.closed = true
		return
	}
	m.note(b, p)
}

// note looks whether anything can come after a packet of the run.
func (m *merger) note(b []byte, p packet) {
	m.closed = len(b)-p.headLen < m.size
	if p.transport == protoTCP {
		m.last = b[p.ipLen+tcpFlags] & (tcpPSH | tcpFIN)
		m.closed = m.closed || m.last != 0
	}
}

// follows reports whether a packet can be told from the run's headers and its place in it.
func (m *merger) follows(b []byte, p packet) bool {
	payload, first := len(b)-p.headLen, m.pieces[0]
	if p != m.p || payload == 0 || payload > m.size || m.length+payload > maxRun || len(m.pieces) >= maxPieces {
		return false
	}
	if p.v6 {
		if !bytes.Equal(first[:4], b[:4]) || !bytes.Equal(first[6:40], b[6:40]) {
			return false
		}
	} else {
		const dontFragment = 0x40
		if first[1] != b[1] || !bytes.Equal(first[6:10], b[6:10]) || !bytes.Equal(first[12:p.ipLen], b[12:p.ipLen]) {
			return false
		}
		// Without it the identification means something: each is the next.
		id := binary.BigEndian.Uint16(first[4:]) + uint16(len(m.pieces))
		if b[6]&dontFragment == 0 && binary.BigEndian.Uint16(b[4:]) != id {
			return false
		}
	}
	f, t := first[p.ipLen:], b[p.ipLen:p.headLen]
	if p.transport == protoUDP {
		return bytes.Equal(f[:4], t[:4])
	}
	seq := binary.BigEndian.Uint32(f[4:]) + uint32(m.length-p.headLen)
	return bytes.Equal(f[:4], t[:4]) && binary.BigEndian.Uint32(t[4:]) == seq && bytes.Equal(f[8:13], t[8:13]) &&
		t[tcpFlags]&^(tcpPSH|tcpFIN) == tcpACK && bytes.Equal(f[14:16], t[14:16]) && bytes.Equal(f[18:p.headLen-p.ipLen], t[18:])
}

// flush writes what there is.
func (m *merger) flush() {
	if len(m.pieces) == 0 {
		return
	}
	first, p := m.pieces[0], m.p
	v := vnet{flags: vnetPartial, csumStart: uint16(p.ipLen), csumOff: uint16(csumAt(p.transport))}
	if len(m.pieces) > 1 {
		v.headLen, v.gsoSize = uint16(p.headLen), uint16(m.size)
		v.gso = gsoUDP
		t := first[p.ipLen:]
		if p.transport == protoTCP {
			v.gso = gsoTCP4
			if p.v6 {
				v.gso = gsoTCP6
			}
			t[tcpFlags] |= m.last
		} else {
			binary.BigEndian.PutUint16(t[4:], uint16(m.length-p.ipLen))
		}
		resize(first, p.v6, p.ipLen, m.length, 0)
		resum(t[csumAt(p.transport):], len(first)-p.ipLen, m.length-p.ipLen)
	}
	v.put(m.vnet[:])
	m.write()
}

func (m *merger) write() {
	m.emit(m.vnet[:], m.pieces)
	clear(m.pieces)
	m.pieces = m.pieces[:0]
}
