package linux

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Numbers of linux/pkt_cls.h, linux/pkt_sched.h and linux/tc_act/tc_mirred.h.
const (
	u32Sel, u32Act  = 5, 7 // TCA_U32_SEL, TCA_U32_ACT
	u32SelLen       = 16   // struct tc_u32_sel without keys
	u32KeyLen       = 16   // struct tc_u32_key
	actKind         = 1    // TCA_ACT_KIND
	actOptions      = 2    // TCA_ACT_OPTIONS
	mirredParms     = 2    // TCA_MIRRED_PARMS
	mirredLen       = 28   // struct tc_mirred
	egressRedirect  = 1    // TCA_EGRESS_REDIR
	actStolen       = 4    // TC_ACT_STOLEN
	ingressHandle   = 0xffff0000
	redirectHandle  = 0x80000800 // the first one that the kernel would give
	redirectPrio    = 1          // before all others
	redirectKind    = "u32"
	redirectAct     = "mirred"
	redirectActSlot = 1
)

func filterMsg(typ, flags uint16, index int, handle uint32) *msg {
	b := tcmsg(index, handle, ingressHandle)
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	native.PutUint32(b[16:], redirectPrio<<16|uint32(protocol))
	m := newMsg(typ, flags, b)
	m.str(unix.TCA_KIND, redirectKind)
	return m
}

// redirectMsgs gives the messages of a change. The action of a filter can't be replaced in place on all kernels.
func (p *space) redirectMsgs(op kernel.Op, o *kernel.Redirect) ([]*msg, error) {
	i, err := p.ifindex(o.Link)
	if err != nil {
		return nil, err
	}
	// Without a handle the whole priority goes, and with it what tells the kernel that there is any.
	del := filterMsg(unix.RTM_DELTFILTER, 0, i, 0)
	if op == kernel.Delete {
		return []*msg{del}, nil
	}
	to, err := p.ifindex(o.To)
	if err != nil {
		return nil, err
	}
	m := filterMsg(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL, i, redirectHandle)
	m.nested(unix.TCA_OPTIONS, func() {
		sel := make([]byte, u32SelLen+u32KeyLen) // one key of zeros matches all
		sel[0], sel[2] = 1, 1                    // TC_U32_TERMINAL; number of keys
		m.attr(u32Sel, sel)
		m.nested(u32Act, func() {
			m.nested(redirectActSlot, func() {
				m.str(actKind, redirectAct)
				m.nested(actOptions, func() {
					b := make([]byte, mirredLen)
					native.PutUint32(b[8:], actStolen)
					native.PutUint32(b[20:], egressRedirect)
					native.PutUint32(b[24:], uint32(to))
					m.attr(mirredParms, b)
				})
			})
		})
	})
	if op == kernel.Update {
		return []*msg{del, m}, nil
	}
	return []*msg{m}, nil
}

// redirect reads the redirect of a link; found says whether there is one, to is 0 where it leads nowhere any more.
func (p *space) redirect(index int) (to int, found bool, err error) {
	so, err := p.route()
	if err != nil {
		return 0, false, err
	}
	rs, err := so.dump(newMsg(unix.RTM_GETTFILTER, 0, tcmsg(index, 0, ingressHandle)))
	if err != nil {
		return 0, false, err
	}
	for _, r := range rs {
		rest := r.rest(tcmsgLen)
		if r.typ != unix.RTM_NEWTFILTER || rest == nil || int(native.Uint32(r.data[4:])) != index ||
			native.Uint32(r.data[16:])>>16 != redirectPrio || cstr(attrOf(rest, unix.TCA_KIND)) != redirectKind {
			continue
		}
		for _, act := range attrs(attrOf(attrOf(rest, unix.TCA_OPTIONS), u32Act)) {
			parms := attrOf(attrOf(act, actOptions), mirredParms)
			if cstr(attrOf(act, actKind)) == redirectAct && len(parms) >= mirredLen && native.Uint32(parms[20:]) == egressRedirect {
				return int(native.Uint32(parms[24:])), true, nil
			}
		}
	}
	return 0, false, nil
}

// redirectOf gives the redirect of a link as an object; nil for none.
func (p *space) redirectOf(index int, link string) (*kernel.Redirect, error) {
	to, found, err := p.redirect(index)
	if err != nil || !found {
		return nil, err
	}
	o := &kernel.Redirect{NS: p.path, Link: link}
	if to == 0 {
		return o, nil
	}
	l, err := p.linkBy(nil, to)
	if err != nil && !gone(err) {
		return nil, err
	}
	if l != nil {
		o.To = l.name
	}
	return o, nil
}

func (s *session) listRedirects(sp *space, want []kernel.Object, f *found) error {
	for _, o := range want {
		link := o.(*kernel.Redirect).Link
		i, err := sp.ifindex(link)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		r, err := sp.redirectOf(i, link)
		if err != nil {
			return err
		}
		if r != nil {
			f.add(r)
		}
	}
	return nil
}
