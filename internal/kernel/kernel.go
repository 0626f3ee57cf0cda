// Package kernel names the things that a Linux kernel holds on behalf of a container network (links, addresses,
// routes, rules, neighbours, sysctls, nftables tables and their elements) as plain values, tells them apart (Key),
// compares them (Object.Holds) and orders the changes from one set to another (Diff).
//
// It is pure: it opens nothing and imports only the standard library. internal/kernel/linux talks to a real kernel,
// internal/kernel/fake keeps one in memory.
package kernel

import (
	"context"
	"errors"
	"fmt"
)

// Kind is a kind of object. The order of the constants is the order of creation; deletion goes the other way round.
type Kind uint8

// The kinds, in the order in which they are made.
const (
	KindTable     Kind = iota + 1 // an nftables table with its sets, maps and chains
	KindChain                     // one further chain in such a table
	KindAccept                    // an accept rule in a chain that is somebody else's
	KindRelic                     // what another program left behind for what is ours to remove
	KindHold                      // a port of the machine kept from other programs
	KindLink                      // a network interface, not yet up
	KindVLANs                     // the VLANs of a bridge's port
	KindAttrs                     // attributes of a link that somebody else made
	KindFeature                   // an offload or other switch of a link
	KindWireGuard                 // the keys and the port of a WireGuard link
	KindWGPeer                    // a peer of a WireGuard link
	KindSysctl                    // a value under /proc/sys/net
	KindQdisc                     // a queueing discipline of a link
	KindRedirect                  // what enters a link sent out by another
	KindAddr                      // an address on a link
	KindLinkUp                    // the up state of a link
	KindRule                      // a policy routing rule
	KindNexthop                   // where routes that refer to it lead
	KindRoute                     // a route
	KindNeigh                     // a neighbour (ARP, NDP) entry
	KindFDB                       // a forwarding entry of a bridge or VXLAN device
	KindElement                   // an element of an nftables set or map
)

var kindNames = [...]string{"", "table", "chain", "accept", "relic", "hold", "link", "vlans", "attrs", "feature", "wireguard", "wgpeer", "sysctl", "qdisc",
	"redirect", "addr", "up", "rule", "nexthop", "route", "neigh", "fdb", "element"}

// String gives the word that plans, logs and metrics use for the kind.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Key tells one object from all others. Two objects with one key can't exist at once in one kernel.
type Key struct {
	Kind Kind
	// NS is the network namespace that holds the object: a path such as /run/netns/a, or "" for the namespace that
	// the kernel backend works in (the machine's own).
	NS string
	// Name tells the object from others of its kind in that namespace; its form belongs to the kind.
	Name string
}

// String gives "kind name" and, in another namespace, "kind name @namespace".
func (k Key) String() string {
	if k.NS == "" {
		return k.Kind.String() + " " + k.Name
	}
	return k.Kind.String() + " " + k.Name + " @" + k.NS
}

// Object is one thing that a kernel is wanted to hold or was seen to hold. Objects are never changed once they were
// handed to somebody: a different want is a new Object.
type Object interface {
	Key() Key
	// Holds reports whether actual, an object under the same key as a kernel listed it, has all that this one asks
	// for. What a wanted object leaves at its zero value is not compared.
	Holds(actual Object) bool
	// String describes the object on one line in the words of ip(8), nft(8) or sysctl(8).
	String() string
}

// Op is what a Change does.
type Op uint8

// The operations.
const (
	Create Op = iota + 1
	Update    // the object exists under this key with other properties, and can be changed in place
	Delete
)

// String gives the sign that a plan puts before the object: + ~ -.
func (o Op) String() string {
	return [...]string{"?", "+", "~", "-"}[min(int(o), 3)]
}

// Change is one step from what a kernel holds to what it should hold.
type Change struct {
	Op Op
	// Old is what is there: set for Update and Delete (for a Delete it may be the wanted object of before).
	Old Object
	// New is what should be there: set for Create and Update.
	New Object
}

// Key is the key of the object that the change is about.
func (c Change) Key() Key {
	if c.New != nil {
		return c.New.Key()
	}
	return c.Old.Key()
}

// String gives the change as a line of a plan.
func (c Change) String() string {
	switch c.Op {
	case Update:
		return fmt.Sprintf("~ %s  (was: %s)", c.New, c.Old)
	case Delete:
		return "- " + c.Old.String()
	}
	return "+ " + c.New.String()
}

// Scope says what a listing is about.
type Scope struct {
	// Objects are looked up by their keys; what exists of them is listed. They also tell the backend where to look
	// for what a key alone does not say (the namespace of a veth's peer, the declaration of a set). Some objects that
	// leave out what names them stand for all of their namespace, whoever made them: an Addr without a Prefix for all
	// addresses of its link, a PortVLANs without a Link for those of all ports of its Bridge, a Link without a Name for
	// all links (veths without their peers), a Route without a Dst for all routes of all tables (over its Link, where
	// that is given), a Rule without a Table for all rules of both families, an Element without an Item for all elements
	// of its set whose comment begins with its Comment. Routes and rules come with their Proto then.
	Objects []Object
	// All also lists everything in the machine's own namespace that is provably ours, wanted or not.
	All bool
	// Mark also lists, in the machine's own namespace, every link whose alias begins with it and, in the nftables
	// tables that are among Objects, every element whose comment begins with it and every TableChain. "" for none. It
	// is for programs that keep no state and find by it what is theirs.
	Mark string
	// MarkNS are further namespaces whose links Mark is about.
	MarkNS []string
	// Links also lists every link of the machine's own namespace, whoever's it is.
	Links bool
}

// Kernel is the only door to side effects on a kernel.
type Kernel interface {
	// List gives what the kernel holds within scope, in no particular order and each key once. An object whose
	// namespace, link or table is gone is simply not listed. An error says that the listing is not to be relied on.
	List(ctx context.Context, scope Scope) ([]Object, error)
	// Apply carries changes out in the given order and goes on past failures; it returns one entry per change, nil
	// for those that hold now. Creating what exists with other properties gives ErrExists. Deleting what is absent,
	// or whose namespace is gone, succeeds. What hangs on a link whose creation failed in the same call is not made
	// (ErrAbsent): the name may be that of somebody else's. Consecutive nftables changes may be one transaction: then all of them
	// hold or none.
	Apply(ctx context.Context, changes []Change) []error
}

// What Apply's errors can be asked for with errors.Is.
var (
	// ErrExists says that another object, or the same with other properties, is in the way.
	ErrExists = errors.New("exists already with other properties")
	// ErrAbsent says that something the object hangs on (its link, table, set or gateway) is not there.
	ErrAbsent = errors.New("what it hangs on is absent")
	// ErrNamespaceGone says that the object's network namespace is no more. Not worth a retry.
	ErrNamespaceGone = errors.New("network namespace is gone")
	// ErrInUse says that a port of the machine is in use by another program.
	ErrInUse = errors.New("in use by another program")
	// ErrUnsupported says that this kernel lacks the ability.
	ErrUnsupported = errors.New("not supported by this kernel")
)

// RouteProtocol is the protocol number (rtnetlink(7), rtm_protocol) that marks routes, rules and neighbours as ours.
const RouteProtocol = 83

// AliasPrefix begins the alias (ip-link(8)) of every link that is ours; the owner follows.
const AliasPrefix = "seine:"

// PluginAliasPrefix begins the alias of every link of a CNI attachment that seine-cni made without a daemon. It is no
// daemon's to clean up, nor are the routes on it, although they carry RouteProtocol.
const PluginAliasPrefix = "seine-cni:"

// HostPrefix begins the name of every interface of the machine that a network's containers are reached through. Rules
// in other people's chains match it with a wildcard.
const HostPrefix = "sn-"

// TunnelPrefix and Tunnel6Prefix begin the names of the links that lead to other machines, over IPv4 or either family and
// over IPv6.
const (
	TunnelPrefix  = "sx-"
	Tunnel6Prefix = "sx6-"
)

// PortPrefix begins the name of the machine's end of every veth that is a port of a bridge of ours.
const PortPrefix = "sv-"

// ParentPrefix begins the name of the link that stands for the wire of a network that is on none.
const ParentPrefix = "sd-"

// HandoffPrefix begins the name of the other end where somebody else moves it into its sandbox.
const HandoffPrefix = "sc-"
