package linux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// acceptMark begins the comment of the daemon's rules in other people's chains; the rule follows, so that it can be read
// back.
const acceptMark = kernel.AliasPrefix + " "

// What iptables-nft wraps its own matches and targets in has these attributes, NFTA_TARGET_NAME and NFTA_TARGET_INFO, or
// NFTA_MATCH_… with the same numbers (nf_tables_compat.h).
const (
	targetName = 1
	targetInfo = 3
)

var families = map[string]uint8{"ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6, "inet": unix.NFPROTO_INET}

func familyName(f uint8) string {
	for n, v := range families {
		if v == f {
			return n
		}
	}
	return ""
}

// chainAccepts gives our rules in a chain that are of use there: before its end and before whatever drops all.
func chainAccepts(rules []*ruleInfo) (useful, useless []*ruleInfo) {
	dead := false
	for _, r := range rules {
		if strings.HasPrefix(r.comment, acceptMark) {
			if dead {
				useless = append(useless, r)
			} else {
				useful = append(useful, r)
			}
		}
		dead = dead || r.endsAll()
	}
	return useful, useless
}

func (s *session) listAccepts(sp *space, want []kernel.Object, f *found) error {
	for _, o := range want {
		a := o.(*kernel.Accept)
		s.k.wantAccept(kernel.Create, a)
		p, err := sp.acceptPlace(a)
		if err != nil {
			return err
		}
		if p.stands {
			f.add(a)
		}
	}
	return nil
}

// acceptPlace is what a chain has of an accept.
type acceptPlace struct {
	rules []*ruleInfo
	mine  []*ruleInfo // to go with it
	// stands says that it is there and of use, in that all it may lack is the rule that leads to Via.
	stands, in bool
	// via says that its chain Via exists, lead is the rule that leads there, nil for none.
	via  bool
	lead *ruleInfo
}

func acceptComment(a *kernel.Accept) string { return acceptPrefix(a) + a.Rule }

func acceptPrefix(a *kernel.Accept) string {
	if a.Mark == "" {
		return acceptMark
	}
	return a.Mark + " "
}

// viaComment is that of the rule that leads to a chain on the way to an accept, or begins it where none is named.
func viaComment(a *kernel.Accept) string { return acceptPrefix(a) + "jump " + a.Via }

// acceptPlace looks where an accept stands or is to stand.
func (p *space) acceptPlace(a *kernel.Accept) (*acceptPlace, error) {
	fam := families[a.Family]
	out := &acceptPlace{}
	var err error
	if out.rules, err = p.ruleInfos(fam, a.Table, a.Chain); err != nil {
		return nil, err
	}
	if a.Others {
		want, err := addrMatch(a.Rule)
		if err != nil {
			return nil, err
		}
		for _, r := range out.rules {
			if r.accepts(want) {
				out.mine = append(out.mine, r)
			}
		}
		out.stands = len(out.mine) > 0
		return out, nil
	}
	if a.Via != "" {
		if out.via, err = p.hasChain(fam, a.Table, a.Via); err != nil {
			return nil, err
		}
		if out.via {
			if out.lead, err = p.leadsTo(fam, a.Table, out.rules, a.Via); err != nil {
				return nil, err
			}
		}
	}
	dead, led := false, !out.via
	for _, r := range out.rules {
		switch r.comment {
		case acceptComment(a):
			out.mine = append(out.mine, r)
			out.in = out.in || !dead && (led || out.lead == nil)
			out.stands = out.stands || !dead && led
		default:
			if r.comment == viaComment(a) || a.Via == "" && strings.HasPrefix(r.comment, viaComment(a)) {
				out.mine = append(out.mine, r)
			}
		}
		led = led || r == out.lead
		dead = dead || r.endsAll()
	}
	return out, nil
}

func (p *space) hasChain(family uint8, table, chain string) (bool, error) {
	so, err := p.nft()
	if err != nil {
		return false, err
	}
	m := nftMsg(unix.NFT_MSG_GETCHAIN, 0, family)
	m.str(unix.NFTA_CHAIN_TABLE, table)
	m.str(unix.NFTA_CHAIN_NAME, chain)
	_, err = so.get(m)
	if gone(err) {
		return false, nil
	}
	return err == nil, err
}

// leadsTo gives the first of a chain's rules that jumps to another, or to one that does; nil for none.
func (p *space) leadsTo(family uint8, table string, rules []*ruleInfo, to string) (*ruleInfo, error) {
	for _, r := range rules {
		next := r.jumpsTo()
		if next == to {
			return r, nil
		}
		if next == "" {
			continue
		}
		inner, err := p.ruleInfos(family, table, next)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(inner, func(r *ruleInfo) bool { return r.jumpsTo() == to }) {
			return r, nil
		}
	}
	return nil, nil
}

// addrMatch reads a rule that matches one address and nothing else.
func addrMatch(rule string) (*kernel.Match, error) {
	p, err := kernel.ParseRule(rule)
	if err != nil {
		return nil, err
	}
	m, ok := p.Stmts[0].(*kernel.Match)
	if !ok || len(p.Stmts) != 1 || !m.Prefix.IsValid() || !m.Prefix.IsSingleIP() || m.Not {
		return nil, fmt.Errorf("rule %q: want the match of one address", rule)
	}
	return m, nil
}

// accepts reports whether the rule accepts packets with one address, whatever else it asks for.
func (r *ruleInfo) accepts(want *kernel.Match) bool {
	s := sources[want.Fields[0]]
	addr := want.Prefix.Addr().AsSlice()
	loaded, matches, accept := false, false, false
	for _, e := range attrs(r.exprs) {
		data := attrOf(e, unix.NFTA_EXPR_DATA)
		switch cstr(attrOf(e, unix.NFTA_EXPR_NAME)) {
		case "payload":
			num := func(attr uint16) uint32 { return num32be(attrOf(data, attr)) }
			loaded = num(unix.NFTA_PAYLOAD_BASE) == s.base && num(unix.NFTA_PAYLOAD_OFFSET) == s.offset && num(unix.NFTA_PAYLOAD_LEN) == uint32(s.size)
		case "cmp":
			if loaded && num32be(attrOf(data, unix.NFTA_CMP_OP)) == unix.NFT_CMP_EQ {
				matches = matches || bytes.Equal(attrOf(attrOf(data, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE), addr)
			}
			loaded = false
		case "immediate":
			v := attrOf(attrOf(data, unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
			accept = v != nil && num32be(attrOf(v, unix.NFTA_VERDICT_CODE)) == nfAccept
		default:
			loaded = false // something changed the register
		}
	}
	return matches && accept
}

// allAccepts lists our rules in all chains of others.
func (s *session) allAccepts(sp *space, f *found) error {
	chains, err := sp.baseChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		rules, err := sp.ruleInfos(c.family, c.table, c.Name)
		if err != nil {
			return err
		}
		useful, useless := chainAccepts(rules)
		for _, r := range append(useful, useless...) {
			f.add(&kernel.Accept{Family: familyName(c.family), Table: c.table, Chain: c.Name,
				Rule: strings.TrimPrefix(r.comment, acceptMark)})
		}
	}
	return nil
}

// baseChains lists the chains of others that are hooked at forward or input, in the families that see IP packets.
func (p *space) baseChains() ([]*rawChain, error) {
	so, err := p.nft()
	if err != nil {
		return nil, err
	}
	locked, err := so.lockedTables()
	if err != nil {
		return nil, err
	}
	rs, err := so.dump(nftMsg(unix.NFT_MSG_GETCHAIN, 0, unix.NFPROTO_UNSPEC))
	if err != nil {
		return nil, err
	}
	var out []*rawChain
	for _, r := range rs {
		c := parseChain(r)
		if c == nil || c.Hook != "forward" && c.Hook != "input" || familyName(c.family) == "" ||
			c.family == unix.NFPROTO_INET && strings.HasPrefix(c.table, tablePrefix) {
			continue
		}
		c.locked = locked[tableID{c.family, c.table}]
		out = append(out, c)
	}
	return out, nil
}

// tableOwned is NFT_TABLE_F_OWNER (kernel 5.12).
const tableOwned = 2

type tableID struct {
	family uint8
	name   string
}

// lockedTables are those that only the socket that made them may change.
func (s *sock) lockedTables() (map[tableID]bool, error) {
	rs, err := s.dump(nftMsg(unix.NFT_MSG_GETTABLE, 0, unix.NFPROTO_UNSPEC))
	if err != nil {
		return nil, err
	}
	out := map[tableID]bool{}
	for _, r := range rs {
		if len(r.data) < nfgenLen {
			continue
		}
		body := r.rest(nfgenLen)
		if flags := attrOf(body, unix.NFTA_TABLE_FLAGS); flags != nil && num32be(flags)&tableOwned != 0 {
			out[tableID{r.data[0], cstr(attrOf(body, unix.NFTA_TABLE_NAME))}] = true
		}
	}
	return out, nil
}

// acceptMsgs gives the messages that put our rule into somebody's chain or take it out. It stands before the last rule
// where that one lets nothing pass, else at the end.
func (s *session) acceptMsgs(sp *space, op kernel.Op, a *kernel.Accept) ([]*msg, error) {
	fam, ok := families[a.Family]
	if !ok {
		return nil, fmt.Errorf("family %q: %w", a.Family, kernel.ErrUnsupported)
	}
	if len(acceptComment(a)) > maxComment {
		return nil, errors.New("the rule is too long to be marked as ours")
	}
	if op != kernel.Delete && a.Others {
		return nil, fmt.Errorf("a rule of somebody else's is not made: %w", kernel.ErrUnsupported)
	}
	s.k.wantAccept(op, a)
	p, err := sp.acceptPlace(a)
	if err != nil {
		return nil, err
	}
	if op != kernel.Delete && p.stands {
		return nil, nil
	}
	var out []*msg
	for _, r := range p.mine {
		if op != kernel.Delete && (r == p.lead || p.in) {
			continue
		}
		m := ruleIn(unix.NFT_MSG_DELRULE, 0, fam, a)
		m.be64(unix.NFTA_RULE_HANDLE, r.handle)
		out = append(out, m)
	}
	if op == kernel.Delete {
		return out, nil
	}
	if !p.in {
		m, err := newRule(fam, a, " counter accept", acceptComment(a))
		if err != nil {
			return nil, err
		}
		p.position(m, a)
		out = append(out, m)
	}
	if p.via && p.lead == nil {
		m, err := newRule(fam, &kernel.Accept{Table: a.Table, Chain: a.Chain}, "counter jump "+a.Via, viaComment(a))
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// newRule makes a rule before all others of the accept's chain.
func newRule(fam uint8, a *kernel.Accept, end, comment string) (*msg, error) {
	m := ruleIn(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE, fam, a)
	if err := compileIn(m, fam, a.Rule+end); err != nil {
		return nil, err
	}
	m.attr(unix.NFTA_RULE_USERDATA, udata(comment))
	return m, nil
}

// position says where a new rule goes.
func (p *acceptPlace) position(m *msg, a *kernel.Accept) {
	switch n := len(p.rules); {
	case p.lead != nil:
		m.be64(unix.NFTA_RULE_POSITION, p.lead.handle) // with the flag: behind that rule
		m.flag(unix.NLM_F_APPEND)
	case a.First: // with neither: before all
	case n > 0 && p.rules[n-1].endsAll():
		m.be64(unix.NFTA_RULE_POSITION, p.rules[n-1].handle)
	default:
		m.flag(unix.NLM_F_APPEND)
	}
}

// ruleIn begins a message about a rule of the accept's chain.
func ruleIn(typ, flags uint16, fam uint8, a *kernel.Accept) *msg {
	m := nftMsg(typ, flags, fam)
	m.str(unix.NFTA_RULE_TABLE, a.Table)
	m.str(unix.NFTA_RULE_CHAIN, a.Chain)
	return m
}

// compileIn encodes a rule as iptables-nft does (match, counter, verdict), so that iptables-save and its like
// still understand the chain that it stands in.
func compileIn(m *msg, fam uint8, rule string) error {
	none := func(string) *kernel.Set { return nil }
	c := compiler{set: none}
	switch fam { // in the families of one protocol there is nothing to make sure of
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
		c.nfproto = fam
	}
	return c.compile(m, rule)
}

// iptablesComment gives the comment of a rule that iptables-restore has put back: it is a match then.
func iptablesComment(exprs []byte) string {
	for _, e := range attrs(exprs) {
		if cstr(attrOf(e, unix.NFTA_EXPR_NAME)) != "match" {
			continue
		}
		if data := attrOf(e, unix.NFTA_EXPR_DATA); cstr(attrOf(data, targetName)) == "comment" {
			return cstr(attrOf(data, targetInfo))
		}
	}
	return ""
}

// endsAll reports whether no packet gets past the rule: it has no condition and drops or rejects.
func (r *ruleInfo) endsAll() bool {
	for _, e := range attrs(r.exprs) {
		name := cstr(attrOf(e, unix.NFTA_EXPR_NAME))
		data := attrOf(e, unix.NFTA_EXPR_DATA)
		switch name {
		case "counter", "log":
		case "reject":
			return true
		case "target": // iptables' REJECT
			t := cstr(attrOf(data, targetName))
			return t == "REJECT" || t == "DROP"
		case "immediate":
			v := attrOf(attrOf(data, unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
			return v != nil && int32(num32be(attrOf(v, unix.NFTA_VERDICT_CODE))) == 0
		default:
			return false
		}
	}
	return false
}
