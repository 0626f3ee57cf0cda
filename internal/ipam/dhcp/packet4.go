package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Messages of DHCPv4 (RFC 2132 section 9.6).
const (
	msgDiscover = 1
	msgOffer    = 2
	msgRequest  = 3
	msgACK      = 5
	msgNAK      = 6
	msgRelease  = 7
)

// Options of DHCPv4 (RFC 2132; 119: RFC 3397, 121: RFC 3442).
const (
	optMask        = 1
	optRouters     = 3
	optDNS         = 6
	optDomain      = 15
	optMTU         = 26
	optStaticRoute = 33
	optNTP         = 42
	optRequested   = 50
	optLeaseTime   = 51
	optOverload    = 52
	optMessage     = 53
	optServer      = 54
	optWanted      = 55
	optText        = 56
	optMaxSize     = 57
	optRenewTime   = 58
	optRebindTime  = 59
	optClientID    = 61
	optSearch      = 119
	optClassless   = 121
	optEnd         = 255
)

// The fixed part of a message (RFC 2131 section 2), with the cookie that begins the options.
const (
	fixed4   = 240
	minSize4 = 300 // some relays drop what is shorter than BOOTP's
	// maxSize4 is the largest message that we say we take: one that needs no fragments.
	maxSize4 = 1400
	cookie4  = 0x63825363
)

// packet4 is a message of DHCPv4.
type packet4 struct {
	reply     bool
	xid       uint32
	secs      uint16
	broadcast bool
	// client is the address that a client has and your the one that it is given; the zero Addr for none.
	client, your netip.Addr
	mac          [6]byte
	options      []option4
}

// option4 is an option; one that came in several parts is one (RFC 3396).
type option4 struct {
	code  byte
	value []byte
}

func (p *packet4) option(code byte) []byte {
	for _, o := range p.options {
		if o.code == code {
			return o.value
		}
	}
	return nil
}

// set adds an option, in place of one with the same code.
func (p *packet4) set(code byte, value ...byte) {
	p.options = slices.DeleteFunc(p.options, func(o option4) bool { return o.code == code })
	p.options = append(p.options, option4{code, value})
}

// kind is the message's type; 0 where it has none.
func (p *packet4) kind() byte {
	if v := p.option(optMessage); len(v) == 1 {
		return v[0]
	}
	return 0
}

func (p *packet4) marshal() []byte {
	b := make([]byte, fixed4, minSize4)
	b[0], b[1], b[2] = 1, 1, 6 // to a server, Ethernet
	if p.reply {
		b[0] = 2
	}
	binary.BigEndian.PutUint32(b[4:], p.xid)
	binary.BigEndian.PutUint16(b[8:], p.secs)
	if p.broadcast {
		b[10] = 0x80
	}
	for at, a := range map[int]netip.Addr{12: p.client, 16: p.your} {
		if a.Is4() {
			copy(b[at:], a.AsSlice())
		}
	}
	copy(b[28:], p.mac[:])
	binary.BigEndian.PutUint32(b[236:], cookie4)
	for _, o := range p.options {
		rest := o.value
		for {
			part := rest[:min(len(rest), 255)]
			b = append(append(b, o.code, byte(len(part))), part...)
			if rest = rest[len(part):]; len(rest) == 0 {
				break
			}
		}
	}
	b = append(b, optEnd)
	return append(b, make([]byte, max(0, minSize4-len(b)))...)
}

func parse4(b []byte) (*packet4, error) {
	switch {
	case len(b) < fixed4:
		return nil, fmt.Errorf("message: has %d bytes; want %d or more", len(b), fixed4)
	case b[0] != 1 && b[0] != 2:
		return nil, fmt.Errorf("message: operation %d: is not known; want 1 or 2", b[0])
	case b[1] != 1 || b[2] != 6:
		return nil, fmt.Errorf("message: hardware type %d with addresses of %d bytes: want Ethernet's", b[1], b[2])
	case binary.BigEndian.Uint32(b[236:]) != cookie4:
		return nil, errors.New("message: has no options of DHCP")
	}
	p := &packet4{reply: b[0] == 2, xid: binary.BigEndian.Uint32(b[4:]), secs: binary.BigEndian.Uint16(b[8:]),
		broadcast: b[10]&0x80 != 0, client: addr4(b[12:16]), your: addr4(b[16:20])}
	copy(p.mac[:], b[28:])
	if err := p.parseOptions(b[fixed4:]); err != nil {
		return nil, err
	}
	// The fields for a boot file's name and a server's name may hold more options.
	if v := p.option(optOverload); len(v) == 1 {
		if v[0]&1 != 0 {
			if err := p.parseOptions(b[108:236]); err != nil {
				return nil, err
			}
		}
		if v[0]&2 != 0 {
			if err := p.parseOptions(b[44:108]); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

func (p *packet4) parseOptions(b []byte) error {
	for len(b) > 0 {
		code := b[0]
		if code == optEnd {
			return nil
		}
		if code == 0 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return fmt.Errorf("message: option %d is cut off", code)
		}
		value := b[2 : 2+int(b[1])]
		b = b[2+int(b[1]):]
		if i := slices.IndexFunc(p.options, func(o option4) bool { return o.code == code }); i >= 0 {
			p.options[i].value = append(slices.Clip(p.options[i].value), value...)
		} else {
			p.options = append(p.options, option4{code, value})
		}
	}
	return nil
}

// addr4 reads an address; the zero Addr for 0.0.0.0.
func addr4(b []byte) netip.Addr {
	a := netip.AddrFrom4([4]byte(b))
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// Ports of DHCPv4.
const (
	serverPort4 = 67
	clientPort4 = 68
)

// everybody is the address that all on the link listen to.
var everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// frame4 puts a message to a server into IPv4 and UDP headers. from may be the zero Addr.
func frame4(msg []byte, from, to netip.Addr) []byte {
	b := make([]byte, 28, 28+len(msg))
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(msg)))
	b[8], b[9] = 64, 17
	if from.Is4() {
		copy(b[12:], from.AsSlice())
	}
	copy(b[16:], to.AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^sum16(b[:20], 0))
	udp := b[20:28]
	binary.BigEndian.PutUint16(udp[0:], clientPort4)
	binary.BigEndian.PutUint16(udp[2:], serverPort4)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(msg)))
	b = append(b, msg...)
	check := ^sum16(b[20:], uint32(sum16(b[12:20], 17+uint32(8+len(msg)))))
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(b[26:], check)
	return b
}

// sum16 is the sum of RFC 1071.
func sum16(b []byte, sum uint32) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// unframe4 takes the headers off a packet to a client. The sum of UDP is not looked at: a server on the same machine
// leaves it to hardware that the packet never passes.
func unframe4(b []byte) (msg []byte, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != 17 || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return nil, false
	}
	head, size := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || size > len(b) || size < head+8 {
		return nil, false
	}
	udp := b[head:size]
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != clientPort4 || n < 8 || n > len(udp) {
		return nil, false
	}
	return udp[8:n], true
}
