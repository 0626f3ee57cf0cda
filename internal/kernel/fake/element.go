package fake

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// span is the part of a type's values that an interval set's element covers, as ordered byte strings; both ends in.
type span struct{ first, last string }

func (s span) overlaps(t span) bool { return s.first <= t.last && t.first <= s.last }

var keyTypes = []kernel.Type{kernel.TypeIPv4, kernel.TypeIPv6, kernel.TypeProto, kernel.TypeService, kernel.TypeIfname, kernel.TypeMark,
	kernel.TypeGroup, kernel.TypeEther, kernel.TypeVNI}

func checkSet(s *kernel.Set) error {
	if len(s.Key) == 0 {
		return errors.New("the key has no type")
	}
	for _, t := range slices.Concat(s.Key, s.Data) {
		if !slices.Contains(keyTypes, t) && !(t == kernel.TypeVerdict && isVerdict(s) && !slices.Contains(s.Key, t)) {
			return fmt.Errorf("type %q does not fit", t)
		}
	}
	if s.Interval && len(s.Key) != 1 {
		return errors.New("intervals are for keys of a single type")
	}
	return nil
}

// checkElement checks that item and data are of their set's types, written in the one form that a listing gives.
func checkElement(e *kernel.Element) (span, error) {
	if len(e.Comment) > 120 {
		return span{}, errors.New("the comment is longer than 120 bytes")
	}
	item, err := parseValues(e.Set.Key, e.Item, e.Set.Interval)
	if err != nil {
		return span{}, fmt.Errorf("item: %w", err)
	}
	if len(e.Set.Data) == 0 {
		if e.Data != "" {
			return span{}, fmt.Errorf("data %q in a set that is no map", e.Data)
		}
		return item, nil
	}
	if isVerdict(e.Set) {
		err = checkVerdict(e.Data)
	} else {
		_, err = parseValues(e.Set.Data, e.Data, false)
	}
	if err != nil {
		return span{}, fmt.Errorf("data: %w", err)
	}
	return item, nil
}

func checkVerdict(s string) error {
	verb, name, jumps := strings.Cut(s, " ")
	switch {
	case !jumps && (verb == "accept" || verb == "drop"), jumps && (verb == "jump" || verb == "goto") && name != "" && !strings.Contains(name, " "):
		return nil
	}
	return fmt.Errorf("%q is no verdict", s)
}

func parseValues(types []kernel.Type, s string, interval bool) (span, error) {
	parts := strings.Split(s, " . ")
	if len(parts) != len(types) {
		return span{}, fmt.Errorf("%q has %d parts, not %d", s, len(parts), len(types))
	}
	var all span
	for i, t := range types {
		v, err := parseValue(t, parts[i], interval)
		if err != nil {
			return span{}, err
		}
		all.first += v.first
		all.last += v.last
	}
	return all, nil
}

// parseValue reads one value of a type, or with interval a prefix or range of it.
func parseValue(t kernel.Type, s string, interval bool) (span, error) {
	bad := fmt.Errorf("%q is no %s as nft lists it", s, t)
	switch t {
	case kernel.TypeIPv4, kernel.TypeIPv6:
		return parseIPs(t, s, interval)
	case kernel.TypeService:
		first, last, isRange := strings.Cut(s, "-")
		a, ok1 := port(first)
		b, ok2 := a, ok1
		if isRange {
			b, ok2 = port(last)
		}
		if !ok1 || !ok2 || isRange && (!interval || a >= b) {
			return span{}, bad
		}
		return span{a, b}, nil
	case kernel.TypeProto:
		if _, ok := kernel.Protocols[s]; !ok {
			return span{}, bad
		}
	case kernel.TypeIfname:
		if s == "" || len(s) > 15 || strings.ContainsAny(s, "\"/ \t\n") {
			return span{}, bad
		}
	case kernel.TypeEther:
		if hw, err := net.ParseMAC(s); err != nil || len(hw) != 6 || hw.String() != s {
			return span{}, bad
		}
	case kernel.TypeMark:
		n, err := strconv.ParseUint(s, 0, 32)
		if err != nil {
			return span{}, bad
		}
		s = fmt.Sprintf("%08x", n)
	case kernel.TypeVNI:
		n, err := strconv.ParseUint(s, 10, 24)
		if err != nil || strconv.FormatUint(n, 10) != s {
			return span{}, bad
		}
		s = fmt.Sprintf("%08x", n)
	case kernel.TypeGroup:
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != s {
			return span{}, bad
		}
		s = fmt.Sprintf("%08x", n)
	default:
		return span{}, bad
	}
	return span{s, s}, nil
}

func port(s string) (string, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return fmt.Sprintf("%05d", n), err == nil && strconv.FormatUint(n, 10) == s
}

func parseIPs(t kernel.Type, s string, interval bool) (span, error) {
	bad := fmt.Errorf("%q is no %s as nft lists it", s, t)
	is := func(a netip.Addr) bool { return a.Is4() == (t == kernel.TypeIPv4) && !a.Is4In6() && a.Zone() == "" }
	if a, err := netip.ParseAddr(s); err == nil && is(a) && a.String() == s {
		return span{string(a.AsSlice()), string(a.AsSlice())}, nil
	}
	if !interval {
		return span{}, bad
	}
	if p, err := netip.ParsePrefix(s); err == nil && is(p.Addr()) && p.Masked().String() == s && !p.IsSingleIP() {
		return span{string(p.Addr().AsSlice()), string(last(p).AsSlice())}, nil
	}
	x, y, _ := strings.Cut(s, "-")
	a, err1 := netip.ParseAddr(x)
	b, err2 := netip.ParseAddr(y)
	if errors.Join(err1, err2) != nil || !is(a) || !is(b) || a.Compare(b) >= 0 || a.String()+"-"+b.String() != s {
		return span{}, bad
	}
	for bits := range a.BitLen() { // a range that is a prefix is listed as one
		if p := netip.PrefixFrom(a, bits); p.Masked() == p && last(p) == b {
			return span{}, bad
		}
	}
	return span{string(a.AsSlice()), string(b.AsSlice())}, nil
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
