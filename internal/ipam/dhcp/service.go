package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
	"github.com/seine-net/seine/internal/kernel"
)

// Store keeps values by name for good.
type Store interface {
	// Values gives all values whose names begin with prefix.
	Values(prefix string) map[string]string
	// SetValue keeps a value; "" removes it.
	SetValue(name, value string) error
}

// Applier is what the service needs of a kernel.
type Applier interface {
	Apply(ctx context.Context, changes []kernel.Change) []error
}

// Options are the settings. They are those of the reference plugin's daemon.
type Options struct {
	// Timeout is how long one exchange with a server is tried before it is begun anew.
	Timeout time.Duration
	// ResendMax is the largest pause between two exchanges, ResendTimeout when a lease that can't be taken is given up.
	ResendMax, ResendTimeout time.Duration
	// Broadcast has DHCPv4 servers answer to everybody, for interfaces that share a hardware address (ipvlan).
	Broadcast bool
	// HostPrefix stands before the paths of namespaces, for a daemon that sees the machine's files elsewhere.
	HostPrefix string
}

// DefaultOptions are the reference's.
func DefaultOptions() Options {
	return Options{Timeout: 10 * time.Second, ResendMax: 62 * time.Second, ResendTimeout: 208 * time.Second}
}

// protocol is DHCP of one family. With errGone there is no interface to speak by.
type protocol interface {
	fmt.Stringer
	// acquire takes a lease; with want, of that address or none (errOther).
	acquire(ctx context.Context, l *lease, want netip.Addr) (*binding, error)
	// extend asks for more time, with rebind of any server. errRefused says that the address is lost.
	extend(ctx context.Context, l *lease, b *binding, rebind bool) (*binding, error)
	// release gives a lease back, releaseFar does so where the interface is gone, as far as that is possible.
	release(ctx context.Context, l *lease, b *binding) error
	releaseFar(ctx context.Context, l *lease, b *binding) error
}

// family is one of a lease's two: how it is spoken and where the lease keeps it.
type family struct {
	protocol
	of func(*lease) **binding
}

// Service keeps the leases. It is made by New and does nothing before Run.
type Service struct {
	log      *slog.Logger
	kernel   Applier
	store    Store
	opts     Options
	families []family

	// ctx is that of Run, and running what it waits for.
	ctx     context.Context
	running sync.WaitGroup

	mu    sync.Mutex
	slots map[string]*slot
}

// slot is the place of one attachment. One at a time works on it; that one holds the gate.
type slot struct {
	gate  chan struct{}
	users int
	// asking ends, by deleted, for all who wait for a lease or are about to take one.
	asking  context.Context
	deleted context.CancelCauseFunc
	held    *held
}

func newSlot() *slot {
	p := &slot{gate: make(chan struct{}, 1)}
	p.asking, p.deleted = context.WithCancelCause(context.Background())
	return p
}

// held is a lease that is kept. The lease is replaced, never changed, and read under the service's mu.
type held struct {
	lease  *lease
	cancel context.CancelFunc
	done   chan struct{} // closed when nobody keeps it any more
}

// New makes a service; k changes interfaces in containers' namespaces.
func New(k Applier, store Store, log *slog.Logger, o Options) *Service {
	s := &Service{log: log, kernel: k, store: store, opts: o, slots: map[string]*slot{}}
	s.families = []family{
		{&client4{open: openWire, timeout: o.Timeout, toAll: o.Broadcast}, func(l *lease) **binding { return &l.V4 }},
		{&client6{timeout: o.Timeout, routerWait: routerWait}, func(l *lease) **binding { return &l.V6 }},
	}
	return s
}

// routerWait is how long an IPv6 router is waited for when its DHCPv6 server has answered.
const routerWait = 2 * time.Second

// Run takes up the leases that are in the store, serves what comes in by the listener, which may be nil, and keeps the
// leases until ctx ends. They are not given back then: the containers go on.
func (s *Service) Run(ctx context.Context, door net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.running.Wait()
	defer cancel()
	s.ctx = ctx
	for name, text := range s.store.Values(storePrefix) {
		l, err := parseLease(name, text)
		if err != nil {
			s.log.Error("a lease can't be read; it is forgotten", "err", err)
			if err := s.store.SetValue(name, ""); err != nil {
				s.log.Error("a lease can't be removed from the store", "lease", name, "err", err)
			}
			continue
		}
		s.mu.Lock()
		s.slots[l.key()] = newSlot()
		s.mu.Unlock()
		s.keep(l, true)
	}
	if door == nil {
		<-ctx.Done()
		return nil
	}
	s.serve(ctx, door)
	return nil
}

// enlist makes a slot where there is none, and keeps it until leave. The context is the slot's asking.
func (s *Service) enlist(key string) (p *slot, asking context.Context, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p = s.slots[key]; p == nil {
		p = newSlot()
		s.slots[key] = p
	}
	p.users++
	return p, p.asking, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if p.users--; p.users == 0 && p.held == nil {
			delete(s.slots, key)
		}
	}
}

// enter waits until nobody else works on the slot.
func (p *slot) enter(ctx context.Context) (func(), error) {
	select {
	case p.gate <- struct{}{}:
		return func() { <-p.gate }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("another call for the same attachment is not done: %w", context.Cause(ctx))
	}
}

// current is the lease of a slot that is kept; nil for none.
func (s *Service) current(p *slot) *lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.held == nil {
		return nil
	}
	return p.held.lease
}

// errReleased ends an allocate.
var errReleased = errors.New("the attachment is deleted meanwhile")

// allocate gives the lease of an attachment, taking one where there is none.
func (s *Service) allocate(ctx context.Context, l *lease) (*dhcprpc.Result, error) {
	p, asking, leave := s.enlist(l.key())
	defer leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(asking, func() { cancel(errReleased) })()
	done, err := p.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if have := s.current(p); have != nil {
		_, err := enter(have.Netns, have.Space, nil)
		switch {
		case err == nil && have.Netns == l.Netns:
			return have.holds()
		case err != nil && !errors.Is(err, errGone):
			return nil, err
		}
		if err := s.giveBack(ctx, p); err != nil { // that container is gone
			return nil, err
		}
	}
	if err := s.take(ctx, l); err != nil {
		return nil, err
	}
	s.keep(l, false)
	s.log.Info("lease", "for", l.String(), "addresses", l.addresses(), "expires", l.expires())
	return l.result(), nil
}

// holds gives what the plugin is told, or why the lease is lost.
func (l *lease) holds() (*dhcprpc.Result, error) {
	if l.Lost != "" {
		return nil, fmt.Errorf("the lease of %s was lost: %s", l.addresses(), l.Lost)
	}
	return l.result(), nil
}

// take fills in a lease and stores it, or takes nothing.
func (s *Service) take(ctx context.Context, l *lease) error {
	var err error
	if l.Space, err = enter(l.Netns, "", func() error {
		link, err := interfaceOf(l.Interface)
		if err == nil {
			copy(l.MAC[:], link.HardwareAddr)
		}
		return err
	}); err != nil {
		return err
	}
	if err := errors.Join(s.kernel.Apply(ctx, l.needs())...); err != nil {
		return err
	}
	got := make([]*binding, len(s.families))
	errs := make([]error, len(s.families))
	var both sync.WaitGroup
	for i, f := range s.families {
		if l.wants(f) {
			both.Go(func() { got[i], errs[i] = s.acquire(ctx, l, f) })
		}
	}
	both.Wait()
	err = errors.Join(errs...)
	for i, f := range s.families {
		*f.of(l) = got[i]
	}
	if err == nil {
		err = s.save(l)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		s.farewell(context.WithoutCancel(ctx), l)
		err = errors.Join(err, s.store.SetValue(storePrefix+l.key(), ""))
	}
	return err
}

// needs is what the kernel has to hold before servers can be asked.
func (l *lease) needs() []kernel.Change {
	var out []kernel.Change
	if l.Conf.V6 { // it may be off in the container's namespace
		out = append(out, kernel.Change{Op: kernel.Create, New: &kernel.Sysctl{NS: l.Netns, Name: "net/ipv6/conf/" + l.Interface + "/disable_ipv6", Value: "0"}})
	}
	return append(out, kernel.Change{Op: kernel.Create, New: &kernel.LinkUp{NS: l.Netns, Link: l.Interface}})
}

func (l *lease) wants(f family) bool {
	if f.of(l) == &l.V4 {
		return l.Conf.V4
	}
	return l.Conf.V6
}

func (s *Service) save(l *lease) error {
	text, err := l.text()
	if err != nil {
		return err
	}
	return s.store.SetValue(storePrefix+l.key(), text)
}

// The pauses between exchanges while a lease is acquired: a few short ones, then ever longer ones (RFC 2131 section
// 4.1); each is a second more or less by chance.
const (
	fastPause   = 2 * time.Second
	fastPauses  = 4
	slowPause   = 4 * time.Second
	pauseJitter = time.Second
)

// acquire tries to take a lease until it has one or ResendTimeout is over.
func (s *Service) acquire(ctx context.Context, l *lease, f family) (*binding, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.ResendTimeout)
	defer cancel()
	slow := slowPause
	for try := 0; ; try++ {
		b, err := f.acquire(ctx, l, netip.Addr{})
		if err == nil || errors.Is(err, errGone) {
			return b, err
		}
		s.log.Debug("no lease yet", "for", l.String(), "by", f.String(), "err", err)
		pause := fastPause
		if try >= fastPauses {
			pause = min(slow, s.opts.ResendMax)
			slow *= 2
		}
		select {
		case <-time.After(pause + jitter(pauseJitter)):
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return nil, fmt.Errorf("%s: %w", f, cause)
			}
			return nil, fmt.Errorf("%s: %w on interface %q (given up after %s)", f, err, l.Interface, s.opts.ResendTimeout)
		}
	}
}

// release gives an attachment's lease back; none is success.
func (s *Service) release(ctx context.Context, key string) error {
	p, _, leave := s.enlist(key)
	defer leave()
	s.mu.Lock()
	p.deleted(errReleased)
	p.asking, p.deleted = context.WithCancelCause(context.Background())
	s.mu.Unlock()
	done, err := p.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	return s.giveBack(ctx, p)
}

// giveBack ends a slot's lease; the caller holds the gate.
func (s *Service) giveBack(ctx context.Context, p *slot) error {
	s.mu.Lock()
	h := p.held
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	h.cancel()
	<-h.done
	l := s.current(p)
	s.farewell(ctx, l)
	if err := s.store.SetValue(storePrefix+l.key(), ""); err != nil {
		s.keep(l, true) // it is asked for again, and by then may be forgotten
		return err
	}
	s.mu.Lock()
	p.held = nil
	s.mu.Unlock()
	s.log.Info("lease given back", "for", l.String(), "addresses", l.addresses())
	return nil
}

// farewell tells the servers that a lease ends. They learn by its end if this fails, so that is no error.
func (s *Service) farewell(ctx context.Context, l *lease) {
	if l.Lost != "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	for _, f := range s.families {
		b := *f.of(l)
		if b == nil {
			continue
		}
		err := f.release(ctx, l, b)
		if errors.Is(err, errGone) {
			err = f.releaseFar(ctx, l, b)
		}
		if err != nil {
			s.log.Warn("the server could not be told that a lease ends", "for", l.String(), "by", f.String(), "err", err)
		}
	}
}

// collect gives back the leases of a network that are not of the attachments in valid.
func (s *Service) collect(ctx context.Context, network string, valid map[string]bool) error {
	s.mu.Lock()
	var stale []string
	for key, p := range s.slots {
		if p.held != nil && p.held.lease.Network == network && !valid[key] {
			stale = append(stale, key)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, key := range stale {
		errs = append(errs, s.release(ctx, key))
	}
	return errors.Join(errs...)
}
