package linux

import (
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	tcmsgLen = 20 // struct tcmsg
	tbfParms = 1  // TCA_TBF_PARMS
	tbfRate  = 4  // TCA_TBF_RATE64
	tbfBurst = 6  // TCA_TBF_BURST
	// linkEthernet (TC_LINKLAYER_ETHERNET) makes the kernel count by itself instead of by a table of ours.
	linkEthernet = 1
	tbfQoptLen   = 36 // struct tc_tbf_qopt
	// tickShift turns the scheduler's ticks into nanoseconds (PSCHED_SHIFT).
	tickShift = 6

	tcRoot    = 0xffffffff // TC_H_ROOT
	tcIngress = 0xfffffff1 // TC_H_INGRESS and TC_H_CLSACT
)

func tcmsg(index int, handle, parent uint32) []byte {
	b := make([]byte, tcmsgLen)
	native.PutUint32(b[4:], uint32(index))
	native.PutUint32(b[8:], handle)
	native.PutUint32(b[12:], parent)
	return b
}

func (p *space) qdiscChange(op kernel.Op, q *kernel.Qdisc) (*msg, error) {
	i, err := p.ifindex(q.Link)
	if err != nil {
		return nil, err
	}
	typ, flags := how(op, unix.RTM_NEWQDISC)
	handle, parent := uint32(0), uint32(tcRoot)
	if q.Parent == "" {
		handle, parent = 0xffff0000, tcIngress
	}
	if op == kernel.Delete {
		m := newMsg(typ, flags, tcmsg(i, 0, parent))
		m.str(unix.TCA_KIND, q.Type)
		return m, nil
	}
	if q.Type == "tbf" {
		handle = 1 << 16 // the name that people give it: "1:"
	}
	m := newMsg(typ, flags, tcmsg(i, handle, parent))
	m.str(unix.TCA_KIND, q.Type)
	if q.Type != "tbf" {
		return m, nil
	}
	m.nested(unix.TCA_OPTIONS, func() {
		rate := uint32(min(q.Rate, 1<<32-1))
		b := make([]byte, tbfQoptLen)
		b[1] = linkEthernet
		native.PutUint32(b[8:], rate)
		native.PutUint32(b[24:], q.Limit)
		m.attr(tbfParms, b)
		m.u32(tbfBurst, q.Burst)
		if q.Rate >= 1<<32 {
			m.attr(tbfRate, native.AppendUint64(nil, q.Rate))
		}
	})
	return m, nil
}

func parseQdisc(r reply) (q *kernel.Qdisc, index int) {
	if r.typ != unix.RTM_NEWQDISC || len(r.data) < tcmsgLen {
		return nil, 0
	}
	q = &kernel.Qdisc{Type: cstr(attrOf(r.rest(tcmsgLen), unix.TCA_KIND))}
	index = int(native.Uint32(r.data[4:]))
	switch parent := native.Uint32(r.data[12:]); {
	case parent == tcRoot && q.Type == "tbf":
		q.Parent = "root"
		parseTBF(q, attrOf(r.rest(tcmsgLen), unix.TCA_OPTIONS))
	case parent == tcIngress:
	default:
		return nil, 0
	}
	return q, index
}

func parseTBF(q *kernel.Qdisc, opts []byte) {
	b := attrOf(opts, tbfParms)
	if len(b) < tbfQoptLen {
		return
	}
	q.Rate = uint64(native.Uint32(b[8:]))
	if r := attrOf(opts, tbfRate); len(r) >= 8 {
		q.Rate = native.Uint64(r)
	}
	q.Limit = native.Uint32(b[24:])
	q.Burst = uint32(uint64(native.Uint32(b[28:])) << tickShift * q.Rate / 1e9)
}

// sameBurst reports whether a burst that was listed can be the wanted one. The kernel tells the time that it takes, in
// ticks and of them only the lower 32 bits: what the burst is modulo some 4 minutes of the rate.
func sameBurst(listed, want uint32, rate uint64) bool {
	if rate == 0 {
		return listed == want
	}
	ticks := func(burst uint32) uint64 {
		hi, lo := bits.Mul64(uint64(burst), 1e9)
		ns, _ := bits.Div64(hi%rate, lo, rate)
		return ns >> tickShift
	}
	w := ticks(want)
	d := int32(uint32(w) - uint32(ticks(listed)))
	// Rounding here and there: to ticks, to bytes, and the kernel's own of long times.
	slack := 4 + ticks(2) + w>>24
	return uint64(max(d, -d)) <= slack
}

// qdiscs lists the qdiscs that can be wanted, by link; of one link where index is not 0.
func (p *space) qdiscs(index int) (map[int][]*kernel.Qdisc, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	rs, err := so.dump(newMsg(unix.RTM_GETQDISC, 0, tcmsg(index, 0, 0)))
	if err != nil {
		return nil, err
	}
	out := map[int][]*kernel.Qdisc{}
	for _, r := range rs {
		if q, i := parseQdisc(r); q != nil && (index == 0 || i == index) {
			q.NS = p.path
			out[i] = append(out[i], q)
		}
	}
	return out, nil
}

func (s *session) listQdiscs(sp *space, want []kernel.Object, f *found) error {
	for _, o := range want {
		w := o.(*kernel.Qdisc)
		i, err := sp.ifindex(w.Link)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		have, err := sp.qdiscs(i)
		if err != nil {
			return err
		}
		for _, q := range have[i] {
			q.Link = w.Link
			if q.Key() != w.Key() {
				continue
			}
			if sameBurst(q.Burst, w.Burst, q.Rate) {
				q.Burst = w.Burst
			}
			f.add(q)
		}
	}
	return nil
}
