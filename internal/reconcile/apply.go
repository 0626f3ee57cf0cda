// Package reconcile makes a kernel hold exactly what is desired: it computes the difference, applies it in order, looks
// at what came of it and goes on until the difference is empty or a bound is reached.
//
// Apply and Check are the one-shot forms, for programs that keep no state (CNI plugins). Reconciler is the daemon's
// loop around the same steps: it keeps a belief of what the kernel holds, so that one more endpoint costs no listing.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// maxPasses bounds the passes over one set of changes. Replacing a link takes its addresses and routes with it, so two
// are common; what is not settled after four is fought over by somebody.
const maxPasses = 4

// Apply makes k hold want and none of drop, and returns the first cause if it could not. It begins optimistically, as
// if all of want were absent and all of drop present, so the common case lists nothing; what that gets wrong is mended
// from a listing of the same objects. An element that stands there with another comment and other data belongs to
// somebody else and is an error (kernel.ErrExists), never overwritten.
func Apply(ctx context.Context, k kernel.Kernel, want, drop []kernel.Object) error {
	keep := make(map[kernel.Key]bool, len(want))
	for _, o := range want {
		keep[o.Key()] = true
	}
	var gone []kernel.Object
	for _, o := range drop {
		if !keep[o.Key()] && !kernel.Stays(o) {
			gone = append(gone, o)
		}
	}
	changes := kernel.Diff(want, gone)
	var errs []error
	for range maxPasses {
		errs = applyChanges(ctx, k, changes)
		failed := failures(changes, errs)
		if len(failed) == 0 && !replaces(changes) {
			return nil
		}
		if err := final(failed); err != nil {
			return err
		}
		all := append(append([]kernel.Object(nil), want...), gone...)
		actual, err := k.List(ctx, kernel.Scope{Objects: all})
		if err != nil {
			return errors.Join(cause(failed), err)
		}
		if err := foreign(want, actual); err != nil {
			return err
		}
		changes = kernel.Diff(want, actual)
		if len(changes) == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(cause(failed), err)
		}
	}
	if err := cause(failures(changes, errs)); err != nil {
		return err
	}
	return fmt.Errorf("%s: still differs after %d passes", changes[0].Key(), maxPasses)
}

// Check gives what differs between want and what k holds of it.
func Check(ctx context.Context, k kernel.Kernel, want []kernel.Object) ([]kernel.Change, error) {
	actual, err := k.List(ctx, kernel.Scope{Objects: want})
	if err != nil {
		return nil, err
	}
	return kernel.Diff(want, actual), nil
}

// failure is a change that did not come about.
type failure struct {
	change kernel.Change
	err    error
}

func failures(changes []kernel.Change, errs []error) []failure {
	var out []failure
	for i, err := range errs {
		if err != nil && i < len(changes) {
			out = append(out, failure{changes[i], err})
		}
	}
	return out
}

// replaces reports whether a link was deleted and made anew.
func replaces(changes []kernel.Change) bool {
	deleted := map[kernel.Key]bool{}
	for _, c := range changes {
		if c.Op == kernel.Delete {
			deleted[c.Key()] = true
		} else if deleted[c.Key()] {
			return true
		}
	}
	return false
}

// isFinal tells errors that trying again at once can't mend.
func isFinal(err error) bool {
	return errors.Is(err, kernel.ErrInUse) || errors.Is(err, kernel.ErrNamespaceGone) ||
		errors.Is(err, kernel.ErrUnsupported) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func final(failed []failure) error {
	for _, f := range failed {
		if isFinal(f.err) {
			return f.err
		}
	}
	return nil
}

// cause picks the error that explains the others: the first that is not about something missing.
func cause(failed []failure) error {
	for _, f := range failed {
		if !errors.Is(f.err, kernel.ErrAbsent) {
			return f.err
		}
	}
	if len(failed) > 0 {
		return failed[0].err
	}
	return nil
}

// foreign looks for elements of somebody else's under a wanted key.
func foreign(want, actual []kernel.Object) error {
	have := make(map[kernel.Key]kernel.Object, len(actual))
	for _, o := range actual {
		have[o.Key()] = o
	}
	for _, o := range want {
		w, ok := o.(*kernel.Element)
		a, ok2 := have[o.Key()].(*kernel.Element)
		if ok && ok2 && a.Data != w.Data && a.Comment != w.Comment {
			return fmt.Errorf("%s: %w: it is %q of %q", w, kernel.ErrExists, a.Data, a.Comment)
		}
	}
	return nil
}

// applyChanges applies changes without those that the deletion of a link brings about by itself; they share its error.
func applyChanges(ctx context.Context, k kernel.Kernel, changes []kernel.Change) []error {
	type link struct{ ns, name string }
	going := map[link]int{}
	for i, c := range changes {
		l, ok := c.Old.(*kernel.Link)
		if c.Op != kernel.Delete || !ok {
			continue
		}
		going[link{l.NS, l.Name}] = i
		if l.Peer != nil {
			going[link{l.Peer.NS, l.Peer.Name}] = i
		}
	}
	errs := make([]error, len(changes))
	follows := make(map[int]int) // index of an implied change → index of its link's
	var send []kernel.Change
	var at []int
	for i, c := range changes {
		if err := guard(c); err != nil {
			errs[i] = err
			continue
		}
		if c.Op == kernel.Delete {
			if kernel.Stays(c.Old) {
				continue
			}
			ns, name := kernel.HangsOn(c.Old)
			if j, ok := going[link{ns, name}]; ok && name != "" {
				follows[i] = j
				continue
			}
		}
		send, at = append(send, c), append(at, i)
	}
	if len(send) > 0 {
		for n, err := range k.Apply(ctx, send) {
			errs[at[n]] = err
		}
	}
	for i, j := range follows {
		errs[i] = errs[j]
	}
	return errs
}

// guard refuses to change or delete a link that is not provably ours. A link is ours by its alias; between its creation
// and the setting of the alias by its name, which begins with a prefix of ours or is a hash that nobody else makes.
func guard(c kernel.Change) error {
	old, ok := c.Old.(*kernel.Link)
	if !ok || strings.HasPrefix(old.Alias, kernel.AliasPrefix) || strings.HasPrefix(old.Name, kernel.HostPrefix) ||
		strings.HasPrefix(old.Name, kernel.PortPrefix) {
		return nil
	}
	if want, ok := c.New.(*kernel.Link); c.Op == kernel.Update && ok && want.Alias == "" {
		return nil // asked for by name without making it ours, as CNI's bridge is
	}
	if old.Home != "" {
		return nil // it was moved by us: its alias says from where, and the kernel compares that
	}
	if c.Op == kernel.Delete && old.Type == kernel.Veth && old.Peer != nil {
		return nil // a CNI attachment's, found by the name that only it has
	}
	return fmt.Errorf("%s: %w: it is not ours", old, kernel.ErrExists)
}
