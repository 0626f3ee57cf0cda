package kernel

import (
	"net/netip"
	"strings"
)

// Relic is what another program has in nftables for something that is ours to remove now: a chain with the rules that lead
// to it, and rules that are told by their comments. It is only ever deleted, never made; iptables-nft's chains are such
// (those of iptables-legacy are not in nftables and can't be seen).
type Relic struct {
	// Family is "ip", "ip6" or "inet".
	Family string
	Table  string
	// Chain goes with all that is in it as soon as no rule of In jumps to it; "" for none.
	Chain string
	// In are the chains of the table that rules are taken out of: those that jump to Chain, or have the comment.
	In []string
	// Comment is that of the rules to remove, or with a "*" at its end how it begins; "" for none.
	Comment string
	// Addrs, where there are any, spare the rules of In that mention none of them: what is kept under the name of a
	// container may be several attachments'.
	Addrs []netip.Addr
}

// Key is the place, the chain and the comment.
func (r *Relic) Key() Key {
	return Key{KindRelic, "", strings.Join([]string{r.Family, r.Table, r.Chain, strings.Join(r.In, ","), r.Comment}, " ")}
}

// Holds implements Object.
func (r *Relic) Holds(actual Object) bool { _, ok := actual.(*Relic); return ok }

// String implements Object.
func (r *Relic) String() string {
	s := "rules " + r.Family + " " + r.Table + " " + strings.Join(r.In, ",")
	if r.Chain != "" {
		s += " jump " + r.Chain
	}
	if r.Comment != "" {
		s += " comment " + r.Comment
	}
	return s
}

// Marks reports whether a rule's comment is the relic's.
func (r *Relic) Marks(comment string) bool {
	if begin, ok := strings.CutSuffix(r.Comment, "*"); ok {
		return begin != "" && strings.HasPrefix(comment, begin)
	}
	return r.Comment != "" && comment == r.Comment
}
