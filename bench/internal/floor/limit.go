package floor

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Numbers of linux/pkt_cls.h, linux/pkt_sched.h and linux/tc_act/tc_mirred.h.
const (
	tcRoot      = 0xffffffff // TC_H_ROOT
	tcIngress   = 0xfffffff1 // TC_H_INGRESS
	ingressRoot = 0xffff0000 // the handle of the ingress qdisc

	tbfParms, tbfBurst        = 1, 6 // TCA_TBF_PARMS, TCA_TBF_BURST
	u32Sel, u32Act            = 5, 7 // TCA_U32_SEL, TCA_U32_ACT
	actKind, actOptions       = 1, 2 // TCA_ACT_KIND, TCA_ACT_OPTIONS
	mirredParms               = 2    // TCA_MIRRED_PARMS
	actStolen, egressRedirect = 4, 1 // TC_ACT_STOLEN, TCA_EGRESS_REDIR
)

// ifb makes the link through which goes what comes from the container, so that it can be limited.
func (r *request) ifb(name string) {
	r.begin(unix.RTM_NEWLINK, newObject, ifinfo(0, unix.IFF_UP, unix.IFF_UP)...)
	r.str(unix.IFLA_IFNAME, name)
	r.nest(unix.IFLA_LINKINFO, func() { r.str(unix.IFLA_INFO_KIND, "ifb") })
}

func tcmsg(link, handle, parent, info uint32) []byte {
	b := make([]byte, 20) // struct tcmsg
	for i, v := range []uint32{link, handle, parent, info} {
		native.PutUint32(b[4+4*i:], v)
	}
	return b
}

// limit limits both directions to a rate in bytes per second.
func (r *request) limit(host, ifb, rate uint32) {
	for _, link := range []uint32{host, ifb} {
		r.begin(unix.RTM_NEWQDISC, newObject, tcmsg(link, 1<<16, tcRoot, 0)...)
		r.str(unix.TCA_KIND, "tbf")
		r.nest(unix.TCA_OPTIONS, func() {
			parms := make([]byte, 36) // struct tc_tbf_qopt
			parms[1] = 1              // TC_LINKLAYER_ETHERNET
			native.PutUint32(parms[8:], rate)
			native.PutUint32(parms[24:], rate/10) // the queue's limit
			r.attr(tbfParms, parms)
			r.u32(tbfBurst, rate/10)
		})
	}
	r.begin(unix.RTM_NEWQDISC, newObject, tcmsg(host, ingressRoot, tcIngress, 0)...)
	r.str(unix.TCA_KIND, "ingress")
	all := native.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	r.begin(unix.RTM_NEWTFILTER, newObject, tcmsg(host, 0, ingressRoot, 1<<16|uint32(all))...)
	r.str(unix.TCA_KIND, "u32")
	r.nest(unix.TCA_OPTIONS, func() {
		sel := make([]byte, 16+16) // struct tc_u32_sel with one tc_u32_key of zeros, which matches all
		sel[0], sel[2] = 1, 1      // TC_U32_TERMINAL; number of keys
		r.attr(u32Sel, sel)
		r.nest(u32Act, func() {
			r.nest(1, func() {
				r.str(actKind, "mirred")
				r.nest(actOptions, func() {
					parms := make([]byte, 28) // struct tc_mirred
					native.PutUint32(parms[8:], actStolen)
					native.PutUint32(parms[20:], egressRedirect)
					native.PutUint32(parms[24:], ifb)
					r.attr(mirredParms, parms)
				})
			})
		})
	})
}
