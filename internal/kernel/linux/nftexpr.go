package linux

import "golang.org/x/sys/unix"

// Numbers of nf_tables.h that golang.org/x/sys/unix does not name.
const (
	metaIifgroup, metaOifgroup = 21, 22 // NFT_META_IIFGROUP, NFT_META_OIFGROUP
	natProtoSpecified          = 2      // NF_NAT_RANGE_PROTO_SPECIFIED
	natRandom                  = 4      // NF_NAT_RANGE_PROTO_RANDOM
	lookupInvert               = 1      // NFT_LOOKUP_F_INV
)

// reg gives the number of the register that begins at 4-byte slot n. Slot 0 goes by its old name, as nft writes it.
func reg(n int) uint32 {
	if n == 0 {
		return unix.NFT_REG_1
	}
	return uint32(unix.NFT_REG32_00 + n)
}

// exprs is the list of a rule's expressions under construction.
type exprs struct{ m *msg }

func (e exprs) add(name string, f func(m *msg)) {
	e.m.nested(unix.NFTA_LIST_ELEM, func() {
		e.m.str(unix.NFTA_EXPR_NAME, name)
		if f != nil {
			e.m.nested(unix.NFTA_EXPR_DATA, func() { f(e.m) })
		}
	})
}

func value(m *msg, typ uint16, data []byte) {
	m.nested(typ, func() { m.attr(unix.NFTA_DATA_VALUE, data) })
}

func (e exprs) meta(key uint32, slot int) {
	e.add("meta", func(m *msg) {
		m.be32(unix.NFTA_META_KEY, key)
		m.be32(unix.NFTA_META_DREG, reg(slot))
	})
}

func (e exprs) ct(key uint32, slot int) {
	e.add("ct", func(m *msg) {
		m.be32(unix.NFTA_CT_KEY, key)
		m.be32(unix.NFTA_CT_DREG, reg(slot))
	})
}

func (e exprs) payload(base, offset, length uint32, slot int) {
	e.add("payload", func(m *msg) {
		m.be32(unix.NFTA_PAYLOAD_DREG, reg(slot))
		m.be32(unix.NFTA_PAYLOAD_BASE, base)
		m.be32(unix.NFTA_PAYLOAD_OFFSET, offset)
		m.be32(unix.NFTA_PAYLOAD_LEN, length)
	})
}

func (e exprs) cmp(op uint32, data []byte) {
	e.add("cmp", func(m *msg) {
		m.be32(unix.NFTA_CMP_SREG, reg(0))
		m.be32(unix.NFTA_CMP_OP, op)
		value(m, unix.NFTA_CMP_DATA, data)
	})
}

func (e exprs) mask(mask []byte) { e.bitwise(mask, make([]byte, len(mask))) }

// bitwise changes the register to what it has under mask, with the bits of xor turned round.
func (e exprs) bitwise(mask, xor []byte) {
	e.add("bitwise", func(m *msg) {
		m.be32(unix.NFTA_BITWISE_SREG, reg(0))
		m.be32(unix.NFTA_BITWISE_DREG, reg(0))
		m.be32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		value(m, unix.NFTA_BITWISE_MASK, mask)
		value(m, unix.NFTA_BITWISE_XOR, xor)
	})
}

func (e exprs) immediate(slot int, data []byte) {
	e.add("immediate", func(m *msg) {
		m.be32(unix.NFTA_IMMEDIATE_DREG, reg(slot))
		value(m, unix.NFTA_IMMEDIATE_DATA, data)
	})
}

func (e exprs) verdict(v verdict) {
	e.add("immediate", func(m *msg) {
		m.be32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		m.nested(unix.NFTA_IMMEDIATE_DATA, func() { v.encode(m) })
	})
}

// verdict is what ends a rule or what a verdict map gives.
type verdict struct {
	code  int32
	chain string
}

func (v verdict) encode(m *msg) {
	m.nested(unix.NFTA_DATA_VERDICT, func() {
		m.be32(unix.NFTA_VERDICT_CODE, uint32(v.code))
		if v.chain != "" {
			m.str(unix.NFTA_VERDICT_CHAIN, v.chain)
		}
	})
}

var verdictCodes = map[string]int32{"drop": 0, "accept": 1, "jump": unix.NFT_JUMP, "goto": unix.NFT_GOTO,
	"return": unix.NFT_RETURN}
