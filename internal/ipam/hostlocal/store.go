package hostlocal

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultDataDir is where the stores of all networks lie unless a configuration says otherwise.
const DefaultDataDir = "/var/lib/cni/networks"

// What lies in a store beside the addresses.
const (
	lockFile   = "lock"
	lastPrefix = "last_reserved_ip."
	newFile    = ".reserve" // an address's file before it gets its name
	lineBreak  = "\r\n"
)

// Owner is who holds an address: one interface of one container.
type Owner struct {
	ContainerID string
	Interface   string
}

// String is the content of a reservation's file.
func (o Owner) String() string { return strings.TrimSpace(o.ContainerID) + lineBreak + o.Interface }

// holds reports whether a reservation's content is o's. Very old versions of the reference wrote the container ID alone.
func (o Owner) holds(content string) bool {
	content = strings.TrimSpace(content)
	return content == o.String() || content == strings.TrimSpace(o.ContainerID)
}

func ownerOf(content string) Owner {
	id, ifname, _ := strings.Cut(strings.TrimSpace(content), lineBreak)
	return Owner{id, ifname}
}

// Lease is an address that was given out.
type Lease struct {
	// Address has the length of the range's subnet.
	Address netip.Prefix
	// Gateway is the range's.
	Gateway netip.Addr
}

// ErrExhausted says that all addresses of a range set are in use.
var ErrExhausted = errors.New("no addresses available")

// Store is the directory of one network's reservations. Every call takes the lock that the reference plugin takes.
//
// Files are not fsynced: an address is held by a container, and no container outlives a crash of the machine. What such
// a crash leaves behind, a file without content, counts as free; within the lock there is no other way to meet one.
type Store struct{ dir string }

// New names the store of a network in dataDir ("" for DefaultDataDir); it opens nothing.
func New(dataDir, network string) *Store {
	if dataDir == "" {
		dataDir = DefaultDataDir
	}
	return &Store{filepath.Join(dataDir, network)}
}

// Reserve takes one address from each set for owner, or none at all. Requested addresses are taken from the sets that
// they lie in; each has to lie in one, be free, and not be the gateway. An owner that holds an address of a set already
// gets an error: with thorough every reservation is read for that, otherwise only the newest one of each set, which is
// where a repeated request shows.
func (s *Store) Reserve(owner Owner, sets []RangeSet, requested []netip.Addr, thorough bool) ([]Lease, error) {
	l, err := s.lock(true)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	var held []netip.Addr
	if thorough {
		if held, err = s.owned(owner); err != nil {
			return nil, err
		}
	}
	left := append([]netip.Addr(nil), requested...)
	var leases []Lease
	for i, set := range sets {
		want := netip.Addr{}
		for j, a := range left {
			if set.Contains(a) {
				want, left = a, append(left[:j:j], left[j+1:]...)
				break
			}
		}
		p := picker{s: s, owner: owner, set: set, id: i}
		lease, err := p.pick(want, held)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("range set %d: %w", i, err), s.giveBack(leases))
		}
		leases = append(leases, lease)
	}
	if len(left) > 0 {
		return nil, errors.Join(fmt.Errorf("requested address %s is in no range set", left[0]), s.giveBack(leases))
	}
	return leases, nil
}

// Return gives back what Reserve gave to owner, and nothing else that it holds.
func (s *Store) Return(owner Owner, leases []Lease) error {
	l, err := s.lock(false)
	if l == nil {
		return err
	}
	defer l.unlock()
	var addrs []netip.Addr
	for _, l := range leases {
		addrs = append(addrs, l.Address.Addr())
	}
	mine, err := s.confirmed(owner, addrs)
	errs := []error{err}
	for _, a := range mine {
		errs = append(errs, remove(s.path(a.String())))
	}
	return errors.Join(errs...)
}

func (s *Store) giveBack(leases []Lease) error {
	var errs []error
	for _, l := range leases {
		errs = append(errs, remove(s.path(l.Address.Addr().String())))
	}
	return errors.Join(errs...)
}

// Release gives back all that owner holds; nothing is success. The hint names addresses that it probably holds: where
// they are indeed its, no other reservation is read.
func (s *Store) Release(owner Owner, hint []netip.Addr) error {
	l, err := s.lock(false)
	if l == nil {
		return err
	}
	defer l.unlock()
	mine, err := s.confirmed(owner, hint)
	if err == nil && len(mine) == 0 {
		mine, err = s.owned(owner)
	}
	errs := []error{err}
	for _, a := range mine {
		errs = append(errs, remove(s.path(a.String())))
	}
	return errors.Join(errs...)
}

// Held gives addresses that owner holds: those of the hint that are its, or where there are none, all.
func (s *Store) Held(owner Owner, hint []netip.Addr) ([]netip.Addr, error) {
	l, err := s.lock(false)
	if l == nil {
		return nil, err
	}
	defer l.unlock()
	if mine, err := s.confirmed(owner, hint); len(mine) > 0 || err != nil {
		return mine, err
	}
	return s.owned(owner)
}

// Collect gives back every address whose owner is not among valid.
func (s *Store) Collect(valid []Owner) error {
	l, err := s.lock(false)
	if l == nil {
		return err
	}
	defer l.unlock()
	keep, ids := map[Owner]bool{}, map[string]bool{}
	for _, o := range valid {
		keep[o], ids[o.ContainerID] = true, true
	}
	return s.each(func(a netip.Addr, content string) error {
		o := ownerOf(content)
		if keep[o] || o.Interface == "" && ids[o.ContainerID] {
			return nil
		}
		return remove(s.path(a.String()))
	})
}

// Owners gives everybody who holds an address.
func (s *Store) Owners() ([]Owner, error) {
	l, err := s.lock(false)
	if l == nil {
		return nil, err
	}
	defer l.unlock()
	var out []Owner
	err = s.each(func(_ netip.Addr, content string) error {
		if o := ownerOf(content); o.ContainerID != "" {
			out = append(out, o)
		}
		return nil
	})
	return out, err
}

// Free reports an error that wraps ErrExhausted where one of the sets has no address left.
func (s *Store) Free(sets []RangeSet) error {
	l, err := s.lock(false)
	if err != nil {
		return err
	}
	if l == nil {
		return nil // nothing was ever given out
	}
	defer l.unlock()
	for i, set := range sets {
		p := picker{s: s, set: set, id: i}
		if free, err := p.anyFree(); err != nil || !free {
			return errors.Join(err, exhausted(set))
		}
	}
	return nil
}

func exhausted(set RangeSet) error { return fmt.Errorf("%w in range set %s", ErrExhausted, set) }

// owned reads all reservations for those of owner. As with the reference, files with the container ID alone count only
// where there are no others.
func (s *Store) owned(owner Owner) ([]netip.Addr, error) {
	var exact, old []netip.Addr
	err := s.each(func(a netip.Addr, content string) error {
		switch content = strings.TrimSpace(content); content {
		case owner.String():
			exact = append(exact, a)
		case strings.TrimSpace(owner.ContainerID):
			old = append(old, a)
		}
		return nil
	})
	if len(exact) > 0 {
		return exact, err
	}
	return old, err
}

// confirmed gives those of the addresses that are owner's.
func (s *Store) confirmed(owner Owner, hint []netip.Addr) ([]netip.Addr, error) {
	var mine []netip.Addr
	for _, a := range hint {
		content, err := s.read(a.String())
		if err != nil {
			return nil, err
		}
		if content != "" && owner.holds(content) {
			mine = append(mine, a)
		}
	}
	return mine, nil
}

// each calls f for every reservation.
func (s *Store) each(f func(netip.Addr, string) error) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		a, err := netip.ParseAddr(name)
		if err != nil || a.String() != name {
			continue
		}
		content, err := s.read(name)
		if err == nil {
			err = f(a, content)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Store) names() ([]string, error) {
	d, err := os.Open(s.dir)
	if err != nil {
		return nil, fmt.Errorf("address store: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("address store: %w", err)
	}
	return names, nil
}

func (s *Store) path(name string) string { return s.dir + "/" + name }

// read gives a file's content, "" where there is no such file.
func (s *Store) read(name string) (string, error) {
	fd, err := open(s.path(name), unix.O_RDONLY, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 512)
	n, err := unix.Read(fd, buf)
	for n == len(buf) && err == nil { // container IDs have no bound
		buf = append(buf, make([]byte, len(buf))...)
		n, err = unix.Pread(fd, buf, 0)
	}
	if err != nil {
		return "", fmt.Errorf("address store: read %s: %w", s.path(name), err)
	}
	return string(buf[:n]), nil
}

// write makes or overwrites a file.
func (s *Store) write(name, content string) error {
	path := s.path(name)
	fd, err := open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	n, err := unix.Write(fd, []byte(content))
	if err == nil && n < len(content) {
		err = unix.ENOSPC
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("address store: write %s: %w", path, err)
	}
	return nil
}

// The files are opened without the os package: it would register each with its poller, and this is done a few times in
// a process that lives for milliseconds.
func open(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, fmt.Errorf("address store: open %s: %w", path, err)
		}
	}
}

func remove(path string) error {
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("address store: remove %s: %w", path, err)
	}
	return nil
}

type lock struct{ fd int }

// lock takes the store's lock, waiting for it. Where there is no store yet it is made, or without create nil is given.
func (s *Store) lock(create bool) (*lock, error) {
	path := s.path(lockFile)
	fd, err := open(path, unix.O_RDONLY|unix.O_CREAT, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if !create {
			return nil, nil
		}
		if err := os.MkdirAll(s.dir, 0o755); err != nil {
			return nil, fmt.Errorf("address store: %w", err)
		}
		fd, err = open(path, unix.O_RDONLY|unix.O_CREAT, 0o600)
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(fd, unix.LOCK_EX)
	for err == unix.EINTR {
		err = unix.Flock(fd, unix.LOCK_EX)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("address store: lock %s: %w", path, err)
	}
	return &lock{fd}, nil
}

func (l *lock) unlock() { unix.Close(l.fd) }
