package dhcp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/seine-net/seine/internal/kernel"
)

// The times of a lease that is kept.
const (
	// lookEvery is how often a namespace is looked for whose lease has nothing else to do.
	lookEvery = 30 * time.Second
	// leastRetry and mostRetry bound the pause until a server is asked for more time again (RFC 2131 section 4.4.5 has
	// the latter; leases of tests, and of some wireless networks, are shorter than that).
	leastRetry = time.Second
	mostRetry  = time.Minute
)

// keep keeps a lease from now on, until its slot's is given back. old says that it comes from the store.
func (s *Service) keep(l *lease, old bool) {
	ctx, cancel := context.WithCancel(s.ctx)
	h := &held{lease: l, cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	s.slots[l.key()].held = h
	s.mu.Unlock()
	s.running.Go(func() {
		defer cancel()
		var each sync.WaitGroup
		var gone error
		var once sync.Once
		for _, f := range s.families {
			if *f.of(l) == nil {
				continue
			}
			each.Go(func() {
				if err := s.maintain(ctx, h, f, old); err != nil {
					once.Do(func() { gone = err })
					cancel()
				}
			})
		}
		each.Wait()
		close(h.done)
		if gone != nil && s.ctx.Err() == nil {
			s.forget(h, gone)
		}
	})
}

// forget gives back a lease whose interface is gone.
func (s *Service) forget(h *held, why error) {
	key := h.lease.key()
	s.log.Info("the container is gone", "lease", h.lease.String(), "why", why)
	p, _, leave := s.enlist(key)
	defer leave()
	done, err := p.enter(s.ctx)
	if err != nil {
		return // the daemon ends; the next one finds it gone too
	}
	defer done()
	s.mu.Lock()
	same := p.held == h
	s.mu.Unlock()
	if !same {
		return
	}
	if err := s.giveBack(s.ctx, p); err != nil {
		s.log.Error("a lease can't be removed from the store", "lease", key, "err", err)
	}
}

// lease reads what is kept now.
func (s *Service) lease(h *held) *lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return h.lease
}

// change replaces what is kept, in the store first. The families of one lease change it one after the other.
func (s *Service) change(h *held, f func(*lease)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *h.lease
	f(&next)
	if err := s.save(&next); err != nil {
		return err
	}
	h.lease = &next
	return nil
}

// maintain extends one family of a lease in time, until ctx ends, which is no error, or the interface is gone.
func (s *Service) maintain(ctx context.Context, h *held, f family, old bool) error {
	next := time.Now()
	if !old {
		next = (*f.of(s.lease(h))).Renew
	}
	for {
		wait := lookEvery + jitter(lookEvery/10)
		l := s.lease(h)
		if l.Lost == "" && !next.IsZero() {
			wait = min(wait, time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if _, err := enter(l.Netns, l.Space, nil); errors.Is(err, errGone) {
			return err
		}
		if l = s.lease(h); l.Lost != "" || next.IsZero() || time.Now().Before(next) {
			continue
		}
		var err error
		next, err = s.step(ctx, h, f, old)
		old = false
		if errors.Is(err, errGone) {
			return err
		}
	}
}

// step does what a lease's age asks for and says when to look again; the zero Time is never.
func (s *Service) step(ctx context.Context, h *held, f family, old bool) (time.Time, error) {
	l := s.lease(h)
	b := *f.of(l)
	now := time.Now()
	var got *binding
	var err error
	end := b.Expire
	switch {
	case b.Renew.IsZero() || now.Before(b.Renew): // taken up from the store, early enough
		return b.Renew, nil
	case !now.Before(b.Expire):
		err = errNoAnswer
		if old { // it ended while there was no daemon: perhaps nobody else has the address
			got, err = f.acquire(ctx, l, b.Addr.Addr())
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, errGone) {
			return time.Time{}, s.lose(ctx, h, f, fmt.Errorf("it expired at %s: %w", b.Expire.Format(time.RFC3339), err))
		}
	case now.Before(b.Rebind):
		end = b.Rebind
		got, err = s.until(ctx, end, func(ctx context.Context) (*binding, error) { return f.extend(ctx, l, b, false) })
	default:
		got, err = s.rebind(ctx, l, f, b)
	}
	if errors.Is(err, errRefused) {
		// The server may only have lost its memory, as after a restart.
		if got, err = f.acquire(ctx, l, b.Addr.Addr()); err != nil && ctx.Err() == nil && !errors.Is(err, errGone) {
			return time.Time{}, s.lose(ctx, h, f, fmt.Errorf("%w, and: %w", errRefused, err))
		}
	}
	switch {
	case ctx.Err() != nil || errors.Is(err, errGone):
		return time.Time{}, err
	case err != nil:
		s.log.Warn("a lease can't be extended yet", "for", l.String(), "by", f.String(), "err", err, "expires", b.Expire)
		return time.Now().Add(retry(time.Until(end), b.Expire.Sub(b.Since))), nil
	}
	if !got.sameAs(b) {
		s.log.Warn("a lease has other settings now; the container keeps the old ones", "for", l.String(), "by", f.String())
	}
	s.log.Debug("lease extended", "for", l.String(), "by", f.String(), "expires", got.Expire)
	if err := s.change(h, func(l *lease) { *f.of(l) = got }); err != nil {
		s.log.Error("a lease can't be stored", "for", l.String(), "err", err)
	}
	return got.Renew, nil
}

// retry is the pause until the next try: half of what is left, within bounds.
func retry(left, whole time.Duration) time.Duration {
	least := max(leastRetry, min(mostRetry, whole/20))
	return min(max(left/2, least), max(left, leastRetry))
}

func (s *Service) until(ctx context.Context, end time.Time, f func(context.Context) (*binding, error)) (*binding, error) {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	return f(ctx)
}

// rebind asks any server for more time and then, for one that has lost its memory and keeps quiet about what it does not
// know, for the same address anew.
func (s *Service) rebind(ctx context.Context, l *lease, f family, b *binding) (*binding, error) {
	half := time.Now().Add(time.Until(b.Expire) / 2)
	got, err := s.until(ctx, half, func(ctx context.Context) (*binding, error) { return f.extend(ctx, l, b, true) })
	if !errors.Is(err, errNoAnswer) {
		return got, err
	}
	return s.until(ctx, b.Expire, func(ctx context.Context) (*binding, error) { return f.acquire(ctx, l, b.Addr.Addr()) })
}

// lose notes that an address may not be used any more and sets the interface down, as the reference does.
func (s *Service) lose(ctx context.Context, h *held, f family, why error) error {
	l := s.lease(h)
	s.log.Error("a lease is lost; the interface is set down", "for", l.String(), "by", f.String(), "why", why)
	err := s.change(h, func(l *lease) { l.Lost = fmt.Sprintf("%s: %s", f, why) })
	down := kernel.Change{Op: kernel.Delete, Old: &kernel.LinkUp{NS: l.Netns, Link: l.Interface}}
	if err := errors.Join(append([]error{err}, s.kernel.Apply(ctx, []kernel.Change{down})...)...); err != nil {
		s.log.Error("a lost lease", "for", l.String(), "err", err)
	}
	return nil
}
