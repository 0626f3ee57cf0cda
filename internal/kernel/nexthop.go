package kernel

import (
	"fmt"
	"net/netip"
)

// Nexthop is a nexthop object (ip-nexthop(8), kernel 5.3): where packets go, under a number that routes refer to
// (Route.Nexthop). Changing it moves all of these routes at once. Ours carry RouteProtocol.
type Nexthop struct {
	NS string
	// ID is the number, unique in the namespace and not 0.
	ID uint32
	// V6 is for what IPv6 routes refer to, and for a gateway of IPv6; IPv4 routes may refer to either sort.
	V6 bool
	// Via is the gateway, of the family that V6 says; the zero Addr for none.
	Via netip.Addr
	// Link is the interface that packets leave by. When it goes, or goes down, the kernel drops the nexthop and with it
	// every route that refers to it, without a word about the routes.
	Link string
	// OnLink takes the gateway as reachable on Link whatever its address is.
	OnLink bool
}

// Key is the number.
func (n *Nexthop) Key() Key { return Key{KindNexthop, n.NS, fmt.Sprint(n.ID)} }

// Holds implements Object.
func (n *Nexthop) Holds(actual Object) bool {
	a, ok := actual.(*Nexthop)
	return ok && a.V6 == n.V6 && a.Via == n.Via && a.Link == n.Link && a.OnLink == n.OnLink
}

// String implements Object.
func (n *Nexthop) String() string {
	s := fmt.Sprintf("nexthop id %d", n.ID)
	if n.Via.IsValid() {
		s += " via " + n.Via.String()
	}
	s += " dev " + n.Link
	if n.OnLink {
		s += " onlink"
	}
	if n.V6 && !n.Via.IsValid() {
		s += " (v6)"
	}
	return s + in(n.NS)
}
