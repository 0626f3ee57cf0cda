package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/reconcile"
)

// loopback is the plugin "loopback": the container's lo, up on ADD and down on DEL, whatever CNI_IFNAME says.
type loopback struct{}

const lo = "lo"

func (loopback) add(ctx context.Context, r *request) (*Result, error) {
	up := &kernel.LinkUp{NS: r.netns, Link: lo}
	if err := reconcile.Apply(ctx, r.kernel, []kernel.Object{up}, nil); err != nil {
		return nil, err
	}
	if r.prev != nil {
		return r.prev, nil
	}
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.Addr{NS: r.netns, Link: lo}}})
	if err != nil {
		return nil, err
	}
	res := &Result{Interfaces: []Interface{{Name: lo, MAC: "00:00:00:00:00:00", Sandbox: r.netns}}}
	index := 0
	for _, v4 := range []bool{true, false} {
		for _, o := range objs {
			a, ok := o.(*kernel.Addr)
			if !ok || a.Prefix.Addr().Is4() != v4 {
				continue
			}
			if !a.Prefix.Addr().IsLoopback() {
				err := fmt.Errorf("%s of the container has address %s; want loopback addresses only", lo, a.Prefix)
				return nil, errors.Join(err, errors.Join(applyAll(ctx, r.kernel, []kernel.Change{{Op: kernel.Delete, Old: up}})...))
			}
			res.IPs = append(res.IPs, IP{Address: a.Prefix, Interface: &index})
			break // the first of each family
		}
	}
	return res, nil
}

func (loopback) del(ctx context.Context, r *request) error {
	if r.netns == "" {
		return nil
	}
	down := []kernel.Change{{Op: kernel.Delete, Old: &kernel.LinkUp{NS: r.netns, Link: lo}}}
	return errors.Join(applyAll(ctx, r.kernel, down)...)
}

func (loopback) check(ctx context.Context, r *request) error {
	return differs(ctx, r.kernel, []kernel.Object{&kernel.LinkUp{NS: r.netns, Link: lo}})
}

func (loopback) gc(_ context.Context, r *request) error {
	_, err := r.valid()
	return err
}

func (loopback) status(context.Context, *request) error { return nil }
