package linux

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	nfAccept      = 1  // NF_ACCEPT
	chainUserdata = 12 // NFTA_CHAIN_USERDATA, kernel 5.9
	// separate marks chains that are objects of their own (kernel.TableChain) in their user data.
	separate = "seine:chain"
)

// tableRef names a table.
type tableRef struct {
	family uint8
	name   string
}

func refTo(family, name string) tableRef {
	if family == kernel.FamilyBridge {
		return tableRef{unix.NFPROTO_BRIDGE, name}
	}
	return tableRef{unix.NFPROTO_INET, name}
}

// familyText is the family as objects carry it.
func (t tableRef) familyText() string {
	if t.family == unix.NFPROTO_BRIDGE {
		return kernel.FamilyBridge
	}
	return ""
}

var hookNames = []string{"prerouting", "input", "forward", "output", "postrouting"}

// tableMsgs are the messages that make a table with all that is in it.
func tableMsgs(t *kernel.Table) ([]*msg, error) {
	ref := refTo(t.Family, t.Name)
	m := nftMsg(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ref.family)
	m.str(unix.NFTA_TABLE_NAME, t.Name)
	m.be32(unix.NFTA_TABLE_FLAGS, 0)
	out := []*msg{m}
	for i, s := range t.Sets {
		m, err := setMsg(ref, s, uint32(i+1))
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	for _, c := range t.Chains {
		m, err := chainMsg(ref, c, "")
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	for _, c := range t.Chains {
		ms, err := ruleMsgs(ref, c, t.Set)
		if err != nil {
			return nil, err
		}
		out = append(out, ms...)
	}
	return out, nil
}

func setMsg(table tableRef, s *kernel.Set, id uint32) (*msg, error) {
	key, err := typeInfo(s.Key)
	if err == nil && key.size == 0 {
		err = fmt.Errorf("it has no key")
	}
	if err == nil && s.Interval && len(s.Key) != 1 {
		err = fmt.Errorf("intervals of concatenations: %w", kernel.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("set %q: %w", s.Name, err)
	}
	m := nftMsg(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL, table.family)
	m.str(unix.NFTA_SET_TABLE, table.name)
	m.str(unix.NFTA_SET_NAME, s.Name)
	flags := uint32(0)
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if len(s.Data) > 0 {
		flags |= unix.NFT_SET_MAP
	}
	m.be32(unix.NFTA_SET_FLAGS, flags)
	m.be32(unix.NFTA_SET_KEY_TYPE, key.id)
	m.be32(unix.NFTA_SET_KEY_LEN, key.size)
	orders := appendOrder(nil, 0, key.order)
	if len(s.Data) > 0 {
		data, err := typeInfo(s.Data)
		if err != nil {
			return nil, fmt.Errorf("map %q: %w", s.Name, err)
		}
		m.be32(unix.NFTA_SET_DATA_TYPE, data.id)
		m.be32(unix.NFTA_SET_DATA_LEN, data.size)
		orders = appendOrder(orders, 1, data.order)
	}
	m.be32(unix.NFTA_SET_ID, id)
	m.attr(unix.NFTA_SET_USERDATA, orders)
	return m, nil
}

// appendOrder adds the byte order of a key (0) or of data (1) for nft, which prints numbers by it.
func appendOrder(b []byte, what byte, order uint32) []byte {
	return native.AppendUint32(append(b, what, 4), order)
}

// chainMsg makes a chain, or leaves one that is there as it is.
func chainMsg(table tableRef, c *kernel.Chain, mark string) (*msg, error) {
	m := nftMsg(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, table.family)
	m.str(unix.NFTA_CHAIN_TABLE, table.name)
	m.str(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != "" {
		n := slices.Index(hookNames, c.Hook)
		if n < 0 {
			return nil, fmt.Errorf("chain %q: hook %q is unknown", c.Name, c.Hook)
		}
		m.nested(unix.NFTA_CHAIN_HOOK, func() {
			m.be32(unix.NFTA_HOOK_HOOKNUM, uint32(n))
			m.be32(unix.NFTA_HOOK_PRIORITY, uint32(int32(c.Priority)))
		})
		m.be32(unix.NFTA_CHAIN_POLICY, nfAccept)
		m.str(unix.NFTA_CHAIN_TYPE, c.Type)
	}
	if mark != "" {
		m.attr(chainUserdata, udata(mark))
	}
	return m, nil
}

func ruleMsgs(table tableRef, c *kernel.Chain, set func(string) *kernel.Set) ([]*msg, error) {
	var out []*msg
	for _, r := range c.Rules {
		m := nftMsg(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, table.family)
		m.str(unix.NFTA_RULE_TABLE, table.name)
		m.str(unix.NFTA_RULE_CHAIN, c.Name)
		if err := compile(m, table.family, r, set); err != nil {
			return nil, fmt.Errorf("chain %q: %w", c.Name, err)
		}
		m.attr(unix.NFTA_RULE_USERDATA, udata(kernel.RuleHash(r)))
		out = append(out, m)
	}
	return out, nil
}

func delTable(table tableRef) *msg {
	m := nftMsg(unix.NFT_MSG_DELTABLE, 0, table.family)
	m.str(unix.NFTA_TABLE_NAME, table.name)
	return m
}

func flushChain(table tableRef, chain string) *msg {
	m := nftMsg(unix.NFT_MSG_DELRULE, 0, table.family)
	m.str(unix.NFTA_RULE_TABLE, table.name)
	m.str(unix.NFTA_RULE_CHAIN, chain)
	return m
}

func delChain(table tableRef, chain string) *msg {
	m := nftMsg(unix.NFT_MSG_DELCHAIN, 0, table.family)
	m.str(unix.NFTA_CHAIN_TABLE, table.name)
	m.str(unix.NFTA_CHAIN_NAME, chain)
	return m
}

// updateTable gives the messages that turn the table that is there into t. With the same sets, or more, the elements stay
// and the chains are refilled; a set can't be changed in place, so that the table is made anew.
func updateTable(t *kernel.Table, have *tableInfo) ([]*msg, error) {
	create, err := tableMsgs(t)
	if err != nil || have == nil {
		return create, err
	}
	if !sameSets(t, have) {
		return append([]*msg{delTable(have.tableRef)}, create...), nil
	}
	sets, rest := create[1:1+len(t.Sets)], create[1+len(t.Sets):]
	var out []*msg
	for _, c := range have.chains {
		if !c.separate {
			out = append(out, flushChain(have.tableRef, c.Name))
		}
	}
	for _, c := range have.chains {
		i := slices.IndexFunc(t.Chains, func(w *kernel.Chain) bool { return w.Name == c.Name })
		if !c.separate && (i < 0 || !sameHook(t.Chains[i], &c.Chain)) {
			out = append(out, delChain(have.tableRef, c.Name))
		}
	}
	for i, s := range t.Sets {
		if !slices.ContainsFunc(have.sets, func(h *kernel.Set) bool { return h.Name == s.Name }) {
			out = append(out, sets[i])
		}
	}
	return append(out, rest...), nil
}

// sameSets reports whether t has all the sets that are there, as they are.
func sameSets(t *kernel.Table, have *tableInfo) bool {
	return t.Extends(&kernel.Table{Name: t.Name, Sets: have.sets})
}

func sameHook(a, b *kernel.Chain) bool {
	return a.Hook == b.Hook && a.Type == b.Type && a.Priority == b.Priority
}

// tableInfo is a table as the kernel tells it.
type tableInfo struct {
	tableRef
	sets   []*kernel.Set
	chains []*chainInfo
}

type chainInfo struct {
	kernel.Chain
	separate bool
}

// table reads a table without its elements; nil where there is none.
func (p *space) table(ref tableRef) (*tableInfo, error) {
	so, err := p.nft()
	if err != nil {
		return nil, err
	}
	m := nftMsg(unix.NFT_MSG_GETTABLE, 0, ref.family)
	m.str(unix.NFTA_TABLE_NAME, ref.name)
	if _, err := so.get(m); gone(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	t := &tableInfo{tableRef: ref}
	if t.sets, err = p.sets(ref); err != nil {
		return nil, err
	}
	rs, err := so.dump(nftMsg(unix.NFT_MSG_GETCHAIN, 0, ref.family))
	if err != nil {
		return nil, err
	}
	byName := map[string]*chainInfo{}
	for _, r := range rs {
		if c := parseChain(r); c != nil && c.table == ref.name {
			byName[c.Name] = &chainInfo{c.Chain, c.comment == separate}
			t.chains = append(t.chains, byName[c.Name])
		}
	}
	rules, err := p.ruleInfos(ref.family, ref.name, "")
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		if c := byName[r.chain]; c != nil {
			c.Rules = append(c.Rules, r.text())
		}
	}
	return t, nil
}

// sets reads the declarations of a table's sets, anonymous ones left out.
func (p *space) sets(table tableRef) ([]*kernel.Set, error) {
	so, err := p.nft()
	if err != nil {
		return nil, err
	}
	m := nftMsg(unix.NFT_MSG_GETSET, 0, table.family)
	m.str(unix.NFTA_SET_TABLE, table.name)
	rs, err := so.dump(m)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*kernel.Set
	for _, r := range rs {
		s := &kernel.Set{}
		var flags uint32
		for t, v := range attrs(r.rest(nfgenLen)) {
			switch t {
			case unix.NFTA_SET_NAME:
				s.Name = cstr(v)
			case unix.NFTA_SET_FLAGS:
				flags = num32be(v)
			case unix.NFTA_SET_KEY_TYPE:
				s.Key = typesOf(num32be(v))
			case unix.NFTA_SET_DATA_TYPE:
				s.Data = typesOf(num32be(v))
			}
		}
		s.Interval = flags&unix.NFT_SET_INTERVAL != 0
		if flags&unix.NFT_SET_ANONYMOUS == 0 {
			out = append(out, s)
		}
	}
	return out, nil
}

// rawChain is a chain of any family as the kernel tells it.
type rawChain struct {
	kernel.Chain
	family  uint8
	table   string
	comment string
	policy  uint32
	locked  bool
}

func parseChain(r reply) *rawChain {
	if r.typ != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN || len(r.data) < nfgenLen {
		return nil
	}
	c := &rawChain{family: r.data[0], policy: nfAccept}
	for t, v := range attrs(r.rest(nfgenLen)) {
		switch t {
		case unix.NFTA_CHAIN_TABLE:
			c.table = cstr(v)
		case unix.NFTA_CHAIN_NAME:
			c.Name = cstr(v)
		case unix.NFTA_CHAIN_TYPE:
			c.Type = cstr(v)
		case unix.NFTA_CHAIN_POLICY:
			c.policy = num32be(v)
		case chainUserdata:
			c.comment = comment(v)
		case unix.NFTA_CHAIN_HOOK:
			if n := int(num32be(attrOf(v, unix.NFTA_HOOK_HOOKNUM))); n < len(hookNames) {
				c.Hook = hookNames[n]
			}
			c.Priority = int(int32(num32be(attrOf(v, unix.NFTA_HOOK_PRIORITY))))
		}
	}
	return c
}

// ruleInfo is a rule of any family as the kernel tells it.
type ruleInfo struct {
	chain   string
	handle  uint64
	comment string
	exprs   []byte
}

// text stands for the rule in a listing: its hash, or something that no wanted rule can be.
func (r *ruleInfo) text() string {
	if len(r.comment) == len("h:")+16 && r.comment == kernel.RuleHash(r.comment) {
		return r.comment
	}
	return fmt.Sprintf("# not ours: handle %d", r.handle)
}

// ruleInfos lists the rules of a table in order, or of one chain.
func (p *space) ruleInfos(family uint8, table, chain string) ([]*ruleInfo, error) {
	so, err := p.nft()
	if err != nil {
		return nil, err
	}
	m := nftMsg(unix.NFT_MSG_GETRULE, 0, family)
	m.str(unix.NFTA_RULE_TABLE, table)
	if chain != "" {
		m.str(unix.NFTA_RULE_CHAIN, chain)
	}
	rs, err := so.dump(m)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*ruleInfo
	for _, r := range rs {
		i := &ruleInfo{}
		for t, v := range attrs(r.rest(nfgenLen)) {
			switch t {
			case unix.NFTA_RULE_CHAIN:
				i.chain = cstr(v)
			case unix.NFTA_RULE_HANDLE:
				if len(v) == 8 {
					i.handle = binary.BigEndian.Uint64(v)
				}
			case unix.NFTA_RULE_USERDATA:
				i.comment = comment(v)
			case unix.NFTA_RULE_EXPRESSIONS:
				i.exprs = v
			}
		}
		if i.comment == "" {
			i.comment = iptablesComment(i.exprs)
		}
		if chain == "" || i.chain == chain {
			out = append(out, i)
		}
	}
	return out, nil
}

// object gives the table as one that can be compared with a wanted one.
func (t *tableInfo) object(ns string) *kernel.Table {
	o := &kernel.Table{NS: ns, Family: t.familyText(), Name: t.name, Sets: t.sets}
	for _, c := range t.chains {
		if !c.separate {
			o.Chains = append(o.Chains, &c.Chain)
		}
	}
	return o
}

func (t *tableInfo) chain(ns, name string) *kernel.TableChain {
	for _, c := range t.chains {
		if c.Name == name && c.separate {
			return &kernel.TableChain{NS: ns, Family: t.familyText(), Table: t.name, Chain: c.Chain}
		}
	}
	return nil
}

func (s *session) listTables(sp *space, want []kernel.Object, f *found) error {
	have := map[tableRef]*tableInfo{}
	get := func(ref tableRef) (*tableInfo, error) {
		if t, ok := have[ref]; ok {
			return t, nil
		}
		t, err := sp.table(ref)
		have[ref] = t
		return t, err
	}
	for _, o := range want {
		switch o := o.(type) {
		case *kernel.Table:
			t, err := get(refTo(o.Family, o.Name))
			if err != nil {
				return err
			}
			if t != nil {
				f.add(t.object(sp.path))
			}
		case *kernel.TableChain:
			t, err := get(refTo(o.Family, o.Table))
			if err != nil {
				return err
			}
			if t == nil {
				continue
			}
			if c := t.chain(sp.path, o.Chain.Name); c != nil {
				f.add(c)
			}
		}
	}
	return nil
}
