package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Field is what a rule looks at, in nft's words: "ip saddr", "meta l4proto".
type Field string

// The fields.
const (
	FieldIifname   Field = "iifname"
	FieldOifname   Field = "oifname"
	FieldIifgroup  Field = "meta iifgroup"
	FieldOifgroup  Field = "meta oifgroup"
	FieldEthSaddr  Field = "ether saddr" // in tables of family bridge only
	FieldIPSaddr   Field = "ip saddr"
	FieldIPDaddr   Field = "ip daddr"
	FieldIP6Saddr  Field = "ip6 saddr"
	FieldIP6Daddr  Field = "ip6 daddr"
	FieldL4proto   Field = "meta l4proto"
	FieldNfproto   Field = "meta nfproto"
	FieldMark      Field = "meta mark"
	FieldCtMark    Field = "ct mark"
	FieldCtState   Field = "ct state"
	FieldCtStatus  Field = "ct status"
	FieldFibDaddr  Field = "fib daddr type"
	FieldTCPSport  Field = "tcp sport"
	FieldTCPDport  Field = "tcp dport"
	FieldUDPSport  Field = "udp sport"
	FieldUDPDport  Field = "udp dport"
	FieldSCTPSport Field = "sctp sport"
	FieldSCTPDport Field = "sctp dport"
	FieldThSport   Field = "th sport"
	FieldThDport   Field = "th dport"
	FieldVNI       Field = "vxlan vni" // with the reserved byte behind it, which is 0; looked up in sets only
)

// fieldTypes has the set type of each field; "" where a field can't be looked up in a set.
var fieldTypes = map[Field]Type{
	FieldIifname: TypeIfname, FieldOifname: TypeIfname, FieldIifgroup: TypeGroup, FieldOifgroup: TypeGroup,
	FieldEthSaddr: TypeEther,
	FieldIPSaddr:  TypeIPv4, FieldIPDaddr: TypeIPv4, FieldIP6Saddr: TypeIPv6, FieldIP6Daddr: TypeIPv6,
	FieldL4proto: TypeProto, FieldMark: TypeMark, FieldCtMark: TypeMark,
	FieldTCPSport: TypeService, FieldTCPDport: TypeService, FieldUDPSport: TypeService, FieldUDPDport: TypeService,
	FieldSCTPSport: TypeService, FieldSCTPDport: TypeService, FieldThSport: TypeService, FieldThDport: TypeService,
	FieldVNI:     TypeVNI,
	FieldNfproto: "", FieldCtState: "", FieldCtStatus: "", FieldFibDaddr: "",
}

// Type is the type that a set needs to have this field in its key; "" where the field can't be looked up.
func (f Field) Type() Type { return fieldTypes[f] }

// Known reports whether there is such a field.
func (f Field) Known() bool { _, ok := fieldTypes[f]; return ok }

// Protocols has the transport protocols that rules and elements know by name (IANA protocol numbers).
var Protocols = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "sctp": 132}

// The words that the fields of flags and enumerations take, with the kernel's values (nf_conntrack_common.h,
// nfproto, rtnetlink's rtm_type).
var (
	ctStates   = map[string]uint32{"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
	ctStatuses = map[string]uint32{"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32}
	nfprotos   = map[string]uint32{"ipv4": 2, "ipv6": 10}
	fibTypes   = map[string]uint32{"unicast": 1, "local": 2, "broadcast": 3, "multicast": 5}
)

// ParsedRule is a rule as ParseRule understood it.
type ParsedRule struct {
	Stmts []Stmt
}

// Stmt is one statement of a rule: *Match, *Vmap, *NAT, *SetMark, *Verdict or Simple.
type Stmt interface{ isStmt() }

// Match goes on with the rule only where the fields match. Which of the values is set depends on the field; Set looks
// the fields up in a set instead, and only then there may be several.
type Match struct {
	Fields []Field
	// Not turns the match round (!=).
	Not bool
	// Set is the name of the set to look the fields up in; "" for a value.
	Set string
	// Name is an interface name; with Wildcard the beginning of one.
	Name     string
	Wildcard bool
	// Prefix is an address, where it is of full length, or a range of them.
	Prefix netip.Prefix
	// Lo and Hi are the bounds of a number, equal for a single one. For ct state and ct status Lo has the bits of
	// which one has to be set.
	Lo, Hi uint32
	// Mask, where not 0, is applied to a mark before it is compared with Lo.
	Mask uint32
}

// Vmap looks the fields up in a verdict map and does what it finds there.
type Vmap struct {
	Fields []Field
	Map    string
}

// NAT changes the packet's addresses.
type NAT struct {
	// Kind is "dnat", "snat", "masquerade" or "redirect".
	Kind string
	// V6 is the family of Addr, or of what the map gives.
	V6   bool
	Addr netip.Addr
	// Port is the new port; 0 leaves it.
	Port uint16
	// Fields are looked up in Map, which has an address or an address and a port as data.
	Fields []Field
	Map    string
	// Random asks for a random source port (masquerade only).
	Random bool
}

// SetMark sets the mark of the packet or, with Ct, of its connection, to Value or, with Copy, to the other of the two.
// The bits of Keep stay as they were and Value's are set.
type SetMark struct {
	Ct    bool
	Copy  bool
	Value uint32
	Keep  uint32
}

// Verdict ends the rule: "accept", "drop", "return", "reject" (with Reset: a TCP reset), "jump" or "goto" with a Chain.
type Verdict struct {
	Kind  string
	Chain string
	Reset bool
}

// Simple is a statement without parameters: "counter" or "notrack".
type Simple string

func (*Match) isStmt()   {}
func (*Vmap) isStmt()    {}
func (*NAT) isStmt()     {}
func (*SetMark) isStmt() {}
func (*Verdict) isStmt() {}
func (Simple) isStmt()   {}

// ParseRule understands the part of nft(8)'s rule syntax that tables of ours are written in (family inet or bridge):
//
//	rule    = statement { statement } .
//	match   = FIELD [ "==" | "!=" ] VALUE .
//	lookup  = FIELD { "." FIELD } [ "==" | "!=" ] "@" SET .
//	vmap    = FIELD { "." FIELD } "vmap" "@" MAP .
//	nat     = ( "dnat" | "snat" ) ( "ip" | "ip6" ) "to" ( target | FIELD { "." FIELD } "map" "@" MAP )
//	        | "masquerade" [ "random" ] | "redirect" "to" ":" PORT .
//	target  = ADDR4 [ ":" PORT ] | ADDR6 | "[" ADDR6 "]" [ ":" PORT ] .
//	mark    = "meta" "mark" "set" ( NUMBER | "ct" "mark" | "meta" "mark" bits )
//	        | "ct" "mark" "set" ( NUMBER | "meta" "mark" | "ct" "mark" bits ) .
//	bits    = "and" NUMBER | "or" NUMBER .
//	verdict = "accept" | "drop" | "return" | "reject" [ "with" "tcp" "reset" ] | ( "jump" | "goto" ) CHAIN .
//	other   = "counter" | "notrack" .
//
// The fields and their values:
//
//	iifname, oifname                             "NAME", or "PREFIX*" for all names that begin so
//	ether saddr                                  look-ups only, in tables of family bridge
//	ip saddr, ip daddr, ip6 saddr, ip6 daddr     ADDR or ADDR/LEN
//	meta l4proto                                 tcp, udp, sctp, icmp, ipv6-icmp or a number
//	meta nfproto                                 ipv4, ipv6
//	meta iifgroup, meta oifgroup                 NUMBER
//	meta mark, ct mark                           NUMBER; also "meta mark and MASK == NUMBER" (or "&", "!=")
//	tcp, udp, sctp, th: sport, dport             NUMBER or NUMBER-NUMBER
//	ct state                                     invalid, established, related, new, untracked; lists by comma
//	ct status                                    expected, seen-reply, assured, confirmed, snat, dnat; lists by comma
//	                                             (one of a list has to be set; no "==", and "!=" only for a single
//	                                             state, as nft compares all the bits at once with these)
//	fib daddr type                               local, unicast, broadcast, multicast
//
// The error names the token that is wrong and its column.
func ParseRule(rule string) (*ParsedRule, error) {
	p := &ruleParser{rule: rule}
	if err := p.scan(); err != nil {
		return nil, err
	}
	out := &ParsedRule{}
	for !p.end() {
		if n := len(out.Stmts); n > 0 && terminal(out.Stmts[n-1]) {
			return nil, p.want("the end: nothing is reached after a verdict or a NAT")
		}
		st, err := p.statement()
		if err != nil {
			return nil, err
		}
		out.Stmts = append(out.Stmts, st)
	}
	if len(out.Stmts) == 0 {
		return nil, p.want("a statement")
	}
	return out, nil
}

func terminal(s Stmt) bool {
	switch s.(type) {
	case *Verdict, *NAT:
		return true
	}
	return false
}

type token struct {
	text   string
	at     int
	quoted bool
}

type ruleParser struct {
	rule string
	toks []token
	pos  int
}

// scan splits the rule into words, quoted names and commas.
func (p *ruleParser) scan() error {
	s := p.rule
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == ' ' || c == '\t':
			i++
		case c == ',':
			p.toks = append(p.toks, token{text: ",", at: i})
			i++
		case c == '"':
			n := strings.IndexByte(s[i+1:], '"')
			if n < 0 {
				return fmt.Errorf("rule %q: column %d: %s: the quote is not closed", s, i+1, s[i:])
			}
			p.toks = append(p.toks, token{text: s[i+1 : i+1+n], at: i, quoted: true})
			i += n + 2
		default:
			n := strings.IndexAny(s[i:], " \t,\"")
			if n < 0 {
				n = len(s) - i
			}
			p.toks = append(p.toks, token{text: s[i : i+n], at: i})
			i += n
		}
	}
	return nil
}

func (p *ruleParser) end() bool { return p.pos >= len(p.toks) }

// peek gives the next word, "" at the end and for a quoted name.
func (p *ruleParser) peek() string {
	if p.end() || p.toks[p.pos].quoted {
		return ""
	}
	return p.toks[p.pos].text
}

func (p *ruleParser) take(word string) bool {
	if word != "" && p.peek() == word {
		p.pos++
		return true
	}
	return false
}

// want is the error at the present token.
func (p *ruleParser) want(what string) error {
	if p.end() {
		return fmt.Errorf("rule %q: at its end: want %s", p.rule, what)
	}
	t := p.toks[p.pos]
	return fmt.Errorf("rule %q: column %d: %q: want %s", p.rule, t.at+1, t.text, what)
}

func (p *ruleParser) need(word string) error {
	if p.take(word) {
		return nil
	}
	return p.want(strconv.Quote(word))
}

func (p *ruleParser) statement() (Stmt, error) {
	switch w := p.peek(); w {
	case "counter", "notrack":
		p.pos++
		return Simple(w), nil
	case "accept", "drop", "return", "reject", "jump", "goto":
		return p.verdict()
	case "dnat", "snat", "masquerade", "redirect":
		return p.nat()
	case "meta", "ct":
		if p.pos+2 < len(p.toks) && p.toks[p.pos+1].text == "mark" && p.toks[p.pos+2].text == "set" {
			return p.setMark()
		}
	}
	fields, err := p.fields("a statement")
	if err != nil {
		return nil, err
	}
	if p.take("vmap") {
		m, err := p.setName(fields)
		return &Vmap{Fields: fields, Map: m}, err
	}
	return p.match(fields)
}

func (p *ruleParser) verdict() (Stmt, error) {
	v := &Verdict{Kind: p.peek()}
	p.pos++
	switch v.Kind {
	case "jump", "goto":
		v.Chain = p.peek()
		if !isIdent(v.Chain) {
			return nil, p.want("the name of a chain")
		}
		p.pos++
	case "reject":
		if p.take("with") {
			v.Reset = true
			if err := p.need("tcp"); err != nil {
				return nil, err
			}
			return v, p.need("reset")
		}
	}
	return v, nil
}

func isIdent(s string) bool {
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') && (i == 0 || c != '-') && c != '_' && (i == 0 || c != '.' && c != '/') {
			return false
		}
	}
	return s != ""
}

func (p *ruleParser) setMark() (Stmt, error) {
	st := &SetMark{Ct: p.peek() == "ct"}
	self, other := "meta", "ct"
	if st.Ct {
		self, other = other, self
	}
	p.pos += 3
	if p.take(self) {
		return st, p.bits(st)
	}
	if p.take(other) {
		st.Copy = true
		return st, p.need("mark")
	}
	n, err := p.number(1<<32-1, "a number or "+strconv.Quote(other+" mark"))
	st.Value = n
	return st, err
}

// bits reads what is done with the mark's own value.
func (p *ruleParser) bits(st *SetMark) (err error) {
	if err := p.need("mark"); err != nil {
		return err
	}
	switch {
	case p.take("and"):
		st.Keep, err = p.number(1<<32-1, "a mask")
	case p.take("or"):
		st.Value, err = p.number(1<<32-1, "a number")
		st.Keep = ^st.Value
	default:
		err = p.want(`"and" or "or"`)
	}
	return err
}

// fields reads FIELD { "." FIELD }.
func (p *ruleParser) fields(what string) ([]Field, error) {
	var out []Field
	for {
		f, ok := p.field()
		if !ok {
			return nil, p.want(what)
		}
		out = append(out, f)
		if !p.take(".") {
			break
		}
		what = "a field"
	}
	if len(out) > 1 {
		for _, f := range out {
			if f.Type() == "" {
				return nil, p.want(fmt.Sprintf("no %q in a concatenation", f))
			}
		}
	}
	return out, nil
}

// field reads the words of one field, of which there are one to three.
func (p *ruleParser) field() (Field, bool) {
	var words []string
	for n := 0; n < 3 && p.pos+n < len(p.toks); n++ {
		t := p.toks[p.pos+n]
		if t.quoted {
			break
		}
		words = append(words, t.text)
		f := Field(strings.Join(words, " "))
		if _, ok := fieldTypes[f]; ok {
			p.pos += n + 1
			return f, true
		}
	}
	return "", false
}

func (p *ruleParser) setName(fields []Field) (string, error) {
	if fields[0].Type() == "" {
		return "", p.want(fmt.Sprintf("no look-up of %q", fields[0]))
	}
	w := p.peek()
	if !strings.HasPrefix(w, "@") || !isIdent(w[1:]) {
		return "", p.want("@ and the name of a set or map")
	}
	p.pos++
	return w[1:], nil
}

func (p *ruleParser) match(fields []Field) (Stmt, error) {
	m := &Match{Fields: fields}
	f := fields[0]
	if (f == FieldMark || f == FieldCtMark) && len(fields) == 1 && (p.take("and") || p.take("&")) {
		var err error
		if m.Mask, err = p.number(1<<32-1, "a mask"); err != nil {
			return nil, err
		}
		if m.Mask == 0 {
			p.pos--
			return nil, p.want("a mask other than 0")
		}
		if w := p.peek(); w != "==" && w != "!=" {
			return nil, p.want(`"==" or "!="`)
		}
	}
	if flags := f == FieldCtState || f == FieldCtStatus; flags && p.peek() == "==" {
		return nil, p.want("no == before flags: nft would compare all the bits at once")
	}
	if !p.take("==") {
		m.Not = p.take("!=")
	}
	if len(fields) > 1 || strings.HasPrefix(p.peek(), "@") && m.Mask == 0 {
		var err error
		m.Set, err = p.setName(fields)
		return m, err
	}
	return m, p.value(f, m)
}

// value reads the value that a field is compared with.
func (p *ruleParser) value(f Field, m *Match) error {
	switch f {
	case FieldIifname, FieldOifname:
		return p.ifname(m)
	case FieldEthSaddr, FieldVNI:
		return p.want("@ and the name of a set")
	case FieldIPSaddr, FieldIPDaddr, FieldIP6Saddr, FieldIP6Daddr:
		return p.address(f, m)
	case FieldCtState:
		return p.flags(ctStates, m)
	case FieldCtStatus:
		return p.flags(ctStatuses, m)
	case FieldNfproto:
		return p.word(nfprotos, m)
	case FieldFibDaddr:
		return p.word(fibTypes, m)
	case FieldL4proto:
		if n, ok := Protocols[p.peek()]; ok {
			p.pos++
			m.Lo, m.Hi = uint32(n), uint32(n)
			return nil
		}
		return p.numbers(255, "a protocol", m)
	case FieldMark, FieldCtMark, FieldIifgroup, FieldOifgroup:
		n, err := p.number(1<<32-1, "a number")
		m.Lo, m.Hi = n, n
		return err
	}
	return p.numbers(65535, "a port or two joined by -", m)
}

func (p *ruleParser) ifname(m *Match) error {
	const what = `an interface name in quotes, at most 15 bytes, or "PREFIX*"`
	if p.end() || !p.toks[p.pos].quoted {
		return p.want(what)
	}
	m.Name, m.Wildcard = strings.CutSuffix(p.toks[p.pos].text, "*")
	if m.Name == "" || len(m.Name) > 15 || strings.ContainsAny(m.Name, "*/ \\") {
		return p.want(what)
	}
	p.pos++
	return nil
}

func (p *ruleParser) address(f Field, m *Match) error {
	v4 := f.Type() == TypeIPv4
	pf, err := ParsePrefix(p.peek())
	if err != nil || pf.Addr().Is4() != v4 || pf.Masked() != pf || pf.Bits() == 0 {
		return p.want(map[bool]string{true: "an IPv4", false: "an IPv6"}[v4] + " address or prefix without host bits, or @ and a set")
	}
	p.pos++
	m.Prefix = pf
	return nil
}

// ParsePrefix reads an address, which gives a prefix of full length, or a prefix.
func ParsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is no address", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func (p *ruleParser) flags(words map[string]uint32, m *Match) error {
	for {
		bit, ok := words[p.peek()]
		if !ok {
			return p.want(oneOf(words))
		}
		if m.Not && (m.Lo != 0 || m.Fields[0] == FieldCtStatus) {
			return p.want("no != for a list or for ct status: nft would compare all the bits at once")
		}
		p.pos++
		m.Lo |= bit
		if !p.take(",") {
			m.Hi = m.Lo
			return nil
		}
	}
}

func (p *ruleParser) word(words map[string]uint32, m *Match) error {
	v, ok := words[p.peek()]
	if !ok {
		return p.want(oneOf(words))
	}
	p.pos++
	m.Lo, m.Hi = v, v
	return nil
}

func oneOf(words map[string]uint32) string {
	var out []string
	for w := range words {
		out = append(out, w)
	}
	slices.Sort(out)
	return "one of " + strings.Join(out, ", ")
}

// number reads a number that stands alone.
func (p *ruleParser) number(most uint64, what string) (uint32, error) {
	n, err := strconv.ParseUint(p.peek(), 0, 64)
	if err != nil || n > most {
		return 0, p.want(fmt.Sprintf("%s, at most %d", what, most))
	}
	p.pos++
	return uint32(n), nil
}

// numbers reads N or N-M.
func (p *ruleParser) numbers(most uint64, what string, m *Match) error {
	lo, hi, two := strings.Cut(p.peek(), "-")
	if !two {
		hi = lo
	}
	a, err1 := strconv.ParseUint(lo, 0, 64)
	b, err2 := strconv.ParseUint(hi, 0, 64)
	if err1 != nil || err2 != nil || b > most || a > b || two && a == b {
		return p.want(fmt.Sprintf("%s, at most %d", what, most))
	}
	p.pos++
	m.Lo, m.Hi = uint32(a), uint32(b)
	return nil
}

func (p *ruleParser) nat() (Stmt, error) {
	n := &NAT{Kind: p.peek()}
	p.pos++
	switch n.Kind {
	case "masquerade":
		n.Random = p.take("random")
		return n, nil
	case "redirect":
		if err := p.need("to"); err != nil {
			return nil, err
		}
		port, ok := strings.CutPrefix(p.peek(), ":")
		v, err := strconv.ParseUint(port, 10, 16)
		if !ok || err != nil || v == 0 {
			return nil, p.want(`":" and a port`)
		}
		p.pos++
		n.Port = uint16(v)
		return n, nil
	}
	if n.V6 = p.take("ip6"); !n.V6 {
		if err := p.need("ip"); err != nil {
			return nil, err
		}
	}
	if err := p.need("to"); err != nil {
		return nil, err
	}
	if at := p.pos; true {
		if _, ok := p.field(); ok {
			p.pos = at
			return n, p.natMap(n)
		}
	}
	return n, p.target(n)
}

func (p *ruleParser) natMap(n *NAT) (err error) {
	if n.Fields, err = p.fields("a field"); err != nil {
		return err
	}
	if err := p.need("map"); err != nil {
		return err
	}
	n.Map, err = p.setName(n.Fields)
	return err
}

func (p *ruleParser) target(n *NAT) error {
	w := p.peek()
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(w, "["), "]")); err == nil {
		n.Addr = a
	} else if ap, err := netip.ParseAddrPort(w); err == nil && ap.Port() > 0 {
		n.Addr, n.Port = ap.Addr(), ap.Port()
	}
	if !n.Addr.IsValid() || n.Addr.Is6() != n.V6 || n.Addr.Zone() != "" {
		return p.want(map[bool]string{false: "ADDR or ADDR:PORT", true: "ADDR or [ADDR]:PORT"}[n.V6] + ", or fields and a map")
	}
	p.pos++
	return nil
}
