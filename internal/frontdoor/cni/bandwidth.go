package cni

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/reconcile"
)

// limits are what a configuration or runtimeConfig.bandwidth says: rates in bits per second, bursts in bits, as seen from
// the container. A rate without a burst, or a burst without a rate, is an error; nil and 0 are no limit.
type limits struct {
	IngressRate  *uint64 `json:"ingressRate"`
	IngressBurst *uint64 `json:"ingressBurst"`
	EgressRate   *uint64 `json:"egressRate"`
	EgressBurst  *uint64 `json:"egressBurst"`
}

func (l *limits) given() bool {
	return l.IngressRate != nil || l.IngressBurst != nil || l.EgressRate != nil || l.EgressBurst != nil
}

// bandwidthConf is the configuration of the plugin "bandwidth".
type bandwidthConf struct {
	limits
	RuntimeConfig struct {
		Bandwidth limits `json:"bandwidth"`
	} `json:"runtimeConfig"`
}

// bandwidth is the plugin "bandwidth": it limits what a veth that an earlier plugin made carries. What goes to the
// container is shaped where it leaves the machine's end; what comes from it is redirected to an ifb and shaped there.
//
//	to the container     veth (tbf) → eth0
//	from the container   eth0 → veth (ingress: redirect) → ifb (tbf) → on its way from the veth
type bandwidth struct{}

// shape is one direction's limit in bytes (per second); nil for none.
type shape struct {
	rate  uint64
	burst uint32
}

// latency is how long a packet may wait at most, in milliseconds: the limit of the queue follows from it.
const latency = 25

// tbf gives the limit as the root qdisc of a link. Where a queue of the latency and the burst is more than the kernel
// counts, it is as long as can be.
func (s *shape) tbf(link string) *kernel.Qdisc {
	wait, limit := s.rate/1000*latency+s.rate%1000*latency/1000, uint64(math.MaxUint32)
	if wait < limit-uint64(s.burst) {
		limit = wait + uint64(s.burst)
	}
	return &kernel.Qdisc{Link: link, Type: "tbf", Parent: "root", Rate: s.rate, Burst: s.burst, Limit: uint32(limit)}
}

// shaper is a request to bandwidth, validated.
type shaper struct {
	r               *request
	ingress, egress *shape
}

func loadShaper(r *request) (*shaper, error) {
	var c bandwidthConf
	if err := decode(r.stdin, &c); err != nil {
		return nil, err
	}
	l, where := &c.limits, ""
	if !l.given() { // what the configuration says, if only one of the keys, wins over what the runtime does
		l, where = &c.RuntimeConfig.Bandwidth, "runtimeConfig.bandwidth."
	}
	s := &shaper{r: r}
	var err error
	if s.ingress, err = parseShape(where+"ingress", l.IngressRate, l.IngressBurst); err != nil {
		return nil, err
	}
	s.egress, err = parseShape(where+"egress", l.EgressRate, l.EgressBurst)
	return s, err
}

func parseShape(key string, rate, burst *uint64) (*shape, error) {
	v, b := deref(rate), deref(burst)
	const most = 8*math.MaxUint32 - 1 // of what the kernel counts in bytes
	switch {
	case v == 0 && b == 0:
		return nil, nil
	case b == 0:
		return nil, invalid(key+"Burst", b, fmt.Sprintf("is missing beside %sRate %d", key, v), "rate and burst, or neither")
	case v == 0:
		return nil, invalid(key+"Rate", v, fmt.Sprintf("is missing beside %sBurst %d", key, b), "rate and burst, or neither")
	case v < 8:
		return nil, invalid(key+"Rate", v, "is less than one byte per second", "8 bit/s or more")
	case b < 8 || b > most:
		return nil, invalid(key+"Burst", b, "is out of range", fmt.Sprintf("8 to %d bits", uint64(most)))
	}
	return &shape{rate: v / 8, burst: uint32(b / 8)}, nil
}

// ifbPrefix begins the names of the links that what a container sends passes.
const ifbPrefix = "bwp"

// ifb is the name of the link that what the attachment sends passes.
func (i ident) ifb() string { return ifbPrefix + short(12, i.network, i.containerID, i.ifname) }

// referenceIfb is the name that the reference plugin gives it, whatever the interface in the container.
func (i ident) referenceIfb() string {
	return ifbPrefix + referenceHash(15-len(ifbPrefix), i.network+i.containerID)
}

// hostLink finds the machine's end of the container's interface among the links that prevResult names, and lists also
// more objects.
func (s *shaper) hostLink(ctx context.Context, more ...kernel.Object) (*kernel.Link, *seen, error) {
	id := s.r.ident()
	far := &kernel.Peer{NS: s.r.netns, Name: s.r.ifname}
	var names []string
	for _, l := range s.r.prev.Interfaces {
		if l.Sandbox == "" {
			names = append(names, l.Name)
		}
	}
	if len(s.r.prev.Interfaces) == 0 { // a result of an old version names none
		names = append(names, id.veth())
	}
	for _, n := range names {
		more = append(more, &kernel.Link{Name: n, Type: kernel.Veth, Peer: far})
	}
	objs, err := s.r.kernel.List(ctx, kernel.Scope{Objects: more})
	if err != nil {
		return nil, nil, err
	}
	have := newSeen(objs)
	for _, n := range names {
		if l := have.link(n); l != nil && l.Peer != nil {
			return l, have, nil
		}
	}
	return nil, nil, errorf(CodeConfig, "prevResult: none of its links of the machine (%s) is the other end of the container's %q; want the result of a plugin that makes a veth, such as bridge or ptp",
		strings.Join(names, ", "), id.ifname)
}

// plan gives what the limits want of the kernel. It is pure: host is the machine's end of the veth.
func (s *shaper) plan(host *kernel.Link, ifb *kernel.Link) []kernel.Object {
	var out []kernel.Object
	if s.ingress != nil {
		out = append(out, s.ingress.tbf(host.Name))
	}
	if s.egress != nil {
		out = append(out, ifb, s.egress.tbf(ifb.Name), &kernel.LinkUp{Link: ifb.Name},
			&kernel.Qdisc{Link: host.Name, Type: "ingress"}, &kernel.Redirect{Link: host.Name, To: ifb.Name})
	}
	return out
}

func (bandwidth) add(ctx context.Context, r *request) (*Result, error) {
	s, err := loadShaper(r)
	if err != nil {
		return nil, err
	}
	if r.prev == nil {
		return nil, errorf(CodeConfig, "prevResult is missing; want bandwidth behind a plugin that makes an interface")
	}
	if s.ingress == nil && s.egress == nil {
		return r.prev, nil
	}
	id := r.ident()
	ifb := &kernel.Link{Name: id.ifb(), Type: kernel.IFB, Alias: id.mark(), MAC: r.host.newMAC(0)}
	host, have, err := s.hostLink(ctx, &kernel.Link{Name: ifb.Name})
	if err != nil {
		return nil, err
	}
	ifb.MTU = host.MTU
	if old := have.link(ifb.Name); old != nil {
		if !id.marked(old.Alias) {
			return nil, errorf(CodeInternal, "link %q: is there already and is not the attachment's; want the name to be free", ifb.Name)
		}
		// Of an ADD that was cut off and had no DEL.
		if err := errors.Join(applyAll(ctx, r.kernel, []kernel.Change{{Op: kernel.Delete, Old: old}})...); err != nil {
			return nil, err
		}
	}
	plan := s.plan(host, ifb)
	if err := reconcile.Apply(ctx, r.kernel, plan, nil); err != nil {
		var back []kernel.Change
		for _, o := range plan {
			back = append(back, kernel.Change{Op: kernel.Delete, Old: o})
		}
		return nil, errors.Join(append([]error{err}, applyAll(context.WithoutCancel(ctx), r.kernel, back)...)...)
	}
	if s.egress == nil {
		return r.prev, nil
	}
	out := *r.prev
	out.Interfaces = append(append([]Interface(nil), r.prev.Interfaces...), Interface{Name: ifb.Name, MAC: ifb.MAC})
	return &out, nil
}

// del removes the ifb; qdiscs and redirect are the veth's and go with it. Where the veth is one of ours the DEL of the
// plugin that made it comes next and takes the ifb along: the kernel waits as long for one link as for two.
func (bandwidth) del(ctx context.Context, r *request) error {
	id := r.ident()
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{
		&kernel.Link{Name: id.veth()}, &kernel.Link{Name: id.ifb()}, &kernel.Link{Name: id.referenceIfb()}}})
	if err != nil {
		return err
	}
	have := newSeen(objs)
	ifb := have.link(id.ifb())
	if ifb != nil && !id.marked(ifb.Alias) {
		ifb = nil
	}
	if ifb == nil && r.prev.hasHostLink(id.referenceIfb()) {
		ifb = have.link(id.referenceIfb())
	}
	if ifb == nil || ifb.Type != kernel.IFB {
		return nil
	}
	if veth := have.link(id.veth()); veth != nil && id.marked(veth.Alias) && id.marked(ifb.Alias) {
		return nil
	}
	return errors.Join(applyAll(ctx, r.kernel, []kernel.Change{{Op: kernel.Delete, Old: ifb}})...)
}

// hasHostLink reports whether a result names a link of the machine; where there is no result to ask, it may be.
func (r *Result) hasHostLink(name string) bool {
	if r == nil {
		return true
	}
	for _, l := range r.Interfaces {
		if l.Sandbox == "" && l.Name == name {
			return true
		}
	}
	return false
}

func (bandwidth) check(ctx context.Context, r *request) error {
	s, err := loadShaper(r)
	if err != nil {
		return err
	}
	if err := r.needPrev(); err != nil {
		return err
	}
	if s.ingress == nil && s.egress == nil {
		return nil
	}
	id := r.ident()
	ifb := &kernel.Link{Name: id.ifb(), Type: kernel.IFB, Alias: id.mark()}
	theirs := !r.prev.hasHostLink(ifb.Name) && r.prev.hasHostLink(id.referenceIfb())
	if theirs {
		ifb.Name, ifb.Alias = id.referenceIfb(), ""
	}
	host, _, err := s.hostLink(ctx)
	if err != nil {
		return err
	}
	want := s.plan(host, ifb)
	if theirs || !id.marked(host.Alias) {
		if want, err = s.onlyRates(ctx, want); err != nil {
			return err
		}
	}
	return differs(ctx, r.kernel, want)
}

// onlyRates leaves out what the reference plugin gets wrong where it counts over 2^32: bursts and limits of qdiscs.
func (s *shaper) onlyRates(ctx context.Context, want []kernel.Object) ([]kernel.Object, error) {
	objs, err := s.r.kernel.List(ctx, kernel.Scope{Objects: want})
	if err != nil {
		return nil, err
	}
	have := newSeen(objs)
	for i, o := range want {
		w, ok := o.(*kernel.Qdisc)
		if h, found := have.byKey[o.Key()].(*kernel.Qdisc); ok && found && h.Rate == w.Rate {
			want[i] = h
		}
	}
	return want, nil
}

func (bandwidth) gc(ctx context.Context, r *request) error {
	valid, err := r.valid()
	if err != nil {
		return err
	}
	return collect(ctx, r, valid)
}

func (bandwidth) status(_ context.Context, r *request) error {
	_, err := loadShaper(r)
	return err
}
