// Package fake keeps a Linux kernel's network state in memory and has the kernel's rules: a route needs a link that is
// up and a gateway that is on it, a link takes its addresses and routes along, one end of a veth takes the other, an
// element needs its set. Its behaviour is held to that of a real kernel by the suite in internal/kernel/kerneltest.
//
// It carries no packets, learns nothing (no neighbours, no link-local addresses) and knows no time; a bridge keeps the
// MTU and hardware address that it was made with, where Linux goes by its ports if none was asked for. For tests it also
// lets chosen changes fail (FailAt, FailIf), ends "the process" in the midst of its work (CrashAt, Restart), damages
// things by hand (Break) and holds things that belong to others (AddForeign).
package fake

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/seine-net/seine/internal/kernel"
)

// ErrCrashed is what every call gives between CrashAt's change and Restart: the process that called has ended.
var ErrCrashed = errors.New("the process has ended")

// tablePrefix begins the names of the nftables tables that are ours.
const tablePrefix = "seine"

// Kernel is an in-memory kernel.Kernel. It is safe for concurrent use.
type Kernel struct {
	mu       sync.Mutex
	spaces   map[string]*space
	others   map[string]*otherChain
	holds    map[kernel.Key]*kernel.Hold
	occupied []socket

	ops     int
	failAt  int
	failErr error
	crashAt int
	crashed bool
	failIf  func(kernel.Change) error
	undo    []func()
}

// space is one network namespace.
type space struct {
	path     string
	links    map[string]*link
	routes   map[kernel.Key]*route
	rules    map[ruleID]*kernel.Rule
	nexthops map[uint32]*nexthop
	sysctls  map[string]string
	tables   map[string]*table // by the name in their key
}

type socket struct {
	protocol string
	at       netip.AddrPort
}

// New makes a kernel with one namespace, "", that holds only lo.
func New() *Kernel {
	k := &Kernel{spaces: map[string]*space{}, others: map[string]*otherChain{}, holds: map[kernel.Key]*kernel.Hold{}}
	k.addSpace("")
	return k
}

func (k *Kernel) addSpace(path string) {
	s := &space{path: path, links: map[string]*link{}, routes: map[kernel.Key]*route{}, rules: map[ruleID]*kernel.Rule{},
		nexthops: map[uint32]*nexthop{},
		sysctls:  map[string]string{}, tables: map[string]*table{}}
	s.links["lo"] = newLink(path, "lo", kernel.Loopback)
	s.links["lo"].mtu, s.links["lo"].mac = 65536, "00:00:00:00:00:00"
	k.spaces[path] = s
}

// AddNamespace makes an empty network namespace at path; it does nothing where there is one.
func (k *Kernel) AddNamespace(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.spaces[path] == nil {
		k.addSpace(path)
	}
}

// RemoveNamespace ends a network namespace with all in it, and with its veths' other ends; devices that are no software
// (links of no type) are moved to the machine's own, "", which stays.
func (k *Kernel) RemoveNamespace(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.spaces[path]
	if s == nil || path == "" {
		return
	}
	for _, l := range s.links {
		if l.typ == "" {
			k.move(l, "", l.name)
		} else {
			k.removeLink(l)
		}
	}
	delete(k.spaces, path)
}

// Occupy binds a port as another program does: a Hold on it gives kernel.ErrInUse, and so does Occupy where a Hold or
// another program has it.
func (k *Kernel) Occupy(protocol string, at netip.AddrPort) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bound(protocol, at) {
		return kernel.ErrInUse
	}
	k.occupied = append(k.occupied, socket{protocol, at})
	return nil
}

// Vacate takes Occupy back.
func (k *Kernel) Vacate(protocol string, at netip.AddrPort) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, s := range k.occupied {
		if s == (socket{protocol, at}) {
			k.occupied = append(k.occupied[:i:i], k.occupied[i+1:]...)
			return
		}
	}
}

// Ops counts the changes that Apply has tried since New, those that failed included.
func (k *Kernel) Ops() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ops
}

// FailAt lets the n-th change from now, counted from 1, fail with err, once. n <= 0 takes that back.
func (k *Kernel) FailAt(n int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failAt, k.failErr = 0, err
	if n > 0 {
		k.failAt = k.ops + n
	}
}

// FailIf asks f before every change from now on; the change fails with what f gives, unless that is nil. f must not
// call the Kernel. A nil f takes that back.
func (k *Kernel) FailIf(f func(kernel.Change) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failIf = f
}

// CrashAt ends the process at the n-th change from now, counted from 1: that change, the transaction that it is part
// of, and every call after it give ErrCrashed and do nothing, until Restart. n <= 0 takes that back.
func (k *Kernel) CrashAt(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.crashAt = 0
	if n > 0 {
		k.crashAt = k.ops + n
	}
}

// Crashed reports whether the change that CrashAt named was reached.
func (k *Kernel) Crashed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.crashed
}

// Restart starts the process anew: everything that a process holds is gone (the Holds), everything that the kernel
// holds stays. Failures that were asked for are taken back.
func (k *Kernel) Restart() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.holds)
	k.crashed, k.crashAt, k.failAt, k.failIf = false, 0, 0, nil
}

// Apply implements kernel.Kernel. Consecutive changes of what nftables holds in one namespace are one transaction.
func (k *Kernel) Apply(ctx context.Context, changes []kernel.Change) []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, len(changes))
	var unmade kernel.Unmade
	for i := 0; i < len(changes); {
		n := i + 1
		if errs[i] = unmade.Err(changes[i]); errs[i] != nil {
			i = n
			continue
		}
		for transacted(changes[i]) && n < len(changes) && transacted(changes[n]) &&
			changes[n].Key().NS == changes[i].Key().NS {
			n++
		}
		k.transaction(ctx, changes[i:n], errs[i:n])
		unmade.Note(changes[i], errs[i])
		i = n
	}
	return errs
}

func transacted(c kernel.Change) bool {
	switch c.Key().Kind {
	case kernel.KindTable, kernel.KindChain, kernel.KindElement, kernel.KindAccept, kernel.KindRelic:
		return true
	}
	return false
}

// transaction applies all changes or none. Where one is refused, the others get an error of their own that is none of
// the kernel package's: a caller that asks for kernel.ErrExists must find only the change that is to blame.
func (k *Kernel) transaction(ctx context.Context, changes []kernel.Change, errs []error) {
	k.undo = nil
	for i, c := range changes {
		err := k.step(ctx, c)
		if err == nil {
			continue
		}
		for j := len(k.undo) - 1; j >= 0; j-- {
			k.undo[j]()
		}
		for j := range errs {
			switch {
			case j == i || errors.Is(err, ErrCrashed) || ctx.Err() != nil:
				errs[j] = err
			default:
				errs[j] = fmt.Errorf("%s: not applied, as the same transaction held what was refused: %v", changes[j].Key(), err)
			}
		}
		return
	}
}

func (k *Kernel) step(ctx context.Context, c kernel.Change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if k.crashed {
		return ErrCrashed
	}
	k.ops++
	switch k.ops {
	case k.crashAt:
		k.crashed = true
		return ErrCrashed
	case k.failAt:
		return fmt.Errorf("%s: %w", c.Key(), k.failErr)
	}
	if k.failIf != nil {
		if err := k.failIf(c); err != nil {
			return fmt.Errorf("%s: %w", c.Key(), err)
		}
	}
	if err := k.change(c); err != nil {
		return fmt.Errorf("%s: %w", c.Key(), err)
	}
	return nil
}

func (k *Kernel) change(c kernel.Change) error {
	key := c.Key()
	s := k.spaces[key.NS]
	switch c.Op {
	case kernel.Delete:
		if s == nil {
			return nil
		}
		defer k.loseCarriers()
		return k.delete(s, c.Old, false)
	case kernel.Create, kernel.Update:
		if c.New == nil || c.Op == kernel.Update && (c.Old == nil || c.Old.Key() != key) {
			return fmt.Errorf("%s needs its objects, under one key", c.Op)
		}
		if s == nil {
			return kernel.ErrNamespaceGone
		}
		defer k.loseCarriers()
		return k.put(s, c.New, c.Op == kernel.Update)
	}
	return fmt.Errorf("operation %d is none", c.Op)
}

// put creates an object or, with update, changes the one that is there.
func (k *Kernel) put(s *space, o kernel.Object, update bool) error {
	switch o := o.(type) {
	case *kernel.Link:
		return k.putLink(s, o, update)
	case *kernel.Attrs:
		return k.putAttrs(s, o)
	case *kernel.LinkUp:
		return k.putUp(s, o)
	case *kernel.Sysctl:
		return k.putSysctl(s, o)
	case *kernel.Qdisc:
		return k.putQdisc(s, o, update)
	case *kernel.Redirect:
		return k.putRedirect(s, o, update)
	case *kernel.PortVLANs:
		return k.putVLANs(s, o)
	case *kernel.Addr:
		return k.putAddr(s, o)
	case *kernel.Route:
		return k.putRoute(s, o, update)
	case *kernel.Rule:
		return k.putRule(s, o)
	case *kernel.Nexthop:
		return k.putNexthop(s, o, update)
	case *kernel.Feature:
		return k.putFeature(s, o)
	case *kernel.WireGuard:
		return k.putWireGuard(s, o, update)
	case *kernel.WGPeer:
		return k.putWGPeer(s, o, update)
	case *kernel.Neigh:
		return k.putNeigh(s, o, update)
	case *kernel.FDB:
		return k.putFDB(s, o, update)
	case *kernel.Hold:
		return k.putHold(o)
	case *kernel.Table:
		return k.putTable(s, o, update)
	case *kernel.TableChain:
		return k.putChain(s, o, update)
	case *kernel.Element:
		return k.putElement(s, o, update)
	case *kernel.Accept:
		return k.putAccept(o)
	}
	return fmt.Errorf("%T: %w", o, kernel.ErrUnsupported)
}

// delete removes an object where it is there. With force it removes what is not ours, too.
func (k *Kernel) delete(s *space, o kernel.Object, force bool) error {
	switch o := o.(type) {
	case *kernel.Link:
		return k.deleteLink(s, o, force)
	case *kernel.Attrs:
		return k.deleteAttrs(s, o)
	case *kernel.LinkUp:
		if l := s.links[o.Link]; l != nil && (!o.Keep || force) {
			k.setDown(l)
		}
	case *kernel.Sysctl:
		if o.Before != "" && !s.sysctlGone(o.Name) {
			return k.putSysctl(s, &kernel.Sysctl{NS: o.NS, Name: o.Name, Value: o.Before})
		}
	case *kernel.Qdisc:
		if l := s.links[o.Link]; l != nil {
			k.deleteQdisc(l, o)
		}
	case *kernel.Redirect:
		if l := s.links[o.Link]; l != nil {
			l.redirect = nil
		}
	case *kernel.Addr:
		k.deleteAddr(s, o)
	case *kernel.Route:
		s.deleteRoute(o, force)
	case *kernel.Rule:
		s.deleteRule(o, force)
	case *kernel.Nexthop:
		s.deleteNexthop(o, force)
	case *kernel.Feature:
		if s.links[o.Link] != nil {
			return k.putFeature(s, &kernel.Feature{NS: o.NS, Link: o.Link, Name: o.Name, On: !o.On})
		}
	case *kernel.WireGuard:
		if l := s.links[o.Link]; l != nil {
			l.wg = nil
		}
	case *kernel.WGPeer:
		if l := s.links[o.Link]; l != nil {
			delete(l.wgPeers, o.PublicKey)
		}
	case *kernel.Neigh:
		if l := s.links[o.Link]; l != nil && l.neighs[idOf(o)] != nil && (l.neighs[idOf(o)].ours || force) {
			delete(l.neighs, idOf(o))
		}
	case *kernel.FDB:
		if l := s.links[o.Link]; l != nil {
			if f := l.fdb[o.Key()]; f != nil && f.Dst == o.Dst {
				delete(l.fdb, o.Key())
			}
		}
	case *kernel.PortVLANs: // they go with the port
	case *kernel.Hold:
		delete(k.holds, o.Key())
	case *kernel.Table:
		k.deleteTable(s, o)
	case *kernel.TableChain:
		return k.deleteChain(s, o)
	case *kernel.Element:
		k.deleteElement(s, o)
	case *kernel.Accept:
		k.deleteAccept(o)
	case *kernel.Relic:
		k.deleteRelic(o)
	default:
		return fmt.Errorf("%T: %w", o, kernel.ErrUnsupported)
	}
	return nil
}
