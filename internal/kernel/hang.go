package kernel

import (
	"fmt"
	"strings"
)

// HangsOn gives the link that an object can't exist without: when the link goes, the kernel takes the object along.
// link is "" for what hangs on no link.
func HangsOn(o Object) (ns, link string) {
	switch o := o.(type) {
	case *Addr:
		return o.NS, o.Link
	case *Attrs:
		return o.NS, o.Link
	case *LinkUp:
		return o.NS, o.Link
	case *Route:
		return o.NS, o.Link
	case *Nexthop:
		return o.NS, o.Link
	case *Feature:
		return o.NS, o.Link
	case *WireGuard:
		return o.NS, o.Link
	case *WGPeer:
		return o.NS, o.Link
	case *Neigh:
		return o.NS, o.Link
	case *FDB:
		return o.NS, o.Link
	case *Qdisc:
		return o.NS, o.Link
	case *Redirect:
		return o.NS, o.Link
	case *PortVLANs:
		return o.NS, o.Link
	case *Sysctl:
		// net/ipv4/conf/LINK/…, net/ipv6/conf/LINK/…, net/ipv4/neigh/LINK/…
		f := strings.SplitN(o.Name, "/", 5)
		if len(f) == 5 && f[0] == "net" && (f[2] == "conf" || f[2] == "neigh") && f[3] != "all" && f[3] != "default" {
			return o.NS, f[3]
		}
	}
	return "", ""
}

// Unmade remembers the links that could not be made during one Apply. What would hang on them is not made either: the
// name may be that of somebody else's link. The zero value is ready.
type Unmade map[[2]string]bool

// Note takes what became of a change.
func (u *Unmade) Note(c Change, err error) {
	l, ok := c.New.(*Link)
	if !ok || c.Op != Create || err == nil {
		return
	}
	if *u == nil {
		*u = Unmade{}
	}
	(*u)[[2]string{l.NS, l.Name}] = true
	if l.Peer != nil {
		(*u)[[2]string{l.Peer.NS, l.Peer.Name}] = true
	}
}

// Err says why a change is not to be carried out; nil where it is.
func (u Unmade) Err(c Change) error {
	if len(u) == 0 || c.New == nil {
		return nil
	}
	if ns, link := HangsOn(c.New); u[[2]string{ns, link}] {
		return fmt.Errorf("%s: link %q could not be made: %w", c.New, link, ErrAbsent)
	}
	return nil
}

// Stays reports whether an object is left as it is when nobody wants it any more: there is nothing to take back.
func Stays(o Object) bool {
	switch o := o.(type) {
	case *LinkUp:
		return o.Keep
	case *Sysctl:
		return o.Before == ""
	case *PortVLANs:
		return true
	case *Attrs:
		return o.Before == nil
	}
	return false
}
