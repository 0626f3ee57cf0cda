package linux

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// applyRoute carries out a run of changes that are one rtnetlink message each (rarely two), all in one system call.
func (s *session) applyRoute(sp *space, run []kernel.Change, errs []error) {
	so, err := sp.route()
	if err != nil {
		for i, c := range run {
			errs[i] = fail(subject(c), err)
		}
		return
	}
	var msgs []*msg
	var owner []int
	for i, c := range run {
		ms, err := sp.message(c)
		if err != nil {
			errs[i] = s.verdict(c, err)
			continue
		}
		for _, m := range ms {
			msgs = append(msgs, m)
			owner = append(owner, i)
		}
	}
	results := so.exec(msgs...)
	unreachable := func(err error) bool { return isErrno(err, unix.EHOSTUNREACH, unix.ENETUNREACH) }
	if slices.ContainsFunc(results, unreachable) && s.restore(sp) {
		for j, err := range results {
			if unreachable(err) {
				results[j] = so.exec1(msgs[j])
			}
		}
	}
	for j, err := range results {
		i := owner[j]
		if j+1 < len(owner) && owner[j+1] == i && gone(err) {
			continue // the first half of a delete and add
		}
		if err != nil && errs[i] == nil {
			errs[i] = s.verdict(run[i], sp.explain(run[i], err))
		}
		if a, ok := run[i].New.(*kernel.Addr); ok && err == nil && a.Prefix.Addr().Is6() && !a.DAD {
			s.fresh = append(s.fresh, a)
		}
	}
}

// explain finds out what the kernel means by EINVAL, which is all that it says where a qdisc is not there to be deleted
// or to put a filter on, and where no link has the source address of a route.
func (p *space) explain(c kernel.Change, err error) error {
	if !isErrno(err, unix.EINVAL) {
		return err
	}
	switch o := subject(c).(type) {
	case *kernel.Qdisc:
		have, lerr := p.qdiscs(p.index[o.Link])
		if lerr == nil && c.Op == kernel.Delete && !slices.ContainsFunc(have[p.index[o.Link]], func(q *kernel.Qdisc) bool {
			return q.Type == o.Type && q.Parent == o.Parent
		}) {
			return unix.ENOENT
		}
	case *kernel.Redirect:
		have, lerr := p.qdiscs(p.index[o.Link])
		if lerr == nil && !slices.ContainsFunc(have[p.index[o.Link]], func(q *kernel.Qdisc) bool { return q.Parent == "" }) {
			return fmt.Errorf("%w: the link has no ingress qdisc", unix.ENOENT)
		}
	case *kernel.Route:
		if _, lerr := p.nexthop(o.Nexthop); o.Nexthop != 0 && gone(lerr) {
			return fmt.Errorf("there is no nexthop %d: %w", o.Nexthop, unix.ENOENT)
		}
		have, lerr := p.addrs(0)
		if lerr == nil && o.Src.IsValid() && !slices.ContainsFunc(have, func(a addrInfo) bool { return a.prefix.Addr() == o.Src }) {
			return fmt.Errorf("%w: no link has the source address: %w", kernel.ErrAbsent, err)
		}
	}
	return err
}

// verdict makes of an error what the caller gets.
func (s *session) verdict(c kernel.Change, err error) error {
	if c.Op == kernel.Delete && gone(err) {
		return nil
	}
	if c.Op == kernel.Create && isErrno(err, unix.EEXIST) {
		err = s.exists(c.New, err)
	}
	return fail(subject(c), err)
}

var errNoMessage = errors.New("no way to carry that out")

// message gives the rtnetlink messages of a change.
func (p *space) message(c kernel.Change) ([]*msg, error) {
	var m *msg
	var err error
	switch o := subject(c).(type) {
	case *kernel.Addr:
		m, err = p.addrChange(c.Op, o)
	case *kernel.Attrs:
		m, err = p.attrsChange(c.Op, o)
	case *kernel.LinkUp:
		m, err = p.upChange(c.Op, o)
	case *kernel.Route:
		return p.routeMsgs(c)
	case *kernel.Nexthop:
		m, err = p.nexthopChange(c.Op, o)
	case *kernel.Rule:
		m = ruleChange(c.Op, o)
	case *kernel.Neigh:
		m, err = p.neighChange(c.Op, o)
	case *kernel.FDB:
		m, err = p.fdbChange(c.Op, o)
	case *kernel.Qdisc:
		m, err = p.qdiscChange(c.Op, o)
	case *kernel.Redirect:
		return p.redirectMsgs(c.Op, o)
	case *kernel.PortVLANs:
		return p.vlanMsgs(c)
	default:
		err = errNoMessage
	}
	return []*msg{m}, err
}

// how gives the message type and flags for an operation: the types of a family are new, del, get in a row.
func how(op kernel.Op, newType uint16) (typ, flags uint16) {
	switch op {
	case kernel.Delete:
		return newType + 1, 0
	case kernel.Update:
		return newType, unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return newType, unix.NLM_F_CREATE | unix.NLM_F_EXCL
}

func (p *space) addrChange(op kernel.Op, a *kernel.Addr) (*msg, error) {
	i, err := p.ifindex(a.Link)
	if err != nil {
		return nil, err
	}
	typ, flags := how(op, unix.RTM_NEWADDR)
	return addrMsg(typ, flags, i, a), nil
}

func (p *space) upChange(op kernel.Op, u *kernel.LinkUp) (*msg, error) {
	i, err := p.ifindex(u.Link)
	if err != nil {
		return nil, err
	}
	flags := uint32(unix.IFF_UP)
	if op == kernel.Delete {
		flags = 0
	}
	return newMsg(unix.RTM_NEWLINK, 0, ifinfo(i, flags, unix.IFF_UP)), nil
}
