package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// acceptMark begins the comment of our rules in other people's chains; the rule follows, so that it can be read back.
const acceptMark = "seine: "

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
		rules, err := sp.ruleInfos(families[a.Family], a.Table, a.Chain)
		if err != nil {
			return err
		}
		useful, _ := chainAccepts(rules)
		if slices.ContainsFunc(useful, func(r *ruleInfo) bool { return r.comment == acceptMark+a.Rule }) {
			f.add(a)
		}
	}
	return nil
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
		out = append(out, c)
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
	if len(acceptMark+a.Rule) > maxComment {
		return nil, errors.New("the rule is too long to be marked as ours")
	}
	s.k.wantAccept(op, a)
	rules, err := sp.ruleInfos(fam, a.Table, a.Chain)
	if err != nil {
		return nil, err
	}
	useful, useless := chainAccepts(rules)
	mine := func(r *ruleInfo) bool { return r.comment == acceptMark+a.Rule }
	if op != kernel.Delete && slices.ContainsFunc(useful, mine) {
		return nil, nil
	}
	var out []*msg
	for _, r := range append(useful, useless...) {
		if mine(r) {
			m := nftMsg(unix.NFT_MSG_DELRULE, 0, fam)
			m.str(unix.NFTA_RULE_TABLE, a.Table)
			m.str(unix.NFTA_RULE_CHAIN, a.Chain)
			m.be64(unix.NFTA_RULE_HANDLE, r.handle)
			out = append(out, m)
		}
	}
	if op == kernel.Delete {
		return out, nil
	}
	m := nftMsg(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE, fam)
	m.str(unix.NFTA_RULE_TABLE, a.Table)
	m.str(unix.NFTA_RULE_CHAIN, a.Chain)
	if err := compileAccept(m, fam, a.Rule); err != nil {
		return nil, err
	}
	m.attr(unix.NFTA_RULE_USERDATA, udata(acceptMark+a.Rule))
	if n := len(rules); n > 0 && rules[n-1].endsAll() {
		m.be64(unix.NFTA_RULE_POSITION, rules[n-1].handle)
	} else {
		m.flag(unix.NLM_F_APPEND)
	}
	return append(out, m), nil
}

// compileAccept encodes the rule as iptables-nft does (match, counter, verdict), so that iptables-save and its like
// still understand the chain that it stands in.
func compileAccept(m *msg, fam uint8, rule string) error {
	none := func(string) *kernel.Set { return nil }
	c := compiler{set: none}
	switch fam { // in the families of one protocol there is nothing to make sure of
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
		c.nfproto = fam
	}
	return c.compile(m, rule+" counter accept")
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
