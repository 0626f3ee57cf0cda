package cni

import (
	"context"
	"errors"

	"github.com/seine-net/seine/internal/kernel"
)

// overLink is an address plugin that asks for addresses over the attachment's interface: that has to be there and up
// before add is called, and still to be there when del is.
type overLink interface{ asksOverLink() }

// addOverLink makes the interface without addresses, asks for them, and adds what hangs on them. Nothing is locked while
// it asks: others need not wait for somebody's DHCP server.
func addOverLink(ctx context.Context, r *request, m maker, i ipam, a *attaching) (*Result, error) {
	bare := *a
	if _, err := addLocked(ctx, r, m, a); err != nil {
		return nil, err
	}
	var res *Result
	ips, undo, err := i.add(ctx)
	if err == nil {
		a.ips, a.made = ips, true
		if res, err = addLocked(ctx, r, m, a); err == nil {
			return res, nil
		}
	}
	ctx = context.WithoutCancel(ctx)
	errs := []error{err}
	if undo != nil {
		errs = append(errs, undo(ctx)) // the interface is needed for this
	}
	// A bridge that was made for this stays, as it does on DEL: others may use it by now.
	p, err := m.plan(&bare, newSeen(nil))
	if err == nil {
		errs = append(errs, applyAll(ctx, r.kernel, []kernel.Change{{Op: kernel.Delete, Old: p.link}})...)
	}
	return nil, errors.Join(append(errs, err)...)
}
