package hostlocal

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Tries that meet an address in use before the store's directory is read as a whole: after that, what is in use costs
// no system call any more.
const blindTries = 16

// picker takes one address from one set. The store's lock is held.
type picker struct {
	s     *Store
	owner Owner
	set   RangeSet
	id    int // the set's place in the configuration, part of the name of its last_reserved_ip file

	used  map[string]bool // nil until blindTries ran out
	tries int
	ready bool // newFile holds the owner
}

func (p *picker) pick(want netip.Addr, held []netip.Addr) (_ Lease, err error) {
	defer func() {
		if p.ready {
			err = errors.Join(err, remove(p.s.path(newFile)))
		}
	}()
	if want.IsValid() {
		return p.pickRequested(want)
	}
	last, err := p.last()
	if err != nil {
		return Lease{}, err
	}
	if last.IsValid() {
		content, err := p.s.read(last.String())
		if err != nil {
			return Lease{}, err
		}
		if content != "" && p.owner.holds(content) {
			held = append(held, last)
		}
	}
	for _, a := range held {
		if p.set.Contains(a) {
			return Lease{}, fmt.Errorf("%s has been allocated to container %q interface %q already", a, p.owner.ContainerID, p.owner.Interface)
		}
	}
	for reclaim := false; ; reclaim = true {
		for a := range p.candidates(last) {
			ok, err := p.take(a)
			if err != nil {
				return Lease{}, err
			}
			if ok {
				return p.done(a)
			}
		}
		// Only when nothing is left it is worth looking for files that a crash of the machine emptied.
		if reclaim {
			return Lease{}, exhausted(p.set)
		}
		if err := p.dropEmpty(); err != nil {
			return Lease{}, err
		}
	}
}

func (p *picker) pickRequested(want netip.Addr) (Lease, error) {
	if r := p.set.rangeOf(want); r.Gateway == want {
		return Lease{}, fmt.Errorf("requested address %s is the subnet's gateway", want)
	}
	ok, err := p.take(want)
	if err != nil {
		return Lease{}, err
	}
	if !ok {
		content, err := p.s.read(want.String())
		if err != nil {
			return Lease{}, err
		}
		o := ownerOf(content)
		return Lease{}, fmt.Errorf("requested address %s is held by container %q interface %q", want, o.ContainerID, o.Interface)
	}
	return p.done(want)
}

func (p *picker) done(a netip.Addr) (Lease, error) {
	r := p.set.rangeOf(a)
	if err := p.s.write(p.lastFile(), a.String()); err != nil {
		return Lease{}, errors.Join(err, remove(p.s.path(a.String())))
	}
	return Lease{netip.PrefixFrom(a, r.Subnet.Bits()), r.Gateway}, nil
}

func (p *picker) lastFile() string { return fmt.Sprintf("%s%d", lastPrefix, p.id) }

// last is the address that was given out last from this set; the zero Addr where that is not known or not in the set.
func (p *picker) last() (netip.Addr, error) {
	content, err := p.s.read(p.lastFile())
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(content)
	if err != nil || !p.set.Contains(a) {
		return netip.Addr{}, nil
	}
	return a, nil
}

// candidates goes once round the set, beginning after last, gateways left out.
func (p *picker) candidates(last netip.Addr) func(func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		i, a := 0, p.set[0].First
		if last.IsValid() {
			for i = range p.set {
				if p.set[i].contains(last) {
					break
				}
			}
			i, a = p.after(i, last)
		}
		start := a
		for {
			if a != p.set[i].Gateway && !yield(a) {
				return
			}
			if i, a = p.after(i, a); a == start {
				return
			}
		}
	}
}

func (p *picker) after(i int, a netip.Addr) (int, netip.Addr) {
	if a == p.set[i].Last {
		i = (i + 1) % len(p.set)
		return i, p.set[i].First
	}
	return i, a.Next()
}

// take makes a's file if there is none. The file is written under another name first, so that no end of the process
// leaves an address without owner.
func (p *picker) take(a netip.Addr) (bool, error) {
	name := a.String()
	if p.used[name] {
		return false, nil
	}
	if !p.ready {
		if err := p.s.write(newFile, p.owner.String()); err != nil {
			return false, err
		}
		p.ready = true
	}
	err := rename(p.s.path(newFile), p.s.path(name))
	if err == nil {
		p.ready = false
		return true, nil
	}
	if err != unix.EEXIST {
		return false, fmt.Errorf("address store: make %s: %w", p.s.path(name), err)
	}
	if p.tries++; p.tries == blindTries {
		if err := p.readUsed(); err != nil {
			return false, err
		}
	}
	return false, nil
}

// rename fails with EEXIST where there is a file of the new name.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	// File systems such as NFS can't; a link does the same in two steps.
	if err := unix.Link(from, to); err != nil {
		return err
	}
	return unix.Unlink(from)
}

func (p *picker) readUsed() error {
	names, err := p.s.names()
	if err != nil {
		return err
	}
	p.used = make(map[string]bool, len(names))
	for _, n := range names {
		p.used[n] = true
	}
	return nil
}

// dropEmpty removes the files of the set's addresses that have no content.
func (p *picker) dropEmpty() error {
	names, err := p.s.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		a, err := netip.ParseAddr(n)
		if err != nil || !p.set.Contains(a) {
			continue
		}
		content, err := p.s.read(n)
		if err != nil {
			return err
		}
		if content == "" {
			if err := remove(p.s.path(n)); err != nil {
				return err
			}
		}
	}
	p.used = nil
	if p.tries >= blindTries {
		return p.readUsed()
	}
	return nil
}

// anyFree reports whether the set has an address that nobody holds.
func (p *picker) anyFree() (bool, error) {
	for range 2 {
		if err := p.readUsed(); err != nil {
			return false, err
		}
		for a := range p.candidates(netip.Addr{}) {
			if !p.used[a.String()] {
				return true, nil
			}
		}
		if err := p.dropEmpty(); err != nil {
			return false, err
		}
	}
	return false, nil
}
