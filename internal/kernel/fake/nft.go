package fake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// table is an nftables table that is ours.
type table struct {
	shape  *kernel.Table                         // as it was put, with the text of the rules
	chains map[string]*kernel.TableChain         // the further chains, by name
	elems  map[string]map[string]*kernel.Element // by set and item
}

// otherChain is a chain of somebody else.
type otherChain struct {
	family, table, chain string
	target               bool // no hook: it is jumped to
	rules                []otherRule
}

type otherRule struct {
	text   string
	accept *kernel.Accept // nil for a rule that is not ours
	via    bool           // it leads to accept's Via
}

// later has f run if the transaction is taken back.
func (k *Kernel) later(f func()) { k.undo = append(k.undo, f) }

// setTable puts t (nil for none) under a name.
func (k *Kernel) setTable(s *space, name string, t *table) {
	old := s.tables[name]
	k.later(func() {
		s.tables[name] = old
		if old == nil {
			delete(s.tables, name)
		}
	})
	s.tables[name] = t
	if t == nil {
		delete(s.tables, name)
	}
}

func (k *Kernel) putTable(s *space, o *kernel.Table, update bool) error {
	if err := checkTable(o); err != nil {
		return err
	}
	name := o.Key().Name
	old := s.tables[name]
	switch {
	case old == nil && update:
		return kernel.ErrAbsent
	case old != nil && o.Holds(old.listed()) && len(o.Chains) == len(old.shape.Chains):
		return nil
	case old != nil && !update:
		return kernel.ErrExists
	}
	t := &table{shape: o, chains: map[string]*kernel.TableChain{}, elems: map[string]map[string]*kernel.Element{}}
	if old != nil && o.Extends(old.shape) {
		// The chains are made anew and the sets stay as they are; where one is another, it is another table.
		t.chains, t.elems = old.chains, old.elems
	}
	for _, c := range o.Chains {
		if t.chains[c.Name] != nil {
			return fmt.Errorf("chain %q: %w", c.Name, kernel.ErrExists)
		}
	}
	if err := t.checkRefs(); err != nil {
		return err
	}
	k.setTable(s, name, t)
	return nil
}

func (k *Kernel) deleteTable(s *space, o *kernel.Table) {
	if name := o.Key().Name; s.tables[name] != nil {
		k.setTable(s, name, nil)
	}
}

// tableOf finds a table; nil where there is none.
func (s *space) tableOf(family, name string) *table {
	return s.tables[(&kernel.Table{Family: family, Name: name}).Key().Name]
}

// checkTable checks what needs nothing but the declaration.
func checkTable(o *kernel.Table) error {
	if o.Family != "" && o.Family != kernel.FamilyBridge {
		return fmt.Errorf("family %q: %w", o.Family, kernel.ErrUnsupported)
	}
	if !strings.HasPrefix(o.Name, tablePrefix) {
		return fmt.Errorf("a table whose name does not begin with %q is not provably ours", tablePrefix)
	}
	seen := map[string]bool{}
	for _, set := range o.Sets {
		if seen[set.Name] || set.Name == "" {
			return fmt.Errorf("set %q is declared twice or has no name", set.Name)
		}
		seen[set.Name] = true
		if err := checkSet(set); err != nil {
			return fmt.Errorf("set %q: %w", set.Name, err)
		}
	}
	clear(seen)
	for _, c := range o.Chains {
		if seen[c.Name] || c.Name == "" {
			return fmt.Errorf("chain %q is declared twice or has no name", c.Name)
		}
		seen[c.Name] = true
		if err := checkHook(c); err != nil {
			return fmt.Errorf("chain %q: %w", c.Name, err)
		}
	}
	return nil
}

func checkHook(c *kernel.Chain) error {
	hooks := map[string][]string{
		"filter": {"prerouting", "input", "forward", "output", "postrouting"},
		"nat":    {"prerouting", "input", "output", "postrouting"},
	}
	if c.Hook == "" && c.Type == "" && c.Priority == 0 {
		return nil
	}
	if !slices.Contains(hooks[c.Type], c.Hook) {
		return fmt.Errorf("there is no hook %q for chains of type %q", c.Hook, c.Type)
	}
	if c.Type == "nat" && c.Priority <= -200 {
		return errors.New("a nat chain comes after conntrack, at priority -200")
	}
	return nil
}

func sameSet(a, b *kernel.Set) bool {
	return a != nil && b != nil && a.Name == b.Name && slices.Equal(a.Key, b.Key) && slices.Equal(a.Data, b.Data) &&
		a.Interval == b.Interval
}

// listed gives the table as a listing does: with hashes for rules.
func (t *table) listed() *kernel.Table {
	o := &kernel.Table{NS: t.shape.NS, Family: t.shape.Family, Name: t.shape.Name, Sets: t.shape.Sets}
	for _, c := range t.shape.Chains {
		c := hashed(*c)
		o.Chains = append(o.Chains, &c)
	}
	return o
}

func hashed(c kernel.Chain) kernel.Chain {
	rules := make([]string, len(c.Rules))
	for i, r := range c.Rules {
		rules[i] = kernel.RuleHash(r)
	}
	c.Rules = rules
	return c
}

// chain finds any chain of the table; nil where there is none.
func (t *table) chain(name string) *kernel.Chain {
	if c := t.chains[name]; c != nil {
		return &c.Chain
	}
	if i := slices.IndexFunc(t.shape.Chains, func(c *kernel.Chain) bool { return c.Name == name }); i >= 0 {
		return t.shape.Chains[i]
	}
	return nil
}

// checkRefs checks that all that rules and elements name is there.
func (t *table) checkRefs() error {
	for _, c := range t.shape.Chains {
		if err := t.checkRules(c); err != nil {
			return err
		}
	}
	for _, c := range t.chains {
		if err := t.checkRules(&c.Chain); err != nil {
			return err
		}
	}
	for _, set := range t.elems {
		for _, e := range set {
			if err := t.checkJump(target(e)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *table) checkRules(c *kernel.Chain) error {
	for _, r := range c.Rules {
		if err := t.checkRule(r); err != nil {
			return fmt.Errorf("chain %q: rule %q: %w", c.Name, r, err)
		}
	}
	return nil
}

// checkRule checks the syntax of a rule, and that the sets and chains that it names are there and fit.
func (t *table) checkRule(rule string) error {
	p, err := kernel.ParseRule(rule)
	if err != nil {
		return err
	}
	for _, st := range p.Stmts {
		if err := t.checkFamily(st); err != nil {
			return err
		}
		switch st := st.(type) {
		case *kernel.Match:
			if st.Set != "" {
				err = t.checkLookup(st.Set, st.Fields, nil)
			}
		case *kernel.Vmap:
			err = t.checkLookup(st.Map, st.Fields, []kernel.Type{kernel.TypeVerdict})
		case *kernel.NAT:
			ip := kernel.TypeIPv4
			if st.V6 {
				ip = kernel.TypeIPv6
			}
			if st.Map != "" {
				err = t.checkLookup(st.Map, st.Fields, []kernel.Type{ip}, []kernel.Type{ip, kernel.TypeService})
			}
		case *kernel.Verdict:
			err = t.checkJump(st.Chain)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkFamily checks that the fields of a match are what packets of the table's family have.
func (t *table) checkFamily(st kernel.Stmt) error {
	m, ok := st.(*kernel.Match)
	if !ok {
		return nil
	}
	for _, f := range m.Fields {
		ether := f == kernel.FieldEthSaddr
		ip := slices.ContainsFunc([]string{"ip ", "ip6 ", "tcp ", "udp ", "sctp ", "th "}, func(p string) bool { return strings.HasPrefix(string(f), p) })
		if bridge := t.shape.Family == kernel.FamilyBridge; ether && !bridge || ip && bridge {
			return fmt.Errorf("%q in a table of family %q: %w", f, t.shape.Family, kernel.ErrUnsupported)
		}
	}
	return nil
}

// checkLookup checks that fields can be looked up in a set whose data is one of those.
func (t *table) checkLookup(name string, fields []kernel.Field, data ...[]kernel.Type) error {
	set := t.shape.Set(name)
	if set == nil {
		return fmt.Errorf("set %q: %w", name, kernel.ErrAbsent)
	}
	same := slices.EqualFunc(fields, set.Key, func(f kernel.Field, t kernel.Type) bool { return f.Type() == t })
	if !same || !slices.ContainsFunc(data, func(d []kernel.Type) bool { return slices.Equal(d, set.Data) }) {
		return fmt.Errorf("set %q has other types", name)
	}
	return nil
}

// jumpsTo reports whether a rule leads to a chain.
func jumpsTo(rule, chain string) bool {
	p, err := kernel.ParseRule(rule)
	return err == nil && slices.ContainsFunc(p.Stmts, func(st kernel.Stmt) bool {
		v, ok := st.(*kernel.Verdict)
		return ok && v.Chain == chain
	})
}

// checkJump checks the target of a jump; "" is none.
func (t *table) checkJump(name string) error {
	if name == "" {
		return nil
	}
	c := t.chain(name)
	if c == nil {
		return fmt.Errorf("chain %q: %w", name, kernel.ErrAbsent)
	}
	if c.Hook != "" {
		return fmt.Errorf("chain %q is a base chain, which nothing can jump to", name)
	}
	return nil
}

// target is the chain that an element's verdict leads to; "" for none.
func target(e *kernel.Element) string {
	if verb, name, ok := strings.Cut(e.Data, " "); ok && (verb == "jump" || verb == "goto") && isVerdict(e.Set) {
		return name
	}
	return ""
}

func isVerdict(s *kernel.Set) bool { return len(s.Data) == 1 && s.Data[0] == kernel.TypeVerdict }

// used reports whether something jumps to a chain.
func (t *table) used(name string) bool {
	jumps := func(c *kernel.Chain) bool {
		return slices.ContainsFunc(c.Rules, func(r string) bool { return jumpsTo(r, name) })
	}
	for _, c := range t.chains {
		if c.Chain.Name != name && jumps(&c.Chain) {
			return true
		}
	}
	for _, set := range t.elems {
		for _, e := range set {
			if !isVerdict(e.Set) {
				break
			}
			if target(e) == name {
				return true
			}
		}
	}
	return slices.ContainsFunc(t.shape.Chains, jumps)
}

func (k *Kernel) putChain(s *space, o *kernel.TableChain, update bool) error {
	t := s.tableOf(o.Family, o.Table)
	if t == nil {
		return fmt.Errorf("table %q: %w", o.Table, kernel.ErrAbsent)
	}
	name := o.Chain.Name
	if err := checkHook(&o.Chain); err != nil || name == "" {
		return fmt.Errorf("chain %q: %w", name, errors.Join(err))
	}
	old := t.chains[name]
	switch {
	case old == nil && t.chain(name) != nil:
		return fmt.Errorf("it is part of the table: %w", kernel.ErrExists)
	case old == nil && update:
		return kernel.ErrAbsent
	case old != nil && !update && !o.Holds(old):
		return kernel.ErrExists
	case old != nil && (old.Chain.Hook != o.Chain.Hook || old.Chain.Type != o.Chain.Type || old.Chain.Priority != o.Chain.Priority) && t.used(name):
		return errors.New("is in use, so that its hook can't be changed")
	}
	t.chains[name] = o
	k.later(func() { t.restore(name, old) })
	return t.checkRules(&o.Chain)
}

func (t *table) restore(name string, old *kernel.TableChain) {
	if t.chains[name] = old; old == nil {
		delete(t.chains, name)
	}
}

func (k *Kernel) deleteChain(s *space, o *kernel.TableChain) error {
	t := s.tableOf(o.Family, o.Table)
	name := o.Chain.Name
	if t == nil || t.chains[name] == nil {
		return nil
	}
	if t.used(name) {
		return errors.New("is in use: a rule or an element leads to it")
	}
	old := t.chains[name]
	delete(t.chains, name)
	k.later(func() { t.restore(name, old) })
	return nil
}

func (k *Kernel) putElement(s *space, o *kernel.Element, update bool) error {
	t := s.tableOf(o.Family, o.Table)
	if t == nil {
		return fmt.Errorf("table %q: %w", o.Table, kernel.ErrAbsent)
	}
	set := t.shape.Set(o.Set.Name)
	if set == nil {
		return fmt.Errorf("set %q: %w", o.Set.Name, kernel.ErrAbsent)
	}
	if !sameSet(set, o.Set) {
		return fmt.Errorf("set %q is declared otherwise", set.Name)
	}
	item, err := checkElement(o)
	if err != nil {
		return err
	}
	if err := t.checkJump(target(o)); err != nil {
		return err
	}
	elems := t.elems[set.Name]
	old := elems[o.Item]
	switch {
	case old == nil && update:
		return kernel.ErrAbsent
	case old != nil && !update && !o.Holds(old):
		return fmt.Errorf("its data is %q: %w", old.Data, kernel.ErrExists)
	}
	if set.Interval && old == nil {
		for _, e := range elems {
			if other, _ := checkElement(e); item.overlaps(other) {
				return fmt.Errorf("it overlaps %s: %w", e.Item, kernel.ErrExists)
			}
		}
	}
	if elems == nil {
		elems = map[string]*kernel.Element{}
		t.elems[set.Name] = elems
	}
	elems[o.Item] = o
	k.later(func() {
		if elems[o.Item] = old; old == nil {
			delete(elems, o.Item)
		}
	})
	return nil
}

func (k *Kernel) deleteElement(s *space, o *kernel.Element) {
	t := s.tableOf(o.Family, o.Table)
	if t == nil {
		return
	}
	elems := t.elems[o.Set.Name]
	if old := elems[o.Item]; old != nil {
		delete(elems, o.Item)
		k.later(func() { elems[o.Item] = old })
	}
}

func otherKey(family, table, chain string) string { return family + " " + table + " " + chain }

func (k *Kernel) putAccept(o *kernel.Accept) error {
	c := k.others[otherKey(o.Family, o.Table, o.Chain)]
	if c == nil {
		return fmt.Errorf("chain %q: %w", otherKey(o.Family, o.Table, o.Chain), kernel.ErrAbsent)
	}
	if strings.TrimSpace(o.Rule) == "" {
		return errors.New("would accept everything")
	}
	if _, err := kernel.ParseRule(o.Rule + " accept"); err != nil {
		return err
	}
	if o.Others {
		return fmt.Errorf("a rule of somebody else's is not made: %w", kernel.ErrUnsupported)
	}
	if k.accept(o) != nil {
		return nil
	}
	lead, via := k.lead(c, o)
	rules := slices.Clone(c.rules)
	in := slices.ContainsFunc(rules, func(r otherRule) bool { return r.is(o) }) && lead == ""
	if !in {
		rules = slices.DeleteFunc(rules, func(r otherRule) bool { return r.is(o) })
	}
	at := len(rules)
	switch {
	case lead != "":
		at = 1 + slices.IndexFunc(rules, func(r otherRule) bool { return r.text == lead })
	case o.First:
		at = 0
	case at > 0 && endsAll(rules[at-1].text):
		at--
	}
	if !in {
		rules = slices.Insert(rules, at, otherRule{text: o.Rule + " accept", accept: o})
	}
	if via && lead == "" {
		rules = slices.Insert(rules, 0, otherRule{text: "jump " + o.Via, accept: o, via: true})
	}
	k.setRules(c, rules)
	return nil
}

// is reports whether the rule is the accept, one and the same where only the way there differs.
func (r otherRule) is(o *kernel.Accept) bool {
	if o.Others {
		return r.accept == nil && strings.HasPrefix(r.text, o.Rule+" ") && strings.HasSuffix(r.text, " accept")
	}
	return r.accept != nil && !r.via && r.accept.Rule == o.Rule && r.accept.Mark == o.Mark
}

// lead gives the text of the first rule that leads to the accept's Via, "" for none, and whether that chain exists.
func (k *Kernel) lead(c *otherChain, o *kernel.Accept) (text string, exists bool) {
	find := func(chain string) *otherChain { return k.others[otherKey(c.family, c.table, chain)] }
	if o.Via == "" || find(o.Via) == nil {
		return "", false
	}
	for _, r := range c.rules {
		if jumpsTo(r.text, o.Via) {
			return r.text, true
		}
		for _, next := range k.others {
			if next.family == c.family && next.table == c.table && jumpsTo(r.text, next.chain) &&
				slices.ContainsFunc(next.rules, func(r otherRule) bool { return jumpsTo(r.text, o.Via) }) {
				return r.text, true
			}
		}
	}
	return "", true
}

// accept finds an accept where it is of use; nil for nowhere.
func (k *Kernel) accept(o *kernel.Accept) kernel.Object {
	c := k.others[otherKey(o.Family, o.Table, o.Chain)]
	if c == nil {
		return nil
	}
	lead, via := k.lead(c, o)
	led := !via || o.Others
	for _, r := range c.rules {
		if r.is(o) && led {
			return o
		}
		led = led || lead != "" && r.text == lead
	}
	return nil
}

// ForeignChains lists the chains that AddForeignChain made.
func (k *Kernel) ForeignChains(context.Context) ([]kernel.ForeignChain, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []kernel.ForeignChain
	for _, c := range k.others {
		f := kernel.ForeignChain{Family: c.family, Table: c.table, Chain: c.chain, Hook: "forward"}
		if n := len(c.rules); n > 0 && endsAll(c.rules[n-1].text) {
			f.Why = "last rule rejects"
		}
		if !c.target {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b kernel.ForeignChain) int {
		return strings.Compare(otherKey(a.Family, a.Table, a.Chain), otherKey(b.Family, b.Table, b.Chain))
	})
	return out, nil
}

func (k *Kernel) setRules(c *otherChain, rules []otherRule) {
	old := c.rules
	k.later(func() { c.rules = old })
	c.rules = rules
}

// endsAll reports whether a rule drops or rejects every packet that gets to it.
func endsAll(rule string) bool {
	rule = strings.TrimPrefix(rule, "counter ")
	return rule == "drop" || rule == "reject" || strings.HasPrefix(rule, "reject with ")
}

func (k *Kernel) deleteAccept(o *kernel.Accept) {
	if c := k.others[otherKey(o.Family, o.Table, o.Chain)]; c != nil {
		k.setRules(c, slices.DeleteFunc(slices.Clone(c.rules), func(r otherRule) bool {
			return r.is(o) || r.via && (o.Via == "" || r.accept.Via == o.Via) && r.accept.Mark == o.Mark
		}))
	}
}
