package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Type is a data type of nftables (nft(8), DATA TYPES), by its nft name.
type Type string

// The types that set keys and map values can have.
const (
	TypeIPv4    Type = "ipv4_addr"
	TypeIPv6    Type = "ipv6_addr"
	TypeEther   Type = "ether_addr"
	TypeProto   Type = "inet_proto"   // tcp, udp, sctp
	TypeService Type = "inet_service" // a port
	TypeIfname  Type = "ifname"
	TypeMark    Type = "mark"
	TypeVNI     Type = "vni"      // of VXLAN, decimal; nft(8) lists it as a number 256 times as large
	TypeGroup   Type = "devgroup" // a device group, decimal (meta iifgroup, meta oifgroup)
	TypeVerdict Type = "verdict"  // "accept", "drop", "jump NAME", "goto NAME"
)

// Set is a named set, or a map where Data is not empty.
type Set struct {
	Name string
	// Key has one type, or several for a concatenation.
	Key []Type
	// Data is empty for a set; one type, or several for a concatenation, makes a map.
	Data []Type
	// Interval lets elements be prefixes or ranges (nft: flags interval). For single types only.
	Interval bool
}

// Chain is a chain of rules in nft(8) syntax. The subset that is understood is documented at ParseRule.
type Chain struct {
	Name string
	// Type, Hook and Priority are set for a base chain: "filter" or "nat"; "prerouting", "input", "forward",
	// "output", "postrouting". A chain without Hook is entered by jump only. The policy is always accept.
	Type     string
	Hook     string
	Priority int
	Rules    []string
}

// FamilyBridge is the Family of tables whose chains see the frames that bridges forward (nft(8), ADDRESS FAMILIES).
const FamilyBridge = "bridge"

// Table is an nftables table that is ours as a whole: its shape, that is its sets, maps and chains with their rules, but
// not the elements, and not the chains that are Objects of their own (TableChain).
type Table struct {
	NS string
	// Family is FamilyBridge, or "" for inet. Tables of two families may have one name.
	Family string
	Name   string
	Sets   []*Set
	Chains []*Chain
}

// Key is the table's name, after its family where that is not inet.
func (t *Table) Key() Key { return Key{KindTable, t.NS, inFamily(t.Family, t.Name)} }

func inFamily(family, table string) string {
	if family == "" {
		return table
	}
	return family + " " + table
}

// nftTable names a table as nft does.
func nftTable(family, table string) string {
	if family == "" {
		family = "inet"
	}
	return family + " " + table
}

// Holds reports whether actual has the same sets and chains with the same rules. A listed Table has in Rules the
// hashes of the rules (RuleHash), in a wanted one they are text; both are compared as hashes.
func (t *Table) Holds(actual Object) bool {
	a, ok := actual.(*Table)
	if !ok || len(t.Sets) != len(a.Sets) || len(t.Chains) > len(a.Chains) || !t.Extends(a) {
		return false
	}
	for _, c := range t.Chains {
		i := slices.IndexFunc(a.Chains, func(x *Chain) bool { return x.Name == c.Name })
		if i < 0 || !c.same(a.Chains[i]) {
			return false
		}
	}
	return true
}

// Extends reports whether the table has every set of actual, declared alike: then actual can be turned into it without the
// loss of an element.
func (t *Table) Extends(actual *Table) bool {
	for _, b := range actual.Sets {
		s := t.Set(b.Name)
		if s == nil || !slices.Equal(s.Key, b.Key) || !slices.Equal(s.Data, b.Data) || s.Interval != b.Interval {
			return false
		}
	}
	return true
}

// Set finds a set or map by name; nil where there is none.
func (t *Table) Set(name string) *Set {
	for _, s := range t.Sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (c *Chain) same(a *Chain) bool {
	return c.Type == a.Type && c.Hook == a.Hook && c.Priority == a.Priority &&
		slices.EqualFunc(c.Rules, a.Rules, func(x, y string) bool { return RuleHash(x) == RuleHash(y) })
}

// RuleHash is the comment that a rule carries in the kernel, as rules can't be read back as they were written: "h:" and
// 16 hex digits. The hash of a hash is itself.
func RuleHash(rule string) string {
	if strings.HasPrefix(rule, "h:") {
		return rule
	}
	sum := sha256.Sum256([]byte(rule))
	return "h:" + hex.EncodeToString(sum[:8])
}

// String implements Object.
func (t *Table) String() string {
	return fmt.Sprintf("table %s (%d sets, %d chains)%s", nftTable(t.Family, t.Name), len(t.Sets), len(t.Chains), in(t.NS))
}

// TableChain is a further chain in a table of ours that comes and goes by itself.
type TableChain struct {
	NS string
	// Family and Table name the table.
	Family string
	Table  string
	Chain  Chain
}

// Key is table and chain.
func (c *TableChain) Key() Key {
	return Key{KindChain, c.NS, inFamily(c.Family, c.Table) + " " + c.Chain.Name}
}

// Holds implements Object.
func (c *TableChain) Holds(actual Object) bool {
	a, ok := actual.(*TableChain)
	return ok && c.Chain.same(&a.Chain)
}

// String implements Object.
func (c *TableChain) String() string {
	return "chain " + nftTable(c.Family, c.Table) + " " + c.Chain.Name + " { " + strings.Join(c.Chain.Rules, "; ") + " }" + in(c.NS)
}

// Element is one element of a set or map in a table of ours.
type Element struct {
	NS string
	// Family and Table name the table.
	Family string
	Table  string
	// Set is the declaration of the set that the element is in, shared by all of its elements.
	Set *Set
	// Item is the key in nft syntax, concatenations joined by " . ": "tcp . 8080", "10.1.0.0/24".
	Item string
	// Data is the value likewise, "" in a set: "10.1.0.2 . 80", "jump n-1".
	Data string
	// Comment names the owner; at most 120 bytes, not compared.
	Comment string
	// Flush, where set, is a transport port whose UDP conntrack entries are dropped when the element comes or goes:
	// an entry made before would send the flow past the change for as long as it lives.
	Flush *Flow
}

// Flow selects conntrack entries by their original destination.
type Flow struct {
	Protocol string
	// Addr is the destination; the zero Addr means any of the family that the element's data has.
	Addr netip.Addr
	Port uint16
}

// Key is table, set and item.
func (e *Element) Key() Key {
	return Key{KindElement, e.NS, inFamily(e.Family, e.Table) + " " + e.Set.Name + " " + e.Item}
}

// Holds implements Object.
func (e *Element) Holds(actual Object) bool {
	a, ok := actual.(*Element)
	return ok && e.Data == a.Data
}

// String implements Object.
func (e *Element) String() string {
	s := "element " + nftTable(e.Family, e.Table) + " " + e.Set.Name + " { " + e.Item
	if e.Data != "" {
		s += " : " + e.Data
	}
	return s + " }" + in(e.NS)
}

// Accept is an accept rule of ours in a base chain of somebody else that would drop what it does not know (policy drop,
// or a last rule that drops or rejects everything). A second chain can't undo another's drop, so the accept has to
// stand in that chain: just before its last rule where that rule drops or rejects all, else at the end.
type Accept struct {
	// Family is "ip", "ip6" or "inet".
	Family string
	Table  string
	Chain  string
	// Rule is in nft syntax without the verdict: `iifname "sn-*"`.
	Rule string
	// First has the rule stand at the beginning of the chain, before what its owner has there.
	First bool
	// Via is for a rule that stands first. It names a chain of the same table that packets pass before they get to the
	// rule, if that chain is there: the rule stands behind the one that leads to it, directly or by one chain in
	// between, and where none does, one of ours is put before it, which goes with it. The deletion of an Accept without
	// Via takes all of these along.
	Via string
	// Mark begins the comment that tells that the rule is ours; "" means AliasPrefix. Scope.All lists only those of "".
	Mark string
	// Others stands for the rule of somebody else that accepts the one address that Rule matches ("ip saddr 10.1.0.2"),
	// whatever else it asks for. Such a rule can be listed and deleted, not made.
	Others bool
}

// Key is the place and the rule, and whose it is.
func (a *Accept) Key() Key {
	name := a.Family + " " + a.Table + " " + a.Chain + " " + a.Rule
	if a.Via != "" {
		name += " via " + a.Via
	}
	if a.Others {
		name += " (others')"
	}
	return Key{KindAccept, "", a.Mark + name}
}

// Holds implements Object.
func (a *Accept) Holds(actual Object) bool { _, ok := actual.(*Accept); return ok }

// String implements Object.
func (a *Accept) String() string {
	return "rule " + a.Family + " " + a.Table + " " + a.Chain + " " + a.Rule + " accept"
}
