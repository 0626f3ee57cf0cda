package linux

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// setType is what nftables knows about a data type: nft's number for it, which the kernel only keeps for nft, its
// length in bytes, and nft's number for its byte order.
type setType struct {
	id, size, order uint32
}

const (
	orderHost = 1 // BYTEORDER_HOST_ENDIAN
	orderBig  = 2 // BYTEORDER_BIG_ENDIAN
	// typeVerdict is NFT_DATA_VERDICT.
	typeVerdict = 0xffffff00
	// typeBits is how far nft shifts the numbers of the parts of a concatenation.
	typeBits = 6
)

var setTypes = map[kernel.Type]setType{
	kernel.TypeVNI:     {4, 4, orderBig}, // nft's "integer"
	kernel.TypeIPv4:    {7, 4, orderBig},
	kernel.TypeIPv6:    {8, 16, orderBig},
	kernel.TypeEther:   {9, 6, orderBig},
	kernel.TypeProto:   {12, 1, orderBig},
	kernel.TypeService: {13, 2, orderBig},
	kernel.TypeMark:    {19, 4, orderHost},
	kernel.TypeGroup:   {35, 4, orderHost},
	kernel.TypeIfname:  {41, unix.IFNAMSIZ, orderHost},
}

// typeInfo gives the number, length and byte order of a key or of data; a concatenation pads each part to 4 bytes.
func typeInfo(types []kernel.Type) (setType, error) {
	if len(types) == 1 && types[0] == kernel.TypeVerdict {
		return setType{id: typeVerdict}, nil
	}
	var out setType
	for _, t := range types {
		s, ok := setTypes[t]
		if !ok {
			return out, fmt.Errorf("type %q is unknown", t)
		}
		if len(types) == 1 {
			return s, nil
		}
		out.id = out.id<<typeBits | s.id
		out.size += (s.size + 3) &^ 3
	}
	return out, nil
}

// typesOf turns nft's number back into types; nil for one that is not known.
func typesOf(id uint32) []kernel.Type {
	if id == typeVerdict {
		return []kernel.Type{kernel.TypeVerdict}
	}
	var out []kernel.Type
	for ; id != 0; id >>= typeBits {
		found := kernel.Type("")
		for t, s := range setTypes {
			if s.id == id&(1<<typeBits-1) {
				found = t
			}
		}
		if found == "" {
			return nil
		}
		out = append([]kernel.Type{found}, out...)
	}
	return out
}

// encode turns text into the bytes of a key or of data, verdicts left out.
func encode(types []kernel.Type, text string) ([]byte, error) {
	parts := strings.Split(text, " . ")
	if len(parts) != len(types) {
		return nil, fmt.Errorf("%q has %d parts, want %d", text, len(parts), len(types))
	}
	var out []byte
	for i, t := range types {
		b, err := encodeOne(t, strings.TrimSpace(parts[i]))
		if err != nil {
			return nil, err
		}
		if len(types) > 1 {
			for len(b)%4 != 0 {
				b = append(b, 0)
			}
		}
		out = append(out, b...)
	}
	return out, nil
}

func encodeOne(t kernel.Type, s string) ([]byte, error) {
	bad := func() ([]byte, error) { return nil, fmt.Errorf("%q is no %s", s, t) }
	switch t {
	case kernel.TypeIPv4, kernel.TypeIPv6:
		a, err := netip.ParseAddr(s)
		if err != nil || a.Is4() != (t == kernel.TypeIPv4) || a.Zone() != "" {
			return bad()
		}
		return a.AsSlice(), nil
	case kernel.TypeProto:
		if n, ok := kernel.Protocols[s]; ok {
			return []byte{n}, nil
		}
		n, err := strconv.ParseUint(s, 10, 8)
		if err != nil {
			return bad()
		}
		return []byte{byte(n)}, nil
	case kernel.TypeService:
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return bad()
		}
		return binary.BigEndian.AppendUint16(nil, uint16(n)), nil
	case kernel.TypeEther:
		hw, err := net.ParseMAC(s)
		if err != nil || len(hw) != 6 {
			return bad()
		}
		return hw, nil
	case kernel.TypeVNI:
		n, err := strconv.ParseUint(s, 10, 24)
		if err != nil {
			return bad()
		}
		return binary.BigEndian.AppendUint32(nil, uint32(n)<<8), nil
	case kernel.TypeMark, kernel.TypeGroup:
		n, err := strconv.ParseUint(s, 0, 32)
		if err != nil {
			return bad()
		}
		return host32(uint32(n)), nil
	case kernel.TypeIfname:
		s = strings.Trim(s, `"`)
		if s == "" || len(s) >= unix.IFNAMSIZ {
			return bad()
		}
		return append([]byte(s), make([]byte, unix.IFNAMSIZ-len(s))...), nil
	}
	return bad()
}

// decode turns bytes back into text: protocols by name, marks in hex.
func decode(types []kernel.Type, b []byte) (string, error) {
	var parts []string
	for _, t := range types {
		n := int(setTypes[t].size)
		if n == 0 || len(b) < n {
			return "", fmt.Errorf("%d bytes are no %s", len(b), t)
		}
		parts = append(parts, decodeOne(t, b[:n]))
		if len(types) > 1 {
			n = (n + 3) &^ 3
		}
		b = b[min(n, len(b)):]
	}
	return strings.Join(parts, " . "), nil
}

func decodeOne(t kernel.Type, b []byte) string {
	switch t {
	case kernel.TypeIPv4, kernel.TypeIPv6:
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case kernel.TypeEther:
		return net.HardwareAddr(b).String()
	case kernel.TypeProto:
		for name, n := range kernel.Protocols {
			if n == b[0] {
				return name
			}
		}
		return strconv.Itoa(int(b[0]))
	case kernel.TypeService:
		return strconv.Itoa(int(binary.BigEndian.Uint16(b)))
	case kernel.TypeVNI:
		return strconv.FormatUint(uint64(binary.BigEndian.Uint32(b)>>8), 10)
	case kernel.TypeMark:
		return fmt.Sprintf("%#x", native.Uint32(b))
	case kernel.TypeGroup:
		return strconv.FormatUint(uint64(native.Uint32(b)), 10)
	}
	return cstr(b)
}

// parseVerdict reads "accept", "drop", "return", "jump NAME" or "goto NAME".
func parseVerdict(s string) (verdict, error) {
	word, chain, _ := strings.Cut(s, " ")
	code, ok := verdictCodes[word]
	if !ok || (chain != "") != (word == "jump" || word == "goto") {
		return verdict{}, fmt.Errorf("%q is no verdict", s)
	}
	return verdict{code, chain}, nil
}

func (v verdict) String() string {
	for word, code := range verdictCodes {
		if code == v.code && v.chain != "" {
			return word + " " + v.chain
		}
		if code == v.code {
			return word
		}
	}
	return fmt.Sprintf("verdict %d", v.code)
}

// interval reads an address, a prefix, a port or a range LOW-HIGH into the first key and the one after the last; the
// latter is nil where the range goes up to the end of what there is.
func interval(t kernel.Type, s string) (lo, end []byte, err error) {
	if lo, hi, ok := strings.Cut(s, "-"); ok && t != kernel.TypeIfname {
		a, err := encodeOne(t, lo)
		if err != nil {
			return nil, nil, err
		}
		b, err := encodeOne(t, hi)
		if err != nil {
			return nil, nil, err
		}
		if string(a) > string(b) {
			return nil, nil, fmt.Errorf("%q ends before it begins", s)
		}
		return a, next(b), nil
	}
	switch t {
	case kernel.TypeIPv4, kernel.TypeIPv6:
		p, err := kernel.ParsePrefix(s)
		if err != nil || p.Addr().Is4() != (t == kernel.TypeIPv4) || p != p.Masked() {
			return nil, nil, fmt.Errorf("%q is no %s or prefix without host bits", s, t)
		}
		lo = p.Addr().AsSlice()
		return lo, next(last(p)), nil
	case kernel.TypeProto, kernel.TypeService:
		lo, err = encodeOne(t, s)
		return lo, next(lo), err
	}
	return nil, nil, fmt.Errorf("intervals of type %s: %w", t, kernel.ErrUnsupported)
}

func last(p netip.Prefix) []byte {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}

// next adds one to a big-endian number; nil where it overflows.
func next(b []byte) []byte {
	out := append([]byte(nil), b...)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]++
		if out[i] != 0 {
			return out
		}
	}
	return nil
}

// previous takes one from a big-endian number; nil means one more than the highest.
func previous(b []byte, size int) []byte {
	if b == nil {
		b = make([]byte, size)
	}
	out := append([]byte(nil), b...)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]--
		if out[i] != 0xff {
			break
		}
	}
	return out
}

// intervalText is the text of an interval as short as nft writes it.
func intervalText(t kernel.Type, lo, end []byte) string {
	hi := previous(end, len(lo))
	if string(lo) == string(hi) {
		return decodeOne(t, lo)
	}
	if t == kernel.TypeIPv4 || t == kernel.TypeIPv6 {
		a, _ := netip.AddrFromSlice(lo)
		for bits := 0; bits < a.BitLen(); bits++ {
			if p := netip.PrefixFrom(a, bits); p == p.Masked() && string(last(p)) == string(hi) {
				return p.String()
			}
		}
	}
	return decodeOne(t, lo) + "-" + decodeOne(t, hi)
}

// Comments are in the user data of sets' elements and of rules as nft keeps them: type 0, length, text with a zero.
const maxComment = 120

func udata(comment string) []byte {
	if len(comment) > maxComment {
		comment = comment[:maxComment]
	}
	b := append([]byte{0, byte(len(comment) + 1)}, comment...)
	return append(b, 0)
}

func comment(b []byte) string {
	for len(b) >= 2 {
		n := int(b[1])
		if len(b) < 2+n {
			return ""
		}
		if b[0] == 0 {
			return cstr(b[2 : 2+n])
		}
		b = b[2+n:]
	}
	return ""
}
