package fake

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// relic gives the rules of a relic by the key of their chain, and whether its chain goes.
func (k *Kernel) relic(o *kernel.Relic) (rules map[string][]otherRule, chain bool) {
	chain = o.Chain != "" && k.others[otherKey(o.Family, o.Table, o.Chain)] != nil
	there := chain
	rules = map[string][]otherRule{}
	for _, in := range o.In {
		key := otherKey(o.Family, o.Table, in)
		if k.others[key] == nil {
			continue
		}
		for _, r := range k.others[key].rules {
			_, comment, _ := strings.Cut(r.text, "comment ")
			jumps := there && jumpsTo(strings.TrimSuffix(r.text, " comment "+comment), o.Chain)
			mentions := len(o.Addrs) == 0 || slices.ContainsFunc(o.Addrs, func(a netip.Addr) bool {
				return slices.Contains(strings.FieldsFunc(r.text, func(c rune) bool { return c == ' ' || c == '[' || c == ']' }), a.String()) ||
					strings.Contains(r.text, " "+a.String()+":")
			})
			switch {
			case !jumps && !o.Marks(strings.Trim(comment, `"`)):
			case mentions:
				rules[key] = append(rules[key], r)
			case jumps:
				chain = false
			}
		}
	}
	return rules, chain
}

func (k *Kernel) deleteRelic(o *kernel.Relic) {
	rules, chain := k.relic(o)
	for key, gone := range rules {
		c := k.others[key]
		k.setRules(c, slices.DeleteFunc(slices.Clone(c.rules), func(r otherRule) bool { return slices.Contains(gone, r) }))
	}
	if chain {
		key := otherKey(o.Family, o.Table, o.Chain)
		old := k.others[key]
		k.later(func() { k.others[key] = old })
		delete(k.others, key)
	}
}
