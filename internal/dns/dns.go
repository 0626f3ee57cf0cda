// Package dns is the name server of every container on the machine: it answers the names of endpoints from an index in
// memory and hands everything else to the machine's own resolvers, through a cache.
//
//	container ── 53/udp,tcp at its gateway ──► redirect (nftables) ──► Sockets: one port, both families
//	                                                                        │
//	        Zone (who is asking decides what he sees)  ◄── Server ──► Forwarder ── cache ── upstreams
//
// One pair of sockets serves all networks: no process, no goroutine and no socket per container. Who asks is told by
// the packet's source address; the answer leaves from the address that was asked.
//
// The package neither redirects port 53 nor writes a container's resolv.conf, and it changes nothing in the kernel.
package dns

import (
	"net/netip"
	"strings"
	"time"
)

// Domain is the domain of all names that are ours: "web.seine.internal", "web.default.seine.internal". What it does
// not hold does not exist; it is never forwarded (".internal" is nobody's on the Internet).
const Domain = "seine.internal"

const (
	// AnswerTTL is how long others may keep a name's addresses. Short, since a container's replacement has another
	// address, and programs that keep an answer too long are the classical outage.
	AnswerTTL = 5 * time.Second
	// AbsentTTL is how long others may keep that a name does not exist: shorter still, since such a name often
	// belongs to a container that is just being started, and others wait for it.
	AbsentTTL = time.Second
	// PayloadSize is the size of UDP messages that we ask others to keep to, and never more than
	// maxPayload is what we send to a client that says it takes more (RFC 9715: no fragments on the way).
	PayloadSize = 1232
	maxPayload  = 4096
)

// Zone says what the names mean to the one who asks. from is the address of the container that asks; names are scoped
// to the networks that it is on. Names come folded to lower case and without the final dot. The methods are called for
// every query, by several goroutines at once, and must not block.
type Zone interface {
	// Lookup gives the addresses of both families under a name. known with no addresses says that the name exists and
	// has none; !known says that the zone does not have the name.
	Lookup(from netip.Addr, name string) (addrs []netip.Addr, known bool)
	// Reverse gives the name, without the final dot, of an address in a network that from is on.
	Reverse(from, addr netip.Addr) (name string, ok bool)
	// AllowForward reports whether names that the zone does not have may be asked for outside: not from a container
	// that is on internal networks only.
	AllowForward(from netip.Addr) bool
}

// Scoped is a Zone that knows who may ask. The others get REFUSED, without which the server, reachable at all of the
// machine's addresses, would be an open resolver and could be part of a forwarding loop.
type Scoped interface {
	Serves(from netip.Addr) bool
}

// fold brings a name into the form in which names are compared: lower case (RFC 4343), no final dot.
func fold(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// inDomain reports whether a folded name is Domain or below it.
func inDomain(name string) bool {
	return strings.HasSuffix(name, Domain) &&
		(len(name) == len(Domain) || name[len(name)-len(Domain)-1] == '.')
}

// cutLabel cuts "."+suffix off name.
func cutLabel(name, suffix string) (rest string, ok bool) {
	n := len(name) - len(suffix) - 1
	if n < 1 || name[n] != '.' || name[n+1:] != suffix {
		return name, false
	}
	return name[:n], true
}

// reverseAddr reads the address out of a folded name under in-addr.arpa or ip6.arpa (RFC 1035 section 3.5, RFC 3596
// section 2.5). ok is false for every other name, and for one that stands for part of an address.
func reverseAddr(name string) (addr netip.Addr, ok bool) {
	if s, is4 := cutLabel(name, "in-addr.arpa"); is4 {
		labels := strings.Split(s, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		labels[0], labels[1], labels[2], labels[3] = labels[3], labels[2], labels[1], labels[0]
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4()
	}
	s, is6 := cutLabel(name, "ip6.arpa")
	if !is6 || len(s) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		c := s[62-2*i]
		if i > 0 && s[63-2*i] != '.' {
			return netip.Addr{}, false
		}
		v := strings.IndexByte("0123456789abcdef", c)
		if v < 0 {
			return netip.Addr{}, false
		}
		b[i/2] |= byte(v) << (4 * (1 - i%2))
	}
	return netip.AddrFrom16(b), true
}
