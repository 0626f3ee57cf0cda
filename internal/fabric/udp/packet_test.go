package udp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// made says what a packet of a test is like.
type made struct {
	v6        bool
	proto     byte
	payload   []byte
	seq       uint32
	flags     byte
	options   []byte // of TCP
	ipOptions []byte // of IPv4
	hopByHop  bool   // an IPv6 extension
	id        uint16
	fragments bool // without "don't fragment"
	src, dst  netip.Addr
}

var (
	near4, far4 = netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.2.0.3")
	near6, far6 = netip.MustParseAddr("fd00::1:2"), netip.MustParseAddr("fd00::2:3")
)

// build makes the packet, with the pseudo header's sum for a checksum; start is where the transport's header is.
func (m made) build() (b []byte, start int) {
	if !m.src.IsValid() {
		m.src, m.dst = near4, far4
		if m.v6 {
			m.src, m.dst = near6, far6
		}
	}
	var t []byte
	if m.proto == protoTCP {
		t = make([]byte, 20)
		binary.BigEndian.PutUint16(t, 5000)
		binary.BigEndian.PutUint16(t[2:], 5001)
		binary.BigEndian.PutUint32(t[4:], m.seq)
		binary.BigEndian.PutUint32(t[8:], 77)
		t[12], t[13] = byte(20+len(m.options))/4<<4, m.flags
		binary.BigEndian.PutUint16(t[14:], 4000)
		t = append(t, m.options...)
	} else {
		t = make([]byte, 8)
		binary.BigEndian.PutUint16(t, 5000)
		binary.BigEndian.PutUint16(t[2:], 5001)
		binary.BigEndian.PutUint16(t[4:], uint16(8+len(m.payload)))
	}
	t = append(t, m.payload...)
	pseudo := append(m.src.AsSlice(), m.dst.AsSlice()...)
	pseudo = append(pseudo, 0, m.proto, byte(len(t)>>8), byte(len(t)))
	binary.BigEndian.PutUint16(t[csumAt(m.proto):], slowSum(pseudo))
	if m.v6 {
		b = append([]byte{0x60, 1, 2, 3, 0, 0, m.proto, 61}, pseudo[:32]...)
		if m.hopByHop {
			b[6] = 0
			b = append(b, m.proto, 0, 1, 4, 0, 0, 0, 0)
		}
		start = len(b)
		b = append(b, t...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		return b, start
	}
	b = append([]byte{byte(0x45 + len(m.ipOptions)/4), 3, 0, 0, 0, 0, 0x40, 0, 62, m.proto, 0, 0}, pseudo[:8]...)
	b = append(b, m.ipOptions...)
	start = len(b)
	if m.fragments {
		b[6] = 0
	}
	binary.BigEndian.PutUint16(b[4:], m.id)
	binary.BigEndian.PutUint16(b[2:], uint16(start+len(t)))
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b))
	return append(b, t...), start
}

// slowSum is RFC 1071 as it is written there.
func slowSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		n := uint32(b[i]) << 8
		if i+1 < len(b) {
			n |= uint32(b[i+1])
		}
		s += n
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// same compares two ones' complement numbers, of which 0 and 0xffff are one.
func same(a, b uint16) bool { return a%0xffff == b%0xffff }

func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
			if n%3 == 0 {
				b[i] = 0xff
			}
		}
		if got, want := sum(b, 0), slowSum(b); !same(got, want) {
			t.Errorf("sum of %d bytes is %#x, want %#x", n, got, want)
		}
		if got, want := sum(b, 0xfffe), slowSum(append([]byte{0xff, 0xfe}, b...)); !same(got, want) {
			t.Errorf("sum of %d bytes after another is %#x, want %#x", n, got, want)
		}
	}
}

// random makes a packet; its payload is longer than a segment more often than not.
func random(r *rand.Rand) made {
	m := made{v6: r.IntN(2) == 0, proto: protoTCP, seq: r.Uint32(), id: uint16(r.Uint32()), flags: tcpACK, fragments: r.IntN(4) == 0}
	if r.IntN(3) == 0 {
		m.proto = protoUDP
	}
	m.payload = make([]byte, r.IntN(60000)+1)
	if r.IntN(3) == 0 {
		m.payload = m.payload[:min(len(m.payload), 1+r.IntN(1400))]
	}
	for i := range m.payload {
		m.payload[i] = byte(r.Uint32())
	}
	m.options = bytes.Repeat([]byte{1}, 4*r.IntN(11))
	if r.IntN(4) == 0 {
		m.ipOptions = bytes.Repeat([]byte{1}, 4*r.IntN(11))
	}
	m.hopByHop = r.IntN(6) == 0
	m.flags |= []byte{0, tcpPSH, tcpFIN, tcpPSH | tcpFIN}[r.IntN(4)]
	return m
}

// read makes of a packet what the device would give.
func read(pkt []byte, start int, m made, size int) []byte {
	v := vnet{flags: vnetPartial, csumStart: uint16(start), csumOff: uint16(csumAt(m.proto))}
	head := start + 8
	if m.proto == protoTCP {
		head = start + 20 + len(m.options)
	}
	if len(pkt)-head > size {
		v.gsoSize, v.gso = uint16(size), gsoUDP
		if m.proto == protoTCP {
			v.gso = gsoTCP4
			if m.v6 {
				v.gso = gsoTCP6
			}
		}
	}
	b := make([]byte, vnetLen, vnetLen+len(pkt))
	v.put(b)
	return append(b, pkt...)
}

// reference cuts a packet up in the plain way: every segment is built anew.
func reference(m made, size int) (out [][]byte) {
	payload := m.payload
	for i := 0; ; i++ {
		s := m
		s.payload = payload[:min(size, len(payload))]
		payload = payload[len(s.payload):]
		s.seq += uint32(i * size)
		s.id += uint16(i)
		if len(payload) > 0 {
			s.flags &^= tcpPSH | tcpFIN
		}
		if i > 0 {
			s.flags &^= tcpCWR
		}
		b, start := s.build()
		if m.hopByHop && m.v6 { // it is nothing that the other side could finish
			t := b[start:]
			c := ^slowSum(t)
			if c == 0 && m.proto == protoUDP {
				c = 0xffff
			}
			binary.BigEndian.PutUint16(t[csumAt(m.proto):], c)
		}
		out = append(out, b)
		if len(payload) == 0 {
			return out
		}
	}
}

func written(m *merger) *[][]byte {
	var out [][]byte
	m.emit = func(head []byte, pieces [][]byte) { out = append(out, slices.Concat(head, slices.Concat(pieces...))) }
	return &out
}

var ours6 = tag{1, 2, 3, 4, 5, 6}

// TestSplitMerge: what is split is what a plain way gives, and putting it together gives what was read.
func TestSplitMerge(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	cut, together := 0, 0
	for n := range 3000 {
		m, size := random(r), 500+r.IntN(900)
		if n%5 == 0 {
			m.flags |= tcpCWR
		}
		pkt, start := m.build()
		buf := read(pkt, start, m, size)
		was := bytes.Clone(buf)
		p, err := parse(pkt)
		if err != nil {
			t.Fatal(err)
		}
		split, err := newSplitter().split(buf, p, ours6, nil)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		want := reference(m, size)
		if len(split) != len(want) {
			t.Fatalf("%d segments, want %d", len(split), len(want))
		}
		cut += len(split) - 1
		merge := merger{udp: true}
		out := written(&merge)
		for i, d := range split {
			whole := slices.Concat(d.a, d.b)
			pkt, partial, ok := openHeader(whole, ours6)
			if !ok || !equal(pkt, want[i], start+csumAt(m.proto)) {
				t.Fatalf("segment %d of %d of %v:\n%x, want\n%x", i, len(split), m.proto, pkt[:80], want[i][:80])
			}
			p, err := parse(pkt)
			if err != nil {
				t.Fatal(err)
			}
			merge.add(pkt, p, partial)
		}
		merge.flush()
		if m.hopByHop && m.v6 || m.proto == protoTCP && m.flags&tcpCWR != 0 {
			continue // is not put together as it was
		}
		if len(split) <= maxPieces {
			together++
			v := parseVnet(was)
			if len(*out) != 1 || !equal((*out)[0][vnetLen:], was[vnetLen:], start+csumAt(m.proto)) {
				t.Fatalf("%d segments of %+v became %d packets", len(split), v, len(*out))
			}
			if got := parseVnet((*out)[0]); got.gso != v.gso || got.gsoSize != v.gsoSize || got.csumStart != v.csumStart || got.flags != v.flags {
				t.Fatalf("came as %+v, was %+v", got, v)
			}
		}
	}
	if cut < 10000 || together < 1500 {
		t.Errorf("only %d cuts and %d put together again: the test says little", cut, together)
	}
}

// equal compares packets; their checksums, at an offset, as numbers.
func equal(a, b []byte, at int) bool {
	if len(a) != len(b) || !same(binary.BigEndian.Uint16(a[at:]), binary.BigEndian.Uint16(b[at:])) {
		return false
	}
	if a[0]>>4 == 4 && slowSum(a[:int(a[0]&15)*4]) != 0xffff {
		return false
	}
	a, b = bytes.Clone(a), bytes.Clone(b)
	for _, p := range [][]byte{a, b} {
		p[at], p[at+1] = 0, 0
		if p[0]>>4 == 4 {
			p[10], p[11] = 0, 0
		}
	}
	return bytes.Equal(a, b)
}

// TestMergeKeepsApart: packets that are not each other's next stay what they are, in their order.
func TestMergeKeepsApart(t *testing.T) {
	full := bytes.Repeat([]byte{7}, 1000)
	first := made{proto: protoTCP, payload: full, flags: tcpACK, seq: 100, id: 9}
	next := func(f func(*made)) made {
		m := first
		m.seq, m.id = 1100, 10
		f(&m)
		return m
	}
	edit := func(at int, v byte) func([]byte) { return func(b []byte) { b[at] = v } }
	for _, c := range []struct {
		what   string
		second made
		change func([]byte)
		one    bool
	}{
		{"the next", next(func(*made) {}), nil, true},
		{"a shorter last", next(func(m *made) { m.payload = full[:3] }), nil, true},
		{"one with PSH", next(func(m *made) { m.flags |= tcpPSH }), nil, true},
		{"one that leaves a gap", next(func(m *made) { m.seq++ }), nil, false},
		{"the same again", next(func(m *made) { m.seq = 100 }), nil, false},
		{"a longer one", next(func(m *made) { m.payload = append([]byte{1}, full...) }), nil, false},
		{"an empty one", next(func(m *made) { m.payload = nil }), nil, false},
		{"a reset", next(func(m *made) { m.flags = 4 | tcpACK }), nil, false},
		{"an urgent one", next(func(m *made) { m.flags = 0x20 | tcpACK }), nil, false},
		{"one with CWR", next(func(m *made) { m.flags |= tcpCWR }), nil, false},
		{"one with options", next(func(m *made) { m.options = []byte{1, 1, 1, 1} }), nil, false},
		{"another class", next(func(*made) {}), edit(1, 9), false},
		{"another TTL", next(func(*made) {}), edit(8, 9), false},
		{"another source", next(func(*made) {}), edit(15, 9), false},
		{"another port", next(func(*made) {}), edit(20, 9), false},
		{"another acknowledgement", next(func(*made) {}), edit(31, 9), false},
		{"another window", next(func(*made) {}), edit(35, 9), false},
		{"a fragment", next(func(*made) {}), edit(6, 0x20), false},
	} {
		merge := merger{udp: true}
		out := written(&merge)
		var want [][]byte
		for i, m := range []made{first, c.second} {
			b, _ := m.build()
			if i == 1 && c.change != nil {
				c.change(b)
			}
			want = append(want, bytes.Clone(b))
			p, err := parse(b)
			if err != nil {
				t.Fatal(err)
			}
			merge.add(b, p, p.transport != 0)
		}
		merge.flush()
		if c.one {
			if len(*out) != 1 {
				t.Errorf("%s: %d packets, want one", c.what, len(*out))
			}
			continue
		}
		if len(*out) != 2 {
			t.Errorf("%s: %d packets, want two", c.what, len(*out))
			continue
		}
		for i := range want {
			if !bytes.Equal((*out)[i][vnetLen:], want[i]) {
				t.Errorf("%s: packet %d was changed", c.what, i)
			}
		}
	}
}

// TestMergeIdentification: without "don't fragment" the identification is kept, so only consecutive ones go together.
func TestMergeIdentification(t *testing.T) {
	for _, c := range []struct {
		step uint16
		want int
	}{{1, 1}, {0, 3}, {2, 3}} {
		merge := merger{udp: true}
		out := written(&merge)
		for i := range uint16(3) {
			m := made{proto: protoUDP, payload: make([]byte, 100), id: 65534 + i*c.step, fragments: true}
			b, _ := m.build()
			p, _ := parse(b)
			merge.add(b, p, true)
		}
		if merge.flush(); len(*out) != c.want {
			t.Errorf("identifications that differ by %d gave %d packets, want %d", c.step, len(*out), c.want)
		}
	}
}

// TestMergeUDPOnlyWhereKnown: a kernel that takes no segmented UDP gets single packets.
func TestMergeUDPOnlyWhereKnown(t *testing.T) {
	var merge merger
	out := written(&merge)
	for range 3 {
		b, _ := made{proto: protoUDP, payload: make([]byte, 100)}.build()
		p, _ := parse(b)
		merge.add(b, p, true)
	}
	if merge.flush(); len(*out) != 3 {
		t.Errorf("%d packets, want 3", len(*out))
	}
}

func TestSplitRefuses(t *testing.T) {
	m := made{proto: protoTCP, payload: make([]byte, 3000), flags: tcpACK}
	pkt, start := m.build()
	for what, change := range map[string]func(*vnet){
		"a segment size of nothing":     func(v *vnet) { v.gsoSize = 0 },
		"segments without a checksum":   func(v *vnet) { v.flags = 0 },
		"a checksum after the end":      func(v *vnet) { v.csumStart = 3100 },
		"a checksum in the IP header":   func(v *vnet) { v.csumStart = 10 },
		"a checksum that is no TCP's":   func(v *vnet) { v.csumOff = 6 },
		"a kind that nobody knows":      func(v *vnet) { v.gso = 3 },
		"headers without end":           func(v *vnet) { v.gsoSize = 1 },
		"a UDP header that is a TCP's":  func(v *vnet) { v.gso = gsoUDP },
		"a transport that is not whole": func(v *vnet) { v.csumStart = uint16(len(pkt) - 18) },
	} {
		buf := read(pkt, start, m, 1000)
		v := parseVnet(buf)
		change(&v)
		v.put(buf)
		p, _ := parse(pkt)
		if out, err := newSplitter().split(buf, p, ours6, nil); err == nil {
			t.Errorf("%s gave %d datagrams", what, len(out))
		}
	}
}

// FuzzDevice: whatever is read from the device, nothing panics, and what is sent are packets as long as they say.
func FuzzDevice(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		m := random(r)
		m.payload = m.payload[:min(len(m.payload), 4000)]
		pkt, start := m.build()
		f.Add(read(pkt, start, m, 700))
	}
	f.Fuzz(func(t *testing.T, buf []byte) {
		if len(buf) <= vnetLen || len(buf) > vnetLen+65535 {
			return
		}
		p, err := parse(buf[vnetLen:])
		if err != nil {
			return
		}
		out, err := newSplitter().split(buf, p, ours6, nil)
		if err != nil {
			return
		}
		for _, d := range out {
			pkt, _, ok := openHeader(slices.Concat(d.a, d.b), ours6)
			if _, err := parse(pkt); !ok || err != nil {
				t.Fatalf("sent %x", d)
			}
		}
	})
}

// FuzzInbound: whatever a peer sends, nothing panics, and only packets from its blocks pass, unchanged but for being put
// together.
func FuzzInbound(f *testing.F) {
	one, two := newPeer("one", Peer{Remote: netip.MustParseAddrPort("192.0.2.1:1"), Local: near4, Blocks: prefixes("10.1.0.0/24", "fd00::1:0/112")}, ours6, 1),
		newPeer("two", Peer{Remote: netip.MustParseAddrPort("192.0.2.2:1"), Local: near4, Blocks: prefixes("10.1.0.9/32", "10.2.0.0/24")}, ours6, 2)
	tab := newTable(map[string]*peer{"one": one, "two": two})
	r := rand.New(rand.NewPCG(7, 8))
	for range 20 {
		m := random(r)
		m.payload = m.payload[:min(len(m.payload), 4000)]
		var all []byte
		size := 0
		pkt, start := m.build()
		p, _ := parse(pkt)
		split, err := newSplitter().split(read(pkt, start, m, 700), p, ours6, nil)
		if err != nil {
			f.Fatal(err)
		}
		for _, d := range split {
			size = max(size, d.len())
			all = append(append(all, d.a...), d.b...)
		}
		f.Add(all, uint16(size))
	}
	f.Fuzz(func(t *testing.T, all []byte, size uint16) {
		merge := merger{udp: true}
		total := 0
		merge.emit = func(head []byte, pieces [][]byte) {
			b := slices.Concat(pieces...)
			p, err := parse(b)
			if err != nil || len(b) > maxRun {
				t.Fatalf("wrote %x", b)
			}
			if from := p.source(b); !one.Blocks[0].Contains(from) && !one.Blocks[1].Contains(from) || from == netip.MustParseAddr("10.1.0.9") {
				t.Fatalf("wrote a packet from %s", from)
			}
			total++
		}
		in := 0
		for b := slices.Clone(all); len(b) > 0 && size > 0; {
			n := min(int(size), len(b))
			if pkt, p, partial, ok := admit(b[:n:n], one, tab, ours6); ok {
				merge.add(pkt, p, partial)
				in++
			}
			b = b[n:]
		}
		if merge.flush(); total > in {
			t.Fatalf("%d packets became %d", in, total)
		}
	})
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestAdmit(t *testing.T) {
	one := newPeer("one", Peer{Remote: netip.MustParseAddrPort("192.0.2.1:1"), Local: near4, Blocks: prefixes("10.1.0.0/24", "fd00::1:0/112")}, ours6, 1)
	two := newPeer("two", Peer{Remote: netip.MustParseAddrPort("192.0.2.2:1"), Local: near4, Blocks: prefixes("10.1.0.9/32", "10.2.0.0/24")}, ours6, 2)
	tab := newTable(map[string]*peer{"one": one, "two": two})
	from := func(a string) []byte {
		m := made{proto: protoUDP, payload: []byte("x"), src: netip.MustParseAddr(a), dst: far4}
		if m.src.Is6() {
			m.v6, m.dst = true, far6
		}
		b, _ := m.build()
		return b
	}
	wrap := func(b []byte, change func([]byte) []byte) []byte {
		out := append(make([]byte, headerLen), b...)
		putHeader(out, flagPartial, ours6)
		if change != nil {
			out = change(out)
		}
		return out
	}
	set := func(at int, v byte) func([]byte) []byte { return func(b []byte) []byte { b[at] = v; return b } }
	for _, c := range []struct {
		what   string
		packet []byte
		from   *peer
		want   bool
	}{
		{"a packet", wrap(from("10.1.0.2"), nil), one, true},
		{"of IPv6", wrap(from("fd00::1:2"), nil), one, true},
		{"from an address that has moved to it", wrap(from("10.1.0.9"), nil), two, true},
		{"from an address that has moved away", wrap(from("10.1.0.9"), nil), one, false},
		{"from another peer's block", wrap(from("10.2.0.2"), nil), one, false},
		{"from nobody's address", wrap(from("192.168.0.1"), nil), one, false},
		{"with another tag", wrap(from("10.1.0.2"), set(7, 0)), one, false},
		{"of another version", wrap(from("10.1.0.2"), set(0, 0x21)), one, false},
		{"with a flag that nobody knows", wrap(from("10.1.0.2"), set(0, version|2)), one, false},
		{"with something in the place for more", wrap(from("10.1.0.2"), set(1, 1)), one, false},
		{"that is cut short", wrap(from("10.1.0.2"), func(b []byte) []byte { return b[:len(b)-1] }), one, false},
		{"with something behind it", wrap(from("10.1.0.2"), func(b []byte) []byte { return append(b, 0) }), one, false},
		{"of which nothing but the header is there", wrap(nil, nil), one, false},
		{"of IP version 5", wrap(from("10.1.0.2"), set(headerLen, 0x55)), one, false},
		{"with a checksum that nobody can find", wrap(from("10.1.0.2"), set(headerLen+9, 47)), one, false},
		{"nothing", nil, one, false},
	} {
		if _, _, _, ok := admit(c.packet, c.from, tab, ours6); ok != c.want {
			t.Errorf("%s: admitted %v, want %v", c.what, ok, c.want)
		}
	}
}

func TestTrains(t *testing.T) {
	a, b := &peer{id: "a"}, &peer{id: "b"}
	for _, c := range []struct {
		what  string
		sizes []int
		to    []*peer
		want  string
	}{
		{"equal ones", []int{9, 9, 9}, nil, "[3]"},
		{"a shorter last", []int{9, 9, 4, 9}, nil, "[3 1]"},
		{"a longer one", []int{4, 9}, nil, "[1 1]"},
		{"another peer", []int{9, 9, 9}, []*peer{a, b, a}, "[1 1 1]"},
		{"many", slices.Repeat([]int{9}, 130), nil, "[64 64 2]"},
		{"large ones", slices.Repeat([]int{1472}, 46), nil, "[44 2]"},
	} {
		s := newSender(-1, &counters{})
		for i, n := range c.sizes {
			to := a
			if c.to != nil {
				to = c.to[i]
			}
			s.add(to, datagram{a: make([]byte, n)})
		}
		var got []int
		for _, t := range s.trains {
			got = append(got, t.count)
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: trains of %v, want %s", c.what, got, c.want)
		}
	}
}
