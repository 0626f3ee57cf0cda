package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// maxAlternatives bounds what lists of values multiply to: each alternative is a rule.
const maxAlternatives = 256

// condition translates one family's conditions for published ports, words of iptables(8) or of nft(8), and gathers them
// as alternatives: matches in the syntax of kernel.ParseRule, of which one has to hold.
type condition struct {
	key  string
	text string
	v6   bool
	alts []string
}

// parseConditions gives the alternatives; none where there are no conditions. native says that they are nft's words.
func parseConditions(key string, words *[]string, v6 bool) (alts []string, native bool, err error) {
	if words == nil || len(*words) == 0 || (*words)[0] == "" {
		return nil, false, nil
	}
	c := &condition{key: key, text: strings.Join(*words, " "), v6: v6, alts: []string{""}}
	// As the reference plugin tells them apart.
	if first := (*words)[0][0]; first == '-' || first == '!' {
		err = c.iptables(*words)
	} else {
		native, err = true, c.nft()
	}
	if err != nil {
		return nil, native, err
	}
	for i, a := range c.alts {
		c.alts[i] = strings.TrimSpace(a)
		if c.alts[i] == "" { // something that holds always
			return nil, native, nil
		}
		if err := c.verify(c.alts[i]); err != nil {
			return nil, native, err
		}
	}
	slices.Sort(c.alts)
	return slices.Compact(c.alts), native, nil
}

// verify holds an alternative to matches of the family that can be made where ports are published.
func (c *condition) verify(rule string) error {
	p, err := kernel.ParseRule(rule)
	if err != nil {
		return c.refuse(err.Error())
	}
	for _, st := range p.Stmts {
		m, ok := st.(*kernel.Match)
		if !ok {
			return c.refuse("has more than matches")
		}
		for _, f := range m.Fields {
			switch {
			case m.Set != "":
				return c.refuse("looks into a set of another table (@" + m.Set + "); want the values themselves")
			case f == kernel.FieldOifname || f == kernel.FieldOifgroup:
				return c.refuse("matches an outgoing interface, which is not known where ports are published")
			case f.Type() == kernel.TypeIPv4 && c.v6 || f.Type() == kernel.TypeIPv6 && !c.v6:
				return c.refuse("matches the other address family")
			}
		}
	}
	return nil
}

func (c *condition) refuse(why string) error { return unsupported(c.key, c.text, why) }

// either adds a match of which one of several values has to hold or, with not, none of them.
func (c *condition) either(field string, not bool, values []string) error {
	if len(values) == 0 {
		return c.refuse(field + " has no value")
	}
	if not {
		all := ""
		for _, v := range values {
			all += " " + field + " != " + v
		}
		field, values = "", []string{all}
	}
	if len(c.alts)*len(values) > maxAlternatives {
		return c.refuse(fmt.Sprintf("gives more than %d combinations", maxAlternatives))
	}
	var out []string
	for _, a := range c.alts {
		for _, v := range values {
			out = append(out, strings.TrimSpace(a)+" "+strings.TrimSpace(field+" "+v))
		}
	}
	c.alts = out
	return nil
}

// iptablesMatches are the extensions whose options are understood.
var iptablesMatches = []string{"tcp", "udp", "sctp", "multiport", "comment", "addrtype", "iprange", "conntrack", "state", "mark"}

// iptables reads [!] OPTION VALUE ….
func (c *condition) iptables(words []string) error {
	for i := 0; i < len(words); i++ {
		not := words[i] == "!"
		if not {
			i++
		}
		if i >= len(words) {
			return c.refuse("ends after !")
		}
		option, value, joined := strings.Cut(words[i], "=")
		if !joined {
			i++
			if i >= len(words) {
				return c.refuse("ends after " + option + "; want a value")
			}
			value = words[i]
		}
		if err := c.option(option, value, not); err != nil {
			return err
		}
	}
	return nil
}

func (c *condition) option(option, value string, not bool) error {
	switch option {
	case "-m", "--match":
		if !slices.Contains(iptablesMatches, value) {
			return c.refuse("-m " + value + " can't be translated; want one of: " + strings.Join(iptablesMatches, ", "))
		}
		return nil
	case "--comment":
		return nil
	case "-s", "--source", "--src":
		return c.addresses("saddr", value, not)
	case "-d", "--destination", "--dst":
		return c.addresses("daddr", value, not)
	case "--src-range":
		return c.addressRange("saddr", value, not)
	case "--dst-range":
		return c.addressRange("daddr", value, not)
	case "-i", "--in-interface":
		name, some := strings.CutSuffix(value, "+")
		if some {
			name += "*"
		}
		return c.either("iifname", not, []string{strconv.Quote(name)})
	case "-p", "--protocol":
		if value == "all" || value == "0" {
			return nil
		}
		return c.either("meta l4proto", not, []string{strings.ToLower(value)})
	case "--sport", "--source-port", "--sports", "--source-ports":
		return c.ports("th sport", value, not)
	case "--dport", "--destination-port", "--dports", "--destination-ports":
		return c.ports("th dport", value, not)
	case "--dst-type":
		return c.either("fib daddr type", not, strings.Split(strings.ToLower(value), ","))
	case "--ctstate", "--state":
		return c.either("ct state", not, []string{strings.ToLower(value)})
	case "--mark":
		mark, mask, masked := strings.Cut(value, "/")
		if !masked {
			mask = "0xffffffff"
		}
		sign := " == "
		if not {
			sign = " != "
		}
		return c.either("", false, []string{"meta mark and " + mask + sign + mark})
	}
	return c.refuse(option + " can't be translated")
}

// ports turns 80,443,8000:8079 into values of a field.
func (c *condition) ports(field, value string, not bool) error {
	var out []string
	for _, v := range strings.Split(value, ",") {
		lo, hi, two := strings.Cut(v, ":")
		if !two {
			out = append(out, v)
			continue
		}
		if lo == "" {
			lo = "0"
		}
		if hi == "" {
			hi = "65535"
		}
		if v = lo + "-" + hi; lo == hi {
			v = lo
		}
		out = append(out, v)
	}
	return c.either(field, not, out)
}

func (c *condition) field(which string) string {
	if c.v6 {
		return "ip6 " + which
	}
	return "ip " + which
}

// addresses turns ADDR[/LEN or /MASK],… into values of a field.
func (c *condition) addresses(which, value string, not bool) error {
	var out []string
	for _, v := range strings.Split(value, ",") {
		p, err := maskedPrefix(v)
		if err != nil || p.Addr().Is6() != c.v6 {
			return c.refuse(strconv.Quote(v) + " is no address or subnet of the family; want one such as " + map[bool]string{true: "fd00:1::/64", false: "10.1.0.0/16"}[c.v6])
		}
		if p.Bits() == 0 { // all of them
			if not {
				return c.refuse("! " + v + " is never so")
			}
			return nil
		}
		out = append(out, prefixText(p))
	}
	return c.either(c.field(which), not, out)
}

// maskedPrefix reads an address, or a subnet by length or by mask; host bits are dropped, as iptables does.
func maskedPrefix(s string) (netip.Prefix, error) {
	addr, mask, _ := strings.Cut(s, "/")
	if m, err := netip.ParseAddr(mask); err == nil {
		bits := 0
		raw := m.AsSlice()
		for bits < 8*len(raw) && raw[bits/8]&(0x80>>(bits%8)) != 0 {
			bits++
		}
		if a, err := netip.ParseAddr(addr); err == nil && a.BitLen() == m.BitLen() && netip.PrefixFrom(allOnes(m), bits).Masked().Addr() == m {
			return netip.PrefixFrom(a, bits).Masked(), nil
		}
		return netip.Prefix{}, fmt.Errorf("%q is no mask", mask)
	}
	p, err := kernel.ParsePrefix(s)
	return p.Masked(), err
}

// allOnes is the last address of a's family.
func allOnes(a netip.Addr) netip.Addr {
	raw := a.AsSlice()
	for i := range raw {
		raw[i] = 0xff
	}
	out, _ := netip.AddrFromSlice(raw)
	return out
}

func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// addressRange turns FROM-TO into the subnets that it is made of.
func (c *condition) addressRange(which, value string, not bool) error {
	from, to, _ := strings.Cut(value, "-")
	lo, err1 := netip.ParseAddr(from)
	hi, err2 := netip.ParseAddr(to)
	if err1 != nil || err2 != nil || lo.Is6() != c.v6 || hi.Is6() != c.v6 || hi.Less(lo) {
		return c.refuse(strconv.Quote(value) + " is no range of addresses of the family")
	}
	var out []string
	for lo.IsValid() && !hi.Less(lo) {
		p := netip.PrefixFrom(lo, lo.BitLen())
		for p.Bits() > 1 { // the largest subnet that begins here and ends in time
			q := netip.PrefixFrom(lo, p.Bits()-1)
			if q.Masked().Addr() != lo || hi.Less(last(q)) {
				break
			}
			p = q
		}
		out = append(out, prefixText(p))
		lo = last(p).Next()
	}
	return c.either(c.field(which), not, out)
}

// last is the last address of a subnet.
func last(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(raw); i++ {
		raw[i/8] |= 0x80 >> (i % 8)
	}
	out, _ := netip.AddrFromSlice(raw)
	return out
}

// nft reads matches in nft's own words: what kernel.ParseRule knows, and besides names without quotes, "ip protocol", and
// sets of values in braces.
func (c *condition) nft() error {
	text := strings.NewReplacer("{", " { ", "}", " } ", ",", " , ", "ip protocol", "meta l4proto", "ip6 nexthdr", "meta l4proto",
		"meta iifname", "iifname").Replace(c.text)
	words := strings.Fields(text)
	var field []string
	not := false
	for i := 0; i < len(words); i++ {
		w := words[i]
		name := strings.Join(field, " ")
		switch {
		case !kernel.Field(name).Known():
			field = append(field, w)
			if len(field) > 3 {
				return c.refuse(strconv.Quote(strings.Join(field, " ")) + " is no match that can be translated")
			}
			continue
		case w == "==" || w == "!=":
			not = w == "!="
			continue
		case w == "and" || w == "&": // a mark and a mask: as it stands
			if i+3 >= len(words) {
				return c.refuse("ends after " + w)
			}
			if err := c.either("", false, []string{name + " and " + strings.Join(words[i+1:i+4], " ")}); err != nil {
				return err
			}
			i += 3
		default:
			n, values := braces(words[i:])
			if n == 0 {
				return c.refuse("a brace is not closed")
			}
			if name == string(kernel.FieldIifname) {
				for j, v := range values {
					values[j] = strconv.Quote(strings.Trim(v, `"`))
				}
			}
			if err := c.either(name, not, values); err != nil {
				return err
			}
			i += n - 1
		}
		field, not = nil, false
	}
	if len(field) > 0 {
		return c.refuse("ends after " + strings.Join(field, " ") + "; want a value")
	}
	return nil
}

// braces gives the values at the beginning of words and how many words they take: several in braces; else one, which may
// be a list with commas. 0 says that a brace is not closed.
func braces(words []string) (n int, values []string) {
	if words[0] != "{" {
		for n = 1; n+1 < len(words) && words[n] == ","; n += 2 {
		}
		return n, []string{strings.Join(words[:n], "")}
	}
	for i, w := range words[1:] {
		switch w {
		case "}":
			return i + 2, values
		case ",":
		default:
			values = append(values, w)
		}
	}
	return 0, nil
}
