package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/kernel"
)

// Retry times of what the kernel refused: the first after retryMin, then twice as long each time up to retryMax.
const (
	retryMin = 100 * time.Millisecond
	retryMax = time.Minute
)

// Reconciler is the loop that makes a kernel hold what a desired.Set says. Only the goroutine in Run touches the
// kernel; everybody else marks keys and waits.
type Reconciler struct {
	kernel kernel.Kernel
	want   *desired.Set
	log    *slog.Logger

	mu      sync.Mutex
	dirty   map[kernel.Key]bool // true: look at the kernel first
	full    bool                // look at everything first
	later   []kernel.Key        // dirty from laterAt on
	laterAt time.Time
	loaded  bool
	waiters []*waiter
	failed  map[kernel.Key]*problem
	wake    chan struct{}
	ended   chan struct{} // closed when Run is over
}

// ErrEnded says that the reconciler does nothing any more. What was asked of it is done by the next one, which compares
// the whole kernel with what is wanted then.
var ErrEnded = errors.New("the reconciler has ended")

type waiter struct {
	keys []kernel.Key
	err  error
	done chan struct{}
}

// problem is something that the kernel refused so far.
type problem struct {
	err   error
	delay time.Duration
	next  time.Time // zero: not tried again by itself
}

// New makes a Reconciler; Run makes it work.
func New(k kernel.Kernel, want *desired.Set, log *slog.Logger) *Reconciler {
	return &Reconciler{kernel: k, want: want, log: log, dirty: map[kernel.Key]bool{}, failed: map[kernel.Key]*problem{},
		wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// Loaded says that the desired set is complete: from now on what is ours and unwanted is removed. Before, a listing
// only adds to what is known, so that a half-loaded restart never deletes something that lives.
func (r *Reconciler) Loaded() {
	r.mu.Lock()
	r.loaded = true
	r.mu.Unlock()
}

// Sync waits until the keys are as desired, or were tried; the error is the first cause.
func (r *Reconciler) Sync(ctx context.Context, keys []kernel.Key) error {
	return r.wait(ctx, keys, false, false)
}

// SyncAll looks at the whole kernel, mends what differs and waits for it. The error is the first cause.
func (r *Reconciler) SyncAll(ctx context.Context) error { return r.wait(ctx, nil, false, true) }

// laterDelay is how long Later lets keys wait. The kernel takes some 20 ms to delete a link, or many at once.
const laterDelay = 50 * time.Millisecond

// Later has the keys made as desired a moment later, without waiting: whoever marks others until then is not held up, and
// links that go at about the same time go together.
func (r *Reconciler) Later(keys []kernel.Key) {
	if len(keys) == 0 {
		return
	}
	r.mu.Lock()
	if len(r.later) == 0 {
		r.laterAt = time.Now().Add(laterDelay)
	}
	r.later = append(r.later, keys...)
	r.mu.Unlock()
	r.poke()
}

// Flush does now what Later put off, and waits for it. The error is the first cause.
func (r *Reconciler) Flush(ctx context.Context) error {
	r.mu.Lock()
	keys := slices.Clone(r.later)
	r.mu.Unlock()
	return r.Sync(ctx, keys)
}

// Touch has the keys looked at in the kernel and mended, without waiting; no keys mean all.
func (r *Reconciler) Touch(keys ...kernel.Key) {
	r.mark(keys, true, len(keys) == 0, nil)
}

func (r *Reconciler) wait(ctx context.Context, keys []kernel.Key, look, full bool) error {
	if len(keys) == 0 && !full {
		return nil
	}
	w := &waiter{keys: keys, done: make(chan struct{})}
	r.mark(keys, look, full, w)
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ended:
		return ErrEnded
	}
}

func (r *Reconciler) mark(keys []kernel.Key, look, full bool, w *waiter) {
	r.mu.Lock()
	for _, k := range keys {
		r.dirty[k] = r.dirty[k] || look
	}
	r.full = r.full || full
	if w != nil {
		r.waiters = append(r.waiters, w)
	}
	r.mu.Unlock()
	r.poke()
}

func (r *Reconciler) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends; who waits then, or later, is told so. It is called once.
func (r *Reconciler) Run(ctx context.Context) {
	defer close(r.ended)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(r.nextRetry())
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
		r.Turn(ctx)
	}
}

// Turn does what is due once: what Run does at each wake-up. For tests that bring no goroutine.
func (r *Reconciler) Turn(ctx context.Context) {
	r.mu.Lock()
	dirty, full, loaded, waiters := r.dirty, r.full, r.loaded, r.waiters
	r.dirty, r.full, r.waiters = map[kernel.Key]bool{}, false, nil
	now := time.Now()
	if full || !r.laterAt.After(now) {
		for _, k := range r.later {
			if _, due := dirty[k]; !due { // with or without a look, as it was
				dirty[k] = false
			}
		}
		r.later = nil
	}
	for k, p := range r.failed {
		if !p.next.IsZero() && !p.next.After(now) {
			dirty[k] = true
		}
	}
	r.mu.Unlock()

	keys := make([]kernel.Key, 0, len(dirty))
	var look []kernel.Key
	for k, l := range dirty {
		keys = append(keys, k)
		if l {
			look = append(look, k)
		}
	}
	var err error
	if full {
		var more []kernel.Key
		if more, err = r.lookAll(ctx, loaded); err == nil {
			keys = append(keys, more...)
		}
	} else if len(look) > 0 {
		err = r.look(ctx, look)
	}
	if err != nil {
		r.log.Error("kernel can't be listed", "err", err)
		r.settle(keys, nil, err)
		r.finish(waiters, fmt.Errorf("kernel can't be listed: %w", err))
		return
	}
	failed := r.passes(ctx, keys)
	r.settle(keys, failed, nil)
	r.finish(waiters, nil)
}

// passes applies what the keys need until nothing is left to do, and returns what could not be done.
func (r *Reconciler) passes(ctx context.Context, keys []kernel.Key) []failure {
	var lost []failure // not to be tried again in this turn
	var failed []failure
	for range maxPasses {
		changes := r.want.Changes(keys)
		changes = slices.DeleteFunc(changes, func(c kernel.Change) bool {
			return slices.ContainsFunc(lost, func(f failure) bool { return f.change.Key() == c.Key() })
		})
		if len(changes) == 0 {
			return lost
		}
		errs := applyChanges(ctx, r.kernel, changes)
		var again []kernel.Key
		for i, c := range changes {
			if errs[i] == nil {
				r.want.Applied(c)
			} else {
				again = append(again, c.Key())
			}
		}
		if gone := append(r.hanging(changes), r.unrouted(changes, errs)...); len(gone) > 0 {
			again, keys = append(again, gone...), append(keys, gone...)
		}
		failed = failures(changes, errs)
		for _, f := range failed {
			if isFinal(f.err) {
				lost = append(lost, f)
			}
		}
		if len(again) == 0 {
			continue
		}
		if err := r.look(ctx, again); err != nil {
			return append(lost, failure{changes[0], err})
		}
	}
	left := r.want.Changes(keys)
	for _, f := range failed {
		if !isFinal(f.err) && slices.ContainsFunc(left, func(c kernel.Change) bool { return c.Key() == f.change.Key() }) {
			lost = append(lost, f)
		}
	}
	if len(lost) == 0 && len(left) > 0 {
		lost = append(lost, failure{left[0], fmt.Errorf("%s: still differs after %d passes", left[0].Key(), maxPasses)})
	}
	return lost
}

// hanging gives the wanted keys that a replaced link took with it.
func (r *Reconciler) hanging(changes []kernel.Change) []kernel.Key {
	if !replaces(changes) {
		return nil
	}
	gone := map[[2]string]bool{}
	for _, c := range changes {
		if l, ok := c.Old.(*kernel.Link); ok && c.Op == kernel.Delete {
			gone[[2]string{l.NS, l.Name}] = true
			if l.Peer != nil {
				gone[[2]string{l.Peer.NS, l.Peer.Name}] = true
			}
		}
	}
	var keys []kernel.Key
	dead := map[kernel.Key]bool{} // nexthops
	all := r.want.Objects(r.want.Keys(""))
	for _, o := range all {
		ns, name := kernel.HangsOn(o)
		l, isLink := o.(*kernel.Link)
		if name != "" && gone[[2]string{ns, name}] || isLink && gone[[2]string{l.NS, l.Master}] {
			keys = append(keys, o.Key())
			dead[o.Key()] = o.Key().Kind == kernel.KindNexthop
		}
	}
	for _, o := range all {
		if route, ok := o.(*kernel.Route); ok && route.Nexthop != 0 && dead[(&kernel.Nexthop{NS: route.NS, ID: route.Nexthop}).Key()] {
			keys = append(keys, o.Key())
		}
	}
	return keys
}

// unrouted gives the wanted routes by nexthops that were made just now: where there was no nexthop there was no such route,
// whatever is believed. The kernel takes routes along with a nexthop, and a nexthop with its link, and tells nobody of IPv4's.
func (r *Reconciler) unrouted(changes []kernel.Change, errs []error) []kernel.Key {
	made, seen := map[kernel.Key]bool{}, make(map[kernel.Key]bool, len(changes))
	for i, c := range changes {
		seen[c.Key()] = true
		if c.Op == kernel.Create && c.Key().Kind == kernel.KindNexthop && errs[i] == nil {
			made[c.Key()] = true
		}
	}
	if len(made) == 0 {
		return nil
	}
	var keys []kernel.Key
	for _, o := range r.want.Objects(r.want.Keys("")) {
		route, ok := o.(*kernel.Route)
		if ok && route.Nexthop != 0 && !seen[o.Key()] && made[(&kernel.Nexthop{NS: route.NS, ID: route.Nexthop}).Key()] {
			keys = append(keys, o.Key())
		}
	}
	return keys
}

// look asks the kernel about keys and notes what it says.
func (r *Reconciler) look(ctx context.Context, keys []kernel.Key) error {
	found, err := r.list(ctx, kernel.Scope{Objects: r.want.Objects(keys)})
	if err == nil {
		r.want.Seen(keys, found)
	}
	return err
}

// lookAll asks the kernel about everything and returns the keys to work on.
func (r *Reconciler) lookAll(ctx context.Context, prune bool) ([]kernel.Key, error) {
	known := append(r.want.Keys(""), r.want.Believed()...)
	found, err := r.list(ctx, kernel.Scope{Objects: r.want.Objects(known), All: true})
	if err != nil {
		return nil, err
	}
	r.want.Seen(known, found)
	if prune {
		for k := range found {
			known = append(known, k)
		}
		r.want.Seen(known, found)
	}
	return known, nil
}

func (r *Reconciler) list(ctx context.Context, scope kernel.Scope) (map[kernel.Key]kernel.Object, error) {
	objects, err := r.kernel.List(ctx, scope)
	if err != nil {
		return nil, err
	}
	found := make(map[kernel.Key]kernel.Object, len(objects))
	for _, o := range objects {
		found[o.Key()] = o
	}
	return found, nil
}

// settle notes which of the keys failed, and tells them apart from those that are right now.
func (r *Reconciler) settle(keys []kernel.Key, failed []failure, listing error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := map[kernel.Key]*problem{}
	for _, k := range keys {
		if p := r.failed[k]; p != nil {
			old[k] = p
			delete(r.failed, k)
		}
	}
	note := func(k kernel.Key, err error) {
		p := &problem{err: err, delay: retryMin}
		if o := old[k]; o != nil {
			p.delay = min(2*o.delay, retryMax)
		}
		if !errors.Is(err, kernel.ErrNamespaceGone) {
			p.next = time.Now().Add(p.delay)
		}
		r.failed[k] = p
	}
	for _, f := range failed {
		level := slog.LevelDebug // what is mended a moment later, or asks for nothing: the one who waits gets the error
		if old[f.change.Key()] != nil && !errors.Is(f.err, kernel.ErrNamespaceGone) {
			level = slog.LevelWarn
		}
		note(f.change.Key(), f.err)
		r.log.Log(context.Background(), level, "kernel refused", "change", f.change.String(), "err", f.err)
	}
	if listing != nil {
		for _, k := range keys {
			note(k, listing)
		}
	}
}

// finish answers waiters: with err, or with what is known to be wrong with their keys.
func (r *Reconciler) finish(waiters []*waiter, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range waiters {
		w.err = err
		if err == nil {
			w.err = r.causeLocked(w.keys)
		}
		close(w.done)
	}
}

// causeLocked is the first cause among the problems of keys; of all problems where keys is nil.
func (r *Reconciler) causeLocked(keys []kernel.Key) error {
	var found []failure
	add := func(k kernel.Key, p *problem) {
		found = append(found, failure{kernel.Change{Op: kernel.Delete, Old: stub(k)}, p.err})
	}
	if keys == nil {
		for k, p := range r.failed {
			add(k, p)
		}
	}
	for _, k := range keys {
		if p := r.failed[k]; p != nil {
			add(k, p)
		}
	}
	slices.SortFunc(found, func(a, b failure) int { return int(a.change.Key().Kind) - int(b.change.Key().Kind) })
	return cause(found)
}

// stub is an object that is only its key.
type stub kernel.Key

func (s stub) Key() kernel.Key          { return kernel.Key(s) }
func (s stub) Holds(kernel.Object) bool { return false }
func (s stub) String() string           { return kernel.Key(s).String() }

// Problems gives what the kernel refused so far, by key.
func (r *Reconciler) Problems() map[kernel.Key]error {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[kernel.Key]error, len(r.failed))
	for k, p := range r.failed {
		out[k] = p.err
	}
	return out
}

// Cause is the first cause among the problems of the keys, nil where there are none.
func (r *Reconciler) Cause(keys []kernel.Key) error {
	if len(keys) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.causeLocked(keys)
}

// Plan lists the kernel and gives what would be changed, changing nothing; for one owner, or for all with "", where
// what is ours and unwanted is counted too.
func (r *Reconciler) Plan(ctx context.Context, owner string) ([]kernel.Change, error) {
	want := r.want.Objects(r.want.Keys(owner))
	actual, err := r.kernel.List(ctx, kernel.Scope{Objects: want, All: owner == ""})
	if err != nil {
		return nil, err
	}
	return kernel.Diff(want, actual), nil
}

func (r *Reconciler) nextRetry() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := time.Hour
	if len(r.later) > 0 {
		d = time.Until(r.laterAt)
	}
	for _, p := range r.failed {
		if !p.next.IsZero() {
			d = min(d, time.Until(p.next))
		}
	}
	return max(d, 0)
}
